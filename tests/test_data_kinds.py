"""What a file is by its first bytes."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from bigtransfer.data import kinds


@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_images_are_known_by_their_first_bytes(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, form)
    head = file.getvalue()[: kinds.HEAD]
    assert kinds.is_image(head)
    assert not kinds.is_image(b"x" + head), "they begin with it"


@pytest.mark.parametrize(
    "head",
    [
        b"", b"BM", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF", b"\0\0\0\x18ftypmp42\0\0\0\0", b"\0\0\0\x18ftyp", b"BMW is a car, and so on",
        b"GIF", b"\x89PNG", b"\xff\xd8", b"%PDF-1.7", b"PK\x03\x04", b"image", bytes(32),
    ],
)  # fmt: skip
def test_what_only_begins_like_an_image_is_none(head: bytes) -> None:
    assert not kinds.is_image(head)
