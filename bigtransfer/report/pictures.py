"""The pictures of a report: thumbnails that travel inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from bigtransfer.data import ImageSet
from bigtransfer.errors import ImageError
from bigtransfer.evals.record import Prediction

THUMBNAIL = 192
"""Longest side of a picture, px."""


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture to show."""

    source: str
    """The picture itself, as a data: address."""
    tiny: bool
    """It has so few pixels that they are to be shown as they are; JPEG and smooth enlargement would blur them beyond recognition."""


class Pictures:
    """Thumbnails by image name."""

    def __init__(self, sets: Sequence[ImageSet] = ()) -> None:
        self._places = {images.name(i): (images, i) for images in sets for i in range(len(images))}

    def get(self, name: str) -> Thumbnail | None:
        """The picture of that name; None if it cannot be had."""
        if name not in self._places:
            return None
        return picture(*self._places[name])


def picture(images: ImageSet, i: int) -> Thumbnail | None:
    """The picture of image `i` of a set; None if it cannot be had."""
    try:
        pixels = images.read(i)
    except ImageError:
        return None
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    tiny = max(shown.size) <= THUMBNAIL // 2
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    shown.save(data, "PNG" if tiny else "JPEG", quality=80)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return Thumbnail(source=f"data:image/{'png' if tiny else 'jpeg'};base64,{encoded}", tiny=tiny)


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

    @classmethod
    def of(cls, row: Prediction, class_names: Sequence[str], pictures: Pictures) -> Answer:
        """The answer that an evaluation holds."""
        return cls(
            name=row.name,
            true=class_names[row.true],
            answer=class_names[row.predicted],
            right=row.rank == 0,
            probability=row.probability,
            picture=pictures.get(row.name),
        )
