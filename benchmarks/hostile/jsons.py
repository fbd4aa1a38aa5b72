"""Ways to spoil JSON: values of every wrong type at every place, and texts that parsers stumble over."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x1b[2J"
TEXTS = (
    "",
    " ",
    "48",
    "nan",
    ESCAPES,
    "a\nb",
    "a\tb",
    "\x00",
    "\x9b31m",
    "\u202egnp",
    "=cmd|' /C calc'!A0",
    "../../etc/passwd",
    "/etc/passwd",
    "\\\\server\\share",
    "http://192.0.2.1/x",
    "é" * 300,
    "x" * 100_000,
    "\ud800",
    "<script>alert(1)</script>",
    "{{7*7}}",
    "%s%n",
    "CON",
)


def value(rng: Random, depth: int = 0) -> Any:
    """Any JSON value, rather one that programs stumble over."""
    kinds = [
        lambda: None,
        lambda: rng.choice((True, False)),
        lambda: rng.choice((0, 1, -1, 2, -5, 3, 10, 1000, 100_000, 10**9, 2**31, 2**63, 2**64, 10**400, -(2**63))),
        lambda: rng.choice((0.0, 0.5, -0.5, 3.7, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 1e18)),
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(TEXTS),
    ]
    if depth < 2:
        kinds += [
            lambda: [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 4)))],
            lambda: {
                str(rng.choice((*TEXTS[:6], "label", "0", "names"))): value(rng, depth + 1)
                for _ in range(rng.choice((0, 1, 3)))
            },
            lambda: [rng.choice(TEXTS)] * rng.choice((1, 3, 5000)),
            lambda: nested(rng.choice((3, 50, 900))),
        ]
    return rng.choice(kinds)()


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def places(record: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in `record`, itself first."""
    found = [above]
    if len(above) > 8:
        return found
    keys = record.keys() if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ()
    for key in list(keys)[:50]:
        found += places(record[key], (*above, key))
    return found


def spoiled(rng: Random, record: Any, most: int = 2) -> Any:
    """A copy of `record` in which some values are others, or missing, or added."""
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, most)):
        path = rng.choice(places(record))
        if not path:
            if rng.random() < 0.1:
                return value(rng)
            continue
        inner = record
        for key in path[:-1]:
            inner = inner[key]
        match rng.randrange(8):
            case 0:
                del inner[path[-1]]
            case 1 if isinstance(inner, dict):
                inner[rng.choice(TEXTS)] = value(rng)
            case 2 if isinstance(inner[path[-1]], list):
                inner[path[-1]] = inner[path[-1]] * rng.choice((0, 2, 1000))
            case 3 if isinstance(inner[path[-1]], str | int | float):
                inner[path[-1]] = rng.choice((str(inner[path[-1]]), [inner[path[-1]]], {"x": inner[path[-1]]}))
            case 4 if isinstance(inner[path[-1]], int | float) and abs(inner[path[-1]]) < 1e300:
                inner[path[-1]] = rng.choice(
                    (-inner[path[-1]], inner[path[-1]] + 1, inner[path[-1]] * 1000, inner[path[-1]] + 0.5)
                )
            case _:
                inner[path[-1]] = value(rng)
    return record


def text(rng: Random, record: Any) -> bytes:
    """As a file holds it: now and then in another encoding, cut, twice the same key, nested beyond reason."""
    plain = json.dumps(record, ensure_ascii=rng.random() < 0.7)
    data = plain.encode("utf-8", "surrogatepass")
    match rng.randrange(24):
        case 0:
            return plain.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
        case 1:
            return data[: rng.randrange(len(data) + 1)]
        case 2:
            return b"[" * rng.choice((1000, 100_000)) + data
        case 3:
            return b'{"a":' * rng.choice((1000, 100_000))
        case 4:
            return data + rng.choice((b"\0", b"x", b"\n" + data, b","))
        case 5:
            return data[:-1] + b"," + data[1:] if len(data) > 2 and data[:1] == b"{" else data
        case 6:
            return data.replace(b":", b": 1" + b"0" * 5000 + b', "x":', 1)
        case 7:
            return rng.choice(
                (b"", b"\0\0\0\0", b"null", b"[]", b"{}", b"\xff\xfe", b"\xef\xbb\xbf", b"0", b'""', b"NaN")
            )
    return data
