"""One of two processes that train together; started by test_distributed.py, which reads what rank 0 writes to the file given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigtransfer import dist
from bigtransfer.catalog import InputSpec
from bigtransfer.data.sources import Arrays, ImageSet
from bigtransfer.errors import TrainingError
from bigtransfer.feed.augment import InceptionCrop
from bigtransfer.feed.loader import Batch, TrainLoader
from bigtransfer.hyperrule import upstream
from bigtransfer.jobs import training
from bigtransfer.model import ResNetV2
from bigtransfer.train import loop, objective, parallel

BATCH, CLASSES, STEPS = 13, 5, 3
CPU = torch.device("cpu")


def network(loss: objective.Loss) -> ResNetV2:
    torch.manual_seed(0)
    model = ResNetV2((1, 1), num_classes=CLASSES)
    assert isinstance(model.head, torch.nn.Linear)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    if loss == "sigmoid":
        torch.nn.init.constant_(model.head.bias, objective.SIGMOID_HEAD_BIAS)
    return model.double().to(memory_format=torch.channels_last)


def image_set(folder: Path, multi_label: bool) -> ImageSet:
    rng = np.random.default_rng(0)
    file = folder / "images.npy"
    labels = rng.integers(0, CLASSES, 31)
    if multi_label:
        second = np.where(rng.random(31) < 0.5, (labels + 1) % CLASSES, -1)
        labels = np.stack([labels, second], axis=1)
    names = [f"image {i}" for i in range(31)]
    return ImageSet(Arrays([file], names), np.arange(31), labels, tuple("abcde"))


def train(
    images: ImageSet, world: dist.World, strategy: parallel.Strategy, loss: objective.Loss
) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]], dict[str, float], float]:
    """Final weights (moving averages), loss and gradient length of each step, and validation, in float64; and of a process alone, how far
    the averages are from those of the weights that it had after each step."""
    recipe = upstream(31, 1, batch_size=BATCH, crop=32, learning_rate=0.002, warmup=1, schedule="cosine")
    recipe = type(recipe)(**{**recipe.to_dict(), "steps": STEPS})
    model = network(loss)
    forward, sync = parallel.distribute(model, world, strategy)
    state = loop.new_state(model, recipe, micro_batch=4)
    loop.track_average(state)
    loader = TrainLoader(
        images, InceptionCrop(size=32), batch_size=BATCH, seed=0, cache="none", rank=world.rank, ranks=world.size
    )
    taken = loop.steps(
        state,
        loader.batches(0, STEPS),
        recipe,
        seed=0,
        device=CPU,
        dtype=torch.float64,
        forward=forward,
        aim=objective.Aim(loss),
        ema_decay=0.9,
        world=world,
        sync=sync,
    )
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    numbers = []
    for step, decay in zip(taken, (2 / 11, 3 / 12, 4 / 13), strict=True):  # (1 + t) / (10 + t), below the decay of 0.9
        numbers.append((step.loss, step.gradient_norm))
        if world.size == 1:
            for name, parameter in model.named_parameters():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    validate = training.validation(state, images, InputSpec(size=32), CPU, torch.float64, world)
    measured = validate()
    with state.averaged():
        averages = parallel.whole(model)
        return averages, numbers, measured, apart(averages, expected) if world.size == 1 else 0.0


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of tensors, in units of each tensor's largest value."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-12)) for name in one)


def diverged(world: dist.World) -> str:
    """What every process says when one of them has a loss that is not finite."""
    recipe = upstream(31, 1, batch_size=BATCH, crop=32, learning_rate=0.05)
    model = network("softmax")
    forward, sync = parallel.distribute(model, world, "ddp")
    state = loop.new_state(model, recipe, micro_batch=BATCH)
    if world.rank == 1:
        with torch.no_grad():
            model.get_parameter("head.bias").fill_(torch.nan)
    own = world.part(BATCH)
    batch = Batch(0, torch.zeros(len(own), 3, 32, 32, dtype=torch.uint8), torch.zeros(len(own), dtype=torch.int64))
    try:
        list(
            loop.steps(
                state, [batch], recipe, seed=0, device=CPU, dtype=torch.float64, forward=forward, world=world, sync=sync
            )
        )
    except TrainingError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with dist.join(CPU) as (world, _):
        found: dict[str, Any] = {
            "size": world.size,
            "gathered": world.gather(torch.full((world.rank + 1, 2), world.rank)).tolist(),
            "collected": world.collect({"rank": world.rank}),
            "total": world.total(torch.tensor([world.rank + 1])).tolist(),
        }
        for loss in ("softmax", "sigmoid"):
            images = image_set(folder, multi_label=loss == "sigmoid")
            alone = train(images, dist.World(), "ddp", loss)
            for strategy in ("ddp", "fsdp") if loss == "softmax" else ("ddp",):
                together = train(images, world, strategy, loss)
                found[f"{loss} {strategy}"] = {
                    "weights apart": apart(together[0], alone[0]),
                    "numbers": [together[1], alone[1]],
                    "measured": [together[2], alone[2]],
                    "averages apart": alone[3],
                }
        found["diverged"] = world.collect(diverged(world))
        if world.is_main:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    dist.leave(0)
