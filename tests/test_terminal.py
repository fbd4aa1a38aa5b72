"""What reaches a terminal, in which encoding, and what happens where there is none."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bigtransfer import cli, terminal
from bigtransfer.errors import BitError
from tests.conftest import REPOSITORY

FORGED = "a\x1b[2J\x07\x9b31m\x7f\r\u202eb\u2066\u200f\u2028\udcff"
SHOWN = r"a\x1b[2J\x07\x9b31m\x7f\r\u202eb\u2066\u200f\u2028\udcff"


def test_what_a_terminal_would_obey_is_visible() -> None:
    assert terminal.visible(FORGED) == SHOWN
    assert terminal.visible("größe 猫 🐈\u200d⬛\tx\n") == "größe 猫 🐈\u200d⬛\tx\n", "text stays as it is"
    assert terminal.line("a\tb\nc\r") == r"a\tb\nc\r"
    obeyed = [chr(code) for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"]
    assert all(terminal.visible(each) == f"\\x{ord(each):02x}" for each in obeyed if each != "\r")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@a", "'@a"),
        ("\ta", r"'\ta"),
        ("\ra", r"'\ra"),
        ("＝1", "'＝1"),
        ("-1+2", "'-1+2"),
        ("-1", "-1"),
        ("+2.5e-3", "+2.5e-3"),
        ("-.5", "-.5"),
        ("a=b", "a=b"),
        ("", ""),
        ("a\x1bb\n", r"a\x1bb\n"),
        ("'@a", "''@a"),
        ("'a", "'a"),
        ("'-1", "''-1"),
    ],
)
def test_no_cell_starts_a_formula(text: str, written: str) -> None:
    assert terminal.cell(text) == written
    if text.isprintable():
        assert terminal.uncell(written) == text  # no two become the same cell


def test_long_text_is_cut_to_its_ends_and_stays_apart() -> None:
    assert terminal.fitted("x" * 60) == "x" * 60
    cut = [terminal.fitted("start" + middle * 100 + "end") for middle in "ab"]
    assert [len(text) for text in cut] == [60, 60] and cut[0] != cut[1]
    assert all(text.startswith("start") and "end #" in text for text in cut)
    assert len({terminal.fitted(f"{'a' * 50}{n}{'a' * 50}") for n in range(10)}) == 10
    assert len(terminal.fitted("\n" * 31)) == 60 and len(terminal.fitted("a" * 31, 30)) == 30


def test_json_stays_exact_in_every_encoding() -> None:
    value = {"größe": [FORGED, "🐈", 0.1]}
    for encoding in ("utf-8", "ascii", "cp1252", "latin-1", "UTF8", "utf_8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        text = terminal.json_line(value, stream)
        assert json.loads(text.encode(encoding)) == value and text.isprintable()
    assert "größe" in terminal.json_line(value) and "🐈" in terminal.json_line(value)


def shown(monkeypatch: pytest.MonkeyPatch, print_: object, encoding: str = "utf-8") -> tuple[str, str, int]:
    """What a command that does `print_` shows on its two streams, and its exit status."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(cli, "_job", lambda _command: types.SimpleNamespace(run=print_))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        status = cli.main(["models"])
        assert sys.stdout is streams[0] and sys.stderr is streams[1]
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    return out, err, status


def test_a_command_shows_nothing_that_a_terminal_would_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_config: object) -> None:
        print(FORGED)
        sys.stdout.writelines(["\x1b", "x\n"])
        print("note:", FORGED, file=sys.stderr)
        raise BitError(FORGED)

    assert shown(monkeypatch, run) == (f"{SHOWN}\n\\x1bx\n", f"note: {SHOWN}\nerror: {SHOWN}\n", 2)


def test_a_progress_bar_may_return_to_the_start_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_config: object) -> None:
        from tqdm import tqdm

        for _ in tqdm(range(2), file=sys.stderr, ascii=True, desc="a\x1b"):
            pass
        sys.stderr.write("\n\x1b[A")
        sys.stderr.write("\x1b[Ax")
        sys.stdout.write("\rx")

    out, err, status = shown(monkeypatch, run)
    assert status == 0 and out == r"\rx"
    assert err.startswith("\ra\\x1b:") and "100%" in err and err.endswith("\n\x1b[A\\x1b[Ax")


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", r"gr\xf6\u732b"), ("cp1252", r"grö\u732b"), ("utf-8", "grö猫")]
)
def test_what_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str, written: str) -> None:
    def run(_config: object) -> None:
        print("grö猫")
        raise BitError("grö猫")

    assert shown(monkeypatch, run, encoding) == (f"{written}\n", f"error: {written}\n", 2)


PROGRAM = """
import sys, types
from bigtransfer import cli, terminal
from bigtransfer.errors import BitError
def run(config):
    print("x" * 9)
    print("note", file=sys.stderr)
    if config.pattern == "wrong":
        raise BitError("wrong")
    with open(sys.argv[2], "w") as file:
        assert file.fileno() > 2
        file.write("done")
cli._job = lambda command: types.SimpleNamespace(run=run)
sys.argv[1:] = ["models", *sys.argv[1:]]
cli.console()
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """`>&-`, `2>&-` and `<&-`: the work is done, nothing else is written into, and the status is the command's."""

    def close() -> None:
        for number in closed:
            os.close(number)

    for argument, status in ((tmp_path / "file", 0), ("wrong", 2)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, argument],
            capture_output=True,
            text=True,
            preexec_fn=close,
            cwd=REPOSITORY,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert done.stdout == ("" if 1 in closed else "x" * 9 + "\n")
        assert done.stderr == ("" if 2 in closed else "note\n" + ("error: wrong\n" if status else ""))
    assert (tmp_path / "file").read_text() == "done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "file"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )
        assert done.returncode == 2
        assert (
            done.stderr.removeprefix("note\n")
            == "error: standard output: No space left on device. --debug shows where it happened.\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "file"],
            stderr=full,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"x" * 9 + b"\n")


def test_a_lost_terminal_swallows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped by it has still to be saved; its disk's failures are told."""

    class Gone(io.StringIO):
        terminal = True

        def isatty(self) -> bool:
            return self.terminal

        def write(self, _text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sys, "stdout", Gone())
    with terminal.guarded():
        print("x", flush=True)
    monkeypatch.setattr(Gone, "terminal", False)
    with terminal.guarded(), pytest.raises(OSError, match="Input/output error: 'standard output'"):
        print("x")


def test_remarks_to_programmers_are_not_shown(tmp_path: Path) -> None:
    """Neither here nor in processes that are started, unless errors are to be looked into."""
    program = """
import subprocess, sys, types, warnings
from bigtransfer import cli
def run(config):
    warnings.warn("here")
    subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('there')"], check=True)
cli._job = lambda command: types.SimpleNamespace(run=run)
cli.console()
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "BIT_DEBUG")}
    for debug, expected in (("0", 0), ("1", 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, "models"],
            capture_output=True,
            text=True,
            env={**environment, "BIT_DEBUG": debug},
            cwd=REPOSITORY,
            check=True,
        )
        assert done.stderr.count("UserWarning") == expected
