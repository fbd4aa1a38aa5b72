"""Two processes train as one: the same weights, the same numbers, the same errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer import dist

WORKER = Path(__file__).with_name("distributed_worker.py")
TOLERANCE = 1e-12
"""Relative to a tensor's largest value after three steps in float64: only the order of sums differs. (In float32 such a difference can
open another ReLU, whose gradient then differs by a whole image's share.)"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found out about themselves."""
    folder = tmp_path_factory.mktemp("two")
    np.save(folder / "images.npy", np.random.default_rng(1).integers(0, 256, (31, 40, 40, 3), dtype=np.uint8))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    return json.loads((folder / "found.json").read_text())


def test_world(found: dict[str, Any]) -> None:
    assert found["size"] == 2
    assert found["gathered"] == [[0, 0], [1, 1], [1, 1]]
    assert found["collected"] == [{"rank": 0}, {"rank": 1}]
    assert found["total"] == [3]


@pytest.mark.parametrize(("loss", "strategy"), [("softmax", "ddp"), ("softmax", "fsdp"), ("sigmoid", "ddp")])
def test_two_processes_train_like_one(found: dict[str, Any], loss: str, strategy: str) -> None:
    """13 images a step, in micro-batches of 4 among 6 and 7: nothing divides evenly."""
    result = found[f"{loss} {strategy}"]
    assert result["weights apart"] < TOLERANCE
    together, alone = result["numbers"]
    assert np.array(together) == pytest.approx(np.array(alone), rel=1e-6)  # the loss is summed up in float32
    assert len(alone) == 3
    together, alone = result["measured"]
    assert together == pytest.approx(alone, rel=1e-3)


def test_all_processes_learn_of_one_that_diverges(found: dict[str, Any]) -> None:
    for message in found["diverged"]:
        assert "The loss is nan at step 0" in message


def test_a_world_of_one() -> None:
    world = dist.World()
    values = torch.tensor([1, 2])
    assert world.total(values) is values
    assert world.gather(values) is values
    assert world.collect("x") == ["x"]
    assert world.part(5) == range(5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_parts_cover_everything_once(size: int) -> None:
    for count in (0, 1, 7, 8, 13):
        parts = [i for rank in range(size) for i in dist.World(rank=rank, size=size).part(count)]
        assert parts == list(range(count))


def test_outside_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with dist.join(torch.device("cpu")) as (world, device):
        assert (world.size, world.is_main, device) == (1, True, torch.device("cpu"))
