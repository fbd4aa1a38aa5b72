"""Which images make up each batch: a pure function of (seed, step), the same for any number of processes.

Sample number t of a training (batch `step` of size B holds the samples step * B ... step * B + B - 1) belongs to epoch t // n of a
set of n images, so epochs are laid end to end: a batch may straddle two, and a set smaller than a batch repeats its images evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

_STREAM, _EPISODES = 1, 5
"""Streams of random numbers; `feed.augment` and `train.objective` have the others."""

EPISODE = 8
"""Images of a class in a batch of `EpisodeOrder`, if there are so many, and places for no more of all classes."""

LARGEST_ARRAY = 1 << 22
"""Sets of more images are not shuffled by an array of the epoch's order (8 bytes an image in every process) but by `permuted`."""

LANES = 64
"""Least number of places of a set that a batch is gathered from, where `LaneOrder` is used (a smaller batch: one an image)."""

WINDOW = 1 << 14
"""Images among which `LaneOrder` shuffles at a time, all lanes together: what has to be at hand, in memory or nearby."""


class Order(Protocol):
    """What `TrainLoader` asks."""

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        ...


class Stream(Order, Protocol):
    """The order of one set, which can be asked for any of its samples too."""

    def at(self, samples: np.ndarray) -> np.ndarray:
        """The images of those samples, ascending int64 (n,) -> int64 (n,); not always each in its sample's place."""
        ...


def order_of(num_examples: int, runs: np.ndarray | None, batch_size: int, seed: int) -> Stream:
    """The order for a set whose images lie in `runs` (see `LaneOrder`), or anywhere (None)."""
    return FullShuffle(num_examples, batch_size, seed) if runs is None else LaneOrder(runs, batch_size, seed)


class FullShuffle:
    """The set in a fresh random order each epoch."""

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self._arrays: dict[int, np.ndarray] = {}

    def _at(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        if self.num_examples > LARGEST_ARRAY:
            return permuted(offsets, self.num_examples, _generator(self.seed, epoch).integers(2**63, dtype=np.uint64))
        array = self._arrays.get(epoch)
        if array is None:
            array = _generator(self.seed, epoch).permutation(self.num_examples)
            # Threads may ask for steps on either side of an epoch's end.
            self._arrays = {k: v for k, v in self._arrays.items() if abs(k - epoch) == 1} | {epoch: array}
        return array[offsets]

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        return self.at(np.arange(step * self.batch_size, (step + 1) * self.batch_size))

    def at(self, samples: np.ndarray) -> np.ndarray:
        """The images of those samples, ascending int64 (n,) -> int64 (n,)."""
        epochs, offsets = np.divmod(samples, self.num_examples)
        return np.concatenate([self._at(epoch, offsets[epochs == epoch]) for epoch in np.unique(epochs).tolist()])


class LaneOrder:
    """A shuffle for images that lie together in files which should be read piece by piece: tar shards, row groups of a table.

    Each epoch lays the runs end to end in a random order, starting at a random place, and cuts that sequence into equal lanes, whose
    images are shuffled within blocks of `block`. Samples are dealt to the lanes in turn; within a batch they stand in the lanes'
    order. A process that takes a contiguous part of every batch therefore reads only its share of the lanes, one block of each at a
    time, and meets a file of another process only where a lane's or a part's border cuts it. Memory: a few numbers per run.
    """

    def __init__(self, runs: np.ndarray, batch_size: int, seed: int) -> None:
        """runs: int64 (s + 1,): run k holds the images runs[k] ... runs[k + 1] - 1; it begins with 0 and ends with the set's size."""
        self.batch_size, self.seed = batch_size, seed
        self.num_examples = int(runs[-1])
        self.lanes = min(
            batch_size, max(LANES, batch_size // 8)
        )  # up to a process for every 8 images has a lane of its own
        self.block = max(1, WINDOW // self.lanes)
        self._runs = np.asarray(runs, dtype=np.int64)
        self._layouts: dict[int, _Layout] = {}

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        return self.at(np.arange(step * self.batch_size, (step + 1) * self.batch_size))

    def at(self, samples: np.ndarray) -> np.ndarray:
        """The images of those samples, int64 (n,) -> int64 (n,), in the order of their lanes."""
        samples = samples[np.argsort(samples % self.lanes, kind="stable")]
        epochs = samples // self.num_examples
        result = np.empty_like(samples)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            result[chosen] = self._at(epoch, samples[chosen])
        return result

    def _at(self, epoch: int, samples: np.ndarray) -> np.ndarray:
        layout = self._layouts.get(epoch)
        if layout is None:
            layout = _Layout(self._runs, _generator(self.seed, epoch))
            self._layouts = {k: v for k, v in self._layouts.items() if abs(k - epoch) == 1} | {epoch: layout}
        # Lane l has the samples l, l + lanes, ...; so many of them come before this epoch, and before the next.
        each = np.arange(self.lanes)
        before, after = (-((each - border * self.num_examples) // self.lanes) for border in (epoch, epoch + 1))
        lengths = after - before
        starts = np.cumsum(lengths) - lengths
        lane = samples % self.lanes
        block, offset = np.divmod(samples // self.lanes - before[lane], self.block)
        block_start = block * self.block
        length = np.minimum(self.block, lengths[lane] - block_start)
        keys = _mixed(layout.key + _mixed((starts[lane] + block_start).astype(np.uint64)))
        return layout.images(starts[lane] + block_start + permuted(offset, length, keys))


class _Layout:
    """An epoch's runs laid end to end."""

    def __init__(self, runs: np.ndarray, rng: np.random.Generator) -> None:
        order = rng.permutation(len(runs) - 1)
        self.key = rng.integers(2**63, dtype=np.uint64)
        self._size = int(runs[-1])
        self._shift = int(rng.integers(self._size))
        lengths = np.diff(runs)[order]
        self._ends = np.cumsum(lengths)
        self._skip = runs[:-1][order] - (self._ends - lengths)

    def images(self, positions: np.ndarray) -> np.ndarray:
        """Indices of the images at those positions of the epoch's sequence."""
        positions = (positions + self._shift) % self._size
        return positions + self._skip[np.searchsorted(self._ends, positions, side="right")]


class MixedOrder:
    """Several sets as one, each with a share of its own of the samples; the images of the second follow those of the first, and so on.

    Sample t belongs to the set in whose part of the unit interval the fraction of t times the golden ratio falls: the sets are spread
    evenly over every batch, and after any number of samples each has had its share of them to within a few. Which sample of its own set
    it is, is counted in closed form, so that every set is gone through as if it were alone: all its images once, then all again.
    """

    def __init__(
        self, sets: Sequence[tuple[int, np.ndarray | None]], shares: Sequence[float], batch_size: int, seed: int
    ) -> None:
        """sets: of each its number of images and where they lie together (`order_of`). shares: of the samples, in any unit, above 0."""
        assert len(sets) == len(shares) and min(shares) > 0
        self.batch_size = batch_size
        total = float(sum(shares))
        self._streams = [
            order_of(count, runs, max(1, round(batch_size * share / total)), seed + number)
            for number, ((count, runs), share) in enumerate(zip(sets, shares, strict=True))
        ]
        self._starts = np.cumsum([0, *(count for count, _ in sets)])[:-1].tolist()
        inner = [round(2**64 * part / total) for part in np.cumsum(shares)[:-1].tolist()]
        self._borders = [0, *inner, 2**64]

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        first = step * self.batch_size
        samples = np.arange(first, first + self.batch_size, dtype=np.uint64)
        inner = np.array(self._borders[1:-1], dtype=np.uint64)
        which = np.searchsorted(inner, samples * np.uint64(_GOLDEN), side="right")  # modulo 2**64
        result = np.empty(self.batch_size, dtype=np.int64)
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number)
            had = _below(first, self._borders[number + 1]) - _below(first, self._borders[number])
            result[places] = self._starts[number] + self._streams[number].at(np.arange(had, had + len(places)))
        return result


class BalancedOrder:
    """Every class as often as every other, however many images it has; those of a class each once before any of them again."""

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        """labels: int (n,), of each image its class."""
        counts = np.bincount(labels)
        present = counts[counts > 0].tolist()
        self.batch_size = batch_size
        self._images = np.argsort(labels, kind="stable")
        self._classes = MixedOrder([(count, None) for count in present], [1.0] * len(present), batch_size, seed)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        return self._images[self._classes.indices(step)]


class EpisodeOrder:
    """Batches of several images of each of some classes, no image twice: from the others of a batch can be told what an image shows.

    Each batch is drawn by itself, of as many classes as have `EPISODE` images in it, but two at least, or of all classes where these have
    more places each. Classes with fewer images than that bring those that they have, and the places left over go to the others.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        """labels: int (n,), of each image its class. Batches have the size `batch_size`, or n if that is less."""
        counts = np.bincount(labels)
        ordered = np.argsort(labels, kind="stable")
        self._classes = [each for each in np.split(ordered, np.cumsum(counts)[:-1]) if len(each)]
        self.batch_size, self.seed = min(batch_size, len(labels)), seed

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        rng = np.random.default_rng((self.seed, _EPISODES, step))
        waiting = [rng.permutation(self._classes[number]) for number in rng.permutation(len(self._classes)).tolist()]
        least, found, places = min(EPISODE, self.batch_size // 2), [], self.batch_size
        while places:
            waiting = [images for images in waiting if len(images)]
            each, least = max(least, places // len(waiting)), 1
            for number, images in enumerate(waiting):
                taken = images[: min(each, places)]
                found.append(taken)
                places, waiting[number] = places - len(taken), images[len(taken) :]
                if not places:
                    break
        return np.concatenate(found)


def _below(count: int, border: int) -> int:
    """How many t of 0 ... count - 1 have t * _GOLDEN modulo 2**64 below `border` (0 ... 2**64)."""
    whole = 2**64
    return count + _floor_sum(count, whole, _GOLDEN, 0) - _floor_sum(count, whole, _GOLDEN, whole - border)


def _floor_sum(count: int, m: int, a: int, b: int) -> int:
    """The sum of floor((a * t + b) / m) over t of 0 ... count - 1, by Euclid's algorithm."""
    total = 0
    while True:
        total += count * (count - 1) // 2 * (a // m) + count * (b // m)
        a, b = a % m, b % m
        top = a * count + b
        if top < m:
            return total
        (count, b), m, a = divmod(top, m), a, m


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng((seed, _STREAM, epoch))


_HALF_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15


def permuted(positions: np.ndarray, lengths: np.ndarray | int, keys: np.ndarray | np.uint64) -> np.ndarray:
    """What stands at `positions` of random permutations of 0 ... lengths - 1, one for each key; no permutation is ever written down.

    All arguments are broadcast; int64 result. A Feistel network permutes the smallest power of two (at least 4) that holds the
    length, and is applied again where its result lies beyond the length ("cycle walking": less than twice on average, which leaves
    a permutation of the rest).
    """
    positions, lengths, keys = np.broadcast_arrays(positions, lengths, keys)
    bits = np.maximum(np.frexp(lengths - 1)[1], 2)  # float64 is exact far beyond any number of images
    low = (bits // 2).astype(np.uint64)
    high_mask, low_mask = ((np.uint64(1) << half) - np.uint64(1) for half in (bits.astype(np.uint64) - low, low))
    limits, values = lengths.astype(np.uint64), positions.astype(np.uint64)
    todo = np.arange(len(values))
    while len(todo):
        left, right = values[todo] >> low[todo], values[todo] & low_mask[todo]
        for number in range(_HALF_ROUNDS):
            key = keys[todo] + np.uint64((number + 1) * _GOLDEN % 2**64)
            if number % 2:
                right = right ^ (_mixed(left + key) & low_mask[todo])
            else:
                left = left ^ (_mixed(right + key) & high_mask[todo])
        values[todo] = (left << low[todo]) | right
        todo = todo[values[todo] >= limits[todo]]
    return values.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64: a bijection whose every output bit depends on every input bit (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
