"""Decoded images in the compute device's memory, where whole batches of them are cropped, resized and mirrored at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bigtransfer.errors import ConfigError
from bigtransfer.feed.augment import Augmentation, Crops, SquareCrop
from bigtransfer.feed.cache import DecodedImages

_PIXELS_AT_ONCE = 1 << 24
"""Of the windows that are resized together; 12 bytes each, and as much again on the way."""

_ONE, _HALF = 1 << 22, 1 << 11
"""Pillow's unit of weights, and what splits them in two."""


class DeviceImages:
    """The images of a `DecodedImages` on `device`."""

    def __init__(self, decoded: DecodedImages, device: torch.device) -> None:
        """ConfigError if they do not fit into the device's memory, or if it is an Apple GPU."""
        if device.type == "mps":
            raise ConfigError("--cache device needs float64, which Apple's GPUs lack. Choose --cache memory or none.")
        self.device, self.channels, self.sizes, self.errors = device, decoded.channels, decoded.sizes, decoded.errors
        self._starts = decoded.offsets[:-1] // decoded.channels
        # What little is to be done here goes first: the training waits for it.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        count, (height, width) = len(decoded), decoded.sizes[0].tolist()
        self._all: Tensor | None = None
        """uint8 (n, c, h, w), where all have one size; otherwise `_pixels` has them end to end, (pixels, c)."""
        try:
            # Through copies, as the cache may be a file that cannot be written to.
            if height and bool((decoded.sizes == decoded.sizes[0]).all()):
                self._all = torch.empty((count, self.channels, height, width), dtype=torch.uint8, device=device)
                images = decoded.pixels.reshape(count, height, width, self.channels)
                for first in range(0, count, 4096):
                    some = torch.from_numpy(images[first : first + 4096].copy())
                    self._all[first : first + 4096] = some.to(device).permute(0, 3, 1, 2)
            else:
                pixels = decoded.pixels.reshape(-1, self.channels)
                self._pixels = torch.zeros((max(len(pixels), 1), self.channels), dtype=torch.uint8, device=device)
                for first in range(0, len(pixels), 1 << 26):
                    self._pixels[first : first + (1 << 26)] = torch.from_numpy(pixels[first : first + (1 << 26)].copy())
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"--cache device: the decoded images, {len(decoded.pixels) / 1e9:.1f} GB, do not fit into the memory of {device}. "
                "Choose --cache memory or none."
            ) from error

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """What is done within is done on a stream of its own, and finished when it ends: a copy to a GPU waits for all that was asked of
        its stream before, and the training always has much to do on the other."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def crop(self, indices: np.ndarray, crops: Crops, augmentation: Augmentation) -> Tensor:
        """As `DecodedImages.crop`, on the device, where Pillow's fixed-point bilinear filter is repeated to the bit (Pillow before
        version 13 rounds some images differently, by one level or two).

        On a GPU the result is finished, but belongs to another stream: whoever computes with it says so (`Tensor.record_stream`)."""
        with self._aside():
            return self._cropped(indices, crops, augmentation)

    def _cropped(self, indices: np.ndarray, crops: Crops, augmentation: Augmentation) -> Tensor:
        # A square crop has its size already.
        assert isinstance(augmentation, SquareCrop) or (
            augmentation.interpolation == "bilinear" and augmentation.antialias
        )
        bad = self.sizes[indices, 0] == 0
        whole = np.where(bad[:, None], [0, 0, 1, 1], crops.boxes)
        side = augmentation.side
        result = torch.empty(
            (len(indices), self.channels, side, side),
            dtype=torch.uint8,
            device=self.device,
            memory_format=torch.channels_last,
        )
        # Pillow (since version 13) goes along the columns first where that makes the image smaller sooner.
        along_columns = whole[:, 2] - side > 2 * np.maximum(whole[:, 3] - side, 0)
        for columns_first in (False, True):
            for group in self._groups(np.flatnonzero(along_columns == columns_first), whole):
                boxes = whole[group]
                windows, corners = self._windows(indices[group], boxes)
                down = _weights(corners[:, 0], boxes[:, 2], windows.shape[2], side, None, self.device)
                across = _weights(
                    corners[:, 1], boxes[:, 3], windows.shape[3], side, crops.mirrored[group], self.device
                )
                result[torch.from_numpy(group).to(self.device)] = _resized(windows, down, across, columns_first)
        result[torch.from_numpy(bad).to(self.device)] = 0
        return result

    def _groups(self, positions: np.ndarray, boxes: np.ndarray) -> Iterator[np.ndarray]:
        """Positions in the batch that are done together: of similar size, as all windows of a group are as large as its largest."""
        heights, widths = boxes[positions, 2:].T
        if self._all is not None:
            heights, widths = (np.full(len(positions), extent) for extent in self._all.shape[2:])
        order = np.argsort(heights * widths, kind="stable")
        start = 0
        while start < len(order):
            tallest, widest = (np.maximum.accumulate(extents[order[start:]]) for extents in (heights, widths))
            areas = tallest * widest * np.arange(1, len(tallest) + 1)
            end = start + max(1, int(np.searchsorted(areas, _PIXELS_AT_ONCE, side="right")))
            yield positions[order[start:end]]
            start = end

    def _windows(self, indices: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Pixels that hold the boxes, uint8 (n, c, h, w), and the boxes' top left corners in them, (n, 2)."""
        if self._all is not None:
            return self._all[torch.from_numpy(indices).to(self.device)], boxes[:, :2]
        widths = self.sizes[indices, 1]
        firsts = torch.from_numpy(self._starts[indices] + boxes[:, 0] * widths + boxes[:, 1]).to(self.device)
        tallest, widest = boxes[:, 2:].max(axis=0).tolist()
        rows = (
            torch.arange(tallest, device=self.device)[:, None] * torch.from_numpy(widths).to(self.device)[:, None, None]
        )
        # Beyond a box lie other pixels, or none: they get no weight.
        places = (firsts[:, None, None] + rows + torch.arange(widest, device=self.device)).clamp_(
            max=len(self._pixels) - 1
        )
        return self._pixels[places].permute(0, 3, 1, 2), np.zeros_like(boxes[:, :2])


def _weights(
    starts: np.ndarray, extents: np.ndarray, length: int, side: int, mirrored: np.ndarray | None, device: torch.device
) -> Tensor:
    """What each of `length` pixels of a line counts for each of `side` resized ones, by Pillow's triangle filter.

    starts, extents: int64 (n,), where the part to be resized begins and how long it is. The weights, whole multiples of 2**-22 as in
    Pillow, come as two numbers of 11 bits, the high ones first: float32 (n, 2 * side, length).
    """
    scale = extents[:, None] / side
    centres = (np.arange(side) + 0.5) * scale
    if mirrored is not None:
        centres = np.where(mirrored[:, None], centres[:, ::-1], centres)

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)[:, :, None]

    pixels = torch.arange(length, device=device) - put(starts[:, None])
    weights = (pixels + 0.5 - put(centres)).abs_().div_(put(np.maximum(scale, 1))).neg_().add_(1).clamp_(min=0)
    weights *= (pixels >= 0) & (pixels < put(extents[:, None]))
    weights *= _ONE / weights.sum(dim=2, keepdim=True)
    weights.add_(0.5).floor_()
    high = (weights / _HALF).floor_()
    return torch.cat([high, weights - high * _HALF], dim=1).to(torch.float32)


def _rounded(sums: Tensor, dim: int) -> Tensor:
    """Sums of pixels by the two parts of their weights -> the resized pixels, rounded to 8 bits as Pillow does.

    Both parts are whole numbers below 2**24 (unless an image shrinks to less than a sixteenth), so float32 has them exactly, in
    whatever order and even if the factors were rounded to TensorFloat-32.
    """
    high, low = sums.to(torch.int32).chunk(2, dim)
    return ((high * _HALF + low + _ONE // 2) // _ONE).to(torch.uint8)


def _resized(windows: Tensor, down: Tensor, across: Tensor, columns_first: bool) -> Tensor:
    """uint8 (n, c, h, w) and weights along columns (n, 2 * side, h) and rows (n, 2 * side, w) -> (n, c, side, side)."""
    n, c, _, w = windows.shape

    def along_columns(pixels: Tensor) -> Tensor:
        return _rounded(down[:, None] @ pixels.to(torch.float32), 2)

    def along_rows(pixels: Tensor) -> Tensor:
        lines = pixels.reshape(n, -1, w).to(torch.float32)
        return _rounded(lines @ across.mT, 2).view(n, c, -1, across.shape[1] // 2)

    if columns_first:
        return along_rows(along_columns(windows))
    return along_columns(along_rows(windows))
