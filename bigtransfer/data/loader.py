"""Batches of uint8 images: for training without end or state, for evaluation once through the set in order."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from bigtransfer.catalog import InputSpec
from bigtransfer.data import images as image_ops
from bigtransfer.data.augment import Augmentation, Order, draws
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import ImageError

CacheMode = Literal["auto", "memory", "none"]

CACHE_SHARE = 0.4
"""`auto` keeps the decoded images in memory if they take at most this share of what is free."""


class Batch(NamedTuple):
    step: int
    images: Tensor
    """uint8 (n, channels, size, size), channels_last; or, from a `FeatureLoader`, their features, float32 (n, features)."""
    labels: Tensor
    """int64 (n,)."""


_CONTAINER_LIMITS = (
    # Control groups, version 2 and 1: limit, use, and the use's details with the line for pages of files not used lately.
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def available_memory(groups: Path = Path("/sys/fs/cgroup"), machine: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory that new allocations can have: what the machine has free, or the container's limit where that is lower.

    Where the system does not say how much is free (macOS, Windows), half of the machine's memory, or 4 GiB if even that is unknown.
    """
    free = 4 << 30
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no sysconf, no such name
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, StopIteration):
        lines = machine.read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used, details, cached in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            # A group's use counts the cached pages of files it has read, which make room for others.
            stat = dict(line.split() for line in (groups / details).read_text().splitlines())
            free = min(free, left + int(stat.get(cached, 0)))
    return max(free, 0)


def usable_cores() -> int:
    """Processor cores that this process may use, which schedulers and containers often limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stack(samples: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, c) images -> (n, c, h, w), channels_last without a copy."""
    return torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2)


class TrainLoader:
    """The training batches of steps `start`, `start + 1`, ... `stop - 1`.

    The same (set, augmentation, batch_size, seed) gives the same bytes whatever the cache, the workers and the start.
    cache "memory" decodes every image once, keeps the fixed part of the augmentation in memory and makes batches in a thread;
    "none" decodes in `workers` processes each time; "auto" chooses by the memory that is free.
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
    ) -> None:
        assert images.labels is not None, "training needs labels"
        self.images, self.augmentation = images, augmentation
        self.labels = np.asarray(images.labels, dtype=np.int64)
        self.seed, self.workers = seed, workers
        self.order = Order(len(images), batch_size, seed)
        self._prepared: list[np.ndarray] | None = None
        if cache == "memory" or (cache == "auto" and self._fits()):
            self._prepared = self._fill(progress)

    @property
    def cached(self) -> bool:
        return self._prepared is not None

    def _fits(self) -> bool:
        rng = np.random.default_rng(0)
        sample = rng.choice(len(self.images), size=min(8, len(self.images)), replace=False)
        mean = np.mean([self.augmentation.prepare(self.images.read(int(i))).nbytes for i in sample])
        return bool(mean * len(self.images) <= CACHE_SHARE * available_memory())

    def _fill(self, progress: bool) -> list[np.ndarray]:
        def prepare(index: int) -> np.ndarray:
            return np.ascontiguousarray(self.augmentation.prepare(self.images.read(index)))

        # Pillow releases the GIL while it decodes and resizes, so threads are enough here.
        with ThreadPoolExecutor(usable_cores()) as pool:
            return list(
                tqdm(
                    pool.map(prepare, range(len(self.images))),
                    total=len(self.images),
                    desc="decoding",
                    unit="img",
                    disable=None if progress else True,  # none in a log file
                    leave=False,
                )
            )

    def _batch(self, step: int) -> Batch:
        indices = self.order.indices(step)
        rows = draws(self.augmentation, self.seed, step, len(indices))
        if self._prepared is None:
            prepared = (self.augmentation.prepare(self.images.read(int(i))) for i in indices)
        else:
            prepared = (self._prepared[i] for i in indices)
        samples = [self.augmentation.apply(image, row) for image, row in zip(prepared, rows, strict=True)]
        return Batch(step, _stack(samples), torch.from_numpy(self.labels[indices]))

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop-1, made ahead of time in the background; closing it ends the background's work.

        Raises ImageError if an image cannot be read.
        """
        if not self.cached and self.workers > 0:
            loader = DataLoader(
                _Keyed(self.images, self.augmentation),
                batch_sampler=_Keys(self, start, stop),
                num_workers=self.workers,
                collate_fn=_stack_or_error,  # in the worker: tensors travel through shared memory
                worker_init_fn=_leave_signals,
                prefetch_factor=2,
            )
            for step, stacked in zip(range(start, stop), loader, strict=True):
                if isinstance(stacked, ImageError):
                    raise stacked
                yield Batch(step, stacked, torch.from_numpy(self.labels[self.order.indices(step)]))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[Batch] | None = pool.submit(self._batch, start) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None
                batch = ahead.result()
                ahead = pool.submit(self._batch, step + 1) if step + 1 < stop else None
                yield batch


class FeatureLoader:
    """Like `TrainLoader`, for a head on a frozen network: batches of features (n, d) that were computed once, without augmentation."""

    def __init__(self, features: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.features, self.labels, self.seed = features, labels, seed
        self.order = Order(len(labels), batch_size, seed)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches of steps start..stop-1."""
        for step in range(start, stop):
            indices = torch.from_numpy(self.order.indices(step))
            yield Batch(step, self.features[indices], self.labels[indices])


class _Keyed(Dataset["np.ndarray | ImageError"]):
    """One augmented image for each key (index, random numbers), or why it cannot be read; runs in a worker process."""

    def __init__(self, images: ImageSet, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation

    def __getitem__(self, key: tuple[int, np.ndarray]) -> np.ndarray | ImageError:
        index, row = key
        try:
            image = self.images.read(index)
        except ImageError as error:  # raised here, the DataLoader would make a RuntimeError with a traceback of it
            return error
        return np.ascontiguousarray(self.augmentation.apply(self.augmentation.prepare(image), row))


def _stack_or_error(samples: list[np.ndarray | ImageError]) -> Tensor | ImageError:
    """The batch, or the first of its errors."""
    images = [sample for sample in samples if isinstance(sample, np.ndarray)]
    return next((sample for sample in samples if isinstance(sample, ImageError)), None) or _stack(images)


def _leave_signals(_worker: int) -> None:
    """Ctrl-C in a terminal, and many a scheduler's SIGTERM, reach all of a job's processes; only the main one shall act on them. It
    ends its workers, and they end by themselves when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Keys(Sampler[list[tuple[int, np.ndarray]]]):
    """The keys of each step's batch."""

    def __init__(self, loader: TrainLoader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, np.ndarray]]]:
        for step in range(self.start, self.stop):
            indices = self.loader.order.indices(step)
            rows = draws(self.loader.augmentation, self.loader.seed, step, len(indices))
            yield [(int(index), row) for index, row in zip(indices, rows, strict=True)]


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
            return image_ops.prepare(images.read(index), spec)
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
                    _stack([image for image in results if image is not None]),
                    torch.from_numpy(labels[kept].astype(np.int64)),
                    torch.from_numpy(kept),
                )
