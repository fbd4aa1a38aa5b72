"""Everything a resume needs, as one safetensors file written atomically: weights, momentum, the step, and what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bigtransfer.errors import RunError
from bigtransfer.runs import atomic_write
from bigtransfer.train.loop import State

FILE = "checkpoint.safetensors"


def save(folder: Path, state: State, facts: Mapping[str, Any]) -> Path:
    """Write `state` and `facts` (JSON: what must be equal for a resume to make sense, e.g. seed and recipe) into `folder`.

    RunError if that fails, for want of space say; an earlier checkpoint is then still there.
    """
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for name, parameter in _trained(state).items():
        momentum = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    metadata = {
        "step": str(state.step),
        "micro_batch": str(state.micro_batch),
        "facts": json.dumps(dict(facts), sort_keys=True),
    }
    path = folder / FILE
    try:
        with atomic_write(path) as temporary:
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata
            )
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"The checkpoint {path} cannot be written ({error}). Make room, then the same command goes on from the checkpoint before."
        ) from error
    return path


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def remove(folder: Path) -> None:
    """Remove the checkpoint, if there is one: the run is finished."""
    (folder / FILE).unlink(missing_ok=True)


def restore(folder: Path, state: State, facts: Mapping[str, Any]) -> None:
    """Load the checkpoint in `folder` into `state`, bit for bit. RunError if it is damaged or belongs to other `facts`; `state` is
    then unchanged."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            step, saved = int(metadata["step"]), json.loads(metadata["facts"])
            # A checkpoint of before this was kept has none: what the job found to fit must do.
            micro_batch = int(metadata.get("micro_batch", state.micro_batch))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(
            f"The checkpoint {path} cannot be read ({error}). Remove it to start from the beginning."
        ) from error
    wanted = json.loads(json.dumps(dict(facts)))
    different = [key for key in sorted(saved.keys() | wanted.keys()) if saved.get(key) != wanted.get(key)]
    if different:
        changes = "; ".join(f"{key} was {saved.get(key)!r}, is now {wanted.get(key)!r}" for key in different)
        raise RunError(
            f"{path} belongs to another run: {changes}. Choose another --out, or remove the folder to start anew."
        )
    trained = _trained(state)
    expected = {f"model.{name}": tensor.shape for name, tensor in state.model.state_dict().items()}
    expected |= {f"momentum.{name}": parameter.shape for name, parameter in trained.items() if step > 0}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise RunError(f"{path} is the checkpoint of another network. Remove it to start from the beginning.")
    state.model.load_state_dict({name: tensors[f"model.{name}"] for name in state.model.state_dict()})
    for name, parameter in trained.items():
        if step > 0:
            # On the parameter's device and in its memory format, which decides no sums but would cost a copy at every step.
            momentum: Tensor = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            state.optimizer.state[parameter]["momentum_buffer"] = momentum
    state.step, state.micro_batch = step, micro_batch


def _trained(state: State) -> dict[str, torch.nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    chosen = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in state.model.named_parameters() if id(parameter) in chosen}
