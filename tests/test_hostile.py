"""A seeded part of the campaigns of `benchmarks.hostile`, and proof that they would notice what they look for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile.cases import chosen, numbers
from benchmarks.hostile.supervisor import Limits, Worker
from benchmarks.hostile.worker import campaign
from benchmarks.hostile.wrongs import RIGHTS

SEED = 5
"""Of the first case of every generator; the campaigns themselves begin with 0."""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One process for all cases, which has torch to load."""
    folder = tmp_path_factory.mktemp("hostile")
    with Worker(folder / "work", folder / "kept") as worker:
        yield worker


@pytest.mark.parametrize(("name", "cases"), [("images", 150), ("weights", 80), ("datasets", 80)])
def test_nothing_but_a_refusal_comes_of_hostile_files(worker: Worker, name: str, cases: int) -> None:
    faults = []
    for generator, seed in chosen(campaign(name), cases, SEED):
        result = worker.run(name, generator, seed)
        assert result.doors
        faults += [(generator, seed, *fault, result.kept) for fault in result.faults()]
    assert faults == []


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    limits = Limits(cpu=1.0, wall=30.0, memory=300 << 20)
    with Worker(tmp_path_factory.mktemp("wrongs"), limits=limits) as worker:
        yield worker


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ("traceback", "traceback"),
        ("exit", "traceback"),
        ("hang", "hang"),
        ("waiting", "hang"),
        ("crash", "crash"),
        ("memory", "memory"),
        ("more memory", "memory"),
        ("program", "program"),
        ("system", "program"),
        ("fork", "program"),
        ("trap", "program"),
        ("network", "network"),
        ("name", "network"),
        ("code", "code"),
        ("canary", "code"),
        ("write", "write"),
        ("control", "control character"),
        ("noise", "noise"),
        *((right, None) for right in RIGHTS),
    ],
)
def test_what_goes_wrong_is_noticed(watched: Worker, wrong: str, kind: str | None) -> None:
    kinds = {kind for kind, _, _ in watched.run("wrongs", wrong, 0).faults()}
    assert kinds == set() if kind is None else kind in kinds


def test_a_case_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        for generator, seed in chosen(campaign("images"), 36, 5):
            (folder / f"{generator}-{seed}").mkdir()
            rng = numbers("images", generator, seed)
            campaign("images").generators[generator](rng, folder / f"{generator}-{seed}")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size < 1 << 24]
        made.append([(path.relative_to(folder), path.read_bytes()) for path in files])
    assert made[0] == made[1] and len(made[0]) > 30
