"""What a command shows: text that others chose (names of files and classes, fields of cards, servers' answers) made harmless on its way to
a terminal, a table, a spreadsheet or JSON, in whatever encoding the streams have.

`guarded` wraps the standard streams once, for everything that is printed; the functions below are for what is laid out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed: a terminal obeys them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # break lines or cannot be seen
    "\ud800-\udfff]"  # parts of no character: a file name that is not UTF-8
)
_FORMULA = re.compile("[=+\\-@\t\r\uff1d\uff0b\uff0d\uff20]")  # also their full-width forms
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    r"""`text` with characters that a terminal would obey, or that cannot be seen, as escapes such as \x1b and \u202e."""
    return _HIDDEN.sub(_escape, text)


def line(text: str) -> str:
    r"""`visible` text that also cannot break a line or a column: \n and \t are escapes too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def fitted(text: str, most: int = 60) -> str:
    """`text` as a `line` of at most `most` characters (30 or more): of a longer one its beginning, its end and six digits that tell it from
    others with the same."""
    text = line(text)
    if len(text) <= most:
        return text
    digits = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    end = (most - 10) // 3
    return f"{text[: most - 11 - end]}...{text[-end:]} #{digits}"


def cell(text: str) -> str:
    """A `line` for a cell of a CSV file: an apostrophe before what a spreadsheet would take for a formula, and before what would else look
    like that (`uncell`). Numbers stay numbers."""
    formula = _FORMULA.match(text.lstrip("'")) and not _NUMBER.fullmatch(text)
    return ("'" if formula else "") + line(text)


def uncell(text: str) -> str:
    """What `cell` made a cell of, but for the escapes of a `line`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text.lstrip("'")) else text


def utf8(text: str) -> str:
    """`text` as UTF-8 can hold it: parts of no character, as in file names of other encodings, as escapes."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)


def json_line(value: Any, stream: TextIO | None = None, *, indent: int | None = None) -> str:
    """`value` as JSON that means exactly what `value` is: what is hidden, or what `stream` cannot encode, as JSON's escapes."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-")
    text = json.dumps(value, indent=indent, ensure_ascii=not encoding.startswith("utf"))
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text) if encoding.startswith("utf") else text


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\r":
        return "\\r"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


# --- The standard streams

OUTPUT = "standard output"
ERROR = "standard error"


def guard() -> None:
    """From now on, whatever is printed to standard output and error is `visible` and in the stream's encoding, with escapes for what that
    lacks; a stream that is closed swallows it; and a failure to write to standard output is an OSError with its name as file name."""
    sys.stdout, sys.stderr = _Guard.of(sys.stdout, OUTPUT), _Guard.of(sys.stderr, ERROR)


@contextlib.contextmanager
def guarded(*, quiet: bool = False, silent: bool = False) -> Iterator[None]:
    """`guard`, within. quiet: progress bars are swallowed; silent: standard output is."""
    before = sys.stdout, sys.stderr
    guard()
    output, error = cast(_Guard, sys.stdout), cast(_Guard, sys.stderr)
    output.silent, error.quiet = silent, quiet
    try:
        yield
    finally:
        output.silent = error.quiet = False
        sys.stdout, sys.stderr = before


class _Guard:
    """A text stream that lets nothing harmful through to another one."""

    def __init__(self, inner: TextIO, name: str) -> None:
        self._inner = inner
        self._name = name
        self._terminal = inner.isatty()
        self.silent = False
        """Nothing gets through."""
        self.quiet = False
        """Progress bars do not get through."""
        self._swallowed = False
        """Nothing else has been written since the last progress bar was."""

    @classmethod
    def of(cls, inner: Any, name: str) -> Any:
        """`inner` guarded, which may be None, as a closed stream is, or guarded already."""
        if isinstance(inner, cls):
            return inner
        return cls(open(os.devnull, "w", encoding="utf-8") if inner is None else inner, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, text: str) -> int:
        # A bar returns to the line's start before each of its states, and ends the line in the end.
        self._swallowed = self.quiet and (text.startswith("\r") or (self._swallowed and text in ("", "\n")))
        if self.silent or self._swallowed:
            return len(text)
        with self._failing():
            self._inner.write(self._harmless(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for each in lines:
            self.write(each)

    def flush(self) -> None:
        with self._failing():
            self._inner.flush()

    def _harmless(self, text: str) -> str:
        shown = visible(text)
        if shown != text and self._name == ERROR and (bar := _PROGRESS.match(text)):
            shown = bar[0] + visible(text[bar.end() :])
        encoding = getattr(self._inner, "encoding", None) or "utf-8"
        return shown.encode(encoding, "backslashreplace").decode(encoding)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self._name == OUTPUT:
                raise
        except OSError as error:
            gone = self._terminal and error.errno == errno.EIO  # with the connection; there is still something to save
            if self._name == OUTPUT and not gone:
                raise OSError(error.errno, error.strerror, self._name) from error
            # Nobody can be told that nobody can be told.


_PROGRESS = re.compile("\r|(?:\n|\x1b\\[A)+$")
"""How a progress bar begins what it writes: it returns to the line's start, or goes some lines up or down."""


def reopen() -> None:
    """Put the null device in the place of standard streams that are closed, before other files get their numbers.

    Libraries and child processes write to 1 and 2 whatever they are.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
