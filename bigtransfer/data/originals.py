"""Sets as their authors packed them, where more than one room reads them: Oxford-IIIT Pets, Flowers-102, SVHN.

Everything here raises OSError where a file cannot be read, and ValueError, naming the file, where it is not as it was published.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bigtransfer import files, records
from bigtransfer.errors import DataError

Listed = list[tuple[str, int]]
"""Paths below the set's folder, and classes from 0, in the order of the set."""

PETS_LISTS = {"train": "trainval.txt", "test": "test.txt"}
"""Part of Pets -> its file in `annotations`."""
_FLOWERS = {"train": "trnid", "val": "valid", "test": "tstid"}


def pets(folder: Path, parts: Iterable[str] = ("train", "test")) -> dict[str, Listed]:
    """Of `images/NAME.jpg` and `annotations/{trainval,test}.txt`, whose rows are "NAME class species breed", those parts."""
    found: dict[str, Listed] = {}
    for part in parts:
        path = folder / "annotations" / PETS_LISTS[part]
        found[part] = []
        lines = files.read(path, "table_bytes").decode("utf-8", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            image, stated, *_ = (*line.split(), "", "")
            label = records.whole(stated)
            if label is None or "/" in image:
                raise ValueError(f"{path}, line {number}: {line[:200]!r} is no row of this set")
            found[part].append((f"images/{image}.jpg", label - 1))
    return found


def breed(path: str) -> str:
    """The class that an image of Pets is named after, as "American Bulldog"."""
    return path.removeprefix("images/").rpartition("_")[0].replace("_", " ").title()


def flowers(folder: Path) -> dict[str, Listed]:
    """Of `jpg/image_%05d.jpg`, `imagelabels.mat` and `setid.mat` the parts "train", "val" and "test"."""
    labels = _numbers(folder / "imagelabels.mat", "labels")
    found = {}
    for part, key in _FLOWERS.items():
        chosen = _numbers(folder / "setid.mat", key)
        if len(chosen) and not (chosen.min() >= 1 and chosen.max() <= len(labels)):
            raise ValueError(
                f"{folder / 'setid.mat'}: images {chosen.min()} to {chosen.max()}, of {len(labels)} that have labels"
            )
        found[part] = [(f"jpg/image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in chosen.tolist()]
    return found


def svhn(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, 32, 32, 3) and digits int64 (n,) of `train_32x32.mat` or `test_32x32.mat`, where 10 stands for the digit 0."""
    content = matlab(file)
    try:
        return content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1).astype(np.int64) % 10
    except KeyError as error:
        raise ValueError(f"{file} holds nothing called {error}") from None


def _numbers(path: Path, key: str) -> np.ndarray:
    """int64 (n,) under that name in a Matlab file."""
    content = matlab(path)
    try:
        return np.asarray(content[key]).reshape(-1).astype(np.int64)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no numbers called {key} ({error})") from error


def matlab(file: Path) -> dict[str, np.ndarray]:
    """The variables of a Matlab file by name. Raises DataError without scipy, ValueError if the file is damaged."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            "This data set comes as a Matlab file, which needs the package scipy: pip install scipy"
        ) from error
    try:
        with files.opened(file) as stream:
            return loadmat(stream)
    except OSError:
        raise
    except Exception as error:  # scipy's own, zlib's, and what follows from bytes that make no sense
        raise ValueError(f"{file} is damaged: {error}") from error
