"""What a configuration is made of: fields with their types, checks, defaults and help, read off the class that states them.

The command line (`cli`) and the Python API (`bigtransfer.finetune(...)`) are both made from these classes:

    field name           `learning_rate` is the flag `--learning-rate`; a `Positional` field is an argument
    annotation           str, int, float, bool (`--flag` / `--no-flag`), Literal (choices), `X | None` (None: not given),
                         tuple[X, ...] (several values), and the checked types below, such as `PositiveInt`
    string below it      the help text
    `# --- Title` above  starts a group of flags in the help
    `check(self)`        what must hold between fields; raises ConfigError naming the flags
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard, TypeVar

from bigtransfer.errors import ConfigError
from bigtransfer.limits import limits

T = TypeVar("T")

_POSITIONAL = "positional"
Positional = Annotated[T, _POSITIONAL]
"""A field that is given by its place on the command line instead of by a flag."""


@dataclass(frozen=True)
class Must:
    """A check that travels with a type: the end of the sentence "--flag must be ...", its test, and how the value is shown in the help."""

    be: str
    test: Callable[[Any], bool]
    metavar: str | None = None


def seconds(text: str) -> float:
    """Seconds in a span of time such as "90s", "10m", "1.5h" or "1h30m"; ConfigError if `text` is no such span."""
    if not re.fullmatch(_SPAN, text.strip()):
        raise ConfigError(f"{text!r} is not a span of time. Write it like 90s, 10m, 1.5h or 1h30m.")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = r"(\d+(\.\d+)?[smhd])+"

LARGEST = 10**9
"""Of the numbers that have no smaller limit: nothing that is meant is above it."""


def _at_most(limit: int) -> Must:
    return Must(f"at most {limit:,}", lambda value: value <= limit)


_PIXELS = Must(
    "at most {limit:,} px (raise the limit if it is meant: --limits input_side=N)",
    lambda value: value <= limits().input_side,
)

PositiveInt = Annotated[int, Must("1 or more", lambda value: value >= 1), _at_most(LARGEST)]
Count = Annotated[int, Must("0 or more", lambda value: value >= 0), _at_most(LARGEST)]
Seed = Annotated[int, Must("0 or more", lambda value: value >= 0), _at_most(2**63 - 1)]
Batch = Annotated[int, Must("1 or more", lambda value: value >= 1), _at_most(2**20)]
Side = Annotated[int, Must("1 or more", lambda value: value >= 1), _PIXELS]
"""Height and width of a network's input, px."""
Threads = Annotated[int, Must("1 or more", lambda value: value >= 1), _at_most(1024)]
Workers = Annotated[int, Must("0 or more", lambda value: value >= 0), _at_most(1024)]
Positive = Annotated[float, Must("more than 0", lambda value: value > 0), _at_most(LARGEST)]
NotNegative = Annotated[float, Must("0 or more", lambda value: value >= 0), _at_most(LARGEST)]
Share = Annotated[float, Must("0 or more and less than 1", lambda value: 0 <= value < 1)]
Folder = Annotated[
    str, Must('the name of a folder, which "-" and "" are not (./- is)', lambda value: value not in ("", "-"), "FOLDER")
]
"""Where several files will be written."""
Span = Annotated[
    str,
    Must("a span of time such as 90s, 10m or 1h30m", lambda value: bool(re.fullmatch(_SPAN, value.strip())), "TIME"),
    Must("10,000 days at most", lambda value: seconds(value) <= 10_000 * _UNITS["d"]),
]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One knob of a job, as the command line needs it."""

    name: str
    type: Callable[[str], Any]
    """str, int, float or bool: of the value, or of each value if `several`."""
    default: Any
    """`dataclasses.MISSING` if the value must be given."""
    help: str
    group: str | None
    positional: bool
    several: bool
    optional: bool
    """None is a legal value: nothing was asked."""
    choices: tuple[Any, ...] | None
    musts: tuple[Must, ...]

    @property
    def metavar(self) -> str | None:
        """How the type wants its values shown in the help."""
        return next((must.metavar for must in self.musts if must.metavar is not None), None)

    @property
    def flag(self) -> str:
        """What a user types: "--learning-rate", or "DATA" for a positional."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    def accept(self, value: Any) -> Any:
        """`value` in the field's type (paths become str, lists tuples, int float, NumPy's scalars Python's); ConfigError if it does not
        fit."""
        if value is None and self.optional:
            return None
        if not self.several:
            return self._accept_one(value)
        if not isinstance(value, (tuple, list)):
            value = tuple(value) if _of_numpy(value) and value.ndim == 1 else (value,)
        return tuple(self._accept_one(one) for one in value)

    def _accept_one(self, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fsdecode(value)
        if _of_numpy(value) and value.ndim == 0:
            value = value.item()
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                raise ConfigError(f"{self.flag} must be a finite number, not {shortened(value)}.") from None
        if self.choices is not None:
            if type(value) is not self.type or value not in self.choices:
                raise ConfigError(
                    f"{self.flag} must be one of {', '.join(map(str, self.choices))}, not {shortened(value)}."
                )
        elif type(value) is not self.type:
            raise ConfigError(f"{self.flag} must be {_NAMES[self.type]}, not {shortened(value)}.")
        for must in self.musts:
            if not must.test(value):
                be = must.be.format(limit=limits().input_side)
                raise ConfigError(f"{self.flag} must be {be}, not {shortened(value)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.flag} must be a finite number, not {value}.")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{self.flag} must be text without NUL characters, not {shortened(value)}.")
        return value


def _of_numpy(value: Any) -> TypeGuard[Any]:
    return type(value).__module__ == "numpy" and hasattr(value, "ndim")


def shortened(value: Any) -> str:
    """`value` as Python writes it, its middle left out if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a number of {value.bit_length():,} bits"
    return text if len(text) <= 200 else f"{text[:100]}...{text[-50:]}"


_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


class Config:
    """Base of the configurations: on creation every value is brought to its field's type and checked."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            object.__setattr__(self, field.name, field.accept(getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raise ConfigError, naming the flags, where fields contradict each other."""


def fields_of(config_class: type) -> list[Field]:
    """The fields of a configuration class in the order of its source, with help texts and groups read from there."""
    notes = _notes(config_class)
    hints = typing.get_type_hints(config_class, include_extras=True)
    return [
        Field(name=field.name, default=field.default, **_unfold(hints[field.name]), **notes[field.name])
        for field in dataclasses.fields(config_class)
    ]


def _unfold(hint: Any) -> dict[str, Any]:
    """What an annotation says: its parts Positional, Must, None, tuple and Literal, from the outside in."""
    found: dict[str, Any] = {"positional": False, "several": False, "optional": False, "choices": None, "musts": ()}
    while True:
        origin = typing.get_origin(hint)
        if origin is Annotated:
            for extra in hint.__metadata__:
                if extra == _POSITIONAL:
                    found["positional"] = True
                elif isinstance(extra, Must):
                    found["musts"] = (*found["musts"], extra)
            hint = hint.__origin__
        elif origin in (typing.Union, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            found["optional"] = True
        elif origin is tuple:
            hint = typing.get_args(hint)[0]
            found["several"] = True
        elif origin is Literal:
            found["choices"] = typing.get_args(hint)
            hint = type(found["choices"][0])
        else:
            return {**found, "type": hint}


def _notes(config_class: type) -> dict[str, dict[str, Any]]:
    """Field name -> its help (the string below it) and group (the nearest `# --- Title` above it)."""
    notes: dict[str, dict[str, Any]] = {}
    for owner in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = source.splitlines()
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            titles = (re.fullmatch(r"\s*# --- (.+)", line) for line in reversed(lines[: statement.lineno]))
            group = next((title.group(1) for title in titles if title), None)
            notes[statement.target.id] = {"help": text, "group": group}
    return notes


def forbid(config: Any, names: tuple[str, ...], why: str) -> None:
    """ConfigError if any of the fields `names` was given another value than its default."""
    for field in fields_of(type(config)):
        if field.name in names and getattr(config, field.name) != field.default:
            raise ConfigError(f"{field.flag} {why}.")
