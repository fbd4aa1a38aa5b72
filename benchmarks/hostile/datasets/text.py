"""Tables of text: CSV, TSV and JSON lines in every encoding and none; quotes, zeros, huge fields, odd labels, odd paths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

from .. import jsons
from ..cases import Case
from ..mutate import blind
from .bases import CLASSES, flat

_LABELS = (
    "", " ", "ant ", " ant", "Ant", "0", "1", "-1", "007", "1.0", "nan", "NaN", "null", "None", "inf", "1e3",
    "=1+1", "+1", "@SUM(A1)", "ant|bee", "ant bee", "ant;bee", "a,b", "true", jsons.ESCAPES, "x" * 200_000, "é",
    "e\u0301", "\u202eant", "\x00", "99999999999999999999", "\ufeffant", '"', "'", "٣",
)  # fmt: skip
_PATHS = (
    "", " ", "/etc/passwd", "/dev/zero", "../../../../etc/passwd", "nothing.png", "000.png ", " 000.png",
    "./000.png", "000.PNG", "http://192.0.2.1/x.png", "file:///etc/passwd", "a\x00b.png", "x" * 5000, ".", "/",
    "~/x.png", "C:\\x.png", "sub\\000.png", jsons.ESCAPES, "pipe.png", "000",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk", "data:image/png;base64,AAAA",
    "{'bytes': b'x'}", "*", "NaN",
)  # fmt: skip


def _row(rng: Random, names: list[str], k: int) -> dict[str, Any]:
    row: dict[str, Any] = {"image": names[k % len(names)], "label": CLASSES[k % 3]}
    if rng.random() < 0.12:
        row["label"] = rng.choice(_LABELS)
    if rng.random() < 0.08:
        row["image"] = rng.choice(_PATHS)
    return row


def _options(rng: Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.15:
        found["label_separator"] = rng.choice(("", " ", "|", ",", ";", "ab", "\x00", "x" * 100))
        found["multi_label"] = rng.random() < 0.7
    for key in ("image_column", "label_column", "split_column"):
        if rng.random() < 0.08:
            found[key] = rng.choice(("image", "label", "split", "", "nothing", "\x00", "0", jsons.ESCAPES))
    if rng.random() < 0.1:
        found["class_names"] = rng.choice(
            (["ant"], ["ant", "bee", "cat"], ["ant", "ant", "bee"], [], ["0", "1"], ["x"] * 1000)
        )
    return found


def csv(rng: Random, folder: Path) -> Case:
    root = folder / "set"
    names = flat(root)
    os.mkfifo(root / "pipe.png")
    rows = [_row(rng, names, k) for k in range(rng.choice((0, 1, 6, 6, 6, 30)))]
    columns = ["image", "label"]
    if rng.random() < 0.3:
        columns.append("split")
        for row in rows:
            row["split"] = rng.choice(
                ("train", "train", "test", "val", "valid", " Train", "TEST", "", "dev", "0", "nan")[
                    : rng.choice((3, 11))
                ]
            )
    if rng.random() < 0.2:
        columns = rng.choice(
            (
                ["id", "label"],
                ["Image", "Label"],
                [" image", "label "],
                ["image", "label", "label"],
                ["", ""],
                ["path", "class", "x"],
                ["image"],
                ["label"],
                ["image", *CLASSES],
                ["x" * 100_000, "label"],
            )
        )
    mark = rng.choice((",", ",", ",", ";", "\t", "|", " "))
    quoted = rng.random() < 0.3

    def cell(value: Any) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if quoted or (mark in text and rng.random() < 0.8) else text

    lines = [mark.join(map(cell, columns))] if rng.random() < 0.9 else []
    for row in rows:
        cells = [
            cell(row.get(column, row["label"] if column.lower().strip() in ("label", "class") else row["image"]))
            for column in columns
        ]
        if rng.random() < 0.03:
            cells = cells[:-1] if rng.random() < 0.5 else [*cells, "extra"]
        lines.append(mark.join(cells))
    text = rng.choice(("\n", "\n", "\r\n", "\r", "\n\n")).join(lines) + rng.choice(("\n", "", "\n\n\n", '"', "\x1a"))
    data = text.encode(
        rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32", "cp1252")),
        "replace",
    )
    match rng.randrange(12):
        case 0:
            data = blind(rng, data)
        case 1:
            data = data.replace(b"\n", b"\n\0", 1)
        case 2:
            data += b'"' + b"x" * rng.choice((200_000, 5_000_000))
        case 3:
            data = data * rng.choice((2, 3000))
        case 4:
            data = rng.choice(
                (b"", b"\n", b"\0", b"\xff\xfe", b",\n,\n", b'"', b"image,label", b"PK\x03\x04", b"\x1f\x8b")
            )
    path = root / f"table{rng.choice(('.csv', '.csv', '.tsv', '.CSV', '.txt'))}"
    path.write_bytes(data)
    return Case(path if rng.random() < 0.85 else root, _options(rng))


def lines(rng: Random, folder: Path) -> Case:
    """JSON lines whose lines are not objects, whose values are of any type, nested, duplicated, cut."""
    root = folder / "set"
    names = flat(root)
    os.mkfifo(root / "pipe.png")
    written = []
    for k in range(rng.choice((0, 1, 6, 6, 40))):
        row: Any = _row(rng, names, k)
        if rng.random() < 0.1:
            row = jsons.spoiled(rng, {**row, "labels": ["ant", "bee"], "split": "train", "bytes": "AAAA"}, most=3)
        written.append(
            jsons.text(rng, row) if rng.random() < 0.05 else json.dumps(row).encode("utf-8", "surrogatepass")
        )
    data = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b",")).join(written)
    if rng.random() < 0.1:
        data = rng.choice((b"[" + data.replace(b"\n", b",") + b"]", blind(rng, data), b"{}", b"[]", b"\0"))
    path = root / f"table{rng.choice(('.jsonl', '.jsonl', '.json', '.ndjson'))}"
    path.write_bytes(data)
    return Case(path, _options(rng))


def places(rng: Random, folder: Path) -> Case:
    """A table that is a pipe, a device, a loop, a folder, three gigabytes of nothing."""
    root = folder / "set"
    flat(root)
    path = root / f"table{rng.choice(('.csv', '.tsv', '.jsonl', '.parquet', '.tar', '.zip', '.tar.gz'))}"
    match rng.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/dev/urandom", "/dev/stdin", "/proc/self/mem")))
        case 2:
            path.symlink_to(path)
        case 3:
            path.mkdir()
        case _:
            with open(path, "wb") as file:
                file.write(rng.choice((b"", b"image,label\n000.png,ant\n", b"PK\x03\x04", b"PAR1", b"\x1f\x8b\x08")))
                file.truncate(rng.choice((3 << 30, 20 << 30)))
    return Case(path)


GENERATORS = {"text.csv": csv, "text.lines": lines, "text.places": places}
