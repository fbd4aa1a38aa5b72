"""CIFAR-10 and CIFAR-100 as their authors publish them: records of bytes, or Python's pickles, which are read without running anything.

Layouts: https://www.cs.toronto.edu/~kriz/cifar.html. Both forms hold the same images in the same order, and their images have the same
names here ("train/00000", ...), so that they are one set.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bigtransfer import files
from bigtransfer.catalog import InputSpec
from bigtransfer.data import images
from bigtransfer.data.images import Pixels
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import DataError

SIDE = 32
_BYTES = 3 * SIDE * SIDE
"""Of an image: all its red values row by row, then green, then blue."""


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One of the two sets."""

    binary: Mapping[str, tuple[str, ...]]
    """Files of each part in the binary form."""
    pickled: Mapping[str, tuple[str, ...]]
    binary_names: str
    """File of the class names, one a line."""
    pickled_names: tuple[str, str]
    """File and key of the class names."""
    labels: str
    """Key of the labels in a pickle."""
    label_bytes: int
    """Before each image in the binary form; the last of them is the label."""


CIFAR10 = Edition(
    binary={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    pickled={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    binary_names="batches.meta.txt",
    pickled_names=("batches.meta", "label_names"),
    labels="labels",
    label_bytes=1,
)
CIFAR100 = Edition(
    binary={"train": ("train.bin",), "test": ("test.bin",)},
    pickled={"train": ("train",), "test": ("test",)},
    binary_names="fine_label_names.txt",
    pickled_names=("meta", "fine_label_names"),
    labels="fine_labels",
    label_bytes=2,
)


def parts(folder: Path, edition: Edition, names: tuple[str, ...]) -> dict[str, ImageSet]:
    """The parts that the folder holds, in either form; empty if it holds neither. names: of the classes, in their published order.

    Raises DataError naming the file that is damaged, or whose classes are not those.
    """
    binary = (folder / edition.binary["test"][0]).is_file()
    listed = edition.binary if binary else edition.pickled
    found = {}
    for part, members in listed.items():
        paths = tuple(folder / member for member in members)
        if not any(path.is_file() for path in paths):  # folders of images may bear these names
            continue
        _check_names(folder, edition, binary, names)
        store = Records(paths, edition, part, pickled=not binary)
        labels = store.labels()
        if len(labels) and int(labels.max()) >= len(names):
            raise DataError(f"{paths[0].parent}: label {int(labels.max())} among {len(names)} classes.")
        found[part] = ImageSet(store, range(len(labels)), labels, names)
    return found


def _check_names(folder: Path, edition: Edition, binary: bool, names: tuple[str, ...]) -> None:
    if binary:
        path = folder / edition.binary_names
        stated = tuple(_content(path).decode("utf-8", "replace").split())
    else:
        path = folder / edition.pickled_names[0]
        value = _loaded(path).get(edition.pickled_names[1])
        stated = tuple(map(str, value)) if isinstance(value, list) else ()
    for number, (one, known) in enumerate(zip(stated, names, strict=False)):
        if one != known:
            raise DataError(f"{path}: class {number} is called {one!r} there, but {known!r} as published.")
    if len(stated) != len(names):
        raise DataError(f"{path} names {len(stated)} classes, but {len(names)} were published.")


class Records:
    """The images of one part, read from its files when the first is asked for; pickled as their paths."""

    encoded = False
    runs = None
    remote = False

    def __init__(self, paths: tuple[Path, ...], edition: Edition, part: str, *, pickled: bool) -> None:
        self._paths, self._edition, self._pickled = paths, edition, pickled
        self._prefix = f"{part}/"
        self._read: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": None}

    def labels(self) -> np.ndarray:
        """int64 (n,)."""
        return self._content()[1]

    def _content(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (n, 3072) and labels."""
        if self._read is None:
            read = self._of_pickle if self._pickled else self._of_records
            found = [read(path) for path in self._paths]
            self._read = np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])
        return self._read

    def _of_records(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        content = np.frombuffer(_content(path), np.uint8)
        before = self._edition.label_bytes
        if len(content) % (before + _BYTES):
            raise DataError(
                f"{path} has {len(content):,} bytes, which is no whole number of records of {before + _BYTES:,}: it is damaged, or was not "
                "copied completely."
            )
        rows = content.reshape(-1, before + _BYTES)
        return rows[:, before:], rows[:, before - 1].astype(np.int64)

    def _of_pickle(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        content = _loaded(path)
        pixels, labels = content.get("data"), content.get(self._edition.labels)
        if not isinstance(pixels, _Array) or not isinstance(labels, list):
            raise DataError(f'{path} does not hold "data" and "{self._edition.labels}", as a file of CIFAR does.')
        rows = pixels.bytes_of(path)
        if not all(type(label) is int and 0 <= label < 256 for label in labels) or len(labels) != len(rows):
            raise DataError(f"{path}: {len(labels):,} labels for {len(rows):,} images, or labels that are no numbers.")
        return rows, np.asarray(labels, dtype=np.int64)

    def name(self, row: int) -> str:
        return f"{self._prefix}{row:05d}"

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        planes = self._content()[0][row].reshape(3, SIDE, SIDE)
        pixels = images.with_channels(np.ascontiguousarray(planes.transpose(1, 2, 0)), channels)
        return images.prepare(pixels, spec)

    def size(self, row: int) -> tuple[int, int]:
        return SIDE, SIDE

    def data(self, row: int) -> bytes:
        return self._content()[0][row].tobytes()

    def prefetch(self, rows: np.ndarray) -> None:
        pass


def _content(path: Path) -> bytes:
    try:
        return files.read(path, "table_bytes")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


# --- Pickles. What they may name is a NumPy array, of which only bytes, shape and type are kept; nothing they name is called.


class _Array:
    """What a pickle says of a NumPy array."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_of(self, path: Path) -> np.ndarray:
        """Its content as uint8 (n, 3072); DataError if it is anything else."""
        match self.state:
            case (_, (int(count), int(width)), _Type(name="u1"), False, bytes(raw)) if (
                width == _BYTES and len(raw) == count * width
            ):
                return np.frombuffer(raw, np.uint8).reshape(count, width)
        raise DataError(f'{path}: its "data" is not one row of {_BYTES:,} bytes for each image.')


class _Type:
    """What a pickle says of a NumPy type."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


def _made_of_text(text: Any, coding: Any) -> bytes:
    """How Python 3 writes bytes in old pickles."""
    if not isinstance(text, str) or coding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes in an unknown coding")
    return text.encode("latin1")


def _of_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """How newer versions of NumPy write arrays."""
    array = _Array()
    array.state = (1, shape, kind, order != "C", bytes(raw) if isinstance(raw, (bytes, bytearray)) else None)
    return array


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.numeric", "_frombuffer"): _of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _of_buffer,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _made_of_text,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which could run any code") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside")


def _loaded(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle, its keys and the texts of its lists as text."""
    content = _content(path)
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a file of CIFAR.") from error
    except Exception as error:  # what follows from bytes that make no sense is anything
        raise DataError(
            f"{path} is not read, for it is no file of CIFAR ({error or type(error).__name__}). Take the archive anew."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a dictionary, as a file of CIFAR does.")
    return {_text(key): [_text(one) for one in item] if isinstance(item, list) else item for key, item in value.items()}


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
