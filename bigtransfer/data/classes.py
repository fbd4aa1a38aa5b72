"""Which of a model's classes each class of a data set is: by name where the model has names, else by number; decided from evidence, and
what remains an assumption is said.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bigtransfer import catalog
from bigtransfer.data.layout import listed
from bigtransfer.errors import DataError

_IMAGENETS = {1000: "imagenet-1k", 21843: "imagenet-21k"}
"""By the number of their classes, which no other published head has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """The classes of a data set as classes of a model."""

    numbers: np.ndarray
    """int64 (classes of the data,): the model's number of each."""
    assumption: str | None = None
    """What this rests on other than equal names, a sentence; None: nothing."""
    other_readings: dict[str, np.ndarray] = field(default_factory=dict)
    """What else the names could mean, in words, with the `numbers` that would follow."""


def match(found: Sequence[str], class_names: Sequence[str] | None, num_classes: int, subset: bool = False) -> Match:
    """The model's class for each of the data's classes `found` (all different).

    class_names: the model's, None if it knows none. subset: the data may lack some of its classes. Raises DataError, listing the
    differences, where a class is not the model's, where one is missing and not `subset`, and where the evidence does not decide.
    """
    if class_names is None:
        chosen = _without_names(found, num_classes)
        names: Sequence[str] = tuple(map(str, range(num_classes)))
    else:
        chosen = _with_names(found, tuple(class_names))
        names = class_names
    missing = sorted(set(range(num_classes)) - set(chosen.numbers.tolist()))
    if missing and not subset:
        raise DataError(
            f"The classes of the data are not those of the model.\n  only in the model: {listed(names[i] for i in missing)}\n"
            "If the data are meant to have only some of the model's classes, pass --subset."
        )
    return chosen


# --- A model that knows the names of its classes


def _with_names(found: Sequence[str], names: tuple[str, ...]) -> Match:
    if tuple(found) == names:
        return Match(numbers=np.arange(len(names)))
    if (by_id := _by_wordnet(found, names)) is not None:
        return by_id
    number = {name: i for i, name in enumerate(names)}
    if len(number) < len(names):
        several = [name for name, count in Counter(names).items() if count > 1]
        raise DataError(
            f"The model has several classes of the same name ({listed(several)}), so that classes cannot be matched by name; give "
            "the data all of the model's class names in the model's order (--class-names)."
        )
    if all(name in number for name in found):
        return Match(numbers=_array(number[name] for name in found))
    if (alike := _by_spelling(found, names)) is not None:
        return alike
    values = _whole_numbers(found)
    if values and set(values) <= set(range(len(names))) and all(_value(name) is None for name in names):
        return Match(
            numbers=_array(values),
            assumption=f"the classes of the data are numbers, the model's have names: {_examples(found, values, names)}",
        )
    unknown = [name for name in found if name not in number]
    present = set(found)
    rest = [name for name in names if name not in present]
    raise DataError(
        "The classes of the data are not those of the model.\n"
        f"  only in the data: {listed(map(_shown, unknown))}{_nearest(unknown, names)}\n"
        + (f"  only in the model: {listed(rest)}\n" if rest else "")
        + "Rename the classes of the data (the folders, or the label column) to the model's, or pass --class-names FILE."
    )


def _by_spelling(found: Sequence[str], names: Sequence[str]) -> Match | None:
    """Names that are equal but for case, blanks, the way accents are encoded, or leading zeros; None unless all are, one to one."""
    number = {_plain(name): i for i, name in enumerate(names)}
    plain = [_plain(name) for name in found]
    if len(number) < len(names) or len(set(plain)) < len(set(found)) or not all(name in number for name in plain):
        return None
    numbers = [number[name] for name in plain]
    changed = [(name, names[i]) for name, i in zip(found, numbers, strict=True) if name != names[i]]
    shown = "; ".join(f"{_shown(one)} for {_shown(other)}" for one, other in changed[:5])
    return Match(
        numbers=_array(numbers),
        assumption=f"class names that differ in spelling alone are taken for the model's: {shown}{' ...' if len(changed) > 5 else ''}",
    )


def _plain(name: str) -> str:
    """A name without what people and file systems change about it."""
    name = unicodedata.normalize("NFKC", name).casefold()
    name = " ".join(re.split(r"[\s_\-]+", name)).strip()
    return str(int(name)) if re.fullmatch(r"[0-9]{1,18}", name) else name


def _by_wordnet(found: Sequence[str], names: tuple[str, ...] | None, num_classes: int = 0) -> Match | None:
    """ImageNet's folders (n01440764) for ImageNet's classes; None if the names are no such, or one of them is not the model's."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in found):
        return None
    whose = _IMAGENETS.get(num_classes if names is None else len(names))
    if whose is not None and (names is None or names == catalog.class_names(whose)):
        number = {name: i for i, name in enumerate(catalog.wordnet_ids(whose))}
    else:
        number = _by_words(found, names or ())
    if not all(name in number for name in found):
        return None
    numbers = _array(number[name] for name in found)
    of = "ImageNet's" if names is None else "the model's"
    return Match(
        numbers=numbers, assumption=f"the classes of the data are WordNet identities, matched with {of} classes"
    )


def _by_words(found: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Identity -> number of the class whose name is the identity's words, as ImageNet-21k's or ImageNet-1k's lists have them."""
    number = {name.casefold(): i for i, name in enumerate(names)}
    first = Counter(name.casefold().partition(",")[0] for name in names)
    number |= {one: i for i, name in enumerate(names) if first[one := name.casefold().partition(",")[0]] == 1}
    known: dict[str, int] = {}
    for whose in ("imagenet-1k", "imagenet-21k"):
        words = dict(zip(catalog.wordnet_ids(whose), catalog.class_names(whose) or (), strict=True))
        known |= {one: number[text] for one in found if (text := words.get(one, "").casefold()) in number}
    taken = Counter(known.values())
    return {one: i for one, i in known.items() if taken[i] == 1}


def _nearest(unknown: Sequence[str], names: Sequence[str]) -> str:
    near = [(name, difflib.get_close_matches(name, names, n=1)) for name in unknown[:10]]
    pairs = [f"{_shown(name)} is close to {_shown(close[0])}" for name, close in near if close]
    return f" ({'; '.join(pairs)})" if pairs else ""


# --- A model that knows no names


def _without_names(found: Sequence[str], num_classes: int) -> Match:
    if (by_id := _by_wordnet(found, None, num_classes)) is not None:
        return by_id
    whole, values = _whole_numbers(found), _numbered(found)
    if values and max(values) < num_classes and (whole or set(values) == set(range(num_classes))):
        assumption = f"the model knows no class names: the data's numbers are taken for its class numbers, {_pairs(found, values)}"
        return Match(numbers=_array(values), assumption=assumption, other_readings=_as_text(found, values, num_classes))
    has = f"The model has {num_classes} classes without names"
    in_order = "the model knows no class names: the data's classes in their order are taken for its classes, " + _pairs(
        found, range(len(found))
    )
    if len(found) == num_classes:
        # Numbers that are not the model's leave only their order, as long as they have the same one as text.
        if values is None or values == sorted(values) == _text_order(found, values):
            return Match(numbers=np.arange(num_classes), assumption=in_order)
        raise DataError(
            f"{has}, numbered from 0 to {num_classes - 1}; the data's are numbered from {min(values)} to {max(values)}, and which of the "
            f"model's each is cannot be told. {_TABLE}"
        )
    beyond = [name for name, value in zip(found, values or (), strict=False) if value >= num_classes]
    if beyond:
        raise DataError(
            f"{has}, numbered from 0 to {num_classes - 1}; the data also have {listed(beyond)}: they do not match. {_TABLE}"
        )
    raise DataError(
        f"{has}, the data {len(found)} ({listed(map(_shown, found))}): which of the model's these are cannot be told. {_TABLE}"
    )


_TABLE = "Say it with --class-names FILE: one line per class, the data's name, a tab, and the model's number (counted from 0)."


def _as_text(found: Sequence[str], values: Sequence[int], num_classes: int) -> dict[str, np.ndarray]:
    """How torchvision's ImageFolder would have numbered these classes, where that differs from their own numbers."""
    if len(found) < num_classes or _text_order(found, values) == sorted(values):
        return {}
    place = {name: i for i, name in enumerate(sorted(found))}
    reading = "numbered in the order of the names as text (0, 1, 10, 11, 2), as torchvision's ImageFolder does"
    return {reading: _array(place[name] for name in found)}


def _text_order(found: Sequence[str], values: Sequence[int]) -> list[int]:
    return [value for _, value in sorted(zip(found, values, strict=True))]


def _value(name: str) -> int | None:
    """The whole number that a name is, or None; also 007, and 7.0 as tables of floats write it."""
    match = re.fullmatch(r"([0-9]{1,18})(\.0{1,9})?", name)
    return int(match[1]) if match else None


def _whole_numbers(names: Sequence[str]) -> list[int] | None:
    """The names as whole numbers; None if one is something else, or two write the same number differently."""
    known = [value for name in names if (value := _value(name)) is not None]
    return known if len(known) == len(names) > 0 and len(set(known)) == len(set(names)) else None


def _numbered(names: Sequence[str]) -> list[int] | None:
    """The numbers in names such as 7, class_7 (all with the same words) or 7_boots; None if they have none, or share one."""
    if (whole := _whole_numbers(names)) is not None:
        return whole
    for form in (r"(?P<words>\D+)(?P<number>[0-9]{1,18})", r"(?P<words>)(?P<number>[0-9]{1,18})[\W_].*"):
        matches = [re.fullmatch(form, name, re.DOTALL) for name in names]
        kept = [match for match in matches if match is not None]
        if kept and len(kept) == len(names) and len({match["words"] for match in kept}) == 1:
            values = [int(match["number"]) for match in kept]
            if len(set(values)) == len(values):
                return values
    return None


# --- Words


def _array(numbers: object) -> np.ndarray:
    return np.array(list(numbers), dtype=np.int64)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _shown(name: str) -> str:
    """A name as it is told apart from one that looks the same: in quotes, and spelled out where it has invisible or combined signs."""
    odd = name != name.strip() or any(unicodedata.category(sign)[0] in "CM" for sign in name)
    return ascii(name) if odd else name


def _pairs(found: Sequence[str], numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{_shown(name)} = {number}" for name, number in list(zip(found, numbers, strict=True))[:5])
    return f"{shown}{', ...' if len(found) > 5 else ''}"


def _examples(found: Sequence[str], numbers: Sequence[int], names: Sequence[str]) -> str:
    shown = ", ".join(f"{name} = {names[number]}" for name, number in list(zip(found, numbers, strict=True))[:5])
    return f"{shown}{', ...' if len(found) > 5 else ''}"
