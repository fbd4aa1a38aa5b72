"""Which images make up each batch: every image once per epoch, in an order that only seed and step decide, near what lies near."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from bigtransfer.feed import order
from bigtransfer.feed.loader import share
from bigtransfer.feed.order import EPISODE, BalancedOrder, EpisodeOrder, FullShuffle, LaneOrder, order_of, permuted


def bounds(*sizes: int) -> np.ndarray:
    return np.cumsum([0, *sizes])


def uneven(count: int, mean: int, seed: int = 0) -> np.ndarray:
    return bounds(*np.random.default_rng(seed).geometric(1 / mean, count).tolist())


def counts_never_differ(indices, size: int, batch: int, epochs: int) -> None:
    """After every batch, each image has been seen as often as any other, or once more; after whole epochs, equally often."""
    seen = np.zeros(size, dtype=np.int64)
    for step in range(math.ceil(epochs * size / batch)):
        np.add.at(seen, indices(step), 1)
        assert seen.max() - seen.min() <= ((step + 1) * batch % size != 0), step
        assert seen.sum() == (step + 1) * batch


SHAPES = [(12, 4), (10, 4), (7, 7), (3, 8), (1, 5), (5, 12), (100, 16), (257, 130)]


@pytest.mark.parametrize(("examples", "batch"), SHAPES)
@pytest.mark.parametrize("large", [False, True])
def test_every_image_comes_once_per_epoch(
    examples: int, batch: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(order, "LARGEST_ARRAY", 0)
    shuffle = FullShuffle(examples, batch, seed=3)
    counts_never_differ(shuffle.indices, examples, batch, epochs=min(batch + 2, 6))
    stream = np.concatenate([shuffle.indices(step) for step in range(3 * examples)])  # ends with an epoch
    epochs = stream.reshape(-1, examples)
    assert (np.sort(epochs, axis=1) == np.arange(examples)).all()
    if examples > 5:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "every epoch has an order of its own"


def test_a_set_smaller_than_a_batch_repeats_its_images_evenly() -> None:
    counts = np.bincount(FullShuffle(3, 8, seed=0).indices(5), minlength=3)
    assert counts.sum() == 8 and counts.max() - counts.min() == 1


@pytest.mark.parametrize("runs", [None, uneven(20, 30), bounds(600)])
def test_the_order_is_a_function_of_seed_and_step(runs: np.ndarray | None) -> None:
    one, other, third = (order_of(600 if runs is None else int(runs[-1]), runs, 16, seed) for seed in (7, 7, 8))
    forwards = [one.indices(step).tolist() for step in range(120)]
    assert forwards == [other.indices(step).tolist() for step in reversed(range(120))][::-1]
    assert forwards != [third.indices(step).tolist() for step in range(120)]


def test_sets_up_to_the_limit_keep_the_order_that_earlier_runs_had() -> None:
    expected = np.concatenate([np.random.default_rng((5, 1, epoch)).permutation(50) for epoch in range(2)])
    assert FullShuffle(50, 20, seed=5).indices(2).tolist() == expected[40:60].tolist()


def test_a_huge_set_is_shuffled_without_an_array() -> None:
    shuffle = FullShuffle(300_000_000, 4096, seed=0)
    tracemalloc.start()
    indices = np.concatenate(
        [shuffle.indices(step) for step in (0, 1, 73_241, 73_242)]
    )  # the last two: into the second epoch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert len(np.unique(indices[:8192])) == 8192 and indices.min() >= 0 and indices.max() < 300_000_000
    assert abs(indices.mean() / 150e6 - 1) < 0.03
    assert abs(np.abs(np.diff(indices)).mean() / 100e6 - 1) < 0.03, (
        "neighbours are a third of the set apart, as in any shuffle"
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 100, 1000, 4096])
def test_permuted_is_a_permutation(length: int) -> None:
    keys = np.random.default_rng(length).integers(2**63, size=20, dtype=np.uint64)
    values = permuted(np.tile(np.arange(length), 20), length, np.repeat(keys, length)).reshape(20, length)
    assert (np.sort(values, axis=1) == np.arange(length)).all()
    mixed = permuted(np.arange(length)[::-1], np.full(length, length), keys[:1])  # broadcast, and in any order
    assert (mixed[::-1] == values[0]).all()


def mixed(value: int) -> int:
    """SplitMix64's finalizer, in plain integers."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def permuted_one(position: int, length: int, key: int) -> int:
    """The Feistel network for one number, in plain integers."""
    bits = max((length - 1).bit_length(), 2)
    low = bits // 2
    while True:
        left, right = position >> low, position % (1 << low)
        for number in range(1, 9):
            round_key = key + number * 0x9E3779B97F4A7C15
            if number % 2:
                left ^= mixed((right + round_key) % 2**64) % (1 << bits - low)
            else:
                right ^= mixed((left + round_key) % 2**64) % (1 << low)
        position = left << low | right
        if position < length:
            return position


def test_permuted_is_the_same_for_ever() -> None:
    """A run goes on under a later version in the order in which it began."""
    # SplitMix64's published numbers for the seed 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mixed((1234567 + number * 0x9E3779B97F4A7C15) % 2**64) for number in (1, 2, 3, 4)] == published
    for length, key in ((1, 3), (7, 0), (1000, 2**63 - 1), (300_000_000, 12345), (2**40 + 1, 2**62 + 99)):
        positions = np.unique(np.linspace(0, length - 1, 20).astype(np.int64))
        found = permuted(positions, np.full(len(positions), length), np.full(len(positions), key, dtype=np.uint64))
        assert found.tolist() == [permuted_one(position, length, key) for position in positions.tolist()]


def test_permuted_treats_all_places_alike() -> None:
    """How often each value stands at each place, over many keys: chi-squared within five standard deviations of its mean."""
    length, trials = 24, 20_000
    keys = np.random.default_rng(0).integers(2**63, size=trials, dtype=np.uint64)
    for place in (0, 1, 12, 23):
        found = np.bincount(permuted(np.full(trials, place), length, keys), minlength=length)
        chi_squared = ((found - trials / length) ** 2 / (trials / length)).sum()
        assert abs(chi_squared - (length - 1)) < 5 * math.sqrt(2 * (length - 1))


# --- Lanes

LAYOUTS = {
    "uneven": uneven(30, 15),
    "one run": bounds(333),
    "single images": np.arange(201),
    "empty runs": bounds(0, 5, 0, 0, 17, 3, 0),
    "smaller than a batch": bounds(2, 1, 3),
    "one image": bounds(1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 7, 16, 96])
def test_lanes_show_every_image_once_per_epoch(name: str, batch: int) -> None:
    runs = LAYOUTS[name]
    lanes = LaneOrder(runs, batch, seed=1)
    counts_never_differ(lanes.indices, int(runs[-1]), batch, epochs=3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch", [16, 50])
def test_ranks_share_the_lanes(ranks: int, batch: int) -> None:
    """Over three epochs of 3200 images: every image once in each, and no run read by more than the ranks whose borders cut it."""
    runs = bounds(*np.random.default_rng(2).permutation(np.r_[np.full(30, 90), np.full(50, 10)]).tolist())
    lanes = LaneOrder(runs, batch, seed=4)
    for epoch in range(3):
        readers = set()
        seen = []
        for step in range(epoch * 3200 // batch, (epoch + 1) * 3200 // batch):
            indices = lanes.indices(step)
            parts = [indices[share(batch, rank, ranks)] for rank in range(ranks)]
            seen += [index for part in parts for index in part.tolist()]
            files = [np.searchsorted(runs, part, side="right") - 1 for part in parts]
            readers |= {(rank, file) for rank, part in enumerate(files) for file in part.tolist()}
        assert sorted(seen) == list(range(3200))
        assert (
            len(readers) <= 80 + ranks
        )  # a cut for each border between ranks, and one where the epoch's sequence begins


def test_a_lane_stays_in_its_block() -> None:
    """What has to be at hand: the images of WINDOW / lanes neighbours, in each lane."""
    lanes = LaneOrder(bounds(*[1000] * 200), 64, seed=0)
    assert (lanes.lanes, lanes.block) == (64, 256)
    # 256 batches take 256 images of each lane; lanes of 3125 images begin and end together.
    first = np.array([lanes.indices(step) for step in range(256)])
    for lane in first.T:
        files, counts = np.unique(lane // 1000, return_counts=True)
        assert len(files) <= 2 and counts.sum() == 256
        for file in files:
            inside = lane[lane // 1000 == file]
            assert inside.max() - inside.min() < 256, "neighbours in the file"
        assert (np.diff(lane) != 1).mean() > 0.9, "but shuffled"
    later = np.array([lanes.indices(step) for step in range(3125, 3125 + 256)])
    assert {*first[:, 0] // 1000} != {*later[:, 0] // 1000}, "other runs in the next epoch"


def test_every_block_of_every_lane_and_epoch_is_shuffled_in_its_own_way() -> None:
    """The ranks of a block's images in the order in which they come: no two blocks have the same, nor similar ones."""
    size, batch = 64 * 1024, 64
    lanes = LaneOrder(bounds(size), batch, seed=0)
    assert (lanes.lanes, lanes.block) == (64, 256)
    orders = []
    for epoch in range(2):
        for block in range(4):
            first = epoch * 1024 + block * 256
            images = np.array([lanes.indices(step) for step in range(first, first + 256)])
            inside = [column for column in images.T if np.ptp(column) == 255]  # not around the set's end
            assert len(inside) >= 63
            orders += [column - column.min() for column in inside]
    orders = np.array(orders)
    assert len(np.unique(orders, axis=0)) == len(orders)
    alike = np.corrcoef(orders) - np.eye(len(orders))
    assert np.abs(alike).max() < 0.5 and abs(alike.mean()) < 0.01, "correlations are about 1 / 16"


def test_each_epoch_begins_at_a_random_place() -> None:
    """With one file there is no other order of files: without it, each lane would see the same images together in all epochs."""
    size, epochs = 64 * 64, 128
    lanes = LaneOrder(bounds(size), 64, seed=3)
    starts = []
    for epoch in range(epochs):
        lane = np.sort([lanes.indices(step)[0] for step in range(epoch * 64, (epoch + 1) * 64)])
        gap = np.flatnonzero(np.diff(lane) > 1)
        starts.append(lane[gap[0] + 1] if len(gap) else lane[0])  # where it goes around the end
        assert len(lane) == 64 and len(gap) <= 1
    assert len(set(starts)) > 0.9 * epochs
    quarters = np.bincount(np.array(starts) * 4 // size, minlength=4)
    assert (np.abs(quarters - epochs / 4) < 5 * np.sqrt(epochs * 3 / 16)).all()
    assert starts[:50] != [LaneOrder(bounds(size), 64, seed=4).indices(epoch * 64)[0] for epoch in range(50)]


def test_huge_batches_have_more_lanes() -> None:
    """So that each of many ranks has one of its own."""
    lanes = LaneOrder(bounds(*[500] * 100), 4096, seed=0)
    assert lanes.lanes == 512 and lanes.block == 32
    assert LaneOrder(bounds(50), 8, seed=0).lanes == 8


def test_every_class_comes_equally_often() -> None:
    """The images of a class take turns, and seed and step alone decide which of them it is."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [50, 5, 1]))  # no image of class 2
    one, same, other = (BalancedOrder(labels, 7, seed) for seed in (4, 4, 5))
    batches = [one.indices(step) for step in range(150)]
    for batch in batches:
        counts = np.bincount(labels[batch], minlength=4)
        assert counts[2] == 0 and counts[[0, 1, 3]].min() >= 1 and counts.max() <= 3 and counts.sum() == 7
    seen = np.bincount(np.concatenate(batches), minlength=len(labels))
    for label in (0, 1, 3):
        of_class = seen[labels == label]
        assert of_class.max() - of_class.min() <= 1 and abs(of_class.sum() - 350) <= 2
    for step in (149, 3, 77):
        assert np.array_equal(same.indices(step), batches[step]) and not np.array_equal(
            other.indices(step), batches[step]
        )


def test_many_classes_at_a_time() -> None:
    """Only those that a batch has images of are gone into."""
    calls, asked = BalancedOrder(np.arange(5000), 32, 0), []
    for stream in calls._classes._streams:
        stream.at = lambda samples: asked.append(len(samples)) or np.zeros_like(samples)
    assert len(np.unique([calls.indices(step) for step in range(3)])) == 96 == sum(asked) and 0 not in asked


# --- Batches whose images judge one another


@pytest.mark.parametrize(
    ("classes", "batch", "expected"),
    [
        ([50] * 20, 96, [8] * 12),  # as many classes as there are places for eight
        ([50] * 6, 96, [16] * 6),
        ([50] * 5, 96, [20, 19, 19, 19, 19]),  # the place left over goes to the first class
        ([50, 0, 50], 20, [10, 10]),
        ([3, 50, 50], 60, [29, 28, 3]),  # a class with few images brings them all
        ([2, 3], 96, [3, 2]),
        ([50] * 3, 6, [3, 3]),  # of one class alone there would be nothing to tell
    ],
)
def test_several_images_of_each_of_some_classes(classes: list[int], batch: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(len(classes)), classes)
    labels = np.random.default_rng(0).permutation(labels)
    order, seen = EpisodeOrder(labels, batch, 3), set()
    assert order.batch_size == min(batch, len(labels))
    for step in range(20):
        images = order.indices(step)
        assert len(images) == order.batch_size == len(set(images.tolist())), "none twice"
        found = np.bincount(labels[images])
        assert sorted(found[found > 0].tolist(), reverse=True) == expected
        assert found.max() >= min(EPISODE, max(classes), batch // 2)
        seen |= set(images.tolist())
    assert len(seen) > 0.6 * min(len(labels), 20 * order.batch_size), "by and by all images come"
    assert np.array_equal(order.indices(5), EpisodeOrder(labels, batch, 3).indices(5))
    if len(labels) > batch:
        assert not np.array_equal(np.sort(order.indices(5)), np.sort(EpisodeOrder(labels, batch, 4).indices(5)))
        assert not np.array_equal(np.sort(order.indices(5)), np.sort(order.indices(6)))
