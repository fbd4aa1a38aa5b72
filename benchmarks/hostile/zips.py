"""ZIP archives written by hand, so that every field can lie."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from random import Random

from .mutate import le, number


@dataclass
class Entry:
    name: bytes
    content: bytes
    method: int = 0
    flags: int = 0
    lies: dict[str, int] = field(default_factory=dict)
    """Fields of both headers (crc, packed, size, method, name) or of one (central.size, offset) -> other values."""
    extra: bytes = b""


def archive(
    entries: list[Entry],
    *,
    count: int | None = None,
    start: int | None = None,
    prefix: bytes = b"",
    comment: bytes = b"",
) -> bytes:
    """count, start: what the end says of the directory, if not the truth."""
    body, directory = bytearray(prefix), bytearray()
    for entry in entries:
        content = entry.content
        if entry.method == 8:
            packer = zlib.compressobj(6, wbits=-15)
            content = packer.compress(content) + packer.flush()
        facts = {
            "crc": zlib.crc32(entry.content),
            "packed": len(content),
            "size": len(entry.content),
            "method": entry.method,
        }
        offset = entry.lies.get("offset", len(body))

        def fields(kind: str, facts: dict[str, int] = facts, entry: Entry = entry) -> bytes:
            said = {key: entry.lies.get(f"{kind}.{key}", entry.lies.get(key, value)) for key, value in facts.items()}
            return (
                le(20, entry.flags, said["method"], 0, 33, size=2)
                + le(said["crc"], said["packed"], said["size"])
                + le(entry.lies.get(f"{kind}.name", len(entry.name)), len(entry.extra), size=2)
            )

        body += b"PK\x03\x04" + fields("local") + entry.name + entry.extra + content
        directory += (
            b"PK\x01\x02"
            + le(20, size=2)
            + fields("central")
            + le(0, 0, 0, size=2)
            + le(entry.lies.get("attributes", 0), offset)
        )
        directory += entry.name + entry.extra
    end = b"PK\x05\x06" + le(0, 0, size=2) + le(*([len(entries) if count is None else count] * 2), size=2)
    end += le(len(directory), len(body) if start is None else start) + le(len(comment), size=2) + comment
    return bytes(body + directory + end)


def lie(rng: Random, entry: Entry) -> None:
    """Something about the entry that is not so."""
    match rng.randrange(8):
        case 0:
            entry.lies[rng.choice(("crc", "local.crc", "central.crc"))] = number(rng, 32)
        case 1:
            entry.lies[rng.choice(("size", "packed", "central.size", "central.packed", "local.size"))] = number(rng, 32)
        case 2:
            entry.lies[rng.choice(("method", "central.method"))] = rng.choice(
                (1, 6, 8, 9, 12, 14, 93, 95, 98, 99, 65535)
            )
        case 3:
            entry.flags = rng.choice((1, 8, 0x41, 0x800, 0x2000, 65535))
        case 4:
            entry.lies["offset"] = number(rng, 32)
        case 5:
            entry.lies[rng.choice(("local.name", "central.name"))] = number(rng, 16)
        case 6:
            entry.extra = rng.choice(
                (
                    le(1, 8, size=2) + le(2**63, size=8),
                    le(1, 65535, size=2),
                    rng.randbytes(20),
                    le(0x7075, 9, size=2) + bytes(9),
                )
            )
        case _:
            entry.name = rng.choice(
                (
                    b"../../evil",
                    b"/etc/evil",
                    b"a\\b",
                    b"",
                    b"\xff\xfe",
                    b"a\0b",
                    b"x" * 60_000,
                    b"c:\\evil",
                    entry.name + b"/",
                    b"\x1b[31m.npy",
                    b"data.pkl",
                )
            )
