"""Folders that `bit shard` wrote: index.json, arrays and tar files that do not say the same."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bigtransfer import cli

from .. import jsons
from ..cases import Case
from ..mutate import blind, cut, number
from .bases import folders


def _base(scratch: Path) -> Path:
    """A set of train and test, written once."""
    made = scratch / "indexed"
    if not (made / "index.json").exists():
        shutil.rmtree(made, ignore_errors=True)
        source = scratch / "indexed-source"
        for k, split in enumerate(("train", "test")):
            folders(source / split, first=9 * k)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main(["shard", str(source), str(made), "--threads", "1"]) == 0
    return made


def _copied(folder: Path) -> Path:
    return Path(shutil.copytree(_base(folder.parent), folder / "set"))


def index(rng: Random, folder: Path) -> Case:
    """Fields of index.json of another type, out of range, missing; names that climb out of the folder."""
    root = _copied(folder)
    record: Any = json.loads((root / "index.json").read_text())
    if rng.random() < 0.5:
        record = jsons.spoiled(rng, record, most=3)
    else:
        part = record["splits"][rng.choice(list(record["splits"]))]
        match rng.randrange(9):
            case 0:
                part["shards"][0]["name"] = rng.choice(
                    (
                        "../x.tar",
                        "/dev/zero",
                        "",
                        ".",
                        "a\0b",
                        "train-000000.tar/",
                        "nothing.tar",
                        "index.json",
                        "x" * 300,
                        jsons.ESCAPES,
                    )
                )
            case 1:
                part["shards"][0][rng.choice(("bytes", "images"))] = rng.choice(
                    (0, -1, 1, 2**40, 2**63, 2**70, 3.5, "9", None, True, 10**9)
                )
            case 2:
                kind = rng.choice(list(part["arrays"]))
                part["arrays"][kind]["name"] = rng.choice(
                    ("../x", "train.labels.npy", "test.labels.npy", "index.json", "nothing.npy", "", 5)
                )
            case 3:
                del part["arrays"][rng.choice(list(part["arrays"]))]
            case 4:
                part["arrays"][rng.choice(("extra", "labels", "names"))] = jsons.value(rng)
            case 5:
                record["class_names"] = rng.choice(
                    (
                        [],
                        ["a"],
                        ["a"] * 3,
                        [1, 2, 3],
                        "abc",
                        None,
                        [None] * 3,
                        [[]],
                        [jsons.ESCAPES, "=x", "a\nb"],
                        ["x"] * 100_000,
                    )
                )
            case 6:
                record["splits"][rng.choice(("x", "train", "val", ""))] = rng.choice(
                    (part, {}, None, {"shards": [], "arrays": {}})
                )
            case 7:
                part["shards"] = part["shards"] * rng.choice((0, 2, 1000))
            case _:
                record[rng.choice(("version", "format", "made"))] = jsons.value(rng)
    data = json.dumps(record).encode("utf-8", "surrogatepass")
    (root / "index.json").write_bytes(jsons.text(rng, record) if rng.random() < 0.2 else data)
    return _case(rng, root)


def arrays(rng: Random, folder: Path) -> Case:
    """Offsets, lengths and labels of other types, shapes and ranges; damaged files."""
    root = _copied(folder)
    path = rng.choice(sorted(root.glob("*.npy")))
    array = np.load(path)
    n = len(array)
    match rng.randrange(10):
        case 0:
            array = array.astype(
                rng.choice(
                    (np.float32, np.float64, np.int8, np.uint8, np.uint64, np.bool_, np.complex64, np.str_, ">i8")
                )
            )
        case 1:
            array = rng.choice(
                (
                    array[:, None],
                    array[None],
                    array[:-1],
                    array[:0],
                    np.concatenate([array, array]),
                    array.reshape(1, -1, 1),
                    np.array(5),
                    np.zeros((n, 3), np.int32),
                    np.zeros((n, 0), np.int32),
                )
            )
        case 2 | 3 | 4:
            array = array.astype(np.int64)
            array[rng.randrange(n)] = rng.choice((-1, -2, -(2**40), 9, 100, 2**31, 2**40, 2**62, 3))
        case 5:
            array = np.full(n, rng.choice((-1, 0, 9, 2**31 - 1)), np.int64).astype(array.dtype)
        case 6:
            array = array[::-1].copy()
    np.save(path, array)
    data = path.read_bytes()
    match rng.randrange(5):
        case 0:
            path.write_bytes(blind(rng, data))
        case 1:
            path.write_bytes(cut(rng, data))
    if rng.random() < 0.5:  # as an index that was made anew after the change
        _true(root)
    return _case(rng, root)


def files(rng: Random, folder: Path) -> Case:
    """Tar files of other contents and lengths, missing, links; other files in the folder."""
    root = _copied(folder)
    path = rng.choice(sorted(root.iterdir()))
    match rng.randrange(7):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(blind(rng, path.read_bytes()))
        case 2:
            path.write_bytes(cut(rng, path.read_bytes()))
        case 3:
            path.unlink()
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", path, "nothing")))
        case 4:
            path.unlink()
            path.mkdir()
        case 5:
            (root / ".plan.json").write_bytes(jsons.text(rng, jsons.value(rng)))
            if rng.random() < 0.5:
                (root / "index.json").unlink(missing_ok=True)
        case _:
            data = bytearray(path.read_bytes())
            for _ in range(20 if data else 0):
                data[rng.randrange(len(data))] = number(rng, 8)
            path.write_bytes(data)
    if rng.random() < 0.4:
        _true(root)
    return _case(rng, root)


def _true(root: Path) -> None:
    """Lengths and sums in the index as the files now are."""
    import hashlib

    with contextlib.suppress(Exception):
        record = json.loads((root / "index.json").read_text())
        for part in record["splits"].values():
            for file in (*part["shards"], *part["arrays"].values()):
                if (root / file["name"]).is_symlink():  # to a device without end, say
                    continue
                data = (root / file["name"]).read_bytes()
                file["bytes"], file["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        (root / "index.json").write_text(json.dumps(record))


def _case(rng: Random, root: Path) -> Case:
    options: dict[str, Any] = {}
    if rng.random() < 0.2:
        options["class_names"] = rng.choice((["ant", "bee", "cat", "dog"], ["bee", "ant", "cat"], ["x"], []))
    return Case(root, options)


GENERATORS = {f"index.{one.__name__}": one for one in (index, arrays, files)}
