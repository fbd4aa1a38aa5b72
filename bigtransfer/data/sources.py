"""Labelled images with random access, wherever they lie: `ImageSet` over a store.

A store holds the encoded or raw images of one place (`Files`, `TarFiles`, `ParquetRows`, `ArrowRows`, `Arrays`) and knows nothing of
labels or splits; an `ImageSet` is a choice of its rows with their labels. Both pickle small and open their files where they are used,
so that worker processes can have them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from bigtransfer import files
from bigtransfer.catalog import InputSpec
from bigtransfer.data import images
from bigtransfer.data.images import Pixels
from bigtransfer.data.remote import RemoteFile
from bigtransfer.errors import DataError, ImageError
from bigtransfer.limits import limits


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """An image, or an object on one, that is left out, and why."""

    name: str
    reason: str


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


class RowNumbers(Sequence[str]):
    """Names made of a file's prefix and a running number, for rows that lie in files one after another: nothing is stored per row."""

    def __init__(self, prefixes: Iterable[str], starts: np.ndarray, ends: np.ndarray, width: int = 6) -> None:
        """starts: int (files,), the number of each file's first row. ends: int (files + 1,), the first row of each file, and the number of
        rows. width: digits of the number."""
        self._prefixes = Strings(prefixes)
        self._starts, self._ends, self._width = starts, ends, width

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < len(self):
            raise IndexError(i)
        file = int(np.searchsorted(self._ends, i, side="right")) - 1
        number = i - int(self._ends[file]) + int(self._starts[file])
        return f"{self._prefixes[file]}{number:0{self._width}d}"


class Mapped(np.ndarray):
    """The array of an `.npy` file, mapped into memory; pickled as the file's path. What is made from it is an array like any other."""

    path: str | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.path is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return mapped, (self.path,)


def mapped(path: str | os.PathLike[str]) -> Mapped:
    """The array of an `.npy` file, mapped into memory, not read. ValueError if it is no such file; OSError if there is none to read."""
    files.opened(path).close()  # a pipe of that name would be waited for
    try:
        array = np.lib.format.open_memmap(path, mode="r").view(Mapped)
    except (OSError, ValueError):
        raise
    except Exception as error:  # its header is read by a parser of Python, which has errors of its own
        raise ValueError(f"its header cannot be read ({error})") from error
    array.path = os.path.abspath(path)
    return array


class Store(Protocol):
    """Images by row, 0..n-1."""

    @property
    def encoded(self) -> bool:
        """Whether `data` gives image files, rather than bare pixels."""
        ...

    @property
    def runs(self) -> np.ndarray | None:
        """int64 (s+1,): the rows `runs[j]` to `runs[j + 1] - 1` lie together in one file, so that reading one of them makes the others
        cheap; None where any row is as near as any other."""
        ...

    def name(self, row: int) -> str:
        """The image's path or key, unique in the store."""
        ...

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        """uint8 (height, width, channels), as a model of that input sees it if `spec` is given; ImageError."""
        ...

    def size(self, row: int) -> tuple[int, int]:
        """Height and width, px, without decoding; ImageError."""
        ...

    def data(self, row: int) -> bytes:
        """The bytes that make the image what it is (for finding identical ones); ImageError."""
        ...

    @property
    def remote(self) -> bool:
        """Whether files are fetched when they are read, so that `prefetch` is of use."""
        ...

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to fetch the files of those rows, if they are not at hand, and return at once."""
        ...


class _AtHand:
    """What makes a store of files that need not be fetched."""

    remote = False

    def prefetch(self, rows: np.ndarray) -> None:
        pass


class Files(_AtHand):
    """Image files, by their paths relative to one folder."""

    encoded = True
    runs = None

    def __init__(self, root: str | os.PathLike[str], paths: Iterable[str]) -> None:
        self.root = Path(root)
        self._paths = Strings(paths)

    def name(self, row: int) -> str:
        return self._paths[row]

    def path(self, row: int) -> Path:
        """Where the file is."""
        return self.root / self._paths[row]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """As `ImageSet.fingerprint` looks at them: the bytes of each file, -1 of one that is not there."""
        return np.array([_length(self.path(row)) for row in rows.tolist()], dtype=np.int64)

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        return images.prepared(self.path(row), str(self.path(row)), channels, spec)

    def size(self, row: int) -> tuple[int, int]:
        return images.size(self.path(row), str(self.path(row)))

    def data(self, row: int) -> bytes:
        return _content(self.path(row), str(self.path(row)), "the file")


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1


def _content(path: Path, name: str, shown: str) -> bytes:
    """The bytes of an image file; ImageError with that `name` if it cannot be read."""
    try:
        return files.read(path, "image_bytes")
    except OSError as error:
        raise ImageError(name, f"{shown} cannot be read ({error.strerror})") from error
    except ValueError as error:  # a path that holds a zero byte
        raise ImageError(name, f"{shown} cannot be read ({error})") from error


class Encoded:
    """A store whose `data` gives the bytes of image files, which are read as they come."""

    encoded = True

    def data(self, row: int) -> bytes:
        """As every store's."""
        raise NotImplementedError

    def _place(self, row: int) -> str:
        """The image in messages."""
        raise NotImplementedError

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        return images.prepared(self.data(row), self._place(row), channels, spec)

    def size(self, row: int) -> tuple[int, int]:
        return images.size(self.data(row), self._place(row))


class TarFiles(Encoded):
    """Members of uncompressed tar files, read in place by their offsets; a remote file is fetched when its first row is read."""

    _OPEN = 128
    """Files kept open by a process."""

    def __init__(
        self,
        tars: Sequence[Path | RemoteFile],
        runs: np.ndarray,
        offset: np.ndarray,
        length: np.ndarray,
        names: Sequence[str],
        sizes: Sequence[int] | None = None,
    ) -> None:
        """runs: int64 (tars + 1,), the first row of each file, and the number of rows n. offset, length: int (n,), of the image in its
        file, bytes. sizes: bytes of each file, where known: a file of another size is damaged."""
        self.tars = tuple(tars)
        self.runs = runs
        self._offset, self._length = offset, length
        self._names = names
        self._sizes = sizes
        self._files: dict[int, _OpenFile] = {}
        self._begun: dict[int, threading.Thread] = {}
        self.remote = any(isinstance(tar, RemoteFile) for tar in tars)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_begun": {}}

    def name(self, row: int) -> str:
        return self._names[row]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """As `ImageSet.fingerprint` looks at them: the bytes of each image."""
        return np.asarray(self._length[rows], dtype=np.int64)

    def data(self, row: int) -> bytes:
        """As every store's; and DataError if the whole file cannot be fetched, or is damaged."""
        if self._length[row] > limits().image_bytes:
            raise ImageError(
                self._place(row),
                f"it has {int(self._length[row]):,} bytes, more than the limit; if it is meant: --limits image_bytes=N",
            )
        try:
            return self._open(self._tar(row)).read(int(self._offset[row]), int(self._length[row]))
        except OSError as error:
            raise ImageError(self._place(row), f"the file cannot be read ({error.strerror})") from error

    def prefetch(self, rows: np.ndarray) -> None:
        for number in np.unique(np.searchsorted(self.runs, rows, side="right") - 1).tolist():
            tar = self.tars[number]
            if number in self._files or number in self._begun or not isinstance(tar, RemoteFile) or tar.path.is_file():
                continue
            self._begun = {key: thread for key, thread in self._begun.items() if thread.is_alive()}
            # A daemon, so that a process which ends does not wait for files that it no longer needs.
            self._begun[number] = threading.Thread(target=_fetch_quietly, args=(tar,), daemon=True)
            self._begun[number].start()

    def _tar(self, row: int) -> int:
        return int(np.searchsorted(self.runs, row, side="right")) - 1

    def _open(self, number: int) -> _OpenFile:
        if (known := self._files.get(number)) is not None:
            return known
        file = self._found(number)
        if self._sizes is not None and file.size != self._sizes[number]:
            raise DataError(
                f"{self.tars[number]} has {file.size} bytes, its index says {self._sizes[number]}: it is damaged, or was not copied "
                "completely. `bit shard FOLDER --verify` checks all."
            )
        self._files[number] = file
        # Threads share this dict; each holds on to the file that it is reading.
        for oldest in list(self._files)[: -self._OPEN]:
            self._files.pop(oldest, None)
        return file

    def _found(self, number: int) -> _OpenFile:
        tar = self.tars[number]
        if isinstance(tar, Path):
            return _OpenFile(tar)
        for _ in range(10):
            # Another process may remove the file from a small cache before this one has opened it.
            with contextlib.suppress(FileNotFoundError):
                return _OpenFile(tar.local())
        raise DataError(f"{tar} disappears from the cache as soon as it arrives. Allow more with BIT_SHARD_CACHE (GB).")

    def _place(self, row: int) -> str:
        return f"{self.tars[self._tar(row)]}: {self.name(row)}"


_fetching = threading.BoundedSemaphore(8)
"""Files that a process fetches ahead at a time."""


def _fetch_quietly(file: RemoteFile) -> None:
    with _fetching, contextlib.suppress(DataError):  # whoever reads the file meets the error
        file.local()


class _OpenFile:
    """A file that several threads read; it is closed when the last of them lets go of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer where the file ends before."""
        length = min(length, max(0, self.size - offset))  # so much memory is asked for before anything is read
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, length, offset)
        with open(self._path, "rb", buffering=0) as own:
            own.seek(offset)
            return own.read(length)


class _ImageColumn(Encoded, _AtHand):
    """Encoded images in a column of tables, in the forms that people and Hugging Face's `datasets` write."""

    def __init__(self, files: Sequence[Path], column: str, names: Sequence[str], root: Path) -> None:
        """root: the folder to which paths in the column are relative."""
        self.files = tuple(files)
        self._column = column
        self._names = names
        self._root = root

    def _value(self, row: int) -> Any:
        raise NotImplementedError

    def name(self, row: int) -> str:
        return self._names[row]

    def data(self, row: int) -> bytes:
        value = self._value(row)
        if isinstance(value, dict):  # the form of an `Image` feature: the file's bytes, or where the file is
            content, path = value.get("bytes"), value.get("path")
            if content is None and path is not None:
                try:
                    return files.read(self._root / path, "image_bytes")
                except (OSError, ValueError, TypeError) as error:
                    reason = getattr(error, "strerror", None) or error
                    raise ImageError(self._place(row), f"{path!r} cannot be read ({reason})") from error
            value = content
        if value is None:
            raise ImageError(self._place(row), "this row has no image")
        if not isinstance(value, bytes):
            raise ImageError(
                self._place(row), f"this row holds no encoded image but a value of the type {type(value).__name__}"
            )
        return value

    def _place(self, row: int) -> str:
        return f"{self._root}: {self.name(row)}"


class ArrowRows(_ImageColumn):
    """Images in Arrow files (streams, as Hugging Face `datasets` writes them), mapped into memory."""

    runs = None
    _rows: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def _value(self, row: int) -> Any:
        if self._rows is None:
            # Not joined: files may hold images in different forms.
            columns = [arrow_table(file).column(self._column) for file in self.files]
            self._rows = columns, np.cumsum([0, *map(len, columns)])
        columns, starts = self._rows
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return columns[number][row - int(starts[number])].as_py()


class ParquetRows(_ImageColumn):
    """Images in Parquet files, read where they are. Parquet gives only whole row groups; each process keeps some of them."""

    _KEPT = 1 << 29
    """Bytes of row groups that a process keeps, but never fewer than the last one."""

    def __init__(self, files: Sequence[Path], column: str, names: Sequence[str], root: Path) -> None:
        """DataError if a file is damaged."""
        import pyarrow.parquet

        super().__init__(files, column, names, root)
        groups, rows = [0], [0]
        for file in self.files:
            metadata = pyarrow.parquet.read_metadata(file)
            groups.append(groups[-1] + metadata.num_row_groups)
            rows += (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._groups = np.array(groups)
        self.runs = np.cumsum(rows, dtype=np.int64)
        self._kept: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def _value(self, row: int) -> Any:
        group = int(np.searchsorted(self.runs, row, side="right")) - 1
        return self._group(group)[row - int(self.runs[group])].as_py()

    def _group(self, group: int) -> Any:
        """The image column of a row group, counted over all files."""
        column = self._kept.get(group)
        if column is None:
            import pyarrow
            import pyarrow.parquet

            number = int(np.searchsorted(self._groups, group, side="right")) - 1
            try:
                with pyarrow.parquet.ParquetFile(self.files[number]) as file:
                    place = group - int(self._groups[number])
                    table = file.read_row_group(place, columns=[self._column], use_threads=False)  # workers are forked
            except (OSError, ValueError, pyarrow.ArrowException) as error:
                raise DataError(f"{self.files[number]} is damaged, or was changed: {error}") from error
            column = table.column(0)
            self._kept[group] = column
            # Threads share this: what one drops another may go on reading.
            known = list(self._kept.items())
            excess = sum(kept.nbytes for _, kept in known) - self._KEPT
            for oldest, kept in known[:-1]:
                if excess <= 0:
                    break
                self._kept.pop(oldest, None)
                excess -= kept.nbytes
        return column


def arrow_table(file: Path) -> Any:
    """The pyarrow table in an Arrow stream file, mapped into memory, not read."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        return pyarrow.ipc.open_stream(source).read_all()


class Arrays(_AtHand):
    """Images of one size as pixels, in `.npy` files of uint8 `(n, height, width, channels)`, mapped into memory."""

    encoded = False
    runs = None

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

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        return images.prepare(images.with_channels(self._pixels(row), channels), spec)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self._pixels(row).shape[:2]
        return height, width

    def data(self, row: int) -> bytes:
        return self._pixels(row).tobytes()


def _lengths(of: Sequence[TarFiles] | Sequence[ImageSet], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`lengths` of rows of what follows one another, of which each begins at one of `starts`."""
    numbers = np.searchsorted(starts, rows, side="right") - 1
    found = np.empty(len(rows), dtype=np.int64)
    for number in np.unique(numbers).tolist():
        found[numbers == number] = of[number].lengths(rows[numbers == number] - starts[number])
    return found


class Joined:
    """Several stores as one: the rows of the first, then those of the second, and so on."""

    def __init__(self, stores: Sequence[TarFiles]) -> None:
        self._stores = tuple(stores)
        self.encoded = all(store.encoded for store in stores)
        self._starts = np.cumsum([0, *(store.runs[-1] for store in stores)], dtype=np.int64)
        parts = [store.runs[:-1] + start for store, start in zip(stores, self._starts, strict=False)]
        self.runs = np.concatenate([*parts, self._starts[-1:]])
        self.remote = any(store.remote for store in stores)

    def _at(self, row: int) -> tuple[TarFiles, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._stores[number], row - int(self._starts[number])

    def name(self, row: int) -> str:
        store, row = self._at(row)
        return store.name(row)

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        store, row = self._at(row)
        return store.read(row, channels, spec)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """As `TarFiles.lengths`."""
        return _lengths(self._stores, self._starts, rows)

    def size(self, row: int) -> tuple[int, int]:
        store, row = self._at(row)
        return store.size(row)

    def data(self, row: int) -> bytes:
        store, row = self._at(row)
        return store.data(row)

    def prefetch(self, rows: np.ndarray) -> None:
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            self._stores[number].prefetch(rows[numbers == number] - self._starts[number])


_PIECE = 1 << 16
"""Images whose names are in memory at a time."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images with their labels; picklable."""

    store: Store
    rows: np.ndarray | range
    """int64 (n,): the images' rows in the store; a range (of step 1) where they stand in the store's order."""
    labels: np.ndarray | None
    """Integers (n,) in 0..len(class_names)-1; where images have several labels, (n, k): those of each image, then -1. None:
    unlabelled. Of a large set they are a file mapped into memory."""
    class_names: tuple[str, ...]
    """By label; () if unlabelled."""
    channels: int = 3
    """Channels of the pixels that `read` gives: 3 (RGB) or 1 (grey)."""

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def runs(self) -> np.ndarray | None:
        """int64 (s+1,): the images `runs[j]` to `runs[j + 1] - 1` lie together in one file (a tar shard, a row group of a Parquet file),
        so that reading one of them makes the others cheap. None where any image is as near as any other, or where the order of this
        set has torn apart what lies together."""
        bounds = self.store.runs
        if bounds is None or not len(self):
            return None
        if isinstance(self.rows, range):
            inner = bounds[(bounds > self.rows.start) & (bounds < self.rows.stop)] - self.rows.start
            return np.concatenate([[0], np.unique(inner), [len(self)]]).astype(np.int64)
        file = np.searchsorted(bounds, self.rows, side="right")
        cuts = np.flatnonzero(file[1:] != file[:-1]) + 1
        if len(cuts) + 1 > 2 * len(np.unique(file)):
            return None
        return np.concatenate([[0], cuts, [len(self)]]).astype(np.int64)

    def read(self, i: int, spec: InputSpec | None = None) -> Pixels:
        """Image `i`: uint8 `(height, width, channels)`, upright; as a model sees it if `spec` is given, `(spec.size, spec.size, channels)`:
        sooner than by `images.prepare`. Raises ImageError if it cannot be decoded; DataError if a whole file of images is
        damaged or cannot be fetched, which no other image would make good."""
        return self.store.read(int(self.rows[i]), self.channels, spec)

    def name(self, i: int) -> str:
        """The path of image `i` relative to the data set's folder, with forward slashes, or its key; the same on every machine."""
        return self.store.name(int(self.rows[i]))

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of image `i`, px, from its header. Raises as `read` does."""
        return self.store.size(int(self.rows[i]))

    def data(self, i: int) -> bytes:
        """The bytes of image `i` as stored (a file's content, or raw pixels). Raises as `read` does."""
        return self.store.data(int(self.rows[i]))

    @property
    def remote(self) -> bool:
        """Whether files are fetched when their first image is read: `prefetch` then saves waiting."""
        return self.store.remote

    def prefetch(self, indices: np.ndarray) -> None:
        """Begin to fetch the files of the images at those indices, if they are not at hand; returns at once, and never fails."""
        self.store.prefetch(self._rows_at(indices))

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """int64 (n,): bytes of each image as stored, of tables the bytes of all their files; 0 where only reading would tell."""
        store: Any = self.store
        if hasattr(store, "lengths"):
            return store.lengths(self._rows_at(indices))
        total = sum(map(_length, map(Path, getattr(store, "files", ()))))
        return np.full(len(indices), total, dtype=np.int64)

    def fingerprint(self) -> str:
        """SHA-256 of the names of all images, of their labels if they have any, and of their `lengths`: what shows without reading them
        that a set is not the one that it was."""
        digest = hashlib.sha256(repr((len(self), self.channels, self.class_names)).encode(errors="surrogateescape"))
        for start in range(0, len(self), _PIECE):
            piece = np.arange(start, min(start + _PIECE, len(self)))
            names = b"\0".join(self.name(i).encode(errors="surrogateescape") for i in piece.tolist())
            digest.update(names + b"\0" + self.lengths(piece).tobytes())
            if self.labels is not None:
                digest.update(np.ascontiguousarray(self.labels[piece], dtype=np.int64).tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The images at those indices, in that order, with the same class names."""
        indices = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else np.asarray(self.labels[indices])
        return dataclasses.replace(self, rows=self._rows_at(indices), labels=labels)

    def _rows_at(self, indices: np.ndarray) -> np.ndarray:
        return indices + self.rows.start if isinstance(self.rows, range) else self.rows[indices]

    @property
    def several(self) -> bool:
        """Whether images may have several labels: `labels` is then (n, k)."""
        return self.labels is not None and self.labels.ndim > 1

    def class_counts(self) -> np.ndarray:
        """int64 (classes,): images of each class. The set must be labelled."""
        assert self.labels is not None
        labels = np.asarray(self.labels)
        return np.bincount(labels[labels >= 0], minlength=len(self.class_names))


class _Together:
    """Image sets one after the other, as a store."""

    def __init__(self, sets: Sequence[ImageSet], titles: Sequence[str]) -> None:
        self._sets, self._titles = tuple(sets), tuple(titles)
        self._starts = np.cumsum([0, *(len(one) for one in sets)], dtype=np.int64)
        self.encoded = all(one.store.encoded for one in sets)
        self.remote = any(one.remote for one in sets)
        runs = [one.runs for one in sets]
        self.runs: np.ndarray | None = None
        if all(bounds is not None for bounds in runs):
            parts = [
                bounds[:-1] + start for bounds, start in zip(runs, self._starts, strict=False) if bounds is not None
            ]
            self.runs = np.concatenate([*parts, self._starts[-1:]])

    def _at(self, row: int) -> tuple[int, int]:
        """Which set, and where in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def name(self, row: int) -> str:
        number, row = self._at(row)
        return f"{self._titles[number]}/{self._sets[number].name(row)}"

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        number, row = self._at(row)
        assert self._sets[number].channels == channels
        return self._sets[number].read(row, spec)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """As `ImageSet.fingerprint` looks at them, of each set's own store."""
        return _lengths(self._sets, self._starts, rows)

    def size(self, row: int) -> tuple[int, int]:
        number, row = self._at(row)
        return self._sets[number].size(row)

    def data(self, row: int) -> bytes:
        number, row = self._at(row)
        return self._sets[number].data(row)

    def prefetch(self, rows: np.ndarray) -> None:
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            self._sets[number].prefetch(rows[numbers == number] - self._starts[number])


def together(sets: Sequence[ImageSet], titles: Sequence[str]) -> ImageSet:
    """Several sets as one: the images of the first, then those of the second, and so on, with all classes in the same order. The
    label of an image is that of its own set plus the number of classes of the sets before; a set without labels has no classes.

    titles: of each set, with which the names of its images begin. All sets have as many channels.
    """
    first = np.cumsum([0, *(len(one.class_names) for one in sets)])
    names = tuple(name for one in sets for name in one.class_names)
    store = _Together(sets, titles)
    count = sum(len(one) for one in sets)
    if not names:
        return ImageSet(store, range(count), None, (), sets[0].channels)
    tables = []
    for one, offset in zip(sets, first.tolist(), strict=False):
        table = np.full(len(one), -1) if one.labels is None else np.asarray(one.labels, dtype=np.int64)
        tables.append(np.where(table < 0, -1, table + offset))
    if any(table.ndim > 1 for table in tables):
        tables = [table.reshape(len(table), -1) for table in tables]
        width = max(table.shape[1] for table in tables)
        tables = [np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=-1) for table in tables]
    return ImageSet(store, range(count), np.concatenate(tables), names, sets[0].channels)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; all share one tuple of class names."""

    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    """Remarks for the user, such as what was ignored."""

    def parts(self) -> dict[str, ImageSet]:
        """Those that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {part: images for part, images in named.items() if images is not None}


def readable(images: ImageSet, spec: InputSpec, rows: Iterable[int]) -> Iterator[tuple[int, Pixels]]:
    """Those of the rows whose images can be read, with the images as a model of that `InputSpec` sees them."""
    for row in rows:
        try:
            pixels = images.read(row, spec)
        except ImageError:  # others will do
            continue
        yield row, pixels


def native_size(images: ImageSet) -> tuple[int, int]:
    """Median height and median width in px of up to 64 images, always the same ones of as many; decodes nothing.

    Images that cannot be opened are passed over; DataError if none of the drawn ones can.
    """
    drawn = np.random.default_rng(0).permutation(len(images))[:64]
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
