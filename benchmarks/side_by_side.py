"""Two networks side by side, one of them, or a mean of their classifiers: on which is one to rely? Many draws, at the price of one look.

    python -m benchmarks.side_by_side SETS WORK --names dtd10 pacs-art [--counts 5 20] [--draws 4] [--sizes]

Features of both networks, of the sizes and with the mirror images that `bit finetune --linear closed` takes where there is time for all
of them, are computed once for at most `POOL` training images of a class and `TEST` test images of a set, and kept in WORK. Each draw
takes some of each class (the same ones for all rows) and solves the closed form on either network alone and on both; a row of the tables
is one of these, or their mean by what leave-one-out says for each, `linear.EVIDENCE` and others in its place. Loss: that of the
delivered temperature, on the test images. With --sizes the rows are what either or both look at instead: fewer sizes, each with what a
plain look costs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.cells import commit, machine
from bigtransfer import data, hyperrule, weights
from bigtransfer.data import splits
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import View
from bigtransfer.jobs.finetune import closed
from bigtransfer.model import Joined, Network

FIRST, SECOND = "bit-t-r26x1", "efficientnet-lite0"
POOL, TEST = 40, 420
EVIDENCE = (0.0, 0.03, 0.1, 0.3, 1.0)


class Seen(NamedTuple):
    """What both networks make of a set."""

    train: Tensor
    """float32 (n, d)."""
    labels: Tensor
    test: Tensor
    truth: Tensor


class Side(NamedTuple):
    """One network, or both."""

    network: Network
    view: View
    columns: slice
    """Its features among those of both."""


def sides(sizes: tuple[int, ...], beside: tuple[int, ...]) -> dict[str, Side]:
    """Each network with what it looks at where there is time for all of it."""
    first, second, both = (weights.load(name).eval() for name in (FIRST, SECOND, f"{FIRST}+{SECOND}"))
    own = closed.views(first, sizes, mirrored=True)[-1]
    theirs = closed.views(second, beside, mirrored=True)[-1]
    wide = own.on(first.architecture).num_features
    return {
        FIRST: Side(first, own, slice(None, wide)),
        SECOND: Side(second, theirs, slice(wide, None)),
        "both": Side(both, closed.views(both, sizes, mirrored=True, beside=beside)[-1], slice(None)),
    }


def looked_at(folder: Path, work: Path) -> tuple[Seen, dict[str, Side]]:
    """A set's features, which are computed where they are not kept."""
    parts = data.open_dataset(str(folder))
    assert parts.test is not None
    train = splits.per_class(parts.train, POOL, 0, allow_fewer=True)
    test = splits.per_class(parts.test, math.ceil(TEST / len(parts.test.class_names)), 0, allow_fewer=True)
    native = data.native_size(train)
    sizes, beside = (hyperrule.looking_sizes(weights.describe(name).input.size, *native)[0] for name in (FIRST, SECOND))
    made = sides(sizes, beside)
    both = made["both"]
    assert isinstance(both.network, Joined)
    digest = hashlib.sha256(
        f"{both.view!r}{[images.name(i) for images in (train, test) for i in range(len(images))]}".encode()
    )
    for tensor in both.network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    kept = work / f"{folder.name}-{digest.hexdigest()[:12]}.safetensors"
    if not kept.is_file():
        found = [
            closed.features(
                both.network,
                images,
                both.view,
                spec=both.network.card.input,
                device=torch.device("cpu"),
                dtype=torch.float32,
                batch_size=32,
            )
            for images in (train, test)
        ]
        names = ("train", "labels", "test", "truth")
        save_file(
            {
                name: one.half() if one.is_floating_point() else one
                for name, one in zip(names, sum(found, ()), strict=True)
            },
            kept,
        )
    return Seen(
        **{name: one.float() if one.is_floating_point() else one for name, one in load_file(kept).items()}
    ), made


def judged(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Top-1, % and loss, nats."""
    loss = torch.nn.functional.cross_entropy(logits, truth)
    return 100 * float((logits.argmax(1) == truth).double().mean()), float(loss)


def drawn(seen: Seen, count: int, draw: int) -> np.ndarray:
    """Numbers of so many training images of each class."""
    generator = np.random.default_rng(draw)
    return np.concatenate(
        [
            generator.permutation(np.flatnonzero(seen.labels.numpy() == label))[:count]
            for label in range(int(seen.truth.max()) + 1)
        ]
    )


def measured(seen: Seen, made: dict[str, Side], count: int, draw: int) -> dict[str, tuple[float, float]]:
    """Row -> top-1 and loss on the test images, of classifiers of so many training images of each class."""
    rows, classes = drawn(seen, count, draw), int(seen.truth.max()) + 1
    labels, found, probes, logits = seen.labels[rows], {}, [], []
    for name, (network, view, columns) in made.items():
        known = closed.scatter(network, view)
        probes.append(linear.fit(seen.train[rows][:, columns], labels, classes, discriminant=True, scatter=known))
        with torch.no_grad():
            logits.append(probes[-1].head(seen.test[:, columns]).double())
        found[name] = judged(logits[-1], seen.truth)
    losses = torch.tensor([probe.leave_one_out_loss for probe in probes], dtype=torch.float64)
    answers = torch.stack([probe.answers for probe in probes])
    for evidence in EVIDENCE:
        shares = (-evidence * len(rows) * losses).softmax(0)
        left_out, mean = (torch.einsum("k,knc->nc", shares, some) for some in (answers, torch.stack(logits)))
        temperature, _ = linear.best_temperature(left_out, probes[0].answered)
        found[f"mean, evidence {evidence:g}"] = judged(mean / temperature, seen.truth)
    return found


def by_sizes(seen: Seen, made: dict[str, Side], count: int, draw: int) -> dict[str, tuple[float, float, float]]:
    """Row -> top-1, loss, and the cost of a plain look (GFLOP), of the closed form of so many training images of each class."""
    rows, classes = drawn(seen, count, draw), int(seen.truth.max()) + 1
    wide = made["both"].view
    assert wide.readout is not None and wide.beside is not None
    found = {}
    for own, other in itertools.product(range(len(wide.readout.sizes) + 1), range(len(wide.beside.sizes) + 1)):
        first = dataclasses.replace(wide.readout, sizes=wide.readout.sizes[:own])
        second = dataclasses.replace(wide.beside, sizes=wide.beside.sizes[:other])
        if own and other:
            side, view = made["both"], dataclasses.replace(wide, readout=first, beside=second)
        elif own or other:
            side, readout = (made[FIRST], first) if own else (made[SECOND], second)
            view = dataclasses.replace(side.view, readout=readout)
        else:
            continue
        kept = closed.columns(side.view, view, side.network.architecture)
        train, test = (features[:, side.columns][:, kept] for features in (seen.train[rows], seen.test))
        probe = closed.fit(side.network, view, train, seen.labels[rows], classes)
        with torch.no_grad():
            logits = probe.head(test).double()
        cost = sum(
            made[name].network.architecture.forward_flops(size, 0)
            for name, readout, number in ((FIRST, first, own), (SECOND, second, other))
            for size in readout.sizes[:number]
        )
        names = [
            f"{name} at {number} size{'s' if number > 1 else ''}"
            for name, number in (("ours", own), ("Lite0", other))
            if number
        ]
        found[", ".join(names)] = (*judged(logits, seen.truth), cost / 1e9)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="side_by_side.py", description="One network, both, or a mean of their classifiers."
    )
    parser.add_argument("sets", type=Path, help="folder of the sets")
    parser.add_argument("work", type=Path, help="folder for features")
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--counts", nargs="+", type=int, default=[5, 20])
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--sizes", action="store_true", help="compare what is looked at instead of means")
    asked = parser.parse_args(arguments)
    asked.work.mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    measure, against = (by_sizes, -1) if asked.sizes else (measured, 3)  # the widest; the plain mean
    for name in asked.names:
        seen, made = looked_at(asked.sets / name, asked.work)
        for count in asked.counts:
            draws = [measure(seen, made, count, draw) for draw in range(asked.draws)]
            cells[count, name] = {row: np.mean([draw[row] for draw in draws], 0) for row in draws[0]}
    for count in asked.counts:
        print(f"\n{count} per class, mean of {asked.draws} draws; top-1 in % / loss\n")
        rows = list(cells[count, asked.names[0]])
        titles = ["", *asked.names, "mean", f"- {rows[against]}", *(["GFLOP"] if asked.sizes else [])]
        print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
        plain = np.array([cells[count, name][rows[against]] for name in asked.names])
        for row in rows:
            every = np.array([cells[count, name][row] for name in asked.names])
            apart = (every - plain).T
            error = apart[0].std(ddof=1) / math.sqrt(len(plain)) if len(plain) > 1 else math.nan
            shown = [f"{top1:.1f} / {loss:.3f}" for top1, loss, *_ in (*every, every.mean(0))]
            shown.append(f"{apart[0].mean():+.2f} +- {error:.2f}, {apart[1].mean():+.3f}")
            shown += [f"{every.mean(0)[2]:.1f}"] if asked.sizes else []
            print(f"| {row} | {' | '.join(shown)} |")
    print(f"\n- commit {commit()}; {machine()}")


if __name__ == "__main__":
    main()
