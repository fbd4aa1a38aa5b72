"""Tensors into a folder of safetensors files and back, by the processes of a world together: all that torch.distributed.checkpoint is
used for.

Apart from `checkpoint`, which imports it when it is needed, because loading this part of torch takes a second.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from bigtransfer.dist import World
from bigtransfer.errors import RunError
from bigtransfer.outputs import atomic_write


class _Writer(dcp.HuggingFaceStorageWriter):
    """torch's writer of safetensors, except that a file is written straight from the tensors: torch first makes a copy of the whole
    file in memory, takes no strided tensors such as channels_last kernels, and would write one of two parts of a tensor."""

    written: str | None = None
    """Name of the file that this process wrote."""

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        tensors, offsets, results = {}, {}, []
        for item in plan.items:
            name, tensor = item.index.fqn, planner.resolve_data(item)
            assert isinstance(tensor, Tensor) and item.tensor_data is not None and name not in tensors
            tensors[name] = tensor.detach().cpu().contiguous()
            offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            results.append(WriteResult(item.index, tensor.nbytes, None))
        if tensors:
            # The form of the header that torch's reader knows.
            header = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
            path = Path(self.path) / f"shard-{plan.storage_data['shard_index']:05d}.safetensors"
            try:
                with atomic_write(path) as file:
                    save_file(tensors, file, header)
            except RunError as error:  # the caller says what it means for the training
                raise error.__cause__ or error from None
            self.written = path.name
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def write(folder: Path, tensors: dict[str, Tensor], world: World) -> dict[str, str]:
    """Write the tensors into `folder`. What all processes hold alike is written once, divided among them; of a DTensor each writes
    its own part. Returns when all have finished, in all, the files' names and their checksums; what went wrong in one is raised in all."""
    with _together(world) as alone:
        writer = _Writer(str(folder), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer, no_dist=alone)
    mine = {} if writer.written is None else {writer.written: checksum(folder / writer.written)}
    return {name: value for part in world.collect(mine) for name, value in part.items()}


def checksum(path: Path) -> str:
    """CRC-32C of a file's bytes, 8 hexadecimal digits."""
    value = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            value = google_crc32c.extend(value, chunk)
    return f"{value:08x}"


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
