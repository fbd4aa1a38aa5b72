"""The benchmark of budgets: the process beside a run computes when it is told to, and what the results say of the runs."""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import budget


def test_the_other_process_is_busy_now_and_then() -> None:
    waits: list[float] = []
    signals: list[int] = []

    class Run:
        """A process that ends in its third spell."""

        def wait(self, timeout: float) -> None:
            waits.append(timeout)
            if len(waits) < 3:
                raise subprocess.TimeoutExpired("bit", timeout)

        def poll(self) -> int | None:
            return 0 if len(waits) == 3 else None

    class Other:
        def send_signal(self, number: int) -> None:
            signals.append(number)

    spent = budget.beside(Other(), Run(), random.Random(0), 10.0)  # type: ignore[arg-type]
    chance = random.Random(0)
    busy = chance.random() < 0.5
    assert waits == [chance.expovariate(1 / 10) for _ in range(3)] and spent >= 0
    on, off = signal.SIGCONT, signal.SIGSTOP
    assert signals == ([on, off, on] if busy else [off, on, off])


def test_the_other_process_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "BUSY", "import time; time.sleep(600)")
    with budget.competitor(None) as other:
        assert other.poll() is None
    assert other.returncode == -signal.SIGKILL


def test_a_failed_run_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 2"):
        budget.measure(tmp_path / "nothing", "1s", None, 0, tmp_path / "run")


def test_the_results() -> None:
    one = {
        "seconds": 60.0,
        "processor": 30.0,
        "busy": 0.5,
        "closed": 3.0,
        "images": 90,
        "of": 100,
        "view": "all blocks",
    }
    one |= {
        "planned": 90,
        "steps": 80,
        "replanned": 2,
        "given back": False,
        "delivered": "average",
        "top1": 0.75,
        "load": 2.5,
    }
    one |= {"measured": 40, "test": 50}
    other = one | {"seconds": 72.0, "replanned": 5, "top1": None, "given back": True, "processor": 60.0}
    options = argparse.Namespace(budget="1m", data=Path("some/photos"), seed=3, core=1)
    text = budget.results([one, one | {"seconds": 54.0}, other], options, ["abc"])
    assert "median **1.00**, worst **1.20**, least 0.90; 1 of 3 runs took more than 1.15 times the budget." in text
    assert "median 2, most 5" in text and sys.version.split()[0] in text and "commits of the package: abc" in text
    assert "Of the core the runs had 50% to 83%, median 56%. Test top-1: 75.0% on average." in text
    row = "50% | 3.0 | 90 of 100 | all blocks | 90 | 80"
    assert f"| 3 | 60.0 | 1.00 | 50% | {row} | 2 | no | average | 75.0% | 40 of 50 |" in text
    assert f"| 5 | 72.0 | 1.20 | 83% | {row} | 5 | yes | average |  | 40 of 50 |" in text
    assert "--data SETS/photos --budget 1m --runs 3 --seed 3 --core 1 --work WORK" in text
