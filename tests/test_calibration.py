"""The temperature: found where it is known, harmless where it cannot be, and without a say in the answers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bigtransfer import weights
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import Splits, open_dataset
from bigtransfer.evals import as_record, calibration, labels_record, linear
from bigtransfer.evals.metrics import Classification
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.jobs import evaluate
from bigtransfer.jobs.finetune import measuring
from bigtransfer.model import ResNetV2, build
from bigtransfer.predictor import Predictor


def drawn(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right at this temperature: labels are drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * temperature * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_temperature_that_is_known_is_found(temperature: float) -> None:
    logits, labels = drawn(4000, 5, temperature)
    found = calibration.fit(logits, labels)
    assert not isinstance(found, str)
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    assert found.loss[1] <= found.loss[0] and found.images == 4000
    result = Classification(5)
    result.update(logits, labels)
    assert found.ece[0] == pytest.approx(result.ece) and found.loss[0] == pytest.approx(result.nll)
    if temperature != 1:
        assert found.ece[1] < 0.03 < found.ece[0]


def test_that_of_sigmoids_too() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(2000, 4, generator=generator, dtype=torch.float64) - 2
    there = torch.bernoulli((logits / 3).sigmoid(), generator=generator).bool()
    labels = torch.full((2000, 4), -1)
    for row, classes in enumerate(there):
        found = classes.nonzero()[:, 0]
        labels[row, : len(found)] = found
    fitted = calibration.fit(logits, labels)
    assert not isinstance(fitted, str)
    assert fitted.temperature == pytest.approx(3, rel=0.08)
    result = MultiLabel(4)
    result.update(logits, labels)
    assert fitted.ece == pytest.approx((result.ece, fitted.ece[1])) and fitted.ece[1] < 0.03 < fitted.ece[0]
    assert result.nll == pytest.approx(fitted.loss[0], rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_separable_classes_do_not_ask_for_infinite_confidence(scale: float) -> None:
    labels = torch.arange(40) % 4
    logits = scale * nn.functional.one_hot(labels, 4).double()
    found = calibration.fit(logits, labels)
    assert not isinstance(found, str)
    assert 0.1 < found.temperature <= 1 and math.isfinite(found.loss[1])
    found = calibration.fit(torch.zeros(40, 4), labels)  # nothing to be learnt from them either
    assert not isinstance(found, str) and found.temperature == 1


def test_few_images_move_it_little_and_too_few_not_at_all() -> None:
    logits, labels = drawn(2000, 5, 4.0)
    found = [calibration.fit(logits[:n], labels[:n]) for n in (20, 60, 2000)]
    temperatures = [one.temperature for one in found if not isinstance(one, str)]
    assert 1 < temperatures[0] < temperatures[1] < temperatures[2] and len(temperatures) == 3
    assert (
        calibration.fit(logits[:19], labels[:19])
        == "19 held-out images are too few to fit a temperature (20 are needed)"
    )


def test_a_solved_classifier_s_temperature_is_left_by_many_images_only() -> None:
    """Against the posterior in float64 NumPy, over a grid; of images that demand the same, 30 and 3,000, and counted twice."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 4))
    odds = np.exp(scores / 1.5)
    labels = np.array([rng.choice(4, p=row / row.sum()) for row in odds])
    grid = np.exp(np.linspace(-1.5, 1.5, 3001))
    found = []
    for times in (1, 100):
        logits, truth = np.tile(scores, (times, 1)), np.tile(labels, times)
        divided = logits[None] / grid[:, None, None]
        lost = (np.log(np.exp(divided).sum(2)) - divided[:, np.arange(len(truth)), truth]).sum(1)
        expected = grid[(lost + (np.log(grid) / 0.12) ** 2 / 2).argmin()]
        found.append(calibration.of_solved(torch.from_numpy(logits), torch.from_numpy(truth)))
        assert found[-1] == pytest.approx(expected, rel=2e-3)
        alone = grid[lost.argmin()]
    assert abs(math.log(found[0])) < 0.2 * abs(math.log(alone)), "30 images hardly move it"
    assert abs(math.log(found[1])) > 0.8 * abs(math.log(alone))
    heavier = calibration.of_solved(torch.from_numpy(scores), torch.from_numpy(labels), torch.full((30,), 7.0))
    assert heavier == pytest.approx(found[0]), "weights are shares"
    wrong = scores.argmax(1) != labels
    given = {
        weight: calibration.of_solved(
            torch.from_numpy(scores), torch.from_numpy(labels), torch.from_numpy(np.where(wrong, weight, 1.0))
        )
        for weight in (0.2, 1.0, 5.0)
    }
    assert given[1.0] == pytest.approx(found[0])
    assert given[0.2] < given[1.0] < given[5.0], "what is wrong counts for more or less"


def test_what_it_is_worth_is_judged_by_images_that_did_not_choose_it() -> None:
    """Of answers without any meaning a temperature looks good on the very images that chose it."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = 3 * torch.randn(60, 10, generator=generator), torch.randint(0, 10, (60,), generator=generator)
    found = calibration.fit(logits, labels)
    assert not isinstance(found, str)
    own = calibration.of_choice(logits / found.temperature, labels, found.temperature)
    assert own is not None and own.loss[0] == pytest.approx(found.loss[0])
    assert found.loss[1] > own.loss[1] + 1e-3


def test_where_nothing_is_gained_nothing_is_changed() -> None:
    """Of probabilities that fit as they are the temperature would only follow chance."""
    found = [calibration.fit(*drawn(100, 5, 1.0, seed)) for seed in range(6)]
    kept = [one for one in found if not isinstance(one, str) and one.temperature == 1]
    assert kept and all(one.loss[0] == one.loss[1] and one.ece[0] == one.ece[1] for one in kept)
    assert all(one.loss[1] <= one.loss[0] for one in found if not isinstance(one, str))


def test_no_answer_is_another_one() -> None:
    torch.manual_seed(0)
    network = build("r26x1", 7)
    with torch.no_grad():
        network.head.weight.normal_(std=0.3)
        network.head.bias.normal_()
    features = torch.rand(500, network.num_features)
    with torch.no_grad():
        before = network.head(features)
        calibration.divide(network.head, 0.37)
        after = network.head(features)
    torch.testing.assert_close(after, before / 0.37, rtol=2e-3, atol=2e-4)
    assert torch.equal(before.argsort(1, descending=True)[:, :3], after.argsort(1, descending=True)[:, :3])
    probable, sharper = before.sigmoid(), after.sigmoid()
    for threshold in (0.01, 0.3, 0.5, 0.98):
        clear = (probable - threshold).abs() > 1e-5
        moved = calibration.moved(threshold, 0.37)
        assert torch.equal((probable >= threshold)[clear], (sharper >= moved)[clear])
    assert calibration.moved(0.5, 0.37) == 0.5 and calibration.moved(0.0, 3) == 0 and calibration.moved(1.0, 3) == 1
    with pytest.raises(AssertionError):
        calibration.divide(nn.Identity(), 2.0)


def test_the_closed_form_knows_its_answers_without_each_image() -> None:
    """They are those of classifiers that are really fitted without it, at the penalty and temperature of the one fitted with all."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    features = torch.randn(24, 40, generator=generator) + 2 * nn.functional.one_hot(labels, 40)
    mean, scale = linear.standardization(features)
    features = (
        (features - mean) * scale
    ).float()  # it keeps standardizing by all images; of these nothing is left to do
    probe = linear.fit(features, labels, 3)
    for i in (0, 5, 23):
        rest = torch.arange(24) != i
        x, y = features[rest].double(), nn.functional.one_hot(labels[rest], 3).double()
        centre, prior = x.mean(0), y.mean(0)
        gram = (x - centre).T @ (x - centre) + probe.penalty * torch.eye(40, dtype=torch.float64)
        weight = torch.linalg.solve(gram, (x - centre).T @ (y - prior))
        wanted = ((features[i].double() - centre) @ weight + prior) / probe.temperature
        torch.testing.assert_close(probe.answers[i], wanted, rtol=1e-4, atol=1e-4)
    assert probe.leave_one_out_top1 == float((probe.answers.argmax(1) == probe.answered).double().mean())
    found = calibration.of_leave_one_out(probe)
    assert found is not None and found.by == "leave-one-out" and found.temperature == probe.temperature
    result = Classification(3)
    result.update(probe.answers, probe.answered)
    assert found.loss[1] == pytest.approx(result.nll) and found.ece[1] == pytest.approx(result.ece)
    result = Classification(3)
    result.update(probe.answers * probe.temperature, probe.answered)
    assert found.loss[0] == pytest.approx(result.nll) and found.loss[0] > found.loss[1]
    few = dataclasses.replace(probe, answers=probe.answers[:9], answered=probe.answered[:9])
    assert calibration.of_leave_one_out(few) is None


def test_a_card_remembers_it_and_older_cards_are_read() -> None:
    found = calibration.fit(*drawn(50, 3, 2.0))
    assert not isinstance(found, str)
    card = dataclasses.replace(ModelCard.bare(build("r26x1", 0).architecture, 3), calibrated=found)
    assert ModelCard.from_json(card.to_json()) == card
    assert card.with_classes(4).calibrated is None
    older = dataclasses.replace(card, calibrated=None)
    text = older.to_json()
    assert ModelCard.from_json(text.replace('"calibrated": null, ', "")) == older and '"calibrated"' in text


def test_reliability_of_labels_counts_every_class_of_every_image() -> None:
    result = MultiLabel(2)
    result.update(torch.logit(torch.tensor([[0.95, 0.03], [0.95, 0.5]])), torch.tensor([[0, -1], [1, -1]]))
    bins = result.reliability()
    assert bins.count.tolist() == [1, *[0] * 6, 1, *[0] * 6, 2]
    assert bins.accuracy[[0, 7, 14]].tolist() == [0, 1, 0.5]
    assert result.ece == pytest.approx((0.03 + 0.5 + 2 * 0.45) / 4, abs=1e-6)
    assert result.nll == pytest.approx(-np.log([0.95, 0.97, 0.05, 0.5]).mean(), rel=1e-5)
    assert math.isnan(MultiLabel(2).ece) and math.isnan(MultiLabel(2).nll)


@pytest.fixture
def held_out(tmp_path: Path) -> Splits:
    """Two classes, the images of noise, none of which says anything; 24 are held out."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 12)):
        for name in ("ant", "bee"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.png")
    return open_dataset(tmp_path / "data")


def overconfident(multi_label: bool = False) -> ResNetV2:
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 2)
    with torch.no_grad():
        network.head.weight.normal_(std=3)
    network.card = dataclasses.replace(
        network.card, input=InputSpec(size=16), class_names=("ant", "bee"), multi_label=multi_label
    )
    return network.eval()


def test_a_trained_network_gets_its_temperature_and_every_form_has_it(held_out: Splits, tmp_path: Path) -> None:
    network, config = overconfident(), FinetuneConfig(data="x", device="cpu", precision="fp32")
    before = Predictor(network, device="cpu", precision="fp32")
    images = [held_out.val.read(i) for i in range(24)]
    assert measuring.finish(config, network, held_out) == ""
    found = network.card.calibrated
    assert found is not None and found.temperature > 1.5 and found.images == 24 and found.loss[1] < found.loss[0]
    told = measuring.how_sure(network.card, "")
    assert f"temperature {found.temperature:.3g}, by 24 images held out" in told and f"{found.ece[1]:.1%}" in told
    by_loss = "; it is chosen by the loss, which is lower with it"
    for before_it, with_it in ((0.01, 0.02), (0.02, 0.01)):
        card = dataclasses.replace(network.card, calibrated=dataclasses.replace(found, ece=(before_it, with_it)))
        assert measuring.how_sure(card, "").endswith(
            f"without it {before_it:.1%}{by_loss if with_it > before_it else ''}"
        )
    after = Predictor(network, device="cpu", precision="fp32")
    logits = [
        torch.cat([one.logits(torch.tensor(image).permute(2, 0, 1)[None]) for image in images])
        for one in (before, after)
    ]
    torch.testing.assert_close(logits[1] * found.temperature, logits[0], rtol=1e-4, atol=1e-3)
    assert [one.label for one in before.predict(images)] == [one.label for one in after.predict(images)]
    for form, name in (("bit", "a.safetensors"), ("npz", "a.npz"), ("timm", "a.pth"), ("transformers", "folder")):
        weights.export(tmp_path / name, network, form)
        again = weights.load(tmp_path / name)
        assert torch.equal(again.head.weight, network.head.weight) and torch.equal(again.head.bias, network.head.bias)
        assert again.card.calibrated == (found if form == "bit" else None)  # the others' forms have no place for it
    result, _ = evaluate.measure(after, held_out.val)
    assert isinstance(result, Classification) and result.uncalibrated is not None
    raw = Classification(2)
    raw.update(logits[0], torch.tensor(np.asarray(held_out.val.labels)))
    assert result.uncalibrated.ece == pytest.approx(raw.ece, abs=1e-4)
    assert result.uncalibrated.nll == pytest.approx(raw.nll, rel=1e-4) and result.nll < raw.nll
    record = as_record(result, held_out.val, split="val", calibrated=found)
    assert record.uncalibrated is not None and record.uncalibrated.temperature == found.temperature
    assert record.uncalibrated.nll == result.uncalibrated.nll and record.nll == result.nll


@pytest.mark.parametrize("balance", [False, True])
def test_classes_count_alike_where_they_are_to(held_out: Splits, balance: bool) -> None:
    network = overconfident()
    calibration.divide(network.head, 20.0)  # else the largest temperature would be either's
    config = FinetuneConfig(data="x", device="cpu", precision="fp32", balance=balance)
    images = held_out.val.subset(np.r_[:12, 12:20])
    labels = torch.from_numpy(images.labels)
    logits = Predictor(network, device="cpu", precision="fp32").logits(
        torch.from_numpy(np.stack([images.read(i) for i in range(20)])).permute(0, 3, 1, 2)
    )
    plain, alike = (
        calibration.fit(logits, labels, weights=weights)
        for weights in (None, 1 / torch.bincount(labels)[labels].double())
    )
    assert plain.temperature != pytest.approx(alike.temperature, rel=0.01)
    assert measuring.finish(config, network, dataclasses.replace(held_out, val=images)) == ""
    assert network.card.calibrated.temperature == pytest.approx((alike if balance else plain).temperature, rel=1e-4)


def test_several_labels_are_given_as_without_it(held_out: Splits) -> None:
    val = dataclasses.replace(held_out.val, labels=np.array([[0, -1], [1, -1], [0, 1], [-1, -1]] * 6))
    parts, config = dataclasses.replace(held_out, val=val), FinetuneConfig(data="x", device="cpu", precision="fp32")
    network = overconfident(multi_label=True)
    plain, _ = evaluate.measure(Predictor(network, device="cpu", precision="fp32"), val)
    assert isinstance(plain, MultiLabel)
    given = plain.probabilities >= plain.best_thresholds()
    assert measuring.finish(config, network, parts) == ""
    assert network.card.calibrated is not None and network.card.calibrated.temperature > 1.5
    assert network.card.thresholds is not None
    now, _ = evaluate.measure(Predictor(network, device="cpu", precision="fp32"), val)
    assert isinstance(now, MultiLabel) and now.nll < plain.nll
    np.testing.assert_array_equal(now.probabilities >= np.float32(network.card.thresholds), given)
    record = labels_record(
        now, val, np.float32(network.card.thresholds), split="val", chosen_here=True, calibrated=network.card.calibrated
    )
    assert record.uncalibrated is not None and record.uncalibrated.nll == pytest.approx(plain.nll, rel=0.02)
    assert sum(one.images for one in record.calibration) == 48


def test_images_that_went_away_meanwhile_fit_no_temperature(held_out: Splits, tmp_path: Path) -> None:
    network, config = overconfident(), FinetuneConfig(data="x", device="cpu", precision="fp32")
    for name in ("ant/1.png", "bee/2.png", "bee/7.png"):
        (tmp_path / "data" / "val" / name).unlink()
    assert measuring.finish(config, network, held_out) == ""
    assert network.card.calibrated is not None and network.card.calibrated.images == 21


def test_why_there_is_no_temperature(held_out: Splits) -> None:
    network, config = overconfident(), FinetuneConfig(data="x", device="cpu", precision="fp32")
    weight = network.head.weight.clone()
    assert measuring.finish(config, network, dataclasses.replace(held_out, val=None)).startswith("no images were held")
    few = dataclasses.replace(held_out, val=held_out.val.subset(range(5)))
    why = measuring.finish(config, network, few)
    assert why == "5 held-out images are too few to fit a temperature (20 are needed)"
    assert torch.equal(network.head.weight, weight) and network.card.calibrated is None
    assert why in measuring.how_sure(network.card, why)
