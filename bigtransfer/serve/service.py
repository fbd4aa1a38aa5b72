"""The models that are served, and how much may be under way at a time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bigtransfer.config import ServeConfig, seconds
from bigtransfer.data import images
from bigtransfer.data.images import Pixels
from bigtransfer.detections import Found, ObjectFinder
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.limits import limits
from bigtransfer.predictor import Prediction, Predictor, told_apart
from bigtransfer.serve import log
from bigtransfer.serve.metrics import Metrics
from bigtransfer.serve.queue import Queue
from bigtransfer.serve.refusals import Refusal
from bigtransfer.serve.requests import Upload

if TYPE_CHECKING:
    from bigtransfer.evals.explanation import Explanation  # which loads torch

Answer = Prediction | Found

FAILED = "the model could not compute an answer"
"""What a client is told of an image that is sound and has no answer; the log knows more."""


class Model:
    """One model under its name. Ready once it has been loaded and has answered."""

    def __init__(self, name: str, load: Callable[[], Predictor | ObjectFinder]) -> None:
        self.name = name
        self.failing = False
        """Whether nothing of its last batch could be computed."""
        self._load = load
        self._predictor: Predictor | ObjectFinder | None = None
        self._queue: Queue[tuple[str, Any], Answer] | None = None

    @property
    def predictor(self) -> Predictor | ObjectFinder:
        """Refusal as long as it is loaded."""
        if self._predictor is None:
            raise Refusal(
                503, "loading", f"The model {self.name} is being loaded; ask again in a moment.", retry_after=2
            )
        return self._predictor

    @property
    def ready(self) -> bool:
        """Whether it has answered, and did so when it was last asked."""
        return self._queue is not None and not self.failing

    async def run(self, computing: ThreadPoolExecutor, metrics: Metrics, batch_size: int | None) -> None:
        """Load it and let it answer once; then answer what `answer` is asked, until cancelled."""
        predictor = await asyncio.get_running_loop().run_in_executor(computing, self._warm)
        self._queue = Queue(
            self._computed,
            size=batch_size or predictor.batch_size,
            executor=computing,
            watch=metrics.batches_of(self.name),
        )
        self._predictor = predictor
        metrics.follow_queue(self.name, self._queue.__len__)
        await self._queue.run()

    def _warm(self) -> Predictor | ObjectFinder:
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401 - with which images are resized sooner, to the same bytes, whatever computes the network
        predictor = self._load()
        size, channels = predictor.card.input.size, predictor.card.architecture.in_chans
        nothing = np.zeros((size, size, channels), np.uint8)
        if isinstance(predictor, ObjectFinder):
            predictor.answer([nothing], [(size, size)])
        else:
            predictor.answer([nothing], ["warm-up"])
        return predictor

    async def answer(self, upload: Upload, decoding: ThreadPoolExecutor, metrics: Metrics) -> Answer:
        """What is on one image, or why that cannot be said."""
        predictor = self.predictor
        if upload.error is not None:
            return self._unanswered(upload, upload.error, "unreadable", metrics)
        began = time.monotonic()
        try:
            pixels = await asyncio.get_running_loop().run_in_executor(
                decoding, predictor.prepare, upload.data, upload.name
            )
        except ImageError as error:
            return self._unanswered(upload, error.reason, "unreadable", metrics)
        metrics.decoding.labels(self.name).observe(time.monotonic() - began)
        assert self._queue is not None  # as soon as there is a predictor
        try:
            prediction = await self._queue.answer((upload.name, pixels))
        except Exception as error:
            log.error("model_failed", error, model=self.name)
            return self._unanswered(upload, FAILED, "failed", metrics)
        metrics.images.labels(self.name, "answered").inc()
        return prediction

    async def explained(
        self, upload: Upload, label: str | None, against: str | None, decoding: Executor, computing: Executor
    ) -> tuple[Explanation, bytes]:
        """Which parts of an image speak for a class (by default the most probable one; rather than for another), and a PNG that shows it.
        Refusal if the image cannot be read, the model has no such class, or cannot be explained."""
        predictor = self.predictor
        if isinstance(predictor, ObjectFinder):
            raise Refusal(422, "unexplained", f"{self.name} is a detector: its boxes say where it found what.")
        numbers = [None if each is None else [self._class(each)] for each in (label, against)]

        def explain(pixels: Pixels) -> Explanation:
            return predictor.explain_prepared([pixels], *numbers)[0]

        loop = asyncio.get_running_loop()
        try:
            if upload.error is not None:
                raise ImageError(upload.name, upload.error)
            pixels = await loop.run_in_executor(decoding, predictor.prepare, upload.data, upload.name)
            explanation = await loop.run_in_executor(computing, explain, pixels)
            return explanation, await loop.run_in_executor(decoding, _drawn, explanation, upload)
        except ImageError as error:
            raise Refusal(422, "unreadable", f"{upload.name}: {error.reason}.") from error
        except ConfigError as error:
            raise Refusal(422, "unexplained", str(error)) from error

    def _class(self, label: str) -> int:
        """The number of a class by its name, with its number where two have one."""
        classes = self.predictor.class_names
        names = told_apart(classes)
        if label in names:
            return names.index(label)
        same = [name for name, known in zip(names, classes, strict=True) if known == label]
        words = f"has several classes of that name: {', '.join(same)}" if same else f"has no class {label[:80]!r}"
        raise Refusal(422, "option", f"The model {self.name} {words}.")

    def _computed(self, items: Sequence[tuple[str, Any]]) -> Sequence[Answer]:
        predictor = self.predictor
        answer = predictor.found if isinstance(predictor, ObjectFinder) else predictor.answer
        try:
            answers = answer([prepared for _, prepared in items], [name for name, _ in items])
        except BaseException:
            self.failing = True
            raise
        self.failing = False
        return answers

    def _unanswered(self, upload: Upload, why: str, outcome: str, metrics: Metrics) -> Answer:
        metrics.images.labels(self.name, outcome).inc()
        if isinstance(self.predictor, ObjectFinder):
            return self.predictor.unanswered(upload.name, why)
        return Prediction(upload.name, self.predictor.class_names, None, error=why)


def _drawn(explanation: Explanation, upload: Upload) -> bytes:
    """A PNG of the image, no side longer than `_DRAWN`, with the explanation on it."""
    with images.memory_held():
        pixels = images.decode(upload.data, upload.name, 3, (_DRAWN, _DRAWN))
    picture = Image.fromarray(pixels)
    picture.thumbnail((_DRAWN, _DRAWN))
    file = io.BytesIO()
    Image.fromarray(explanation.on(np.asarray(picture))).save(file, "PNG")
    return file.getvalue()


_DRAWN = 448


class Service:
    """All models; one computes at a time, however many there are, and images are decoded by as many threads as there are cores."""

    def __init__(self, config: ServeConfig, models: Sequence[Model]) -> None:
        self.config = config
        self.models = {model.name: model for model in models}
        self.metrics = Metrics()
        self.failure: BaseException | None = None
        """Why a model could not be loaded."""
        self._images = self._bytes = 0
        self._computing = ThreadPoolExecutor(1, "compute")
        self._decoding = ThreadPoolExecutor(os.cpu_count(), "decode")
        self.metrics.follow(lambda: self.ready, lambda: self._images)
        self._seconds = 0.1
        """That an image took lately, in the mean of many."""

    @property
    def ready(self) -> bool:
        """Whether every model is."""
        return all(model.ready for model in self.models.values())

    def model(self, name: str | None) -> Model:
        """The model of that name, or the first; Refusal if there is none."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refusal(
                404, "no_such_model", f"There is no model {name[:80]!r} here; there are {', '.join(self.models)}."
            )
        return self.models[name]

    @contextlib.asynccontextmanager
    async def running(self, failed: Callable[[], None]) -> AsyncIterator[None]:
        """Within, models are loaded and answer. failed: called when one cannot be loaded, with `failure` set."""

        async def run(model: Model) -> None:
            try:
                await model.run(self._computing, self.metrics, self.config.batch_size)
            except Exception as error:
                self.failure = error
                failed()

        began = time.monotonic()
        tasks = [asyncio.create_task(run(model)) for model in self.models.values()]
        tasks.append(asyncio.create_task(self._announced(began)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._decoding.shutdown(wait=False, cancel_futures=True)
            self._computing.shutdown(wait=False, cancel_futures=True)

    async def _announced(self, began: float) -> None:
        while not self.ready:
            await asyncio.sleep(0.02)
        log.event("ready", models=list(self.models), seconds=round(time.monotonic() - began, 3))

    async def answers(self, model: Model, uploads: Sequence[Upload]) -> list[Answer]:
        """What is on the images, in their order. Refusal if too many are under way, or the answers take too long."""
        with self._under_way(len(uploads)):
            began = time.monotonic()
            allowed = seconds(self.config.timeout)
            try:
                async with asyncio.timeout(allowed):
                    found = await asyncio.gather(
                        *(model.answer(each, self._decoding, self.metrics) for each in uploads)
                    )
            except TimeoutError:
                raise self.late() from None
            # Of an image among those under way, for how long to come back later.
            self._seconds += 0.05 * ((time.monotonic() - began) / max(1, self._images) - self._seconds)
            return found

    async def explained(
        self, model: Model, upload: Upload, label: str | None, against: str | None
    ) -> tuple[Explanation, bytes]:
        """As `Model.explained`; it waits for its turn among the batches. Refusal, too, if too many images are under way, or it takes too
        long."""
        with self._under_way(1):
            try:
                async with asyncio.timeout(seconds(self.config.timeout)):
                    return await model.explained(upload, label, against, self._decoding, self._computing)
            except TimeoutError:
                raise self.late() from None

    def late(self) -> Refusal:
        """The refusal of what could not be answered in time."""
        return Refusal(
            503,
            "too_slow",
            f"No answer within {self.config.timeout}: the server is busy.",
            retry_after=self._patience(),
        )

    def check_room(self, more: int = 1) -> None:
        """Refusal if that many more images would be too many."""
        if more > self.config.max_waiting:
            raise Refusal(413, "too_many_images", f"At most {self.config.max_waiting} images are under way at a time.")
        if self._images + more > self.config.max_waiting:
            raise Refusal(
                429,
                "busy",
                f"{self._images} images are under way already; ask again in a moment.",
                retry_after=self._patience(),
            )

    @contextlib.contextmanager
    def _under_way(self, more: int) -> Iterator[None]:
        self.check_room(more)
        self._images += more
        try:
            yield
        finally:
            self._images -= more

    def _patience(self) -> float:
        """Seconds until about half of what is under way will be done."""
        return min(60.0, self._images * self._seconds / 2)

    @contextlib.contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """Within, the function that is called with numbers of bytes before they are kept: it raises a Refusal if all requests together
        would have too many."""
        held = 0

        def take(more: int) -> None:
            nonlocal held
            if self._bytes + more > limits().requests_bytes:
                raise Refusal(
                    429, "busy", "Too much is being uploaded; ask again in a moment.", retry_after=self._patience()
                )
            held += more
            self._bytes += more

        try:
            yield take
        finally:
            self._bytes -= held


def named(given: Sequence[str]) -> dict[str, str]:
    """Name -> model, of what a user typed: NAME=MODEL, or a model that is named by its file or folder. ConfigError if two have one name."""
    models: dict[str, str] = {}
    for each in given:
        name, equals, model = each.partition("=")
        if not equals or os.path.exists(each) or not _plain(name):
            name, model = _name(each), each
        if not name or not model:
            raise ConfigError(f"{each!r} names no model; write MODEL or NAME=MODEL.")
        if name in models:
            raise ConfigError(
                f"Two models are named {name}: {models[name]} and {model}. Name one otherwise: NAME=MODEL."
            )
        models[name] = model
    return models


def _plain(name: str) -> bool:
    return bool(name) and all(character.isalnum() or character in "-_." for character in name)


def _name(model: str) -> str:
    path = os.path.normpath(model)
    name = os.path.basename(path)
    stem, ending = os.path.splitext(name)
    if ending in (".safetensors", ".npz", ".pth", ".onnx"):
        name = stem
        if name == "model":  # as run folders call theirs
            name = os.path.basename(os.path.dirname(os.path.abspath(path))) or name
    return name
