from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from bigtransfer.errors import DataError, WeightsError
from bigtransfer.evals import Classification, describe, evaluate, metrics


def sample(n=997, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - 1, (n,), generator=generator)  # the last class never occurs
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    logits[:, 0] -= 100  # and class 0 is never predicted
    return logits, labels


def state(logits, labels, indices=None):
    result = Classification(logits.shape[1])
    result.update(logits, labels, indices)
    return result


def everything(result):
    per_class, bins = result.per_class(), result.calibration()
    return [
        result.named("x"),
        result.top1_interval,
        result.confusion().tolist(),
        result.records.tolist(),
        result.confused(),
    ] + [values.tolist() for values in (*vars(per_class).values(), *vars(bins).values())]


def test_numbers_agree_with_scikit_learn():
    logits, labels = sample()
    result = state(logits, labels)
    scores = logits.double().softmax(1).numpy()
    predicted = scores.argmax(1)
    classes = np.arange(7)
    assert result.top1 == sk.accuracy_score(labels, predicted)
    assert result.top5 == pytest.approx(sk.top_k_accuracy_score(labels, scores, k=5, labels=classes), abs=1e-15)
    assert result.nll == pytest.approx(-np.log(scores[np.arange(len(labels)), labels]).mean(), rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's word on classes that were predicted but never occur
        assert result.mean_per_class == pytest.approx(sk.balanced_accuracy_score(labels, predicted), rel=1e-12)
    np.testing.assert_array_equal(result.confusion(), sk.confusion_matrix(labels, predicted, labels=classes))
    expected = sk.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    for ours, theirs in zip(vars(result.per_class()).values(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert np.isnan(result.per_class().recall[6]) and np.isnan(result.per_class().precision[0])


def test_calibration_error_agrees_with_a_loop_over_the_definition():
    logits, labels = sample()
    scores = logits.double().softmax(1).numpy()
    confidence, right = scores.max(1), scores.argmax(1) == labels.numpy()
    total = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    result = state(logits, labels)
    assert result.ece == pytest.approx(total, rel=1e-10)
    assert result.ece > 0.01
    assert result.calibration().count.sum() == len(labels)


def test_entropy_and_probability_are_those_of_the_softmax():
    logits, labels = sample(20)
    scores = logits.double().softmax(1).numpy()
    records = state(logits, labels).records
    np.testing.assert_allclose(records["probability"], scores.max(1), rtol=1e-12)
    np.testing.assert_allclose(records["entropy"], -(scores * np.log(scores)).sum(1), rtol=1e-9)


def test_any_split_and_order_give_exactly_the_same_numbers():
    logits, labels = sample()
    whole = state(logits, labels, torch.arange(997))
    order = torch.randperm(997, generator=torch.Generator().manual_seed(1))
    total = Classification(7)
    for part in order.split(61):
        total = state(logits[part], labels[part], part) + total
    np.testing.assert_equal(everything(total), everything(whole))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (7, 10, 0.3968, 0.8922), (1000, 1000, 0.9962, 1)]
)
def test_wilson_interval_matches_published_values(right, n, low, high):
    # Wilson intervals without continuity correction, as statsmodels' proportion_confint(method="wilson") prints them.
    logits = torch.tensor([[1.0, 0.0]] * right + [[0.0, 1.0]] * (n - right))
    assert state(logits, torch.zeros(n, dtype=torch.long)).top1_interval == pytest.approx((low, high), abs=5e-5)


def test_ties_count_for_the_lower_class():
    result = state(torch.zeros(3, 3), torch.tensor([0, 1, 2]))
    assert result.top1 == 1 / 3
    assert result.top(2) == 2 / 3
    assert result.records["predicted"].tolist() == [0, 0, 0]


def test_few_classes_and_no_images():
    for classes in (2, 5):  # five guesses are all there are
        few = state(torch.eye(classes), torch.zeros(classes, dtype=torch.long))
        assert math.isnan(few.top5) and list(few.named("x")) == ["x/top1", "x/mean_per_class", "x/nll", "x/ece"]
    six = state(torch.eye(6).roll(1, 0), torch.full((6,), 5))  # ties go to the lower class: only the first row is right
    assert six.named("x")["x/top5"] == six.top5 == six.top1 == 1 / 6
    empty = Classification(3)
    assert len(empty) == 0 and math.isnan(empty.top1) and math.isnan(empty.ece)
    assert empty.top1_interval == (0, 1)
    assert empty.confusion().sum() == 0 and empty.confused() == []


def test_confused_pairs_are_the_confusion_matrix_off_the_diagonal():
    result = state(*sample())
    matrix = result.confusion()
    np.fill_diagonal(matrix, 0)
    pairs = result.confused()
    assert sum(count for *_, count in pairs) == matrix.sum() > 0
    assert all(matrix[true, predicted] == count for true, predicted, count in pairs)
    assert [count for *_, count in pairs] == sorted((count for *_, count in pairs), reverse=True)


def test_bad_labels_and_logits_are_told():
    with pytest.raises(DataError, match="3 classes"):
        state(torch.zeros(1, 3), torch.tensor([3]))
    for labels, told in (([0, 3, 1], "Labels 0 to 3 do not fit"), ([2, -1, 0], "Labels -1 to 2 do not fit")):
        with pytest.raises(DataError, match=told):
            state(torch.zeros(3, 3), torch.tensor(labels))
    with pytest.raises(WeightsError, match="not finite"):
        state(torch.tensor([[0.0, math.nan]]), torch.tensor([0]))
    with pytest.raises(DataError, match="do not add"):
        Classification(2) + Classification(3)


def test_bins_of_the_calibration_are_closed_on_the_right():
    """Of 15: above 9/15 up to 10/15, above 12/15 up to 13/15, and the last."""
    shares = torch.tensor([0.61, 0.66, 0.81, 1.0], dtype=torch.float64)
    logits = torch.stack([shares.log(), (1 - shares).log().clamp(min=-800)], 1)
    bins = state(logits, torch.tensor([0, 1, 0, 0])).calibration()
    assert {b: int(count) for b, count in enumerate(bins.count) if count} == {9: 2, 12: 1, 14: 1}
    assert bins.accuracy[[9, 12, 14]].tolist() == [0.5, 1.0, 1.0]
    assert bins.confidence[[9, 12]].tolist() == pytest.approx([0.635, 0.81])


def test_evaluate_is_the_same_for_any_batch_size():
    logits, labels = sample(50)
    images = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1)
    indices = torch.arange(50)

    def predict(batch):
        return logits[batch.flatten().long()]

    results = [
        evaluate(predict, zip(images.split(size), labels.split(size), indices.split(size), strict=True))
        for size in (1, 7, 50)
    ]
    for result in results[1:]:
        np.testing.assert_equal(everything(result), everything(results[0]))
    assert results[0].top1 == state(logits, labels).top1
    with pytest.raises(DataError, match="no image"):
        evaluate(predict, [])
    assert len(evaluate(predict, [], 7)) == 0


def test_images_without_places_are_counted_on():
    result = Classification(3)
    for labels in ([2, 1], [0], [1, 1]):
        result.update(torch.zeros(len(labels), 3), torch.tensor(labels))
    assert result.records["index"].tolist() == [0, 1, 2, 3, 4]
    assert result.records["true"].tolist() == [2, 1, 0, 1, 1]


@pytest.mark.parametrize(("classes", "place"), [(3, 4), (5, 2), (15, 0)])
def test_a_probability_on_the_border_of_two_bins_is_in_the_lower(classes, place):
    """1/3, 1/5 and 1/15 are 5, 3 and 1 of 15 bins' widths, exactly so in float64."""
    bins = state(torch.zeros(1, classes), torch.tensor([1])).calibration()
    assert np.flatnonzero(bins.count).tolist() == [place]


def test_a_certain_answer_is_in_the_last_bin():
    bins = state(torch.tensor([[1000.0, 0.0]]), torch.tensor([0])).calibration()
    assert bins.count.tolist() == [0] * 14 + [1] and bins.confidence[14] == bins.accuracy[14] == 1


def test_the_worst_classes_of_many_are_shown_the_larger_first():
    """40 classes, all right but for three: two with F1 0, of 3 and 5 images, one in between."""
    labels = [*range(40), 7, 7, 21, 21, 21, 21, 30]
    answers = torch.tensor(labels)
    answers[[i for i, label in enumerate(labels) if label in (7, 21)]] = 39
    answers[30] = 39
    text = describe(state(torch.eye(40)[answers], torch.tensor(labels)), [f"c{i:02}" for i in range(40)], worst=3)
    rows = [
        line.split()[0] for line in text.splitlines() if line.startswith("c") and "images)" not in line and "%" in line
    ]
    assert "the 3 worst of 40 classes" in text
    assert [row for row in rows if row in ("c07", "c21", "c39", "c30")] == ["c21", "c07", "c39"]


def test_the_text_for_a_terminal_line_by_line():
    """Of three ants two are taken for bees and of two bees one for an ant; a cow is right, and nothing is a dog."""
    labels, answers = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    result = state(torch.eye(4)[answers], labels)
    low, high = result.top1_interval
    head = [
        f"top-1 accuracy      50.00%   (95% interval {low:.2%} to {high:.2%}, 6 images)",
        "mean per class      61.11%",  # 1/3, 1/2, 1
        f"calibration error  {result.ece:7.2%}   (negative log-likelihood {result.nll:.4f})",
        "at least 90% sure    0.00% of the images",
        "",
    ]
    rows = [
        "class  precision  recall      F1  images",
        "ant       50.00%   33.3%   40.0%       3",
        "bee       33.33%   50.0%   40.0%       2",
        "cow      100.00%  100.0%  100.0%       1",
        "",
    ]
    confused = ["most often confused:", "     2 x ant taken for bee", "     1 x bee taken for ant"]
    assert describe(result, ["ant", "bee", "cow", "dog"]).splitlines() == head + rows + confused
    # From six classes on the best five count too; a class that is never answered has no precision; nothing confused, no list.
    logits = torch.eye(6)[torch.tensor([0, 1, 2])]
    logits[2] = torch.tensor([1.0, 0.9, 0.1, 0.8, 0.7, 0.6])  # its class is the last of six
    lines = describe(state(logits, torch.tensor([0, 1, 2])), ["a", "b", "c", "d", "e", "f"]).splitlines()
    assert lines[1] == "top-5 accuracy      66.67%" and lines[-1] == "     1 x c taken for a"
    assert "c              -    0.0%    0.0%       1" in lines
    assert not any(
        "confused" in line for line in describe(state(torch.eye(6), torch.arange(6)), list("abcdef")).splitlines()
    )


def test_what_sure_answers_are_worth_stands_in_the_text():
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # 95 % sure, the last 73 %
    result = metrics.evaluate(
        lambda _: logits, [(torch.zeros(4), torch.tensor([0, 0, 0, 0]), torch.arange(4))], temperature=2
    )
    low, high = metrics.wilson(2 / 3, 3)
    lines = describe(result, ["a", "b"]).splitlines()
    assert (
        lines[3]
        == f"at least 90% sure   75.00% of the images, 66.67% of these right (95% interval {low:.2%} to {high:.2%})"
    )
    before = state(2 * logits, torch.tensor([0, 0, 0, 0]))
    kept = metrics.Classification.restored(2, result.saved())
    for total in (kept, metrics.Classification(2) + result, result + metrics.Classification(2)):
        assert total.uncalibrated is not None and total.uncalibrated.nll == before.nll
    assert (result + result).uncalibrated is not None and len((result + result).uncalibrated) == 8
    assert (result + before).uncalibrated is None
    assert lines[2].endswith(f" {result.nll:.4f}); before the temperature {before.ece:.2%} ({before.nll:.4f})")


def told(right: list[int], images: list[int]) -> bool | None:
    return metrics.beyond_chance(np.array(right), np.array(images))


def test_better_than_chance() -> None:
    assert told([40, 42], [50, 50]) is True
    assert told([25, 26], [50, 50]) is False and told([30, 28], [50, 50]) is False, "58 of 100 may be luck"
    assert told([31, 30], [50, 50]) is True
    # Always the commonest class: 99 % are right.
    assert told([300, 0], [300, 3]) is False and told([300, 3], [300, 3]) is True
    # Fewer than 99 % are, and yet the small class is known.
    assert told([270, 27], [300, 30]) is True
    assert told([20, 0, 4], [20, 0, 4]) is True, "classes without images do not count"
    assert told([90, 90] + [0] * 8, [100, 100] + [1] * 8) is True, "two large classes are told apart"


def test_too_few_images_to_tell_from_chance() -> None:
    for right, images in (([1, 1], [1, 1]), ([0, 0], [1, 1]), ([7, 0], [9, 0]), ([0, 0], [0, 0]), ([], [])):
        assert told(right, images) is None
    assert told([2, 2], [2, 2]) is True and told([2, 0], [2, 2]) is False


def test_guesses_are_seldom_taken_for_knowledge() -> None:
    """With labels that the answers do not depend on: in one case of twenty at most, for either reason one of forty."""
    rng = np.random.default_rng(0)
    for images in ([40, 40], [200, 10, 10], [3] * 20):
        cases = np.array([[rng.binomial(n, 1 / len(images)) for n in images] for _ in range(400)])
        assert np.mean([told(case.tolist(), images) for case in cases]) < 0.05


def test_long_names_of_classes_do_not_widen_the_table() -> None:
    names = ["a" * 40, "b" * 41]
    text = describe(state(torch.eye(2)[torch.tensor([0, 0, 1])], torch.tensor([0, 1, 1])), names)
    rows = text.splitlines()
    assert max(map(len, rows)) <= 100
    assert any(row.startswith("a" * 40 + "  ") for row in rows) and any(
        row.startswith("b" * 37 + "...  ") for row in rows
    )


def test_the_sentence_about_chance() -> None:
    note = metrics.chance_note(np.array([4, 5]), np.array([10, 10]), ["cat", "d\x1bg"])
    assert note is not None and note.startswith(
        "This cannot be told from chance: 45.0% of 20 images are right (95% interval 25.8% to 65.8%), and 50.0% would be if 'cat' were"
    )
    assert "if the commonest class were" in str(metrics.chance_note(np.array([4, 5]), np.array([10, 10]), None))
    worse = str(metrics.chance_note(np.array([0, 0]), np.array([10, 10]), None))
    assert worse.startswith(
        "This is no better than chance, rather worse: 0.0% of 20 images are right (95% interval 0.0% to 16.1%)"
    )
    assert metrics.chance_note(np.array([10, 10]), np.array([10, 10]), ["cat", "dog"]) is None
    result = Classification(3)
    labels = torch.arange(30) % 3
    result.update(torch.nn.functional.one_hot(labels[torch.arange(29, -1, -1)], 3).float(), labels)
    assert "33.3% of 30 images" in str(result.chance_note("abc"))
