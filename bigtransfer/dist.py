"""The processes that train one model together: a `World`, on torch.distributed. A world of one costs nothing.

`torchrun` starts the processes and restarts them when one dies; it tells each its place through environment variables, which
`join` reads. Without them the world is this process alone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as torch_distributed
from torch import Tensor

from bigtransfer.errors import ConfigError, LostProcess

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others, who may be filling a cache or validating, before it takes them for dead."""


joined = False
"""Whether this process has worked with others."""


def leave(status: int) -> NoReturn:
    """End this process at once, after work with others.

    In the interpreter's last moments a thread of torch's that still asks for Python's lock aborts the process now and then ("terminate
    called without an active exception"), and torchrun would take a finished training for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@dataclass(frozen=True)
class World:
    """Who takes part in the training, and which of them this process is."""

    rank: int = 0
    """This process's number, 0..size-1. Rank 0 is the one that talks: it prints, logs, and writes what is not sharded."""
    size: int = 1
    local_rank: int = 0
    """This process's number on its machine, 0..local_size-1: the index of its GPU."""
    local_size: int = 1
    agent: int | None = None
    """Process id of the torchrun that started this process, if one did."""

    @property
    def abandoned(self) -> bool:
        """Whether torchrun has died, by SIGKILL say, and left this process behind: a next start would meet it at work."""
        return self.agent is not None and os.getppid() != self.agent

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each. All must call it; LostProcess if one of them is gone."""
        if self.size == 1:
            return values
        summed = values.clone()
        with peers():
            torch_distributed.all_reduce(summed)
        return summed

    def barrier(self) -> None:
        """Wait until all processes are here."""
        # A sum, because a barrier of NCCL's needs to be told the device.
        self.total(torch.zeros((), device=self._device()))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows `(n, ...)` of all processes, which may have different numbers of them, in the order of the ranks."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=self._device())
        counts[self.rank] = len(rows)
        ends = self.total(counts).cumsum(0).tolist()
        everyone = torch.zeros(ends[-1], *rows.shape[1:], dtype=rows.dtype, device=self._device())
        everyone[ends[self.rank] - len(rows) : ends[self.rank]] = rows.to(everyone.device)
        return self.total(everyone).to(rows.device)

    def collect(self, value: Any) -> list[Any]:
        """Every process's `value` (JSON), in the order of the ranks, on all of them."""
        if self.size == 1:
            return [value]
        # As lines of JSON: torch's own gathering of objects would unpickle what comes over the network.
        line = torch.tensor(list(json.dumps(value).encode() + b"\n"), dtype=torch.uint8)
        return [json.loads(text) for text in bytes(self.gather(line).tolist()).splitlines()]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values into the tensors of all, which are dense, in any memory format. All must call it; LostProcess if one is gone."""
        if self.size == 1:
            return
        with peers():
            for tensor in tensors:
                # In the order of memory, because backends differ in which formats they take.
                torch_distributed.broadcast(tensor.as_strided((tensor.numel(),), (1,)), src=0)

    def part(self, count: int) -> range:
        """This process's share of `count` things: contiguous, and every thing is in exactly one process's."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    @staticmethod
    def _device() -> torch.device:
        """Where the process group can send from."""
        nccl = torch_distributed.is_initialized() and torch_distributed.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Within, whatever waits for other processes: LostProcess, which says what to do, if one of them is gone."""
    try:
        yield
    except torch_distributed.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:  # gloo's are plain
        if any(word in str(error) for word in ("peer", "gloo", "Socket", "Timed out")):
            raise _lost(error) from error
        raise


def _lost(error: Exception) -> LostProcess:
    # gloo begins with the line of its source and ends with advice to its developers.
    first = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]).split(". This is typically")[0]
    return LostProcess(
        f"Another process of this training has ended or cannot be reached ({first}). torchrun restarts all of them from the last "
        "checkpoint if --max-restarts allows it; otherwise give the same command again."
    )


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Within, the world that torchrun started this process in, and the device that this process is to compute on.

    device: what was asked for; "cuda" becomes the GPU of the process's local rank. ConfigError if there are fewer GPUs than
    processes on this machine. LostProcess if the other processes do not come.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(), device
        return
    world = World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        agent=os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None,
    )
    if device.type == "cuda":
        if world.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {world.local_size} processes on a machine with {torch.cuda.device_count()} GPUs: choose "
                "--nproc-per-node no larger."
            )
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    if world.size == 1:
        yield world, device
        return
    try:
        place = (
            {} if (store := _meeting(world)) is None else {"store": store, "rank": world.rank, "world_size": world.size}
        )
        global joined
        joined = True
        torch_distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT, **place)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise _lost(error) from error
    try:
        yield world, device
    finally:
        torch_distributed.destroy_process_group()


def _meeting(world: World) -> torch_distributed.Store | None:
    """A place in torchrun's store for this start of the processes alone; None if torch is to find one, because there is no such store.

    torchrun keeps its store through all restarts, and torch (2.14 still) uses the same keys in it each time: a process that is
    quicker than another finds the address of that one's dead predecessor, and both wait until the timeout. The restarts cannot be told
    apart by their number either, since torchrun counts those of each machine separately. So each process leaves a new token for
    rank 0, and takes the name of the place from the answer to it, which nobody before can have given.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = torch_distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT
    )
    if world.is_main:
        name = secrets.token_hex(8)
        missing, deadline = set(range(1, world.size)), time.monotonic() + TIMEOUT.total_seconds()
        while missing:
            for rank in sorted(missing):
                if store.check([f"bit/arrived/{name}/{rank}"]):
                    missing.remove(rank)
                elif store.check([f"bit/token/{rank}"]):
                    store.set(f"bit/answer/{store.get(f'bit/token/{rank}').decode()}", name)
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank {min(missing)} has not come")
            time.sleep(0.02)
    else:
        token = secrets.token_hex(8)
        store.set(f"bit/token/{world.rank}", token)
        name = store.get(f"bit/answer/{token}").decode()
        store.set(f"bit/arrived/{name}/{world.rank}", "")
    return torch_distributed.PrefixStore(f"bit/{name}", store)
