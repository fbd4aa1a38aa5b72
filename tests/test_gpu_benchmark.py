"""The script for GPUs, as far as a CPU can tell: no process takes others' results along, and its checks can fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import gpu
from bigtransfer import ops


@pytest.fixture
def workers() -> Iterator[list[gpu.Worker]]:
    found = [gpu.Worker(name, "", module="tests.gpu_stand_in") for name in ("answers", "dies", "hangs")]
    yield found
    for worker in found:
        worker.end("the test is over")


def test_whoever_dies_or_hangs_loses_its_own_results_only(workers: list[gpu.Worker]) -> None:
    answers, dies, hangs = workers
    for number in range(3):
        answers.call("echo", number, value=10 * number)
    answers.call("fail", 3)
    answers.call("echo", 4, value=40)
    dies.call("echo", 0, value=1)
    dies.call("die", 1)
    dies.call("echo", 2, value=2)
    hangs.call("hang", 0)
    hangs.call("echo", 1, value=3)
    started = time.monotonic()
    found: dict[str, dict[Any, Any]] = {"answers": {}, "dies": {}, "hangs": {}}
    for worker, (_, _, asker), answer in gpu.answered(workers, started + 8, grace=1):
        found[worker.name][asker] = answer.get("result", answer.get("error"))
    assert found["answers"] == {0: 0, 1: 10, 2: 20, 3: "ValueError: no", 4: 40}
    assert found["dies"] == {0: 1, 1: "its process died (exit code 3)", 2: "its process died (exit code 3)"}
    assert found["hangs"] == {0: "not done in time", 1: "not begun in time"}
    assert 9 <= time.monotonic() - started < 60


ROWS: list[dict[str, Any]] = [
    {"part": "run", "date": "2026-11-26 14:40 UTC", "commit": "", "command": "benchmarks/gpu.sh"},
    {"part": "A", "name": "machine", "gpu": "NVIDIA H100", "cores": 16, "versions": {"torch": "2.11.0"}},
    {"part": "A", "name": "ceilings", "copy_gb_s": 3000.0, "matmul_tflop_s": 800.0},
    {"part": "B", "name": "good", "value": 1e-6, "limit": 1e-4, "plain": 2e-6, "passed": True},
    {"part": "B", "name": "bad", "value": 0.5, "limit": 1e-4, "passed": False},
    {"part": "B", "name": "crashed", "error": "its process died", "passed": False},
    {"part": "prepared", "form": "timm", "case": "a step", "memory_gb": 2.5, "logit_error": 0.01, "prepare_seconds": 3.0},
    *(
        {"part": "C", "name": name, "case": "a step", "kind": "train", "arch": "r50x1", "size": 224, "batch": 128, "ms": ms}
        for name, ms in (("ours", [10.0, 12.0, 11.0]), ("timm", [20.0, 21.0, 33.0]))
    ),
    {"part": "D", "name": "ours", "shape": [2, 64, 8, 8], "copy": [0.5], "forward": [1.0], "backward": []},
    {"part": "left out", "name": "timm, compile", "why": "not done in time"},
]  # fmt: skip


def test_the_table_says_what_there_is() -> None:
    text = gpu.table(ROWS, commit="abc")
    assert "commit: abc" in text and "## Is it right: 1 of 3 within their limits" in text
    assert text.count("**beyond**") == 2 and "error its process died" in text
    # 128 images x 3 x 8.2 GFLOP in 21 ms are 149 TFLOP/s, a fifth of 800; the median of 2, 1.75 and 3 is 2.
    (line,) = [line for line in text.splitlines() if line.startswith("| timm |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["timm", "21.000 (20.000)", "6,095"] and cells[4:7] == ["19%", "2.00x as fast", "2.5"]
    assert float(cells[3]) == pytest.approx(149, abs=2)
    # 2 x 64 x 8 x 8 numbers of 2 bytes, read and written in 1 ms.
    assert "| 2 x 64 x 8 x 8 | ours | 1000.0 | 0 |  |  | 500.0 | 0 |" in text
    assert "- timm, compile: not done in time" in text
    assert gpu.summary(ROWS).splitlines()[0] == "checks: 1 of 3 within their limits"
    for end in range(len(ROWS)):  # a run that was cut off
        assert gpu.table(ROWS[:end]).startswith("# ")


def test_the_checks_notice_a_wrong_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_worker

    rows = gpu_worker.check_operations("cpu", quick=True)
    wrong = [row["name"] for row in rows if not row["passed"]]
    assert len(rows) == 36 and wrong == []

    right = ops.group_norm_relu

    def one_channel_off(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return right(x, groups, weight, bias.roll(1))

    monkeypatch.setattr(ops, "group_norm_relu", one_channel_off)
    monkeypatch.setattr(ops, "standardize", lambda kernel, dtype: (kernel - kernel.mean()).to(dtype))
    failed = {row["name"] for row in gpu_worker.check_operations("cpu", quick=True) if not row["passed"]}
    assert {name for name in failed if name.endswith(": y")} == {r["name"] for r in rows if r["name"].endswith(": y")}
