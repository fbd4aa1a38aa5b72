"""The network to start from, where that is left to the images: a quick closed form of each that is at hand says which they need."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bigtransfer import catalog, fetch, hyperrule
from bigtransfer.config import FinetuneConfig
from bigtransfer.config.fields import seconds
from bigtransfer.config.finetune import AUTO, BUNDLED
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.finetune import closed, decision
from bigtransfer.jobs.finetune.closed import Solved
from bigtransfer.model import Network
from bigtransfer.train import loop

OTHER = "efficientnet-lite0"
"""What is tried beside the bundled network, where its package is installed. It learnt from ImageNet's 1.3 million photographs, ours from
fewer and more different ones: the one is ahead on everyday things and textures, the other on flowers, hand signs, surfaces
(benchmarks/results/start_cpu_2026-11-27.md)."""

ALONE = 0.6
"""What the loss of one may be, as a share of the other's, before that is left out: else they are taken side by side, which tells images
apart better than either (benchmarks/results/pair_cpu_2026-11-27.md)."""

TOGETHER, TOGETHER_STEPS = 0.45, 0.25
"""Share of the time left that looking with both at all images that are learnt from may take, at the smallest size of each, and where steps
are asked for by number, after which all is looked at again; else the better one is taken alone. Of no other use is the same time worth as
much, not of one's larger images nor of steps (benchmarks/results/pair-sizes_cpu_2026-11-28.md). Test images take what is left in the end,
and may be fewer."""

IMAGES, MOST = 200, 1_000
"""By which they are judged, if that is enough of each class; where it is not, by more."""

FEWEST = 4
"""Images of each class in the mean below which nothing can be told from so few."""

SHORTEST = 60.0
"""Seconds of a budget from which on some may go into a choice."""

TRIED = 0.1
"""Share of a budget that may go into looking with the slower of them."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The network that was taken, and why."""

    model: str
    """Its name; of two side by side both, with a + between them."""
    why: str
    """A sentence for people; empty where nothing had to be decided."""


def left_to_the_images(config: FinetuneConfig) -> bool:
    """Whether what is asked for can be had of any network, a closed form or a budget, and there is the time to choose. The published rule
    is that of BiT's own."""
    enough = config.linear == "closed" if config.budget is None else seconds(config.budget) >= SHORTEST
    return config.model == AUTO and config.pretrained and enough


def usual(config: FinetuneConfig) -> FinetuneConfig:
    """The same, of the bundled network if none is named."""
    return dataclasses.replace(config, model=BUNDLED) if config.model == AUTO else config


def choose(
    config: FinetuneConfig, parts: Splits, networks: Mapping[str, Network], device: torch.device, clock: Clock | None
) -> Start:
    """Both networks side by side, or one of them: by a closed form of each on all blocks at the smallest of its sizes, which tells the same
    images apart, each judged by the others. clock: of the budget, if there is one; what it does not leave time for is not tried.

    networks: on `device`, by name, the bundled one first, one or two. That one alone where there is no time to judge enough images, or
    where an image may have several classes; both where there are too few to judge. One alone where the other is much worse (`ALONE`), or
    where there is no time for both (`TOGETHER`): the bundled one, then, if less than `closed.TIE` nats are between them.
    """
    first, *others = networks
    if not others or parts.train.several:
        return Start(model=first, why="")
    both = "+".join(networks)
    classes = len(parts.train.class_names)
    images = splits.evenly(parts.train, min(MOST, max(IMAGES, FEWEST * classes)), config.seed)
    if len(images) < FEWEST * classes:
        return Start(model=both, why="")
    print(f"start:  {' and '.join(networks)} are tried on {len(images):,} of the images at most", flush=True)
    within = None if clock is None else TRIED * clock.left
    found: dict[str, Solved] = {}
    for name, network in networks.items():
        found[name] = _judged(config, parts, images, network, device, None if found else within)
        if found[name].images < FEWEST * classes:
            return Start(model=first, why="")
        images = splits.evenly(images, found[name].images, config.seed)  # as many for all of them
    losses = {name: _loss(one) for name, one in found.items()}
    best = min(losses, key=lambda name: losses[name] - (closed.TIE if name == first else 0.0))
    told = ", ".join(
        f"{name} {one.probe.leave_one_out_top1:.1%} (loss {losses[name]:.2f})" for name, one in found.items()
    )
    tried = f"{len(images):,} images, each judged by the others, were tried with two networks: {told} correct."
    learnt = len(parts.train) + len(parts.val or ())
    needed = sum(one.seconds / one.images for one in found.values()) * learnt
    if min(losses.values()) < ALONE * max(losses.values()):
        return Start(
            model=best, why=f"{tried} By the loss {best} is far ahead, and was taken alone. --model names one."
        )
    if clock is not None:
        share = TOGETHER if config.steps is None else TOGETHER_STEPS
        if needed > clock.left * share:
            minutes = math.ceil((clock.seconds - clock.left + needed / share) / 60)
            return Start(
                model=best,
                why=f"{tried} By the loss {best} was taken; within about --budget {minutes}m there would be time for both side by side. "
                "--model names one.",
            )
    return Start(
        model=both,
        why=f"{tried} They stand side by side: one classifier sees what both make of an image. --model names one.",
    )


def _judged(
    config: FinetuneConfig,
    parts: Splits,
    images: ImageSet,
    network: Network,
    device: torch.device,
    within: float | None,
) -> Solved:
    """Its closed form on these images, or on as many of them as there is time for."""
    facts = decision.find_facts(config, network, network.card, parts, device)
    view = closed.views(network, (config.crop or facts.looks[0][0],))[-1]
    return closed.solve(
        network,
        images,
        (view,),
        spec=decision.input_spec(config, facts, facts.trained_at),
        device=device,
        dtype=loop.compute_dtype(config.precision, device),
        batch_size=facts.fitting(view.size, hyperrule.BATCH_SIZE),
        seed=config.seed,
        balanced=config.balance,
        within=within,
        at_least=min(len(images), FEWEST * facts.classes),
        progress=True,
    )


def _loss(solved: Solved) -> float:
    return math.inf if math.isnan(solved.probe.leave_one_out_loss) else solved.probe.leave_one_out_loss


def at_hand() -> list[str]:
    """The networks that there are to choose from, the bundled one first; nothing is downloaded for it."""
    record = catalog.get(OTHER)
    there = fetch.local(record) is not None and importlib.util.find_spec("timm") is not None
    return [BUNDLED, *([OTHER] if there else [])]
