"""The door for JSON that somebody else may have written: read once, checked against the type that states its form, trusted inside.

A form is a dataclass, or a type made of dict, list, tuple, Literal, unions and `Annotated[..., msgspec.Meta(ge=1)]`: whatever `msgspec`
validates. Fields that a form does not know are ignored, so that files of newer versions stay readable.
"""

from __future__ import annotations

import json
import os
import re
from typing import Annotated, Any, TypeVar

import msgspec

from bigtransfer import files
from bigtransfer.errors import BitError
from bigtransfer.limits import limits

T = TypeVar("T")

Whole = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
"""Numbers in a record that are counted with; larger ones are none of ours."""
Natural = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


def whole(text: str) -> int | None:
    """A number of at most twelve decimal digits, as lists and tables write labels; None if the text is anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def read(path: str | os.PathLike[str], form: type[T], error: type[BitError]) -> T:
    """The record in the JSON file `path`.

    Raises FileNotFoundError where there is no such file, and `error`, naming the file and the field, where it cannot be read, is no
    JSON, or has not the form.
    """
    try:
        content = files.read(path, "record_bytes")
    except (FileNotFoundError, NotADirectoryError) as failed:
        raise FileNotFoundError(str(path)) from failed
    except OSError as failed:
        raise error(f"Cannot read {path}: {failed.strerror}.") from failed
    return decode(content, form, str(path), error)


def decoded(path: str | os.PathLike[str], form: type[T], error: type[BitError]) -> T:
    """The record in a JSON file as large as a table (`limits.table_bytes`), of which only what the form names is ever made: `error`, naming
    the file and the field, where it cannot be read or has not the form. NaN and Infinity, which JSON does not know, are refused."""
    try:
        return msgspec.json.decode(files.read(path, "table_bytes"), type=form, strict=True)
    except OSError as failed:
        raise error(f"Cannot read {path}: {failed.strerror}.") from failed
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failed:
        raise error(f"{path}: {_in_words(str(failed))}.") from failed


def lines(path: str | os.PathLike[str], error: type[BitError]) -> list[bytes]:
    """The lines of a file of JSON lines, as they are; `error` where it cannot be read, as where there is none."""
    try:
        return files.read(path, "record_bytes").splitlines()
    except FileNotFoundError as failed:
        raise error(f"There is no file {path}.") from failed
    except OSError as failed:
        raise error(f"Cannot read {path}: {failed.strerror}.") from failed


def decode(content: str | bytes, form: type[T], where: str, error: type[BitError]) -> T:
    """The record in JSON text (bytes: UTF-8); `error`, which begins with `where` and names the field, if it has not the form.

    Infinity and NaN are read, as Python writes them.
    """
    return convert(parse(content, where, error), form, where, error)


def parse(content: str | bytes, where: str, error: type[BitError]) -> Any:
    """JSON text (bytes: UTF-8) as Python values of any form; `error`, which begins with `where`, if it is not JSON."""
    if len(content) > limits().record_bytes:
        raise error(
            f"{where} has more than {limits().record_bytes:,} bytes, too many for a record. If it is meant, raise the limit: "
            "--limits record_bytes=N."
        )
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_once, parse_int=_number)
    except UnicodeDecodeError as failed:
        raise error(f"{where} is not UTF-8 text ({failed.reason} at byte {failed.start}).") from failed
    except RecursionError as failed:
        raise error(f"{where} is nested too deeply.") from failed
    except _Twice as failed:
        raise error(f"{where} has {failed} twice in one object, and which of the two is meant is unknown.") from failed
    except _Long as failed:
        raise error(f"{where} has a number of {failed} digits.") from failed
    except ValueError as failed:
        raise error(f"{where} is not JSON: {failed}.") from failed


class _Long(ValueError):
    """A whole number with more digits than any that is meant has."""


def _number(text: str) -> int:
    if len(text) > 400:  # the largest float has 309
        raise _Long(f"{len(text):,}")
    return int(text)


class _Twice(ValueError):
    """A key that stands in one JSON object more than once, of which some programs read the first and some the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(repr(key)[:100])
        found[key] = value
    return found


def convert(value: Any, form: type[T], where: str, error: type[BitError]) -> T:
    """`value`, made of dicts, lists, text and numbers, as a `form`; `error`, which begins with `where` and names the field, otherwise."""
    try:
        try:
            return msgspec.convert(value, form, strict=True)
        except UnicodeEncodeError as failed:
            # A lone surrogate in a key, or in text where something else should stand. Without it msgspec can say where.
            text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            msgspec.convert(json.loads(text), form, strict=True)
            raise error(f"{where}: {failed.object!r} is not text.") from failed
    except msgspec.ValidationError as failed:
        raise error(f"{where}: {_in_words(str(failed))}.") from failed
    except RecursionError as failed:
        raise error(f"{where} is nested too deeply.") from failed


def _in_words(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.input.size`" with the field first: "input.size: expected int, got str"."""
    what, _, place = message.partition(" - at ")
    what = what.replace("`", "")
    field = place.strip("`").removeprefix("$").removeprefix(".")
    what = re.sub(r"^[A-Z](?=[a-z])", lambda first: first[0].lower(), what)
    return f"{field}: {what}" if field else what
