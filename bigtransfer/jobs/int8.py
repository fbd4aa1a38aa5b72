"""`bit convert --dtype int8`: calibrated on a run's training images, and what that costs measured on others before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigtransfer import runs
from bigtransfer.backends import int8, onnx_file
from bigtransfer.backends.by_onnxruntime import OnnxRuntime
from bigtransfer.catalog import ModelCard
from bigtransfer.data import ImageSet, Splits, open_dataset, splits
from bigtransfer.data.classes import match
from bigtransfer.data.sources import readable
from bigtransfer.errors import ConfigError, DataError, RunError, WeightsError

MOST_LOST = 0.02
"""Of the accuracy on held-out images: with more lost, and more than one image, nothing is written."""
_CALIBRATED, _MEASURED = 128, 1000
"""Images at most. Ranges hardly change beyond a hundred."""
_AT_A_TIME = 8


def quantized(content: bytes, card: ModelCard, source: str, asked: str | None) -> tuple[bytes, str]:
    """The ONNX file (of uint8 pixels) with its convolutions in int8, and in words what that costs, which its card holds too. asked:
    the data set with labels; None: that of the run `source`, by its split.

    Raises ConfigError and DataError where there are no such images, WeightsError where more than `MOST_LOST` would be lost.
    """
    if card.multi_label:
        raise ConfigError("--dtype int8 is for models of one class an image; what it costs others is not measured yet.")
    parts, where = _parts(source, asked, card)
    held = parts.test or parts.val
    if held is None:
        raise DataError(f"{where} has no images but those to learn from, and what int8 costs is measured on others.")
    name = "test" if parts.test is held else "val"
    numbers = match(held.class_names, card.class_names, card.num_classes, subset=True).numbers
    made = int8.quantized(content, (some for some, _ in _batches(splits.evenly(parts.train, _CALIBRATED, 0), card)))
    before, after = (OnnxRuntime(onnx_file.parse(one, card.name), card.name, "cpu", "auto") for one in (content, made))
    right, count, agreed = [0, 0], 0, 0
    for images, labels in _batches(splits.evenly(held, _MEASURED, 0), card):
        wanted = numbers[labels]
        first, second = (backend.run(images)[1].argmax(1) for backend in (before, after))
        right = [right[0] + int((first == wanted).sum()), right[1] + int((second == wanted).sum())]
        agreed, count = agreed + int((first == second).sum()), count + len(images)
    if not count:
        raise DataError(f"None of the {name} images of {where} can be read.")
    lost = right[0] - right[1]
    told = (
        f"calibrated on {min(len(parts.train), _CALIBRATED)} training images; top-1 on {count} {name} images of {where}: "
        f"{right[0] / count:.1%} in float32, {right[1] / count:.1%} in int8; the same class for {agreed}"
    )
    if asked is None and name == "val":
        # The closed form is solved with them again once nothing is to be chosen by them.
        told += "; the model may have learnt from them in the end, and new images may lose more"
    if count * MOST_LOST < 1:
        told += f" (too few to see a loss of {MOST_LOST:.0%})"
    if lost > max(MOST_LOST * count, 1):
        raise WeightsError(
            f"int8 loses too much ({MOST_LOST:.0%} is allowed): {told}. Nothing was written. Take --dtype float16."
        )
    metrics = {
        **card.metrics,
        "int8/top1": right[1] / count,
        "int8/float32_top1": right[0] / count,
        "int8/images": float(count),
    }
    return int8.with_card(made, dataclasses.replace(card, metrics=metrics)), told


def _parts(source: str, asked: str | None, card: ModelCard) -> tuple[Splits, str]:
    folder = runs.folder_of(source)
    data = asked
    if data is None:
        try:
            data = runs.origin(folder).data
        except (FileNotFoundError, RunError):
            data = None
    if data is None:
        raise ConfigError(
            "--dtype int8 is calibrated on images of the kind that the model will see; name a data set: --images DATA"
        )
    there = splits.single(open_dataset(data, multi_label=False, channels=card.architecture.in_chans))
    file = folder / "split.json"
    if asked is None and Path(file).is_file():
        there = splits.load_split(file, there)
    elif there.test is None and there.val is None:
        train, val = splits.hold_out(there.train, 0.5)
        there = dataclasses.replace(there, train=train, val=val)
    return there, data


def _batches(images: ImageSet, card: ModelCard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 `(n, channels, size, size)` and labels; images that cannot be read are left out."""
    assert images.labels is not None
    some: list[np.ndarray] = []
    labels: list[int] = []
    for row, pixels in readable(images, card.input, range(len(images))):
        some.append(pixels)
        labels.append(int(images.labels[row]))
        if len(some) == _AT_A_TIME:
            yield _stacked(some), np.array(labels)
            some, labels = [], []
    if some:
        yield _stacked(some), np.array(labels)


def _stacked(images: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
