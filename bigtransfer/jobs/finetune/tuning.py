"""The steps of a fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bigtransfer import evals, hyperrule, runs
from bigtransfer.catalog import Architecture
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.feed.loader import EvalBatch, FeatureLoader, TrainLoader, eval_batches
from bigtransfer.feed.order import BalancedOrder, EpisodeOrder
from bigtransfer.jobs import tracking, training
from bigtransfer.jobs.clock import Ahead, Clock
from bigtransfer.jobs.finetune import closed
from bigtransfer.jobs.finetune.decision import LOOKED_AT, WATCHED, FinetunePlan, share_of
from bigtransfer.model import Network, reading
from bigtransfer.train import checkpoint, loop


def train(
    config: FinetuneConfig,
    run: runs.Run,
    model: Network,
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    clock: Clock | None,
    tell: tracking.Tell,
) -> training.Outcome:
    """The steps of the recipe, which change `model`'s layers, all of them or some; resumed from a checkpoint where there is one. clock: of
    a budget that is to be kept. tell: see `training.train`."""
    whole = model.architecture
    if plan.choose:
        model = reading(model, plan.architecture)
        model.reset_classifier(plan.classes)
    linear_only = plan.linear == "sgd"
    trained = model.head if linear_only else model
    recipe, device, dtype = plan.recipe, plan.torch_device, plan.torch_dtype
    learnt = _some(parts.train, plan)
    if plan.choose:
        _for_the_closed_form(run, model, learnt, plan)
        chosen = model.norm_parameters()
    else:
        frozen = {id(parameter) for parameter in (model.stem_parameters() if plan.frozen_stem else ())}
        chosen = [parameter for parameter in trained.parameters() if id(parameter) not in frozen]
    state = loop.new_state(model, recipe, micro_batch=plan.micro_batch, parameters=chosen)
    validate, watched = None, 0
    if parts.val is not None and (config.eval_every is not None or plan.choose or len(parts.val) <= WATCHED):
        if plan.choose:
            validate, watched = _solved_on_the_way(model, learnt, _some(parts.val, plan), plan)
        else:
            validate, watched = training.validation(state, parts.val, plan.input, device, dtype), len(parts.val)
    if clock is not None:
        clock.ahead = _ahead(parts, plan, baseline, watched, whole, config.variant)
    if training.resume(run, state, plan):
        print(f"        resumed after step {state.step}", flush=True)
        outcome = training.ended(run, state, plan, clock)
        if outcome is not None:  # stopped between its last step and its end
            return outcome
    order, labels = None, parts.train.labels
    if plan.choose:
        assert labels is not None
        order = EpisodeOrder(labels, recipe.batch_size, plan.seed)
    elif plan.balance:
        assert labels is not None
        order = BalancedOrder(labels, recipe.batch_size, plan.seed)
    loader: TrainLoader | FeatureLoader
    if linear_only:
        features, labels = linear.extract_features(
            model, eval_batches(parts.train, plan.input, state.micro_batch), device, dtype
        )
        loader = FeatureLoader(features, labels, batch_size=recipe.batch_size, seed=plan.seed, order=order)
    else:
        loader = TrainLoader(
            parts.train,
            plan.augmentation,
            batch_size=recipe.batch_size,
            seed=plan.seed,
            cache=config.cache,
            workers=training.spare_workers() if config.workers is None else config.workers,
            progress=True,
            order=order,
        )
    return training.train(
        run,
        state,
        loader,
        plan,
        forward=torch.compile(trained) if config.compile else trained,
        validate=validate,
        aim=model.head.aim if isinstance(model.head, closed.LeftOutHead) else None,
        checkpoint_seconds=seconds(config.checkpoint_every),
        tell=tell,
        keep_best=clock is not None and not plan.choose,
        clock=clock,
    )


@dataclass(frozen=True, eq=False)
class _Some:
    """Images that are looked at beside a training for the closed form, at its size: read when they are first asked for, then held."""

    images: ImageSet
    plan: FinetunePlan

    @functools.cached_property
    def batches(self) -> list[EvalBatch]:
        return list(eval_batches(self.images, self.plan.input, self.plan.micro_batch))

    def features(self, model: Network) -> tuple[Tensor, Tensor]:
        """What a closed form sees of them, of the network as it is now, and the labels."""
        plan, view = self.plan, View.of(model.architecture, self.plan.input.size)
        return closed.extract(model, self.batches, view, device=plan.torch_device, dtype=plan.torch_dtype)


def _some(images: ImageSet, plan: FinetunePlan) -> _Some:
    """As many as show whether the training still helps."""
    return _Some(splits.evenly(images, LOOKED_AT, plan.seed), plan)


def _solved_on_the_way(
    model: Network, learnt: _Some, held_out: _Some, plan: FinetunePlan
) -> tuple[Callable[[], dict[str, float]], int]:
    """For a training for the closed form: a function that solves it on the network as it is now, at the size of the training, and measures
    it on validation images, and of how many images that takes a look. The choice after it looks at more, in more ways."""

    view = View.of(model.architecture, plan.input.size)

    def measure() -> dict[str, float]:
        head = closed.fit(model, view, *learnt.features(model), plan.classes, balanced=plan.balance).head
        seen, truth = held_out.features(model)
        return evals.evaluate(head, [(seen, truth, torch.arange(len(truth)))], plan.classes).named("val")

    return measure, len(learnt.images) + len(held_out.images)


def _ahead(
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    watched: int,
    whole: Architecture,
    variant: hyperrule.Variant,
) -> Ahead:
    """What the training is to leave room for. whole: of the network of which all or a part is trained."""
    afterwards, passes = len((parts.test if parts.test is not None else parts.val) or ()), 1.0
    if plan.choose:
        most = hyperrule.most_tuning_steps(plan.images, plan.recipe.batch_size)
        if baseline is not None:
            # By the closed form and by that of the fine-tuned network: what is measured in the end may be both.
            size = plan.input.size
            passes = 2 * baseline.view.passes(whole, size) / share_of(plan.architecture, whole, size)
            afterwards += 0 if baseline.whole else min(len(parts.val or ()), WATCHED)
    else:
        most = hyperrule.recipe(plan.images, *plan.native_size, variant).steps
    return Ahead(
        most=max(most, plan.recipe.steps),
        watched=watched,
        afterwards=afterwards,
        passes=passes,
        tail=plan.tail,
        again=plan.again,
    )


def _for_the_closed_form(run: runs.Run, model: Network, learnt: _Some, plan: FinetunePlan) -> None:
    """Give the network, which reads out all blocks already, the head by which the images of a batch judge one another. Of a run that goes
    on from a checkpoint the numbers do not matter."""
    seen = torch.zeros(2, model.num_features), torch.zeros(2, dtype=torch.int64)
    if not checkpoint.exists(run.folder):
        seen = learnt.features(model)
    head = closed.LeftOutHead.of(*seen, plan.recipe.batch_size, plan.seed)
    model.head = head.to(plan.torch_device)
