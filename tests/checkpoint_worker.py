"""Worlds of several processes that save and restore checkpoints; test_checkpoint.py reads what they found.

One process loads torch and forks the others, several times over: to start each anew would take a minute.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_distributed
from torch import Tensor

import bigtransfer.jobs.predict  # noqa: F401
from bigtransfer import model
from bigtransfer.dist import World
from bigtransfer.errors import RunError
from bigtransfer.hyperrule import Recipe
from bigtransfer.train import checkpoint, loop, parallel

FACTS = {"seed": 0}
RECIPE = Recipe(steps=9, batch_size=4, resize=32, crop=32, base_learning_rate=0.1)


def state_of(seed: int, step: int, world: World, strategy: parallel.Strategy) -> loop.State:
    """A state with every kind of content, all of it random numbers of `seed`: the same on every process, or divided among them."""
    torch.manual_seed(seed)
    network = model.ResNetV2((1,), num_classes=3, norm="bn")
    parallel.distribute(network, world, strategy)
    state = loop.new_state(network, RECIPE, micro_batch=2 + seed)
    state.step, state.ema = step, {}
    for name, parameter in network.named_parameters():
        parts = [parameter.detach()]
        if step:
            parts.append(torch.empty_like(parts[0]))
            state.optimizer.state[parameter]["momentum_buffer"] = parts[1]
        state.ema[name] = torch.empty_like(parts[0])
        for part in (*parts, state.ema[name]):
            part.copy_(divided(torch.randn(part.shape), part))
    for buffer in network.buffers():
        buffer.copy_(torch.randint(1, 99, buffer.shape))
    return state


def divided(whole: Tensor, like: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole


def content(state: loop.State) -> dict[str, Tensor]:
    """All tensors of a state, whole."""
    tensors = {**state.model.state_dict(), **{f"ema {name}": tensor for name, tensor in (state.ema or {}).items()}}
    for name, parameter in state.model.named_parameters():
        tensors[f"momentum {name}"] = state.optimizer.state[parameter]["momentum_buffer"]
    return {name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)() for name, tensor in tensors.items()}


def save(world: World, folder: Path, strategy: parallel.Strategy, step: int) -> str:
    return checkpoint.save(folder, state_of(0, step, world, strategy), FACTS, world=world).name


def restore(world: World, folder: Path, strategy: parallel.Strategy) -> list[Any]:
    """Per process: the step, the micro-batch, and whether all tensors are those of seed 0, bit for bit."""
    state = state_of(1, 0, world, strategy)
    assert checkpoint.restore(folder, state, FACTS, world=world)
    found, expected = content(state), content(state_of(0, 1, World(), "ddp"))
    same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return world.collect([state.step, state.micro_batch, same])


def fails(world: World, folder: Path, how: str) -> list[str]:
    """What each process says when one of them cannot write."""
    if world.rank == 1 and how == "full":
        from bigtransfer.train import storage

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        storage.save_file = full
    if how == "elsewhere":
        os.chdir(folder / str(world.rank))
        folder = Path("run")
    try:
        save(world, folder, "ddp", 2)
    except RunError as error:
        return world.collect(str(error))
    return world.collect("")


def world_of(size: int, folder: Path, action: Callable[..., Any], *given: Any) -> Any:
    """What `action(world, folder, ...)` gives on rank 0 of a world of forked processes."""
    meeting, answer = folder / "meeting", folder / "answer"

    def process(rank: int) -> None:
        if size > 1:
            torch_distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
        result = action(World(rank=rank, size=size), *given)
        if rank == 0:
            answer.write_text(json.dumps(result))
        if size > 1:
            torch_distributed.barrier()
            torch_distributed.destroy_process_group()

    processes = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in range(size)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(60)
        each.kill()
    meeting.unlink(missing_ok=True)
    if any(each.exitcode for each in processes):
        return f"exit codes {[each.exitcode for each in processes]}"
    result = json.loads(answer.read_text())
    answer.unlink()
    return result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"loaded by predict": "torch.distributed.checkpoint" in sys.modules}
    # Once, instead of in every forked process.
    for module in ("torch._dynamo", "torch.distributed.fsdp", "bigtransfer.train.storage"):
        importlib.import_module(module)
    for strategy, sizes in (("ddp", (2, 1, 4)), ("fsdp", (2, 1, 3))):
        run = folder / strategy
        found[f"{strategy} saved"] = world_of(2, folder, save, run, strategy, 1)
        for size in sizes:
            found[f"{strategy} {size}"] = world_of(size, folder, restore, run, strategy)
    found["divided, whole"] = world_of(2, folder, restore, folder / "fsdp", "ddp")
    found["full"] = world_of(2, folder, fails, folder / "ddp", "full")
    for rank in ("0", "1"):
        (folder / rank).mkdir()
    found["elsewhere"] = world_of(2, folder, fails, folder, "elsewhere")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
