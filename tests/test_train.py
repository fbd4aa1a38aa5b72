"""The training loop against a float64 computation written out by hand, and what becomes of errors and signals."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer import runs
from bigtransfer.catalog import InputSpec
from bigtransfer.errors import TrainingError
from bigtransfer.feed.loader import Batch, FeatureLoader
from bigtransfer.hyperrule import Recipe, upstream
from bigtransfer.jobs import training
from bigtransfer.jobs.plan import Plan
from bigtransfer.model import ResNetV2
from bigtransfer.train import checkpoint, loop, parallel
from bigtransfer.train.objective import LeaveOneOut, Mix, dropout, left_out, loss_sum

CPU = torch.device("cpu")
CLASSES, COUNT = 3, 5
RECIPE = Recipe(steps=3, batch_size=COUNT, resize=32, crop=32, base_learning_rate=0.1, warmup=2, weight_decay=0.01)


def network(seed: int = 0, units: tuple[int, ...] = (1, 1), width: int = 1) -> ResNetV2:
    """A tiny network with a random head: below one of zeros no gradient would reach the rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetV2(units, width, CLASSES)
        torch.nn.init.normal_(model.head.weight, std=0.05)
    return model.to(memory_format=torch.channels_last)


def batches(start: int = 0, stop: int = RECIPE.steps, count: int = COUNT) -> Iterator[Batch]:
    for step in range(start, stop):
        rng = np.random.default_rng((9, step))
        pixels = torch.from_numpy(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
        yield Batch(step, pixels, torch.from_numpy(rng.integers(0, CLASSES, count)))


def take(
    model: ResNetV2, recipe: Recipe = RECIPE, *, micro_batch: int = COUNT, forward=None, dtype=torch.float32, stop=None
) -> tuple[loop.State, list[loop.Step]]:
    state = loop.new_state(model, recipe, micro_batch=micro_batch)
    stream = batches(0, recipe.steps if stop is None else stop)
    return state, list(loop.steps(state, stream, recipe, seed=4, device=CPU, dtype=dtype, forward=forward))


def by_hand(model: ResNetV2, recipe: Recipe) -> tuple[dict[str, Tensor], list[float]]:
    """The weights after the recipe's steps and each step's loss: one image at a time, soft labels, SGD with momentum, in float64."""
    model = copy.deepcopy(model).double()
    weights = dict(model.named_parameters())
    origin = {name: weight.detach().clone() for name, weight in weights.items()}
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    losses = []
    for step, (_, pixels, labels, *_) in enumerate(batches(0, recipe.steps)):
        images = (pixels.double() - 127.5) / 127.5
        targets = F.one_hot(labels, CLASSES).double()
        if recipe.mixup_alpha:
            rng = np.random.default_rng((4, 3, step))
            lam = rng.beta(recipe.mixup_alpha, recipe.mixup_alpha)
            partner = rng.permutation(COUNT)
            images = lam * images + (1 - lam) * images[partner]
            targets = lam * targets + (1 - lam) * targets[partner]
        gradient = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        loss = 0.0
        left = np.random.default_rng((4, 4, step)).random((COUNT, model.num_features), np.float32) >= recipe.dropout
        for image, target, kept in zip(images, targets, left, strict=True):
            features = model.features(image[None]) * torch.from_numpy(kept) / (1 - recipe.dropout)
            own = -(target * model.head(features)[0].log_softmax(0)).sum()
            loss += own.item() / COUNT
            for name, part in zip(weights, torch.autograd.grad(own, list(weights.values())), strict=True):
                gradient[name] += part / COUNT
        losses.append(loss)
        if recipe.l2_sp:
            pulled = {name: weight for name, weight in weights.items() if not name.startswith("head.")}
            penalty = recipe.l2_sp / 2 * sum((weight - origin[name]).square().sum() for name, weight in pulled.items())
            assert isinstance(penalty, Tensor)
            for name, part in zip(pulled, torch.autograd.grad(penalty, list(pulled.values())), strict=True):
                gradient[name] += part
        with torch.no_grad():
            for name, weight in weights.items():
                if name == "head.weight" or "conv" in name or "proj" in name or name == "root.weight":
                    gradient[name] += recipe.weight_decay * weight
                momentum[name] = recipe.momentum * momentum[name] + gradient[name]
                weight -= recipe.learning_rate(step) * momentum[name]
    return {name: weight.detach() for name, weight in weights.items()}, losses


def distance(model: ResNetV2, reference: dict[str, Tensor], start: ResNetV2) -> float:
    """The largest error of any tensor's change, relative to the largest change in it."""
    before = start.state_dict()
    worst = 0.0
    for name, weight in model.state_dict().items():
        change = (reference[name] - before[name].double()).abs().max()
        assert change > 0, f"{name} was not trained"
        worst = max(worst, float((weight.double() - reference[name]).abs().max() / change))
    return worst


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_steps_are_sgd_with_momentum_for_any_split(alpha: float) -> None:
    recipe = dataclasses.replace(RECIPE, mixup_alpha=alpha)
    expected, losses = by_hand(network(), recipe)
    for micro_batch in (COUNT, 2, 1, 64):
        state, steps = take(network().double(), recipe, micro_batch=micro_batch, dtype=torch.float64)
        # Pixels are normalized in float32, which is all that differs.
        assert distance(state.model, expected, network()) < 2e-6
        assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-6)
    state, steps = take(network(), recipe, micro_batch=2)
    # float32: standardization divides by small deviations, so gradients of single kernels carry errors of some 1e-4.
    assert distance(state.model, expected, network()) < 5e-3
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-4)
    assert state.step == recipe.steps


@pytest.mark.parametrize("micro_batch", [COUNT, 2])
@pytest.mark.parametrize(
    "change", [{"l2_sp": 0.8}, {"dropout": 0.4}, {"l2_sp": 0.3, "dropout": 0.2, "mixup_alpha": 0.4}]
)
def test_l2_sp_and_dropout_are_those_of_the_formulas_for_any_split(change: dict[str, float], micro_batch: int) -> None:
    recipe = dataclasses.replace(RECIPE, **change)
    expected, losses = by_hand(network(), recipe)
    state, steps = take(network().double(), recipe, micro_batch=micro_batch, dtype=torch.float64)
    assert distance(state.model, expected, network()) < 2e-6
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-6)
    without, _ = by_hand(network(), RECIPE)
    assert distance(state.model, without, network()) > 1e-2


def test_l2_sp_pulls_back_to_the_beginning_and_leaves_the_head() -> None:
    start = network()
    state, _ = take(network(), dataclasses.replace(RECIPE, l2_sp=5.0))
    moved = {name: (parameter - start.state_dict()[name]).norm() for name, parameter in state.model.named_parameters()}
    free, _ = take(network(), RECIPE)
    for name, parameter in free.model.named_parameters():
        plain = (parameter - start.state_dict()[name]).norm()
        assert moved[name] > 0.5 * plain if name.startswith("head.") else moved[name] < plain


def test_dropout_is_for_training_alone_and_keeps_the_mean() -> None:
    model = network()
    features = torch.ones(200, model.num_features)
    seen: list[Tensor] = []
    keep = model.head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with dropout(model, 0.25, 0, 7, 200, slice(0, 200)):
        model.head(features)
        model.head.eval()(features)
    model.head.train()(features)
    keep.remove()
    dropped, measured, after = seen
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(measured, features) and torch.equal(after, features)


def test_the_momentum_is_the_recipes() -> None:
    recipe = dataclasses.replace(RECIPE, momentum=0.7)
    expected, _ = by_hand(network(), recipe)
    state, _ = take(network().double(), recipe, dtype=torch.float64)
    assert distance(state.model, expected, network()) < 2e-6


def test_what_a_step_reports() -> None:
    _, steps = take(network())
    assert [step.number for step in steps] == [0, 1, 2]
    assert [step.learning_rate for step in steps] == [RECIPE.learning_rate(step) for step in range(3)] == [0, 0.05, 0.1]
    assert all(step.images == COUNT and step.side == 32 and 0 <= step.data_seconds <= step.seconds for step in steps)


def test_every_learning_rate_of_a_recipe_is_used() -> None:
    recipe = upstream(20, 12, batch_size=5, crop=32, warmup=3, decay_epochs=(5.0, 8.0))
    used = []
    state = loop.new_state(network(), recipe, micro_batch=5)
    state.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append({g["lr"] for g in optimizer.param_groups}))

    def head_only(images: Tensor) -> Tensor:
        return state.model.head(torch.ones(len(images), state.model.num_features))

    list(loop.steps(state, batches(0, 48), recipe, seed=0, device=CPU, dtype=torch.float32, forward=head_only))
    assert used == [{recipe.learning_rate(step)} for step in range(48)]


@pytest.mark.parametrize("decay", [0.9, 0.1])
def test_averages_are_those_of_the_formula_and_swap_in_and_out(decay: float) -> None:
    """average <- d average + (1 - d) parameters after step t = 1, 2, ..., with d = min(decay, (1 + t) / (10 + t)): 2/11, 3/12, 4/13."""
    state = loop.new_state(network(), RECIPE, micro_batch=COUNT)
    loop.track_average(state)
    expected = {name: parameter.detach().double() for name, parameter in network().named_parameters()}
    taken = loop.steps(state, batches(), RECIPE, seed=4, device=CPU, dtype=torch.float32, ema_decay=decay)
    for step, ramp in zip(taken, (2 / 11, 3 / 12, 4 / 13), strict=True):
        d = min(decay, ramp)
        for name, parameter in state.model.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * parameter.detach().double()
        assert step.number + 1 == state.step
    trained = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    assert state.ema is not None
    with state.averaged():
        for name, parameter in state.model.named_parameters():
            torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-7)
            assert torch.equal(state.ema[name], trained[name])
    assert any(not torch.equal(state.ema[name], trained[name]) for name in trained)
    for name, parameter in state.model.named_parameters():
        assert torch.equal(parameter, trained[name])
        torch.testing.assert_close(state.ema[name].double(), expected[name], rtol=1e-5, atol=1e-7)


class Pictures:
    """A validation set of noise, as `training.validation` uses one."""

    class_names = ("a", "b", "c")
    channels = 3
    several = False

    def __init__(self, count: int = 12) -> None:
        rng = np.random.default_rng(3)
        self.pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 3, count)

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, places: range) -> Pictures:
        assert list(places) == list(range(len(self)))
        return self

    def read(self, i: int, spec: InputSpec) -> np.ndarray:
        assert spec.size == 32
        return self.pixels[i]


def test_validation_measures_the_averages_and_leaves_the_model_as_it_was() -> None:
    state, other = loop.new_state(network(), RECIPE, micro_batch=5), network(seed=9)
    state.ema = {name: parameter.detach().clone() for name, parameter in other.named_parameters()}
    images = Pictures()
    spec = InputSpec(size=32)
    found = training.validation(state, images, spec, CPU, torch.float32)()  # type: ignore[arg-type]
    pixels = (torch.from_numpy(images.pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    with torch.no_grad():
        logits = other.eval()(pixels).double()
    expected = F.cross_entropy(logits, torch.from_numpy(images.labels)).item()
    assert found["val/nll"] == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        own = F.cross_entropy(network().eval()(pixels).double(), torch.from_numpy(images.labels)).item()
    assert abs(own - expected) > 1e-3, "the model itself would have given another number"
    assert state.model.training
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), network().parameters(), strict=True))
    state.ema = None
    assert training.validation(state, images, spec, CPU, torch.float32)()["val/nll"] == pytest.approx(own, rel=1e-4)  # type: ignore[arg-type]


def test_losses_by_hand_and_images_without_a_label_add_nothing() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [9.0, 9.0, 9.0]])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    several = torch.tensor([[0, 2], [1, -1], [-1, -1]])
    everything, none = slice(0, 3), slice(2, 3)
    sigmoid = -(np.log(p[0, 0]) + np.log(1 - p[0, 1]) + np.log(p[0, 2]))
    sigmoid -= np.log(1 - p[1, 0]) + np.log(p[1, 1]) + np.log(1 - p[1, 2])
    assert loss_sum(logits, several, everything, None, "sigmoid").item() == pytest.approx(sigmoid, rel=1e-6)
    assert loss_sum(logits, several, everything, None, "softmax").item() == pytest.approx(
        -(logits[0].log_softmax(0)[[0, 2]].mean() + logits[1].log_softmax(0)[1]).item(), rel=1e-6
    )
    single = torch.tensor([0, 1, -1])
    assert loss_sum(logits, single, everything, None, "softmax").item() == pytest.approx(
        -(logits[0].log_softmax(0)[0] + logits[1].log_softmax(0)[1]).item(), rel=1e-6
    )
    one_hot = -(
        np.log(p[0, 0]) + np.log((1 - p[0, 1]) * (1 - p[0, 2])) + np.log(p[1, 1] * (1 - p[1, 0]) * (1 - p[1, 2]))
    )
    assert loss_sum(logits, single, everything, None, "sigmoid").item() == pytest.approx(one_hot, rel=1e-6)
    for labels in (several, single):
        for loss in ("softmax", "sigmoid"):
            asked = logits.clone().requires_grad_()
            loss_sum(asked[2:], labels, none, None, loss).backward()
            assert asked.grad is not None and not asked.grad.any()
    mix = Mix(0.75, torch.tensor([1, 0, 2]))
    mixed = loss_sum(logits, single, everything, mix, "softmax").item()
    swapped = -(logits[0].log_softmax(0)[1] + logits[1].log_softmax(0)[0]).item()
    own = loss_sum(logits, single, everything, None, "softmax").item()
    assert mixed == pytest.approx(0.75 * own + 0.25 * swapped, rel=1e-6)


def test_weight_decay_is_for_kernels_and_the_heads_matrix() -> None:
    model = network()
    state = loop.new_state(model, RECIPE, micro_batch=1)
    decayed = {id(p) for group in state.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {n for n, _ in model.named_parameters() if n.endswith("weight") and "norm" not in n}
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == len(list(model.parameters()))
    assert not any(group["nesterov"] for group in state.optimizer.param_groups)


def test_mixup_draws_one_lambda_per_step_and_a_partner_for_each_image() -> None:
    assert Mix.draw(0.0, 0, 0, 8) is None
    mixes = [Mix.draw(0.1, 0, step, 8) for step in range(4000)]
    assert [m.lam for m in mixes[:5]] == [Mix.draw(0.1, 0, step, 8).lam for step in range(5)]
    assert all(sorted(m.partner.tolist()) == list(range(8)) for m in mixes[:50])
    lams = np.array([m.lam for m in mixes])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert lams.mean() == pytest.approx(0.5, abs=0.03) and lams.var() == pytest.approx(1 / (4 * 1.2), rel=0.03)
    assert Mix.draw(0.1, 1, 0, 8).lam != mixes[0].lam


def test_features_can_be_trained_on_and_blended() -> None:
    model = network()
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(20, model.num_features))).float()
    labels = torch.arange(20) % CLASSES
    recipe = dataclasses.replace(RECIPE, mixup_alpha=0.4, warmup=0, steps=2)
    before = copy.deepcopy(model)
    state = loop.new_state(model, recipe, micro_batch=3, parameters=model.head.parameters())
    source = FeatureLoader(features, labels, batch_size=COUNT, seed=4).batches(0, 2)
    list(loop.steps(state, source, recipe, seed=4, device=CPU, dtype=torch.bfloat16, forward=model.head))
    weight, bias = before.head.weight.detach().double(), before.head.bias.detach().double()
    momentum: list[Tensor | float] = [0.0, 0.0]
    for batch in FeatureLoader(features, labels, batch_size=COUNT, seed=4).batches(0, 2):
        mix = Mix.draw(0.4, 4, batch.step, COUNT)
        x, y = batch.images.double(), F.one_hot(batch.labels, CLASSES).double()
        x, y = (mix.lam * v + (1 - mix.lam) * v[mix.partner] for v in (x, y))
        error = ((x @ weight.T + bias).softmax(1) - y) / COUNT
        momentum = [0.9 * momentum[0] + error.T @ x + 0.01 * weight, 0.9 * momentum[1] + error.sum(0)]
        weight, bias = weight - 0.1 * momentum[0], bias - 0.1 * momentum[1]
    assert torch.allclose(model.head.weight.double(), weight, atol=1e-6)
    assert torch.allclose(model.head.bias.double(), bias, atol=1e-6)
    assert torch.equal(model.root.weight, before.root.weight)


# --- Images that judge one another


def without(features: np.ndarray, targets: np.ndarray, penalty: float, row: int) -> np.ndarray:
    """What ridge regression with a free intercept, solved without a row, says of it: by the normal equations of the other rows."""
    x, y = np.delete(features, row, 0), np.delete(targets, row, 0)
    x = np.hstack([x, np.ones((len(x), 1))])
    ridge = np.diag([penalty] * features.shape[1] + [0.0])
    weights = np.linalg.solve(x.T @ x + ridge, x.T @ y)
    return np.append(features[row], 1.0) @ weights


@pytest.mark.parametrize("shape", [(12, 4), (7, 30)])
@pytest.mark.parametrize("penalty", [0.1, 20.0])
def test_what_is_said_of_an_image_is_solved_without_it(shape: tuple[int, int], penalty: float) -> None:
    rng = np.random.default_rng(1)
    features, targets = rng.normal(2.0, 1.5, shape), np.eye(3)[rng.integers(0, 3, shape[0])]
    expected = np.stack([without(features, targets, penalty, row) for row in range(shape[0])])
    given, wanted = torch.from_numpy(features).requires_grad_(), torch.from_numpy(targets)
    found = left_out(given, wanted, penalty)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-10)
    in_float32 = left_out(given.detach().float(), wanted.float(), penalty)
    np.testing.assert_allclose(in_float32.numpy(), expected, rtol=2e-3, atol=2e-4)
    assert torch.autograd.gradcheck(lambda x: left_out(x, wanted, penalty), (given,), atol=2e-5, rtol=1e-3)


def test_the_loss_of_images_that_judge_one_another() -> None:
    """By hand: an image that could not be read and one whose class no other has count for nothing, but of the latter the others learn."""
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(9, 5)), np.array([0, 4, 4, -1, 0, 7, 4, 0, 0])
    goal = LeaveOneOut(3.0, 0.5)
    kept = labels >= 0
    targets = np.eye(8)[labels[kept]][:, [0, 4, 7]]
    total = []
    for row, label in enumerate(labels[kept]):
        if label != 7:
            scores = without(features[kept], targets, 3.0, row) / 0.5
            total.append(np.log(np.exp(scores).sum()) - scores[[0, 4, 7].index(label)])
    output = torch.from_numpy(features)
    found = goal.losses(output, torch.from_numpy(labels), slice(0, 9), None)
    assert goal.weighted(found).item() == pytest.approx(9 * np.mean(total), rel=1e-9)
    # Of a part of the batch those in it judge one another.
    part = goal.losses(output[4:], torch.from_numpy(labels), slice(4, 9), None)["left out"]
    alone = goal.losses(output[4:], torch.from_numpy(labels[4:]), slice(0, 5), None)["left out"]
    assert part.item() == alone.item() != found["left out"].item()


def test_images_that_none_can_judge_have_no_loss_but_a_gradient_of_zero() -> None:
    output = torch.ones(3, 2, requires_grad=True)
    found = LeaveOneOut(1.0, 1.0).losses(output, torch.tensor([0, 1, -1]), slice(0, 3), None)["left out"]
    found.backward()
    assert found.item() == 0.0 and output.grad is not None and not output.grad.any()


def test_of_blended_images_the_blend_is_to_be_told() -> None:
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(6, 4)), np.array([0, 1, 0, 1, 0, 1])
    mix = Mix(0.7, torch.tensor([1, 2, 3, 4, 5, 0]))
    targets = 0.7 * np.eye(2)[labels] + 0.3 * np.eye(2)[np.roll(labels, -1)]
    scores = np.stack([without(features, targets, 2.0, row) for row in range(6)])
    expected = (np.log(np.exp(scores).sum(1)) - (targets * scores).sum(1)).sum()
    found = LeaveOneOut(2.0, 1.0).losses(torch.from_numpy(features), torch.from_numpy(labels), slice(0, 6), mix)
    assert found["left out"].item() == pytest.approx(expected, rel=1e-6)


def test_of_what_is_not_trained_no_gradient_is_computed() -> None:
    model = network()
    norms = model.norm_parameters()
    assert len(norms) == 2 * sum("norm" in name and name.endswith("weight") for name, _ in model.named_parameters())
    loop.new_state(model, RECIPE, micro_batch=3, parameters=norms)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        name for name, _ in model.named_parameters() if "norm" in name
    }


# --- When things go wrong


def failing_above(model: ResNetV2, limit: int, error: Exception):
    """The model, on a machine whose memory holds `limit` images."""

    def forward(images: Tensor) -> Tensor:
        if len(images) > limit:
            raise error
        return model(images)

    return forward


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_repeats_the_step(error: Exception) -> None:
    expected, expected_steps = take(network(), micro_batch=1)
    model = network()
    state, steps = take(model, micro_batch=COUNT, forward=failing_above(model, 1, error))
    assert state.micro_batch == 1
    assert [step.loss for step in steps] == [step.loss for step in expected_steps]
    for one, other in zip(state.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_out_of_memory_in_the_middle_of_a_step_counts_no_image_twice() -> None:
    """Three of the five images already have their gradients when the second part fails."""
    model, calls = network(), []

    def forward(images: Tensor) -> Tensor:
        calls.append(len(images))
        if calls == [3, 2]:
            raise MemoryError
        return model(images)

    state, _ = take(model, micro_batch=3, forward=forward, stop=2)
    assert calls == [3, 2, *[1] * 10]
    expected, _ = take(network(), micro_batch=1, stop=2)
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), expected.model.parameters(), strict=True))


def test_one_image_that_does_not_fit_is_an_error() -> None:
    model = network()
    with pytest.raises(TrainingError, match=r"one image of 32 px at a time.*--crop") as caught:
        take(model, micro_batch=4, forward=failing_above(model, 0, MemoryError()))
    assert isinstance(caught.value.__cause__, MemoryError)


def test_other_errors_are_not_taken_for_it() -> None:
    model = network()
    with pytest.raises(RuntimeError, match="shapes"):
        take(model, forward=failing_above(model, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_before_it_does_harm(bad: float) -> None:
    model = network()
    state = loop.new_state(model, RECIPE, micro_batch=2)

    def forward(images: Tensor) -> Tensor:
        logits = model(images)
        return logits * bad if state.step == 2 else logits

    with pytest.raises(TrainingError, match=r"at step 2.*--learning-rate.*--precision fp32"):
        list(loop.steps(state, batches(), RECIPE, seed=4, device=CPU, dtype=torch.float32, forward=forward))
    expected, _ = take(network(), micro_batch=2, stop=2)
    assert state.step == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.model.parameters(), strict=True))
    for one, other in zip(model.parameters(), expected.model.parameters(), strict=True):
        momentum = (s.optimizer.state[p]["momentum_buffer"] for s, p in ((state, one), (expected, other)))
        assert torch.equal(*momentum)
        assert one.grad is None


# --- Sizes


def test_the_micro_batch_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    one = loop.activation_bytes(model, 64, torch.float32)
    extra = 2 * sum(parameter.nbytes for parameter in model.parameters())

    def fits(images: float, batch: int) -> int:
        monkeypatch.setattr(loop, "available_memory", lambda: int(extra + 2 * images * one))
        return loop.fitting_micro_batch(model, 64, torch.float32, CPU, batch)

    assert fits(100.5, 100) == 100  # the whole batch
    assert fits(99.5, 100) == 64
    assert fits(1000, 512) == 128
    assert fits(0.1, 512) == fits(-5, 512) == 1
    monkeypatch.setattr(loop, "available_memory", lambda: 2**50)  # large images: no more pixels than are faster
    sizes = [loop.fitting_micro_batch(model, size, torch.float32, CPU, 512) for size in (64, 181, 256, 300, 4000)]
    assert sizes == [128, 128, 64, 32, 1]


@pytest.mark.parametrize(
    ("size", "dtype", "width"),
    [(32, torch.float32, 1), (64, torch.float32, 1), (96, torch.bfloat16, 1), (32, torch.float32, 3)],
)
def test_the_estimated_memory_is_what_autograd_keeps_of_an_image(size: int, dtype: torch.dtype, width: int) -> None:
    model = network(units=(1, 1, 1, 1), width=width)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(count: int) -> int:
        storages: dict[int, int] = {}
        alive = []  # lest two tensors have the same address one after the other

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        images = torch.zeros(count, 3, size, size, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(images)
        assert logits.requires_grad
        return sum(storages.values())

    # The difference leaves out what a batch keeps once, such as standardized kernels.
    assert loop.activation_bytes(model, size, dtype) == pytest.approx((kept(12) - kept(4)) / 8, rel=0.1)


def test_the_dtype_of_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop.compute_dtype("fp32", CPU) == torch.float32 and loop.compute_dtype("bf16", CPU) == torch.bfloat16
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loop, "_cpu_has_bf16", lambda has=has: has)
        assert loop.compute_dtype("auto", CPU) == expected


# --- Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_asks_the_second_acts(number: int) -> None:
    caught = []
    usual = signal.signal(number, lambda *_: caught.append("usual"))
    try:
        with loop.stop_on_signals() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop and stop.signal == number and not caught
            os.kill(os.getpid(), number)
            assert caught == ["usual"]
        os.kill(os.getpid(), number)
        assert caught == ["usual", "usual"], "afterwards signals are as they were"
    finally:
        signal.signal(number, usual)


def test_under_nohup_a_lost_connection_stops_nothing() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_ctrl_c_twice_interrupts_at_once() -> None:
    def twice() -> None:
        with loop.stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    # A process that a shell starts in the background ignores SIGINT from its birth.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            twice()
    finally:
        signal.signal(signal.SIGINT, usual)


def test_outside_of_the_main_thread_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body() -> None:
        with loop.stop_on_signals() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


# --- A whole run

PLAN = Plan(
    recipe=RECIPE,
    architecture=network().architecture,
    images=COUNT,
    classes=CLASSES,
    input=InputSpec(size=32),
    seed=4,
    eval_every=2,
    device="cpu",
    dtype="float32",
    micro_batch=2,
)


class Source:
    """What `training.train` needs of a loader."""

    seed = 4

    def __init__(self) -> None:
        self.closed = False

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        try:
            yield from batches(start, stop)
        finally:
            self.closed = True


def train(run: runs.Run, state: loop.State, source: Source, **options) -> training.Outcome:
    plan = dataclasses.replace(options.pop("plan", PLAN), eval_every=options.pop("eval_every", PLAN.eval_every))
    options = {"validate": None, "checkpoint_seconds": 1e9, "forward": state.model, **options}
    return training.train(run, state, source, plan, **options)


def test_a_run_logs_validates_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, source = runs.Run(tmp_path), Source()
    state = loop.new_state(network(), RECIPE, micro_batch=2)
    saved, measured = [], iter([0.25, 0.5])
    original = checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *a, **k: (saved.append(a[1].step), original(*a, **k)))
        outcome = train(run, state, source, validate=lambda: {"val/top1": next(measured)})
    assert outcome.finished and source.closed
    assert saved == [3], "the last step's, for what comes after the training may be interrupted too"
    lines = run.metrics()
    assert [line["step"] for line in lines] == [0, 1, 1, 2, 2]
    assert [line["val/top1"] for line in lines if "val/top1" in line] == [0.25, 0.5]
    assert all(
        line.keys() == {"step", "loss", "lr", "gradient_norm", "images_per_second", "data_wait", "mfu"}
        for line in lines
        if "loss" in line
    )
    error = capsys.readouterr().err
    assert "step 2: val/top1 0.25" in error and "training: 100%" in error


def test_more_than_the_peak_is_not_shown_without_a_word() -> None:
    numbers = {"loss": 1.0, "lr": 0.1, "images_per_second": 50.0, "data_wait": 0.0, "mfu": 0.5}
    assert training._seen_at_a_glance(numbers) == "loss 1.000, lr 0.1, 50 img/s, MFU 50%"
    assert training._seen_at_a_glance({**numbers, "mfu": 1.2}).endswith("MFU 120% of a peak measured on a busy machine")


@pytest.mark.parametrize("change", [{}, {"l2_sp": 0.5, "dropout": 0.3}])
def test_an_interrupted_run_repeats_the_uninterrupted_one(tmp_path: Path, change: dict[str, float]) -> None:
    recipe = dataclasses.replace(RECIPE, **change)
    plan = dataclasses.replace(PLAN, recipe=recipe)
    whole = runs.Run(tmp_path / "whole")
    expected = loop.new_state(network(), recipe, micro_batch=2)
    train(whole, expected, Source(), plan=plan)
    run, source = runs.Run(tmp_path / "run"), Source()
    state = loop.new_state(network(), recipe, micro_batch=2)

    def interrupted(images: Tensor) -> Tensor:
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            # The first part of the batch: a second signal would act.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return state.model(images)

    usual = signal.getsignal(signal.SIGTERM)
    try:
        outcome = train(run, state, source, plan=plan, forward=interrupted)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert not outcome.finished and outcome.signal == signal.SIGTERM and state.step == 2 and source.closed
    run.log(7, loss=0.0)  # what a process logs after its last checkpoint
    # What is restored is not what is pulled back to, which was the same then as now.
    again = loop.new_state(network(seed=0 if recipe.l2_sp else 5), recipe, micro_batch=4)
    assert training.resume(run, again, plan)
    assert again.step == 2 and [line["step"] for line in run.metrics()] == [0, 1]
    assert train(run, again, Source(), plan=plan).finished
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), expected.model.parameters(), strict=True))
    for one, other in zip(run.metrics(), whole.metrics(), strict=True):
        assert all(one[key] == other[key] for key in ("step", "loss", "lr"))


def test_checkpoints_are_written_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda _folder, state, _facts, **_options: saved.append(state.step))
    train(runs.Run(tmp_path), loop.new_state(network(), RECIPE, micro_batch=5), Source(), checkpoint_seconds=0)
    assert saved == [1, 2, 3]


def test_an_error_lets_go_of_the_loader(tmp_path: Path) -> None:
    source, state = Source(), loop.new_state(network(), RECIPE, micro_batch=2)
    with pytest.raises(TrainingError, match="There is no checkpoint yet"):
        train(runs.Run(tmp_path), state, source, forward=lambda images: state.model(images) * float("nan"))
    assert source.closed


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    """The loss alone would show it only one step later, when the weights are lost."""
    run, state = runs.Run(tmp_path), loop.new_state(network(), RECIPE, micro_batch=COUNT)
    calls = []

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits: Tensor) -> Tensor:
            return logits.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return grad * float("inf")

    def forward(images: Tensor) -> Tensor:
        calls.append(None)
        logits = state.model(images)
        return Spoilt.apply(logits) if len(calls) == 3 else logits

    before: dict[str, Tensor] = {}

    def remember() -> dict[str, float]:
        before.update({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
        return {}

    with pytest.raises(TrainingError) as raised:
        train(run, state, Source(), forward=forward, validate=remember, eval_every=1, checkpoint_seconds=0)
    message = str(raised.value)
    assert "gradient's length is nan at step 2" in message or "gradient's length is inf at step 2" in message
    assert "up to step 1 all was finite" in message and "The newest checkpoint, of step 2" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert state.step == 2


def test_a_fresh_run_forgets_what_one_without_a_checkpoint_logged(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    run.log(0, loss=1.0)
    assert not training.resume(run, loop.new_state(network(), RECIPE, micro_batch=2), PLAN)
    assert run.metrics() == []


def test_what_is_held_in_parts_is_known_by_any_of_them() -> None:
    part: Any = SimpleNamespace(full_tensor=lambda: torch.zeros(1))
    assert parallel.divided([torch.zeros(1), part]) and parallel.divided([part, torch.zeros(1)])
    assert not parallel.divided([torch.zeros(1)]) and not parallel.divided([])


@pytest.mark.parametrize(("weights", "megabytes"), [(1, 25.0), (250_000_000, 50.0), (2_000_000_000, 200.0)])
def test_gradients_are_summed_a_twentieth_at_a_time(weights: int, megabytes: float) -> None:
    assert parallel._bucket_megabytes(nn.Linear(weights, 1, bias=False, device="meta")) == megabytes
