"""The closed form: a linear classifier on the frozen network's features, solved exactly. Every fine-tuning begins with it.

Which features, of which blocks and at which sizes, is chosen by leave-one-out (`views`, `solve`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bigtransfer.bars import tqdm
from bigtransfer.catalog import Architecture, InputSpec, Readout
from bigtransfer.data import ImageSet, splits
from bigtransfer.evals import calibration, linear, suspects
from bigtransfer.evals.candidates import Closed, Judged, View, Whole
from bigtransfer.evals.linear import Probe
from bigtransfer.evals.suspects import Suspected
from bigtransfer.feed.loader import EvalBatch, eval_batches
from bigtransfer.feed.order import EpisodeOrder
from bigtransfer.model import Joined, Network, fold, reading
from bigtransfer.train.objective import LeaveOneOut

CHOSEN_BY = 1_000
"""Images by which the features are chosen at most."""

SUSPECTED = 4_000
"""Images up to which the closed form is asked whose labels are likely to be wrong: it takes a solution of the same size once more, which is
seconds for so many."""

_PIECE = 32
"""Images between two looks at the clock."""

_TIMED = 16
"""Images by which the cost of looking at one is measured."""

_EPISODES = 8
"""Batches by which the penalty of a training for the closed form is chosen."""

_PENALTIES = 10.0 ** torch.linspace(-1, 1, 9, dtype=torch.float64)
"""Those tried, in units of the mean squared length of an image's standardized features. With less than the first an image is judged by
the one or two that are most like it, and the training went astray (docs/lab-notes.md)."""

TRUST = 300.0
"""What a network's scatter counts for, where that of white noise, alike in all directions and of variance 1, counts for 1. Of one network
and another, with 5 and with 25 images per class, 150 and 450 were better than less and than more (docs/lab-notes.md)."""

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


def views(
    network: Network, sizes: Sequence[int], *, mirrored: bool = False, beside: Sequence[int] = ()
) -> tuple[View, ...]:
    """What there is to choose from, the cheapest first: the last map at the first of these sizes (px, ascending), all blocks at it, at the
    second alone, at both, and at three where there are three. mirrored: see each image mirrored as well, for tasks in which left and right
    do not matter.

    beside: sizes of the network beside it, if there is one. All blocks of both are seen then: at the first size of either, at both, and at
    three; of images that are read at the largest."""
    every = tuple(range(len(network.architecture.stages)))
    other = network.architecture.beside
    if other is not None:
        blocks = tuple(range(len(other.stages)))
        return tuple(
            View(
                size=max(*sizes, *beside),
                readout=Readout(blocks=every, sizes=tuple(sizes[:count]), mirrored=mirrored),
                beside=Readout(blocks=blocks, sizes=tuple(beside[:count]), mirrored=mirrored),
            )
            for count in range(1, max(len(sizes), len(beside)) + 1)
        )
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
    solving: float | None = None,
    at_least: int = 0,
    progress: bool = False,
) -> Solved:
    """The classifier of `images` (one label each) on the view of `choice` that leave-one-out finds best; balanced: see `linear.fit`.
    held_out: further images, without which it is solved first, so that they can judge it, and then again with them (`Solved.whole`).
    within: seconds after which no more images are looked at than these `at_least`; those that were are as many of each class as can be.
    None: however long it takes. solving: seconds after which nothing more is solved either, not with `held_out` and not to find suspects;
    None: as `within`. progress: show on a terminal how far the looking is.

    network: on `device`; stays as it is. spec: how images become the input, but for the size. dtype: of the network's computation.
    Leave-one-out cannot judge where no class has two images; the last view, which sees most, is taken then.
    """
    started = time.perf_counter()
    solving = within if solving is None else solving
    classes = len(images.class_names)
    looking, passed, seen_so_far = 0.0, 0.0, 0

    @functools.cache
    def looking_with(view: View) -> Network:
        return looking_at(network, view, device, dtype)

    def features_of(some: ImageSet, view: View) -> tuple[Tensor, Tensor]:
        nonlocal looking, passed, seen_so_far
        began, total = time.perf_counter(), max(len(images), seen_so_far + len(some))
        hidden = None if progress else True
        at_hand = looking_with(view)
        with tqdm(total=total, initial=seen_so_far, desc="looking", unit="img", disable=hidden, leave=False) as bar:
            found = features(
                network,
                some,
                view,
                spec=spec,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                bar=bar,
                at_hand=at_hand,
            )
        seen_so_far += len(some)
        looking += time.perf_counter() - began
        passed += len(some) * view.passes(network.architecture, spec.size)
        return found

    def late(after: float = 0.0, until: float | None = within) -> bool:
        """Whether the time will be up in so many seconds."""
        return until is not None and time.perf_counter() - started + after > until

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
        probes = judge(choice, *_joined(parts), classes, network, balanced=balanced)
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
            seen_so_far = 0
    more = in_time(rest, view)
    seen, labels = _joined([*parts, *more])
    began = time.perf_counter()
    if probe is None or more:  # else it is the one that was judged
        probe = fit(network, view, seen, labels, classes, balanced=balanced)
    suspected = whole = answers = None
    spent = time.perf_counter() - began
    per_image = looking / passed * view.passes(network.architecture, spec.size)
    if held_out is not None and len(seen) == len(images) and not late(per_image * len(held_out) + spent, solving):
        theirs, their_labels = features_of(held_out, view)
        with torch.no_grad():
            answers = probe.head(theirs)
        everything, every_label = torch.cat([seen, theirs]), torch.cat([labels, their_labels])
        whole = fit(network, view, everything, every_label, classes, balanced=balanced)
    if not late(spent, solving) and len(seen) <= SUSPECTED:
        suspected = _suspected([new for *_, new in (*parts, *more)], seen, labels, classes, probe)
    return Solved(
        model=classifier(network, view, probe.head),
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


def classifier(network: Network, view: View, head: nn.Linear) -> Network:
    """A network of the same layers with that head on what the view shows, in evaluation mode, where the network is."""
    model, like = reading(network, view.on(network.architecture)), next(network.parameters())
    model.reset_classifier(head.out_features)
    model.head = head.to(like.device, like.dtype)
    return model.eval()


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
    """What it costs to look at one of the images so, at this moment, decoding included, found out within about `span` seconds: of two of
    them, of which the first time pays for what is done once, and then of as many as there is time for twice, for the same reason. Other
    arguments as of `solve`."""

    looking = looking_at(network, view, device, dtype)

    def taken(count: int) -> float:
        some = images.subset(np.linspace(0, len(images) - 1, count).round().astype(int))
        began = time.perf_counter()
        features(network, some, view, spec=spec, device=device, dtype=dtype, batch_size=batch_size, at_hand=looking)
        return time.perf_counter() - began

    few = min(2, len(images))
    first = taken(few)
    if first > span:
        return first / few
    each = taken(few) / few
    count = min(_TIMED, len(images), int(span / (2 * each)))
    if count <= few:
        return each
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


def looking_at(network: Network, view: View, device: torch.device, dtype: torch.dtype) -> Network:
    """What makes the features that a classifier with this view sees, for inference in `dtype` on `device`."""
    folded = fold(reading(network, view.on(network.architecture)), dtype)
    return folded.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)


def features(
    network: Network,
    images: ImageSet,
    view: View,
    *,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    bar: tqdm | None = None,
    at_hand: Network | None = None,
) -> tuple[Tensor, Tensor]:
    """What a classifier with this view sees, float32 `(n, d)`, and the labels `(n,)`, on the CPU; arguments as of `solve`. bar: counts the
    images that have been looked at. at_hand: what `looking_at` makes for the view, where it has been made."""

    def counted(batches: Iterable[EvalBatch]) -> Iterator[EvalBatch]:
        for batch in batches:
            yield batch
            if bar is not None:
                bar.update(len(batch.images))

    batches = counted(eval_batches(images, dataclasses.replace(spec, size=view.size), batch_size))
    return linear.extract_features(at_hand or looking_at(network, view, device, dtype), batches, device, dtype)


def extract(
    network: Network, batches: Iterable[EvalBatch], view: View, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same of images that have been read already, at the view's size."""
    return linear.extract_features(looking_at(network, view, device, dtype), batches, device, dtype)


class LeftOutHead(nn.Module):
    """What a network has for a head while it is trained for the closed form: features `(n, d)` -> the same standardized; with the numbers
    of the ridge regression by which images of a batch judge one another. None of it is learnt."""

    mean: Tensor
    scale: Tensor
    penalty: Tensor
    temperature: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, penalty: float, temperature: float) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("scale", scale)):
            self.register_buffer(name, value.float())
        for name, value in (("penalty", penalty), ("temperature", temperature)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, batch_size: int, seed: int) -> LeftOutHead:
        """For a training in batches of so many images, from features float `(n, d)` and labels int `(n,)` of some images before it: penalty
        and temperature are those with which batches of them are judged with the least loss."""
        mean, scale = linear.standardization(features)
        seen = ((features - mean) * scale).float()
        order, targets = EpisodeOrder(labels.numpy(), batch_size, seed), nn.functional.one_hot(labels)
        episodes = [torch.from_numpy(order.indices(number)) for number in range(_EPISODES)]
        unit = float(seen.square().sum()) / len(seen) or 1.0
        best = (math.inf, unit, 1.0)
        for penalty in (unit * _PENALTIES).tolist():
            judged = (LeaveOneOut(penalty, 1.0).judged(seen[rows], targets[rows]) for rows in episodes)
            found = [linear.best_temperature(scores, wanted.argmax(1)) for scores, wanted in judged if len(scores)]
            if found:
                temperatures, losses = torch.tensor(found, dtype=torch.float64).T
                best = min(best, (float(losses.mean()), penalty, float(temperatures.log().mean().exp())))
        return cls(mean, scale, *best[1:])

    @property
    def aim(self) -> LeaveOneOut:
        return LeaveOneOut(float(self.penalty), float(self.temperature))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


def judge(
    choice: Sequence[View],
    features: Tensor,
    labels: Tensor,
    classes: int,
    network: Network,
    *,
    balanced: bool = False,
    discriminant: bool = True,
) -> dict[View, Probe]:
    """The classifier on each view, which knows how good it is by leave-one-out. features `(n, d)`: those of the last view, which has all of
    them; labels `(n,)`. balanced, discriminant: as of `linear.fit`."""
    return {
        one: fit(
            network,
            one,
            features[:, columns(choice[-1], one, network.architecture)],
            labels,
            classes,
            balanced=balanced,
            discriminant=discriminant,
        )
        for one in choice
    }


def fit(
    network: Network,
    view: View,
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    balanced: bool = False,
    discriminant: bool = True,
) -> Probe:
    """The classifier on what this view shows of the network `(n, d)`, by all that is known of it: `linear.fit` with its scatter, of two
    networks side by side as a mean with the classifiers of either alone."""
    parts = _parts(network, view)
    return linear.fit(
        features,
        labels,
        classes,
        balanced=balanced,
        discriminant=discriminant,
        scatter=_side_by_side(parts),
        parts=parts if len(parts) > 1 else (),
    )


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
    if arch.beside is not None:
        alone = dataclasses.replace(arch, beside=None)
        (own, theirs), (wanted, wanted_of_theirs) = seen.apart(), wanted.apart()
        start = own.on(alone).num_features
        return torch.cat([columns(own, wanted, alone), start + columns(theirs, wanted_of_theirs, arch.beside)])
    sizes = seen.sizes
    widths = seen.readout.block_features(arch)
    places = torch.arange(len(sizes) * sum(map(sum, widths))).reshape(len(sizes), -1)
    if wanted.readout is None or not wanted.readout.maxima:
        # The means of the last block, which come before its maxima.
        means, maxima = widths[-1]
        return places[sizes.index(wanted.size)][-(means + maxima) :][:means]
    return places[[sizes.index(size) for size in wanted.sizes]].flatten()


def scatter(network: Network, view: View) -> Tensor | None:
    """What the network knows of how images of one class differ, float32 `(r, d)` for `linear.fit` on what this view shows: at each size the
    same, as features of one image at two sizes differ alike. None where it knows nothing."""
    return _side_by_side(_parts(network, view))


def _parts(network: Network, view: View) -> list[linear.Part]:
    """What this view shows of the network, or of each of two, with what that one knows."""
    if isinstance(network, Joined) and network.beside is not None:
        both = list(zip((network, network.beside), view.apart(), strict=True))
    else:
        both = [(network, view)]
    found, first = [], 0
    for one, seen in both:
        wide = seen.on(dataclasses.replace(one.architecture, beside=None)).num_features
        found.append(linear.Part(torch.arange(first, first + wide), _scatter(one, seen)))
        first += wide
    return found


def _side_by_side(parts: Sequence[linear.Part]) -> Tensor | None:
    """What is known of all of them, as of one; None where nothing is known of any."""
    if all(part.scatter is None for part in parts):
        return None
    blank = [torch.zeros(0, len(part.columns)) for part in parts]
    return torch.block_diag(
        *(none if part.scatter is None else part.scatter for part, none in zip(parts, blank, strict=True))
    )


def _scatter(network: Network, view: View) -> Tensor | None:
    """Of the network alone."""
    if network.scatter is None:
        return None
    every = View(size=view.size, readout=Readout(blocks=tuple(range(len(network.architecture.stages)))))
    readout = view.readout and dataclasses.replace(view.readout, sizes=())
    alone = dataclasses.replace(network.architecture, beside=None)
    part = network.scatter[:, columns(every, View(size=view.size, readout=readout), alone)]
    part = part.float() * math.sqrt(TRUST / part.shape[1])
    return torch.block_diag(*[part] * len(view.sizes))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
