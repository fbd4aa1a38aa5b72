"""The steps of a fine-tuning."""

from __future__ import annotations

import dataclasses

import torch

from bigtransfer import hyperrule, runs
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.feed.loader import FeatureLoader, TrainLoader, eval_batches
from bigtransfer.feed.order import BalancedOrder
from bigtransfer.jobs import training
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.finetune import closed
from bigtransfer.jobs.finetune.baseline import BASELINE
from bigtransfer.jobs.finetune.decision import FinetunePlan
from bigtransfer.model import ResNetV2, joined
from bigtransfer.train import checkpoint, loop

WATCHED = 2_000
"""Validation sets of at most this many images are measured during the training too, larger ones only after it."""

FINISHING = 2.0
"""Seconds of a budget for what comes after the last image: model, report, the end of the process; a tenth of it at most."""


def as_planned(model: ResNetV2, plan: FinetunePlan) -> ResNetV2:
    """The network, with the head that the plan's is to have."""
    if not plan.choose:
        return model
    planned = joined(model, plan.architecture.readout)
    planned.reset_classifier(plan.classes)
    return planned


def train(
    config: FinetuneConfig,
    run: runs.Run,
    model: ResNetV2,
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    since: float,
) -> training.Outcome:
    """The steps of the recipe, resumed from a checkpoint where there is one. since: when this process began (`time.monotonic`)."""
    if plan.choose:
        _start(run, model, parts.train, plan)
    linear_only = plan.linear == "sgd"
    trained = model.head if linear_only else model
    recipe, device, dtype = plan.recipe, plan.torch_device, plan.torch_dtype
    state = loop.new_state(model, recipe, micro_batch=plan.micro_batch, parameters=trained.parameters())
    watched = parts.val if config.eval_every is not None or len(parts.val or ()) <= WATCHED else None
    clock = _clock(config, run, parts, plan, baseline, len(watched or ()), since)
    if training.resume(run, state, plan):
        print(f"        resumed after step {state.step}", flush=True)
        outcome = training.ended(run, state, plan, clock)
        if outcome is not None:  # stopped between its last step and its end
            return outcome
    order = None
    if plan.balance:
        assert parts.train.labels is not None
        order = BalancedOrder(parts.train.labels, recipe.batch_size, plan.seed)
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
        validate=training.validation(state, watched, plan.input, device, dtype) if watched else None,
        checkpoint_seconds=seconds(config.checkpoint_every),
        tensorboard=config.tensorboard,
        keep_best=clock is not None,
        clock=clock,
    )


def _clock(
    config: FinetuneConfig,
    run: runs.Run,
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    watched: int,
    since: float,
) -> Clock | None:
    """What keeps the budget; None where there is none, or the steps are set by the user."""
    if config.budget is None or config.steps is not None:
        return None
    budget = seconds(config.budget)
    afterwards, passes = len((parts.test if parts.test is not None else parts.val) or ()), 1.0
    if plan.choose:
        most = hyperrule.most_tuning_steps(plan.images, plan.recipe.batch_size)
        afterwards += min(len(parts.val or ()), WATCHED)
        # By the closed form and the fine-tuned network: what is measured in the end may be both.
        assert plan.architecture.readout is not None
        tuned = dataclasses.replace(plan.architecture.readout, mirrored=plan.augmentation.flip)
        views = [View(size=plan.input.size, readout=tuned), *([baseline.view] if baseline else [])]
        passes = sum(view.passes(plan.architecture, plan.input.size) for view in views)
    else:
        most = hyperrule.recipe(plan.images, *plan.native_size, config.variant).steps
    return Clock(
        run.folder,
        budget,
        most=max(most, plan.recipe.steps),
        reserve=min(FINISHING, 0.1 * budget),
        watched=watched,
        afterwards=afterwards,
        passes=passes,
        since=since,
    )


def _start(run: runs.Run, model: ResNetV2, train: ImageSet, plan: FinetunePlan) -> None:
    """Give the network, which reads out all blocks already, the closed form's head. Of a run that goes on from a checkpoint the numbers do
    not matter."""
    view = View(size=plan.input.size, readout=model.architecture.readout)
    seen = torch.zeros(1, model.num_features), torch.zeros(1, dtype=torch.int64)
    if not checkpoint.exists(run.folder):
        seen = closed.features(
            model,
            splits.evenly(train, BASELINE, plan.seed),
            view,
            spec=plan.input,
            device=plan.torch_device,
            dtype=plan.torch_dtype,
            batch_size=plan.micro_batch,
        )
    probe = linear.fit(*seen, plan.classes, balanced=plan.balance)
    head = closed.trainable_head(probe.head, seen[0], plan.recipe.base_learning_rate)
    model.head = head.to(plan.torch_device)
