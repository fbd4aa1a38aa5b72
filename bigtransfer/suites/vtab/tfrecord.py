"""TensorFlow's record files and the examples in them, without TensorFlow: the door for files in its form.

A record is its length in 8 bytes and their checksum in 4, itself, and its own checksum (CRC-32C, turned by 15 bits and moved by a
constant). An example is a protocol buffer: by name a list of texts, of numbers of 32 bits with a fraction, or of whole ones of 64 bits.
Everything here raises ValueError saying what is wrong. Sources: tensorflow/core/lib/io/record_writer.h, example.proto, feature.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from bigtransfer import files
from bigtransfer.limits import limits


def records(file: Path, wanted: range | None = None, total: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Where each record of a file begins, in bytes, and the record: of those at the places `wanted` (ascending), or of all. Of the others
    only the lengths are read and checked, to the file's end. total: how many there must be, if that is known. No record may be larger
    than the limit `image_bytes`. OSError where it is no regular file."""
    with files.opened(file) as content:
        size = content.seek(0, 2)
        content.seek(0)
        place = 0
        while head := content.read(12):
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or _masked(head[:8]) != int.from_bytes(head[8:], "little"):
                raise ValueError(f"{file.name} is damaged, or no TFRecord file")
            start = content.tell()
            if length > size - start - 4:
                raise ValueError(f"{file.name} is cut short")
            if wanted is not None and place not in wanted:
                content.seek(length + 4, 1)
            elif length > limits().image_bytes:
                raise ValueError(
                    f"{file.name} has a record of {length:,} bytes, more than the limit; if it is meant: --limits image_bytes=N"
                )
            else:
                record = content.read(length)
                if _masked(record) != int.from_bytes(content.read(4), "little"):
                    raise ValueError(f"{file.name} is damaged")
                yield start, record
            place += 1
    if total is not None and place != total:
        raise ValueError(f"{file.name} has {place:,} records and not {total:,}")


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True)
class Example:
    """The features of an example by name. The methods raise ValueError naming a feature that is not so."""

    record: bytes
    features: dict[str, list[slice] | np.ndarray]
    """The places of texts in the record, or float32 or int64 (n,)."""

    def texts(self, name: str, least: int = 0) -> list[slice]:
        """The places of a feature's texts, `least` of them or more. No feature of that name is one without any."""
        found = self.features.get(name, [])
        if isinstance(found, np.ndarray) or len(found) < least:
            raise ValueError(f"{name} holds no text")
        return found

    def text(self, name: str) -> str:
        """A feature's only text."""
        return self.record[self.texts(name, 1)[0]].decode("utf-8", "surrogateescape")

    def numbers(self, name: str, least: int = 0, kind: type = np.int64) -> np.ndarray:
        """A feature's numbers, int64 or float32 (n,), `least` of them or more."""
        found = self.features.get(name)
        if found is None or (isinstance(found, list) and not found):
            found = np.empty(0, kind)
        if isinstance(found, list) or found.dtype != kind or len(found) < least:
            raise ValueError(
                f"{name} holds no numbers of {'64 bits' if kind is np.int64 else '32 bits with a fraction'}"
            )
        return found


def example(record: bytes) -> Example:
    """What a record holds. Of two features of one name the last counts, as in every protocol buffer."""
    found: dict[str, list[slice] | np.ndarray] = {}
    for features in _fields(record, slice(0, len(record)), 1):
        for entry in _fields(record, features, 1):
            name = ""
            for key in _fields(record, entry, 1):
                name = record[key].decode("utf-8", "replace")
            found[name] = []
            for feature in _fields(record, entry, 2):
                found[name] = _values(record, feature)
    return Example(record, found)


def _values(record: bytes, feature: slice) -> list[slice] | np.ndarray:
    values: list[slice] | np.ndarray = []
    for kind, _, place in _message(record, feature):
        if kind == 1:
            values = list(_fields(record, place, 1))
        elif kind == 2:
            values = _floats(record, place)
        elif kind == 3:
            values = _whole(record, place)
    return values


def _floats(record: bytes, place: slice) -> np.ndarray:
    packed = bytearray()
    for number, kind, value in _message(record, place):
        if number == 1 and kind in (2, 5):
            packed += record[value]
    if len(packed) % 4:
        raise ValueError("an example has numbers that are cut short")
    return np.frombuffer(bytes(packed), "<f4").astype(np.float32)


def _whole(record: bytes, place: slice) -> np.ndarray:
    values = []
    for number, kind, value in _message(record, place):
        at = value.start
        while number == 1 and kind in (0, 2) and at < value.stop:
            one, at = _varint(record, at, value.stop)
            values.append(one - (1 << 64) if one >> 63 else one)
    return np.array(values, np.int64)


def _fields(record: bytes, place: slice, wanted: int) -> Iterator[slice]:
    """Of a protocol buffer's message at that place, the places of the fields of that number that hold bytes."""
    for number, kind, value in _message(record, place):
        if number == wanted and kind == 2:
            yield value


def _message(record: bytes, place: slice) -> Iterator[tuple[int, int, slice]]:
    """Number, kind (0 number, 1 eight bytes, 2 bytes, 5 four bytes) and place of each field."""
    at = place.start
    while at < place.stop:
        tag, at = _varint(record, at, place.stop)
        kind, start = tag & 7, at
        if kind == 0:
            _, at = _varint(record, at, place.stop)
        elif kind == 2:
            length, start = _varint(record, at, place.stop)
            at = start + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"an example has a field of the kind {kind}")
        if at > place.stop:
            raise ValueError("an example ends before its fields do")
        yield tag >> 3, kind, slice(start, at)


def _varint(record: bytes, at: int, stop: int) -> tuple[int, int]:
    """A number of seven bits a byte, of 64 at most, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        value |= (record[at] & 127) << shift
        at += 1
        if record[at - 1] < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("an example has a number without end")
