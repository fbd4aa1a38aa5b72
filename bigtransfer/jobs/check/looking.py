"""Every image of a data set looked at once: what duplicates, flaws, labels and shortcuts are judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtransfer.bars import tqdm
from bigtransfer.catalog import Readout
from bigtransfer.config import CheckConfig
from bigtransfer.data import ImageSet, containers, native_size
from bigtransfer.data import images as image_ops
from bigtransfer.errors import DataError, ImageError
from bigtransfer.evals import duplicates, quality
from bigtransfer.evals.duplicates import Sketches
from bigtransfer.evals.quality import Look
from bigtransfer.machine import usable_cores
from bigtransfer.model import Network, joined
from bigtransfer.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Parts:
    """The images that are checked, of one or several parts, one after the other."""

    parts: Mapping[str, ImageSet]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def at(self, i: int) -> tuple[str, ImageSet, int]:
        """Of image `i`: its part, that part's images, and its place among them."""
        for part, images in self.parts.items():
            if i < len(images):
                return part, images, i
            i -= len(images)
        raise IndexError(i)

    def places(self) -> list[tuple[ImageSet, int]]:
        """Of every image its set and its place in it."""
        return [(images, i) for images in self.parts.values() for i in range(len(images))]

    def part(self, i: int) -> str:
        return self.at(i)[0]

    def name(self, i: int) -> str:
        _, images, at = self.at(i)
        return images.name(at)

    def classes(self, i: int) -> tuple[str, ...]:
        """Names of its classes; empty if it has none."""
        _, images, at = self.at(i)
        if images.labels is None:
            return ()
        return tuple(images.class_names[label] for label in np.atleast_1d(images.labels[at]) if label >= 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Looked:
    """What was seen of the images, by their order."""

    sketches: Sketches
    features: np.ndarray
    """float16 (n, d): what labels are judged by; d is 0 where no network looks."""
    looks: list[Look | None]
    """None: unreadable."""
    kinds: list[str]
    """Formats of the image files; "" where there are none, or it was not looked."""
    bytes_per_pixel: np.ndarray
    """float64 (n,); NaN likewise."""
    unreadable: dict[int, ImageError]


WIDE = 3000
"""Images up to which labels are judged by the features of all blocks, whose solution then takes seconds; of more by those of the last."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Eye:
    """The network that looks."""

    predictor: Predictor
    last: Tensor
    """int64 (m,): which of its features are the means of its last block, by which pictures are compared."""


def open_eye(config: CheckConfig, network: Network, images: int) -> Eye:
    """The network made to look at so many images."""
    plain = network.architecture.readout is None and network.architecture.beside is None
    last = torch.arange(network.architecture.num_features)
    if plain and images <= WIDE:
        readout = Readout(blocks=tuple(range(len(network.architecture.stages))))
        widths = readout.block_features(network.architecture)
        network = joined(network, readout)
        # Of each block the means come before the maxima.
        first = sum(map(sum, widths[:-1]))
        last = torch.arange(first, first + widths[-1][0])
    return Eye(predictor=Predictor(network, device=config.device, precision=config.precision), last=last)


def look(seen: Parts, eye: Eye | None, config: CheckConfig, progress: bool = False) -> Looked:
    """Look at the images. Those that cannot be read are left out and listed; DataError if none of a part can be."""
    spec = None if eye is None else eye.predictor.card.input
    # All are compared at the least resolution of all parts. Where the network sees them enlarged, or as large as they are, it makes no
    # difference.
    level = min(max(native_size(images)) for images in seen.parts.values() if len(images))
    shrink = level if level < max(duplicates.SIDE, 0 if spec is None else spec.size) else None

    def one(images: ImageSet, i: int) -> _Seen | ImageError:
        try:
            pixels = images.read(i)
        except ImageError as error:
            return ImageError(images.name(i), error.reason)
        small = duplicates.shrunk(pixels, shrink)
        kind, size = _file(images, i)
        return _Seen(
            thumbnail=duplicates.thumbnail(small),
            digest=duplicates.digest(pixels),
            look=quality.look(pixels),
            kind=kind,
            bytes=size,
            shown=None if spec is None else image_ops.prepare(small, dataclasses.replace(spec, mode="square")),
        )

    count = len(seen)
    wide = np.zeros((count, 0 if eye is None else eye.predictor.card.architecture.num_features), np.float16)
    sketches = Sketches(
        thumbnails=np.zeros((count, duplicates.SIDE, duplicates.SIDE), np.uint8),
        digests=np.zeros((count, 16), np.uint8),
        features=np.zeros((count, 0 if eye is None else len(eye.last)), np.float16),
        readable=np.zeros(count, bool),
    )
    looks: list[Look | None] = [None] * count
    kinds = [""] * count
    bytes_per_pixel = np.full(count, np.nan)
    unreadable: dict[int, ImageError] = {}
    size = config.batch_size or (128 if eye is None else eye.predictor.batch_size)
    with (
        ThreadPoolExecutor(config.workers or usable_cores()) as pool,
        tqdm(total=count, desc="looking", unit="img", disable=None if progress else True, leave=False) as bar,
    ):
        for start, results in _ahead(pool, one, seen.places(), size):
            shown = []
            for i, result in enumerate(results, start):
                if isinstance(result, ImageError):
                    unreadable[i] = result
                    continue
                sketches.thumbnails[i], sketches.digests[i], sketches.readable[i] = (
                    result.thumbnail,
                    result.digest,
                    True,
                )
                looks[i], kinds[i] = result.look, result.kind
                bytes_per_pixel[i] = result.bytes / (result.look.height * result.look.width)
                if result.shown is not None:
                    shown.append((i, result.shown))
            if eye is not None and shown:
                batch = torch.from_numpy(np.stack([pixels for _, pixels in shown])).permute(0, 3, 1, 2)
                pooled = eye.predictor.pooled(batch)
                rows = [i for i, _ in shown]
                wide[rows] = pooled.numpy().astype(np.float16)
                unit = torch.nn.functional.normalize(pooled[:, eye.last], dim=1)
                sketches.features[rows] = unit.numpy().astype(np.float16)
            bar.update(len(results))
    start = 0
    for images in seen.parts.values():
        if len(images) and not sketches.readable[start : start + len(images)].any():
            first = unreadable[start]
            raise DataError(f"None of {len(images)} images can be read; the first: {first}.")
        start += len(images)
    return Looked(
        sketches=sketches,
        features=wide,
        looks=looks,
        kinds=kinds,
        bytes_per_pixel=bytes_per_pixel,
        unreadable=unreadable,
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    thumbnail: np.ndarray
    digest: np.ndarray
    look: Look
    kind: str
    bytes: float
    shown: np.ndarray | None


def _file(images: ImageSet, i: int) -> tuple[str, float]:
    """Format and bytes of an image's file; "" and NaN where it is none, or would be fetched once more."""
    if not images.store.encoded or images.store.remote:
        return "", float("nan")
    try:
        data = images.data(i)
        return containers.kind_of(data) or "", len(data)
    except ImageError:  # it was readable a moment ago
        return "", float("nan")


def _ahead(
    pool: ThreadPoolExecutor, job: Callable[..., Any], places: Sequence[tuple[ImageSet, int]], size: int
) -> Iterator[tuple[int, list[Any]]]:
    """Results of `job` for `size` places at a time, and where these begin; the next are being made meanwhile."""

    def submit(start: int) -> list[Future[Any]]:
        return [pool.submit(job, *place) for place in places[start : start + size]]

    ahead = submit(0)
    for start in range(0, len(places), size):
        current, ahead = ahead, submit(start + size)
        yield start, [future.result() for future in current]
