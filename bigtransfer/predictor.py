"""The one inference path: `bit predict`, `bit evaluate`, the report and the Python API all go through `Predictor`."""

from __future__ import annotations

import dataclasses
import functools
import glob
import html
import itertools
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
from PIL import Image

from bigtransfer import backends, settings, terminal, web
from bigtransfer.backends import Backend, Choice, Precision, probable
from bigtransfer.catalog import DEFAULT_THRESHOLD, Decoder, InputSpec
from bigtransfer.data import images as image_ops
from bigtransfer.data.forms import open_images
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import BitError, ConfigError, ImageError, WeightsError
from bigtransfer.fetch import path_of
from bigtransfer.limits import limits

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bigtransfer.evals.explanation import Explanation
    from bigtransfer.model import Network

R = TypeVar("R")

_BATCH_PIXELS = 2**23
"""Input pixels computed at a time by default: 36 images of 480 px."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says about one image, or why the image cannot be read."""

    name: str
    """The image's path or given name; else "image 3" for the fourth."""
    class_names: tuple[str, ...]
    probabilities: np.ndarray | None
    """float32 `(classes,)`, sum 1, but of a multi-label model each by itself; None if the image cannot be read."""
    features: np.ndarray | None = None
    """float32 `(features,)`: the pooled features, if asked for."""
    error: str | None = None
    """Why the image cannot be read; None if it can."""
    thresholds: np.ndarray | None = None
    """Of a multi-label model, float32 `(classes,)`: the probabilities from which on the classes are given; None of others."""
    logits: np.ndarray | None = None
    """float32 `(classes,)`: what the probabilities are made of, if asked for."""

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes (or all, if fewer) with their probabilities; [] if the image cannot be read, or the model has no
        classes."""
        if self.probabilities is None:
            return []
        return [(self.class_names[i], float(self.probabilities[i])) for i in self._order(k)]

    def _order(self, k: int) -> list[int]:
        """The `k` most probable classes, of an image that can be read."""
        if not self.class_names:
            return []
        return np.argsort(-np.asarray(self.probabilities), kind="stable")[:k].tolist()

    @property
    def label(self) -> str | None:
        """The most probable class."""
        return next((label for label, _ in self.top(1)), None)

    @property
    def labels(self) -> list[str]:
        """All classes given: the most probable one; of a multi-label model those that reach their thresholds, the most probable first,
        which may be none."""
        if self.probabilities is None or self.thresholds is None:
            return [label for label, _ in self.top(1)]
        given = np.flatnonzero(self.probabilities >= self.thresholds)
        return [self.class_names[i] for i in given[np.argsort(-self.probabilities[given], kind="stable")]]

    @property
    def probability(self) -> float | None:
        """Its probability."""
        return next((probability for _, probability in self.top(1)), None)

    def record(self, k: int = 5, *, probabilities: bool = False) -> dict[str, Any]:
        """The answer as JSON says it: "image", and "label", "probability" and "top", the `k` most probable classes, or "error"; of a
        multi-label model also "labels". An entry of "top" whose name several classes have tells in "class" which of them it is, as
        `told_apart`. probabilities: also those of all classes, by name."""
        record: dict[str, Any] = {"image": self.name}
        if self.probabilities is None:
            return record | {"error": self.error}
        if self.thresholds is not None:
            record["labels"] = self.labels
        record |= {"label": self.label, "probability": self.probability}
        apart = told_apart(self.class_names)
        record["top"] = [
            {"label": label, "probability": probability} | ({} if apart[i] == label else {"class": apart[i]})
            for i, (label, probability) in zip(self._order(k), self.top(k), strict=True)
        ]
        if probabilities and self.class_names:
            record["probabilities"] = dict(zip(apart, self.probabilities.tolist(), strict=True))
        return record

    def __repr__(self) -> str:
        answer = (
            f"error={self.error!r}" if self.error else f"label={self.label!r}, probability={self.probability or 0:.3f}"
        )
        return f"Prediction(name={self.name!r}, {answer})"


class Predictions(list[Prediction]):
    """What a model says about several images: a list, and a table."""

    def __getitem__(self, index: Any) -> Any:
        """Of a slice Predictions again, so that the first of many are a table too."""
        found = super().__getitem__(index)
        return Predictions(found) if isinstance(index, slice) else found

    def to_pandas(self, top: int = 1) -> Any:
        """A pandas DataFrame with a row for each image: "image", "label" and "probability" (and "label_2", "probability_2", ... up to `top`
        classes), "error", and of a multi-label model "labels", a tuple. ConfigError if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_pandas needs the package pandas: pip install pandas") from error
        several = any(one.thresholds is not None for one in self)
        rows = []
        for one in self:
            found = one.top(top) + [(None, None)] * top
            row: dict[str, Any] = {"image": one.name, **({"labels": tuple(one.labels)} if several else {})}
            for k in range(top):
                (
                    row["label" if k == 0 else f"label_{k + 1}"],
                    row["probability" if k == 0 else f"probability_{k + 1}"],
                ) = found[k]
            rows.append(row | {"error": one.error})
        names = ["image", *(["labels"] if several else []), "label", "probability"]
        names += [f"{name}_{k}" for k in range(2, top + 1) for name in ("label", "probability")]
        return pandas.DataFrame(rows, columns=[*names, "error"])

    def _repr_html_(self) -> str:
        """The first of them as a table, for notebooks."""
        rows = [
            f"<tr><td>{_shown(one.name)}</td><td>{_shown(', '.join(one.labels) if one.error is None else one.error)}</td>"
            f"<td>{'' if one.probability is None else f'{one.probability:.1%}'}</td></tr>"
            for one in self[:_ROWS]
        ]
        more = f"<p>and {len(self) - _ROWS:,} more</p>" if len(self) > _ROWS else ""
        return f"<table><tr><th>image</th><th>class</th><th>probability</th></tr>{''.join(rows)}</table>{more}"


_ROWS = 20
"""Rows of the table in a notebook."""


def _shown(text: str) -> str:
    return html.escape(terminal.line(text))


class Predictor:
    """A model ready to be used: the input prepared as the model's card says, and the network computed by a backend.

    model: a network, or a backend that has one. backend, device, precision: see `load`; nothing is chosen anew for a backend that is given.
    decoder: another than the card says (`InputSpec.decoder`).
    """

    def __init__(
        self,
        model: Network | Backend,
        *,
        device: str | None = None,
        precision: Precision = "auto",
        decoder: Decoder | None = None,
        backend: Choice = "auto",
        batch: int | None = None,
    ) -> None:
        self._backend = (
            model if isinstance(model, Backend) else backends.of_network(model, backend, device, precision, batch)
        )
        card = self._backend.card
        if decoder is not None:
            card = dataclasses.replace(card, input=dataclasses.replace(card.input, decoder=decoder))
        self.card = card
        self.class_names = card.class_names or tuple(map(str, range(card.num_classes)))
        """By class number; the numbers themselves if the model knows no names."""
        self.batch_size = max(1, min(256, _BATCH_PIXELS // card.input.size**2))
        """Images computed at a time unless the caller says otherwise."""
        self.thresholds: np.ndarray | None = None
        """Of a multi-label model: see `Prediction.thresholds`."""
        if card.multi_label:
            self.thresholds = np.full(card.num_classes, DEFAULT_THRESHOLD, np.float32)
            if card.thresholds is not None:
                self.thresholds[:] = card.thresholds

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        precision: Precision = "auto",
        decoder: Decoder | None = None,
        backend: Choice = "auto",
        batch: int | None = None,
    ) -> Predictor:
        """`model`: a file that `bit convert` exported, or whatever `weights.load` takes: a model file, a run folder, a name from
        `bit models` (downloaded if need be).

        device: "cpu", "cuda", "cuda:1", "mps"; None takes the fastest one present, of other backends than torch the CPU. precision: "fp32",
        "bf16", or "auto": bfloat16 where the backend has it and the hardware multiplies it natively, else float32. backend: what computes;
        "auto" follows the form, "fastest" what was measured here for `batch` images at a time (`backends.opened`).
        """
        return cls(backends.opened(model, backend, device, precision, batch), decoder=decoder)

    def with_classes(self) -> Predictor:
        """This; ConfigError for a model without classes, which has nothing to say of an image but its features."""
        if not self.class_names:
            raise ConfigError(
                f"{self.card.name} has no classes: it gives the features of an image (--features FILE.npz, or with --out FOLDER/ --vectors "
                "features). To have it tell classes apart: bit finetune DATA --model FILE"
            )
        return self

    @property
    def backend(self) -> backends.Name:
        """What computes."""
        return self._backend.name

    @property
    def device(self) -> str:
        """Where, as torch calls devices."""
        return self._backend.device

    @property
    def precision(self) -> str:
        """In which number format: "fp32" or "bf16", or of a file that was exported so "int8"."""
        return self._backend.precision

    @property
    def dtype(self) -> torch.dtype:
        """The same, as torch calls it."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that compute: with standardized kernels, in the type of the computation. ConfigError for another backend than
        torch."""
        return self._model.state_dict()

    @property
    def _model(self) -> Network:
        """What torch computes; ConfigError for another backend."""
        from bigtransfer.backends.by_torch import Torch

        if not isinstance(self._backend, Torch):
            raise ConfigError(
                f"Only torch has the network itself, which this needs; this model is computed by {self.backend}. Give the model file."
            )
        return self._backend.network

    def logits(self, images: Tensor) -> Tensor:
        """uint8 `(n, channels, size, size)` -> float32 `(n, classes)` on the CPU."""
        return self._tensors(images)[1]

    def pooled(self, images: Tensor) -> Tensor:
        """uint8 `(n, channels, size, size)` -> pooled features float32 `(n, features)` on the CPU."""
        return self._tensors(images)[0]

    def _tensors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        import torch  # which who has tensors has loaded

        pooled, logits = self._backend.run(images.cpu().numpy())
        return torch.from_numpy(pooled), torch.from_numpy(logits)

    def features(
        self, images: Any, *, batch_size: int | None = None, value_range: tuple[float, float] | None = None
    ) -> np.ndarray:
        """Pooled features float32 `(n, features)` of images in any form that `predict` takes. Unlike there, an image that
        cannot be read raises ImageError, for a row must not go missing."""
        rows = []
        for prediction in self.stream(images, features=True, batch_size=batch_size, value_range=value_range):
            if prediction.error is not None:
                raise ImageError(prediction.name, prediction.error)
            rows.append(prediction.features)
        return np.stack(rows) if rows else np.empty((0, self.card.architecture.num_features), np.float32)

    def predict(
        self, images: Any, *, batch_size: int | None = None, value_range: tuple[float, float] | None = None
    ) -> Predictions:
        """One prediction per image, in order.

        images: one image or an iterable of them, each a path; a folder (all images below it), a pattern such as "photos/*.jpg" or an
        address (http, https); the bytes of a file, or a file object opened for reading bytes; a Pillow image; an array `(h, w)` or
        `(h, w, channels)`; a tensor `(channels, h, w)` or `(h, w)`; or a function that returns one of these (called from a thread). Also
        many in one: an array `(n, h, w, channels)` or `(n, h, w)`, a tensor `(n, channels, h, w)`. 2 channels are grey and alpha, 4 are
        RGB and alpha. A pair (name, image) names it. Also an `ImageSet`, as `data.open_dataset` gives them.
        value_range: the values of arrays and tensors that stand for black and white, such as (0, 1): needed unless they are uint8;
        values beyond are taken for the nearer of the two.
        One that cannot be read gives a `Prediction` with an `error`; the others go on. ConfigError for what is no image, and for arrays
        of `(channels, h, w)`, which could be grey images as well.
        """
        return Predictions(self.stream(images, batch_size=batch_size, value_range=value_range))

    def stream(
        self,
        images: Any,
        *,
        features: bool = False,
        logits: bool = False,
        batch_size: int | None = None,
        value_range: tuple[float, float] | None = None,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        """`predict` for any number of images: yields as it goes, and decodes the next batch while one is computed.

        features, logits: also fill in those of `Prediction`. workers: decoding threads; None: one for each core.
        """
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError(f"value_range must be the values of black and white, the lower first, not {value_range}.")
        prepare = functools.partial(self.prepare, value_range=value_range)
        for batch in in_batches(images, prepare, batch_size or self.batch_size, workers):
            yield from self._predict_batch(batch, features, logits)

    def explain(
        self,
        image: Any,
        label: str | None = None,
        against: str | None = None,
        *,
        value_range: tuple[float, float] | None = None,
    ) -> Explanation:
        """Which parts of one image, in any form that `predict` takes, speak for a class.

        label: the class; None: the most probable one. against: explain why it is rather `label` than this class; None: the class by itself.
        Raises ImageError if the image cannot be read, ConfigError for a class that the model does not know.
        """
        found = list(itertools.islice(itertools.chain.from_iterable(map(expanded, _as_iterable(image))), 2))
        if len(found) != 1:
            raise ConfigError(f"One image is explained at a time, not {'none' if not found else 'several'}.")
        name, source = _named(found[0], 0)
        pixels = [self.prepare(source, name, value_range)]
        number = None if label is None else self._class(label)
        other = None if against is None else [self._class(against)]
        return self.explain_prepared(pixels, None if number is None else [number], other)[0]

    def explain_prepared(
        self,
        images: Sequence[image_ops.Pixels],
        classes: Sequence[int] | None = None,
        against: Sequence[int] | None = None,
    ) -> list[Explanation]:
        """The same of images that `prepare` made, and of classes by their numbers, one for each image; [] of none. It takes the memory of a
        training's forward pass: give a few images at a time."""
        if not len(images):
            return []
        import torch

        from bigtransfer.evals.explanation import Explanation, explain
        from bigtransfer.feed.augment import normalize

        network = self._model
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        numbers = self.logits(pixels).argmax(1).tolist() if classes is None else list(classes)
        batch = normalize(pixels.to(self.device), self.dtype)
        other = None if against is None else torch.tensor(against, device=self.device)
        maps, logits, exact = explain(network, batch, torch.tensor(numbers, device=self.device), other)
        return [
            Explanation(
                map=of_one.numpy(),
                logit=float(logits[i]),
                exact=exact,
                label=self.class_names[numbers[i]],
                against=None if against is None else self.class_names[against[i]],
                input=self.card.input,
            )
            for i, of_one in enumerate(maps)
        ]

    def _class(self, name: str) -> int:
        if name not in self.class_names:
            raise ConfigError(f"The model knows no class {name!r}.")
        return self.class_names.index(name)

    def prepare(
        self, image: Any, name: str = "image", value_range: tuple[float, float] | None = None
    ) -> image_ops.Pixels:
        """One image as the network sees it: uint8 `(size, size, channels)`; from any thread, also from several at a time.

        image: in a form that `predict` takes, except those that stand for many. ImageError, with `name`, if it cannot be read.
        """
        try:
            with image_ops.memory_held():
                return pixels_of(image, name, self.card.architecture.in_chans, self.card.input, value_range)
        except BitError:
            raise
        except Exception as error:  # whatever it is, it must not cost the other images their answers
            raise ImageError(name, f"it cannot be prepared ({type(error).__name__}: {error})") from error

    def answer(
        self,
        images: Sequence[image_ops.Pixels],
        names: Sequence[str],
        *,
        features: bool = False,
        logits: bool = False,
    ) -> list[Prediction]:
        """Predictions of images that `prepare` made, in their order, computed all at once; [] of none.

        features, logits: also fill in those of `Prediction`. WeightsError if an answer is not of finite numbers.
        """
        if not len(images):
            return []
        pooled, scores = self._backend.run(np.stack(images).transpose(0, 3, 1, 2))
        if not np.isfinite(scores).all():
            raise WeightsError(
                f"The answers of {self.card.name} are not finite numbers: its weights are damaged, or its training diverged."
            )
        rows = zip(names, probable(scores, several=self.thresholds is not None), pooled, scores, strict=True)
        return [
            Prediction(
                name,
                self.class_names,
                probabilities,
                row if features else None,
                thresholds=self.thresholds,
                logits=own if logits else None,
            )
            for name, probabilities, row, own in rows
        ]

    def _predict_batch(
        self, batch: list[tuple[str, Future[np.ndarray]]], features: bool, logits: bool
    ) -> Iterator[Prediction]:
        ready: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for i, (_, future) in enumerate(batch):
            try:
                ready.append(future.result())
            except ImageError as error:
                errors[i] = error.reason
        names = [name for i, (name, _) in enumerate(batch) if i not in errors]
        answers = iter(self.answer(ready, names, features=features, logits=logits))
        for i, (name, _) in enumerate(batch):
            yield Prediction(name, self.class_names, None, error=errors[i]) if i in errors else next(answers)


def in_batches(
    images: Any, prepare: Callable[[Any, str], R], size: int, workers: int | None = None
) -> Iterator[list[tuple[str, Future[R]]]]:
    """The images in any form that `Predictor.predict` takes, up to `size` at a time: their names, and what becomes of
    `prepare(image, name)` in threads, of which there is one for each core unless `workers` says otherwise. The next batches are prepared
    while one is used."""
    sources = enumerate(itertools.chain.from_iterable(map(expanded, _as_iterable(images))))
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:

        def submit() -> list[tuple[str, Future[R]]]:
            chunk = [_named(source, i) for i, source in itertools.islice(sources, size)]
            return [(name, pool.submit(prepare, source, name)) for name, source in chunk]

        waiting = deque([submit(), submit()])
        while current := waiting.popleft():
            yield current
            waiting.append(submit())


@functools.lru_cache(maxsize=8)
def told_apart(class_names: tuple[str, ...]) -> list[str]:
    """The class names with their numbers where two are equal (ImageNet has two cranes)."""
    count = Counter(class_names)
    return [f"{name} #{i}" if count[name] > 1 else name for i, name in enumerate(class_names)]


def _is_tensor(value: Any) -> TypeGuard[Any]:
    """Without loading torch: who has a tensor has it loaded."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


@dataclass(frozen=True)
class _Of:
    """An image of a set, which knows how to read it as a model sees it."""

    images: ImageSet
    index: int


def expanded(source: Any) -> Iterable[Any]:
    """The images that one of the things given to `Predictor.predict` stands for: many for a set, a folder or a pattern, else itself."""
    if isinstance(source, ImageSet):
        return ((source.name(i), _Of(source, i)) for i in range(len(source)))
    if not isinstance(source, (str, os.PathLike)):
        return (source,)
    place = os.fspath(source)
    if isinstance(place, str) and web.is_web(place):
        return ((place, functools.partial(fetch, place)),)
    if isinstance(place, str) and path_of(place) != place:
        place = source = path_of(place)
    if os.path.isdir(place) or (glob.has_magic(place) and not os.path.exists(place)):
        images = open_images([os.fsdecode(place)])
        return map(images.name, range(len(images)))
    return (source,)


def fetch(address: str) -> bytes:
    """The bytes behind an http or https address, at most `limits.image_download_bytes`. Raises ImageError if they cannot be had."""
    if settings.offline():
        raise ImageError(address, "BIT_OFFLINE forbids to fetch it")
    try:
        return web.read(address, limits().image_download_bytes)
    except web.WebError as error:
        raise ImageError(address, error.reason) from error


def _as_iterable(images: Any) -> Iterable[Any]:
    """The images one by one, whether one was given or many."""
    if isinstance(images, np.ndarray) or _is_tensor(images):
        if images.ndim < 2 or images.ndim > 4:
            raise ConfigError(f"Images have 2 or 3 axes, and batches of them 4; {images.ndim} were given.")
        if images.ndim == 4:
            return images
        # Of three axes the last of an array, and the first of a tensor, are channels, unless there are too many of them.
        if _is_tensor(images) or images.ndim == 2 or images.shape[2] <= _MOST_CHANNELS:
            return (images,)
        return (images,) if images.shape[0] <= _MOST_CHANNELS else images
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    if isinstance(images, (*one, ImageSet)) or callable(images) or hasattr(images, "read") or _is_pair(images):
        return (images,)
    if not isinstance(images, Iterable):
        raise ConfigError(f"{type(images).__name__} is neither an image nor several of them.")
    return images


_MOST_CHANNELS = 4


def _is_pair(source: Any) -> bool:
    """A name and an image; two paths are two images."""
    pair = isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], str)
    return pair and not isinstance(source[1], (str, os.PathLike))


def _named(source: Any, position: int) -> tuple[str, Any]:
    """The name of an image and the image."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], str):
        return source
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source), source
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    return name if isinstance(name, str) and name else f"image {position}", source


def pixels_of(
    source: Any, name: str, channels: int, spec: InputSpec | None, value_range: tuple[float, float] | None = None
) -> image_ops.Pixels:
    """uint8 `(spec.size, spec.size, channels)`, or without `spec` of its own size, of an image in any of the forms that `Predictor.predict`
    takes. Raises ImageError, and whatever decoders raise."""
    if isinstance(source, _Of):
        try:
            pixels = source.images.read(source.index, spec)
        except ImageError as error:
            raise ImageError(name, error.reason) from error
        return image_ops.with_channels(pixels, channels)
    if callable(source) and not hasattr(source, "read"):
        source = source()
    if hasattr(source, "read"):
        source = _content(source, name)
    if isinstance(source, (str, os.PathLike)):
        return image_ops.prepared(os.fsdecode(source), name, channels, spec)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return image_ops.prepared(bytes(source), name, channels, spec)
    if _is_tensor(source):
        if source.ndim == 3:
            source = source.permute(1, 2, 0)
        source = (
            (source.float() if source.dtype.itemsize == 2 and source.is_floating_point() else source)
            .detach()
            .cpu()
            .numpy()
        )
    if isinstance(source, np.ndarray):
        source = _bytes_of(source, name, value_range)
        if source.ndim == 3 and source.shape[2] == channels:
            return image_ops.prepare(np.ascontiguousarray(source), spec)
        if source.ndim == 3 and source.shape[2] == 1:
            source = source[:, :, 0]
        source = Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, Image.Image):
        return image_ops.prepare(image_ops.from_pillow(source, name, channels), spec)
    raise ConfigError(
        f"{name}: {type(source).__name__} is no image; give a path, bytes, a file object, a Pillow image, an array or a tensor."
    )


def _content(file: Any, name: str) -> bytes:
    """The rest of a file object, at most as many bytes as an image may have."""
    at_most = limits().image_bytes
    data = file.read(at_most + 1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ConfigError(f'{name}: the file is opened as text; open it with mode "rb".')
    if len(data) > at_most:
        raise ImageError(
            name, f"it has more than {at_most:,} bytes; if it is meant, raise the limit: --limits image_bytes=N"
        )
    return bytes(data)


def _bytes_of(array: np.ndarray, name: str, value_range: tuple[float, float] | None) -> np.ndarray:
    """The array as uint8 (h, w) or (h, w, c), its values scaled from their range to 0..255."""
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > _MOST_CHANNELS):
        hint = ""
        if array.ndim == 3 and array.shape[0] <= _MOST_CHANNELS:
            hint = " If its channels come first, put them last (numpy.moveaxis(image, 0, -1)); grey images are given as a list."
        raise ConfigError(
            f"{name}: expected an array (h, w) or (h, w, channels) with up to {_MOST_CHANNELS} channels, or a tensor (channels, h, w), "
            f"got shape {array.shape}.{hint}"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "fiu" or value_range is None:
        raise ConfigError(
            f"{name}: its values are {array.dtype}, not uint8. Say which of them stand for black and white, for example "
            "predict(images, value_range=(0, 1))."
        )
    low, high = value_range
    scaled = (array.astype(np.float64) - low) * (255 / (high - low))
    if np.isnan(scaled).any():
        raise ImageError(name, "some of its values are no numbers (NaN)")
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)
