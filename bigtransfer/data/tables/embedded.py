"""Images that stand in a column of text: Base64, bare or as data: addresses."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigtransfer.data.sources import Encoded, Strings
from bigtransfer.errors import ImageError

_ADDRESS = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{60,}={0,2}\s*")
_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0",
    b"qoif",
    b"P4",
    b"P5",
    b"P6",
)
"""First bytes of image files."""


def is_embedded(value: Any) -> bool:
    """Whether a cell holds an image itself."""
    if not isinstance(value, str) or len(value) < 60:
        return False
    text = value.strip()
    if _ADDRESS.match(text):
        return True
    return _BASE64.match(text, 0, 200) is not None and _decoded(text[:64]).startswith(_STARTS)


def _decoded(text: str) -> bytes:
    """Of either alphabet, without regard to padding; b"" if it is not Base64."""
    plain = re.sub(r"\s+", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


class EmbeddedImages(Encoded):
    """Images as Base64 text, decoded where they are read."""

    runs = None
    remote = False

    def __init__(self, cells: Sequence[str], names: Sequence[str], where: str) -> None:
        """where: the table, in messages."""
        self._cells, self._names, self._where = Strings(cells), Strings(names), where

    def name(self, row: int) -> str:
        return self._names[row]

    def data(self, row: int) -> bytes:
        text = self._cells[row].strip()
        address = _ADDRESS.match(text)
        content = _decoded(text[address.end() :] if address else text)
        if not content:
            raise ImageError(self._place(row), "the cell holds no Base64 text")
        return content

    def prefetch(self, rows: np.ndarray) -> None:
        pass

    def _place(self, row: int) -> str:
        return f"{self._where}: {self.name(row)}"
