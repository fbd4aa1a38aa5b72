"""`bit finetune`: from somebody's images to a classifier.

`finetune` reads as the whole story: open the data, load the network, solve the closed form, decide, train, choose, measure, save, report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

import torch

from bigtransfer import hyperrule, machine, report, runs, weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.catalog import Calibrated, ModelCard
from bigtransfer.config import FinetuneConfig
from bigtransfer.config.finetune import AUTO
from bigtransfer.data import ImageSet, Splits, exclusions, splits
from bigtransfer.data.layout import in_short
from bigtransfer.errors import DataError
from bigtransfer.evals.candidates import Choice, Closed, in_words
from bigtransfer.jobs import best, working
from bigtransfer.jobs.finetune import baseline, choice, dataset, decision, measuring, start, tuning
from bigtransfer.jobs.finetune.decision import FinetunePlan
from bigtransfer.jobs.plan import Begun, recall, run_folder
from bigtransfer.jobs.working import Finetuned
from bigtransfer.model import Network, joined, reading, side_by_side
from bigtransfer.predictor import Predictor

COMMAND = "finetune"

FINISHING = 1.0
"""Seconds, on a machine that does nothing else, for what comes after the last image: model, report, the end of the process."""
ALWAYS, AS_ASKED = "The closed form and its test are made", "As many steps as --steps says are taken"
"""However little is left of a budget; the latter where the user set them."""


def run(config: FinetuneConfig) -> int:
    """`bit finetune`; 0 when done, 128 + signal when stopped by one."""
    with saying_what_is_kept(config):
        done = finetune(config, since=machine.began)
    return done.status("bit predict")


def saying_what_is_kept(config: FinetuneConfig) -> contextlib.AbstractContextManager[None]:
    """See `working.saying_what_is_kept`."""
    return working.saying_what_is_kept(_folder(config), {baseline.MODEL: "the closed form"})


def _folder(config: FinetuneConfig) -> Path:
    return run_folder(config.out, config.data, "" if config.model == AUTO else config.model)


_FILES = ("split.json", "unreadable.json", "copies.json", *baseline.FILES)
"""Of its folder, from which a run goes on after an interruption."""


def finetune(config: FinetuneConfig, images: Splits | None = None, *, since: float | None = None) -> Finetuned:
    """Adapt a model to a data set as `config` asks, in its run folder; resumes an interrupted run, returns a finished one's result.

    images: instead of what lies at `config.data`, which is then only what they are called: a set that is used as it is. Nothing is held
    out of it unless asked for, classes may be without images, no closed form is solved that was not asked for, and there is no report.
    since: when a budget began to run (`time.monotonic`); now unless given.

    Raises BitError for everything the user can mend; nothing is trained before the data and the model have been checked.
    """
    since = time.monotonic() if since is None else since
    folder = _folder(config)
    begun = recall(folder, COMMAND, config, FinetunePlan)
    if begun is not None and working.is_finished(folder):
        return _finished(config, folder, begun, images)
    if begun is not None:
        begun.check(folder, _FILES)
    device = choose_device(config.device)
    asked, undecided = config, begun is None and start.left_to_the_images(config)
    config = (
        start.usual(config) if begun is None else dataclasses.replace(config, model=begun.plan.start or config.model)
    )
    channels = dataset.channels(config)
    opened, excluded = dataset.left(config, dataset.opened(config, channels) if images is None else images)
    if config.exclude is not None:
        print(exclusions.told(excluded, config.exclude), flush=True)
    parts, unreadable = dataset.usable(config, opened, folder if begun else None, as_it_is=images is not None)
    _tell_data(config, parts)
    names = start.at_hand() if undecided else [config.model]
    networks = {name: _load(config, name, len(parts.train.class_names), channels, device) for name in names}

    always = ALWAYS if asked.steps is None else AS_ASKED
    with working.at_work(folder, COMMAND, asked, begun, since=since, reserve=FINISHING, always=always) as work:
        run, clock, kept = work.run, work.clock, work.kept
        lent = dataset.lent(config, opened, parts)
        if undecided:
            work.enter("to choose the network")
        begin = start.choose(config, parts, networks, device, clock)
        if begin.why:
            print(f"        {begin.why}", flush=True)
        model = networks[begin.model] if begin.model in networks else side_by_side(*networks.values())
        networks.clear()
        config, card = dataclasses.replace(config, model=begin.model), model.card
        if begun is None:
            facts = decision.find_facts(config, model, card, parts, device)
            wanted = images is None or config.linear == "closed" or config.budget is not None
            work.enter("for the closed form and the plan")
            found, look = baseline.solve(config, run, model, parts, facts, lent, clock) if wanted else (None, 0.0)
            if clock is not None:
                facts = dataclasses.replace(facts, left=lambda: clock.left)
            plan = decision.decide(config, dataclasses.replace(facts, closed=found, look=look), begin.why)
            splits.save_split(run.folder / "split.json", parts)
            runs.write_json(run.folder / "unreadable.json", unreadable)
            groups = dataset.find_copies(parts) if images is None else []
            copies = [[dataclasses.asdict(one) for one in group] for group in groups]
            runs.write_json(run.folder / "copies.json", copies)
            counted = dataset.counted(config, parts) | dataset.state(opened)
            if images is None and (told := dataset.given_away(config, parts.train)):
                counted["given_away"] = told
            if config.exclude is not None:
                counted["excluded"] = sum(excluded.values())
            work.decided(plan, counted, _FILES)
        else:
            plan = dataclasses.replace(begun.plan, device=str(device))
            found = baseline.recall(run)
            if dataset.changed(opened, begun.data):
                print(f"note: the images of {config.data} have changed since this run began with them", file=sys.stderr)
        _tell_plan(config, card, parts, plan, found, lent, told=begin.why)
        work.enter("to fine-tune" if plan.recipe.steps else "to measure it")
        work.track()
        taken, made, steps = plan.recipe, None, 0
        if plan.recipe.steps:
            outcome = tuning.train(config, run, model, parts, plan, found, kept, work.tell)
            if not outcome.finished:
                return work.stopped(plan, outcome)
            steps = outcome.steps
            taken = hyperrule.as_taken(taken, steps, outcome.best and outcome.best.step)
            if outcome.best is not None:
                best.load(folder, model)
                print(f"best:   the weights after step {outcome.best.step}, by the validation images")
            if plan.choose:
                judged, model, made = choice.deliver(run, model, parts, plan, found, lent, kept)
            else:
                model.card = dataclasses.replace(model.card, input=plan.input)
                judged = model
        else:
            judged, model = baseline.load(folder, found, plan.torch_device)
        kind = made.delivered if made else None
        if kind == "closed form":
            note = "Fine-tuning was tried too; on the validation images the closed form is better."
            taken = hyperrule.without_steps(model.card.input.size, note)
        work.enter("to measure it")
        trained_on = Path(config.data).name or config.data
        made_by = in_words(plan.linear, plan.recipe.steps, kind)
        model.card = ModelCard(
            name=folder.resolve().name,
            architecture=model.architecture,
            num_classes=plan.classes,
            input=model.card.input,
            class_names=parts.train.class_names,
            upstream="; ".join(filter(None, (card.upstream, f"{made_by} on {trained_on}")))
            if config.pretrained
            else trained_on,
            licence=card.licence if config.pretrained else "",
            source="bit finetune",
            recipe=taken.to_dict(),
            multi_label=parts.train.several,
        )
        if plan.choose or not plan.recipe.steps:
            # The temperature of a closed form is among what was solved, that of a choice among what was chosen.
            own, delivered = _calibrated(made, found)
            judged.card, why_not = dataclasses.replace(model.card, calibrated=own), ""
            model.card = dataclasses.replace(model.card, calibrated=delivered)
        else:
            why_not = measuring.finish(config, model, parts, clock=kept)
        print(measuring.how_sure(model.card, why_not))
        expected = found if plan.choose or not plan.recipe.steps else None
        # Images that the model has learnt from cannot measure it.
        unseen = model if parts.test is not None else judged
        measured = measuring.evaluate(
            config, folder, unseen, parts, expected, surpassed=judged is not model, clock=clock, why_not=why_not
        )
        model.card = work.measured(model.card, taken, measured, steps)
        weights.save(work.model, model)
        if images is None:
            late = (lambda: kept.left <= 0) if kept is not None else (lambda: False)
            predictor = None if late() else Predictor(unseen, device=config.device, precision=config.precision)
            report.write(folder, list(parts.parts().values()), predictor, late)
        done = work.ended(plan, measured)
        baseline.remove(folder)
    return done


def _calibrated(made: Choice | None, found: Closed | None) -> tuple[Calibrated | None, Calibrated | None]:
    """What the temperature is worth, of a choice or else of a closed form alone: of the model as it was judged, and as it is delivered."""
    if made is not None:
        return made.calibrated, made.calibrated
    assert found is not None
    return found.calibrated, found.calibrated if found.whole is None else found.whole.calibrated


def _finished(
    config: FinetuneConfig, folder: Path, begun: Begun[FinetunePlan], images: Splits | None = None
) -> Finetuned:
    """The result of a finished run; RunError if its images have changed since."""
    card = weights.describe(folder / working.MODEL)
    try:
        whole = dataset.opened(config, card.architecture.in_chans) if images is None else images
        opened, _ = dataset.left(config, whole)
    except DataError:
        opened = None  # somebody cleared the images away; the result is as good as it was
    changed = ""
    if opened is not None and dataset.changed(opened, begun.data):
        now, then = sum(map(len, opened.parts().values())), begun.data.get("found")
        changed = (
            f"the images of {config.data} have changed since: {now:,} are there now, {then:,} then, or some have other contents or "
            "classes."
        )
    there = [] if opened is None else list(opened.parts().values())
    return working.finished(folder, begun, changed, there if images is None else None)


def _load(config: FinetuneConfig, name: str, num_classes: int, channels: int, device: torch.device) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # random weights, where there are any
        model = weights.load(name, num_classes=num_classes, in_chans=channels, pretrained=config.pretrained)
        # What the head saw of the network was chosen for other images, and so is a head of as many classes, which was kept: the rule
        # starts from the last map and zero. What was fine-tuned goes on without what it was averaged with, of two networks both go on.
        arch = model.architecture
        if arch.readout is not None:
            plain = arch.seen(None)
            alone = dataclasses.replace(plain, beside=None)
            model = joined(model, None) if plain.beside in (None, alone) else reading(model, plain)
        model.reset_classifier(num_classes)
    return model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)


def _tell_data(config: FinetuneConfig, parts: Splits) -> None:
    """Print what is learnt from, before it is looked at, which takes longer: what was taken for the classes may not be what was meant."""
    sizes = [
        f"{len(images):,} {part}"
        for part, images in (("train", parts.train), ("val", parts.val), ("test", parts.test))
        if images
    ]
    print(f"data:   {config.data}: {', '.join(sizes)} images of {len(parts.train.class_names)} classes")
    print(f"classes: {in_short(parts.train.class_names)}")
    if parts.train.several:
        print("        an image may have several of them: each class is learnt by itself (sigmoid loss)")
    if uneven := splits.imbalance(parts.train):
        print(f"        imbalanced: {uneven}; what counts is the mean per class, not the share of all images")
        if config.balance:
            print("        --balance: each class counts the same in all that is learnt and chosen")
        else:
            print("        with --balance each class counts the same in all that is learnt and chosen")
    sys.stdout.flush()


def _tell_plan(
    config: FinetuneConfig,
    card: ModelCard,
    parts: Splits,
    plan: FinetunePlan,
    found: Closed | None,
    lent: ImageSet | None,
    told: str,
) -> None:
    """Print what will be done and why. lent: as of `baseline.solve`. told: the one of the plan's notes that stands there already."""
    recipe, uneven = plan.recipe, splits.imbalance(parts.train)
    notes = [note for note in recipe.notes if note != told]
    print(f"model:  {card.name}" + ("" if config.pretrained else " from random weights"))
    if found is not None:
        of = f"{found.images:,}"
        if found.images < len(parts.train):
            of += f" of the {len(parts.train):,} training"
        solved = f"closed: a linear classifier on {found.view} of {of} images, solved in {found.seconds:.0f} s"
        if found.top1 is not None:  # no image is left to judge by where a class has only one
            solved += f"; each image judged by the others: {found.top1:.1%} correct"
            if uneven and found.mean_per_class is not None:
                solved += f", {found.mean_per_class:.1%} mean per class"
            if alone := found.unjudged(parts.train.class_names):
                solved += f" (of {in_short(alone)} nothing is known: a class of one image has no others)"
        print(solved)
        if found.whole is not None:
            print(f"        and once more with those held out, on all {found.whole.images:,}: what of it is delivered")
        elif lent and config.budget is not None and not recipe.steps:
            held_out = "1 image" if len(lent) == 1 else f"{len(lent):,} images"
            print(f"        for the {held_out} held out there was no time: not learnt from")
        if note := found.chance_note(parts.train.class_names):
            print(f"warning: {note}", file=sys.stderr)
    if not recipe.steps:
        for note in notes:
            print(f"        {note}")
        return
    print(
        f"rule:   {recipe.steps:,} steps of {recipe.batch_size} images, {recipe.resize} -> {recipe.crop} px, learning rate "
        f"{recipe.base_learning_rate:.3g}, {'MixUp ' + str(recipe.mixup_alpha) if recipe.mixup_alpha else 'no MixUp'}, "
        f"{plan.dtype} on {plan.device}"
    )
    for note in notes:
        print(f"        {note}")
    sys.stdout.flush()
