"""`bit dedup`: images that show the same picture, between two sets or within one."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bigtransfer import runs
from bigtransfer.config import DedupConfig
from bigtransfer.data import ImageSet, Splits, exclusions, native_size, open_dataset, splits
from bigtransfer.data import images as image_ops
from bigtransfer.data.sources import Files
from bigtransfer.errors import ConfigError, DataError, ImageError, RunError
from bigtransfer.evals import duplicates
from bigtransfer.evals.duplicates import Pair, Sketches
from bigtransfer.jobs.evaluate import choose_part, refuse_run
from bigtransfer.jobs.plan import environment, run_folder
from bigtransfer.machine import usable_cores
from bigtransfer.outputs import atomic_write, refuse_replacing, text_output
from bigtransfer.predictor import Predictor
from bigtransfer.report import duplicates as page
from bigtransfer.report.pictures import picture
from bigtransfer.terminal import cell, line

SHOWN, SHOWN_ALIKE = 240, 60
"""Pairs on the page at most: of the same picture, and only alike."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two that are compared: images of one or several parts of a data set, one after the other."""

    parts: Mapping[str, ImageSet]

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def at(self, i: int) -> tuple[str, ImageSet, int]:
        """Of image `i`: its part, that part's images, and its place among them."""
        for part, images in self.parts.items():
            if i < len(images):
                return part, images, i
            i -= len(images)
        raise IndexError(i)

    def name(self, i: int) -> str:
        _, images, at = self.at(i)
        return images.name(at)

    def classes(self, i: int) -> tuple[str, ...]:
        """Names of its classes; empty if it has none."""
        _, images, at = self.at(i)
        if images.labels is None:
            return ()
        return tuple(images.class_names[label] for label in np.atleast_1d(images.labels[at]) if label >= 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Deduplicated:
    """What was found."""

    first: Side
    """The test images; within one data set all parts, those to be measured on first."""
    second: Side
    """The training images; within one data set the same as `first`."""
    pairs: list[Pair]
    unreadable: list[ImageError]
    folder: Path

    def part(self, pair: Pair) -> tuple[str, str]:
        """The parts that its images are in."""
        return self.first.at(pair.first)[0], self.second.at(pair.second)[0]

    @property
    def same(self) -> list[Pair]:
        """The pairs of the same picture."""
        return [pair for pair in self.pairs if pair.verdict in exclusions.SAME]

    @property
    def leaks(self) -> list[Pair]:
        """Those of two parts."""
        return [pair for pair in self.same if len(set(self.part(pair))) > 1]

    def repeated(self) -> dict[str, dict[int, None]]:
        """Of each part the images to leave out of it: those that another part has too; and within the training images, or those of a
        data set without parts, what repeats an earlier one. By number, in the order of the set."""
        found: dict[str, set[int]] = {}
        for pair in self.same:
            one, other = self.part(pair)
            if one != other:
                found.setdefault(one, set()).add(self.first.at(pair.first)[2])
            if one != other or other == "train":
                found.setdefault(other, set()).add(self.second.at(pair.second)[2])
        return {part: dict.fromkeys(sorted(indices)) for part, indices in found.items()}


def run(config: DedupConfig) -> int:
    """`bit dedup`. Exit status 1 if images could not be read and that was not expected."""
    done = dedup(config, progress=True)
    counts = Counter(pair.verdict for pair in done.pairs)
    print(f"{_compared(config, done)}\n\n{_finding(done)}")
    print(
        f"pairs: {counts['copy']:,} copies, {counts['near']:,} near-duplicates; {counts['similar']:,} are only similar, and on no list"
    )
    if done.unreadable:
        print(f"\n{len(done.unreadable)} images cannot be read and are left out:")
        print("\n".join(f"  {line(str(error))}" for error in done.unreadable[:10]))
        if len(done.unreadable) > 10:
            print(f"  ... and {len(done.unreadable) - 10} more")
    print(f"\nlook:   {done.folder / 'duplicates.html'}\ntable:  {done.folder / 'duplicates.csv'}")
    test = config.data if config.test is None else config.test
    for part in done.repeated():
        path = done.folder / f"exclude-{part}.txt"
        command = f"bit finetune {config.data}" if part == "train" else f"bit evaluate MODEL {test}"
        print(f"use:    {command} --exclude {path}")
    if config.split is not None:
        print(f"split:  {config.split}")
    return 1 if done.unreadable and not config.skip_bad_images else 0


def dedup(config: DedupConfig, *, progress: bool = False) -> Deduplicated:
    """Compare as `config` asks, and write the files it asks for. Images that cannot be read are left out and listed."""
    folder = Path(config.out) if config.out is not None else run_folder(None, config.data, "dedup")
    refuse_run(folder, "dedup")
    # Before anything is compared: the run's own files, what is read, and the corrected split are different ones.
    own = [("--out", folder / name) for name in ("config.json", "duplicates.csv", "duplicates.html")]
    refuse_replacing([*own, ("--split", config.split)], (config.data, config.test))
    predictor = (
        Predictor.load(config.model, device=config.device, precision=config.precision) if config.features else None
    )
    channels = 3 if predictor is None else predictor.card.architecture.in_chans
    data = _opened(config, config.data, channels)
    if config.test is None:
        parts = data.parts()
        first = second = Side({part: parts[part] for part in ("test", "val", "train") if part in parts})
    else:
        first = Side({"test": choose_part(_opened(config, config.test, channels), "auto")[1]})
        second = Side({"train": data.train})
    _refuse_split(config, first, second)
    level = min(max(native_size(images)) for side in (first, second) for images in side.parts.values() if len(images))
    seen = [first] if second is first else [first, second]
    sketched = [_sketches(side, predictor, level, config, progress) for side in seen]
    pairs = duplicates.search(sketched[0][0], None if second is first else sketched[1][0], progress=progress)
    done = Deduplicated(
        first=first,
        second=second,
        pairs=pairs,
        unreadable=[error for _, errors in sketched for error in errors],
        folder=folder,
    )
    _write(config, done, predictor)
    return done


def _opened(config: DedupConfig, spec: str, channels: int) -> Splits:
    found = open_dataset(
        spec,
        multi_label=True,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        channels=channels,
        min_classes=1,
    )
    for note in found.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    return found


# --- What is compared


def _sketches(
    side: Side, predictor: Predictor | None, level: int, config: DedupConfig, progress: bool
) -> tuple[Sketches, list[ImageError]]:
    """What is compared of a side's images, each read once, and those that cannot be read. level: the least resolution of all that are
    compared, px."""
    spec = None if predictor is None else predictor.card.input
    # Where the network sees all of them enlarged, or as large as they are, it makes no difference.
    shrink = level if level < max(duplicates.SIDE, 0 if spec is None else spec.size) else None

    def sketch(images: ImageSet, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | ImageError:
        try:
            pixels = images.read(i)
        except ImageError as error:
            return ImageError(images.name(i), error.reason)
        small = duplicates.shrunk(pixels, shrink)
        shown = None if spec is None else image_ops.prepare(small, dataclasses.replace(spec, mode="square"))
        return duplicates.thumbnail(small), duplicates.digest(pixels), shown

    count = len(side)
    thumbnails = np.zeros((count, duplicates.SIDE, duplicates.SIDE), np.uint8)
    digests = np.zeros((count, 16), np.uint8)
    width = 0 if predictor is None else predictor.card.architecture.num_features
    features = np.zeros((count, width), np.float16)
    readable = np.zeros(count, bool)
    errors: list[ImageError] = []
    size = config.batch_size or (128 if predictor is None else predictor.batch_size)
    places = [(images, i) for images in side.parts.values() for i in range(len(images))]
    title = " and ".join(side.parts)
    with (
        ThreadPoolExecutor(config.workers or usable_cores()) as pool,
        tqdm(total=count, desc=title, unit="img", disable=None if progress else True, leave=False) as bar,
    ):
        for start, results in _ahead(pool, sketch, places, size):
            shown = []
            for i, result in enumerate(results, start):
                if isinstance(result, ImageError):
                    errors.append(result)
                    continue
                thumbnails[i], digests[i], readable[i] = result[0], result[1], True
                if result[2] is not None:
                    shown.append((i, result[2]))
            if predictor is not None and shown:
                batch = torch.from_numpy(np.stack([pixels for _, pixels in shown])).permute(0, 3, 1, 2)
                pooled = torch.nn.functional.normalize(predictor.pooled(batch), dim=1)
                features[[i for i, _ in shown]] = pooled.numpy().astype(np.float16)
            bar.update(len(results))
    if not readable.any():
        raise DataError(f"None of {count} images can be read; the first: {errors[0] if errors else 'no images'}.")
    return Sketches(thumbnails=thumbnails, digests=digests, features=features, readable=readable), errors


def _ahead(
    pool: ThreadPoolExecutor, job: Callable[..., Any], places: Sequence[tuple[ImageSet, int]], size: int
) -> Iterator[tuple[int, list[Any]]]:
    """Results of `job` for `size` places at a time, and where these begin; the next are being made meanwhile."""

    def submit(start: int) -> list[Future[Any]]:
        return [pool.submit(job, *place) for place in places[start : start + size]]

    ahead = submit(0)
    for start in range(0, len(places), size):
        current, ahead = ahead, submit(start + size)
        yield start, [future.result() for future in current]


# --- What is said of it


def _compared(config: DedupConfig, done: Deduplicated) -> str:
    if done.first is done.second:
        parts = ", ".join(f"{len(images):,} of {part}" for part, images in done.first.parts.items())
        return f"{len(done.first):,} images of {config.data}" + (f": {parts}" if len(done.first.parts) > 1 else "")
    return f"test: {len(done.first):,} images of {config.test}; train: {len(done.second):,} images of {config.data}"


def _finding(done: Deduplicated) -> str:
    """What was found, in a sentence or a few."""
    found = []
    several = len({*done.first.parts, *done.second.parts}) > 1
    for part, images in done.first.parts.items():
        pairs = [pair for pair in done.leaks if done.part(pair)[0] == part]
        count, others = len({pair.first for pair in pairs}), len({pair.second for pair in pairs})
        if pairs:
            where = " or ".join(dict.fromkeys(done.part(pair)[1] for pair in pairs))
            found.append(
                f"{count:,} of {len(images):,} {part} images ({count / len(images):.1%}) show the same as {others:,} {where} images."
            )
        elif several and part != "train":
            found.append(f"No {part} image shows the same as an image of another part.")
    if done.first is done.second:
        for part, images in done.first.parts.items():
            within = {pair.second for pair in done.same if done.part(pair) == (part, part)}
            if within:
                found.append(f"{len(within):,} of {len(images):,} {part} images repeat an earlier one of {part}.")
            elif not several:
                found.append("No image repeats another one.")
    return "\n".join(found)


def _write(config: DedupConfig, done: Deduplicated, predictor: Predictor | None) -> None:
    folder = done.folder
    repeated = done.repeated()
    counts = Counter(pair.verdict for pair in done.pairs)
    with runs.Run(folder).hold():
        runs.write_json(
            folder / "config.json",
            {
                "command": "dedup",
                "asked": dataclasses.asdict(config),
                "environment": environment(torch.device("cpu") if predictor is None else predictor.device),
                "found": {
                    "images": {side: _sizes(which) for side, which in (("first", done.first), ("second", done.second))},
                    "pairs": dict(sorted(counts.items())),
                    "excluded": {part: len(indices) for part, indices in repeated.items()},
                    "unreadable": len(done.unreadable),
                },
            },
        )
        _write_table(folder / "duplicates.csv", done)
        for part in {**done.first.parts, **done.second.parts}:
            path = folder / f"exclude-{part}.txt"
            if part not in repeated:
                path.unlink(missing_ok=True)  # of an earlier comparison
                continue
            images = {**done.second.parts, **done.first.parts}[part]
            text = "".join(f"{line(images.name(i))}\n" for i in repeated[part])
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
        page.write(folder / "duplicates.html", _shown(config, done))
    if config.split is not None:
        _write_split(config, done, repeated)


def _sizes(side: Side) -> dict[str, int]:
    return {part: len(images) for part, images in side.parts.items()}


def _write_table(path: Path, done: Deduplicated) -> None:
    with text_output(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(exclusions.COLUMNS)
        for pair in done.pairs:
            cosine = "" if np.isnan(pair.cosine) else f"{pair.cosine:.4f}"
            numbers = [pair.hash, cosine, f"{pair.correlation:.4f}", f"{pair.detail:.4f}", int(pair.mirrored)]
            names = done.first.name(pair.first), done.second.name(pair.second)
            rows.writerow([*map(cell, names), *done.part(pair), *numbers, pair.verdict])


def _shown(config: DedupConfig, done: Deduplicated) -> page.Duplicates:
    def shown(side: Side, i: int) -> page.Shown:
        part, images, at = side.at(i)
        classes = " + ".join(side.classes(i))
        return page.Shown(name=images.name(at), part=part, classes=classes, picture=picture(images, at))

    def contradictory(pair: Pair) -> bool:
        one, other = set(done.first.classes(pair.first)), set(done.second.classes(pair.second))
        return bool(one and other) and one != other

    def twins(pair: Pair) -> page.Twins:
        return page.Twins(
            images=(shown(done.first, pair.first), shown(done.second, pair.second)),
            verdict=pair.verdict,
            correlation=pair.correlation,
            detail=pair.detail,
            cosine=None if np.isnan(pair.cosine) else pair.cosine,
            hash=pair.hash,
            mirrored=pair.mirrored,
            contradictory=pair.verdict in exclusions.SAME and contradictory(pair),
        )

    counts = Counter(pair.verdict for pair in done.pairs)
    same = sorted(done.same, key=lambda pair: (pair.verdict == "copy", pair.correlation + pair.detail))
    alike = sorted((pair for pair in done.pairs if pair.verdict == "similar"), key=lambda pair: -pair.correlation)
    return page.Duplicates(
        title="Near-duplicates",
        compared=_compared(config, done),
        finding=_finding(done),
        copies=counts["copy"],
        near=counts["near"],
        similar=counts["similar"],
        contradictory=sum(map(contradictory, same)),
        same=[twins(pair) for pair in same[:SHOWN]],
        alike=[twins(pair) for pair in alike[:SHOWN_ALIKE]],
    )


# --- The corrected split


def _refuse_split(config: DedupConfig, first: Side, second: Side) -> None:
    """ConfigError if the corrected split cannot be written; before anything is compared."""
    if config.split is None:
        return
    if config.split.endswith(".jsonl"):
        for side in (first, second):
            for images in side.parts.values():
                if not isinstance(images.store, Files):
                    advice = "Write a split file: --split NAME.json." if config.test is None else "Unpack them first."
                    raise ConfigError(
                        f"--split {config.split}: a table names image files, and those of {config.data} lie in archives or tables. {advice}"
                    )
    elif second.parts["train"].labels is None:
        raise ConfigError(
            f"--split {config.split}: the images of {config.data} have no classes; write a table: --split NAME.jsonl."
        )


def _write_split(config: DedupConfig, done: Deduplicated, repeated: Mapping[str, Mapping[int, None]]) -> None:
    assert config.split is not None
    left_out: dict[str, set[int]] = {}
    for pair in done.same:
        one, other = done.part(pair)
        if one == other or config.drop == "train":
            # Within a part the later one goes.
            if one != other or other == "train":
                left_out.setdefault(other, set()).add(done.second.at(pair.second)[2])
        else:
            left_out.setdefault(one, set()).add(done.first.at(pair.first)[2])
    kept = {}
    for part, images in {**done.second.parts, **done.first.parts}.items():
        rest = np.setdiff1d(np.arange(len(images)), sorted(left_out.get(part, ())))
        if not len(rest):
            raise RunError(
                f"--split {config.split}: no image of the {part} part is left; --drop decides which side gives way."
            )
        kept[part] = images.subset(rest)
    if config.split.endswith(".json"):
        splits.save_split(config.split, Splits(**kept))
        return
    base = os.path.abspath(os.path.dirname(config.split) or ".")
    with text_output(config.split) as stream:
        for part in ("train", "val", "test"):
            images = kept.get(part)
            for i in range(0 if images is None else len(images)):
                assert images is not None and isinstance(images.store, Files)
                path = os.path.relpath(os.path.abspath(images.store.path(int(images.rows[i]))), base)
                row: dict[str, Any] = {"image": path.replace(os.sep, "/")}
                if images.labels is not None:
                    names = [images.class_names[label] for label in np.atleast_1d(images.labels[i]) if label >= 0]
                    row["label"] = names if images.several else names[0]
                print(json.dumps({**row, "split": part}), file=stream)
