"""How processor time and memory grow with images, pixels, classes, parameters and processes: one log-log figure each.

    python -m benchmarks.scaling WORK [AXIS...]     # writes benchmarks/results/scaling_cpu_<date>.md and scaling-AXIS_cpu_<date>.svg

Each point is a process of its own with one thread. Memory is the first call's peak beyond what was there before. Seconds are the
processor's (of user and system), the least of up to five repetitions: other programs on the machine take nothing of them but caches.
Points are kept in WORK as they are measured, so that a command that was stopped goes on; --kept measures nothing more and writes what
there is.

The figures need matplotlib (extra `bench`).
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks import cells
from bigtransfer import dist, evals, model, weights
from bigtransfer.backends.by_torch import Torch
from bigtransfer.catalog import ARCHITECTURES, Architecture, InputSpec, ModelCard
from bigtransfer.data import images, open_dataset, splits
from bigtransfer.data.index import Index, IndexedSplit, Shard, Stated
from bigtransfer.evals import linear
from bigtransfer.feed.loader import Batch
from bigtransfer.feed.order import FullShuffle, order_of
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs.benchmark import Others, _memory_of
from bigtransfer.train import loop, parallel

CPU = torch.device("cpu")
SMALL = ARCHITECTURES["r26x1"]
CLASSES = 100


@dataclass(frozen=True)
class Figure:
    """One measured quantity of a point."""

    name: str
    seconds: float
    memory: int | None
    """Bytes."""


def timed(name: str, run: Callable[[], object]) -> Figure:
    times: list[float] = []

    def once() -> int:
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
        return 0

    started = time.monotonic()
    memory = _memory_of(once, CPU)
    while len(times) < 5 and (len(times) < 2 or time.monotonic() - started < 20) and times[0] < 10:
        once()
    return Figure(name, min(times), memory)


# --- What is measured at each point


def of_images(count: int, work: Path) -> Iterator[Figure]:
    """A set of so many JPEG files of one pixel in 100 classes: shards of 10,000 with the index that `bit shard` writes (simulated: the
    shards' files are holes, but for the 256 images that are read), and up to 10,000 of them as a plain tar file."""
    pixel = io.BytesIO()
    images.Image.new("RGB", (1, 1)).save(pixel, "JPEG")
    content, drawn = pixel.getvalue(), np.random.default_rng(0).integers(0, count, 256)
    labels = np.arange(count) * 7919 % CLASSES
    folder = _simulated(work, count, content, labels, drawn)
    yield timed("open shards", lambda: open_dataset(str(folder)))
    opened = open_dataset(str(folder)).train
    assert len(opened) == count
    spec = InputSpec(size=32)
    yield timed("read 256 images of the shards", lambda: [opened.read(int(i), spec) for i in drawn])
    yield timed("hold out a tenth", lambda: splits.hold_out(opened, 0.1, seed=0))
    yield timed("order: first batch, shards", lambda: order_of(count, opened.runs, 256, 0).indices(0))
    yield timed("order: first batch, files", lambda: FullShuffle(count, 256, 0).indices(0))
    order, step = order_of(count, opened.runs, 256, 0), itertools.count()
    yield timed("order: 100 more batches, shards", lambda: [order.indices(next(step)) for _ in range(100)])
    result = evals.Classification(CLASSES)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, 1000):
        logits = torch.randn(1000, CLASSES, generator=generator)
        result.update(logits, torch.from_numpy(labels[start : start + 1000]))
    yield timed(
        "all numbers of an evaluation", lambda: (result.named("test"), result.per_class(), result.calibration())
    )
    if count > 10_000:
        return
    plain = work / f"plain-{count}.tar"
    with tarfile.open(plain, "w") as tar:
        for number, label in enumerate(labels.tolist()):
            for ending, written in (("jpg", content), ("cls", b"%d" % label)):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(written)
                tar.addfile(member, io.BytesIO(written))
    yield timed("open a plain tar file", lambda: open_dataset(str(plain)))


def _simulated(work: Path, count: int, content: bytes, labels: np.ndarray, real: np.ndarray) -> Path:
    """A folder as `bit shard` leaves it, of which only the images `real` are there."""
    folder, shard, block = work / f"shards-{count}", 10_000, 4096
    folder.mkdir()
    places = np.arange(count) % shard * block + 512
    arrays = {"offsets": places, "lengths": np.full(count, len(content), np.uint32), "labels": labels.astype(np.int32)}
    shards = []
    for number, start in enumerate(range(0, count, shard)):
        name, held = f"train-{number:06d}.tar", min(shard, count - start)
        with open(folder / name, "wb") as file:
            file.truncate(held * block)
            for i in real[(real >= start) & (real < start + shard)]:
                file.seek(places[i])
                file.write(content)
        shards.append(Shard(name=name, bytes=held * block, sha256="0" * 64, images=held))
    stated = {}
    for kind, array in arrays.items():
        file = folder / f"train.{kind}.npy"
        np.save(file, array)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        stated[kind] = Stated(name=file.name, bytes=file.stat().st_size, sha256=digest)
    part = IndexedSplit(shards=tuple(shards), arrays=stated)
    names = tuple(f"class {i}" for i in range(CLASSES))
    Index(class_names=names, splits={"train": part}, made={}).write(folder / "index.json")
    return folder


def of_pixels(side: int, work: Path) -> Iterator[Figure]:
    """R26x1, four images of side x side px; a photograph of 1,024 px."""
    network = model.build(SMALL, 1000)
    pixels = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    network.card = ModelCard.bare(SMALL, 1000)
    yield answering(network, pixels, "answer 4 images")
    yield stepping(network, pixels, "training step of 4")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    images.Image.fromarray(noise).resize((1024, 1024)).save(file, "JPEG", quality=90)
    yield timed(
        "decode 8 photographs",
        lambda: [images.prepared(file.getvalue(), "a photograph", spec=InputSpec(size=side)) for _ in range(8)],
    )


def answering(network: model.Network, pixels: torch.Tensor, name: str) -> Figure:
    backend = Torch(network, "cpu", "auto")
    return timed(name, lambda: backend.run(pixels.numpy()))


def stepping(network: model.Network, pixels: torch.Tensor, name: str) -> Figure:
    labels = torch.arange(len(pixels)) % network.card.num_classes
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    recipe = Recipe(steps=1000, batch_size=len(pixels), resize=pixels.shape[-1], crop=pixels.shape[-1])
    state = loop.new_state(network, recipe, micro_batch=len(pixels))
    batches = (Batch(step, pixels, labels) for step in range(recipe.steps))
    taken = loop.steps(state, batches, recipe, seed=0, device=CPU, dtype=loop.compute_dtype("auto", CPU))
    return timed(name, lambda: next(taken))


def of_classes(classes: int, work: Path) -> Iterator[Figure]:
    """R26x1 with so many classes; 512 images of 256 features."""
    network = model.build(SMALL, classes)
    network.card = ModelCard.bare(SMALL, classes)
    file = work / f"classes-{classes}.safetensors"
    yield timed("save and load the model", lambda: (weights.save(file, network), weights.load(str(file))))
    file.unlink()
    pixels = torch.randint(0, 256, (32, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    yield answering(network, pixels, "answer 32 images")
    yield stepping(network, pixels, "training step of 32")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(512) // 2 % classes
    features = torch.randn(512, 256, generator=generator)
    yield timed("closed form of 512 images", lambda: linear.fit(features, labels, classes, discriminant=True))
    logits = torch.randn(512, classes, generator=generator)

    def evaluate() -> None:
        result = evals.Classification(classes)
        result.update(logits, labels)
        result.named("test"), result.per_class(), result.confused()

    yield timed("evaluation of 512 answers", evaluate)


NETWORKS = ("r26x1", "r50x1", "r101x1", "r50x3", "r101x3", "r152x4")
LARGEST = 4e8
"""Parameters of the largest network that takes a training step: with gradient and momentum it has three times as many numbers."""


def of_parameters(number: int, work: Path) -> Iterator[Figure]:
    """R26x1, R50x1, R101x1, R50x3, R101x3, R152x4, each for 1,000 classes; images of 64 px."""
    architecture = ARCHITECTURES[NETWORKS[number]]
    network = model.build(architecture, 1000)
    network.card = ModelCard.bare(architecture, 1000)
    file = work / f"{architecture.name}.safetensors"
    yield timed("save the model", lambda: weights.save(file, network))
    yield timed("load the model", lambda: weights.load(str(file)))
    file.unlink()
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    yield answering(network, pixels, "answer 4 images")
    if parameters(architecture) < LARGEST:
        yield stepping(network, pixels, "training step of 4")


def parameters(architecture: Architecture) -> int:
    return sum(one.numel() for one in model.build(architecture, 1000, device="meta").parameters())


BATCH, STEPS = 64, 6


def of_processes(count: int, work: Path) -> Iterator[Figure]:
    """R26x1, 100 classes: a step of 64 images of 64 px, divided among so many processes of one thread each (gloo): the seconds and the
    memory of all of them together, which would stay as they are if the processes had nothing to tell one another."""
    yield together(count, "ddp", work)
    if count > 1:
        yield together(count, "fsdp", work)


def together(count: int, strategy: Literal["ddp", "fsdp"], work: Path) -> Figure:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = multiprocessing.get_context("spawn")
    members = [processes.Process(target=member, args=(rank, count, port, strategy, work)) for rank in range(count)]
    for one in members:
        one.start()
    for one in members:
        one.join()
    if any(one.exitcode for one in members):
        raise RuntimeError(f"{strategy}: one of {count} processes ended with an error")
    found = [json.loads((work / f"{strategy}-{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
    seconds = min(map(sum, zip(*(one["seconds"] for one in found), strict=True)))
    return Figure(f"step, {strategy}, all processes", seconds, sum(one["memory"] for one in found))


def member(rank: int, count: int, port: int, strategy: Literal["ddp", "fsdp"], work: Path) -> None:
    """One of the processes. Memory: the largest at any time beyond what the process had once everything was imported."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    torch.manual_seed(0)
    share = BATCH // count
    pixels = torch.randint(0, 256, (share, 3, 64, 64), dtype=torch.uint8)
    recipe = Recipe(steps=STEPS, batch_size=BATCH, resize=64, crop=64)
    times: list[float] = []

    def train() -> int:
        with dist.join(CPU) as (world, _):
            network = model.build(SMALL, CLASSES).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            forward, sync = parallel.distribute(network, world, strategy)
            state = loop.new_state(network, recipe, micro_batch=share)
            batches = (Batch(step, pixels, torch.arange(share) % CLASSES) for step in range(STEPS))
            dtype = loop.compute_dtype("auto", CPU)
            place = {"device": CPU, "dtype": dtype, "forward": forward, "world": world, "sync": sync}
            begun = time.process_time()
            for _ in loop.steps(state, batches, recipe, seed=0, **place):
                now = time.process_time()
                times.append(now - begun)
                begun = now
        return 0

    memory = _memory_of(train, CPU)
    record = {"seconds": times[1:], "memory": memory}
    (work / f"{strategy}-{rank}.json").write_text(json.dumps(record), encoding="utf-8")


@dataclass(frozen=True)
class Axis:
    """What grows, and how much of it there is at each point."""

    points: Sequence[int]
    measure: Callable[[int, Path], Iterator[Figure]]
    amount: Callable[[int], int] = int
    """What stands on the axis for a point."""


AXES = {
    "images": Axis((1_000, 10_000, 100_000, 1_000_000), of_images),
    "pixels": Axis((64, 96, 128, 192, 256, 384, 512), of_pixels, lambda side: side**2),
    "classes": Axis((2, 10, 100, 1_000, 10_000, 21_843), of_classes),
    "parameters": Axis(range(len(NETWORKS)), of_parameters, lambda number: parameters(ARCHITECTURES[NETWORKS[number]])),
    "processes": Axis((1, 2, 4, 8), of_processes),
}


# --- All points, in processes of their own


def one_point(axis: str, point: int, work: Path, kept: Path) -> None:
    # If the memory does not suffice this is the process that the system ends.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with tempfile.TemporaryDirectory(dir=work) as place:
        found = [(one.name, one.seconds, one.memory) for one in AXES[axis].measure(point, Path(place))]
    kept.write_text(json.dumps(found), encoding="utf-8")


def measured(axis: str, work: Path, only_kept: bool) -> dict[int, list[Figure]]:
    """The points of an axis, measured now or earlier."""
    found = {}
    for point in AXES[axis].points:
        kept = work / f"{axis}-{point}.json"
        if not kept.is_file():
            if only_kept:
                continue
            # Forked before anything was computed here, which spares it the imports.
            process = multiprocessing.get_context("fork").Process(target=one_point, args=(axis, point, work, kept))
            process.start()
            process.join()
            if process.exitcode:
                print(f"{axis} {point:,}: ended with {process.exitcode}", flush=True)
                continue
        figures = [Figure(*one) for one in json.loads(kept.read_text(encoding="utf-8"))]
        found[AXES[axis].amount(point)] = figures
        print(axis, f"{point:,}", *(f"{one.name} {one.seconds:.3g} s;" for one in figures), flush=True)
    return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through log x, log y, by least squares."""
    xs, ys = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(xs, ys, 1)[0])


def table(found: dict[int, list[Figure]]) -> tuple[list[str], dict[str, dict[str, list[tuple[float, float]]]]]:
    """Lines in Markdown, and by "seconds" and "MB" the points of each quantity."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"seconds": {}, "MB": {}}
    for point, figures in found.items():
        for one in figures:
            curves["seconds"].setdefault(one.name, []).append((point, one.seconds))
            if one.memory is not None:
                curves["MB"].setdefault(one.name, []).append((point, one.memory / 1e6))
    shown = " | ".join(f"{point:,}" for point in found)
    lines = [f"| | unit | {shown} | slope | slope at the end |", "|---|---|" + "---|" * (len(found) + 2)]
    for unit, quantities in curves.items():
        for name, points in quantities.items():
            by_point = dict(points)
            values = " | ".join(f"{by_point[point]:.3g}" if point in by_point else "-" for point in found)
            positive = [(x, y) for x, y in points if y > (1e-6 if unit == "seconds" else 0.5)]
            both = ("-", "-")
            if len(positive) > 1:
                both = f"{slope(positive):.2f}", f"{slope(positive[-2:]):.2f}"
            lines.append(f"| {name} | {unit} | {values} | {both[0]} | {both[1]} |")
    return lines, curves


def draw(axis: str, curves: dict[str, dict[str, list[tuple[float, float]]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": axis, "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for panel, (unit, quantities) in zip(panels, curves.items(), strict=True):
        for name, points in quantities.items():
            drawn = [(x, y) for x, y in points if y > 0]
            if drawn:
                panel.plot(*zip(*drawn, strict=True), marker="o", markersize=3, linewidth=1, label=name)
        every = [x for points in quantities.values() for x, _ in points]
        low, high = min(every), max(every)
        bottom, top = panel.get_ylim()
        start = math.sqrt(max(bottom, 1e-6) * top)
        panel.plot((low, high), (start, start * high / low), color="grey", linestyle=":", label="linear")
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="processor seconds" if unit == "seconds" else unit)
        panel.set_ylim(max(min((y for p in quantities.values() for _, y in p if y > 0), default=1), 1e-6) / 2, 2 * top)
        panel.grid(True, which="major", alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"of {', '.join(AXES)}")
    parser.add_argument("--kept", action="store_true", help="measure nothing more")
    asked = parser.parse_args()
    if unknown := {*asked.axes} - {*AXES}:
        parser.error(f"no axis: {', '.join(unknown)}")
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today()
    results = Path(__file__).parent / "results"
    parts = []
    with Others() as others:
        for axis in asked.axes or AXES:
            found = measured(axis, asked.work, asked.kept)
            lines, curves = table(found)
            picture = results / f"scaling-{axis}_cpu_{today}.svg"
            draw(axis, curves, picture)
            about = (AXES[axis].measure.__doc__ or "").strip()
            parts += [f"## {axis.capitalize()}", "", about, "", f"![{axis}]({picture.name})", "", *lines, ""]
    out = results / f"scaling_cpu_{today}.md"
    out.write_text(
        "\n".join(
            [
                f"# How time and memory grow, {today}",
                "",
                f"`python -m benchmarks.scaling WORK {' '.join(asked.axes)}`".replace(" `", "`"),
                "",
                (__doc__ or "").split("\n\n")[2].replace("\n", " "),
                "",
                f"{cells.machine()}; commit of the package {cells.commit()}; other processes had {others.share or 0:.0%} of the cores.",
                "",
                *parts,
            ]
        ),
        encoding="utf-8",
    )
    print(f"written: {out}")


if __name__ == "__main__":
    main()
