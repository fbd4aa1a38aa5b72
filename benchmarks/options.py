"""Options that could earn their place: what each adds to the closed form, or to what a fine-tuning made of it, on many sets.

    OMP_NUM_THREADS=1 nice python -m benchmarks.options run --sets SETS --cells CELLS [--kinds views norms tuning] [--names NAME ...]
    python -m benchmarks.options table --cells CELLS --to benchmarks/results/options_cpu_DATE.md

SETS holds a folder per image set, as `benchmarks.sets` makes them. Of every set some images per class are drawn to learn from and others to
judge by, and of test/ at most so many; all ways see the same ones, so that every difference is of the same images. A cell is a set and a
draw; what is measured stays in CELLS, and the same command goes on after a stop.

`views` takes no training step: a classifier on all blocks of the bundled network at 64 and 128 px, of each image and its mirror image, as
the closed form has it, asked of other views of the test images; and solved anew with a third size.

`norms` is what `--budget` does: so many steps, at each of these sizes, that train the norms' scales and shifts for the closed form
(`hyperrule.tuning`), which is then solved anew at 64 and 128 px; beside the closed form of the network as it was, and the mean of the
logits.

`tuning` is what `--budget` did before: it starts from the closed form on all blocks at 64 px, with a head of its own rate, for so many
steps, in which all weights are trained: once as it is, once with very large dropout before the head (arXiv 2403.00946), once with each
image mirrored in every second epoch instead of at random (2404.00498), twice with other random numbers. Without another step follow
moving averages (EMA), weights between the closed form's and the fine-tuned ones (WiSE-FT, 2109.01903), and soups (2203.05482): the mean of
three that differ in random numbers only, and the greedy one of all, which takes in, the best first, whatever does not make the loss of the
judging images larger.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import cells
from bigtransfer import data, hyperrule, weights
from bigtransfer.catalog import Readout
from bigtransfer.config.finetune import BUNDLED
from bigtransfer.data import ImageSet
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import View
from bigtransfer.feed.augment import SquareCrop, normalize
from bigtransfer.feed.loader import Batch, TrainLoader, eval_batches
from bigtransfer.feed.order import EpisodeOrder, FullShuffle
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs.finetune import closed
from bigtransfer.model import Network, fold, joined
from bigtransfer.train import loop

KINDS = ("views", "norms", "tuning")
CPU = torch.device("cpu")
SMALL, LARGE, FURTHER, MARGIN = 64, 128, 192, 160
"""Sizes of the closed form, a third one, and the size of which crops of the second are cut, px."""
BATCH = 32
RATE, WARMUP, RATIO, HEAD_RATE = 0.005, 0.05, 9 / 8, 0.1
"""Of `tuning`: rate of the network, share of the steps, resized side over crop, and the rate of a standardized head times its features."""
EMA = (0.8, 0.95)
"""Decays of the moving averages."""
DROPOUT = 0.9

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Drawn:
    """The images of a cell."""

    train: ImageSet
    judge: ImageSet
    test: ImageSet


def drawn(folder: Path, counts: tuple[int, int], most: int, seed: int) -> Drawn:
    """Of each class so many images to learn from and to judge by, and `most` test images, alike of all classes."""
    parts = data.open_dataset(str(folder))
    assert parts.test is not None
    train, judge = _drawn(parts.train, counts, seed)
    each = math.ceil(most / len(parts.test.class_names))
    return Drawn(train, judge, _drawn(parts.test, (each,), seed)[0])


def _drawn(images: ImageSet, counts: Sequence[int], seed: int) -> list[ImageSet]:
    assert images.labels is not None
    rng = np.random.default_rng(seed)
    found: list[list[int]] = [[] for _ in counts]
    for label in range(len(images.class_names)):
        members = rng.permutation(np.flatnonzero(images.labels == label)).tolist()
        for part, count in zip(found, counts, strict=True):
            part += members[:count]
            members = members[count:]
    return [images.subset(np.sort(np.array(part, dtype=np.int64))) for part in found]


def judged(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Share that is right, and the loss at the temperature that fits these images best, nats: of the ways themselves, not of how well
    each knows how sure it is."""
    return {
        "top1": float((logits.argmax(1) == labels).double().mean()),
        "loss": linear.best_temperature(logits.double(), labels)[1],
    }


def start() -> tuple[Network, torch.dtype]:
    return weights.load(BUNDLED), loop.compute_dtype("auto", CPU)


# --- Views


def _pixels(network: Network, images: ImageSet, side: int) -> tuple[Tensor, Tensor]:
    """uint8 (n, 3, side, side) and labels."""
    spec = dataclasses.replace(network.card.input, size=side)
    found, labels, _ = zip(*eval_batches(images, spec, BATCH), strict=True)
    return torch.cat(found), torch.cat(labels)


@torch.inference_mode()
def _seen(network: Network, pixels: Tensor, readout: Readout, dtype: torch.dtype) -> Tensor:
    """Features float32 (n, d)."""
    folded = fold(joined(network, readout), dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    return torch.cat([folded.features(normalize(part, dtype)).float() for part in pixels.split(BATCH)]).clone()


def views(images: Drawn) -> dict[str, Numbers]:
    """Way -> what it is worth."""
    network, dtype = start()
    every = tuple(range(len(network.architecture.stages)))
    usual = Readout(blocks=every, sizes=(SMALL, LARGE), mirrored=True)
    plain = dataclasses.replace(usual, mirrored=False)
    further = Readout(blocks=every, sizes=(FURTHER,), mirrored=True)
    classes = len(images.train.class_names)
    large = [_pixels(network, one, LARGE) for one in (images.train, images.test)]
    (train, labels), (test, truth) = ((_seen(network, pixels, usual, dtype), of) for pixels, of in large)
    wide = [_seen(network, _pixels(network, one, FURTHER)[0], further, dtype) for one in (images.train, images.test)]
    head = linear.fit(train, labels, classes, discriminant=True).head
    alone = linear.fit(wide[0], labels, classes, discriminant=True).head
    three = linear.fit(torch.cat([train, wide[0]], 1), labels, classes, discriminant=True).head
    margin, _ = _pixels(network, images.test, MARGIN)
    room = MARGIN - LARGE
    corners = [(room // 2, room // 2), (0, 0), (0, room), (room, 0), (room, room)]
    crops = [_seen(network, margin[:, :, y : y + LARGE, x : x + LARGE], plain, dtype) for y, x in corners]
    with torch.no_grad():
        as_it_is = head(test)
        five = torch.stack([head(one) for one in crops]).mean(0)
        found = {
            "as it is": as_it_is,
            "not mirrored": head(_seen(network, large[1][0], plain, dtype)),
            "five crops": five,
            "both": (as_it_is + five) / 2,
            "192 px alone, solved so": alone(wide[1]),
            "64, 128 and 192 px, solved so": three(torch.cat([test, wide[1]], 1)),
            "mean of the logits of 64 and 128 and of 192 px": (as_it_is + alone(wide[1])) / 2,
        }
    return {name: judged(logits, truth) for name, logits in found.items()}


# --- Norms


def norms(images: Drawn, steps: int, sizes: Sequence[int], seed: int) -> dict[str, Numbers]:
    """Way -> what it is worth. sizes: of the images in the training, px."""
    network, dtype = start()
    every, classes = tuple(range(len(network.architecture.stages))), len(images.train.class_names)
    usual = View(size=LARGE, readout=Readout(blocks=every, sizes=(SMALL, LARGE), mirrored=True))

    def features(of: Network, some: ImageSet, view: View) -> tuple[Tensor, Tensor]:
        return closed.features(of, some, view, spec=network.card.input, device=CPU, dtype=dtype, batch_size=BATCH)

    def answers(of: Network) -> tuple[Tensor, Tensor]:
        (seen, labels), (test, truth) = (features(of, some, usual) for some in (images.train, images.test))
        with torch.no_grad():
            return linear.fit(seen, labels, classes, discriminant=True).head(test).double(), truth

    def tuned(size: int) -> Network:
        own, plain = copy.deepcopy(network), View(size=size, readout=Readout(blocks=every))
        model = joined(own, plain.readout)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
        recipe = hyperrule.tuning(len(images.train), 1.0, lambda crop, batch: 1.0, size, fixed={"steps": steps})
        head = closed.LeftOutHead.of(*features(model, images.train, plain), recipe.batch_size, seed)
        model.head = head
        assert images.train.labels is not None
        loader = TrainLoader(
            images.train,
            SquareCrop(resize=recipe.resize, crop=recipe.crop),
            batch_size=recipe.batch_size,
            seed=seed,
            order=EpisodeOrder(images.train.labels, recipe.batch_size, seed),
        )
        state = loop.new_state(model, recipe, micro_batch=recipe.batch_size, parameters=model.norm_parameters())
        for _ in loop.steps(state, loader.batches(0, steps), recipe, seed=seed, device=CPU, dtype=dtype, aim=head.aim):
            pass
        return own.eval()

    before, truth = answers(network)
    found = {"closed form": before}
    for size in sizes:
        after, _ = answers(tuned(size))
        found |= {f"norms fine-tuned at {size} px": after, f"mean of its logits, {size} px": (before + after) / 2}
    return {name: judged(logits, truth) for name, logits in found.items()}


# --- Tuning


class _Standardized(nn.Module):
    """Features `(n, d)` -> (features - mean) * scale."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


def _trainable_head(head: nn.Linear, features: Tensor) -> nn.Sequential:
    """The same function in a form that can be trained at the network's rate, its own being `HEAD_RATE` / d on standardized features: it
    sees them multiplied by a constant by which its weights are divided."""
    mean, scale = linear.standardization(features)
    scale *= math.sqrt(HEAD_RATE / (features.shape[1] * RATE))
    inner = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        weight = head.weight.double()
        inner.weight.copy_(weight / scale)
        inner.bias.copy_(head.bias.double() + weight @ mean)
    return nn.Sequential(_Standardized(mean, scale), inner)


@dataclass(frozen=True)
class Trained:
    """What a training left, by name of parameter."""

    last: dict[str, Tensor]
    averages: dict[float, dict[str, Tensor]]


def _mirrored(order: FullShuffle, seed: int, count: int, step: int, alternating: bool) -> Tensor:
    """Which images of the batch are mirrored."""
    if not alternating:
        return torch.from_numpy(np.random.default_rng((seed, step)).random(BATCH) < 0.5)
    first = np.random.default_rng(seed).random(count) < 0.5  # in the first epoch; in the next the others
    epochs = (step * BATCH + np.arange(BATCH)) // count
    return torch.from_numpy(first[order.indices(step)] ^ (epochs % 2 == 1))


def train(
    network: Network, images: ImageSet, recipe: Recipe, dtype: torch.dtype, *, seed: int, alternating: bool = False
) -> Trained:
    """`network` with the closed form's head, whose parameters are changed."""
    augmentation = SquareCrop(resize=recipe.resize, crop=recipe.crop, flip=False, interpolation="bilinear")
    order = FullShuffle(len(images), BATCH, seed)
    loader = TrainLoader(images, augmentation, batch_size=BATCH, seed=seed, order=order)

    def mirrored(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            which = _mirrored(order, seed, len(images), batch.step, alternating).view(-1, 1, 1, 1)
            yield batch._replace(images=torch.where(which, batch.images.flip(3), batch.images))

    state = loop.new_state(network, recipe, micro_batch=BATCH)
    named = dict(network.named_parameters())
    averages = {decay: {name: one.detach().clone() for name, one in named.items()} for decay in EMA}
    for _ in loop.steps(state, mirrored(loader.batches(0, recipe.steps)), recipe, seed=seed, device=CPU, dtype=dtype):
        for decay, average in averages.items():
            torch._foreach_lerp_(list(average.values()), [named[name].detach() for name in average], 1 - decay)
    network.eval()
    return Trained({name: one.detach().clone() for name, one in named.items()}, averages)


def tuning(images: Drawn, steps: int, seed: int) -> dict[str, Numbers]:
    """Way -> what it is worth."""
    network, dtype = start()
    readout = Readout(blocks=tuple(range(len(network.architecture.stages))))
    view, classes = View(size=SMALL, readout=readout), len(images.train.class_names)

    def features(of: Network, some: ImageSet, mirrored: bool) -> tuple[Tensor, Tensor]:
        asked = dataclasses.replace(view, readout=dataclasses.replace(readout, mirrored=mirrored))
        return closed.features(of, some, asked, spec=network.card.input, device=CPU, dtype=dtype, batch_size=BATCH)

    seen, labels = features(network, images.train, False)
    recipe = Recipe(
        steps=steps,
        batch_size=BATCH,
        resize=round(SMALL * RATIO),
        crop=SMALL,
        base_learning_rate=RATE,
        warmup=round(WARMUP * steps),
        schedule="cosine",
        variant="budget",
    )
    model = joined(network, readout)
    model.head = _trainable_head(linear.fit(seen, labels, classes, discriminant=True).head, seen)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}

    def tuned(changed: Mapping[str, Any], number: int, alternating: bool = False) -> Trained:
        own = copy.deepcopy(model)
        return train(
            own,
            images.train,
            dataclasses.replace(recipe, **changed),
            dtype,
            seed=seed + number,
            alternating=alternating,
        )

    def logits(parameters: Mapping[str, Tensor], some: ImageSet) -> tuple[Tensor, Tensor]:
        own = copy.deepcopy(model).eval()
        with torch.no_grad():
            for name, parameter in own.named_parameters():
                parameter.copy_(parameters[name])
        head: nn.Module = own.head
        found, of = features(own, some, True)
        with torch.no_grad():
            return head(found).double(), of

    trained = {
        "fine-tuned": tuned({}, 1),
        "dropout": tuned({"dropout": DROPOUT}, 1),
        "alternating flip": tuned({}, 1, alternating=True),
        "other random numbers": tuned({}, 1001),
        "a third time": tuned({}, 2001),
    }
    last = trained["fine-tuned"].last
    ways: dict[str, Mapping[str, Tensor]] = {"closed form": before}
    ways |= {name: one.last for name, one in trained.items()}
    ways |= {f"EMA {decay}": average for decay, average in trained["fine-tuned"].averages.items()}
    ways |= {
        f"WiSE-FT {share}": {name: torch.lerp(before[name], last[name], share) for name in before}
        for share in (0.25, 0.5, 0.75)
    }
    three = [trained[name].last for name in ("fine-tuned", "other random numbers", "a third time")]
    ways["soup of three"] = _mean(three)
    ways["greedy soup"] = _greedy(
        [before] + [one.last for one in trained.values()], lambda one: judged(*logits(one, images.judge))["loss"]
    )
    answers = {name: logits(parameters, images.test) for name, parameters in ways.items()}
    truth = answers["closed form"][1]
    answers["mean of the logits"] = (answers["closed form"][0] + answers["fine-tuned"][0]) / 2, truth
    return {name: judged(found, truth) for name, (found, _) in answers.items()}


def _mean(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in several]).mean(0) for name in several[0]}


def _greedy(
    several: Sequence[Mapping[str, Tensor]], loss: Callable[[Mapping[str, Tensor]], float]
) -> Mapping[str, Tensor]:
    """The best first, then whatever does not make the mean's loss larger."""
    losses = [loss(one) for one in several]
    order = sorted(range(len(several)), key=losses.__getitem__)
    chosen, least = [several[order[0]]], losses[order[0]]
    for number in order[1:]:
        found = loss(_mean([*chosen, several[number]]))
        if found <= least:
            chosen, least = [*chosen, several[number]], found
    return _mean(chosen)


# --- The command


def run(asked: argparse.Namespace) -> None:
    kept = cells.Cells(asked.cells)
    for kind in asked.kinds:
        for seed in asked.seeds:
            for name in asked.names or sorted(path.name for path in asked.sets.iterdir() if path.is_dir()):
                what = {
                    "kind": kind,
                    "set": name,
                    "seed": seed,
                    "train": asked.train,
                    "judge": asked.judge,
                    "test": asked.test,
                }
                what |= {"steps": asked.steps} if kind != "views" else {}
                what |= {"sizes": asked.sizes} if kind == "norms" else {}

                def measure(_: Path, kind: str = kind, name: str = name, seed: int = seed) -> Mapping[str, Any]:
                    images = drawn(asked.sets / name, (asked.train, asked.judge), asked.test, seed)
                    if kind == "views":
                        found = views(images)
                    elif kind == "norms":
                        found = norms(images, asked.steps, asked.sizes, seed)
                    else:
                        found = tuning(images, asked.steps, seed)
                    return {"ways": found, "images": len(images.test), "learnt": len(images.train)}

                kept.once(what, measure)


BASES = {"views": "as it is", "norms": "closed form", "tuning": "fine-tuned"}
"""What all others are compared with."""


def table(folder: Path) -> str:
    found = [json_of(path) for path in sorted(folder.glob("*.json"))]
    lines = []
    for kind, base in BASES.items():
        own = [one for one in found if one["asked"]["kind"] == kind]
        if not own:
            continue
        sets = sorted({one["asked"]["set"] for one in own})
        by_set = {name: [one["result"]["ways"] for one in own if one["asked"]["set"] == name] for name in sets}
        draws = sorted({one["asked"]["seed"] for one in own})
        asked = own[0]["asked"]
        lines += [
            f"## {kind}: differences from `{base}`, points (loss in nats)",
            "",
            f"{asked['train']} images per class, {asked['judge']} to judge by, at most {asked['test']} and a few test images of each set; "
            f"draws {', '.join(map(str, draws))}" + (f"; {asked['steps']} steps" if kind != "views" else ""),
            "",
            "| | " + " | ".join(sets) + " | mean, standard error over sets | loss |",
            "|---|" + "---|" * (len(sets) + 2),
        ]
        mean = [statistics.mean(ways[base]["top1"] for ways in by_set[name]) for name in sets]
        lines.append(
            f"| {base} | " + " | ".join(f"{100 * one:.1f}" for one in mean) + f" | {100 * statistics.mean(mean):.1f} | "
            f"{statistics.mean(ways[base]['loss'] for name in sets for ways in by_set[name]):.3f} |"
        )
        for way in by_set[sets[0]][0]:
            if way == base:
                continue
            both = [
                [statistics.mean(ways[way][key] - ways[base][key] for ways in by_set[name]) for name in sets]
                for key in ("top1", "loss")
            ]
            points = [100 * one for one in both[0]]
            spread = [
                statistics.stdev(one) / math.sqrt(len(one)) if len(one) > 1 else math.nan for one in (points, both[1])
            ]
            lines.append(
                f"| {way} | "
                + " | ".join(f"{one:+.1f}" for one in points)
                + f" | {statistics.mean(points):+.1f} ± {spread[0]:.1f} | {statistics.mean(both[1]):+.3f} ± {spread[1]:.3f} |"
            )
        lines.append("")
    return "\n".join(lines)


def json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("run")
    first.add_argument("--sets", type=Path, required=True)
    first.add_argument("--cells", type=Path, required=True)
    first.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    first.add_argument("--names", nargs="+")
    first.add_argument("--seeds", nargs="+", type=int, default=[0])
    first.add_argument("--train", type=int, default=10, help="images per class to learn from")
    first.add_argument("--judge", type=int, default=5, help="images per class for the greedy soup")
    first.add_argument("--test", type=int, default=96, help="test images")
    first.add_argument("--steps", type=int, default=24)
    first.add_argument("--sizes", nargs="+", type=int, default=[64, 128], help="px, of a training of norms")
    first.set_defaults(do=run)
    second = commands.add_parser("table")
    second.add_argument("--cells", type=Path, required=True)
    second.add_argument("--to", type=Path, required=True)
    second.set_defaults(do=write)
    asked = parser.parse_args()
    asked.do(asked)


def write(asked: argparse.Namespace) -> None:
    asked.to.write_text(
        "# Options beside the default, on the same images\n\n"
        + table(asked.cells)
        + f"- {datetime.date.today()}; {torch.get_num_threads()} thread, torch {torch.__version__}; commits of the package "
        f"{', '.join(cells.Cells(asked.cells).commits())}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
