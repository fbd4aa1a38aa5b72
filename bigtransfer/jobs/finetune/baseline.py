"""The closed form that every fine-tuning begins with: what it may cost, and where the run folder has it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bigtransfer import hyperrule, records, runs, weights
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.errors import RunError
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.jobs.clock import AFTERWARDS, Clock
from bigtransfer.jobs.finetune import closed
from bigtransfer.jobs.finetune.dataset import JUDGING
from bigtransfer.jobs.finetune.decision import BASELINE, Facts, hopes, input_spec
from bigtransfer.model import Network, reading
from bigtransfer.train import loop
from bigtransfer.weights import formats

OPERATIONS = 2e13
"""Floating-point operations for the closed form's features without a budget, beyond which it sees less of each image: a quarter of an hour
of one slow CPU core at most. GPUs are allowed a hundred times as many."""

CLOSED = 0.25
"""Share of the time left when it begins that may go into computing the closed form's features under a budget, and once more into those of
the fine-tuned network."""

ALONE = 0.6
"""The same where there is no hope of taking steps afterwards, of the time without what measuring the model takes. All of that is for its
solutions too, which are not in what looking costs: some 20 s each of a slow core for 2,000 images of two networks."""

WIDE, NEARLY_ALL = 2 / 3, 0.9
"""Of the images it could learn from, the closed form learns from this share at least, or it sees less of each: of one network, and of two
side by side, of which smaller images tell more, or where only the mirror images are given up (docs/lab-notes.md)."""

TIMED = 0.05
"""Share of a budget that may go into measuring what it costs to look at an image."""

MODEL = "closed.safetensors"
"""In the run's folder: the closed form, for as long as the run may still need it."""

WHOLE = "closed-whole.safetensors"
"""Beside it: the head that takes its head's place once nothing is to be chosen by the images held out (`evals.candidates.Whole`)."""

ANSWERS = "closed-answers.safetensors"
"""What it says of those images."""

RECORD = "closed.json"
"""What is known of it, which stays."""

FILES = (RECORD, MODEL, WHOLE, ANSWERS)


def solve(
    config: FinetuneConfig,
    run: runs.Run,
    model: Network,
    parts: Splits,
    facts: Facts,
    lent: ImageSet | None,
    clock: Clock | None,
) -> tuple[Closed | None, float]:
    """The closed form, on record in the run's folder, and what it cost to look at an image in a plain forward pass at the network's own
    size, s (0 without a clock). None where there is none: several labels, random weights, another classifier asked for. lent:
    validation images that may be learnt from in the end, which is done where the closed form may be delivered, and learns from all other
    images already. clock: of the budget, if there is one."""
    if parts.train.several or not config.pretrained or config.linear == "sgd":
        return None, 0.0
    device, dtype = torch.device(facts.device), loop.compute_dtype(config.precision, torch.device(facts.device))
    spec, look = input_spec(config, facts, facts.trained_at), 0.0
    if clock is not None:
        every = _views(config, facts, model)
        # The widest takes too long for a measurement, the narrowest is decoding above all.
        middle = every[len(every) // 2][-1]
        seconds = closed.seconds_per_image(
            model,
            parts.train,
            middle,
            TIMED * clock.seconds,
            spec=spec,
            device=device,
            dtype=dtype,
            batch_size=facts.fitting(middle.size, hyperrule.BATCH_SIZE),
        )
        look = seconds / middle.passes(facts.architecture, facts.trained_at)
    left, slight = (None, 0.0) if clock is None else (clock.left, clock.slight)
    way = _best_way(config, facts, model, left=left, look=look, slight=slight, held_out=len(lent or ()))
    delivered = config.linear == "closed" or config.budget is not None
    images = splits.evenly(parts.train, way.images, config.seed)
    print(f"looks:  at {way.images:,} images, {way.views[-1]}", flush=True)
    solved = closed.solve(
        model,
        images,
        way.views,
        spec=spec,
        device=device,
        dtype=dtype,
        batch_size=facts.fitting(way.views[-1].size, hyperrule.BATCH_SIZE),
        seed=config.seed,
        balanced=config.balance,
        held_out=lent if delivered and way.images >= len(parts.train) else None,
        within=None if clock is None else way.room,
        solving=None if clock is None else way.solving,
        at_least=min(way.images, facts.classes),
        progress=True,
    )
    network = solved.model
    network.card = dataclasses.replace(
        network.card, input=input_spec(config, facts, solved.view.size), class_names=parts.train.class_names
    )
    weights.save(run.folder / MODEL, network)
    if solved.whole is not None and solved.answers is not None:
        formats.write_safetensors(run.folder / WHOLE, solved.whole.head.state_dict(), {})
        formats.write_safetensors(run.folder / ANSWERS, {"logits": solved.answers}, {})
    if solved.suspects is not None:
        runs.write_json(run.folder / "suspects.json", [dataclasses.asdict(one) for one in solved.suspects])
    found = solved.record()
    runs.write_json(run.folder / RECORD, dataclasses.asdict(found))
    return found, 0.0 if clock is None else solved.look  # of all images a better estimate than of the first ones


def _views(config: FinetuneConfig, facts: Facts, network: Network) -> tuple[tuple[View, ...], ...]:
    """The views that the closed form may choose from, by what there is time for: the most first; of one network at each of the sizes with
    the mirror images and then without, which is half the time and up to a point less (docs/lab-notes.md), of two as
    `hyperrule.looking_together` has them."""
    only = network.architecture.fixed_size or config.crop
    looks, beside = (((only,),), ((only,),)) if only else (facts.looks, facts.looks_beside)
    if network.architecture.beside is not None:
        together = hyperrule.looking_together(looks, beside, flip=config.flip)
        return tuple(closed.views(network, one.sizes, mirrored=one.mirrored, beside=one.beside) for one in together)
    flips = (True, False) if config.flip else (False,)
    return tuple(closed.views(network, sizes, mirrored=mirrored) for sizes in looks for mirrored in flips)


class _Way(NamedTuple):
    """What the closed form could see in the time that there is."""

    images: int
    """That it learns from."""
    views: tuple[View, ...]
    """That it may choose from, the more of them the less they cost."""
    room: float
    """Seconds after which no more images are looked at; infinity without a budget."""
    solving: float
    """Seconds after which nothing more is solved."""
    allows: list[bool]
    """Which of `hopes` there would be time for, the most first, where a training is worth what the closed form goes without for it."""


def _best_way(
    config: FinetuneConfig,
    facts: Facts,
    network: Network,
    *,
    left: float | None = None,
    look: float = 0.0,
    slight: float = 0.0,
    held_out: int = 0,
) -> _Way:
    """Which of `_views` there is time for, and for how many images; of a budget all, as the clock decides how many they are.

    left: of a budget, s, if there is one; look: what a plain forward pass takes of that; slight: what is spent even where nothing is left.
    held_out: images beside them, as `solve`'s `lent`.
    """
    every = _views(config, facts, network)
    most = facts.images if config.linear == "closed" else min(facts.images, BASELINE)
    fewest = most if config.linear == "closed" else min(most, JUDGING * facts.classes)
    found: list[_Way] = []
    for views in every:
        passes, alone = views[-1].passes(facts.architecture, facts.trained_at), True
        room = solving = math.inf
        rest, hope = -math.inf, hopes(config, facts, look, views[-1])
        if left is None:
            operations = passes * facts.architecture.forward_flops(facts.trained_at, 0)
            images = int(OPERATIONS * (1 if facts.device == "cpu" else 100) / operations)
        else:
            measuring = facts.evaluated * passes * look
            learning = min(CLOSED * left, (most + held_out) * passes * look)
            rest = left - 2 * learning - min(AFTERWARDS * left, 2 * measuring)
            alone = config.steps is None and (rest < hope[-1] or not hyperrule.enough_to_tune(facts.images))
            without = left - min(AFTERWARDS * left, measuring)
            room = max(slight, ALONE * without if alone else CLOSED * left)
            solving = max(room, without) if alone else room
            images = int(room / (passes * look) * most / (most + held_out))
        sizes = zip(_sizes(views[-1]), _sizes(every[0][-1]), strict=True)
        trains = not alone and all(own >= min(2, widest) for own, widest in sizes)
        allows = [trains and rest >= one for one in hope] if config.steps is None else [trains]
        found.append(_Way(images, views, room, solving, allows))
    enough = [one for one in found if one.images >= max(fewest, math.ceil(_wide(one.views[-1]) * most))] or found[-1:]
    # A training is worth more than a third size, not more than a second one, and one of larger images is, too (docs/lab-notes.md).
    best = max(enough, key=lambda one: one.allows)  # of equally good ones the first
    return best._replace(images=most if left is not None else max(fewest, min(most, best.images)))


def _wide(view: View) -> float:
    """The share of the images that this view is worth going without the others for."""
    plain = view.beside is None and not (view.readout is not None and view.readout.mirrored)
    return WIDE if plain else NEARLY_ALL


def _sizes(view: View) -> tuple[int, ...]:
    """How many sizes either network looks at."""
    return tuple(len(readout.sizes) if readout is not None else 0 for readout in (view.readout, view.beside))


def load(folder: Path, found: Closed | None, device: torch.device) -> tuple[Network, Network]:
    """The closed form as it is to be judged by images that it has not learnt from, and as it is to be delivered, on `device`; the same
    network if it was not solved again. BitError if the run `folder` has not the files that it should."""
    solved = weights.load(folder / MODEL).to(device)
    if found is None or found.whole is None:
        return solved, solved
    whole = reading(solved, solved.architecture)
    whole.reset_classifier(solved.num_classes)
    whole.card = solved.card
    with formats.open_weights(folder / WHOLE) as file:
        head = whole.head.state_dict()
        if {name: tuple(tensor.shape) for name, tensor in head.items()} != file.shapes:
            raise RunError(
                f"{folder / WHOLE} is not the head of this run's closed form. Remove the folder to start anew."
            )
        whole.head.load_state_dict({name: file.read(name) for name in head})
    return solved, whole.to(device).eval()


def answers(folder: Path, found: Closed | None, images: ImageSet) -> Tensor | None:
    """The logits `(n, classes)` of the closed form on these images, which are those held out, if they are known. BitError if the run
    `folder` has not the file that it should."""
    if found is None or found.whole is None or not (folder / ANSWERS).is_file():  # as earlier versions left it
        return None
    with formats.open_weights(folder / ANSWERS) as file:
        if file.shapes != {"logits": (len(images), len(images.class_names))}:
            raise RunError(
                f"{folder / ANSWERS} is not of this run's closed form and images. Remove the folder to start anew."
            )
        return file.read("logits")


def remove(folder: Path) -> None:
    """Remove all of it: the run is finished."""
    for name in (MODEL, WHOLE, ANSWERS):
        (folder / name).unlink(missing_ok=True)


def recall(run: runs.Run) -> Closed | None:
    """The closed form on record."""
    try:
        return records.read(run.folder / RECORD, Closed, RunError)
    except FileNotFoundError:
        return None
