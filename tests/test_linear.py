from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from bigtransfer.backends import by_torch
from bigtransfer.errors import DataError, WeightsError
from bigtransfer.evals import Classification, linear
from bigtransfer.model import ResNetV2


def sample(n, d, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, d, generator=generator)
    spread = 1 + torch.rand(d, generator=generator)
    return 5 + spread * (centres[labels] + 2 * torch.randn(n, d, generator=generator)), labels


def standardize(features):
    features = features.double().numpy()
    return (features - features.mean(0)) / features.std(0)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (20, 50), (30, 30)])
def test_weights_are_those_of_scikit_learns_ridge_regression(n, d):
    features, labels = sample(n, d)
    probe = linear.fit(features, labels, 3, penalty=7.0)
    ridge = Ridge(alpha=7.0).fit(standardize(features), np.eye(3)[labels])
    scores = probe.head(features).double().detach().numpy() * probe.temperature
    np.testing.assert_allclose(scores, ridge.predict(standardize(features)), atol=2e-5)


@pytest.mark.parametrize(("n", "d"), [(40, 8), (25, 60)])
def test_leave_one_out_is_what_refitting_without_each_image_gives(n, d):
    features, labels = sample(n, d)
    x, targets = standardize(features), np.eye(3)[labels]
    scores = []
    for i in range(n):
        others = np.arange(n) != i
        scores.append(Ridge(alpha=9.0).fit(x[others], targets[others]).predict(x[i : i + 1])[0])
    scores = np.array(scores)
    probe = linear.fit(features, labels, 3, penalty=9.0)
    assert probe.leave_one_out_top1 == np.mean(scores.argmax(1) == labels.numpy())

    def error(temperature):
        z = scores / temperature
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
        target = np.eye(3)[labels] * (1 - 1 / (n + 2)) + 1 / (3 * (n + 2))
        return -(target * z).sum(1).mean()

    grid = np.geomspace(probe.temperature / 3, probe.temperature * 3, 2001)
    best = grid[np.argmin([error(temperature) for temperature in grid])]
    assert probe.temperature == pytest.approx(best, rel=2e-3)


def lopsided(d, seed=0):
    """Two classes of 4 images, one of 20, and one that has none."""
    labels = torch.tensor([0] * 20 + [1] * 4 + [3] * 4)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, d, generator=generator)
    return 2 + centres[labels] + 0.7 * d**0.5 * torch.randn(len(labels), d, generator=generator), labels


@pytest.mark.parametrize("d", [6, 60])
def test_a_balanced_classifier_is_that_of_a_set_whose_small_classes_are_repeated(d):
    features, labels = lopsided(d)
    repeats = torch.tensor([1, 5, 0, 5])[labels]
    balanced = linear.fit(features, labels, 4, penalty=5.0, balanced=True)
    # All weights together are as much as there are images: 28 instead of 60.
    repeated = linear.fit(
        features.repeat_interleave(repeats, dim=0), labels.repeat_interleave(repeats), 4, penalty=5.0 * 60 / 28
    )
    for name in ("weight", "bias"):
        mine, theirs = (getattr(probe.head, name) * probe.temperature for probe in (balanced, repeated))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decomposed", [3000, 5])
@pytest.mark.parametrize("d", [6, 60])
def test_balanced_leave_one_out_is_what_weighted_refitting_without_each_image_gives(monkeypatch, d, decomposed):
    monkeypatch.setattr(linear, "_DECOMPOSED", decomposed)
    features, labels = lopsided(d)
    n = len(labels)
    weights = n / (3 * np.bincount(labels)[labels])
    x, targets = features.double().numpy(), np.eye(4)[labels]
    mean = weights @ x / n
    x = (x - mean) / np.sqrt(weights @ (x - mean) ** 2 / n)
    scores = np.empty((n, 4))
    for i in range(n):
        others = np.arange(n) != i
        ridge = Ridge(alpha=3.0).fit(x[others], targets[others], sample_weight=weights[others])
        scores[i] = ridge.predict(x[i : i + 1])[0]
    probe = linear.fit(features, labels, 4, penalty=3.0, balanced=True)
    right = scores.argmax(1) == labels.numpy()
    assert probe.right == tuple(np.bincount(labels[right], minlength=4)) and probe.judged == (20, 4, 0, 4)
    assert 0 < sum(probe.right) < n and probe.leave_one_out_top1 == right.mean()
    z = scores / probe.temperature
    z = z - np.log(np.exp(z).sum(1, keepdims=True))
    target = targets * (1 - 1 / (n + 2)) + 1 / (4 * (n + 2))
    assert probe.leave_one_out_loss == pytest.approx(weights @ -(target * z).sum(1) / n, rel=1e-6)


def ridges_scores(x, labels, weights, penalty, scatter, new):
    """Ridge regression's, in float64 NumPy from its description: the least |Y - X W - b|^2 + penalty (|W|^2 + |S W|^2), weighted."""
    targets = np.eye(3)[labels]
    mean, prior = np.average(x, axis=0, weights=weights), np.average(targets, axis=0, weights=weights)
    x, targets = (x - mean) * weights[:, None] ** 0.5, (targets - prior) * weights[:, None] ** 0.5
    gram = x.T @ x + penalty * (np.eye(x.shape[1]) + scatter.T @ scatter)
    return (new - mean) @ np.linalg.solve(gram, x.T @ targets) + prior


def discriminants_scores(x, labels, weights, penalty, scatter, new):
    """Fisher's, in float64 NumPy from its description: half the squared distance to each class's mean, negative."""
    classes = range(labels.max() + 1)
    means = np.array([np.average(x[labels == c], axis=0, weights=weights[labels == c]) for c in classes])
    rest = x - means[labels]
    known = penalty * (np.eye(x.shape[1]) + scatter.T @ scatter)
    metric = np.linalg.inv((weights[:, None] * rest).T @ rest + known)
    return np.array([[-0.5 * (z - mean) @ metric @ (z - mean) for mean in means] for z in new])


def softened(scores):
    return scores - scores.mean(1, keepdims=True)


@pytest.mark.parametrize("directions", [0, 4, 9])
@pytest.mark.parametrize("decomposed", [3000, 5])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("d", [6, 60])
def test_the_mean_of_regression_and_discriminant_is_what_both_give_when_solved_plainly(
    monkeypatch: pytest.MonkeyPatch, d: int, balanced: bool, decomposed: int, directions: int
) -> None:
    """The head and, by refitting without each image, leave-one-out; classes of 20, 4 and 4 images."""
    monkeypatch.setattr(linear, "_DECOMPOSED", decomposed)
    monkeypatch.setattr(linear, "_WORSE", 100.0)
    features, labels = lopsided(d)
    labels = labels.clamp_max(2)
    n, penalty = len(labels), 3.0
    numbers = labels.numpy()
    weights = n / (3 * np.bincount(numbers)[numbers]) if balanced else np.ones(n)
    x = features.double().numpy()
    mean = weights @ x / n
    x = (x - mean) / np.sqrt(weights @ (x - mean) ** 2 / n)
    totals = np.bincount(numbers, weights)
    scatter = torch.randn(directions, d, generator=torch.Generator().manual_seed(1))
    probe = linear.fit(
        features,
        labels,
        3,
        penalty=penalty,
        balanced=balanced,
        discriminant=True,
        scatter=scatter if directions else None,
    )
    assert probe.discriminant_penalty == penalty

    def both(rows, new, log_prior):
        given = x[rows], numbers[rows], weights[rows], penalty, scatter.double().numpy(), new
        return ridges_scores(*given), discriminants_scores(*given), log_prior

    left = [
        both(np.arange(n) != i, x[i : i + 1], np.log(totals if balanced else totals - np.eye(3)[numbers[i]]))
        for i in range(n)
    ]
    regression, fisher, prior = (torch.from_numpy(np.stack([np.ravel(each[k]) for each in left])) for k in range(3))
    counted = torch.from_numpy(weights) if balanced else None
    first, _ = linear.best_temperature(regression, labels, counted)
    second, _ = linear.best_temperature(fisher, labels, counted, prior)
    mixed = (regression / first + fisher / second + prior) / 2
    third, loss = linear.best_temperature(mixed, labels, counted)
    assert probe.temperature == pytest.approx(first, rel=1e-6) and probe.leave_one_out_loss == pytest.approx(
        loss, rel=1e-6
    )
    np.testing.assert_allclose(softened(probe.answers.numpy()), softened(mixed.numpy() / third), rtol=1e-5, atol=1e-6)

    one, other, prior = both(np.arange(n) >= 0, x, np.log(totals))
    expected = (one / first + other / second + prior) / 2 / third
    found = probe.head(features).detach().double().numpy()
    np.testing.assert_allclose(softened(found), softened(expected), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_with_parts_it_is_a_mean_of_the_classifiers_of_all_features_and_of_each_part(balanced: bool) -> None:
    """Of their logits, also of those without each image, divided by one more temperature; each part with what is known of its scatter.
    Their shares are as what leave-one-out says for them."""
    features, labels = lopsided(12)
    labels = labels.clamp_max(2)
    generator = torch.Generator().manual_seed(2)
    known = torch.randn(2, 5, generator=generator)
    scatter = torch.block_diag(known, torch.zeros(0, 7))
    parts = (linear.Part(torch.arange(5), known), linear.Part(torch.arange(5, 12)))
    how: dict[str, Any] = {"balanced": balanced, "discriminant": True}
    found = linear.fit(features, labels, 3, scatter=scatter, parts=parts, **how)
    alone = [
        linear.fit(features, labels, 3, scatter=scatter, **how),
        linear.fit(features[:, :5], labels, 3, scatter=known, **how),
        linear.fit(features[:, 5:], labels, 3, **how),
    ]
    seen = (features, features[:, :5], features[:, 5:])
    counted = (len(labels) / (3 * torch.bincount(labels).double()))[labels] if balanced else None
    likely = np.array([math.exp(-0.1 * len(labels) * one.leave_one_out_loss) for one in alone])
    shares = likely / likely.sum()
    assert shares.max() > 1.5 * shares.min(), "worth the test"
    answers = torch.stack([share * one.answers for share, one in zip(shares, alone, strict=True)]).sum(0)
    temperature, loss = linear.best_temperature(answers, labels, counted)
    assert temperature != pytest.approx(1, abs=0.01)
    torch.testing.assert_close(found.answers, answers / temperature)
    assert found.leave_one_out_loss == pytest.approx(loss)
    assert found.leave_one_out_top1 == pytest.approx(float((answers.argmax(1) == labels).double().mean()))
    logits = [share * one.head(x).double() for share, one, x in zip(shares, alone, seen, strict=True)]
    torch.testing.assert_close(
        found.head(features).double(), torch.stack(logits).sum(0) / temperature, rtol=1e-4, atol=1e-4
    )
    assert (found.penalty, found.temperature) == (alone[0].penalty, alone[0].temperature), "those of all features"


def test_parts_of_one_image_of_each_class() -> None:
    """Of which none can be judged."""
    features, labels = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    halves = torch.arange(6).split(3)
    found = linear.fit(features, labels, 3, parts=[linear.Part(half) for half in halves])
    alone = [linear.fit(features, labels, 3).head(features)]
    alone += [linear.fit(features[:, half], labels, 3).head(features[:, half]) for half in halves]
    torch.testing.assert_close(found.head(features), sum(alone) / 3, rtol=1e-4, atol=1e-4)
    assert math.isnan(found.leave_one_out_loss)


def test_a_discriminant_stays_away_where_it_cannot_be_had_or_harms(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = lopsided(12)
    assert linear.fit(features, labels, 4, discriminant=True).discriminant_penalty is None  # class 2 has no image
    ones = linear.fit(features[[0, 20, 24]], torch.arange(3), 3, discriminant=True)  # none can be judged
    assert ones.discriminant_penalty is None
    labels = labels.clamp_max(2)
    alone, averaged = (linear.fit(features, labels, 3, discriminant=given) for given in (False, True))
    assert alone.discriminant_penalty is None and averaged.discriminant_penalty is not None
    assert not torch.equal(alone.head.weight, averaged.head.weight)
    monkeypatch.setattr(linear, "_WORSE", 0.0)
    kept = linear.fit(features, labels, 3, discriminant=True)
    assert kept.discriminant_penalty is None and torch.equal(kept.head.weight, alone.head.weight)
    assert kept.leave_one_out_loss == alone.leave_one_out_loss


def test_a_discriminant_is_left_out_of_very_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = lopsided(12)
    labels = labels.unique(return_inverse=True)[1]  # class 2 has no image
    classes = int(labels.max()) + 1
    assert linear.fit(features, labels, classes, discriminant=True).discriminant_penalty is not None
    monkeypatch.setattr(linear, "MOST_CLASSES", classes - 1)
    assert linear.fit(features, labels, classes, discriminant=True).discriminant_penalty is None


def test_what_is_of_every_two_classes_is_asked_for_by_the_discriminant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 21,843 classes it would be 4 GB."""
    features, labels = lopsided(12)
    for form in (linear._Decomposed, linear._Factored):
        monkeypatch.setattr(form, "between", lambda *_: pytest.fail("asked for"))
    for decomposed in (0, 10**6):
        monkeypatch.setattr(linear, "_DECOMPOSED", decomposed)
        assert linear.fit(features, labels, 4, penalty=1.0).discriminant_penalty is None


def test_a_discriminant_helps_where_classes_lie_close_together_in_some_directions() -> None:
    """Ten classes along a line, which regression masks (Hastie et al., The Elements of Statistical Learning, 4.2)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 8
    features = torch.randn(400, 30, generator=generator)
    features[:, 0] = 3.0 * labels + torch.randn(400, generator=generator)
    alone, averaged = (linear.fit(features[:200], labels[:200], 8, discriminant=given) for given in (False, True))
    right = [
        float((probe.head(features[200:]).argmax(1) == labels[200:]).double().mean()) for probe in (alone, averaged)
    ]
    assert right[1] > right[0] + 0.1 and averaged.leave_one_out_loss < alone.leave_one_out_loss


@pytest.mark.parametrize(("d", "apart"), [(40, 0.7), (400, 0.3)])
def test_it_helps_to_know_how_images_of_one_class_differ(d: int, apart: float) -> None:
    """Classes that lie close together, beside eight directions in which all images differ widely."""
    generator = torch.Generator().manual_seed(0)
    differences, centres = torch.randn(8, d, generator=generator), apart * torch.randn(5, d, generator=generator)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 5
        wide = 3 * torch.randn(count, 8, generator=generator) @ differences
        return centres[labels] + wide + torch.randn(count, d, generator=generator), labels

    (features, labels), (others, truth) = images(20), images(500)
    known = 10 * differences * linear.standardization(features)[1].float()
    found = [linear.fit(features, labels, 5, discriminant=True, scatter=given) for given in (None, known)]
    right = [float((probe.head(others).argmax(1) == truth).double().mean()) for probe in found]
    assert right[1] > right[0] + 0.05 and found[1].leave_one_out_loss < found[0].leave_one_out_loss, right


def test_a_scatter_in_blocks_is_that_of_the_same_directions_in_other_words() -> None:
    """Turned rows say the same (S^T S is), and show no block; columns of which nothing is known may lie between blocks."""
    generator = torch.Generator().manual_seed(3)
    features, labels = sample(40, 17)
    scatter = torch.zeros(8, 17)
    scatter[:3, 1:6], scatter[3:5, 7:11], scatter[6:, 11:17] = (
        4 * torch.randn(*shape, generator=generator) for shape in ((3, 5), (2, 4), (2, 6))
    )
    scatter[6, 11] = scatter[4, 10] = 0.0
    order = torch.randperm(8, generator=generator)
    found = [(columns.start, columns.stop, len(block)) for columns, block in linear._blocks(scatter[order].double())]
    assert found == [(1, 6, 3), (7, 11, 2), (11, 17, 2)]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert [len(block) for _, block in linear._blocks(turn @ scatter)] == [8]
    probes = [
        linear.fit(features, labels, 3, discriminant=True, scatter=one) for one in (scatter[order], turn @ scatter)
    ]
    plain = linear.fit(features, labels, 3, discriminant=True)
    torch.testing.assert_close(probes[0].answers, probes[1].answers, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(probes[0].answers, plain.answers, rtol=1e-2)


def test_large_problems_know_the_scatter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the penalty is chosen by a part of the images."""
    features, labels = sample(60, 40)
    scatter = 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(linear, "_DECOMPOSED", 20)
    asked = []
    real = linear.fit
    monkeypatch.setattr(linear, "fit", lambda *given, **more: asked.append(more["scatter"]) or real(*given, **more))
    assert linear.fit(features, labels, 3, scatter=scatter).scatter is scatter
    assert len(asked) == 2 and all(one is scatter for one in asked)


def test_weights_count_in_the_temperature_like_repetitions():
    labels = torch.arange(9) % 3
    noise = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    # The smoothing depends on the number of images: of so many it hardly matters.
    scores, labels = (nn.functional.one_hot(labels, 3) + noise).repeat(1000, 1), labels.repeat(1000)
    repeats = torch.tensor([1, 1, 3] * 3000)
    weighted = linear.best_temperature(scores, labels, repeats.double())
    repeated = linear.best_temperature(scores.repeat_interleave(repeats, dim=0), labels.repeat_interleave(repeats))
    assert weighted == pytest.approx(repeated, rel=1e-3)
    assert weighted[0] != pytest.approx(linear.best_temperature(scores, labels)[0], rel=1e-2)


def big_visions_scores(features, labels, classes, new, penalty):
    """`fewshot_lsr` of big_vision in float64 NumPy, from its description."""
    mean, deviation = features.mean(0), np.sqrt(((features - features.mean(0)) ** 2).mean(0)) + 1e-5
    x, z = (np.hstack([(each - mean) / deviation, np.full((len(each), 1), 100.0)]) for each in (features, new))
    targets = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
    # The ridge solution as ordinary least squares with sqrt(penalty) times the identity as further rows.
    rows = np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    solution = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((x.shape[1], classes))]), rcond=None)[0]
    return z @ solution


@pytest.mark.parametrize("penalty", [2.0**10, 2.0**-20, 1.0])
@pytest.mark.parametrize(("n", "d"), [(90, 200), (300, 40), (30, 30), (5, 80)])
def test_fewshot_lsr_is_big_visions(n, d, penalty):
    features, labels = sample(n, d, classes=5)
    new, _ = sample(400, d, classes=5, seed=1)
    # As of a ReLU: always zero, nearly always zero, nearly constant.
    features[:, 0] = new[:, 0] = 0
    features[1:, 1] = 0
    features[:, 2] = 3 + 1e-5 * features[:, 2]
    new[:, 2] = 3 + 1e-5 * new[:, 2]
    expected = big_visions_scores(features.double().numpy(), labels.numpy(), 5, new.double().numpy(), penalty)
    options = {} if penalty == 1024 else {"penalty": penalty}
    scores = linear.fewshot_lsr(features, labels, 5, **options)(new)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert (scores.argmax(1).numpy() == expected.argmax(1)).mean() >= 0.99
    assert n < 90 or len(scores.argmax(1).unique()) > 1


def test_the_probe_of_the_same_penalty_is_another_protocol():
    """Because of what it does with features that hardly vary: the docstring says so."""
    features, labels = sample(90, 200, classes=5)
    features[1:, :40] = 0
    features[0, :40] *= 1e-3
    new, _ = sample(400, 200, classes=5, seed=1)
    ours = linear.fit(features, labels, 5, penalty=linear.FEWSHOT_PENALTY).head(new).argmax(1)
    theirs = linear.fewshot_lsr(features, labels, 5)(new).argmax(1)
    assert (ours == theirs).double().mean() < 0.9


def test_chosen_probe_beats_logistic_regression_on_digits_and_its_probabilities_are_calibrated():
    pixels, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    projection = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) / 8
    features = torch.relu(pixels.float() @ projection)
    train = torch.arange(0, len(labels), 4)
    test = torch.arange(1, len(labels), 4)
    probe = linear.fit(features[train], labels[train], 10)
    result = Classification(10)
    result.update(probe.head(features[test]), labels[test])
    baseline = (
        LogisticRegression(max_iter=2000).fit(pixels[train] / 16, labels[train]).score(pixels[test] / 16, labels[test])
    )
    assert result.top1 > baseline > 0.9
    assert result.ece < 0.03
    assert result.nll < 0.15
    assert abs(probe.leave_one_out_top1 - result.top1) < 0.03


def test_one_image_per_class_and_degenerate_sets():
    features, labels = torch.eye(4, 9), torch.arange(4)
    probe = linear.fit(features, labels, 4)
    assert math.isnan(probe.leave_one_out_top1)
    assert torch.equal(probe.head(features).argmax(1), labels)
    for same in (
        linear.fit(torch.ones(3, 5), torch.tensor([1, 1, 0]), 2),
        linear.fit(torch.ones(1, 5), torch.tensor([1]), 2),
    ):
        logits = same.head(torch.ones(1, 5))
        assert torch.isfinite(logits).all() and logits.argmax() == 1


def test_a_nearly_constant_feature_does_not_blow_up():
    features, labels = sample(40, 6)
    features[:, 0] = 0
    features[0, 0] = 1e-4
    head = linear.fit(features, labels, 3).head
    changed = features[:1].clone()
    changed[0, 0] = 1
    assert (head(changed) - head(features[:1])).abs().max() < 10


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    features, labels = sample(100, 10)
    whole = linear.fit(features, labels, 3, penalty=1.0).head(features)
    monkeypatch.setattr(linear, "_ROWS", 33)
    torch.testing.assert_close(linear.fit(features, labels, 3, penalty=1.0).head(features), whole)


def test_features_that_are_no_numbers_are_told():
    model = ResNetV2((1, 1, 1, 1), 1, 3).eval()
    images, labels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    linear.extract_features(model, [(images, labels, labels)], "cpu")
    with torch.no_grad():
        model.norm.weight[5] = math.nan
    with pytest.raises(WeightsError, match="are not finite numbers: its weights are damaged"):
        linear.extract_features(model, [(images, labels, labels)], "cpu")


def test_freed_memory_is_kept_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the system clears every page anew for each (`ops.memory`)."""
    asked = []
    for module in (linear, by_torch):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: asked.append(1))
    model = ResNetV2((1, 1, 1, 1), 1, 3).eval()
    images, labels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    linear.extract_features(model, [(images, labels, labels)], "cpu")
    assert asked == [1]
    by_torch.Torch(model, "cpu", "fp32")
    assert asked == [1, 1]


def test_bad_labels_are_told():
    for fit in (linear.fit, linear.fewshot_lsr):
        for label in (2, -1):
            with pytest.raises(DataError, match="2 classes"):
                fit(torch.zeros(2, 3), torch.tensor([0, label]), 2)
        with pytest.raises(DataError, match="at least one"):
            fit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 2)


def test_extracted_features_are_what_the_head_sees_and_the_probe_fits_there():
    torch.manual_seed(0)
    model = ResNetV2((1, 1, 1, 1), 1, 3).train()
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    indices = torch.arange(5)
    batches = zip(images.split(2), labels.split(2), indices.split(2), strict=True)
    batches = list(batches)
    features, found = linear.extract_features(model, batches, "cpu")
    assert model.training
    rounded, _ = linear.extract_features(model.eval(), batches, "cpu", torch.bfloat16)
    assert not model.training and rounded.dtype == torch.float32 and not torch.equal(rounded, features)
    torch.testing.assert_close(rounded, features, rtol=0.1, atol=0.2)
    assert features.dtype == torch.float32 and features.shape == (5, 2048) and torch.equal(found, labels)
    with torch.no_grad():
        expected = model.features((images.float() - 127.5) / 127.5)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    model.head = linear.fit(features, labels, 3, penalty=1e-3).head
    assert torch.equal(model((images.float() - 127.5) / 127.5).argmax(1), labels)
    with pytest.raises(DataError, match="no image"):
        linear.extract_features(model, [], "cpu")


@pytest.mark.parametrize("shape", [(90, 40), (40, 90)])
def test_large_problems_are_solved_for_the_penalty_of_a_part(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    """The same solution, leave-one-out included, by factorization as by decomposition."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(shape, generator=generator)
    labels = torch.arange(shape[0]) % 3
    features[:, 0] += labels
    monkeypatch.setattr(linear, "_DECOMPOSED", 30)
    part = linear._spread(labels, 30)
    assert (torch.bincount(labels[part]) - 10).abs().max() <= 1 and part.unique().numel() == 30
    large = linear.fit(features, labels, 3)
    monkeypatch.setattr(linear, "_DECOMPOSED", 1000)
    assert large.penalty == linear.fit(features[part], labels[part], 3).penalty
    theirs = linear.fit(features[part], labels[part], 3, discriminant=True)
    monkeypatch.setattr(linear, "_DECOMPOSED", 30)
    averaged = linear.fit(features, labels, 3, discriminant=True)
    assert averaged.discriminant_penalty == theirs.discriminant_penalty != averaged.penalty == theirs.penalty
    monkeypatch.setattr(linear, "_DECOMPOSED", 1000)
    small = linear.fit(features, labels, 3, penalty=large.penalty)
    torch.testing.assert_close(large.head.weight, small.head.weight, rtol=1e-5, atol=1e-6)
    for name in ("temperature", "leave_one_out_top1", "leave_one_out_loss"):
        assert getattr(large, name) == pytest.approx(getattr(small, name), rel=1e-6), name


@pytest.mark.parametrize(
    ("labels", "told"), [([0, 3, 1], "Labels 0 to 3"), ([2, -1, 0], "Labels -1 to 2"), ([], "at least one")]
)
def test_labels_of_no_class_are_told(labels, told):
    with pytest.raises(DataError, match=told):
        linear.fit(torch.zeros(len(labels), 4), torch.tensor(labels, dtype=torch.int64), 3)
