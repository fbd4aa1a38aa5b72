"""Numbers handed on to TensorBoard, Weights & Biases and MLflow (without a server), and what happens when one of them fails."""

from __future__ import annotations

import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bigtransfer import bars
from bigtransfer.errors import ConfigError
from bigtransfer.jobs import tracking

ASKED = {"data": "photos", "steps": 3, "seed": None}


def told(program: str | None, folder: Path, steps: range) -> None:
    with tracking.writer(program, folder, ASKED) as tell:
        for step in steps:
            tell(step, {"loss": 1 / (step + 1), "val/top1": step / 8, "left_out": [{"name": "a.png"}]})


class Recorded:
    """A program that writes down what it is told, and fails where it is asked to."""

    def __init__(self, folder: Path, asked: Any) -> None:
        self.lines: list[Any] = []
        self.failing: Exception | None = None
        made.append(self)

    def write(self, step: int, numbers: Any) -> None:
        if self.failing is not None:
            raise self.failing
        self.lines.append((step, dict(numbers)))

    def close(self, failed: bool) -> None:
        self.lines.append(failed)


made: list[Recorded] = []


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setitem(tracking._PROGRAMS, "wandb", Recorded)


@pytest.mark.usefixtures("recorded")
def test_numbers_alone_are_handed_on(tmp_path: Path) -> None:
    told("wandb", tmp_path, range(2, 4))
    assert made[0].lines == [(2, {"loss": 1 / 3, "val/top1": 0.25}), (3, {"loss": 0.25, "val/top1": 0.375}), False]


@pytest.mark.usefixtures("recorded")
def test_what_fails_on_the_way_is_said_once_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.writer("wandb", tmp_path, ASKED) as tell:
        tell(0, {"loss": 1.0})
        made[0].failing = ConnectionError("no route to host.\nmore")
        tell(1, {"loss": 0.5})
        tell(2, {"loss": 0.25})
    assert made[0].lines == [(0, {"loss": 1.0})]
    said = capsys.readouterr().err
    assert said.count("--log wandb has failed (no route to host); the training goes on") == 1


@pytest.mark.usefixtures("recorded")
def test_a_training_that_ends_by_an_error_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.writer("wandb", tmp_path, ASKED):
        raise KeyboardInterrupt
    assert made[0].lines == [True]


def test_the_names_that_other_programs_have_for_a_run_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the two packages."""
    begun: list[str] = []

    def init(**given: Any) -> Any:
        begun.append(given["id"])
        return types.SimpleNamespace(log=lambda *numbers, step: None, finish=lambda exit_code: None)

    class Client:
        def __getattr__(self, name: str) -> Any:
            number = types.SimpleNamespace(experiment_id="1", info=types.SimpleNamespace(run_id="theirs"))
            return lambda *given, **more: begun.append(name) or number

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", types.SimpleNamespace(Metric=tuple, Param=lambda *one: one))
    for program in ("wandb", "mlflow", "wandb", "mlflow"):
        told(program, tmp_path, range(1))
    ours, again = (one for one in begun if re.fullmatch("[0-9a-f]{8}", one))
    assert ours == again and begun.count("create_run") == 1, "each goes on with its own"
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"wandb": ours, "mlflow": "theirs"}


@pytest.mark.parametrize("program", ["wandb", "mlflow"])
def test_a_package_that_is_missing(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, program, None)
    with pytest.raises(ConfigError, match=rf"--log {program} needs a package: pip install 'bigtransfer\[{program}\]'"):
        told(program, tmp_path, range(1))


def test_a_program_that_cannot_be_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*given: Any) -> Any:
        raise ValueError("no key is configured.")

    monkeypatch.setitem(tracking._PROGRAMS, "wandb", refuses)
    with pytest.raises(ConfigError, match=r"--log wandb: it cannot be begun with: no key is configured$"):
        told("wandb", tmp_path, range(1))


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the run: step and value of each number."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    told("tensorboard", tmp_path, range(3))
    told("tensorboard", tmp_path, range(3, 3))  # stopped before it had anything to say
    told("tensorboard", tmp_path, range(2, 4))
    assert scalars(tmp_path) == {
        "loss": [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3)), (3, 0.25)],
        "val/top1": [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375)],
    }


@pytest.mark.filterwarnings("default")  # its own
def test_mlflow_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_of = pytest.importorskip("mlflow").MlflowClient
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/numbers.db")
    for steps in (range(2), range(2, 3)):
        told("mlflow", tmp_path / "run", steps)
    client = client_of()
    (run,) = client.search_runs([client.get_experiment_by_name("bigtransfer").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params == {"data": '"photos"', "steps": "3"}
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in losses) == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert run.data.metrics["val/top1"] == 0.25
    # On another server it is a new one.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/others.db")
    told("mlflow", tmp_path / "run", range(3, 4))
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["mlflow"] != run.info.run_id


@pytest.mark.filterwarnings("default")
def test_wandb_offline_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (range(3), range(2, 5)):
        target = tracking._Wandb(tmp_path, ASKED)
        for step in steps:
            target.write(step, {"loss": step / 4})
            target.write(step, {"val/top1": step / 8})
        assert target._run.config["data"] == "photos"
        found = dict(target._run.summary)  # up to the last step but one: there may be more of the last
        assert (found["loss"], found["val/top1"]) == (steps[-2] / 4, steps[-2] / 8)
        target.close(False)
    name = json.loads((tmp_path / "tracking.json").read_text())["wandb"]
    assert len([*tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb")]) == 2, "to be put together by `wandb sync`"


def test_bars_are_shown_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> bool:
        stream = io.StringIO()
        for _ in bars.tqdm(range(2), disable=None, file=stream):
            pass
        return bool(stream.getvalue())

    assert not bars.watched() and not shown(), "a log file"
    for config, expected in (({"IPKernelApp": {}}, True), ({"TerminalIPythonApp": {}}, False)):
        shell = types.SimpleNamespace(config=config)
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert bars.watched() is shown() is expected
    monkeypatch.setattr(sys, "stderr", None)
    assert not bars.watched()


def test_a_log_file_is_told_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(every: float, **options: object) -> list[str]:
        monkeypatch.setattr(bars, "EVERY", every)
        stream = io.StringIO()
        with bars.tqdm(total=1_200, disable=None, unit="img", file=stream, **options) as bar:
            bar.update(1_100)
        return stream.getvalue().splitlines()

    assert told(1e9) == [], "what is done at once"
    (nothing, line) = told(0.0, desc="looking")[-2:]
    assert not nothing and re.fullmatch(r"looking: 1,100 of 1,200 img, \d\d:\d\d left", line), (
        "--quiet knows it by the return"
    )
    assert told(0.0, leave=True)[-1].startswith("done: 1,100 of")
