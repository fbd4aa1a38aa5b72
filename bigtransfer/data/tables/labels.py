"""What the values of a label column mean: which of them are one class, which are numbers, which say nothing, which say several things.

All of it is decided on the distinct values of a column, of which there are few; rows are only looked up for messages.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from bigtransfer.data.layout import Label, listed, quoted
from bigtransfer.errors import DataError

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u206a-\u206f\ufeff"
)
"""Characters without width, as a range of a regular expression."""
_AROUND = re.compile(rf"\A[\s{_INVISIBLE}]+|[\s{_INVISIBLE}]+\Z")
_INSIDE = re.compile(rf"[{_INVISIBLE}]+")
_NOTHING = frozenset({"", "nan", "<na>", "nat", "#n/a"})
"""How programs write a cell without a value, in lower case."""
_NOTHING_PERHAPS = frozenset({"none", "null", "na", "n/a", "unknown", "?", "-"})
"""What may be the name of a class or mean that there is none, in lower case."""
_LONGEST = 500
"""Characters of a class's name."""
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Encoded:
    """A column by its distinct values."""

    values: Sequence[Any]
    codes: np.ndarray
    """Integers (m,) into `values`; -1: nothing. One for each row, or those of all rows' lists one after another."""
    counts: np.ndarray | None = None
    """int (rows,): how long each row's list is; None where rows have single values."""

    def first_row(self, code: int) -> int:
        """The first row with that value."""
        at = int(np.flatnonzero(self.codes == code)[0])
        return at if self.counts is None else int(np.searchsorted(np.cumsum(self.counts), at, side="right"))


def join(columns: Sequence[Encoded]) -> Encoded:
    """One column under another."""
    if len(columns) == 1:
        return columns[0]
    number: dict[Any, int] = {}
    codes = []
    for column in columns:
        # 1, 1.0 and True are one key of a dict, and "1" is another: as `classes` takes them.
        known = np.array([number.setdefault(value, len(number)) for value in column.values] + [-1], dtype=np.int64)
        codes.append(known[column.codes])
    counts = None
    if any(column.counts is not None for column in columns):
        ones = [np.ones(len(column.codes), np.int64) if column.counts is None else column.counts for column in columns]
        counts = np.concatenate(ones)
    return Encoded(list(number), np.concatenate(codes), counts)


@dataclass(frozen=True)
class Classes:
    """What the distinct values of a column mean."""

    names: Sequence[Label]
    codes: np.ndarray
    """As of `Encoded`, into `names`."""
    counts: np.ndarray | None
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> np.ndarray:
        """int (rows + 1,): row i has the codes from `ends[i]` to `ends[i + 1]`."""
        return np.arange(len(self.codes) + 1) if self.counts is None else np.concatenate([[0], np.cumsum(self.counts)])

    def of(self, row: int) -> list[str]:
        """The names of a row's classes, sorted."""
        ends = self.ends
        return sorted({str(self.names[code]) for code in self.codes[ends[row] : ends[row + 1]].tolist() if code >= 0})


def bare(text: str) -> str:
    """`text` without blanks and invisible characters around it, its letters composed (Unicode's NFC): what a person sees in it."""
    if text.isascii():
        return text.strip()
    return unicodedata.normalize("NFC", _AROUND.sub("", text))


def encode(column: Sequence[Any], place: Callable[[int], str]) -> Encoded:
    """A column of Python values, or of lists of these; DataError, which names the row, for values that are no labels."""
    codes_of: dict[Any, int] = {}
    if any(isinstance(value, (list, tuple)) for value in column):
        rows = [value if isinstance(value, (list, tuple)) else [] if value is None else [value] for value in column]
        counts = np.array([len(row) for row in rows], dtype=np.int64)
    else:
        rows, counts = None, None
    codes = []
    for number, row in enumerate(column if rows is None else rows):
        for value in (row,) if rows is None else row:
            try:
                codes.append(-1 if value is None or value != value else codes_of.setdefault(value, len(codes_of)))
            except TypeError as error:
                raise DataError(
                    f"{place(number)}: the label {quoted(value)} is neither a word nor a number."
                ) from error
    return Encoded(list(codes_of), np.array(codes, dtype=np.int64), counts)


def classes(
    column: Encoded, where: str, place: Callable[[int], str], separator: str | None, declared: Sequence[str] | None
) -> Classes:
    """The classes that a column's values name; a row has several if `separator` is given, or if it holds lists.

    where: the column, in messages. declared: the classes by number, where the data declare them; -1 is then no class.
    Raises DataError, which names a row, for values that cannot be classes, and for combinations of classes that look like several
    labels of one image.
    """

    def refuse(code: int, reason: str) -> DataError:
        return DataError(f"{where}, {place(column.first_row(code))}: the label {quoted(column.values[code])} {reason}")

    notes = _alike(column.values, where) if declared is None and separator is None else ()
    plain = [_plain(value, code, refuse) for code, value in enumerate(column.values)]
    weights = np.bincount(column.codes[column.codes >= 0], minlength=len(plain))
    if separator is not None and (declared is not None or column.counts is not None):
        raise DataError(
            f"{where} holds lists or numbers of classes, which --label-separator cannot separate. Leave it out."
        )
    if declared is not None:
        named = [_declared(value, code, declared, refuse) for code, value in enumerate(plain)]
        return _of_names([[] if name is None else [name] for name in named], column, column.counts is not None, ())
    parts = [_parts(value, separator) for value in plain]
    _refuse_fractions(parts, refuse)
    if all(_whole(part) is not None for of_value in parts for part in of_value):
        return _of_names([[_whole(part) for part in of_value] for of_value in parts], column, separator is not None, ())
    texts = [[_text(part) for part in of_value] for of_value in parts]
    texts, more = _merged(texts, weights, where)
    notes += more
    if separator is None and column.counts is None:
        notes += _refuse_combined([of_value[0] for of_value in texts if of_value], where)
    return _of_names(texts, column, separator is not None, notes)


def indicators(
    columns: Sequence[tuple[str, Sequence[Any]]], place: Callable[[int], str], where: str
) -> tuple[Encoded, tuple[str, ...]]:
    """The labels that several columns state, each for one class, saying 0 or 1: single ones, if each row has exactly one 1, else lists;
    and a note.

    DataError, which names row and column, for any other value."""
    table = np.zeros((len(columns[0][1]), len(columns)), dtype=bool)
    for number, (name, column) in enumerate(columns):
        for row, value in enumerate(column):
            flag = _flag(value)
            if flag is None:
                raise DataError(
                    f"{where}, {place(row)}: the column {name!r} says {quoted(value)}; a column for one class says 0 or 1."
                )
            table[row, number] = flag
    names = [bare(name) for name, _ in columns]
    rows, codes = np.nonzero(table)
    counts = np.bincount(rows, minlength=len(table))
    single = bool((counts == 1).all())
    several = "each image has one" if single else "an image may have several"
    note = f"{where}: the columns {listed(names)} say 0 or 1; they are taken for the classes, of which {several}."
    return Encoded(names, codes, None if single else counts), (note,)


def are_indicators(column: Sequence[Any]) -> bool:
    """Whether a column says nothing but 0 and 1."""
    return all(_flag(value) is not None for value in column)


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}.get(bare(value).lower())
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


_Refuse = Callable[[int, str], DataError]


def _plain(value: Any, code: int, refuse: _Refuse) -> str | int | float | None:
    """A value of any program as text or a number; None: nothing."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise refuse(code, "is not UTF-8 text.") from error
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise refuse(code, "is not UTF-8 text.") from error
        text = bare(value)
        if "\0" in text or "\n" in text or "\r" in text:
            raise refuse(code, "has a line break or a NUL character inside. Is a quotation mark without its partner?")
        if len(text) > _LONGEST:
            raise refuse(code, f"is too long for the name of a class (more than {_LONGEST} characters).")
        return None if text.lower() in _NOTHING else text
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, (float, Decimal)):
        number = float(value)
        return None if math.isnan(number) else int(number) if number.is_integer() and abs(number) < 2**53 else number
    if value is None:
        return None
    raise refuse(code, f"is of the type {type(value).__name__}, neither a word nor a number.")


def _declared(value: Any, code: int, names: Sequence[str], refuse: _Refuse) -> str | None:
    if value is None or value == -1:  # how `datasets` marks a withheld label
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    if isinstance(value, str) and value in names:
        return value
    raise refuse(code, f"is none of the {len(names)} classes that the data declare ({listed(names)}).")


def _parts(value: str | int | float | None, separator: str | None) -> list[str | int | float]:
    if value is None:
        return []
    if separator is None or not isinstance(value, str):
        return [value]
    return [text for part in value.split(separator) if (text := bare(part)).lower() not in _NOTHING]


def _whole(part: str | int | float) -> int | None:
    """The whole number that a label is, or is written as; None for any other, such as 007."""
    if isinstance(part, str):
        match = _WHOLE.fullmatch(part)
        return None if match is None or part == "-0" else int(match[1])
    return part if isinstance(part, int) else None


def _refuse_fractions(parts: Sequence[Sequence[str | int | float]], refuse: _Refuse) -> None:
    """DataError if all labels are numbers and some have a fraction: a quantity, not a class."""
    fraction = None
    for code, of_value in enumerate(parts):
        for part in of_value:
            if isinstance(part, str) and _NUMBER.fullmatch(part) is None:
                return
            if isinstance(part, float) or (isinstance(part, str) and _is_fraction(part)):
                fraction = code if fraction is None else fraction
    if fraction is not None:
        raise refuse(
            fraction,
            "is a number with a fraction, which is a quantity, not a class; quantities are not learned here. Choose the column of "
            "classes with --label-column; or, if such numbers are classes, write them with a word, such as '0.5 mm'.",
        )


def _is_fraction(part: str) -> bool:
    number = float(part)
    return not number.is_integer()  # an infinite number is none either


def _text(part: str | int | float) -> str:
    return part if isinstance(part, str) else str(part)


def _merged(texts: Sequence[Sequence[str]], weights: np.ndarray, where: str) -> tuple[list[list[str]], tuple[str, ...]]:
    """The names, of those that look the same the most frequent; notes on names that differ in case only, or may mean nothing."""
    rows: Counter[str] = Counter()
    for of_value, weight in zip(texts, weights.tolist(), strict=True):
        for text in of_value:
            rows[text] += weight
    groups: dict[str, list[str]] = {}
    for text in rows:
        groups.setdefault(_look(text), []).append(text)
    chosen = {look: max(group, key=lambda text: rows[text]) for look, group in groups.items()}
    notes: tuple[str, ...] = ()
    by_case: dict[str, list[str]] = {}
    for name in chosen.values():
        by_case.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()), []).append(name)
    if near := [group for group in by_case.values() if len(group) > 1]:
        shown = listed(" and ".join(quoted(text) for text in group) for group in near)
        notes += (
            f"{where}: classes that differ in case, blanks or hyphens only are kept apart: {shown}. If they are one, write them alike.",
        )
    if perhaps := sorted(name for name in chosen.values() if name.lower() in _NOTHING_PERHAPS):
        notes += (
            f"{where}: {listed(map(quoted, perhaps))} is taken for the name of a class. If not, remove its rows.",
        )
    return [[chosen[_look(text)] for text in of_value] for of_value in texts], notes


def _alike(values: Sequence[Any], where: str) -> tuple[str, ...]:
    """A note on the values that differ in what cannot be seen."""
    groups: dict[str, list[str]] = {}
    for value in values:
        if isinstance(value, str) and (text := bare(value)).lower() not in _NOTHING:
            groups.setdefault(_look(text), []).append(value)
    alike = [" = ".join(quoted(text) for text in group) for group in groups.values() if len(group) > 1]
    return (f"{where}: labels that look the same are taken for one class: {listed(alike)}.",) if alike else ()


def _look(text: str) -> str:
    """Equal for two names that no one can tell apart."""
    return text if text.isascii() and "  " not in text and "\t" not in text else " ".join(_INSIDE.sub("", text).split())


_SEPARATORS = ("|", ";", ",", "/", "+", "&", " ")


def _refuse_combined(names: Sequence[str], where: str) -> tuple[str, ...]:
    """DataError if classes are evidently several labels in one cell; a note if they may be.

    Evident: parts between | or ; that recur in other names; lists of numbers; if most names that have a separator, two at least, are
    made of other classes; lists in Python's or JSON's writing. Possible: one such name, or names made of parts that all recur."""
    names = list(dict.fromkeys(names))
    known = set(names)
    if names and all(re.fullmatch(r"\[.*\]", name, re.DOTALL) for name in names):
        raise DataError(
            f"{where}: the labels are lists in brackets, such as {quoted(names[0])}. Write them as dog|cat and pass --label-separator '|'."
        )
    for separator in _SEPARATORS:
        several = {name: parts for name in names if len(parts := _divided(name, separator)) > 1}
        if not several:
            continue
        uses = Counter(part for name in names for part in set(several.get(name, [name])))
        whole = [name for name, parts in several.items() if known.issuperset(parts)]
        mixed = [name for name, parts in several.items() if all(uses[part] > 1 for part in parts)]
        recurring = any(uses[part] > 1 for parts in several.values() for part in parts)
        numbers = separator in ", " and all(part.isdigit() for name in names for part in several.get(name, [name]))
        example = next(iter(whole or mixed or several))
        if recurring and (separator in "|;" or numbers or (len(whole) > 1 and 2 * len(whole) >= len(several))):
            raise DataError(
                f"{where}: classes such as {quoted(example)} are several labels in one cell "
                f"({listed(map(quoted, several[example]))}). If an image has several labels, pass --label-separator {separator!r}; "
                f"if it has one, write the name without {'blanks' if separator == ' ' else separator}."
            )
        if whole or (len(mixed) > 1 and 2 * len(mixed) >= len(several)):
            return (
                f"{where}: does {quoted(example)} stand for several labels ({listed(map(quoted, several[example]))})? "
                f"If so, pass --label-separator {separator!r}.",
            )
    return ()


def _divided(name: str, separator: str) -> list[str]:
    return [text for part in name.split(separator) if (text := bare(part))]


def _of_names(names: Sequence[Iterable[Label]], column: Encoded, several: bool, notes: tuple[str, ...]) -> Classes:
    """The classes of a column whose i-th distinct value stands for the classes `names[i]`."""
    number: dict[Label, int] = {}
    lists = [[number.setdefault(name, len(number)) for name in of_value] for of_value in names]
    if not several or column.counts is not None:
        known = np.array([codes[0] if codes else -1 for codes in lists] + [-1], dtype=np.int64)
        return Classes(list(number), known[column.codes], column.counts, notes)
    lengths = np.array([len(codes) for codes in lists] + [0], dtype=np.int64)
    starts, flat = np.cumsum(lengths) - lengths, np.array([code for codes in lists for code in codes], dtype=np.int64)
    counts = lengths[column.codes]
    ends = np.cumsum(counts)
    at = np.repeat(starts[column.codes] - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)
    return Classes(list(number), flat[at], counts, notes)
