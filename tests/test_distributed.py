"""Two processes train as one: the same weights, the same numbers, the same errors."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer import dist
from bigtransfer.train import checkpoint

from .data_makers import class_folders

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
    assert result["weights apart"] < TOLERANCE and result["averages apart"] < TOLERANCE
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


def endless(folder: Path, *flags: str) -> list[str]:
    """The end of a command line: a training that does not finish by itself."""
    class_folders(folder / "photos", {"cat": 20, "dog": 20}, seed=0)
    return [
        *("-m", "bigtransfer", "pretrain", str(folder / "photos"), "--out", str(folder / "run"), "--model", "r26x1"),
        *("--crop", "32", "--batch-size", "8", "--epochs", "10000", "--device", "cpu", "--workers", "0", *flags),
    ]


def under_way(folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a few steps have been taken."""
    metrics, deadline = folder / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_dies_is_told_of(tmp_path: Path, strategy: str) -> None:
    """As without torchrun, which would end the others: wherever they wait for it, they end with an error that says what to do."""
    command = endless(tmp_path, "--strategy", strategy)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (tmp_path / f"{rank}.log").open("wb") as log:
            environment = {**os.environ, **place, "RANK": str(rank), "BIT_CACHE": str(tmp_path / "cache")}
            processes.append(subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log))
    try:
        under_way(tmp_path, processes)
        processes[1].kill()
        assert processes[0].wait(timeout=120) == 2
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (tmp_path / "0.log").read_text()
    assert "Another process of this training has ended" in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows leaves an orphan its parent's number")
def test_processes_that_lose_torchrun_save_and_end(tmp_path: Path) -> None:
    """SIGKILL of torchrun alone: it cannot tell its processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BIT_CACHE": str(tmp_path / "cache")}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *torchrun, *endless(tmp_path)], env=environment, stdout=log, stderr=log
        )
    try:
        under_way(tmp_path, [process])
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while not (stopped := re.search(r"Stopped after step (\d+) of", (tmp_path / "log").read_text())):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    assert checkpoint.steps(tmp_path / "run") == [int(stopped[1])]


def test_the_command_ends_without_the_interpreters_last_moments() -> None:
    """After work with other processes threads of torch's may abort them, now and then."""
    script = """
import atexit, sys
from bigtransfer import cli, dist
atexit.register(print, "last moments")
dist.joined = sys.argv.pop() == "together"
cli.main = lambda: print("done") or 7
cli.console()
"""
    for how, printed in (("together", "done\n"), ("alone", "done\nlast moments\n")):
        done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (7, printed)
