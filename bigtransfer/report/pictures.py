"""The pictures of a report: thumbnails that travel inside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bigtransfer.catalog import InputSpec
from bigtransfer.data import ImageSet
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.evals.record import Prediction
from bigtransfer.predictor import Predictor

THUMBNAIL = 192
"""Longest side of a picture, px."""


LARGE = 480
"""The same where there is more to see in it."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture to show."""

    source: str
    """The picture itself, as a data: address."""
    tiny: bool
    """It has so few pixels that they are to be shown as they are; JPEG and smooth enlargement would blur them beyond recognition."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Many tiny square pictures as one."""

    source: str
    """As a data: address."""
    columns: int
    rows: int


class Pictures:
    """Thumbnails by image name.

    sets: where the images are. predictor: the model, to explain its answers. late: asked before each picture that is not among the first
    needed, whether there is no time for more.
    """

    def __init__(
        self,
        sets: Sequence[ImageSet] = (),
        predictor: Predictor | None = None,
        late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._places = {images.name(i): (images, i) for images in sets for i in range(len(images))}
        self._predictor = predictor
        self.late = late

    def get(self, name: str) -> Thumbnail | None:
        """The picture of that name; None if it cannot be had."""
        if name not in self._places:
            return None
        return picture(*self._places[name])

    def large(self, name: str) -> Thumbnail | None:
        """The same, large enough for boxes in it."""
        if name not in self._places:
            return None
        return picture(*self._places[name], side=LARGE)

    def explained(self, name: str, answer: int, true: int, classes: int) -> Thumbnail | None:
        """The picture of that name with what speaks for the one class and against the other, of a model of so many classes; None if it
        cannot be had."""
        if (
            self._predictor is None
            or name not in self._places
            or self._predictor.card.num_classes != classes
            or self.late()
        ):
            return None
        images, i = self._places[name]
        try:
            seen = images.read(i, self._predictor.card.input)
            (explained,) = self._predictor.explain_prepared([seen], [answer], [true])
            return _encoded(explained.on(_small(images.read(i))), tiny=False)
        except (ImageError, ConfigError):
            return None

    def sheet(self, names: Sequence[str], side: int) -> Sheet | None:
        """The middles of those pictures as squares of `side` px, row by row, grey where one cannot be had; None if none can."""
        columns = max(1, math.isqrt(max(0, len(names) - 1)) + 1)
        rows = -(-len(names) // columns)
        canvas = np.full((max(1, rows) * side, columns * side, 3), 128, np.uint8)
        found = 0
        for k, name in enumerate(names):
            if name not in self._places or self.late():
                continue
            images, i = self._places[name]
            try:
                pixels = images.read(i, InputSpec(size=side, mode="aspect"))
            except ImageError:
                continue
            top, left = side * (k // columns), side * (k % columns)
            canvas[top : top + side, left : left + side] = (
                pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
            )
            found += 1
        if not found:
            return None
        data = io.BytesIO()
        Image.fromarray(canvas).save(data, "JPEG", quality=75)
        return Sheet(source=_address(data.getvalue(), "jpeg"), columns=columns, rows=rows)


def picture(images: ImageSet, i: int, side: int = THUMBNAIL) -> Thumbnail | None:
    """The picture of image `i` of a set, its longest side at most `side` px; None if it cannot be had."""
    try:
        pixels = images.read(i)
    except ImageError:
        return None
    return _encoded(pixels, tiny=max(pixels.shape[:2]) <= THUMBNAIL // 2, side=side)


def _small(pixels: np.ndarray) -> np.ndarray:
    """uint8 `(h, w, channels)` with `THUMBNAIL` px as its longest side, enlarged if need be."""
    scale = THUMBNAIL / max(pixels.shape[:2])
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3])
    shown = shown.resize([max(1, round(scale * side)) for side in shown.size])
    found = np.asarray(shown)
    return found[:, :, None] if found.ndim == 2 else found


def _encoded(pixels: np.ndarray, *, tiny: bool, side: int = THUMBNAIL) -> Thumbnail:
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    shown.thumbnail((side, side))
    data = io.BytesIO()
    shown.save(data, "PNG" if tiny else "JPEG", quality=80)
    return Thumbnail(source=_address(data.getvalue(), "png" if tiny else "jpeg"), tiny=tiny)


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An image of the evaluation, and what the model said about it."""

    name: str
    true: str
    answer: str
    """Name of the class that the model gave."""
    right: bool
    probability: float
    """Of the answer, 0 to 1."""
    picture: Thumbnail | None
    explained: Thumbnail | None = None
    """With what speaks for the answer and against the true class."""

    @classmethod
    def of(cls, row: Prediction, class_names: Sequence[str], pictures: Pictures, *, explained: bool = False) -> Answer:
        """The answer that an evaluation holds; explained, if that can be had."""
        return cls(
            name=row.name,
            true=class_names[row.true],
            answer=class_names[row.predicted],
            right=row.rank == 0,
            probability=row.probability,
            picture=pictures.get(row.name),
            explained=pictures.explained(row.name, row.predicted, row.true, len(class_names)) if explained else None,
        )
