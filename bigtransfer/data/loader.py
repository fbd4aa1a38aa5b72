"""Batches of uint8 images: for training without end or state, for evaluation once through the set in order."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def available_memory() -> int:
    """Bytes of memory a new allocation can have: the machine's free memory, or the container's limit where that is lower."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit_file, encoding="ascii") as limit, open(used_file, encoding="ascii") as used:
                free = min(free, int(limit.read()) - int(used.read()))
        except (OSError, ValueError):
            continue
    return max(free, 0)


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
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(
                tqdm(
                    pool.map(prepare, range(len(self.images))),
                    total=len(self.images),
                    desc="decoding",
                    unit="img",
                    disable=not progress,
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
        """Batches of steps start..stop-1, made ahead of time in the background."""
        if not self.cached and self.workers > 0:
            loader = DataLoader(
                _Keyed(self.images, self.augmentation),
                batch_sampler=_Keys(self, start, stop),
                num_workers=self.workers,
                collate_fn=_stack,  # in the worker: tensors travel through shared memory
                prefetch_factor=2,
            )
            for step, stacked in zip(range(start, stop), loader, strict=True):
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

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start..stop-1."""
        for step in range(start, stop):
            indices = torch.from_numpy(self.order.indices(step))
            yield Batch(step, self.features[indices], self.labels[indices])


class _Keyed(Dataset[np.ndarray]):
    """One augmented image for each key (index, random numbers); runs in a worker process."""

    def __init__(self, images: ImageSet, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation

    def __getitem__(self, key: tuple[int, np.ndarray]) -> np.ndarray:
        index, row = key
        return np.ascontiguousarray(self.augmentation.apply(self.augmentation.prepare(self.images.read(index)), row))


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

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
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
