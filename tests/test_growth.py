"""How many more photos: the learning curve and what is foretold from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigtransfer.evals import growth, linear
from bigtransfer.evals.growth import Point
from tests.test_check_findings import clusters


def test_every_point_is_of_all_images_and_parts_are_nested_and_in_proportion():
    features, labels = clusters(160, 30, 4, spread=2.5)
    points = growth.curve(features, labels, 4)
    assert [point.images for point in points] == [10, 20, 40, 80, 160]
    probe = linear.fit(features, labels, 4)
    assert points[-1].accuracy == pytest.approx(probe.leave_one_out_top1)
    assert np.mean(points[-1].recall) == pytest.approx(points[-1].accuracy)
    assert points[0].accuracy + 0.1 < points[2].accuracy < points[-1].accuracy
    order = growth._order(labels, 0)
    assert sorted(order.tolist()) == list(range(160))
    for size in (8, 40, 100):
        assert (torch.bincount(labels[order[:size]], minlength=4) - size / 4).abs().max() <= 1


def test_a_point_is_what_fitting_the_part_says_of_the_others():
    features, labels = clusters(60, 8, 3, spread=2)
    part = torch.arange(0, 60, 2)
    right = growth._right(features, labels, 3, torch.arange(60), part)
    probe = linear.fit(features[part], labels[part], 3)
    with torch.no_grad():
        wanted = probe.head(features).argmax(1) == labels
    others = torch.arange(1, 60, 2)
    assert torch.equal(right[others], wanted[others])
    assert float(right[part].double().mean()) == pytest.approx(probe.leave_one_out_top1)


def test_a_copy_in_the_part_does_not_answer_for_its_twin():
    """Classes that cannot be told apart, and each image there twice: whoever knows the twin is right always, the others by chance."""
    generator = torch.Generator().manual_seed(0)
    half, half_labels = torch.randn(60, 200, generator=generator), torch.arange(60) % 2
    features, labels = half.repeat(2, 1), half_labels.repeat(2)
    part = torch.arange(60)
    right = growth._right(features, labels, 2, part.repeat(2), part)
    fooled = growth._right(features, labels, 2, torch.arange(120), part).double().mean()
    assert right.double().mean() < 0.7 < fooled
    # Twins are judged alike, but by their own labels.
    assert torch.equal(right[60:], right[:60])
    labels[60:] = 1 - labels[60:]
    assert torch.equal(growth._right(features, labels, 2, part.repeat(2), part)[60:], ~right[:60])


def law(sizes, slope=0.5, level=1.0):
    """log(accuracy / error) is `level` with 400 images, and grows by `slope` with every doubling."""
    odds = [level + slope * np.log2(n / 400) for n in sizes]
    return [
        Point(images=n, accuracy=float(1 / (1 + np.exp(-one))), recall=()) for n, one in zip(sizes, odds, strict=True)
    ]


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.7])
def test_a_law_is_continued(slope):
    points = law([50, 100, 200, 400], slope)
    near, far = growth.foretell(points, 1_000_000, [800, 1600])
    for one in (near, far):
        assert one.accuracy == pytest.approx(law([one.images], slope)[0].accuracy, abs=1e-3)
        assert one.low < one.accuracy < one.high
    # However sure the points are, the law may drift.
    odds = [np.log(share / (1 - share)) for share in (far.low, far.high)]
    assert odds[1] - odds[0] == pytest.approx(2 * 1.645 * 2 * growth._DRIFT, rel=0.01)


def test_few_images_make_wide_intervals_and_farther_ones_wider():
    points = law([100, 200, 400])
    near, far = growth.foretell(points, 400, [800, 1600])
    (sure,) = growth.foretell(points, 1_000_000, [1600])
    assert near.high - near.low < far.high - far.low and sure.high - sure.low < far.high - far.low
    perfect = [Point(images=n, accuracy=1.0, recall=()) for n in (25, 50, 100)]
    (one,) = growth.foretell(perfect, 100, [400])
    assert 0.9 < one.low < one.accuracy < one.high <= 1
    (own,) = growth.foretell(points, 400, [400])  # no more images: what the measured accuracy itself is off by
    off = 1.645 * np.sqrt(points[-1].accuracy * (1 - points[-1].accuracy) / 400)
    assert own.high - own.low == pytest.approx(2 * off, rel=0.05)


def test_few_images_are_held_to_what_is_expected():
    steep = law([100, 200, 400], slope=1.0)
    (few,), (many,) = (growth.foretell(steep, judged, [1600]) for judged in (20, 1_000_000))
    assert many.accuracy == pytest.approx(law([1600], slope=1.0)[0].accuracy, abs=0.005)
    assert few.accuracy < many.accuracy - 0.05


def test_the_class_that_gains_most_is_the_one_that_is_hard():
    features, labels = clusters(200, 20, 4, spread=0.7)
    generator = torch.Generator().manual_seed(3)
    hard = labels >= 2  # two classes nearly in one place
    features[hard] = features[2] + 1.5 * torch.randn(int(hard.sum()), 20, generator=generator)
    features[labels == 3, :3] += 1.2
    grown = growth.grow(features, labels, 4)
    assert grown is not None and {gain.label for gain in grown.gains[:2]} == {2, 3}
    assert all(gain.doubled >= gain.recall for gain in grown.gains)
    assert [one.images for one in grown.forecasts] == [400, 800]
    assert growth.grow(features[:12], labels[:12], 4) is None


def test_a_forecast_below_what_was_measured_is_remarked_on():
    falling = tuple(
        Point(images=n, accuracy=share, recall=()) for n, share in ((50, 0.7), (100, 0.6), (200, 0.5), (400, 0.6))
    )
    rising = tuple(law([50, 100, 200, 400]))
    for points, told in ((falling, True), (rising, False)):
        forecasts = tuple(growth.foretell(points, 400, (800, 1600)))
        assert (forecasts[0].accuracy < points[-1].accuracy) == told
        assert bool(growth.Growth(points=points, forecasts=forecasts, gains=()).remark) == told
