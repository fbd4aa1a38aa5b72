"""`bit evaluate --suite`: published benchmarks, each by its protocol; what comes out is added to a file of results."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fnmatch
import functools
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigtransfer import catalog, fetch, outputs, settings, weights
from bigtransfer.bars import tqdm
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.config import EvaluateConfig, FinetuneConfig
from bigtransfer.data import ImageSet, Splits
from bigtransfer.errors import BitError, ConfigError, ImageError, UnreadableImages
from bigtransfer.feed.loader import eval_batches
from bigtransfer.jobs.finetune import finetune
from bigtransfer.jobs.plan import environment
from bigtransfer.predictor import Predictor
from bigtransfer.suites import results
from bigtransfer.suites.benchmark import MissingData, index_digest
from bigtransfer.suites.protocol import Bench, Measurement, Preparation
from bigtransfer.suites.registry import find
from bigtransfer.suites.results import Result
from bigtransfer.suites.suite import Suite, Task


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task."""

    suite: Suite
    task: Task
    results: tuple[Result, ...] = ()
    earlier: bool = False
    """Whether the results were in the file before: nothing was measured anew."""
    error: BitError | None = None
    """Why there are none: MissingData where the images are not here, else what was refused."""

    def __str__(self) -> str:
        return f"{self.suite.name}: {self.task.name}"


def evaluate(config: EvaluateConfig) -> int:
    """`bit evaluate --suite`: every task of the suites. Exit status 1 if one of them has no result: its images are not here, or are not
    what was published, or the model does not fit."""
    left: list[Outcome] = []
    for outcome in measured(config, progress=True):
        if outcome.error is not None:
            left.append(outcome)
            what = "not run" if isinstance(outcome.error, MissingData) else "refused"
            print(f"{outcome}: {what}. {outcome.error}", file=sys.stderr, flush=True)
        for one in outcome.results:
            before = f" (measured on {one.date[:10]})" if outcome.earlier else ""
            print(f"{outcome}: {described(one)}{before}", flush=True)
    file = config.results or results.DEFAULT_FILE
    if left:
        print(f"\n{len(left)} without a result, for the reasons above:", file=sys.stderr)
        print("\n".join(f"  {outcome}" for outcome in left), file=sys.stderr)
        print("The same command goes on with them, and repeats none that is measured.", file=sys.stderr)
    print(f"\nresults: {file}; beside what others published: bit results")
    return 1 if left else 0


def measured(config: EvaluateConfig, *, progress: bool = False) -> Iterator[Outcome]:
    """Run the tasks one after another; each one's results are in the file before the next begins. A task that is refused does not keep
    the others from being measured, and one whose result is in the file, of the same weights, images, protocol, seed and versions, is not
    measured again.

    Raises BitError only for what concerns all of them: the model, the file of results, names of suites and tasks.
    """
    tasks = [(suite, task) for suite in map(find, config.suite) for task in chosen(suite, config.task)]
    file = config.results or results.DEFAULT_FILE
    results.refuse(file)
    root = settings.benchmarks_folder() if config.root is None else Path(config.root)
    predictor = Predictor.load(
        config.model,
        device=config.device,
        precision=config.precision,
        decoder=config.decoder,
        backend="torch",  # whose tensors the results name
    )
    model = called(config.model, predictor)
    if model.endswith(_BY_NAME_ONLY):
        known = published_name(predictor.card)
        print(
            f"note: {config.model} bears the name of a published model, but nothing shows that it is that one: results call it {model}. "
            f"The published one: bit evaluate {known}",
            file=sys.stderr,
        )
    for suite, task in tasks:
        try:
            outcome = _outcome(suite, task, config, predictor, model, root, progress)
        except BitError as error:
            yield Outcome(suite=suite, task=task, error=error)
            continue
        if not outcome.earlier:
            results.append(file, outcome.results)
        yield outcome


def _outcome(
    suite: Suite, task: Task, config: EvaluateConfig, predictor: Predictor, model: str, root: Path, progress: bool
) -> Outcome:
    """One task measured, or found in the file of results."""
    started = time.perf_counter()
    parts = task.benchmark.open(root, task.protocol.needs)
    file = config.results or results.DEFAULT_FILE
    bench = Workbench(
        predictor,
        parts,
        model=config.model,
        name=task.benchmark.name,
        place=place(file, suite, task),
        seed=config.seed or 0,
        batch_size=config.batch_size,
        workers=config.workers,
        progress=progress,
    )
    if known := _known(file, suite, task, bench, model):
        return Outcome(suite=suite, task=task, results=known, earlier=True)
    try:
        numbers = task.protocol.measure(bench)
    except UnreadableImages as error:
        advice = "A benchmark is measured on all of its images: get these anew."
        raise UnreadableImages(error.images, error.total, advice) from error
    found = _results(suite, task, bench, model, numbers, time.perf_counter() - started)
    return Outcome(suite=suite, task=task, results=tuple(found))


def _known(file: str, suite: Suite, task: Task, bench: Workbench, model: str) -> tuple[Result, ...]:
    """The lines of a task's latest measurement in the file, if it was one of the same in everything that could change a number."""
    if not Path(file).exists():
        return ()
    same = {**_identity(suite, task, bench, model), "card_input": dataclasses.asdict(bench.card.input)}
    # As a file holds it: lists for tuples.
    same = json.loads(json.dumps(same))
    here = environment(bench.device)
    found = [
        one
        for one in results.read([file])
        if all(getattr(one, name) == value for name, value in same.items())
        and all(one.environment.get(name) == here[name] for name in ("bigtransfer", "torch"))
    ]
    last = max((one.date for one in found), default="")
    return tuple(one for one in found if one.date == last)


def place(results: str | os.PathLike[str], suite: Suite, task: Task) -> Path:
    """Beside a file of results, the folder of what a task's measurements with any model have to keep."""
    file = Path(results)
    return file.with_name(f"{file.stem}.runs") / suite.name / task.name.replace("/", "-")


def chosen(suite: Suite, wanted: Sequence[str]) -> list[Task]:
    """The suite's tasks whose names fit one of `wanted`; all, without its extra ones, if that is empty."""
    if not wanted:
        return list(suite.tasks)
    names = [task.name for task in (*suite.tasks, *suite.extra)]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--task {pattern}: {suite.name} has {', '.join(names)}.")
    return [suite.task(name) for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)]


class Workbench(Bench):
    """The model at work on the images."""

    def __init__(
        self,
        predictor: Predictor,
        parts: Mapping[str, ImageSet],
        *,
        seed: int,
        model: str = "",
        name: str = "",
        place: Path | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        progress: bool = False,
    ) -> None:
        """model: what the predictor was loaded from; name: of the images; place: where fine-tunings are kept. Only `finetuned` and `folder`
        need them."""
        self._model, self._name, self._place = model, name, place
        self._parent: Workbench | None = None
        self._run: Path | None = None
        self._predictor, self._batch_size, self._workers, self._progress = predictor, batch_size, workers, progress
        self.card, self.device = predictor.card, torch.device(predictor.device)
        self.seed, self.parts = seed, parts
        self.used: InputSpec | None = None
        """How images were last seen, by this model or what was made from it."""

    @property
    def predictor(self) -> Predictor:
        return self._predictor

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self._batches(images, preparation):
            yield self._predictor.logits(batch.images), batch.labels, batch.indices

    def features(self, images: ImageSet, preparation: Preparation) -> tuple[Tensor, Tensor]:
        spec = preparation.spec(self.card)
        content = repr((weights_digest(self._predictor), str(self._predictor.dtype), spec, index_digest(images)))
        content += hashlib.sha256(
            "\0".join(map(images.name, range(len(images)))).encode("utf-8", "surrogateescape")
        ).hexdigest()
        file = settings.cache_folder() / "features" / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"
        try:
            kept = load_file(file)["features"]
        except (OSError, SafetensorError, KeyError):
            kept = None
        if kept is None or len(kept) != len(images):
            rows = [self._predictor.pooled(batch.images) for batch in self._batches(images, preparation)]
            kept = torch.cat(rows)
            file.parent.mkdir(parents=True, exist_ok=True)
            with outputs.atomic_write(file) as new:
                save_file({"features": kept}, new)
        assert images.labels is not None
        self._see(spec)
        return kept, torch.from_numpy(np.asarray(images.labels).astype(np.int64))

    def folder(self) -> Path:
        assert self._place is not None
        return self._place / f"{weights_digest(self._predictor)[:12]}-{self.seed}"

    def finetuned(self, train: ImageSet, **settings: Any) -> Bench:
        seed = settings.pop("seed", self.seed)
        content = repr((sorted(settings.items()), seed, index_digest(train), str(self._predictor.dtype)))
        config = FinetuneConfig(
            data=self._name,
            model=self._model,
            out=str(self.folder() / hashlib.sha256(content.encode()).hexdigest()[:12]),
            seed=seed,
            device=str(self.device),
            precision="bf16" if self._predictor.dtype == torch.bfloat16 else "fp32",
            **settings,
        )
        # What a fine-tuning tells is not the suite's result.
        with contextlib.redirect_stdout(sys.stderr if self._progress else io.StringIO()):
            done = finetune(config, Splits(train))
        if done.stopped_by is not None:
            raise KeyboardInterrupt
        made = Workbench(
            Predictor.load(done.folder, device=config.device, precision=config.precision),
            self.parts,
            model=str(done.model),
            name=self._name,
            place=self.folder(),
            seed=self.seed,
            batch_size=self._batch_size,
            workers=self._workers,
            progress=self._progress,
        )
        made._parent, made._run = self, done.folder
        return made

    def forget(self) -> None:
        assert self._run is not None
        shutil.rmtree(self._run)

    def _see(self, spec: InputSpec) -> None:
        self.used = spec
        if self._parent is not None:
            self._parent._see(spec)

    def _batches(self, images: ImageSet, preparation: Preparation) -> Iterator[Any]:
        spec = preparation.spec(self.card)
        self._see(spec)
        size = self._batch_size or self._predictor.batch_size
        seen = np.zeros(len(images), dtype=bool)
        with tqdm(total=len(images), unit="img", disable=None if self._progress else True, leave=False) as bar:
            for batch in eval_batches(images, spec, size, workers=self._workers, skip_bad=True):
                seen[batch.indices.numpy()] = True
                yield batch
                bar.update(len(batch.labels))
        if not seen.all():
            raise UnreadableImages([_reason(images, int(i)) for i in np.flatnonzero(~seen)], len(images))


def _reason(images: ImageSet, index: int) -> ImageError:
    try:
        images.read(index)
    except ImageError as error:
        return error
    return ImageError(images.name(index), "it could not be read a moment ago")


@functools.lru_cache(maxsize=4)
def weights_digest(predictor: Predictor) -> str:
    """`weights.digest` of the tensors that compute, once for a model."""
    return weights.digest(predictor.state_dict())


def _identity(suite: Suite, task: Task, bench: Workbench, model: str) -> dict[str, Any]:
    """What a number rests on and is known before it is measured, by the fields of `Result`."""
    return {
        "suite": suite.name,
        "task": task.name,
        "benchmark": task.benchmark.name,
        "revision": task.benchmark.revision,
        "fingerprint": " ".join(index_digest(images) for images in bench.parts.values()),
        "protocol": task.protocol.name,
        "parameters": task.protocol.parameters(),
        "model": model,
        "weights": weights_digest(bench.predictor),
        "architecture": bench.card.architecture.name,
        "precision": str(bench.predictor.dtype).removeprefix("torch."),
        "seed": bench.seed,
    }


def _results(
    suite: Suite, task: Task, bench: Workbench, model: str, numbers: Sequence[Measurement], seconds: float
) -> list[Result]:
    seen = bench.used or bench.card.input
    here, now = environment(bench.device), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [
        Result(
            **_identity(suite, task, bench, model),
            metric=one.metric,
            value=one.value,
            interval=one.interval,
            images=one.images,
            note=one.note,
            drawn=list(one.drawn),
            input=dataclasses.asdict(seen),
            card_input=dataclasses.asdict(bench.card.input),
            seconds=seconds,
            environment=here,
            date=now,
        )
        for one in numbers
    ]


_BY_NAME_ONLY = " (by name only)"


def published_name(card: ModelCard) -> str | None:
    """The published model whose name, in any spelling, a card bears; None if it bears one of its own."""
    known = catalog.find(card.name.strip())
    return None if known is None else known.card.name


def called(asked: str, predictor: Predictor) -> str:
    """The model's name in results. That of a published model only for what was asked for by that name or address, or has the very
    weights of it that lie on this machine: a file can call itself anything and say that it comes from anywhere, and its numbers would
    stand beside the published ones."""
    record = catalog.meant(asked)
    if record is None:
        record = next((one for one in catalog.published().values() if asked in one.addresses), None)
    if record is not None:
        return record.card.name
    name = published_name(predictor.card)
    if name is None:
        return predictor.card.name
    here = catalog.get(name)
    if fetch.local(here) is not None and here.card.architecture == predictor.card.architecture:
        precision = "bf16" if predictor.dtype == torch.bfloat16 else "fp32"
        if weights_digest(Predictor.load(name, device="cpu", precision=precision)) == weights_digest(predictor):
            return name
    return f"{predictor.card.name}{_BY_NAME_ONLY}"


def described(result: Result) -> str:
    """One number as a line."""
    between = "" if result.interval is None else f" ({result.interval[0]:.2%} to {result.interval[1]:.2%})"
    return f"{result.metric} {result.value:.2%}{between}, {result.images:,} images{'; ' + result.note if result.note else ''}"
