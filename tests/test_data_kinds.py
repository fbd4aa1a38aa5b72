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


def test_what_there_is_most_of_is_named_first() -> None:
    passed, counts = kinds.Passed(), {".a": 2, ".b": 9, ".c": 1, ".d": 3, ".e": 8, ".f": 4, ".g": 5, ".h": 1}
    for ending, count in counts.items():
        for _ in range(count):
            assert not passed.add(ending, lambda: b"text")
    (told,) = passed.remarks("x")
    assert told == "Passed over what is not an image in x: 9 .b, 8 .e, 5 .g, 4 .f, 3 .d, 2 .a and 2 more."
