"""The command `bit`: command name -> configuration class -> `jobs.<name>.run(config)`.

Nothing heavy is imported before a job runs, so that help answers at once. Exit status: 0 done, 1 the job failed by its own
account, 2 the user can fix it (printed as `error: ...`), 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bigtransfer import __version__, config
from bigtransfer.errors import BitError, ConfigError

GROUPS: dict[str, tuple[str, ...]] = {
    "Your images": ("finetune", "evaluate", "predict", "report"),
    "Models": ("models", "info", "convert", "pretrain"),
    "Try it": ("demo",),
}
"""Every command, as the help shows them. `finetune` is `config.FinetuneConfig` and `jobs/finetune.py`, and so on."""

_START = """\
Getting started:
  bit demo                                    see it work, offline, within minutes
  bit finetune photos/ --budget 10m           photos/ holds one folder of images per class
  bit predict runs/photos-bit-t-r26x1 new/    what is on new images
"""


def config_class(command: str) -> type[config.Config] | None:
    """The configuration class of a command; None if there is no such command."""
    return getattr(config, f"{command.capitalize()}Config", None)


def commands() -> list[str]:
    """Every command, in the order of the help."""
    return [command for group in GROUPS.values() for command in group if config_class(command) is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bit` with these arguments (default: the process's own) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("BIT_DEBUG", "") not in ("", "0")
    try:
        status = _run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
        return status
    except BitError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has left; a second failure while Python flushes at exit would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if len(arguments) > 1 and arguments[0] == "help":
            return _run([arguments[1], "--help"])
        print(_overview(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"bit {__version__}")
        return 0
    command, *rest = arguments
    if command not in commands():
        raise ConfigError(f"There is no command {command!r}.{_suggestion(command, commands())} `bit --help` lists them.")
    try:
        asked = parse(command, rest)
    except SystemExit as exit:  # argparse has printed the help
        return int(exit.code or 0)
    return importlib.import_module(f"bigtransfer.jobs.{command}").run(asked) or 0


def parse(command: str, arguments: Sequence[str]) -> config.Config:
    """The configuration that these arguments ask for; ConfigError if they are wrong, SystemExit after --help."""
    chosen = config_class(command)
    assert chosen is not None, command
    fields = config.fields_of(chosen)
    parser = _parser(command, chosen, fields)
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ConfigError(f"`bit {command}` has no use for {flag!r}. `bit {command} --help` shows what it takes.")
        flags = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(f"`bit {command}` has no flag {flag}.{_suggestion(flag, flags)} `bit {command} --help` lists them.")
    return chosen(**vars(values))


class _Parser(argparse.ArgumentParser):
    """argparse, except that its complaints are ConfigErrors like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` explains the arguments.")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def _parser(command: str, chosen: type[config.Config], fields: list[config.Field]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"bit {command}",
        description=inspect.getdoc(chosen),
        formatter_class=_Help,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str | None, Any] = {None: parser}
    for field in fields:
        if field.group not in groups:
            groups[field.group] = parser.add_argument_group(field.group)
        _add(groups[field.group], field)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error (also BIT_DEBUG=1).")
    return parser


def _add(group: Any, field: config.Field) -> None:
    """One field as an argparse argument. The configuration class itself knows the defaults and checks the values."""
    options: dict[str, Any] = {"help": _help(field)}
    required = field.default is dataclasses.MISSING
    if field.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = _reader(field.type)
        if field.choices is not None:
            options["choices"] = field.choices
        else:
            options["metavar"] = _metavar(field)
        if field.several:
            options["nargs"] = "+" if required or not field.positional else "*"
        elif field.positional and not required:
            options["nargs"] = "?"
    if not field.positional:
        group.add_argument(field.flag, dest=field.name, required=required, **options)
    else:
        group.add_argument(field.name, **options)


def _reader(type_: Any) -> Any:
    def read(text: str) -> Any:
        return type_(text)

    # argparse names the function in "invalid ... value".
    read.__name__ = {int: "whole number", float: "number"}.get(type_, "text")
    return read


def _metavar(field: config.Field) -> str:
    if field.must is not None and field.must.metavar is not None:
        return field.must.metavar
    if field.positional:
        return field.name.upper()
    return {int: "N", float: "X"}.get(field.type, field.name.rpartition("_")[2].upper())  # pyright: ignore


def _help(field: config.Field) -> str:
    text = " ".join(field.help.split())
    if field.default not in (None, dataclasses.MISSING, ()):
        shown = {True: "on", False: "off"}[field.default] if field.type is bool else field.default
        text += f" (default: {shown})"
    return text.replace("%", "%%")


def _suggestion(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _overview() -> str:
    lines = ["usage: bit COMMAND [ARGUMENTS]   (bit COMMAND --help explains one, bit --version)", ""]
    lines += ["Big Transfer: fine-tune pre-trained image classifiers by one rule.", "", _START]
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        for name in names:
            chosen = config_class(name)
            if chosen is not None:
                lines.append(f"  {name:<10} {(inspect.getdoc(chosen) or '').splitlines()[0]}")
        lines.append("")
    return "\n".join(lines)
