"""What no restart can mend ends the job under torchrun; what died is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigtransfer import cli, errors, torchrun, web
from bigtransfer.errors import BitError, ConfigError, DataError, DownloadError, LostProcess, RunError, TrainingError
from tests.conftest import REPOSITORY

AGENT = """
import os, subprocess, sys, time
folder, count, program, deaf = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
if deaf:
    import signal
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # as the first process of a container is
for rank in range(count):
    os.makedirs(f"{folder}/0/{rank}")
children = [
    subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_ERROR_FILE": f"{folder}/0/{rank}/error.json", "RANK": str(rank)},
    )
    for rank in range(count)
]
print(*(child.pid for child in children), flush=True)
for child in children:
    child.wait()
print("all ended by themselves", [child.returncode for child in children], flush=True)
"""

MISTAKE = """
import os, signal, sys, time
from bigtransfer import cli
signal.signal(signal.SIGUSR2, signal.SIG_DFL)
if os.environ["RANK"] == "2":
    time.sleep(60)  # waits for the others
sys.argv[1:] = ["models", "--bad"]
cli.console()
"""


def job(folder: Path, name: str, program: str, *deaf: str, count: int = 3) -> tuple[int, list[int], list[str], str]:
    """The status, children, further output and errors of an agent in a file of this name."""
    (folder / name).write_text(AGENT)
    done = subprocess.run(
        [sys.executable, folder / name, folder / "logs", str(count), program, *deaf],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
        check=False,
    )
    first, *rest = done.stdout.splitlines()
    return done.returncode, list(map(int, first.split())), rest, done.stderr


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("deaf", [(), ("deaf",)])
def test_a_mistake_ends_the_job_with_one_line(tmp_path: Path, deaf: tuple[str, ...]) -> None:
    status, children, rest, said = job(tmp_path, "torchrun", MISTAKE, *deaf)
    assert status == -(signal.SIGTERM if deaf else signal.SIGUSR2) and rest == []
    assert said == "error: `bit models` has no flag --bad. `bit models --help` lists them.\n"
    deadline = time.monotonic() + 10
    while not all(map(ended, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(ended, children)), "also the one that was waiting"


@needs_proc
def test_a_program_that_is_not_torchrun_lives_on(tmp_path: Path) -> None:
    """Such as a notebook that starts processes with torch's launcher."""
    status, _, rest, said = job(tmp_path, "launcher.py", MISTAKE, count=2)
    assert status == 0 and rest == ["all ended by themselves [2, 2]"] and said.count("error: ") == 2


def test_one_process_speaks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = []
    for rank in ("0", "1", "2"):
        (tmp_path / "attempt_0" / rank).mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / rank / "error.json"))
        spoken.append(torchrun._first())
    assert spoken == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "0" / "error.json"))
    assert torchrun._first(), "better twice than never"
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert torchrun._first()


def caused(error: BitError, cause: BaseException) -> BitError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConfigError("x"), False),
        (DataError("x"), False),
        (RunError("x"), False),
        (TrainingError("x"), False),
        (DownloadError("x"), False),
        (caused(DownloadError("x"), web.Refused("404")), False),
        (LostProcess("x"), True),
        (caused(DownloadError("x"), web.Interrupted("silent")), True),
        (caused(DataError("x"), caused(DownloadError("x"), web.Interrupted("silent"))), True),
        (caused(DataError("x"), ConnectionResetError()), True),
        (caused(DataError("x"), TimeoutError()), True),
    ],
)
def test_what_may_pass_is_left_to_torchruns_restarts(
    error: BitError, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_config: object) -> None:
        raise error

    ends: list[tuple[int, str]] = []
    monkeypatch.setattr(cli, "_job", lambda _command: type("Job", (), {"run": staticmethod(run)}))
    monkeypatch.setattr(torchrun, "agent", lambda: 123)
    monkeypatch.setattr(torchrun, "end_job", lambda *given: ends.append(given))
    assert errors.passing(error) is again and cli.main(["models"]) == 2
    assert ends == ([] if again else [(123, "error: x")])
    assert capsys.readouterr().err == "error: x\n"


@pytest.mark.parametrize(
    ("words", "is_torchrun"),
    [
        (["/usr/bin/python3", "/usr/bin/torchrun", "--nproc-per-node", "2"], True),
        (["torchrun", "train.py"], True),
        (["python", "-m", "torch.distributed.run", "x"], True),
        (["python", "/lib/torch/distributed/run.py"], True),
        (["python", "-m", "torch.distributed.launch"], True),
        (["python", "my_torchrun.py"], False),
        (["python", "train.py", *["x"] * 5, "torchrun"], False),
        (["jupyter", "notebook"], False),
    ],
)
def test_torchrun_is_known_by_its_command(words: list[str], is_torchrun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "\0".join(words).encode() + b"\0"
    monkeypatch.setattr(Path, "read_bytes", lambda path: {f"/proc/{os.getppid()}/cmdline": line}[str(path)])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert torchrun.agent() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert torchrun.agent() == (os.getppid() if is_torchrun else None)


@pytest.mark.slow
@needs_proc
def test_the_real_torchrun_does_not_repeat_a_mistake() -> None:
    command = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--max-restarts", "100"]
    for wrong, said in (
        (["nowhere", "--stepz", "3"], "has no flag --stepz"),
        (["nowhere"], "There is no file or folder nowhere"),
    ):
        done = subprocess.run(
            [*command, "-m", "bigtransfer", "pretrain", *wrong],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            timeout=120,
            check=False,
        )
        assert done.returncode == -signal.SIGUSR2
        assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1
        assert said in done.stderr.splitlines()[-1]
