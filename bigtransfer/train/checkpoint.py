"""Everything a resume needs, as one safetensors file written atomically: weights, momentum, the step, and what they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bigtransfer.errors import RunError
from bigtransfer.runs import atomic_write
from bigtransfer.train.loop import State

FILE = "checkpoint.safetensors"


def save(folder: Path, state: State, facts: dict[str, Any]) -> Path:
    """Write `state` and `facts` (JSON: what must be equal for a resume to make sense, e.g. seed and recipe) into `folder`."""
    tensors = {f"model.{name}": tensor.detach().contiguous().cpu() for name, tensor in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        momentum = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum.detach().contiguous().cpu()
    path = folder / FILE
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(state.step), "facts": json.dumps(facts, sort_keys=True)})
    return path


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def restore(folder: Path, state: State, facts: dict[str, Any]) -> None:
    """Load the checkpoint in `folder` into `state`, bit for bit. RunError if it is damaged or belongs to other `facts`."""
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            saved = json.loads(metadata["facts"])
            wanted = json.loads(json.dumps(facts))
            different = [key for key in sorted(saved.keys() | wanted.keys()) if saved.get(key) != wanted.get(key)]
            if different:
                changes = "; ".join(f"{key} was {saved.get(key)!r}, is now {wanted.get(key)!r}" for key in different)
                raise RunError(
                    f"{path} belongs to another run: {changes}. Choose another --out, or remove the folder to start anew."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(
            f"The checkpoint {path} cannot be read ({error}). Remove it to start from the beginning."
        ) from error
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    state.model.load_state_dict(weights, strict=True)
    for name, parameter in state.model.named_parameters():
        momentum = tensors.get(f"momentum.{name}")
        if momentum is not None:
            # Momentum lives where its parameter lives; a resume onto a GPU must not leave it on the CPU. The memory format too is the
            # parameter's: it decides the order of additions nowhere, but a copy at every step otherwise.
            state.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
    state.step = int(metadata["step"])
