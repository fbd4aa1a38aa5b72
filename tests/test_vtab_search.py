"""VTAB-1k's search for each task: what is drawn, what is trained on what, and that nothing is tried twice or lost."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtransfer import cli, machine, weights
from bigtransfer.catalog import ARCHITECTURES, InputSpec, ModelCard
from bigtransfer.data import ImageSet
from bigtransfer.errors import TrainingError
from bigtransfer.jobs import training
from bigtransfer.model import ResNetV2
from bigtransfer.suites import registry, results
from bigtransfer.suites.protocol import Bench, Preparation
from bigtransfer.suites.suite import Suite, Task
from bigtransfer.suites.vtab import search
from bigtransfer.suites.vtab.search import SMALL_SPACE, Search, Space
from bigtransfer.suites.vtab.sources import Rows
from bigtransfer.suites.vtab.tasks import TASKS
from tests.data_makers import write

optuna: Any = pytest.importorskip("optuna")

PARTS = {"train800": 6, "val200": 4, "train1000": 10, "test": 5}


def test_what_is_drawn() -> None:
    space = Space()
    draws = [space.draw(3, number) for number in range(2_000)]
    assert draws[7] == space.draw(3, 7) != space.draw(4, 7)
    for name in ("steps", "mixup_alpha", "size"):
        counts = Counter(one[name] for one in draws)
        assert set(counts) == set(getattr(space, name))
        expected = len(draws) / len(counts)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    for name, (low, high) in {"learning_rate": (1e-4, 1e-1), "l2_sp": (1e-6, 1e-1)}.items():
        values = np.array([one[name] for one in draws])
        assert low <= values.min() and values.max() <= high
        # The logarithm evenly: the middle of the range is the geometric mean.
        assert np.mean(values < (low * high) ** 0.5) == pytest.approx(0.5, abs=0.05)
    dropped = np.array([one["dropout"] for one in draws])
    assert dropped.min() >= 0 and dropped.max() <= 0.7 and dropped.mean() == pytest.approx(0.35, abs=0.02)
    assert abs(np.corrcoef(dropped, [one["steps"] for one in draws])[0, 1]) < 0.1


def test_the_published_space() -> None:
    assert dataclasses.asdict(Search(flip=True, crop=True))["space"] == {
        "learning_rate": (1e-4, 1e-1),
        "steps": (500, 1000, 2000, 4000, 8000, 16000),
        "dropout": (0.0, 0.7),
        "l2_sp": (1e-6, 1e-1),
        "mixup_alpha": (0.0, 0.05, 0.1, 0.2, 0.4),
        "size": (64, 128, 192, 256, 320, 384),
    }
    suite = registry.find("vtab-1k-search")
    assert {task.protocol.parameters()["trials"] for task in suite.tasks} == {40}
    assert {task.protocol.parameters()["trials"] for task in suite.extra} == {50}
    assert suite.task("dsprites_location").protocol.parameters()["flip"] is False


class Tried(Bench):
    """A bench whose fine-tuned models are right for a share of the images that depends on the settings."""

    device, seed = torch.device("cpu"), 0

    def __init__(self, folder: Path) -> None:
        self.card = ModelCard.bare(ARCHITECTURES["r50x1"], 2)
        self._folder, self.asked = folder, list[tuple[int, Mapping[str, Any]]]()
        pixels = np.zeros((1, 8, 8, 3), np.uint8)
        self.parts = {
            name: ImageSet(
                Rows(np.repeat(pixels, count, 0), [f"{name}{i}" for i in range(count)]),
                range(count),
                np.zeros(count, np.int64),
                ("0", "1"),
            )
            for name, count in PARTS.items()
        }
        self.stop_at: int | None = None
        self.forgotten = 0

    def folder(self) -> Path:
        return self._folder

    def finetuned(self, train: ImageSet, **settings: Any) -> Bench:
        if self.stop_at == len(self.asked):
            self.stop_at = None
            raise KeyboardInterrupt
        self.asked.append((len(train), settings))
        if settings["learning_rate"] > 0.05:
            raise TrainingError("diverged")
        return _Tuned(self, good(settings))


def good(settings: Mapping[str, Any]) -> float:
    return 1 - settings["dropout"]


class _Tuned(Bench):
    def __init__(self, of: Tried, share: float) -> None:
        self.of, self.share = of, share

    def forget(self) -> None:
        self.of.forgotten += 1

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        # As many images as it takes to tell shares apart.
        answers = torch.zeros(1000, 2)
        answers[round(1000 * self.share) :, 1] = 1
        yield answers, torch.zeros(1000, dtype=torch.int64), torch.arange(1000)


SEARCH = Search(flip=False, crop=True, trials=3)


@pytest.fixture(params=["data base", "journal"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two forms in which trials are on record."""
    monkeypatch.setattr(machine, "on_network", lambda _: request.param == "journal")
    return request.param


def expected(trials: int, space: Space = SEARCH.space) -> tuple[int, dict[str, Any]]:
    draws = [space.draw(0, number) for number in range(trials)]
    values = [0.0 if one["learning_rate"] > 0.05 else round(1000 * good(one)) for one in draws]
    best = int(np.argmax(values))
    return best, draws[best]


def test_the_best_of_the_trials_is_trained_on_all_and_tested(tmp_path: Path) -> None:
    bench = Tried(tmp_path)
    (found,) = SEARCH.measure(bench)
    assert [count for count, _ in bench.asked] == [6] * 3 + [10]
    best, drawn = expected(3)
    last = bench.asked[-1][1]
    assert {name: last[name] for name in drawn if name != "size"} == {k: v for k, v in drawn.items() if k != "size"}
    assert (last["crop"], last["resize"]) == (drawn["size"], round(drawn["size"] * 8 / 7))
    assert (last["variant"], last["batch_size"], last["flip"], last["random_crop"]) == ("paper", 512, False, True)
    assert found.value == round(1000 * good(drawn)) / 1000 and found.metric == "top-1"
    assert f"trial {best + 1} of 3" in found.note
    assert {one[1]["learning_rate"] for one in bench.asked[:3]} == {
        SEARCH.space.draw(0, i)["learning_rate"] for i in range(3)
    }
    assert bench.forgotten == sum(SEARCH.space.draw(0, i)["learning_rate"] <= 0.05 for i in range(3))


def test_a_diverged_trial_counts_as_nothing(tmp_path: Path) -> None:
    hot = dataclasses.replace(SEARCH, space=Space(learning_rate=(0.06, 0.1)), trials=2)
    assert hot.searched(Tried(tmp_path), lambda drawn: 0.0) == [0.0, 0.0]
    bench = Tried(tmp_path / "other")
    with pytest.raises(TrainingError):
        hot.measure(bench)  # of what diverges in every trial, the last training does too
    assert len(bench.asked) == 3


@pytest.mark.usefixtures("storage")
def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    bench = Tried(tmp_path)
    bench.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        SEARCH.measure(bench)
    (found,) = SEARCH.measure(bench)
    assert [count for count, _ in bench.asked] == [6] * 3 + [10]
    assert len({settings["learning_rate"] for _, settings in bench.asked[:3]}) == 3
    whole = Tried(tmp_path / "whole")
    assert SEARCH.measure(whole) == [found]


def test_more_trials_are_added_to_those_there_are(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Tried(tmp_path)
    SEARCH.measure(bench)
    (file,) = (*tmp_path.glob("search-*.sqlite3"), *tmp_path.glob("search-*.journal"))
    assert file.suffix == {"data base": ".sqlite3", "journal": ".journal"}[storage]
    monkeypatch.setattr(machine, "on_network", lambda _: storage != "journal")  # a folder that was moved keeps its form
    before = len(bench.asked)
    (found,) = dataclasses.replace(SEARCH, trials=5).measure(bench)
    assert [count for count, _ in bench.asked[before:]] == [6] * 2 + [10]
    best, _ = expected(5)
    assert f"trial {best + 1} of 5" in found.note
    # Fewer of them again: those beyond do not count.
    (fewer,) = SEARCH.measure(bench)
    assert f"trial {expected(3)[0] + 1} of 3" in fewer.note


def test_other_settings_or_images_are_another_search(tmp_path: Path) -> None:
    bench = Tried(tmp_path)
    SEARCH.measure(bench)
    assert (SMALL_SPACE.steps, SMALL_SPACE.size) == ((20, 50, 100), (64,))
    for change in ({"space": SMALL_SPACE}, {"flip": True}):
        before = len(bench.asked)
        dataclasses.replace(SEARCH, **change).measure(bench)
        assert len(bench.asked) - before == 4
    bench.parts = {**bench.parts, "train1000": bench.parts["train1000"].subset(range(9))}
    before = len(bench.asked)
    SEARCH.measure(bench)
    assert len(bench.asked) - before == 4


@pytest.mark.usefixtures("storage")
def test_a_trial_is_taken_while_no_other_process_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite gives two that ask at the same time the same one, of which the second to end would have been lost with its process."""
    inside, asked = [0], []

    def watched(alone: Callable[[Any], AbstractContextManager[Any]]) -> Callable[[Any], AbstractContextManager[Any]]:
        @contextmanager
        def entered(record: Any) -> Iterator[None]:
            with alone(record):
                inside[0] += 1
                yield
                inside[0] -= 1

        return entered

    for kind in (search._DataBase, search._Journal):
        monkeypatch.setattr(kind, "alone", watched(kind.alone))
    ask = optuna.Study.ask
    monkeypatch.setattr(optuna.Study, "ask", lambda study: asked.append(inside[0]) or ask(study))
    bench = Tried(tmp_path)
    SEARCH.measure(bench)
    assert asked == [1, 1, 1]


@pytest.mark.usefixtures("storage")
def test_a_trial_that_was_taken_for_dead_ends_well(tmp_path: Path) -> None:
    """Another process has finished it meanwhile."""
    bench, state = Tried(tmp_path), optuna.trial.TrialState
    asked: list[int] = []

    def tried(drawn: Mapping[str, Any]) -> float:
        asked.append(1)
        if len(asked) == 1:
            with search._record(*found_at[0]) as record:
                (running,) = (one for one in record.study.get_trials() if one.state == state.RUNNING)
                record.study.tell(running.number, state=state.FAIL)
        return good(drawn)

    found_at: list[tuple[Path, str]] = []
    real = search._record

    def noted(folder: Path, name: str) -> Any:
        found_at.append((folder, name))
        return real(folder, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_record", noted)
        found = SEARCH.searched(bench, tried)
    assert found == [good(SEARCH.space.draw(0, number)) for number in range(3)] and len(asked) == 4


@pytest.mark.usefixtures("storage")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # threads share what is ignored
def test_two_processes_share_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_POLL", 0.05)
    benches = [Tried(tmp_path) for _ in range(2)]
    both = threading.Barrier(2, timeout=30)
    found: list[list[float]] = []

    def work(bench: Tried) -> None:
        met = iter([both.wait])

        def tried(drawn: Mapping[str, Any]) -> float:
            bench.asked.append((6, drawn))
            next(met, lambda: None)()  # each has at least one
            return good(drawn)

        found.append(SEARCH.searched(bench, tried))

    threads = [threading.Thread(target=work, args=(bench,)) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1] == [good(SEARCH.space.draw(0, number)) for number in range(3)]
    rates = Counter(drawn["learning_rate"] for bench in benches for _, drawn in bench.asked)
    assert set(rates.values()) == {1} and len(rates) == 3
    assert all(bench.asked for bench in benches)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sign", ["old", "new", "none, old", "none, new"])
def test_signs_of_life_in_a_journal(sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of which there was none for long is of a process that died; others are left to theirs."""
    monkeypatch.setattr(machine, "on_network", lambda _: True)
    hour = 3600.0
    with search._record(tmp_path, "search-x") as record:
        trial = record.study.ask()
        with record.alive(trial):
            (file,) = (tmp_path / "search-x.alive").iterdir()
            kept = file.read_bytes()
        assert not file.exists()
        if sign in ("old", "new"):
            file.write_bytes(kept)
            then = file.stat().st_mtime - (hour if sign == "old" else 0)
            os.utime(file, (then, then))
        elif sign == "none, old":  # the clock of the files is an hour ahead of the trial's beginning
            monkeypatch.setattr(search, "HEARTBEAT", -hour)
        record.fail_dead()
        states = [one.state.name for one in record.study.get_trials()]
        assert states == ["FAIL" if sign in ("old", "none, old") else "RUNNING"]
        assert {one.name for one in (tmp_path / "search-x.alive").iterdir()} <= {file.name}


def test_a_trial_under_way_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "on_network", lambda _: True)
    monkeypatch.setattr(search, "HEARTBEAT", 0.01)
    with search._record(tmp_path, "search-x") as record, record.alive(record.study.ask()):
        (file,) = (tmp_path / "search-x.alive").iterdir()
        os.utime(file, (0, 0))
        for _ in range(1000):
            if file.stat().st_mtime > 1:
                break
            threading.Event().wait(0.01)
        assert file.stat().st_mtime > 1


def test_which_file_systems_other_machines_share(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "22 21 0:40 / /home rw - nfs4 server:/home rw\n"
        "23 22 8:2 / /home/me/disk rw - xfs /dev/sdb rw\n"
        "24 21 0:41 / /mnt/two\\040words rw - cifs //server/share rw\n"
        "25 21 0:42 / /far rw - fuse.sshfs me@there: rw\n"
        "26 21 0:43 / /over rw - nfs server:/o rw\n"
        "27 26 0:44 / /over rw - tmpfs none rw\n"
    )
    for path, shared in {
        "/": False, "/home/you": True, "/home": True, "/homes": False, "/home/me/disk/x": False, "/home/me/diskette": True,
        "/mnt/two words/x": True, "/far/x": True, "/over/x": False,
    }.items():  # fmt: skip
        assert machine.on_network(path, mounts) == shared, path
    assert not machine.on_network("/home", tmp_path / "none")


def test_what_a_killed_process_was_at_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_POLL", -1.0)  # for others nobody waits here
    bench, one = Tried(tmp_path), dataclasses.replace(SEARCH, trials=1)

    class Killed(BaseException):
        pass

    def killed(drawn: Mapping[str, Any]) -> float:
        raise Killed

    with pytest.raises(Killed):
        one.searched(bench, killed)
    (file,) = tmp_path.glob("search-*.sqlite3")
    with sqlite3.connect(file) as base:
        # As it is left by a process that could not say that it dies.
        base.execute("UPDATE trials SET state = 'RUNNING' WHERE state = 'FAIL' OR state = 'RUNNING'")
        base.execute("DELETE FROM trial_heartbeats")
        (trial,) = base.execute("SELECT trial_id FROM trials WHERE state = 'RUNNING'").fetchone()
        base.execute("INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (?, '2020-01-01 00:00:00')", (trial,))
    base.close()
    assert one.searched(bench, good) == [good(SEARCH.space.draw(0, 0))]


def test_a_search_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "root" / "vtab-1k" / "svhn"
    for part, count in PARTS.items():
        name = {"train1000": "train800val200"}.get(part, part)
        lines = [f"images/{name}/{number:06d}.png {number % 2}" for number in range(count)]
        for number in range(count):
            write(folder / "images" / name / f"{number:06d}.png", seed=number % 2)
        (folder / f"{name}.txt").write_text("\n".join(lines))
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 2)
    network.card = ModelCard(
        name="tiny", architecture=network.architecture, num_classes=2, class_names=("a", "b"), input=InputSpec(size=16)
    )
    weights.save(tmp_path / "tiny.safetensors", network)
    task = next(task for task in TASKS if task.name == "svhn")
    protocol = Search(flip=True, crop=True, trials=2, space=Space(steps=(2, 3), size=(16,)), batch_size=4)
    one = Task(name="svhn", benchmark=dataclasses.replace(task.benchmark(), parts=PARTS), protocol=protocol)
    monkeypatch.setitem(registry.SUITES, "mini", Suite(name="mini", title="Mini", tasks=(one,)))
    monkeypatch.setattr(training, "spare_workers", lambda: 0)
    asked = ["evaluate", str(tmp_path / "tiny.safetensors"), "--suite", "mini", "--root", str(tmp_path / "root")]
    assert cli.main([*asked, "--results", str(tmp_path / "out.jsonl"), "--device", "cpu"]) == 0
    (found,) = results.read([tmp_path / "out.jsonl"])
    assert "of 2" in found.note and found.input["size"] == 16 and found.parameters["space"]["size"] == [16]
    place = tmp_path / "out.runs" / "mini" / "svhn"
    (run,) = place.glob("*/*/model.safetensors")  # of the trials nothing is left but their record
    card = weights.describe(run)
    assert card.recipe is not None and card.recipe["dropout"] > 0 and card.recipe["l2_sp"] > 0
    assert [*place.glob("*/search-*.sqlite3")]
