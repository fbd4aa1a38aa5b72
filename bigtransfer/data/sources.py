"""Labelled images with random access, wherever they lie: `ImageSet` over a store.

A store holds the encoded or raw images of one place (`Files`, `TarFiles`, `ArrowRows`, `Arrays`) and knows nothing of labels or
splits; an `ImageSet` is a choice of its rows with their labels. Both pickle small and open their files where they are used, so
that worker processes can have them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigtransfer.data import images
from bigtransfer.data.images import Pixels
from bigtransfer.errors import DataError, ImageError


class Strings(Sequence[str]):
    """Many strings in one block of bytes: cheap to pickle, and forked workers share the memory (a list's would be copied)."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return os.fsdecode(self._bytes[self._ends[i] : self._ends[i + 1]])


class Store(Protocol):
    """Images by row, 0..n-1."""

    def name(self, row: int) -> str:
        """The image's path or key, unique in the store."""
        ...

    def read(self, row: int, channels: int) -> Pixels:
        """uint8 (height, width, channels); ImageError."""
        ...

    def size(self, row: int) -> tuple[int, int]:
        """Height and width, px, without decoding; ImageError."""
        ...

    def data(self, row: int) -> bytes:
        """The bytes that make the image what it is (for finding identical ones); ImageError."""
        ...


class Files:
    """Image files, by their paths relative to one folder."""

    def __init__(self, root: str | os.PathLike[str], paths: Iterable[str]) -> None:
        self.root = Path(root)
        self._paths = Strings(paths)

    def name(self, row: int) -> str:
        return self._paths[row]

    def path(self, row: int) -> Path:
        """Where the file is."""
        return self.root / self._paths[row]

    def read(self, row: int, channels: int) -> Pixels:
        return images.decode(self.path(row), str(self.path(row)), channels)

    def size(self, row: int) -> tuple[int, int]:
        return images.size(self.path(row), str(self.path(row)))

    def data(self, row: int) -> bytes:
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise ImageError(str(self.path(row)), f"the file cannot be read ({error.strerror})") from error


class TarFiles:
    """Members of uncompressed tar files, read in place by their offsets."""

    def __init__(
        self,
        tars: Sequence[Path],
        tar: Iterable[int],
        offset: Iterable[int],
        length: Iterable[int],
        names: Iterable[str],
    ) -> None:
        self.tars = tuple(tars)
        self._tar, self._offset, self._length = (np.fromiter(values, np.int64) for values in (tar, offset, length))
        self._names = Strings(names)

    def name(self, row: int) -> str:
        return self._names[row]

    def read(self, row: int, channels: int) -> Pixels:
        return images.decode(self.data(row), self._place(row), channels)

    def size(self, row: int) -> tuple[int, int]:
        return images.size(self.data(row), self._place(row))

    def data(self, row: int) -> bytes:
        try:
            with open(self.tars[self._tar[row]], "rb", buffering=0) as file:
                file.seek(self._offset[row])
                return file.read(self._length[row])
        except OSError as error:
            raise ImageError(self._place(row), f"the file cannot be read ({error.strerror})") from error

    def _place(self, row: int) -> str:
        return f"{self.tars[self._tar[row]]}: {self.name(row)}"


class ArrowRows:
    """Encoded images in a column of Arrow files (streams, as Hugging Face `datasets` writes them), mapped into memory."""

    def __init__(self, files: Sequence[Path], column: str, names: Iterable[str], root: Path) -> None:
        self.files = tuple(files)
        self._column = column
        self._names = Strings(names)
        self._root = root
        self._rows: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def name(self, row: int) -> str:
        return self._names[row]

    def read(self, row: int, channels: int) -> Pixels:
        return images.decode(self.data(row), self._place(row), channels)

    def size(self, row: int) -> tuple[int, int]:
        return images.size(self.data(row), self._place(row))

    def data(self, row: int) -> bytes:
        if self._rows is None:
            import pyarrow

            columns = [arrow_table(file).column(self._column) for file in self.files]
            self._rows = pyarrow.chunked_array([chunk for column in columns for chunk in column.chunks])
        value = self._rows[row].as_py()
        if isinstance(value, dict):  # the form of an `Image` feature: the file's bytes, or where the file is
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is not None:
                try:
                    return (self._root / path).read_bytes()
                except OSError as error:
                    raise ImageError(self._place(row), f"{path} cannot be read ({error.strerror})") from error
            value = content
        if value is None:
            raise ImageError(self._place(row), "this row has no image")
        return value

    def _place(self, row: int) -> str:
        return f"{self._root}: {self.name(row)}"


def arrow_table(file: Path) -> Any:
    """The pyarrow table in an Arrow stream file, mapped into memory, not read."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        return pyarrow.ipc.open_stream(source).read_all()


class Arrays:
    """Images of one size as pixels, in `.npy` files of uint8 `(n, height, width, channels)`, mapped into memory."""

    def __init__(self, files: Sequence[Path], names: Iterable[str]) -> None:
        self.files = tuple(files)
        self._names = Strings(names)
        self._parts: list[np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}  # NumPy would pickle a mapped array with all its pixels

    def _pixels(self, row: int) -> Pixels:
        if self._parts is None:
            self._parts = [np.load(file, mmap_mode="r", allow_pickle=False) for file in self.files]
        for part in self._parts:
            if row < len(part):
                return np.array(part[row])
            row -= len(part)
        raise IndexError(row)

    def name(self, row: int) -> str:
        return self._names[row]

    def read(self, row: int, channels: int) -> Pixels:
        return images.with_channels(self._pixels(row), channels)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self._pixels(row).shape[:2]
        return height, width

    def data(self, row: int) -> bytes:
        return self._pixels(row).tobytes()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images with their labels; picklable."""

    store: Store
    rows: np.ndarray
    """int64 (n,): the images' rows in the store."""
    labels: np.ndarray | None
    """int64 (n,) in 0..len(class_names)-1; None: unlabelled."""
    class_names: tuple[str, ...]
    """By label; () if unlabelled."""
    channels: int = 3
    """Channels of the pixels that `read` gives: 3 (RGB) or 1 (grey)."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> Pixels:
        """Image `i`: uint8 `(height, width, channels)`, upright. Raises ImageError if it cannot be decoded."""
        return self.store.read(int(self.rows[i]), self.channels)

    def name(self, i: int) -> str:
        """The path of image `i` relative to the data set's folder, with forward slashes, or its key; the same on every machine."""
        return self.store.name(int(self.rows[i]))

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of image `i`, px, from its header. Raises ImageError."""
        return self.store.size(int(self.rows[i]))

    def data(self, i: int) -> bytes:
        """The bytes of image `i` as stored (a file's content, or raw pixels). Raises ImageError."""
        return self.store.data(int(self.rows[i]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at those indices, in that order, with the same class names."""
        indices = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[indices]
        return dataclasses.replace(self, rows=self.rows[indices], labels=labels)

    def class_counts(self) -> np.ndarray:
        """int64 (classes,): images of each class. The set must be labelled."""
        assert self.labels is not None
        return np.bincount(self.labels, minlength=len(self.class_names))


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; all share one tuple of class names."""

    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    """Remarks for the user, such as what was ignored."""


def native_size(images: ImageSet, sample: int = 64, seed: int = 0) -> tuple[int, int]:
    """Median height and median width in px of up to `sample` images, drawn with `seed`; decodes nothing.

    Images that cannot be opened are passed over; DataError if none of the drawn ones can.
    """
    drawn = np.random.default_rng(seed).permutation(len(images))[:sample]
    sizes = []
    reasons: list[ImageError] = []
    for i in drawn:
        try:
            sizes.append(images.size(int(i)))
        except ImageError as error:
            reasons.append(error)
    if not sizes:
        raise DataError(
            f"None of {len(drawn)} images looked at can be opened; the first: {reasons[0] if reasons else 'no images'}."
        )
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)
