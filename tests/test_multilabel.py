"""Numbers for images of several labels, against scikit-learn, exhaustive search and counts by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtransfer.data import ImageSet
from bigtransfer.data.sources import Files
from bigtransfer.dist import World
from bigtransfer.errors import DataError, ImageError, WeightsError
from bigtransfer.evals import multilabel
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.evals.record import labels_record

IMAGES, CLASSES = 60, 5


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Logits with ties, labels padded with -1, the same as a matrix; the last class has no image."""
    rng = np.random.default_rng(0)
    hot = rng.random((IMAGES, CLASSES)) < np.array([0.5, 0.3, 0.2, 0.1, 0.0])
    logits = np.round(rng.normal(0, 1, hot.shape) + 1.5 * hot, 1)
    labels = np.full((IMAGES, CLASSES), -1)
    for i, row in enumerate(hot):
        labels[i, : row.sum()] = np.flatnonzero(row)
    return torch.from_numpy(logits), torch.from_numpy(labels), hot


def state(case: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> MultiLabel:
    result = MultiLabel(CLASSES)
    result.update(case[0], case[1])
    return result


def test_average_precision_is_scikit_learns(case: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    logits, _, hot = case
    result = state(case)
    expected = [metrics.average_precision_score(hot[:, c], logits[:, c].sigmoid().numpy()) for c in range(CLASSES - 1)]
    assert result.average_precision()[:-1] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(result.average_precision()[-1])
    assert result.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-12)
    assert result.support.tolist() == hot.sum(0).tolist()
    given = logits.sigmoid().numpy() >= 0.4
    scores = result.at(0.4)
    assert scores.micro_f1 == pytest.approx(metrics.f1_score(hot, given, average="micro"))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(hot[:, :-1], given[:, :-1], average="macro"))
    assert scores.exact == pytest.approx(metrics.accuracy_score(hot, given))


def test_average_precision_by_hand() -> None:
    """Two of four images are of the class; ranked 1 and 3: (1/1 + 2/3) / 2. With a tie of ranks 2 and 3: (1/1 + 2/3) / 2 as well, not 1."""
    result = MultiLabel(2)
    result.update(torch.tensor([[4.0, 4], [3, 2], [2, 2], [1, 1]]), torch.tensor([[0, 1], [1, -1], [0, -1], [-1, -1]]))
    assert result.average_precision().tolist() == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    assert result.precision_at_1 == 2 / 4  # ties go to the first class: right, wrong, right, wrong


def test_thresholds_are_the_best_there_are(case: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    result = state(case)
    found = result.best_thresholds()
    reached = result.at(found).f1
    for c in range(CLASSES - 1):
        tried = [result.at(float(t)).f1[c] for t in np.linspace(0, 1, 2001)]
        assert reached[c] == pytest.approx(np.nanmax(tried), abs=1e-12)
        assert np.abs(result.probabilities[:, c] - found[c]).min() > 1e-4, "not upon an image's own probability"
    assert found[-1] == 0.5
    separable = MultiLabel(1)
    separable.update(torch.tensor([[2.0], [1.0], [-3.0]]), torch.tensor([[0], [0], [-1]]))
    middle = (torch.tensor(1.0).sigmoid() + torch.tensor(-3.0).sigmoid()) / 2
    assert separable.best_thresholds()[0] == pytest.approx(middle.item())
    everything = MultiLabel(1)
    everything.update(torch.tensor([[2.0], [-1.0]]), torch.tensor([[0], [0]]))
    assert everything.best_thresholds()[0] == pytest.approx(torch.tensor(-1.0).sigmoid().item() / 2)


def test_of_equally_good_thresholds_it_is_the_one_nearest_to_a_half() -> None:
    """F1 is a half with the first image, the first five, or all nine."""
    for ranked, wanted in (
        ([0.99, 0.9, 0.8, 0.7, 0.6, 0.56, 0.3, 0.2, 0.1], 0.58),
        ([0.99, 0.7, 0.6, 0.5, 0.44, 0.4, 0.3, 0.2, 0.1], 0.42),
    ):
        result, labels = MultiLabel(1), torch.full((9, 1), -1)
        labels[[0, 4, 8]] = 0
        result.update(torch.tensor(ranked, dtype=torch.float64).logit()[:, None], labels)
        assert result.best_thresholds()[0] == pytest.approx(wanted, abs=1e-6)


def test_scores_by_hand() -> None:
    result = MultiLabel(3)
    logits = torch.tensor([[9.0, 9, -9], [9, -9, -9], [-9, 9, -9]])
    result.update(logits, torch.tensor([[0, 1], [1, -1], [1, 2]]))
    scores = result.at(0.5)  # given: 01, 0, 1; true: 01, 1, 12
    np.testing.assert_allclose(scores.precision, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(scores.recall, [1, 2 / 3, 0])
    np.testing.assert_allclose(scores.f1, [2 / 3, 4 / 5, 0])
    assert scores.micro_f1 == pytest.approx(2 * 3 / (5 + 4)) and scores.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert scores.exact == pytest.approx(1 / 3)
    assert result.at(np.array([1.1, 0.5, 0.5])).recall[0] == 0, "a threshold for each class"
    assert result.named("val")["val/exact"] == pytest.approx(1 / 3)
    assert set(result.named("x")) == {"x/map", "x/micro_f1", "x/macro_f1", "x/exact", "x/precision_at_1"}


def test_the_record_by_hand(tmp_path: Path) -> None:
    """The images of above, whose names and classes are those of the set."""
    result = MultiLabel(3)
    logits = torch.tensor([[9.0, 9, -9], [9, -9, -9], [-9, 9, -9]])
    result.update(logits, torch.tensor([[0, 1], [1, -1], [1, 2]]))
    images = ImageSet(Files(tmp_path, ["x.png", "y.png", "z.png"]), np.arange(3), None, ("a", "b", "c"))
    record = labels_record(
        result, images, np.array([0.25, 0.5, 0.75]), split="val", chosen_here=True, model="m", data="d",
        unreadable=[ImageError("w.png", "it is empty")], notes=["one", "two"], dedup=None,
    )  # fmt: skip
    assert (record.model, record.data, record.split, record.images, record.chosen_here) == ("m", "d", "val", 3, True)
    assert record.class_names == ["a", "b", "c"] and record.notes == ["one", "two"] and record.dedup is None
    assert [(one.name, one.reason) for one in record.unreadable] == [("w.png", "it is empty")]
    # Ranked: a at the second of a tie of two; all are b; c at the third of a tie of three.
    assert [row.average_precision for row in record.per_class] == pytest.approx([1 / 2, 1, 1 / 3])
    assert record.map == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert [(row.name, row.threshold, row.support) for row in record.per_class] == [
        ("a", 0.25, 1), ("b", 0.5, 3), ("c", 0.75, 1),
    ]  # fmt: skip
    assert [row.precision for row in record.per_class] == [0.5, 1.0, None]
    assert [row.recall for row in record.per_class] == pytest.approx([1, 2 / 3, 0])
    assert [row.f1 for row in record.per_class] == pytest.approx([2 / 3, 4 / 5, 0])
    assert record.micro_f1 == pytest.approx(2 / 3) and record.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert record.exact == pytest.approx(1 / 3)
    low, high = (torch.tensor(value).sigmoid().item() for value in (-9.0, 9.0))
    assert [(one.name, one.true, one.given) for one in record.predictions] == [
        ("x.png", [0, 1], [0, 1]), ("y.png", [1], [0]), ("z.png", [1, 2], [1]),
    ]  # fmt: skip
    assert [one.probabilities for one in record.predictions] == [
        pytest.approx(some) for some in ([high, high], [low, high], [high, low])
    ]


def test_the_table_is_as_wide_as_its_longest_name() -> None:
    result = MultiLabel(3)
    logits = torch.tensor([[9.0, 9, -9], [9, -9, -9], [-9, 9, -9]])
    result.update(logits, torch.tensor([[0, 1], [1, -1], [1, 2]]))
    assert multilabel.describe(result, ["a", "a long name", "c"], 0.5).splitlines()[4:] == [
        "class        average precision  threshold  precision  recall      F1  images",
        "a                       50.00%      0.500     50.00%  100.0%   66.7%       1",
        "a long name            100.00%      0.500    100.00%   66.7%   80.0%       3",
        "c                       33.33%      0.500          -    0.0%    0.0%       1",
    ]
    assert "\na                 50.00%" in multilabel.describe(result, ["a", "b", "c"], 0.5), (
        "nor narrower than its title"
    )


def test_numbers_do_not_depend_on_how_the_images_were_split(
    case: tuple[torch.Tensor, torch.Tensor, np.ndarray],
) -> None:
    logits, labels, _ = case
    whole, order = state(case), torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    parts = [MultiLabel(CLASSES) for _ in range(3)]
    for part, chosen in zip(parts, order.split(23), strict=True):
        for piece in chosen.split(7):
            part.update(logits[piece], labels[piece][:, :4], piece)
    total = parts[2] + parts[0] + parts[1]
    assert np.array_equal(total.probabilities, whole.probabilities) and np.array_equal(total.labels, whole.labels)
    assert total.indices.tolist() == list(range(IMAGES))
    assert total.named("x") == whole.named("x") == total.gathered(World()).named("x")
    with pytest.raises(DataError, match="do not add"):
        _ = total + MultiLabel(3)


def test_nothing_and_nonsense() -> None:
    empty = MultiLabel(2)
    assert len(empty) == 0 and empty.named("x") == {} and empty.best_thresholds().tolist() == [0.5, 0.5]
    with pytest.raises(DataError, match="shape"):
        empty.update(torch.zeros(1, 3), torch.zeros(1, 1))
    with pytest.raises(DataError, match="Label 2 does not fit"):
        empty.update(torch.zeros(1, 2), torch.tensor([[2]]))
    with pytest.raises(DataError, match="Label 2 does not fit"):
        empty.update(torch.zeros(2, 2), torch.tensor([[0, 2], [1, -1]]))
    with pytest.raises(WeightsError, match="not finite"):
        empty.update(torch.full((1, 2), torch.nan), torch.tensor([[0]]))


def test_text_for_a_terminal(case: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    result = state(case)
    text = multilabel.describe(result, ["ant", "bee", "cow", "dog", "eel"], result.best_thresholds())
    assert f"mean average precision  {result.mean_average_precision:7.2%}" in text and "ant" in text
    assert "eel" not in text, "no image of it"
    (titles,) = [line.split("  ") for line in text.splitlines() if line.startswith("class ")]
    assert [title.strip() for title in titles if title.strip()] == [
        "class", "average precision", "threshold", "precision", "recall", "F1", "images",
    ]  # fmt: skip
    (row,) = [line.split() for line in text.splitlines() if line.startswith("cow")]
    assert row[1] == f"{result.average_precision()[2]:.2%}" and row[2] == f"{result.best_thresholds()[2]:.3f}"


def test_the_worst_classes_of_many_are_shown_the_more_frequent_first() -> None:
    """Of 40 classes the images of 3 and 7 come last for their class, the two of 5 last but one and last; all others first."""
    labels = [*range(40), 5, 9]
    logits = torch.full((len(labels), 40), -4.0)
    logits[range(len(labels)), labels] = 4.0
    logits[[3, 7, 5, 40], [3, 7, 5, 5]] = -6.0
    result = MultiLabel(40)
    result.update(logits, torch.tensor(labels)[:, None])
    precision = result.average_precision()
    assert precision[[3, 7, 5, 9, 0]].tolist() == pytest.approx([1 / 42, 1 / 42, 2 / 42, 1, 1])
    shown = ["c03", "c07", "c05", "c09", "c00", "c01", "c02", "c04", "c06", "c08"]
    for given in ({"worst": 3}, {}):
        text = multilabel.describe(result, [f"c{c:02}" for c in range(40)], 0.5, **given)
        expected = shown[: given.get("worst", 10)]
        assert [line.split()[0] for line in text.splitlines() if line.startswith("c")] == expected
        assert f"the {len(expected)} worst of 40 classes  average precision" in text
