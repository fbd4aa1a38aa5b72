"""Objects cut out and pasted onto other backgrounds (BiT, appendix G).

Images lie in folders called by their objects; which classes of ILSVRC-2012 these are was not published. What a folder's name means is
told by `classes.json` in the data set, else by the table of the authors' sister set (SI-Score), else by ImageNet's own words.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigtransfer import catalog, records
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.data.layout import listed
from bigtransfer.errors import DataError
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.ilsvrc import CLASSES, identities, inner, lists

_CLASSES_FILE = "classes.json"


def _read_out_of_context(folder: Path, parts: Iterable[str]) -> dict[str, ImageSet]:
    place = inner(folder)
    images = open_dataset(place, min_classes=1).train
    if images.labels is None:
        raise DataError(f"{place} has no folders of classes.")
    stated = _stated(place / _CLASSES_FILE)
    meanings = [stated.get(name) or directory_classes(name) for name in images.class_names]
    if unknown := [name for name, meaning in zip(images.class_names, meanings, strict=True) if not meaning]:
        example = json.dumps({name: [404] for name in unknown[:2]})
        raise DataError(
            f"Which classes of ILSVRC-2012 are meant by these folders of {place} cannot be told: {listed(unknown)}. Say it in "
            f"{place / _CLASSES_FILE}, with the numbers of all classes that are right for each, such as {example}."
        )
    table = np.full((len(meanings), max(map(len, meanings), default=1)), -1, dtype=np.int64)
    for row, meaning in zip(table, meanings, strict=True):
        row[: len(meaning)] = meaning
    labels = table[np.asarray(images.labels)]
    return {"test": replace(images, labels=labels if labels.shape[1] > 1 else labels[:, 0], class_names=identities())}


def _stated(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        found = records.read(path, dict[str, int | list[int]], DataError)
    except FileNotFoundError:
        return {}
    stated = {}
    for name, value in found.items():
        numbers = tuple(dict.fromkeys(value if isinstance(value, list) else [value]))
        if not numbers or not all(0 <= number < CLASSES for number in numbers):
            raise DataError(f"{path}: {name}: numbers of classes, 0 to 999, were expected.")
        stated[name] = numbers
    return stated


def directory_classes(name: str) -> tuple[int, ...]:
    """The class that a folder's name means; () if it means none, or several."""
    wanted = _plain(name)
    if re.fullmatch(r"n\d{8}", name) and name in identities():
        return (identities().index(name),)
    by_authors = {_plain(words): number for words, number in lists()["si-score"].items()}
    if wanted in by_authors:
        return (by_authors[wanted],)
    called = _words().get(wanted, set())
    return tuple(called) if len(called) == 1 else ()


@functools.cache
def _words() -> Mapping[str, set[int]]:
    """Words -> the classes that have them among their names."""
    called: dict[str, set[int]] = {}
    large = dict(zip(catalog.wordnet_ids("imagenet-21k"), catalog.class_names("imagenet-21k") or (), strict=True))
    for number, (identity, short) in enumerate(
        zip(identities(), catalog.class_names("imagenet-1k") or (), strict=True)
    ):
        for words in (short, *large.get(identity, "").split(", ")):
            called.setdefault(_plain(words), set()).add(number)
    return called


def _plain(words: str) -> str:
    return " ".join(re.split(r"[\W_]+", words.casefold())).strip()


OUT_OF_CONTEXT = Benchmark(
    name="out-of-context",
    title="Out-of-context objects (BiT)",
    revision="1",
    parts={"test": 3_321},
    classes=CLASSES,
    licence="as its authors state",
    obtain="https://storage.googleapis.com/bit-out-of-context-dataset/bit_out_of_context_dataset.zip, unpacked",
    gigabytes=None,
    folders=("out-of-context", "bit_out_of_context_dataset"),
    read=_read_out_of_context,
)
