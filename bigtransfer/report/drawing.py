"""Boxes drawn into pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#000075", "#f032e6")
"""Of classes, one after the other; the next ones begin anew."""


def drawn(pixels: np.ndarray, boxes: np.ndarray, texts: Sequence[str], labels: Sequence[int]) -> Image.Image:
    """The image, uint8 (h, w, 3), with boxes (k, 4) in the colours of their classes and texts above them."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    side = max(pixels.shape[:2])
    width, font = max(1, side // 400), ImageFont.load_default(max(10, side // 50))
    for box, text, label in zip(boxes.tolist(), texts, labels, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        draw.rectangle(box, outline=colour, width=width)
        left, top, right, bottom = draw.textbbox((box[0], box[1]), text, font=font)
        # Above the box where there is room, else inside of it.
        shift = min(0, max(-box[1], -(bottom - box[1]) - width))
        draw.rectangle((left, top + shift, right, bottom + shift), fill=colour)
        draw.text((box[0], box[1] + shift), text, fill="white", font=font)
    return picture
