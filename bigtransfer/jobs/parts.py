"""Answers on any number of images, in parts: by several processes, through kills, each image once.

A part is a range of the images, the same whatever the number of processes. Its files are renamed into place when they are whole, and then
a line about them in `.parts/`, so that what is there is finished, and a command that was killed repeats at most the parts that it was in.
Which parts a process makes is settled once, when it starts; after that it needs no other process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from bigtransfer import backends, outputs, records, runs, weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.config import EvaluateConfig, PredictConfig
from bigtransfer.data.forms import ANSWERS
from bigtransfer.data.sources import ImageSet
from bigtransfer.dist import World
from bigtransfer.errors import ConfigError, LostProcess, RunError
from bigtransfer.predictor import Prediction, Predictor

T = TypeVar("T")

MANIFEST = "_manifest.json"
"""There when all parts are; readers of Parquet folders pass over names that begin so."""
_LINES = ".parts"

IMAGES = 4096
"""Of a part, at most, unless it is asked for."""
_NUMBERS = 1 << 24
"""Of a part: classes and features of all its images, at most."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a part."""

    name: str
    bytes: records.Whole
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part, as its line in `.parts/` and the manifest state it."""

    first: records.Whole
    """The place of its first image in the set."""
    images: records.Natural
    unreadable: records.Whole
    files: tuple[File, ...]


_TORCH = ("auto", "fastest", "torch")
"""Backends that may be torch."""


def device_of(config: EvaluateConfig | PredictConfig) -> torch.device:
    """Where this process computes, before several processes have agreed: other backends than torch look for themselves."""
    by_torch = config.backend in _TORCH and not backends.is_exported(config.model)
    return choose_device(config.device) if by_torch else torch.device("cpu")


def opened(config: EvaluateConfig | PredictConfig, device: torch.device) -> tuple[Predictor, str]:
    """The predictor that is asked for, by torch on `device`, and SHA-256 of its model's numbers, for `plan`; without a folder to go on in
    later it is "", since it takes a look at every number."""
    how: dict[str, Any] = {"precision": config.precision, "decoder": config.decoder, "backend": config.backend}
    how["batch"] = config.batch_size
    kept = config.out is not None
    if backends.is_exported(config.model):
        predictor = Predictor.load(config.model, device=config.device, **how)
        return predictor, backends.digest(config.model) if kept else ""
    network = weights.load(config.model)
    asked = str(device) if config.backend in _TORCH else config.device
    return Predictor(network, device=asked, **how), weights.digest(network.state_dict()) if kept else ""


def plan(predictor: Predictor, digest: str, images: ImageSet, batch: int) -> dict[str, Any]:
    """What decides the numbers in any folder of parts. digest: of `opened`."""
    return {
        "model": predictor.card.name,
        "weights": digest,
        "card": hashlib.sha256(predictor.card.to_json().encode()).hexdigest(),
        "data": images.fingerprint(),
        "images": len(images),
        "backend": predictor.backend,
        "precision": predictor.precision,
        "device": predictor.device.partition(":")[0],
        "batch_size": batch,
    }


def size_of(predictor: Predictor, batch: int, asked: int | None) -> int:
    """Images of a part: a multiple of the batch, so that the batches are the same wherever a process begins. ConfigError if what was asked
    for is none."""
    if asked is None:
        wide = predictor.card.num_classes + predictor.card.architecture.num_features
        return max(1, min(IMAGES, _NUMBERS // wide) // batch) * batch
    if asked % batch:
        near = max(1, round(asked / batch)) * batch
        raise ConfigError(
            f"--part-images {asked} is no multiple of the {batch} images computed at a time; take {near}, or another --batch-size."
        )
    return asked


class Parts:
    """The parts of `images` images in a folder.

    plan: all that decides what the files hold (JSON). endings: of the files of a part, such as "parquet".
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], images: int, size: int, endings: Sequence[str]) -> None:
        self.folder, self.size, self.images = folder, size, images
        self.plan = {**plan, "part_images": size, "endings": list(endings)}
        self.endings = tuple(endings)
        self.count = -(-images // size)

    def range_of(self, part: int) -> range:
        """Places of a part's images."""
        return range(part * self.size, min((part + 1) * self.size, self.images))

    def files_of(self, part: int) -> list[Path]:
        return [self.folder / f"part-{part:06d}.{ending}" for ending in self.endings]

    def begin(self, world: World, *, replace: bool = False) -> list[int]:
        """The parts that this process is to make, ascending: its share of those that are not there, or not as they were written (SHA-256).
        All processes of `world` must call it.
        replace: what another command has finished here may go.

        RunError if the folder holds something else, or answers of another command; ConfigError if the processes see different models or
        images.
        """
        for rank, plan in enumerate(world.collect(self.plan)):
            if different := _differences(plan, self.plan):
                raise ConfigError(
                    f"Process {rank} of {world.size} sees something else than process {world.rank}: {different}. All need the same files."
                )
        self._told(world, self._prepare, [replace] if world.is_main else [])
        # Each process looks at its share, because all bytes of what is there are read.
        missing = self._told(world, self._damaged, world.part(self.count))
        if world.is_main and missing:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        return [missing[i] for i in world.part(len(missing))]

    @staticmethod
    def _told(world: World, work: Callable[[T], list[int]], given: Iterable[T]) -> list[int]:
        """What `work` finds for all that is given to all processes; its RunError in all of them."""
        found, error = [], ""
        try:
            for each in given:
                found += work(each)
        except RunError as failed:
            if world.size == 1:
                raise
            error = str(failed)
        said = world.collect([found, error])
        for _, error in said:
            if error:
                raise RunError(error)
        return [one for some, _ in said for one in some]

    def _prepare(self, replace: bool) -> list[int]:
        """Make the folder ready for this plan."""
        place = self.folder / ANSWERS
        try:
            before = records.read(place, dict[str, Any], RunError)
        except FileNotFoundError:
            if self.folder.is_dir() and (others := [one for one in os.listdir(self.folder) if not one.startswith(".")]):
                raise RunError(f"{self.folder} is not empty ({others[0]}). Choose an empty or a new folder.") from None
            outputs.write_json(place, self.plan)
        else:
            different = _differences(before, self.plan)
            if different and replace and (self.folder / MANIFEST).is_file():
                self.clear()
                outputs.write_json(place, self.plan)
            elif different:
                raise RunError(
                    f"{self.folder} holds answers of another command: {different}. Choose another folder, or remove it."
                )
        return []

    def _damaged(self, part: int) -> list[int]:
        """The part, if it is to be made: it is not there, or a byte of it is not what was written."""
        found = self.finished(part)
        if found is None or any(runs.sha256(self.folder / file.name) != file.sha256 for file in found.files):
            return [part]
        return []

    def finished(self, part: int) -> Part | None:
        """What there is of a part, by the lengths of its files; None if it is not, or not whole. RunError if its line is none of ours."""
        path = self._line(part)
        try:
            found = records.read(path, Part, RunError)
        except FileNotFoundError:
            return None
        places, images = self.files_of(part), self.range_of(part)
        if [file.name for file in found.files] != [file.name for file in places] or (found.first, found.images) != (
            images.start,
            len(images),
        ):
            raise RunError(f"{path} is not of this command. Remove {self.folder} and begin anew.")
        for file, stated in zip(places, found.files, strict=True):
            if not file.is_file() or file.stat().st_size != stated.bytes:
                return None
        return found

    def write(self, part: int, unreadable: int, writers: Sequence[Callable[[Path], Any]]) -> None:
        """Make a part: each of `writers` writes the file of one ending."""
        stated = []
        for path, writer in zip(self.files_of(part), writers, strict=True):
            with outputs.atomic_write(path) as temporary:
                writer(temporary)
                stated.append(File(name=path.name, bytes=temporary.stat().st_size, sha256=runs.sha256(temporary)))
        images = self.range_of(part)
        line = Part(first=images.start, images=len(images), unreadable=unreadable, files=tuple(stated))
        outputs.write_json(self._line(part), dataclasses.asdict(line))

    def finish(self, conclude: Callable[[list[Part]], Any]) -> list[Part] | None:
        """If all parts are there and nobody has done so, `conclude` with them, and say who did: all parts for the process that has, else
        None. `conclude` leaves the manifest."""
        with outputs.alone(self.folder / ".finishing"):
            if (self.folder / MANIFEST).is_file():
                return None
            found = [one for part in range(self.count) if (one := self.finished(part)) is not None]
            if len(found) < self.count:
                return None
            conclude(found)
            return found

    def clear(self) -> None:
        """Remove all parts, whatever their number, but for the manifest, which tells those who come late that all is done."""
        for file in self.folder.glob("part-*"):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / _LINES, ignore_errors=True)

    def _line(self, part: int) -> Path:
        return self.folder / _LINES / f"{part:06d}.json"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which points two plans differ, in words; "" if in none."""
    said = {"weights": "the model is another", "card": "the model's card is another", "data": "the images are others"}
    return "; ".join(
        said.get(key) or f"{key.replace('_', ' ')} {before.get(key)!r} there, {now.get(key)!r} here"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    )


def answers(
    predictor: Predictor,
    images: ImageSet,
    parts: Parts,
    mine: Sequence[int],
    world: World,
    *,
    batch: int,
    workers: int | None = None,
    features: bool = False,
    logits: bool = False,
) -> Iterator[tuple[int, list[Prediction]]]:
    """What the model says of all images of each part in `mine`, in order. One stream through all of them, so that between two parts nothing
    waits. LostProcess where torchrun has died: a next start would meet this process at work."""
    places = [np.arange(each.start, each.stop) for each in map(parts.range_of, mine)]
    if not places:
        return
    some = images.subset(np.concatenate(places))
    stream = predictor.stream(some, features=features, logits=logits, batch_size=batch, workers=workers)
    for i, part in enumerate(mine):
        if images.remote and i + 1 < len(mine):
            images.prefetch(places[i + 1])
        yield part, [next(stream) for _ in places[i]]
        if world.abandoned:
            raise LostProcess("torchrun has ended, and left this process behind. The same command goes on.")
