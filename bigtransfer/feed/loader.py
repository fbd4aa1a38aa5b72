"""Batches of uint8 images: for training without end or state, for evaluation once through the set in order."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigtransfer.catalog import InputSpec
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import ImageError
from bigtransfer.feed import cache as caches
from bigtransfer.feed.augment import Augmentation, InceptionCrop, draws
from bigtransfer.feed.background import Stopped, in_processes, in_threads
from bigtransfer.feed.device import DeviceImages
from bigtransfer.feed.order import FullShuffle, Order, order_of
from bigtransfer.machine import usable_cores

CacheMode = Literal["auto", "memory", "device", "none"]


class Batch(NamedTuple):
    step: int
    images: Tensor
    """uint8 (n, channels, size, size), channels_last, on the CPU unless the cache is "device"; or, from a `FeatureLoader`, their features,
    float32 (n, features)."""
    labels: Tensor
    """int64 (n,), or (n, k) padded with -1 for sets of several labels an image; of boxes float32 (n, k, 5) (`feed.boxes`)."""
    errors: tuple[ImageError, ...] = ()
    """The images that could not be decoded and were left out: their pixels are zero, all their labels -1."""
    teacher_images: Tensor | None = None
    """The same crops as a teacher sees them, uint8 (n, channels, teacher's size, teacher's size), channels_last, beside `images`."""
    readable: Tensor | None = None
    """bool (n,): False for those left out; None if there are none."""


def share(count: int, rank: int, ranks: int) -> slice:
    """The part of `count` things that is for process `rank` of `ranks`; all parts together are the whole."""
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


class _Made(NamedTuple):
    """The images of a batch or of a part of it, by the thread or process that made them."""

    indices: np.ndarray
    """int64 (n,): which images of the set."""
    images: Tensor
    """uint8 (n, c, size, size), channels_last."""
    errors: dict[int, ImageError]
    """By position among them."""
    teacher_images: Tensor | None
    """The same crops, larger or smaller, if there is a teacher to see them."""


class TrainLoader:
    """The training batches of steps `start`, `start + 1`, ... `stop - 1`.

    The same (set, augmentation, batch_size, seed) gives the same bytes whatever the cache, the workers and the start.
    cache: "memory" decodes every image once, keeps the fixed part of the augmentation in memory and makes batches in threads; "none"
    decodes in `workers` processes each time (0: in a thread); "auto" chooses between these two by the memory that is free. "device"
    keeps the decoded images in the memory of `device` and makes the batches there (the same bytes with Pillow 13 or newer).

    rank, ranks: this process gets its contiguous part (`share`) of each batch, and makes no other.
    cache_folder: processes of one machine share the decoded images through files there, which a later start finds again.
    skip_bad: an image that cannot be decoded is left out, as `Batch.errors` says, instead of raising ImageError.
    order: which images make up each batch, for batches of `batch_size`; by default every image once per epoch.
    teacher_size: batches also hold each crop at this size, px: the same part of the same pixels, mirrored alike. Of `InceptionCrop` only.
    Images without labels have the label -1.
    """

    def __init__(
        self,
        images: ImageSet,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        cache: CacheMode = "auto",
        workers: int = 0,
        progress: bool = False,
        rank: int = 0,
        ranks: int = 1,
        skip_bad: bool = False,
        cache_folder: Path | None = None,
        device: torch.device | None = None,
        order: Order | None = None,
        teacher_size: int | None = None,
    ) -> None:
        assert 0 <= rank < ranks
        self.images, self.augmentation = images, augmentation
        self.labels = np.full(len(images), -1) if images.labels is None else images.labels
        self._teacher_view: InceptionCrop | None = None
        if teacher_size is not None:
            assert isinstance(augmentation, InceptionCrop), "other crops have a size of their own"
            self._teacher_view = augmentation.seen_at(teacher_size)
        self.batch_size, self.seed, self.workers, self.skip_bad = batch_size, seed, workers, skip_bad
        self.order = order_of(len(images), images.runs, batch_size, seed) if order is None else order
        self._share = share(batch_size, rank, ranks)
        self._ahead = FetchAhead(stop=0)
        self._cache: caches.DecodedImages | DeviceImages | None = None
        fixed = augmentation.fixed
        if cache == "auto" and caches.fits(images, fixed, copies=ranks, folder=cache_folder, skip_bad=skip_bad):
            cache = "memory"
        if cache in ("memory", "device"):
            if cache_folder is None:
                self._cache = caches.in_memory(images, fixed, skip_bad=skip_bad, progress=progress)
            else:
                self._cache = caches.in_files(cache_folder, images, fixed, skip_bad=skip_bad, progress=progress)
        if cache == "device":
            assert self._cache is not None and device is not None
            self._cache = DeviceImages(self._cache, device)

    @property
    def cached(self) -> bool:
        return self._cache is not None

    def _plan(self, step: int, part: slice = slice(None)) -> tuple[Augmentation, np.ndarray, np.ndarray]:
        """How this process's images of batch `step`, or a part of them, are made: augmentation, indices (n,), draws (n, k)."""
        augmentation = self.augmentation.at(step)
        rows = draws(augmentation, self.seed, step, self.batch_size)
        return augmentation, self.order.indices(step)[self._share][part], rows[self._share][part]

    def _decode(self, piece: tuple[int, slice], stopped: Stopped) -> _Made:
        """The images of batch `step`, or a part of them, read from where they are stored; piece: (step, part)."""
        augmentation, indices, rows = self._plan(*piece)
        if self.images.remote:
            step, part = piece
            if coming := self._ahead.due(step):
                self.images.prefetch(np.concatenate([self.order.indices(each)[self._share][part] for each in coming]))
        views = [augmentation] if self._teacher_view is None else [augmentation, self._teacher_view]
        images = [
            np.zeros((len(indices), view.side, view.side, self.images.channels), dtype=np.uint8) for view in views
        ]
        errors = {}
        for position, (index, row) in enumerate(zip(indices.tolist(), rows, strict=True)):
            if stopped():
                break
            try:
                prepared = self.images.read(index, augmentation.fixed)
            except ImageError as error:
                if not self.skip_bad:
                    raise
                errors[position] = error
                continue
            for view, seen in zip(views, images, strict=True):
                seen[position] = view.apply(prepared, row)
        made = [caches.channels_last(seen) for seen in images]
        return _Made(indices, made[0], errors, made[1] if len(made) > 1 else None)

    def _crop(self, step: int, _stopped: Stopped) -> _Made:
        """The images of batch `step`, from the cache."""
        assert self._cache is not None
        augmentation, indices, rows = self._plan(step)
        crops = augmentation.crops(self._cache.sizes[indices], rows)
        bad = self._cache.errors
        errors = {position: bad[index] for position, index in enumerate(indices.tolist()) if index in bad}
        view = self._teacher_view
        seen = None if view is None else self._cache.crop(indices, crops, view)
        return _Made(indices, self._cache.crop(indices, crops, augmentation), errors, seen)

    def _from_processes(self, steps: range) -> Generator[_Made, None, None]:
        """The images of each step's batch, decoded in worker processes."""
        count = self._share.stop - self._share.start
        # Where images lie together in files, each process makes its part of every batch, and so reads files of its own. Otherwise each
        # makes whole batches, which takes fewer messages.
        parts = 1 if self.images.runs is None else max(1, min(self.workers, count))
        pieces = ((step, share(count, part, parts)) for step in steps for part in range(parts))
        processes = parts if parts > 1 else max(1, min(self.workers, len(steps)))
        # Enough to outlast a worker that is held up for a second or two, as long as that is little memory.
        sides = [self.augmentation.at(steps.stop - 1).side]
        if self._teacher_view is not None:
            sides.append(self._teacher_view.side)
        piece_bytes = -(-count // parts) * sum(side**2 for side in sides) * self.images.channels
        ahead = min(max(_decoded_ahead() // (processes * piece_bytes), 2), _MOST_DECODED_AHEAD)
        with contextlib.closing(in_processes(self._decode, pieces, processes=processes, ahead=ahead)) as made:
            for _ in steps:
                yield _joined([next(made) for _ in range(parts)])

    def _labels(self, step: int, indices: np.ndarray) -> np.ndarray:
        """The labels of this process's images of batch `step`, an array of its own."""
        return self.labels[indices].astype(np.int64)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop-1, made ahead of time in the background; closing it ends the background's work.

        Raises ImageError if an image cannot be read and not `skip_bad`; DataError if a worker process dies.
        """
        steps = range(start, stop)
        self._ahead = FetchAhead(stop)
        if self.cached:
            threads = 1 if isinstance(self._cache, DeviceImages) else max(1, min(_CROPPING_THREADS, usable_cores() - 1))
            made = in_threads(self._crop, steps, threads=threads, ahead=threads + 1)
        elif self.workers == 0:
            made = in_threads(self._decode, ((step, slice(None)) for step in steps), threads=1, ahead=2)
        else:
            made = self._from_processes(steps)
        with contextlib.closing(made):
            for step, (indices, images, errors, teacher_images) in zip(steps, made, strict=True):
                for seen in (images, teacher_images):
                    # Its memory is not to be given to a later batch while it is in use.
                    if seen is not None and seen.is_cuda:
                        seen.record_stream(torch.cuda.current_stream(seen.device))
                labels = self._labels(step, indices)
                labels[list(errors)] = -1
                readable = None
                if errors:
                    readable = torch.ones(len(indices), dtype=torch.bool)
                    readable[list(errors)] = False
                yield Batch(
                    step,
                    images,
                    torch.from_numpy(labels).to(images.device),
                    tuple(errors.values()),
                    teacher_images,
                    readable,
                )


def _joined(parts: list[_Made]) -> _Made:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.indices) for part in parts)]).tolist()
    seen = [part.teacher_images for part in parts if part.teacher_images is not None]
    return _Made(
        np.concatenate([part.indices for part in parts]),
        torch.cat([part.images for part in parts]),
        {start + at: error for start, part in zip(starts, parts, strict=False) for at, error in part.errors.items()},
        torch.cat(seen) if seen else None,
    )


FETCH_SECONDS = 60.0
"""How long before its first use a file that lies elsewhere is asked for: a store takes seconds for most, and far longer for one in a
thousand, for which all processes wait (docs/scale.md)."""

_LEAST_AHEAD, _MOST_AHEAD = 100, 2000
"""Bounds of that distance in steps: until the pace is known, and so that a very fast training does not fill the cache."""

_DECODED_AHEAD = 1 << 28
"""Bytes of finished batches that a training process's workers may have in store, if that is more than two each."""

_MOST_DECODED_AHEAD = 16
"""At most so many for each worker: each is an open file until it is used."""

_STEPS_AT_A_TIME = 64
"""Steps that are asked for at once at the beginning, when all that distance has to be made up for: each takes a millisecond."""


def _decoded_ahead() -> int:
    """`_DECODED_AHEAD`, or less where /dev/shm, through which finished batches travel for all training processes, is small, as in
    containers."""
    try:
        return min(_DECODED_AHEAD, shutil.disk_usage("/dev/shm").free // 16)
    except OSError:
        return _DECODED_AHEAD


class FetchAhead:
    """Which batches' files are to be asked for, one process's: each batch once, `FETCH_SECONDS` of training before it is made."""

    def __init__(self, stop: int) -> None:
        """stop: the first step that is not made any more."""
        self._stop = stop
        self._asked = 0
        self._last: tuple[int, float] | None = None
        self._seconds: float | None = None

    def due(self, step: int, now: float | None = None) -> range:
        """The steps to ask for when batch `step` is being made. now: seconds, of any clock that does not run backwards."""
        now = time.monotonic() if now is None else now
        distance = _LEAST_AHEAD
        if self._last is not None and step > self._last[0]:  # threads may ask out of order
            seconds = (now - self._last[1]) / (step - self._last[0])
            # An average, because a single batch may come at once or after a validation.
            self._seconds = seconds if self._seconds is None else 0.95 * self._seconds + 0.05 * seconds
            distance = int(min(max(FETCH_SECONDS / max(self._seconds, 1e-9), _LEAST_AHEAD), _MOST_AHEAD))
        self._last = (step, now)
        begin = max(self._asked, step + 1)
        self._asked = max(begin, min(step + 1 + distance, begin + _STEPS_AT_A_TIME, self._stop))
        return range(begin, self._asked)


_CROPPING_THREADS = 4
"""Between Pillow's calls only one thread at a time runs Python, so more of them would mostly wait."""


class FeatureLoader:
    """Like `TrainLoader`, for a head on a frozen network: batches of features (n, d) that were computed once, without augmentation."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        order: Order | None = None,
    ) -> None:
        self.features, self.labels, self.seed = features, labels, seed
        self.order = FullShuffle(len(labels), batch_size, seed) if order is None else order
        self._share = share(batch_size, rank, ranks)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop-1."""
        for step in range(start, stop):
            indices = torch.from_numpy(self.order.indices(step)[self._share])
            yield Batch(step, self.features[indices], self.labels[indices])


class EvalBatch(NamedTuple):
    images: Tensor
    """uint8 (n, channels, size, size), channels_last."""
    labels: Tensor
    """int64 (n,); -1 where the set has no labels."""
    indices: Tensor
    """int64 (n,): positions in the set."""


def eval_batches(
    images: ImageSet, spec: InputSpec, batch_size: int, *, workers: int | None = None, skip_bad: bool = False
) -> Iterator[EvalBatch]:
    """The whole set once, in order, prepared as `spec` says; the last batch may be short, nothing is dropped or repeated.

    workers: decoding threads (None: one per core). An unreadable image raises ImageError, or is left out if `skip_bad`.
    """
    labels = np.full(len(images), -1) if images.labels is None else np.asarray(images.labels)

    def prepared(index: int) -> np.ndarray | None:
        try:
            return images.read(index, spec)
        except ImageError:
            if skip_bad:
                return None
            raise

    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        starts = range(0, len(images), batch_size)

        def submit(start: int) -> list[Future[np.ndarray | None]]:
            return [pool.submit(prepared, i) for i in range(start, min(start + batch_size, len(images)))]

        ahead = submit(0)
        for start in starts:
            current, ahead = ahead, submit(start + batch_size)
            results = [future.result() for future in current]
            kept = np.array([start + i for i, image in enumerate(results) if image is not None], dtype=np.int64)
            if len(kept):
                yield EvalBatch(
                    caches.channels_last(np.stack([image for image in results if image is not None])),
                    torch.from_numpy(labels[kept].astype(np.int64)),
                    torch.from_numpy(kept),
                )
