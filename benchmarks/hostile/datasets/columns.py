"""Parquet tables and saved Hugging Face sets: images and labels of every type, descriptions that do not fit, damaged files."""

from __future__ import annotations

import datetime
import decimal
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from .. import jsons
from ..cases import Case
from ..mutate import blind, cut
from .bases import CLASSES, flat, png, unreadable

N = 6


def _images(rng: Random, paths: list[str]) -> pa.Array:
    good = [png(k) for k in range(N)]
    if rng.random() < 0.3:
        good[rng.randrange(N)] = unreadable(rng)
    kinds = (
        lambda: pa.array(paths),
        lambda: pa.array(good, pa.binary()),
        lambda: pa.array(good, pa.binary()),
        lambda: pa.array([{"bytes": one, "path": None} for one in good]),
        lambda: pa.array([{"bytes": one, "path": None} for one in good]),
        lambda: pa.array(
            [
                {
                    "bytes": one if k else None,
                    "path": rng.choice((None, "000.png", "../x", "/etc/passwd", "a\0b", jsons.ESCAPES)),
                }
                for k, one in enumerate(good)
            ]
        ),
        lambda: pa.array(good, pa.large_binary()),
        lambda: pa.array([*good[1:], None], pa.binary()),
        lambda: pa.array([list(one[:50]) for one in good], pa.list_(pa.uint8())),
        lambda: pa.array(paths).dictionary_encode(),
        lambda: pa.array(good, pa.binary()).dictionary_encode(),
        lambda: pa.array([[[0, 1], [2, 3]]] * N),
        lambda: pa.array(range(N)),
        lambda: pa.nulls(N),
        lambda: pa.array([{"bytes": "text", "path": 5}] * N),
        lambda: pa.array([{"x": one} for one in good]),
        lambda: pa.array([[one] for one in good]),
        lambda: pa.array([True] * N),
        lambda: pa.array(["iVBORw0KGgo" * 100] * N),
        lambda: pa.array([b"x" * 8] * N, pa.binary(8)),
        lambda: pa.array(paths, pa.large_string()),
        lambda: pa.array([{"bytes": None, "path": None}] * N),
    )
    return rng.choice(kinds[:6])() if rng.random() < 0.5 else rng.choice(kinds)()


def _labels(rng: Random) -> pa.Array:
    names = [CLASSES[k % 3] for k in range(N)]
    kinds = (
        lambda: pa.array(names),
        lambda: pa.array([k % 3 for k in range(N)]),
        lambda: pa.array([k % 3 for k in range(N)], rng.choice((pa.int8(), pa.uint8(), pa.uint64(), pa.int16()))),
        lambda: pa.array([0.0, 1.0, 2.0, float("nan"), 1.0, 0.0]),
        lambda: pa.array([0.5, 1.0, 2.0, float("inf"), 1.0, 0.0], pa.float32()),
        lambda: pa.array([-1, 0, 1, 2, 5, 2**40]),
        lambda: pa.array([2**64 - 1] * N, pa.uint64()),
        lambda: pa.array([None, 0, 1, 2, 0, 1]),
        lambda: pa.array([True, False] * (N // 2)),
        lambda: pa.array([["ant"], ["ant", "bee"], [], ["cat"], None, ["ant"]]),
        lambda: pa.array([[0], [1, 2], [], [9], None, [-1]]),
        lambda: pa.array([{"a": 1}] * N),
        lambda: pa.array([{"a": k, "b": "x"} for k in range(N)]),
        lambda: pa.array([[["a"]]] * N),
        lambda: pa.array([datetime.datetime(2020, 1, k + 1) for k in range(N)]),
        lambda: pa.array([datetime.date(2020, 1, 1), *[None] * (N - 1)]),
        lambda: pa.array([decimal.Decimal("1.5")] * N),
        lambda: pa.array([b"ant", b"\xff\xfe"] * (N // 2)),
        lambda: pa.nulls(N),
        lambda: pa.array(names).dictionary_encode(),
        lambda: pa.array([rng.choice(("", " ", "ant ", "a\0b", jsons.ESCAPES, "0", "x" * 100_000)) for _ in range(N)]),
        lambda: pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([datetime.timedelta(1)] * N),
        lambda: pa.array([0.0, 1.0, 2.0] * (N // 3), pa.float16()),
    )
    return rng.choice(kinds[:3])() if rng.random() < 0.3 else rng.choice(kinds)()


_IMAGE = {"_type": "Image"}
_LABEL = {"names": list(CLASSES), "_type": "ClassLabel"}


def _features(rng: Random) -> dict[str, Any]:
    """What `datasets` says of the columns, right or wrong."""
    return rng.choice(
        (
            {"image": _IMAGE, "label": _LABEL},
            {"image": _IMAGE, "label": _LABEL},
            jsons.spoiled(rng, {"image": _IMAGE, "label": _LABEL}, most=3),
            {"image": _IMAGE, "label": {"feature": _LABEL, "_type": "Sequence"}},
            {"image": _IMAGE, "label": {"names": ["only one"], "_type": "ClassLabel"}},
            {"image": _IMAGE, "label": {"names": [1, None, []], "_type": "ClassLabel"}},
            {"image": _IMAGE, "label": {"names": "abc", "_type": "ClassLabel"}},
            {"image": _IMAGE, "label": {"names": ["ant", "ant", "ant"], "_type": "ClassLabel"}},
            {"image": _IMAGE, "label": {"names": {"0": "ant"}, "_type": "ClassLabel"}},
            {"image": _LABEL, "label": _IMAGE},
            {"other": _IMAGE},
            {},
        )
    )


def _table(rng: Random, paths: list[str], described: bool) -> pa.Table:
    columns = {"image": _images(rng, paths), "label": _labels(rng)}
    if rng.random() < 0.2:
        columns["split"] = pa.array([rng.choice(("train", "test", "x", None)) for _ in range(N)])
    if rng.random() < 0.15:
        columns = dict(
            zip(
                rng.choice((("img", "target"), ("x", "y"), ("image", "class"), ("", "\0"), ("image.bytes", "label"))),
                columns.values(),
                strict=False,
            )
        )
    table = pa.table(columns)
    if rng.random() < 0.1:
        table = table.slice(0, rng.choice((0, 1)))
    if rng.random() < 0.05:
        table = pa.table({"a": []}) if rng.random() < 0.5 else pa.table({})
    if described:
        info = json.dumps({"info": {"features": _features(rng)}}).encode()
        if rng.random() < 0.2:
            info = jsons.text(rng, jsons.spoiled(rng, {"info": {"features": _features(rng)}}))
        table = table.replace_schema_metadata({"huggingface": info})
    return table


def parquet(rng: Random, folder: Path) -> Case:
    root = folder / "set"
    paths = flat(root / rng.choice(("", "images")))
    count = rng.choice((1, 1, 1, 2, 3))
    same = _table(rng, paths, rng.random() < 0.6)
    for k in range(count):
        table = same if rng.random() < 0.8 else _table(rng, paths, rng.random() < 0.5)
        name = rng.choice(("train", "test", "validation", "data", "x")) if count > 1 else "table"
        file = io.BytesIO()
        pyarrow.parquet.write_table(
            table,
            file,
            row_group_size=rng.choice((1, 3, 100)),
            compression=rng.choice(("none", "snappy", "zstd", "gzip")),
        )
        data = file.getvalue()
        if rng.random() < 0.25:
            data = rng.choice((blind, cut))(rng, data) if rng.random() < 0.6 else data[:-200] + blind(rng, data[-200:])
        (root / f"{name}-{k:05d}.parquet").write_bytes(data)
    for path in root.glob("*.png"):
        if count > 1:
            path.unlink()
    options = {"multi_label": True} if rng.random() < 0.15 else {}
    return Case(next(root.glob("*.parquet")) if count == 1 else root, options)


def saved(rng: Random, folder: Path) -> Case:
    """What save_to_disk leaves: three JSON files and Arrow streams, each spoiled."""
    root = folder / "set"
    paths = flat(folder / "images")
    one = rng.random() < 0.3
    splits = ["train"] if one else rng.sample(["train", "validation", "test", "unsupervised", "x"], rng.randint(1, 3))
    for split in splits:
        part = root if one else root / split
        part.mkdir(parents=True, exist_ok=True)
        table = _table(rng, paths, described=False)
        if rng.random() < 0.6:
            table = pa.table(
                {
                    "image": pa.array([{"bytes": png(k), "path": None} for k in range(N)]),
                    "label": pa.array([k % 3 for k in range(N)]),
                }
            )
        sink = io.BytesIO()
        with (pa.ipc.new_stream if rng.random() < 0.9 else pa.ipc.new_file)(sink, table.schema) as stream:
            stream.write_table(table)
        data = sink.getvalue()
        if rng.random() < 0.2:
            data = rng.choice((blind, cut))(rng, data)
        (part / "data-00000-of-00001.arrow").write_bytes(data)
        info = {"features": {"image": _IMAGE, "label": _LABEL}, "builder_name": "x", "splits": {}}
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x", "_split": split}
        for name, record in (("dataset_info.json", info), ("state.json", state)):
            text = json.dumps(record).encode()
            if rng.random() < 0.3:
                text = jsons.text(rng, jsons.spoiled(rng, record, most=2))
            (part / name).write_bytes(text)
        if rng.random() < 0.15:
            state["_data_files"] = rng.choice(
                (
                    [{"filename": "../x.arrow"}],
                    [{"filename": "/dev/zero"}],
                    [{"filename": 5}],
                    [{}],
                    [],
                    None,
                    "x",
                    [{"filename": "a\0b"}],
                    [{"filename": "data-00000-of-00001.arrow"}] * 3,
                    [{"filename": "."}],
                )
            )
            (part / "state.json").write_text(json.dumps(state))
    if not one:
        names: Any = (
            splits
            if rng.random() < 0.8
            else rng.choice(
                (["nothing"], [], None, "train", {"train": 1}, [1], [".."], [[]], ["a\0b"], ["train", "train"])
            )
        )
        (root / "dataset_dict.json").write_bytes(
            json.dumps({"splits": names}).encode() if rng.random() < 0.9 else jsons.text(rng, {"splits": names})
        )
    return Case(root)


GENERATORS = {"table.parquet": parquet, "table.saved": saved}
