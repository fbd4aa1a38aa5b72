"""What a fine-tuning within a budget delivers: by the validation images, closed form, fine-tuned network, or the average of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bigtransfer import runs
from bigtransfer.catalog import Readout
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.errors import RunError
from bigtransfer.evals import calibration, linear
from bigtransfer.evals.candidates import Candidate, Choice, Closed, Kind, View
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.finetune import baseline, closed
from bigtransfer.jobs.finetune.decision import WATCHED, FinetunePlan
from bigtransfer.model import Network, joined, reading

AGAIN = 0.6
"""Share of the time that is left after a training within which the images are looked at anew; the rest is for measuring."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which of the three, and what makes it of the two networks."""

    choice: Choice
    by_solved: float = 1.0
    by_tuned: float = 1.0
    """What the logits of the closed form and of the fine-tuned network are divided by."""

    def network(self, solved: Network, tuned: Network) -> Network:
        """The one that is delivered; it shares their layers, not their heads."""
        if self.choice.delivered == "average":
            return average(solved, tuned, self.by_solved, self.by_tuned)
        network, by = (solved, self.by_solved) if self.choice.delivered == "closed form" else (tuned, self.by_tuned)
        other = reading(network, network.architecture)
        other.reset_classifier(network.num_classes)
        with torch.no_grad():
            for own, theirs in zip(other.head.parameters(), network.head.parameters(), strict=True):
                own.copy_(theirs / by)
        other.card = network.card
        return other.to(_linear(network.head).weight.device).eval()


def deliver(
    run: runs.Run,
    model: Network,
    parts: Splits,
    plan: FinetunePlan,
    found: Closed | None,
    lent: ImageSet | None,
    clock: Clock | None,
) -> tuple[Network, Network, Choice]:
    """The best of the closed form, that of the fine-tuned network and their average, on record in the run's folder: as it has been judged,
    and as it is delivered, which is another one where the closed forms were solved again with the images that judged them; and the choice.

    lent: as of `baseline.solve`. clock: of a budget that is to be kept; what is looked at anew is fewer images if it has to be. RunError
    where somebody removed the closed form's record.
    """
    assert parts.val is not None
    if found is None:
        raise RunError(
            f"{run.folder} has no closed.json any more, which says what its closed form sees. Remove the folder to start anew."
        )
    solved, whole = baseline.load(run.folder, found, plan.torch_device)
    anew = closed.solve(
        model,
        splits.evenly(parts.train, found.images, plan.seed),
        (found.view,),
        spec=plan.input,
        device=plan.torch_device,
        dtype=plan.torch_dtype,
        batch_size=plan.micro_batch,
        seed=plan.seed,
        balanced=plan.balance,
        held_out=lent if found.whole else None,
        within=None if clock is None else max(clock.slight, AGAIN * clock.left),
        at_least=min(found.images, plan.classes),
        progress=True,
    )
    tuned = anew.model
    tuned_whole = tuned if anew.whole is None else closed.classifier(tuned, found.view, anew.whole.head)
    for network in (tuned, tuned_whole):
        network.card = dataclasses.replace(network.card, input=solved.card.input)
    images = splits.evenly(parts.val, WATCHED, plan.seed)
    all_of_them = len(images) == len(parts.val)
    chosen = choose(
        solved,
        tuned,
        images,
        device=plan.torch_device,
        dtype=plan.torch_dtype,
        batch_size=plan.micro_batch,
        balanced=plan.balance,
        answers=baseline.answers(run.folder, found, images) if all_of_them else None,
        tuned_answers=anew.answers if all_of_them and lent is not None and len(lent) == len(images) else None,
    )
    made = chosen.choice
    if anew.whole is not None:
        made = dataclasses.replace(made, solved_on=anew.images + anew.held_out)
    runs.write_json(run.folder / "choice.json", dataclasses.asdict(made))
    shown = ", ".join(
        f"{one.kind} {one.mean_per_class if plan.balance else one.top1:.1%}" for one in made.candidates
    ) + (" mean per class" if plan.balance else "")
    judges = "1 validation image" if made.images == 1 else f"{made.images:,} validation images"
    print(f"chosen: {made.delivered}, by the loss on {judges} ({shown})")
    judged = chosen.network(solved, tuned)
    unchanged = {"closed form": whole is solved, "fine-tuned": tuned_whole is tuned}
    if unchanged.get(made.delivered, all(unchanged.values())):
        return judged, judged, made
    return judged, chosen.network(whole, tuned_whole), made


def choose(
    solved: Network,
    tuned: Network,
    images: ImageSet,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    balanced: bool = False,
    answers: Tensor | None = None,
    tuned_answers: Tensor | None = None,
) -> Chosen:
    """The best of both networks and their average on labelled images that neither has learnt from, and how it was chosen.

    Both are on `device`; their cards state the size of their input. Each keeps the temperature that leave-one-out gave it, but for what
    these images demand (`calibration.of_solved`); the average is that of the logits so divided. The one with the least loss is taken, each
    at the temperature that is best for it here, which is steadier than the accuracy of few images; the average, which costs both
    networks' time, only if it is better than either by more than `closed.TIE`. Of networks that have one beside them there is no average.
    balanced: each class of the images counts the same, however many it has, in temperatures and losses. answers, tuned_answers: the
    logits `(n, classes)` of `solved` and `tuned` on the images where they are known; None: they are computed.
    """
    assert images.labels is not None
    labels = torch.from_numpy(np.array(images.labels, dtype=np.int64))
    logits: dict[Kind, Tensor] = {
        "closed form": _logits(solved, images, device, dtype, batch_size) if answers is None else answers.double(),
        "fine-tuned": _logits(tuned, images, device, dtype, batch_size)
        if tuned_answers is None
        else tuned_answers.double(),
    }
    alike = 1 / torch.bincount(labels)[labels].double()
    shares = alike if balanced else None
    temperatures = {name: calibration.of_solved(scores, labels, shares) for name, scores in logits.items()}
    if solved.architecture.beside is None and tuned.architecture.beside is None:  # of two networks, not of four
        logits["average"] = torch.stack([scores / temperatures[name] for name, scores in logits.items()]).mean(0)
        temperatures["average"] = calibration.of_solved(logits["average"], labels, shares)
    losses = {name: linear.best_temperature(scores, labels, shares)[1] for name, scores in logits.items()}
    right = {name: (scores.argmax(1) == labels).double() for name, scores in logits.items()}
    candidates = tuple(
        Candidate(
            kind=name,
            top1=float(right[name].mean()),
            loss=max(0.0, losses[name]),
            mean_per_class=_mean_per_class(right[name], labels),
        )
        for name in logits
    )
    best = min(candidates, key=lambda one: one.loss + (closed.TIE if one.kind == "average" else 0.0))
    temperature = temperatures[best.kind]
    scale = 2 * temperature if best.kind == "average" else 1.0
    calibrated = calibration.of_choice(logits[best.kind] / temperature, labels, temperature)
    return Chosen(
        choice=Choice(delivered=best.kind, candidates=candidates, images=len(images), calibrated=calibrated),
        by_solved=scale * temperatures["closed form"],
        by_tuned=scale * temperatures["fine-tuned"],
    )


def _mean_per_class(right: Tensor, labels: Tensor) -> float:
    """The mean over classes with images of the share that is right; 1 exactly where all are, which a sum of thirds is not."""
    counts = torch.bincount(labels)
    return float((torch.bincount(labels, right) / counts)[counts > 0].mean())


def average(solved: Network, tuned: Network, by_closed: float, by_tuned: float) -> Network:
    """One network whose logits are those of `tuned` / `by_tuned` plus those of `solved` / `by_closed`. It shares their layers."""
    size = tuned.card.input.size
    beside = joined(solved, _at(solved.architecture.readout, len(solved.architecture.stages), solved.card.input.size))
    network = joined(tuned, _at(tuned.architecture.readout, len(tuned.architecture.stages), size), beside)
    network.reset_classifier(tuned.num_classes)
    heads = [(tuned.head, by_tuned), (solved.head, by_closed)]
    with torch.no_grad():
        kernels, biases = zip(
            *((_linear(head).weight / by, _linear(head).bias / by) for head, by in heads), strict=True
        )
        _linear(network.head).weight.copy_(torch.cat(kernels, dim=1))
        _linear(network.head).bias.copy_(torch.stack(biases).sum(0))
    spec = dataclasses.replace(tuned.card.input, size=max(size, solved.card.input.size))
    network.card = dataclasses.replace(network.card, input=spec)
    return network.to(_linear(tuned.head).weight.device).eval()


def _at(readout: Readout | None, blocks: int, size: int) -> Readout:
    """The same features with the size stated."""
    if readout is None:
        return Readout(blocks=(blocks - 1,), sizes=(size,), maxima=False)
    return readout if readout.sizes else dataclasses.replace(readout, sizes=(size,))


def _linear(head: nn.Module) -> nn.Linear:
    assert isinstance(head, nn.Linear)
    return head


def _logits(network: Network, images: ImageSet, device: torch.device, dtype: torch.dtype, batch_size: int) -> Tensor:
    """Logits float64 `(n, classes)`, on the CPU."""
    spec = network.card.input
    view = View.of(network.architecture, spec.size)
    seen, _ = closed.features(network, images, view, spec=spec, device=device, dtype=dtype, batch_size=batch_size)
    with torch.no_grad():
        return network.head(seen.to(device)).double().cpu()
