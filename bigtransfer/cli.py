"""The command `bit`: command name -> configuration class -> `jobs.<name>.run(config)`.

Nothing heavy is imported before a job runs, so that help answers at once. Exit status: 0 done, 1 the job failed by its own
account, 2 the user can fix it (printed as `error: ...`), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from bigtransfer import __version__, config, limits, machine, terminal, torchrun
from bigtransfer.config.fields import shortened
from bigtransfer.errors import BitError, ConfigError, passing

_log = logging.getLogger(__name__)

GROUPS: dict[str, tuple[str, ...]] = {
    "Your images": ("check", "finetune", "evaluate", "predict", "serve", "report", "compare", "results"),
    "Objects on images": ("detect finetune", "detect evaluate", "detect predict"),
    "Models": ("models", "info", "convert", "benchmark"),
    "Upstream": ("pretrain", "distill", "shard"),
    "Try it": ("demo",),
}
"""Every command, as the help shows them. `predict` is `config/predict.py` and `jobs/predict.py`, and so on; those of two words are together
in `config/detect.py` and apart in `jobs/detect/`."""

_START = """\
Getting started:
  bit demo                                    see it work, offline, within minutes
  bit finetune photos/ --budget 10m           photos/ holds one folder of images per class
  bit predict runs/photos new/                what is on new images
"""


def commands() -> list[str]:
    """Every command, in the order of the help."""
    return [command for group in GROUPS.values() for command in group]


def console() -> NoReturn:
    """The command `bit`: `main`, and the end of the process."""
    machine.began = time.monotonic()  # what is loaded from here on is a part of a --budget
    terminal.reopen()
    if not sys.warnoptions and not _debug(sys.argv):
        # Libraries' remarks to programmers, here and in the processes that are started.
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    terminal.guard()  # also for what is printed after `main`
    status = main()
    try:
        sys.stdout.flush()
    except OSError:  # told already; a second failure while Python ends would print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    dist = sys.modules.get("bigtransfer.dist")  # which takes a second to import
    if dist is not None and dist.joined:
        dist.leave(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bit` with these arguments (default: the process's own) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    quiet, verbose = (flag in arguments for flag in ("--quiet", "--verbose"))
    command, _ = command_of([argument for argument in arguments if not argument.startswith("-")])
    # Of some commands the results are files; of the others what is printed is the result.
    silent = (
        quiet
        and command in ("finetune", "detect finetune", "pretrain", "distill", "shard", "demo")
        and "--help" not in arguments
    )
    with terminal.guarded(quiet=quiet, silent=silent), _told(verbose):
        return _guarded(arguments, _debug(arguments))


@contextlib.contextmanager
def _told(verbose: bool) -> Iterator[None]:
    """Within, what the package has to say is on standard error too, each line with its time, and in the end what it cost."""
    if not verbose:
        yield
        return
    handler = logging.StreamHandler()  # the guarded one
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    log, began, spent = logging.getLogger("bigtransfer"), time.monotonic(), time.process_time()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
        log.info(
            "%.1f s, the processor %.1f s%s",
            time.monotonic() - began,
            time.process_time() - spent,
            machine.most_memory(),
        )
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _debug(arguments: Sequence[str]) -> bool:
    """Whether errors are to be shown with their tracebacks."""
    return "--debug" in arguments or os.environ.get("BIT_DEBUG", "") not in ("", "0")


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        general = ("--debug", "--quiet", "--verbose")
        if all(flag in arguments for flag in general[1:]):
            raise ConfigError("--quiet and --verbose contradict each other.")
        arguments, asked = without_limits([argument for argument in arguments if argument not in general])
        if asked:  # put where this process and those that it starts look for it
            os.environ[limits.VARIABLE] = ",".join(filter(None, (os.environ.get(limits.VARIABLE), asked)))
        limits.limits()  # a mistake in the variable is said before anything is done
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except BitError as error:
        if debug:
            raise
        agent = None if passing(error) else torchrun.agent()
        if agent is not None:
            torchrun.end_job(agent, f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if debug:
            raise
        print(": ".join(filter(None, ("interrupted", str(error)))), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (`| head`) has left
        return 141
    except OSError as error:
        # What no job foresees: a disk that is full, a folder that was taken away.
        if debug:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {where}{error.strerror or error}. --debug shows where it happened.", file=sys.stderr)
        return 2


def without_limits(arguments: Sequence[str]) -> tuple[list[str], str]:
    """The arguments but for every `--limits`, and what those say; ConfigError if that makes no sense."""
    rest, asked = [], []
    following = iter(arguments)
    for argument in following:
        flag, equals, value = argument.partition("=")
        if flag != "--limits":
            rest.append(argument)
        elif (value := value if equals else next(following, "")) and limits.parse(value):
            asked.append(value)
        else:
            raise ConfigError("--limits needs a value, such as --limits record_bytes=500M.")
    return rest, ",".join(asked)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if len(arguments) > 1 and arguments[0] == "help":
            return _run([*arguments[1:], "--help"])
        print(_overview(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"bit {__version__}")
        return 0
    if arguments[0] == "--completion":
        print(_completion(arguments[1:]), end="")
        return 0
    command, rest = command_of(arguments)
    if command not in commands():
        if inner := _below(command):
            if {"-h", "--help"} & set(rest):
                print("\n".join(_listed(inner)))
                return 0
            raise ConfigError(f"`bit {command}` needs one of {', '.join(inner)} after it, such as bit {inner[0]} ...")
        raise ConfigError(
            f"There is no command {command!r}.{_suggestion(command, commands())} `bit --help` lists them."
        )
    if "-h" in rest or "--help" in rest:
        print(_explanation(command), end="")
        return 0
    asked = parse(command, rest)
    _log.info("bit %s %s, version %s", command, asked, __version__)
    return _job(command).run(asked) or 0


def command_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, that arguments begin with, and the rest; ("", []) of none. What is no command is its first word."""
    if _below("".join(arguments[:1])) and " ".join(arguments[:2]) in commands():
        return " ".join(arguments[:2]), list(arguments[2:])
    return "".join(arguments[:1]), list(arguments[1:])


def _below(word: str) -> list[str]:
    """The commands of two words whose first is this."""
    return [command for command in commands() if command.startswith(f"{word} ")]


EVERYWHERE = ("--help", "--quiet", "--verbose", "--debug", "--limits")
"""Flags that every command takes."""


def _completion(asked: Sequence[str]) -> str:
    """The text of `bit --completion SHELL`."""
    from bigtransfer import completion

    if len(asked) != 1 or asked[0] not in completion.SHELLS:
        raise ConfigError(f"--completion needs the name of your shell: {', '.join(completion.SHELLS)}.")
    return completion.script(asked[0], {name: _doc(config.of_command(name))[0] for name in commands()}, EVERYWHERE)


def _job(command: str) -> Any:
    """The module that does a command; Ctrl-C while it loads ends the process at once.

    NumPy and torch go on with an import that KeyboardInterrupt cut short, and break later.
    """
    module = f"bigtransfer.jobs.{command.replace(' ', '.')}"
    if threading.current_thread() is not threading.main_thread():
        return importlib.import_module(module)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, before)


def parse(command: str, arguments: Sequence[str]) -> config.Config:
    """The configuration that these arguments ask for; ConfigError if they are wrong."""
    chosen = config.of_command(command)
    parser = _Parser(prog=f"bit {command}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    fields = config.fields_of(chosen)
    for field in fields:
        _add(parser, field)
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ConfigError(f"`bit {command}` has no use for {flag!r}. `bit {command} --help` shows what it takes.")
        flags = [field.flag for field in fields if not field.positional]
        flags += [field.flag.replace("--", "--no-", 1) for field in fields if field.type is bool]
        raise ConfigError(
            f"`bit {command}` has no flag {flag}.{_suggestion(flag, flags)} `bit {command} --help` lists them."
        )
    for field in fields:
        given = getattr(values, field.name, None)
        if field.positional and "" in (given if field.several and given is not None else (given,)):
            raise ConfigError(
                f"{field.name.upper()} of `bit {command}` is an empty text. Is it a variable of the shell that is not set?"
            )
    return chosen(**vars(values))


class _Parser(argparse.ArgumentParser):
    """argparse, except that its complaints are ConfigErrors like all others, and that what begins like a negative number is a value: our
    check of `--budget -5m` says more than "expected one argument"."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` explains the arguments.")


def _add(parser: argparse.ArgumentParser, field: config.Field) -> None:
    """One field as an argparse argument. The configuration class itself knows the defaults and checks the values."""
    required = field.default is dataclasses.MISSING
    options: dict[str, Any] = {}
    if field.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = _reader(field.type)
        options["metavar"] = field.flag
        if field.several:
            options["nargs"] = "*" if field.positional and not required else "+"
        elif field.positional and not required:
            options["nargs"] = "?"
    if field.positional:
        parser.add_argument(field.name, **options)
    else:
        parser.add_argument(field.flag, dest=field.name, required=required, **options)


def _reader(type_: Any) -> Any:
    def read(text: str) -> Any:
        try:
            return type_(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"invalid {_TYPES[type_]} value: {shortened(text)}") from error

    return read


_TYPES: dict[Any, str] = {int: "whole number", float: "number"}


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _overview() -> str:
    """The text of `bit --help`."""
    lines = ["usage: bit COMMAND ...     (`bit COMMAND --help` explains a command; bit --version)", ""]
    lines += ["Big Transfer: pre-trained image classifiers, fine-tuned on your images by one rule.", "", _START]
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        lines += _listed(names)
        lines.append("")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> list[str]:
    """A line for each command: its name and its summary."""
    width = max(10, *map(len, names))
    return [f"  {name:<{width}} {_doc(config.of_command(name))[0]}" for name in names]


def _explanation(command: str) -> str:
    """The text of `bit COMMAND --help`."""
    chosen = config.of_command(command)
    width = min(shutil.get_terminal_size().columns, 110)
    fields = config.fields_of(chosen)
    usage = " ".join(_shown(field) for field in fields if field.positional)
    lines = [f"usage: bit {command} {usage} [FLAGS]".replace("  ", " ")]
    for paragraph in _doc(chosen):
        lines += ["", paragraph if paragraph.startswith(" ") else _fill(paragraph, width)]
    # Groups in the order of their first field; arguments and flags without a title come first.
    groups: dict[str, list[config.Field]] = {}
    for field in fields:
        groups.setdefault("Arguments" if field.positional else field.group or "Flags", []).append(field)
    for title, members in groups.items():
        lines += ["", f"{title}:"]
        for field in members:
            lines += _entry(_shown(field), _help(field), width)
    lines += ["", "Also: --quiet shows no progress and tells no story; --verbose tells more, and what it cost;"]
    lines += ["      --debug shows the traceback of an error (or set BIT_DEBUG=1);"]
    lines += ["      --limits NAME=N,... raises what one file may cost (docs/limits.md)."]
    return "\n".join(lines) + "\n"


def _doc(chosen: type[config.Config]) -> list[str]:
    """The paragraphs of a configuration's docstring; the first is the command's summary."""
    return (inspect.getdoc(chosen) or "").split("\n\n")


def _shown(field: config.Field) -> str:
    """An argument as the help names it: "DATA", "FILES...", "--steps N", "--variant code|paper", "--[no-]flip"."""
    if field.positional:
        shown = field.flag + ("..." if field.several else "")
        return shown if field.default is dataclasses.MISSING else f"[{shown}]"
    if field.type is bool:
        return field.flag if field.default is False else field.flag.replace("--", "--[no-]", 1)
    if field.choices is not None:
        value = "|".join(map(str, field.choices))
    elif field.metavar is not None:
        value = field.metavar
    else:
        value = {int: "N", float: "X"}.get(field.type, field.name.rpartition("_")[2].upper())  # pyright: ignore
    return f"{field.flag} {value}" + (" ..." if field.several else "")


def _help(field: config.Field) -> str:
    if field.default in (None, dataclasses.MISSING, (), ""):
        return field.help  # it says itself what happens if nothing is given
    if field.type is bool:
        return f"{field.help} (default: on)" if field.default else field.help
    default = " ".join(map(str, field.default)) if field.several else field.default
    return f"{field.help} (default: {default})"


def _entry(name: str, text: str, width: int) -> list[str]:
    """One argument and its explanation in two columns."""
    column = 30
    body = _fill(text, width - column).splitlines()
    first = f"  {name}"
    if len(first) + 2 > column:
        return [first, *(" " * column + line for line in body)]
    return [first.ljust(column) + body[0], *(" " * column + line for line in body[1:])] if body else [first]


def _fill(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), max(width, 30), break_on_hyphens=False, break_long_words=False)
