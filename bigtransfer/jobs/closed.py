"""The closed form: a linear classifier on the frozen network's features, solved exactly. Every fine-tuning begins with it.

Which features, of which blocks and at which sizes, is chosen by leave-one-out (`views`, `solve`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtransfer.catalog import InputSpec, Readout
from bigtransfer.data import ImageSet, splits
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import Closed, Judged, View
from bigtransfer.evals.linear import Probe
from bigtransfer.feed.loader import eval_batches
from bigtransfer.model import ResNetV2, fold, joined

CHOSEN_BY = 1_000
"""Images by which the features are chosen at most."""

LARGEST_VIEW = 448
"""Pixels beyond which images are not enlarged to see more of them: the published networks' largest size of training."""

TIE = 0.01
"""Nats of leave-one-out loss below which two choices of features count as equally good; the cheaper one is taken."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A classifier and how it was found."""

    model: ResNetV2
    """With the head in place, on the device, in evaluation mode; its layers are those of the network it was made from."""
    view: View
    probe: Probe
    judged: tuple[Judged, ...]
    """The views that there were to choose from; empty if there was one only."""
    images: int
    """That it was solved on."""
    seconds: float

    def record(self) -> Closed:
        """What closed.json holds of it."""
        return Closed(
            view=self.view,
            judged=self.judged,
            images=self.images,
            seconds=self.seconds,
            top1=_known(self.probe.leave_one_out_top1),
        )


def views(network: ResNetV2, trained_at: int, size: int | None = None) -> tuple[View, ...]:
    """What there is to choose from, the cheapest first. trained_at: size of the images that the network was pre-trained on, px.
    size: only this one; None: `trained_at`, where the features are at their best, twice as much, where more is to be seen, and both."""
    every = tuple(range(len(network.blocks)))
    small = size or trained_at
    found = [View(size=small, readout=None), View(size=small, readout=Readout(blocks=every))]
    large = 2 * small
    if size is None and large <= LARGEST_VIEW:
        found += [
            View(size=large, readout=Readout(blocks=every)),
            View(size=large, readout=Readout(blocks=every, sizes=(small, large))),
        ]
    return tuple(found)


def solve(
    network: ResNetV2,
    images: ImageSet,
    choice: Sequence[View],
    *,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    seed: int,
) -> Solved:
    """The classifier of `images` (one label each) on the view of `choice` that leave-one-out finds best.

    network: on `device`; stays as it is. spec: how images become the input, but for the size. dtype: of the network's computation.
    Leave-one-out cannot judge where no class has two images; the last view, which sees most, is taken then.
    """
    started = time.perf_counter()
    classes = len(images.class_names)

    def features_of(some: ImageSet, view: View) -> tuple[Tensor, Tensor]:
        folded = fold(joined(network, view.readout), dtype).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
        batches = eval_batches(some, dataclasses.replace(spec, size=view.size), batch_size)
        return linear.extract_features(folded, batches, device, dtype)

    judged: tuple[Judged, ...] = ()
    view, seen, rest = choice[-1], None, images
    if len(choice) > 1:
        sample = splits.evenly(images, CHOSEN_BY, seed)
        seen = features_of(sample, view)
        view, judged = choose(choice, *seen, classes, network.architecture.width)
        if view == choice[-1]:
            rest = images.subset(np.flatnonzero(~np.isin(images.rows, sample.rows)))
        else:
            seen = None
    parts = ([] if seen is None else [seen]) + ([features_of(rest, view)] if len(rest) else [])
    features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    probe = linear.fit(features, labels, classes)
    model = joined(network, view.readout)
    model.reset_classifier(classes)
    model.head = probe.head.to(device, next(model.parameters()).dtype)
    return Solved(
        model=model.eval(),
        view=view,
        probe=probe,
        judged=judged,
        images=len(images),
        seconds=time.perf_counter() - started,
    )


def choose(
    choice: Sequence[View], features: Tensor, labels: Tensor, classes: int, width: int
) -> tuple[View, tuple[Judged, ...]]:
    """The view that leave-one-out finds best, and how good each is. features `(n, d)`: those of the last view, which has all of them, of a
    network of this width; labels `(n,)`."""
    judged = []
    for one in choice:
        probe = linear.fit(features[:, columns(choice[-1], one, width)], labels, classes)
        judged.append(Judged(view=one, top1=_known(probe.leave_one_out_top1), loss=_known(probe.leave_one_out_loss)))
    losses = [one.loss for one in judged if one.loss is not None]
    best = [one.view for one in judged if one.loss is not None and one.loss <= min(losses) + TIE]
    return (best or [choice[-1]])[0], tuple(judged)


def columns(seen: View, wanted: View, width: int) -> Tensor:
    """Where the features of one view are among those of another that has all of them."""
    assert seen.readout is not None
    sizes = seen.readout.sizes or (seen.size,)
    widths = seen.readout.block_features(width)
    places = torch.arange(len(sizes) * sum(widths)).reshape(len(sizes), -1)
    if wanted.readout is None:
        # The means of the last block, which come before its maxima.
        last = places[sizes.index(wanted.size)][-widths[-1] :]
        return last[: widths[-1] // 2]
    return places[[sizes.index(size) for size in wanted.readout.sizes or (wanted.size,)]].flatten()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
