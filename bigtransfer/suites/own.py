"""Benchmarks of one's own: a suite from a short TOML file, which says what the images are and how models are measured on them."""

from __future__ import annotations

import dataclasses
import functools
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from bigtransfer import files, records
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import ConfigError
from bigtransfer.evals.metrics import Classification
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.learning import AS_THE_CARD_SAYS, LEARNERS, FewShot, Learner, Transfer
from bigtransfer.suites.omnibenchmark import OmniProbe
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.suite import Suite, Task

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a file says."""

    name: Name
    """Of the benchmark and its suite."""
    title: Text
    revision: Text
    """Which edition of the images: change it when they change, and old results are no longer comparable."""
    parts: Annotated[dict[str, records.Natural], msgspec.Meta(min_length=1)]
    """Images of each part: "train", "val", "test"."""
    classes: records.Natural
    licence: Text
    obtain: Text
    """What to get and from where."""
    folder: Text
    """Where it lies: below the root of all benchmarks, or beside the file; in any form that `bit finetune` reads."""
    gigabytes: records.NotNegative | None = None
    digests: dict[str, str] = {}
    """Of parts: `benchmark.index_digest`, which a results file states as the fingerprint."""
    trainable: bool = True
    """Whether its licence allows to learn from it."""
    task: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    """Each with a name, the name of a protocol, and its parameters."""


@dataclass(frozen=True, kw_only=True)
class Classify(Protocol):
    """What the model says as it is: its classes must be those of the benchmark, or more."""

    name: ClassVar[str] = "classify"
    source: ClassVar[str] = "this package: top-1 and top-5 among all classes that the model knows"

    part: str = "test"
    preparation: Preparation = AS_THE_CARD_SAYS

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] (here a field decides)
        return (self.part,)

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        images = bench.parts[self.part]
        known = {name: number for number, name in enumerate(bench.card.class_names or ())}
        unknown = [name for name in images.class_names if name not in known]
        if unknown:
            raise ConfigError(
                f"{bench.card.name} does not know {len(unknown)} of the {len(images.class_names)} classes, such as {unknown[0]!r}. A "
                "protocol that learns (transfer, few-shot) measures models of other classes."
            )
        result = Classification(bench.card.num_classes)
        for logits, labels, indices in bench.logits(images, self.preparation):
            result.update(logits, labels.new_tensor([known[images.class_names[label]] for label in labels]), indices)
        found = [Measurement(metric="top-1", value=result.top1, images=len(result), interval=result.top1_interval)]
        if bench.card.num_classes > 5:
            found.append(Measurement(metric="top-5", value=result.top5, images=len(result)))
        return found


PROTOCOLS: dict[str, type[Protocol]] = {one.name: one for one in (Classify, Transfer, FewShot, OmniProbe)}
"""By the names that such a file uses."""


def read(path: str | os.PathLike[str]) -> Suite:
    """The suite in a TOML file. ConfigError naming the file and the field where it is not as it should be."""
    path = Path(path)
    try:
        content = tomllib.loads(files.read(path, "record_bytes").decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path} is not TOML of this kind: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply.") from error
    stated = records.convert(content, File, str(path), ConfigError)
    for part in stated.digests:
        if part not in stated.parts:
            raise ConfigError(f"{path}: digests.{part}: there is no such part; parts are {', '.join(stated.parts)}.")
    beside = path.parent / stated.folder
    benchmark = Benchmark(
        name=stated.name,
        title=stated.title,
        revision=stated.revision,
        parts=stated.parts,
        classes=stated.classes,
        licence=stated.licence,
        obtain=stated.obtain.rstrip("."),
        gigabytes=stated.gigabytes,
        folders=(stated.folder, str(beside.absolute())),
        read=functools.partial(_read, tuple(stated.parts)),
        digests=stated.digests,
        trainable=stated.trainable,
    )
    tasks = [_task(f"{path}: task {number}", table, benchmark) for number, table in enumerate(stated.task, 1)]
    names = [task.name for task in tasks]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ConfigError(f"{path}: task {number + 1}: there is a task {name!r} before it.")
    return Suite(name=stated.name, title=stated.title, tasks=tuple(tasks))


def _read(parts: tuple[str, ...], folder: Path, needed: Iterable[str]) -> Mapping[str, ImageSet]:
    found = open_dataset(folder, min_classes=1).parts()
    if len(parts) == 1 and parts[0] not in found and len(found) == 1:
        return {parts[0]: next(iter(found.values()))}  # one folder of classes, whatever its only part is called
    return {name: found[name] for name in needed if name in found}


def _task(where: str, table: Mapping[str, Any], benchmark: Benchmark) -> Task:
    given = dict(table)
    name = records.convert(_taken(given, "name", where), Name, f"{where}: name", ConfigError)  # pyright: ignore[reportArgumentType]
    where = f"{where} ({name})"
    chosen = _one_of(PROTOCOLS, _taken(given, "protocol", where), f"{where}: protocol")
    if chosen.trains and not benchmark.trainable:
        raise ConfigError(f"{where}: protocol {chosen.name} learns from the images, which trainable = false forbids.")
    protocol = _built(chosen, given, where)
    for part in protocol.needs:
        if part not in benchmark.parts:
            raise ConfigError(f"{where}: it needs the part {part!r}, but parts are {', '.join(benchmark.parts)}.")
    return Task(name=name, benchmark=benchmark, protocol=protocol)


def _taken(table: dict[str, Any], key: str, where: str) -> Any:
    if key not in table:
        raise ConfigError(f"{where}: {key} is missing.")
    return table.pop(key)


def _one_of(known: Mapping[str, Any], name: Any, where: str) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{where}: {name!r} is none of {', '.join(known)}.")
    return known[name]


def _built(form: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table of its fields."""
    hints = typing.get_type_hints(form)
    known = {one.name: hints[one.name] for one in dataclasses.fields(form)}
    values = {}
    for name, value in table.items():
        place = f"{where}: {name}"
        if name not in known:
            raise ConfigError(f"{place}: there is no such parameter. There are {', '.join(known)}.")
        if known[name] is Learner:
            given = (
                {"kind": value}
                if isinstance(value, str)
                else dict(records.convert(value, dict[str, Any], place, ConfigError))
            )
            values[name] = _built(_one_of(LEARNERS, _taken(given, "kind", place), place), given, place)
        elif dataclasses.is_dataclass(known[name]):
            values[name] = _built(known[name], records.convert(value, dict[str, Any], place, ConfigError), place)
        else:
            values[name] = records.convert(value, _bounded(known[name]), place, ConfigError)
    try:
        return form(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from error
    except TypeError:
        needed = [
            one.name for one in dataclasses.fields(form) if one.default is one.default_factory is dataclasses.MISSING
        ]
        raise ConfigError(f"{where}: it needs {', '.join(name for name in needed if name not in values)}.") from None


def _bounded(hint: Any) -> Any:
    """Whole numbers of protocols count something, and there is at least one of it."""
    if hint is int:
        return records.Natural
    if hint == int | None:
        return records.Natural | None
    return hint
