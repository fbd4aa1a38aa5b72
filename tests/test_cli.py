"""The command line: help is quick and complete, mistakes end with advice, the layers of the package hold."""

from __future__ import annotations

import ast
import contextlib
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

import numpy as np
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
        ("a --within -5m", "--within must be a span of time such as 90s, 10m or 1h30m, not '-5m'"),
        ("a --within 10001d", "--within must be 10,000 days at most, not '10001d'"),
        ("a --within " + "9" * 400 + "d", "--within must be 10,000 days at most"),
        ("a --count -1", "--count must be 1 or more, not -1"),
        ("a --count 1000000001", "--count must be at most 1,000,000,000, not 1000000001"),
        ("a --count " + "9" * 5000, "--count: invalid whole number value: '999"),
        ("a --rate nan", "--rate must be a finite number, not nan"),
        ("a --rate -inf", "--rate must be a finite number, not -inf"),
        ("a --rate 1e400", "--rate must be a finite number, not inf"),
        ("a --rate -.5e", "--rate: invalid number value: '-.5e'"),
        ("a --sizes 1 x", "--sizes: invalid whole number value: 'x'"),
        ("a\0b", "FILES must be text without NUL characters, not 'a\\x00b'"),
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
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        cli.parse("sample", arguments.split())
    assert len(str(caught.value)) < 400


def test_numbers_of_numpy_are_numbers() -> None:
    asked = SampleConfig(
        files=np.array(["a", "b"]),  # type: ignore[arg-type]
        rate=np.float32(0.5),  # type: ignore[arg-type]
        count=np.int64(3),  # type: ignore[arg-type]
        sizes=np.array([4, 5]),  # type: ignore[arg-type]
        mirror=np.bool_(False),  # type: ignore[arg-type]
        share=np.array(0.25),  # type: ignore[arg-type]
        mode=np.str_("fast"),  # type: ignore[arg-type]
    )
    values = dataclasses.astuple(asked)
    assert values == (("a", "b"), 0.5, 3, 0.25, "5m", "fast", (4, 5), False, False)
    plain = (str, int, float, bool)
    assert all(type(each) in plain for value in values for each in (value if isinstance(value, tuple) else (value,)))
    for wrong in (np.float64(2.0), np.array([2]), np.bool_(True)):
        with pytest.raises(ConfigError, match="--count must be a whole number"):
            SampleConfig(files=("a",), count=wrong)  # type: ignore[arg-type]


EXTREMES = (-1, 0, 1, 10**9 + 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 10**5000, 0.5, 1e308)
EXTREMES += (float("nan"), float("inf"), -float("inf"), -1e-320)


@pytest.mark.parametrize("command", cli.commands())
def test_no_number_of_a_configuration_is_beyond_what_is_computed_with(command: str) -> None:
    """Neither infinite nor larger than what sums of it and arrays of such a length can bear."""
    chosen = config.of_command(command)
    fields = config.fields_of(chosen)
    needed = {field.name: "x" for field in fields if field.default is dataclasses.MISSING}
    for field in fields:
        for extreme in EXTREMES if field.type in (int, float) else ():
            for value in ((extreme, extreme), extreme) if field.several else (extreme,):
                try:
                    made = getattr(chosen(**{**needed, field.name: value}), field.name)
                except ConfigError as error:
                    assert len(str(error)) < 400  # noqa: PT017
                    continue
                for number in made if field.several else (made,):
                    top = {"seed": 2**63 - 1, "workers": 1024, "threads": 1024, "crop": 2048}.get(field.name, 10**9)
                    assert 0 <= number <= top, (field.flag, number)


def test_a_seed_may_be_any_number_that_the_generators_take() -> None:
    assert FinetuneConfig(data="photos", seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ConfigError, match=r"--seed must be at most 9,223,372,036,854,775,807"):
        FinetuneConfig(data="photos", seed=2**63)


def test_the_limit_of_an_inputs_side_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FinetuneConfig(data="photos", crop=2048).crop == 2048
    with pytest.raises(ConfigError, match=r"--crop must be at most 2,048 px .*--limits input_side=N\), not 2049"):
        FinetuneConfig(data="photos", crop=2049)
    monkeypatch.setenv("BIT_LIMITS", "input_side=2049")
    assert FinetuneConfig(data="photos", crop=2049).crop == 2049


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
        ({"linear": "closed", "log": "wandb"}, "--log has no effect with --linear closed"),
        ({"linear": "closed", "budget": "3m"}, "--budget has no effect with --linear,"),
        ({"budget": "0s"}, "--budget must be more than 0 seconds"),
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
        "Also: --quiet shows no progress and tells no story; --verbose tells more, and what it cost;\n"
        "      --debug shows the traceback of an error (or set BIT_DEBUG=1);\n"
        "      --limits NAME=N,... raises what one file may cost (docs/limits.md).\n"
    )


@pytest.mark.parametrize("command", cli.commands())
def test_every_command_explains_every_knob(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = config.of_command(command)
    assert issubclass(chosen, Config)
    fields = config.fields_of(chosen)
    assert [field.name for field in fields if not field.help.endswith((".", ")"))] == []
    assert cli.main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert [field.flag for field in fields if field.flag not in shown.replace("[no-]", "")] == []
    summary = " ".join(shown.split("\n\n")[1].split())
    assert summary.endswith(".")
    assert summary in cli._overview()


def test_every_command_has_its_job() -> None:
    """Each command of the help has a job file, and no job is left out of the help."""
    jobs = REPOSITORY / "bigtransfer" / "jobs"
    files = [*jobs.glob("*.py"), *jobs.glob("*/__init__.py"), *jobs.glob("detect/*.py")]
    named = {path: path.parent.name if path.stem == "__init__" else path.stem for path in files}
    named |= {path: f"detect {path.stem}" for path in jobs.glob("detect/*.py")}
    assert {named[path] for path in files if "\ndef run(" in path.read_text(encoding="utf-8")} == set(cli.commands())


@pytest.mark.parametrize("command", sorted({*cli.commands()} - {"distill"}))  # which is another's by `pretraining`
def test_every_knob_is_asked_for_by_the_job(command: str) -> None:
    """No flag is taken and then forgotten; what each does is tested with the job."""
    package = REPOSITORY / "bigtransfer"
    others = {
        "shard": ("data/writer.py",),
        "finetune": ("jobs/working.py",),
        "detect finetune": ("jobs/working.py",),
        "evaluate": ("jobs/suite.py", "jobs/parts.py"),
        "serve": ("serve/app.py", "serve/service.py"),
    }
    own = package.joinpath("jobs", *command.split())
    files = [
        *(own.glob("*.py") if own.is_dir() else [own.with_suffix(".py")]),
        *(package / other for other in others.get(command, ())),
    ]
    asked = {
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("config", "self.config", "service.config")
    }
    assert {field.name for field in dataclasses.fields(config.of_command(command))} <= asked


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


def test_a_job_can_be_interrupted_by_the_keyboard_after_it_is_loaded(sample) -> None:
    """While it loads, the signal has its plain effect; afterwards it is Python's again."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        at_work: list[object] = []
        sample(lambda asked: at_work.append(signal.getsignal(signal.SIGINT)))
        before = signal.getsignal(signal.SIGINT)
        assert before is signal.default_int_handler and cli.main(["sample", "a"]) == 0
        assert at_work == [before] and signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("value", "debugging"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_what_turns_debugging_on(sample, monkeypatch: pytest.MonkeyPatch, value: str, debugging: bool) -> None:
    def run(asked: Config) -> None:
        raise bigtransfer.BitError("wrong")

    sample(run)
    monkeypatch.setenv("BIT_DEBUG", value)
    with pytest.raises(bigtransfer.BitError) if debugging else contextlib.nullcontext():
        assert cli.main(["sample", "a"]) == 2


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


@pytest.mark.parametrize("command", ["finetune", "pretrain", "distill", "evaluate", "demo"])
@pytest.mark.parametrize("folder", ["-", ""])
def test_a_folder_is_no_stream(command: str, folder: str) -> None:
    (out,) = (field for field in config.fields_of(config.of_command(command)) if field.name == "out")
    with pytest.raises(ConfigError, match="name of a folder"):
        out.accept(folder)
    assert out.accept("./-") == "./-"


@pytest.mark.parametrize("arguments", [["finetune", ""], ["check", ""], ["predict", "m", "a.jpg", ""]])
def test_an_empty_argument_is_no_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of the shell that is not set would be taken for the current folder."""
    assert cli.main(arguments) == 2
    assert f"of `bit {arguments[0]}` is an empty text" in capsys.readouterr().err
