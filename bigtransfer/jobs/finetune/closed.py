"""The closed form: a linear classifier on the frozen network's features, solved exactly. Every fine-tuning begins with it.

Which features, of which blocks and at which sizes, is chosen by leave-one-out (`views`, `solve`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bigtransfer.catalog import Architecture, InputSpec, Readout
from bigtransfer.data import ImageSet, splits
from bigtransfer.evals import calibration, linear, suspects
from bigtransfer.evals.candidates import Closed, Judged, View, Whole
from bigtransfer.evals.linear import Probe
from bigtransfer.evals.suspects import Suspected
from bigtransfer.feed.loader import eval_batches
from bigtransfer.model import Network, fold, joined

CHOSEN_BY = 1_000
"""Images by which the features are chosen at most."""

SUSPECTED = 4_000
"""Images up to which the closed form is asked whose labels are likely to be wrong: it takes a solution of the same size once more, which is
seconds for so many."""

_PIECE = 32
"""Images between two looks at the clock."""

_TIMED = 16
"""Images by which the cost of looking at one is measured."""

TIE = 0.01
"""Nats of leave-one-out loss below which two choices of features count as equally good; the cheaper one is taken."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A classifier and how it was found."""

    model: Network
    """With the head in place, on the device, in evaluation mode; its layers are those of the network it was made from."""
    view: View
    probe: Probe
    judged: tuple[Judged, ...]
    """The views that there were to choose from; empty if there was one only."""
    images: int
    """That it was solved on."""
    seconds: float
    whole: Probe | None = None
    """The same view's classifier of these images and those held out; None without such."""
    held_out: int = 0
    """How many they are."""
    look: float = 0.0
    """Seconds that a plain forward pass of an image at the size of `spec` took in the mean, with its share of decoding."""
    suspects: tuple[Suspected, ...] | None = None
    """Images whose label is likely to be wrong, by the others; None: there was no time to look, or too few images to tell."""
    answers: Tensor | None = None
    """What the model says of those held out, logits float32 `(held_out, classes)`, on the CPU; None without such."""

    def record(self) -> Closed:
        """What closed.json holds of it."""
        return Closed(
            view=self.view,
            judged=self.judged,
            images=self.images,
            seconds=self.seconds,
            top1=_known(self.probe.leave_one_out_top1),
            right=self.probe.right,
            counted=self.probe.judged,
            calibrated=calibration.of_leave_one_out(self.probe),
            whole=None
            if self.whole is None
            else Whole(
                images=self.images + self.held_out,
                top1=_known(self.whole.leave_one_out_top1),
                calibrated=calibration.of_leave_one_out(self.whole),
            ),
        )


def views(network: Network, sizes: Sequence[int], *, mirrored: bool = False) -> tuple[View, ...]:
    """What there is to choose from, the cheapest first: the last map at the first of these sizes (px, ascending), all blocks at it, at the
    second alone, at both, and at three where there are three. mirrored: see each image mirrored as well, for tasks in which left and right
    do not matter."""
    every = tuple(range(len(network.architecture.stages)))
    last = Readout(blocks=every[-1:], maxima=False, mirrored=True) if mirrored else None
    found = [View(size=sizes[0], readout=last)]
    found += [View(size=size, readout=Readout(blocks=every, mirrored=mirrored)) for size in sizes[:2]]
    found += [
        View(size=sizes[count - 1], readout=Readout(blocks=every, sizes=tuple(sizes[:count]), mirrored=mirrored))
        for count in range(2, len(sizes) + 1)
    ]
    return tuple(found)


def solve(
    network: Network,
    images: ImageSet,
    choice: Sequence[View],
    *,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    seed: int,
    balanced: bool = False,
    held_out: ImageSet | None = None,
    within: float | None = None,
    at_least: int = 0,
) -> Solved:
    """The classifier of `images` (one label each) on the view of `choice` that leave-one-out finds best; balanced: see `linear.fit`.
    held_out: further images, without which it is solved first, so that they can judge it, and then again with them (`Solved.whole`).
    within: seconds after which no more images are looked at than these `at_least`; those that were are as many of each class as can be, and
    nothing is solved with `held_out`. None: however long it takes.

    network: on `device`; stays as it is. spec: how images become the input, but for the size. dtype: of the network's computation.
    Leave-one-out cannot judge where no class has two images; the last view, which sees most, is taken then.
    """
    started = time.perf_counter()
    classes = len(images.class_names)
    looking = passed = 0.0

    def features_of(some: ImageSet, view: View) -> tuple[Tensor, Tensor]:
        nonlocal looking, passed
        began = time.perf_counter()
        found = features(network, some, view, spec=spec, device=device, dtype=dtype, batch_size=batch_size)
        looking += time.perf_counter() - began
        passed += len(some) * view.passes(network.architecture, spec.size)
        return found

    def late(after: float = 0.0) -> bool:
        """Whether the time will be up in so many seconds."""
        return within is not None and time.perf_counter() - started + after > within

    def in_time(some: ImageSet, view: View) -> list[_Part]:
        """In pieces, as far as the time goes."""
        parts, taken = [], some.subset([])
        while len(taken) < len(some) and not (late() and parts and len(taken) >= at_least):
            more = some if within is None else splits.evenly(some, len(taken) + _PIECE, seed)
            new = _without(more, taken)
            parts.append((*features_of(new, view), new))
            taken = more
        return parts

    judged: tuple[Judged, ...] = ()
    view, parts, rest, probe = choice[-1], [], images, None
    if len(choice) > 1:
        began, sample = time.perf_counter(), splits.evenly(images, CHOSEN_BY, seed)
        parts = in_time(sample, view)
        spent = (time.perf_counter() - began) / view.passes(network.architecture, spec.size)
        probes = judge(choice, *_joined(parts), classes, network.architecture, balanced=balanced)
        judged = verdicts(probes)

        def at_hand(one: View) -> bool:
            """Whether what it sees is a part of what has been computed. Of a smaller size the network itself had made the image."""
            return one.size == choice[-1].size

        # Where there is no time to look at them once more, only what is at hand.
        view = best(
            [
                one
                for one in judged
                if at_hand(one.view) or not late(spent * one.view.passes(network.architecture, spec.size))
            ],
            otherwise=view,
        )
        if at_hand(view):
            kept = columns(choice[-1], view, network.architecture)
            parts = [(seen[:, kept], labels, new) for seen, labels, new in parts]
            rest, probe = images.subset([]) if late() else _without(images, sample), probes[view]
        else:
            parts = []
    more = in_time(rest, view)
    seen, labels = _joined([*parts, *more])
    began = time.perf_counter()
    if probe is None or more:  # else it is the one that was judged
        probe = linear.fit(seen, labels, classes, balanced=balanced, discriminant=True)
    suspected = whole = answers = None
    spent = time.perf_counter() - began
    if not late(spent) and len(seen) <= SUSPECTED:
        suspected = _suspected([new for *_, new in (*parts, *more)], seen, labels, classes, probe)
    if held_out is not None and len(seen) == len(images) and not late(spent):
        more, their_labels = features_of(held_out, view)
        with torch.no_grad():
            answers = probe.head(more)
        whole = linear.fit(
            torch.cat([seen, more]), torch.cat([labels, their_labels]), classes, balanced=balanced, discriminant=True
        )
    model = joined(network, view.readout)
    model.reset_classifier(classes)
    model.head = probe.head.to(device, next(model.parameters()).dtype)
    return Solved(
        model=model.eval(),
        view=view,
        probe=probe,
        judged=judged,
        images=len(seen),
        seconds=time.perf_counter() - started,
        whole=whole,
        held_out=len(held_out or ()),
        suspects=suspected,
        answers=answers,
        look=looking / passed,
    )


def seconds_per_image(
    network: Network,
    images: ImageSet,
    view: View,
    span: float,
    *,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> float:
    """What it costs to look at one of the images so, at this moment, decoding included: of a few of them, twice, because the first time
    pays for what is done once; of two only, if these take more than `span` seconds. Other arguments as of `solve`."""

    def taken(count: int) -> float:
        some = images.subset(np.linspace(0, len(images) - 1, count).round().astype(int))
        began = time.perf_counter()
        features(network, some, view, spec=spec, device=device, dtype=dtype, batch_size=batch_size)
        return time.perf_counter() - began

    few, count = min(2, len(images)), min(_TIMED, len(images))
    first = taken(few)
    if first > span:
        return first / few
    taken(count)
    return taken(count) / count


def _without(images: ImageSet, others: ImageSet) -> ImageSet:
    """`others`: some of them."""
    return images.subset(np.flatnonzero(~np.isin(images.rows, others.rows))) if len(others) else images


_Part = tuple[Tensor, Tensor, ImageSet]
"""Features and labels of images, and these."""


def _joined(parts: Sequence[_Part]) -> tuple[Tensor, Tensor]:
    features, labels, _ = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


def _suspected(
    sets: Sequence[ImageSet], features: Tensor, labels: Tensor, classes: int, probe: Probe
) -> tuple[Suspected, ...] | None:
    """The images of `sets`, one after the other, whose label is likely to be wrong, the likeliest first."""
    found, agreement = suspects.wrong_labels(features, labels, classes, probe=probe)
    if agreement is None:
        return None
    names = sets[0].class_names
    places = [(images, i) for images in sets for i in range(len(images))]
    return tuple(
        Suspected(
            name=places[one.image][0].name(places[one.image][1]),
            label=names[one.label],
            likely=names[one.likely],
            own_probability=one.own_probability,
            likely_probability=one.likely_probability,
        )
        for one in found
    )


def features(
    network: Network,
    images: ImageSet,
    view: View,
    *,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """What a classifier with this view sees, float32 `(n, d)`, and the labels `(n,)`, on the CPU; arguments as of `solve`."""
    folded = fold(joined(network, view.readout), dtype).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    batches = eval_batches(images, dataclasses.replace(spec, size=view.size), batch_size)
    return linear.extract_features(folded, batches, device, dtype)


class Standardized(nn.Module):
    """Features `(n, d)` -> (features - mean) * scale."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


HEAD_RATE = 0.1
"""Learning rate of a standardized linear head, times its number of features: what one step changes its answers by is then of the same
size for any number of them (docs/lab-notes.md)."""


def trainable_head(head: nn.Linear, features: Tensor, rate: float) -> nn.Sequential:
    """The same function as `head` in a form that can be trained at `rate` together with the network below it.

    Raw features differ in scale by orders of magnitude, and there are thousands of them: at the network's rate the head would be destroyed
    within a few steps. Here it sees them standardized (by the mean and scale of `features` `(n, d)`, which stay) and times a constant,
    by which its weights are divided: its gradient steps are then those of the rate `HEAD_RATE` / d.
    """
    mean, scale = linear.standardization(features)
    scale *= math.sqrt(HEAD_RATE / (features.shape[1] * rate))
    inner = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        weight = head.weight.double()
        inner.weight.copy_(weight / scale)
        inner.bias.copy_(head.bias.double() + weight @ mean)
    return nn.Sequential(Standardized(mean.float(), scale.float()), inner)


def plain_head(head: nn.Module) -> nn.Linear:
    """The inverse of `trainable_head`."""
    assert isinstance(head, nn.Sequential)
    standardized, inner = head
    assert isinstance(standardized, Standardized) and isinstance(inner, nn.Linear)
    plain = nn.Linear(inner.in_features, inner.out_features, device=inner.weight.device)
    with torch.no_grad():
        weight = inner.weight.double() * standardized.scale
        plain.weight.copy_(weight)
        plain.bias.copy_(inner.bias.double() - weight @ standardized.mean.double())
    return plain


def judge(
    choice: Sequence[View],
    features: Tensor,
    labels: Tensor,
    classes: int,
    arch: Architecture,
    *,
    balanced: bool = False,
    discriminant: bool = True,
) -> dict[View, Probe]:
    """The classifier on each view, which knows how good it is by leave-one-out. features `(n, d)`: those of the last view, which has all of
    them, of a network of this architecture; labels `(n,)`. balanced, discriminant: as of `linear.fit`."""
    return {
        one: linear.fit(
            features[:, columns(choice[-1], one, arch)], labels, classes, balanced=balanced, discriminant=discriminant
        )
        for one in choice
    }


def verdicts(probes: Mapping[View, Probe]) -> tuple[Judged, ...]:
    """How good each view is by its classifier's leave-one-out."""
    return tuple(
        Judged(view=one, top1=_known(probe.leave_one_out_top1), loss=_known(probe.leave_one_out_loss))
        for one, probe in probes.items()
    )


def best(judged: Sequence[Judged], *, otherwise: View) -> View:
    """The view with the least loss, of equally good ones the first; `otherwise` if none was judged."""
    losses = [one.loss for one in judged if one.loss is not None]
    found = [one.view for one in judged if one.loss is not None and one.loss <= min(losses) + TIE]
    return found[0] if found else otherwise


def columns(seen: View, wanted: View, arch: Architecture) -> Tensor:
    """Where the features of one view are among those of another that has all of them, of a network of this architecture."""
    assert seen.readout is not None
    sizes = seen.readout.sizes or (seen.size,)
    widths = seen.readout.block_features(arch)
    places = torch.arange(len(sizes) * sum(map(sum, widths))).reshape(len(sizes), -1)
    if wanted.readout is None or not wanted.readout.maxima:
        # The means of the last block, which come before its maxima.
        means, maxima = widths[-1]
        return places[sizes.index(wanted.size)][-(means + maxima) :][:means]
    return places[[sizes.index(size) for size in wanted.readout.sizes or (wanted.size,)]].flatten()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
