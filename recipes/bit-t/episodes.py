"""Part 11 of the bundled network's training: the scales and shifts of its norms alone, so that a closed form of few images gets better.

    python recipes/bit-t/episodes.py IMAGES SMALLER START OUT [--steps 1300] [--seed 5]

IMAGES is what `images.py` unpacked, SMALLER/finer what `further.py` did (of both what SETS names), START and OUT are networks. A step is an
episode: 96 images of 4 to 24 classes of one set, each judged by the ridge regression of the others on the features of all blocks, as in
`bit finetune --budget` (`train.objective.left_out`); penalty and temperature are learnt too. So many classes and sets come along that
nothing is learnt by heart. One process, one thread: 54 minutes of one core (AMD EPYC, fp32) for 1,300 steps. Not resumable.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from images import excluded
from PIL import Image
from torch import Tensor

from bigtransfer import weights
from bigtransfer.evals import linear
from bigtransfer.model import Readout, joined
from bigtransfer.train.objective import left_out

BATCH, CLASSES = 96, (4, 6, 8, 12, 16, 24)
SIZES = (64, 64, 96)  # in turn
RATE, WARMUP = 0.15, 50
SIDE, LONGEST, LEAST = 96, 1.6, 12
CROP = (0.7, 1.0)  # of the side
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Set(NamedTuple):
    """Where its classes are, how often it comes, how many images of a class are taken, and how their folders' names begin."""

    place: str
    weight: float
    most: int
    side: int = SIDE
    start: str = ""


SETS = {
    "tiny": Set("images/tiny/train", 3, 100, side=64),
    "miniplaces": Set("images/miniplaces/train", 3, 150),
    "miniimagenet": Set("images/miniimagenet/train", 3, 150),
    "food101": Set("images/food101/train", 1, 80),
    "monkeys": Set("images/monkeys/train", 0.5, 80),
    "grocery": Set("images/grocery/train", 1, 80),
    "rooms": Set("images/rooms/train", 0.5, 80),
    "seedlings": Set("images/seedlings/train", 1, 80),
    "aerial": Set("images/aerial/train", 1, 80),
    "sports": Set("smaller/finer/train", 1.5, 80, start="sports"),
    "butterflies": Set("smaller/finer/train", 1, 80, start="butterflies"),
    "music": Set("smaller/finer/train", 1, 80, start="music"),
    "cars": Set("smaller/finer/train", 1, 80, start="cars"),
}


def square(path: Path, side: int) -> np.ndarray:
    """The image as a square of `side` px: squashed, or of a long one the middle."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    short = min(image.size)
    if max(image.size) > LONGEST * short:
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0))


def classes_of(images: Path, smaller: Path, which: Set, copies: set[str]) -> list[np.ndarray]:
    """Of each class its images, uint8 (n, side, side, 3)."""
    root, rest = which.place.split("/", 1)
    base, drawn, found = images if root == "images" else smaller, random.Random(0), []
    for folder in sorted(
        path for path in (base / rest).iterdir() if path.is_dir() and path.name.startswith(which.start)
    ):
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(base)) not in copies
        )
        if len(files) >= LEAST:
            drawn.shuffle(files)
            found.append(np.stack([square(path, which.side) for path in files[: which.most]]))
    return found


def episode(sets: dict[str, list[np.ndarray]], seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], (n, 3, side, side), and their classes (n,)."""
    rng, side = np.random.default_rng((seed, step)), SIZES[step % len(SIZES)]
    names, weight = list(sets), np.array([SETS[name].weight for name in sets])
    classes = sets[names[rng.choice(len(names), p=weight / weight.sum())]]
    count = min(len(classes), int(rng.choice(CLASSES)))
    pixels, labels = [], []
    for label, number in enumerate(rng.permutation(len(classes))[:count]):
        for row in rng.permutation(len(classes[number]))[: BATCH // count]:
            image = classes[number][row]
            whole = len(image)
            size = round(whole * rng.uniform(*CROP))
            top, left = rng.integers(0, whole - size + 1, 2)
            cut = torch.from_numpy(image[top : top + size, left : left + size].copy()).permute(2, 0, 1)[None].float()
            cut = F.interpolate(cut, size=(side, side), mode="bilinear", antialias=size > side)
            pixels.append(cut.flip(3) if rng.random() < 0.5 else cut)
            labels.append(label)
    return torch.cat(pixels) / 127.5 - 1, torch.tensor(labels)


def main(images: Path, smaller: Path, start: str, out: str, steps: int, seed: int) -> None:
    torch.set_num_threads(1)
    copies = excluded()
    sets = {name: classes_of(images, smaller, which, copies) for name, which in SETS.items()}
    network = weights.load(start)
    model = joined(network, Readout(blocks=tuple(range(len(network.architecture.stages)))))
    model.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    model.requires_grad_(False)
    norms = model.norm_parameters()
    for parameter in norms:
        parameter.requires_grad_(True)

    def features(pixels: Tensor) -> Tensor:
        return model.features(pixels.contiguous(memory_format=torch.channels_last)).float()

    with torch.no_grad():
        before = [episode(sets, seed, 10_000_000 + number) for number in range(16)]
        seen = [features(pixels) for pixels, _ in before]
        mean, scale = (value.float() for value in linear.standardization(torch.cat(seen)))
        seen = [(one - mean) * scale for one in seen]
        unit = float(torch.cat(seen).square().sum(1).mean())
        found = []
        for share in PENALTIES:
            scores = [
                left_out(one, F.one_hot(labels).float(), unit * share)
                for one, (_, labels) in zip(seen, before, strict=True)
            ]
            judged = [linear.best_temperature(one, labels) for one, (_, labels) in zip(scores, before, strict=True)]
            temperatures, losses = zip(*judged, strict=True)
            found.append((float(np.mean(losses)), unit * share, float(np.exp(np.mean(np.log(temperatures))))))
    _, penalty, temperature = min(found)
    log_penalty = torch.tensor(math.log(penalty), dtype=torch.float64, requires_grad=True)
    log_temperature = torch.tensor(math.log(temperature), requires_grad=True)
    optimizer = torch.optim.SGD([{"params": norms}, {"params": [log_penalty, log_temperature]}], lr=RATE, momentum=0.9)
    losses = []
    for step in range(steps):
        rate = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group, share in zip(optimizer.param_groups, (1.0, 0.1), strict=True):
            group["lr"] = rate * share
        pixels, labels = episode(sets, seed, step)
        scores = left_out((features(pixels) - mean) * scale, F.one_hot(labels).float(), log_penalty.exp())  # type: ignore[arg-type]
        loss = F.cross_entropy(scores / log_temperature.exp(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(norms, 5.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            print(f"step {step + 1}: {np.mean(losses[-100:]):.4f} nats", flush=True)
    weights.save(out, network)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("smaller", type=Path)
    parser.add_argument("start")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=5)
    main(**vars(parser.parse_args()))
