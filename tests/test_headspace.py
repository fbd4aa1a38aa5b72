"""`bit pretrain --headspace`, by a clock of its own: nothing here depends on how fast anything is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigtransfer import cli
from bigtransfer.feed.loader import Batch
from bigtransfer.jobs import headspace

from .data_makers import class_folders


class Simulated:
    """A loader that takes so many seconds for a batch, a training that takes so many for a step, and their clock."""

    def __init__(self, loading: float, computing: float) -> None:
        self.loading, self.computing, self.now = loading, computing, 0.0
        self.state: Any = SimpleNamespace(step=0)
        self.open, self.made, self.taken = 0, 0, 0

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        assert start == self.state.step < stop
        self.open += 1
        try:
            for step in range(start, stop):
                self.now += self.loading + (5.0 if step == start else 0.0)  # workers start
                self.made += 1
                yield Batch(step, None, None)  # pyright: ignore[reportArgumentType]
        finally:
            self.open -= 1

    def take(self, batches: Iterator[Batch]) -> Iterator[Any]:
        while True:
            started, made = self.now, self.made
            batch = next(batches)
            waited = self.now - started
            assert batch.step == self.state.step
            assert (made == self.made) == (self.open == 0), (
                "the loader is closed while batches are replayed, and only then"
            )
            self.now += self.computing
            self.state.step += 1
            self.taken += 1
            yield SimpleNamespace(seconds=self.now - started, data_seconds=waited)

    def measured(self) -> headspace.Headspace:
        return headspace.measure(self.state, self, self.take, headspace.STEPS, lambda: self.now)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("loading", "factor"), [(0.0, 1.0), (0.25, 1.25), (1.0, 2.0)])
def test_what_is_measured(loading: float, factor: float) -> None:
    made = Simulated(loading, 1.0)
    found = made.measured()
    assert found.factor == pytest.approx(factor)
    assert found.wait_share == pytest.approx(loading / (loading + 1))
    assert len(found.ratios) == headspace.ROUNDS and found.live[0] == pytest.approx(1 + loading)
    assert ("not what this training waits for" in str(found)) == (factor == 1)
    assert (f"{factor:.2f} times as fast at most" in str(found)) == (factor > 1)
    assert made.open == 0


def test_steps_are_few_where_they_are_slow() -> None:
    slow, fast = Simulated(0.0, 100.0), Simulated(0.0, 0.001)
    assert len(slow.measured().live) == 4 * headspace.ROUNDS
    assert len(fast.measured().live) == 100 * headspace.ROUNDS


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(headspace, "_MOST", 4)
    class_folders(tmp_path / "photos", {"cat": 6, "dog": 6}, seed=0)
    asked = [
        "pretrain",
        "photos",
        "--model",
        "r26x1",
        "--crop",
        "16",
        "--batch-size",
        "2",
        "--epochs",
        "1",
        "--workers",
        "0",
    ]
    assert cli.main([*asked, "--headspace", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "waiting for data: " in shown and "headspace: " in shown and "12 and 12 steps" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "nothing is kept"
    assert cli.main([*asked, "--headspace", "--out", "runs/x"]) == 2
    assert "--out has no effect with --headspace" in capsys.readouterr().err
