"""Stores around stores: the same images under their published names, or a part of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigtransfer.catalog import InputSpec
from bigtransfer.data import images
from bigtransfer.data.images import Pixels
from bigtransfer.data.sources import Store, Strings
from bigtransfer.errors import ImageError


class _Around:
    """A store that passes everything on to another one."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def encoded(self) -> bool:
        return self._inner.encoded

    @property
    def runs(self) -> np.ndarray | None:
        return self._inner.runs

    @property
    def remote(self) -> bool:
        return self._inner.remote

    def name(self, row: int) -> str:
        return self._inner.name(row)

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        return self._inner.read(row, channels, spec)

    def size(self, row: int) -> tuple[int, int]:
        return self._inner.size(row)

    def data(self, row: int) -> bytes:
        return self._inner.data(row)

    def prefetch(self, rows: np.ndarray) -> None:
        self._inner.prefetch(rows)


class Renamed(_Around):
    """The images under other names."""

    def __init__(self, inner: Store, names: Sequence[str]) -> None:
        """names: by row of the inner store."""
        super().__init__(inner)
        self._names = Strings(names)

    def name(self, row: int) -> str:
        return self._names[row]


class Brighter(_Around):
    """The images with their pixels multiplied: black and white ones whose white was stored as 1."""

    encoded = False  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, inner: Store, factor: int) -> None:
        super().__init__(inner)
        self._factor = factor

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        pixels = self._inner.read(row, channels)
        if pixels.max(initial=0) > 255 // self._factor:
            raise ImageError(self.name(row), f"its pixels are more than {255 // self._factor}")
        return images.prepare(pixels * np.uint8(self._factor), spec)

    def data(self, row: int) -> Any:
        return self.read(row, 3).tobytes()


class Cropped(_Around):
    """Of each image what lies inside of its border, or of that a box."""

    encoded = False  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, inner: Store, border: int, boxes: np.ndarray | None = None) -> None:
        """border: px on every side that are no part of the photograph. boxes: int (rows, 4), x1, y1, x2, y2 in px of the stored image,
        border included, x2 and y2 exclusive; None: all within the border. Of a box without height or width one row or column is left."""
        super().__init__(inner)
        self._border, self._boxes = border, boxes

    def _part(self, row: int, height: int, width: int) -> tuple[slice, slice]:
        low, high = np.full(2, self._border), np.array([width, height]) - self._border
        if (high <= low).any():
            raise ImageError(self.name(row), f"it is no larger than its border of {self._border} px")
        if self._boxes is not None:
            first, last = self._boxes[row, :2], self._boxes[row, 2:]
            low = first.clip(low, high - 1)
            high = np.maximum(last.clip(low, high), low + 1)
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        pixels = self._inner.read(row, channels)
        return images.prepare(np.ascontiguousarray(pixels[self._part(row, *pixels.shape[:2])]), spec)

    def size(self, row: int) -> tuple[int, int]:
        rows, columns = self._part(row, *self._inner.size(row))
        return rows.stop - rows.start, columns.stop - columns.start

    def data(self, row: int) -> Any:
        return self.read(row, 3).tobytes()
