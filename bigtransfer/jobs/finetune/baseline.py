"""The closed form that every fine-tuning begins with: what it may cost, and where the run folder has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from bigtransfer import hyperrule, records, runs, weights
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.errors import RunError
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.jobs.finetune import closed
from bigtransfer.jobs.finetune.dataset import JUDGING
from bigtransfer.jobs.finetune.decision import Facts, input_spec
from bigtransfer.model import ResNetV2, joined
from bigtransfer.train import loop
from bigtransfer.weights import formats

BASELINE = 2_000
"""Images that the closed form learns from at most where it is not what was asked for; a short budget allows fewer."""

OPERATIONS = 1e14
"""Floating-point operations for the closed form's features without a budget: a quarter of an hour of one CPU core at most. GPUs are allowed
a hundred times as many."""

CLOSED = 0.2
"""Share of a budget that may go into computing the closed form's features."""

LATEST = 0.35
"""Share of a budget after which no more images are looked at for it, where the machine turns out to be busier than it was."""

MODEL = "closed.safetensors"
"""In the run's folder: the closed form, for as long as the run may still need it."""


WHOLE = "closed-whole.safetensors"
"""Beside it: the head that takes its head's place once nothing is to be chosen by the images held out (`evals.candidates.Whole`)."""


def solve(
    config: FinetuneConfig, run: runs.Run, model: ResNetV2, parts: Splits, facts: Facts, lent: ImageSet | None
) -> Closed | None:
    """The closed form, on record in the run's folder; None where there is none: several labels, random weights, another classifier
    asked for. lent: validation images that may be learnt from in the end, which is done where the closed form may be delivered, and learns
    from all other images already."""
    if parts.train.several or not config.pretrained or config.linear == "sgd":
        return None
    device, dtype = torch.device(facts.device), loop.compute_dtype(config.precision, torch.device(facts.device))
    count, views = _seen(config, facts, model)
    delivered = config.linear == "closed" or config.budget is not None
    images = splits.evenly(parts.train, count, config.seed)
    solved = closed.solve(
        model,
        images,
        views,
        spec=input_spec(config, facts.trained_at),
        device=device,
        dtype=dtype,
        batch_size=facts.fitting(views[-1].size, hyperrule.BATCH_SIZE),
        seed=config.seed,
        balanced=config.balance,
        held_out=lent if delivered and count >= len(parts.train) else None,
        within=None if config.budget is None or config.linear == "closed" else LATEST * seconds(config.budget),
        at_least=min(count, facts.classes),
    )
    network = solved.model
    network.card = dataclasses.replace(
        network.card, input=input_spec(config, solved.view.size), class_names=parts.train.class_names
    )
    weights.save(run.folder / MODEL, network)
    if solved.whole is not None:
        formats.write_safetensors(run.folder / WHOLE, solved.whole.head.state_dict(), {})
    found = solved.record()
    runs.write_json(run.folder / "closed.json", dataclasses.asdict(found))
    return found


def _seen(config: FinetuneConfig, facts: Facts, network: ResNetV2) -> tuple[int, tuple[View, ...]]:
    """How many images the closed form learns from, and the views it may choose from: the more of them the less they cost."""
    ways = [closed.views(network, facts.trained_at, config.crop, mirrored=config.flip)]
    ways.append(closed.views(network, facts.trained_at, config.crop or facts.trained_at, mirrored=config.flip))
    ways.append(closed.views(network, facts.trained_at, config.crop or facts.trained_at))
    most = facts.images if config.linear == "closed" else min(facts.images, BASELINE)
    least = most if config.linear == "closed" else min(most, JUDGING * facts.classes)
    for way in ways:
        images = min(most, _affordable(config, facts, way[-1]))
        if images >= least:
            return images, way
    return least, ways[-1]


def _affordable(config: FinetuneConfig, facts: Facts, widest: View) -> int:
    """Images whose features can be computed in `CLOSED` of the budget, or without one with `OPERATIONS`."""
    passes = widest.passes(facts.architecture, facts.trained_at)
    if config.budget is None:
        operations = passes * facts.architecture.forward_flops(facts.trained_at, 0)
        return int(OPERATIONS * (1 if facts.device == "cpu" else 100) / operations)
    # A forward pass costs a third of a training step.
    speed = 3 * facts.speed(facts.trained_at, hyperrule.SMALLEST_BATCH)
    return int(CLOSED * seconds(config.budget) * speed / passes)


def load(folder: Path, found: Closed | None, device: torch.device) -> tuple[ResNetV2, ResNetV2]:
    """The closed form as it is to be judged by images that it has not learnt from, and as it is to be delivered, on `device`; the same
    network if it was not solved again. BitError if the run `folder` has not the files that it should."""
    solved = weights.load(folder / MODEL).to(device)
    if found is None or found.whole is None:
        return solved, solved
    whole = joined(solved, solved.architecture.readout)
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


def remove(folder: Path) -> None:
    """Remove both: the run is finished."""
    for name in (MODEL, WHOLE):
        (folder / name).unlink(missing_ok=True)


def recall(run: runs.Run) -> Closed | None:
    """The closed form on record."""
    try:
        return records.read(run.folder / "closed.json", Closed, RunError)
    except FileNotFoundError:
        return None
