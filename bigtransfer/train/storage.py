"""Tensors into a folder of safetensors files and back, by the processes of a world together: all that torch.distributed.checkpoint is
used for.

Apart from `checkpoint`, which imports it when it is needed, because loading this part of torch takes a second.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from bigtransfer.dist import World


class _Planner(dcp.DefaultSavePlanner):
    """safetensors takes no strided tensors such as channels_last kernels. Changed one by one, when each is written."""

    def transform_object(self, write_item: dcp.planner.WriteItem, object: Any) -> Any:
        return super().transform_object(write_item, object).contiguous()


def write(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Write the tensors into `folder`. What all processes hold alike is written once, divided among them; of a DTensor each writes
    its own part. Returns when all have finished; what went wrong in one is raised in all."""
    with _together(world) as alone:
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer, planner=_Planner(), no_dist=alone)


def contents(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of the whole tensors that the files in `folder` hold. SafetensorError or OSError if one cannot be read."""
    found = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: (tensor.size, tensor.properties.dtype)
        for name, tensor in found.items()
        if isinstance(tensor, dcp.TensorStorageMetadata)
    }


def read(folder: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fill the tensors, each process reading what it holds of them. What goes wrong in one is raised in all."""
    with _together(world) as alone:
        dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=alone)


@contextlib.contextmanager
def _together(world: World) -> Iterator[bool]:
    """Yields whether this process is alone. Raises the first process's failure instead of the collection of all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            yield world.size == 1
        except dcp.api.CheckpointException as error:
            raise error.failures[min(error.failures)][0] from error
