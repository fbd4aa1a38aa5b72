"""The command line: help is quick and complete, mistakes end with advice, the layers of the package hold."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import bigtransfer
from bigtransfer import cli, config
from bigtransfer.config import Config, FinetuneConfig, Positional, PositiveInt, Share, Span
from bigtransfer.errors import ConfigError
from tests.conftest import REPOSITORY

HEAVY = ("torch", "torchvision", "numpy", "PIL", "safetensors", "tqdm", "sklearn")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """Sample things.

    With a second paragraph.
    """

    files: Positional[tuple[str, ...]]
    """Files to read."""
    rate: float = 0.5
    """A rate, 50% by default."""

    # --- Depth
    count: PositiveInt | None = None
    """How many."""
    share: Share = 0.1
    """How much."""
    within: Span = "5m"
    """How long."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    mirror: bool = True
    """Mirror."""
    loud: bool = False
    """Say more."""

    def check(self) -> None:
        if self.mode == "slow" and self.count is None:
            raise ConfigError("--mode slow needs --count.")


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Config], int | None]], None]:
    """Install `bit sample`, whose job is the function given."""

    def install(run: Callable[[Config], int | None]) -> None:
        module = types.ModuleType("bigtransfer.jobs.sample")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bigtransfer.jobs.sample", module)

    monkeypatch.setattr(config, "SampleConfig", SampleConfig, raising=False)
    monkeypatch.setitem(cli.GROUPS, "Samples", ("sample",))
    return install


def bit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bigtransfer", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


# --- what the user asks becomes a configuration


def test_values_reach_the_configuration_in_their_types(sample) -> None:
    line = "a b --rate 2 --count 3 --share 0 --within 1h30m --mode slow --sizes 4 5 6 --no-mirror --loud"
    asked = cli.parse("sample", line.split())
    assert asked == SampleConfig(
        files=("a", "b"),
        rate=2.0,
        count=3,
        share=0.0,
        within="1h30m",
        mode="slow",
        sizes=(4, 5, 6),
        mirror=False,
        loud=True,
    )
    assert isinstance(asked.rate, float)  # type: ignore[attr-defined]


def test_what_is_not_asked_keeps_its_default(sample) -> None:
    assert cli.parse("sample", ["a"]) == SampleConfig(files=("a",))


def test_the_python_side_takes_paths_lists_and_whole_numbers() -> None:
    asked = SampleConfig(files=[Path("a"), "b"], rate=1, sizes=[3])  # type: ignore[arg-type]
    assert (asked.files, asked.rate, asked.sizes) == (("a", "b"), 1.0, (3,))
    assert SampleConfig(files="one").files == ("one",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a --count 0", "--count must be 1 or more, not 0"),
        ("a --share 1", "--share must be 0 or more and less than 1, not 1.0"),
        ("a --share nan", "--share must be 0 or more and less than 1, not nan"),
        ("a --within 5", "--within must be a span of time"),
        ("a --mode quick", "--mode must be one of fast, slow, not 'quick'"),
        ("a --mode slow", "--mode slow needs --count"),
        ("a --count many", "--count: invalid whole number value: 'many'"),
        ("a --rate x", "--rate: invalid number value: 'x'"),
        ("a --count", "--count: expected one argument"),
        ("", "required: FILES"),
        ("a --cuont 3", "no flag --cuont. Did you mean --count?"),
        ("a --no-miror", "no flag --no-miror. Did you mean --no-mirror?"),
        ("a --rat=3", "no flag --rat. Did you mean --rate?"),
    ],
)
def test_wrong_arguments_are_named(sample, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cli.parse("sample", arguments.split())


def test_a_wrong_type_from_python_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("--count must be a whole number, not 1.5")):
        SampleConfig(files=("a",), count=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape("--mirror must be True or False, not 1")):
        SampleConfig(files=("a",), mirror=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape("FILES must be text, not 3")):
        SampleConfig(files=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=re.escape("--count must be a whole number, not True")):
        SampleConfig(files=("a",), count=True)


@pytest.mark.parametrize(
    ("text", "length"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("1h30m", 5400), (" 2d ", 172800)]
)
def test_spans_of_time(text: str, length: float) -> None:
    assert config.seconds(text) == length


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "1 m", "1h30", "10min", "..5s"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="not a span of time"):
        config.seconds(text)


# --- finetune's own contradictions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 100, "crop": 128}, "--crop 128 does not fit into --resize 100"),
        ({"split_file": "s.json", "val_fraction": 0.2}, "--val-fraction has no effect with --split-file"),
        ({"linear": "closed", "steps": 3}, "--steps has no effect with --linear closed"),
        ({"linear": "closed", "budget": "3m"}, "--budget has no effect with --linear,"),
        ({"linear": "sgd", "pretrained": False}, "leave out --no-pretrained"),
    ],
)
def test_finetune_refuses_contradictions(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        FinetuneConfig(data="photos", **fields)  # type: ignore[arg-type]


# --- help


def test_help_of_a_command(sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["sample", "--help"]) == 0
    assert capsys.readouterr().out == (
        "usage: bit sample FILES... [FLAGS]\n"
        "\n"
        "Sample things.\n"
        "\n"
        "With a second paragraph.\n"
        "\n"
        "Arguments:\n"
        "  FILES...                    Files to read.\n"
        "\n"
        "Flags:\n"
        "  --rate X                    A rate, 50% by default. (default: 0.5)\n"
        "\n"
        "Depth:\n"
        "  --count N                   How many.\n"
        "  --share X                   How much. (default: 0.1)\n"
        "  --within TIME               How long. (default: 5m)\n"
        "  --mode fast|slow            How. (default: fast)\n"
        "  --sizes N ...               Sizes. (default: 1 2)\n"
        "  --[no-]mirror               Mirror. (default: on)\n"
        "  --loud                      Say more.\n"
        "\n"
        "Also: --debug shows the traceback of an error (or set BIT_DEBUG=1);\n"
        "      --limits NAME=N,... raises what one file may cost (docs/limits.md).\n"
    )


@pytest.mark.parametrize("command", cli.commands())
def test_every_command_explains_every_knob(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = config.of_command(command)
    assert issubclass(chosen, Config)
    fields = config.fields_of(chosen)
    assert [field.name for field in fields if not field.help.endswith((".", ")"))] == []
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert [field.flag for field in fields if field.flag not in shown.replace("[no-]", "")] == []
    summary = " ".join(shown.split("\n\n")[1].split())
    assert summary.endswith(".")
    assert summary in cli._overview()


def test_every_command_has_its_job() -> None:
    """Each command of the help has a job file, and no job is left out of the help."""
    files = (REPOSITORY / "bigtransfer" / "jobs").glob("*.py")
    assert {path.stem for path in files if "\ndef run(" in path.read_text(encoding="utf-8")} == set(cli.commands())


def test_help_loads_nothing_heavy() -> None:
    """Help answers at once, and what is known without tensors can be asked without them: torch alone takes seconds to load."""
    program = (
        "import sys; from bigtransfer import catalog, cli, hyperrule, runs\n"
        "assert cli.main([]) == cli.main(['--help']) == cli.main(['finetune', '--help']) == cli.main(['--version']) == 0\n"
        f"print('HEAVY', sorted(set(sys.modules) & set({HEAVY})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.endswith("HEAVY []\n")
    assert "Getting started:" in done.stdout
    assert f"bit {bigtransfer.__version__}\n" in done.stdout


# --- how it ends


def test_a_job_gets_its_configuration_and_decides_the_status(sample) -> None:
    seen: list[Config] = []
    sample(lambda asked: seen.append(asked))
    assert cli.main(["sample", "a"]) == 0
    sample(lambda asked: 1)
    assert cli.main(["sample", "a"]) == 1
    assert seen == [SampleConfig(files=("a",))]


def test_a_users_error_has_no_traceback_unless_asked(
    sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(asked: Config) -> None:
        raise bigtransfer.BitError("photos/: no images there")

    monkeypatch.delenv("BIT_DEBUG", raising=False)
    sample(run)
    assert cli.main(["sample", "a"]) == 2
    assert capsys.readouterr().err == "error: photos/: no images there\n"
    with pytest.raises(bigtransfer.BitError):
        cli.main(["sample", "a", "--debug"])
    monkeypatch.setenv("BIT_DEBUG", "1")
    with pytest.raises(bigtransfer.BitError):
        cli.main(["sample", "a"])


def test_interrupting_ends_with_130(sample, capsys: pytest.CaptureFixture[str]) -> None:
    def run(asked: Config) -> None:
        raise KeyboardInterrupt

    sample(run)
    assert cli.main(["sample", "a"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    """`bit --help | true`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "bigtransfer", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_mistakes_through_the_real_command() -> None:
    unknown = bit("finetun", "photos")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: There is no command 'finetun'. Did you mean finetune?")
    flag = bit("finetune", "photos", "--step", "3")
    assert flag.returncode == 2
    assert "Did you mean --steps?" in flag.stderr
    assert "Traceback" not in flag.stderr
    assert "ConfigError" in bit("finetune", "photos", "--step", "3", BIT_DEBUG="1").stderr


# --- the package


def test_public_names_resolve_and_are_the_documented_ones() -> None:
    for name in bigtransfer.__all__:
        assert getattr(bigtransfer, name) is not None, name
    assert set(dir(bigtransfer)) == set(bigtransfer.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'finetuna'"):
        bigtransfer.finetuna  # noqa: B018


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SampleConfig(files=("a",)).rate = 3.0  # type: ignore[misc]


def test_imports_point_downwards() -> None:
    """The layers drawn in docs/architecture.md, checked by import-linter."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_the_system_refuses_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_config: Config) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.setattr(cli, "_job", lambda _command: types.SimpleNamespace(run=full))
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err.startswith("error: /some/file: No space left on device. ")
    with pytest.raises(OSError, match="No space"):
        cli.main(["models", "--debug"])


def test_an_interrupted_import_ends_the_process() -> None:
    """Instead of raising KeyboardInterrupt in the middle of some library, which may swallow it and go on half loaded."""
    code = """\
import importlib, os, signal
from bigtransfer import cli
importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGINT)
cli.main(["models"])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGINT
