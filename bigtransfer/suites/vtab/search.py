"""The search for each task: several settings drawn at random, the best of them by 200 images, and that one on all thousand.

What is drawn for a trial depends on the seed and its number alone. The trials stand in optuna's storage in the measurement's folder (an
SQLite data base; on network file systems, whose locks SQLite cannot rely on, optuna's journal): an interrupted search goes on, more trials
are added to those there are, and several processes that see the folder share them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import filelock
import numpy as np

from bigtransfer import hyperrule, machine
from bigtransfer.errors import ConfigError, TrainingError
from bigtransfer.suites.benchmark import index_digest
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.vtab.protocols import top1


@dataclass(frozen=True, kw_only=True)
class Space:
    """What settings are drawn from, each independently of the others (arXiv 1912.11370, appendix A)."""

    learning_rate: tuple[float, float] = (1e-4, 1e-1)
    """Its logarithm evenly."""
    steps: tuple[int, ...] = (500, 1_000, 2_000, 4_000, 8_000, 16_000)
    dropout: tuple[float, float] = (0.0, 0.7)
    """Evenly; of the features before the head."""
    l2_sp: tuple[float, float] = (1e-6, 1e-1)
    """Weight decay towards the pre-trained weights; its logarithm evenly."""
    mixup_alpha: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    size: tuple[int, ...] = (64, 128, 192, 256, 320, 384)
    """Of the input, px."""

    def draw(self, seed: int, number: int) -> dict[str, Any]:
        """The settings of a trial, by the names of the fields."""
        rng = np.random.default_rng((seed, number))
        drawn: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            choices = getattr(self, one.name)
            if one.name in _CHOSEN:
                drawn[one.name] = choices[int(rng.integers(len(choices)))]
            elif one.name in _LOGARITHMIC:
                drawn[one.name] = _within(choices, math.exp(rng.uniform(math.log(choices[0]), math.log(choices[1]))))
            else:
                drawn[one.name] = float(rng.uniform(*choices))
        return drawn


def _within(bounds: tuple[float, float], value: float) -> float:
    """What rounding may have carried out of the bounds, at their edge."""
    return min(max(value, bounds[0]), bounds[1])


_CHOSEN, _LOGARITHMIC = ("steps", "mixup_alpha", "size"), ("learning_rate", "l2_sp")

SMALL_SPACE = Space(steps=(20, 50, 100), size=(64,))
"""For machines that cannot afford more."""


@dataclass(frozen=True, kw_only=True)
class Search(Protocol):
    """Settings drawn at random, judged by "val200" after training on "train800"; the best is trained on all thousand and tested."""

    name: ClassVar[str] = "search-per-task"
    needs: ClassVar[tuple[str, ...]] = ("train800", "val200", "train1000", "test")
    source: ClassVar[str] = (
        "arXiv 1912.11370, appendix A: 40 trials for each task, while the benchmark's leaderboard says 50. Not stated there and decided "
        "here: the learning rate falls to a tenth after 30, 60 and 90 % of the steps, without warm-up; batches of 512; images are resized "
        "to 8/7 of the crop; the head, which has no pre-trained weights, is not decayed; flips and crops go by the task as in the rule; of "
        "trials equally good the first counts, and one that diverges counts as 0."
    )
    trains: ClassVar[bool] = True

    flip: bool
    crop: bool
    trials: int = 40
    space: Space = field(default_factory=Space)
    batch_size: int = hyperrule.BATCH_SIZE

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of a fine-tuning."""
        rest = {name: value for name, value in drawn.items() if name != "size"}
        return {
            **rest,
            "variant": "paper",
            "batch_size": self.batch_size,
            "resize": round(drawn["size"] * 8 / 7),
            "crop": drawn["size"],
            "flip": self.flip,
            "random_crop": self.crop,
        }

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        def tried(drawn: Mapping[str, Any]) -> float:
            try:
                tuned = bench.finetuned(bench.parts["train800"], **self.settings(drawn))
            except TrainingError:
                return 0.0
            judged = _top1(tuned, bench, "val200", drawn["size"]).value
            tuned.forget()
            return judged

        values = self.searched(bench, tried)
        best = max(range(self.trials), key=lambda number: (values[number], -number))
        drawn = self.space.draw(bench.seed, best)
        tuned = bench.finetuned(bench.parts["train1000"], **self.settings(drawn))
        shown = ", ".join(f"{name} {value:.3g}" for name, value in drawn.items())
        note = f"trial {best + 1} of {self.trials}, {values[best]:.1%} of the 200 that chose it: {shown}"
        return [dataclasses.replace(_top1(tuned, bench, "test", drawn["size"]), note=note)]

    def searched(self, bench: Bench, tried: Callable[[Mapping[str, Any]], float]) -> list[float]:
        """The value of every trial, by number; those that are not known yet are found by `tried` (settings -> value), by this process or
        by others that share the folder."""
        content = {name: value for name, value in self.parameters().items() if name != "trials"}
        digest = hashlib.sha256(repr((content, index_digest(bench.parts["train1000"]))).encode()).hexdigest()[:12]
        folder = bench.folder()
        folder.mkdir(parents=True, exist_ok=True)
        with _record(folder, f"search-{digest}") as record:
            return _values(record, self, bench.seed, tried)


def _top1(tuned: Bench, bench: Bench, part: str, size: int) -> Measurement:
    answers = tuned.logits(bench.parts[part], Preparation(mode="square", size=size))
    return top1((logits, labels) for logits, labels, _ in answers)


# --- On record

HEARTBEAT = 60
"""Seconds between two signs of life of a trial that is under way; after three of them without any it is taken for dead."""
_POLL = 5.0
"""Seconds between two looks at what other processes do."""
_NUMBER = "number"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "The search for each task needs the package optuna: pip install 'bigtransfer[search]'"
        ) from error
    return optuna


class _Record:
    """The trials on record, and what processes that share them need: one at a time, and which of them still live."""

    study: Any

    def alone(self) -> AbstractContextManager[Any]:
        """Keeps other processes out of a look at the trials that leads to changes of them."""
        raise NotImplementedError

    def alive(self, trial: Any) -> AbstractContextManager[Any]:
        """Gives signs of life of a trial that is under way."""
        raise NotImplementedError

    def fail_dead(self) -> None:
        """Marks the trials as failed whose process has died."""
        raise NotImplementedError

    def taken(self) -> Any:
        """A trial that was waiting, begun. To be called where no other process looks: of SQLite two can be given the same one otherwise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the signs of life are ours
            return self.study.ask()


class _DataBase(_Record):
    """SQLite: signs of life are rows of it, as optuna keeps them; a lock of the system."""

    def __init__(self, file: Path, lock: Path) -> None:
        optuna = _optuna()
        self._lock = filelock.FileLock(lock)
        with self._lock:  # two processes that make the tables would be in each other's way
            self._storage = optuna.storages.RDBStorage(
                f"sqlite:///{file.resolve()}",
                engine_kwargs={"connect_args": {"timeout": 60}},
                heartbeat_interval=HEARTBEAT,
                grace_period=3 * HEARTBEAT,
            )
            self.study = _made(self._storage)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def alone(self) -> AbstractContextManager[Any]:
        return self._lock

    def alive(self, trial: Any) -> AbstractContextManager[Any]:
        return _beating(lambda: self._storage.record_heartbeat(trial._trial_id))

    def fail_dead(self) -> None:
        _optuna().storages.fail_stale_trials(self.study)


class _Journal(_Record):
    """Optuna's journal: a file that is added to under a lock file, which every file system has. Signs of life are files that are touched:
    their times are those of one clock, the server's."""

    def __init__(self, file: Path, lock: Path) -> None:
        optuna = _optuna()
        journal = optuna.storages.journal
        self._signs = file.with_suffix(".alive")
        self._signs.mkdir(exist_ok=True)
        self._lock = journal.JournalFileOpenLock(str(lock))
        backend = journal.JournalFileBackend(str(file), lock_obj=journal.JournalFileOpenLock(str(file)))
        with self.alone():
            self._storage = optuna.storages.JournalStorage(backend)
            self.study = _made(self._storage)

    def close(self) -> None:
        pass

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def alive(self, trial: Any) -> Iterator[None]:
        sign = self._signs / str(trial.number)
        try:
            with _beating(sign.touch):
                yield
        finally:
            sign.unlink(missing_ok=True)

    def fail_dead(self) -> None:
        state = _optuna().trial.TrialState
        now = self._signs / f"now-{secrets.token_hex(4)}"
        now.touch()
        try:
            seconds = now.stat().st_mtime
            for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
                try:
                    last = (self._signs / str(trial.number)).stat().st_mtime
                except FileNotFoundError:  # between two of its steps, or its process died there
                    last = trial.datetime_start.timestamp()
                if seconds - last > 3 * HEARTBEAT:
                    with suppress(RuntimeError):  # it has ended meanwhile
                        self._storage.set_trial_state_values(trial._trial_id, state.FAIL)
        finally:
            now.unlink(missing_ok=True)


@contextmanager
def _beating(beat: Callable[[], object]) -> Iterator[None]:
    """Within, a thread gives this sign of life every `HEARTBEAT` seconds, the first at once."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(HEARTBEAT):
            with suppress(OSError, _optuna().exceptions.StorageInternalError):  # a server that is away for a moment
                beat()

    beat()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _made(storage: Any) -> Any:
    return _optuna().create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)


@contextmanager
def _record(folder: Path, name: str) -> Iterator[_Record]:
    """The trials of that name in a folder: in the form that is there, else in that which suits its file system."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    base, journal, lock = folder / f"{name}.sqlite3", folder / f"{name}.journal", folder / f".{name}.lock"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if journal.exists() or (not base.exists() and machine.on_network(folder)):
            record = _Journal(journal, lock)
        else:
            record = _DataBase(base, lock)
        try:
            yield record
        finally:
            record.close()


def _values(record: _Record, search: Search, seed: int, tried: Callable[[Mapping[str, Any]], float]) -> list[float]:
    optuna, study = _optuna(), record.study
    done, open_ = optuna.trial.TrialState.COMPLETE, (optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING)

    def objective(trial: Any) -> float:
        drawn = search.space.draw(seed, trial.user_attrs[_NUMBER])
        for name in drawn:  # for whoever looks at the data base
            choices = getattr(search.space, name)
            if name in _CHOSEN:
                trial.suggest_categorical(name, choices)
            else:
                trial.suggest_float(name, *choices, log=name in _LOGARITHMIC)
        return tried(drawn)

    while True:
        with record.alone():
            record.fail_dead()
            trials = [one for one in study.get_trials(deepcopy=False) if _NUMBER in one.user_attrs]
            known = {one.user_attrs[_NUMBER]: one.value for one in trials if one.state == done}
            under_way = {one.user_attrs[_NUMBER] for one in trials if one.state in open_}
            for number in sorted(set(range(search.trials)) - known.keys() - under_way):
                study.enqueue_trial(search.space.draw(seed, number), user_attrs={_NUMBER: number})
                under_way.add(number)
            finished = all(number in known for number in range(search.trials))
            waiting = any(one.state == open_[0] for one in study.get_trials(deepcopy=False))
            trial = record.taken() if waiting and not finished else None
        if finished:
            return [known[number] for number in range(search.trials)]
        if trial is None:
            time.sleep(_POLL)
            continue
        try:
            with record.alive(trial):
                value = objective(trial)
        except BaseException:
            study.tell(trial, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            raise
        study.tell(trial, value, skip_if_finished=True)  # taken for dead and finished by another it is as good
