"""The files of `bit check`: tables, page, corrected split."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer import runs
from bigtransfer.config import CheckConfig
from bigtransfer.data import Splits, exclusions, splits
from bigtransfer.data.sources import Files
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals import growth, quality
from bigtransfer.evals.duplicates import Pair
from bigtransfer.jobs.check import summary
from bigtransfer.jobs.check.findings import Checked, findings
from bigtransfer.jobs.check.looking import Parts
from bigtransfer.jobs.plan import environment
from bigtransfer.outputs import text_output
from bigtransfer.report import check as page
from bigtransfer.report.pictures import picture
from bigtransfer.terminal import cell

SHOWN, SHOWN_ALIKE = 120, 40
"""Pairs on the page at most: of the same picture, and only alike."""

FILES = ("findings.csv", "duplicates.csv", "check.html", "split.json")
"""Beside config.json."""

LABELS, FLAWS, OUTLIERS = 120, 24, 36
"""Pictures on the page at most: of labels, of each flaw, of outliers."""


def write(config: CheckConfig, checked: Checked, device: str | None) -> None:
    """Write everything into the folder, and the corrected split."""
    folder = checked.folder
    found = findings(checked)
    with runs.Run(folder).hold(FILES):
        runs.write_json(
            folder / "config.json",
            {
                "command": "check",
                "asked": dataclasses.asdict(config),
                "environment": environment(device or "cpu"),
                "found": {
                    "images": {part: len(images) for part, images in checked.seen.parts.items()},
                    "pairs": dict(sorted(Counter(pair.verdict for pair in checked.pairs).items())),
                    "findings": dict(Counter(one.finding for one in found)),
                    "agreement": [judged.agreement for judged in checked.judged],
                    "shortcuts": [dataclasses.asdict(one) for judged in checked.judged for one in judged.shortcuts],
                    "growth": [
                        dataclasses.asdict(judged.growth) for judged in checked.judged if judged.growth is not None
                    ],
                    "seconds": round(checked.seconds, 1),
                },
            },
        )
        _write_findings(folder / "findings.csv", checked)
        _write_pairs(folder / "duplicates.csv", checked)
        page.write(folder / "check.html", _shown(config, checked))
        if config.split is None:
            # Of an earlier check.
            (folder / "split.json").unlink(missing_ok=True)
    if (path := summary.split_file(config, checked)) is not None:
        _write_split(config, checked, path)


def _write_findings(path: Path, checked: Checked) -> None:
    seen = checked.seen
    with text_output(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(exclusions.FINDINGS)
        for one in findings(checked):
            rows.writerow(
                [
                    cell(seen.name(one.image)),
                    seen.part(one.image),
                    cell(" + ".join(seen.classes(one.image))),
                    one.finding,
                    "" if one.score is None else f"{one.score:.4g}",
                    cell(one.likely),
                    "" if one.other is None else cell(seen.name(one.other)),
                    one.exclude,
                ]
            )


def _write_pairs(path: Path, checked: Checked) -> None:
    with text_output(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(exclusions.COLUMNS)
        for pair in checked.pairs:
            cosine = "" if np.isnan(pair.cosine) else f"{pair.cosine:.4f}"
            numbers = [pair.hash, cosine, f"{pair.correlation:.4f}", f"{pair.detail:.4f}", int(pair.mirrored)]
            names = checked.seen.name(pair.first), checked.seen.name(pair.second)
            rows.writerow([*map(cell, names), *checked.part(pair), *numbers, pair.verdict])


# --- The page


def _shown(config: CheckConfig, checked: Checked) -> page.Page:
    seen = checked.seen

    def shown(i: int) -> page.Shown:
        part, images, at = seen.at(i)
        return page.Shown(
            name=images.name(at), part=part, classes=" + ".join(seen.classes(i)), picture=picture(images, at)
        )

    def twins(pair: Pair) -> page.Twins:
        return page.Twins(
            images=(shown(pair.first), shown(pair.second)),
            verdict=pair.verdict,
            correlation=pair.correlation,
            detail=pair.detail,
            cosine=None if np.isnan(pair.cosine) else pair.cosine,
            hash=pair.hash,
            mirrored=pair.mirrored,
            contradictory=checked.contradictory(pair),
        )

    counts = Counter(pair.verdict for pair in checked.pairs)
    same = sorted(
        checked.same,
        key=lambda pair: (
            len(set(checked.part(pair))) == 1,
            not checked.contradictory(pair),
            pair.verdict == "copy",
            pair.correlation + pair.detail,
        ),
    )
    alike = sorted((pair for pair in checked.pairs if pair.verdict == "similar"), key=lambda pair: -pair.correlation)
    suspects = [(judged.of.class_names, one) for judged in checked.judged for one in judged.suspects]
    flaws = []
    for flaw, meaning in quality.MEANINGS.items():
        of_it = sorted((one for one in checked.flaws if one.flaw == flaw), key=lambda one: -one.score)
        if of_it:
            flaws.append(
                page.Flaw(
                    flaw=flaw, meaning=meaning, images=len(of_it), shown=[shown(one.image) for one in of_it[:FLAWS]]
                )
            )
    return page.Page(
        title=f"Check of {Path(config.data).name or config.data}",
        images=summary.images(config, checked),
        total=len(seen),
        topics=summary.topics(checked),
        nothing=summary.nothing(checked),
        labels=[
            page.Label(
                image=shown(one.image),
                likely=names[one.likely],
                own_probability=one.own_probability,
                likely_probability=one.likely_probability,
            )
            for names, one in suspects[:LABELS]
        ],
        suspects=len(suspects),
        agreement=next((judged.agreement for judged in checked.judged if judged.agreement is not None), None),
        copies=counts["copy"],
        near=counts["near"],
        similar=counts["similar"],
        contradictory=sum(map(checked.contradictory, same)),
        same=[twins(pair) for pair in same[:SHOWN]],
        alike=[twins(pair) for pair in alike[:SHOWN_ALIKE]],
        shortcuts=[one for judged in checked.judged for one in judged.shortcuts],
        growth=next(
            (
                page.More(growth=judged.growth, class_names=judged.of.class_names, share=growth.INTERVAL)
                for judged in checked.judged
                if judged.growth is not None
            ),
            None,
        ),
        flaws=flaws,
        outliers=[shown(one.image) for one in checked.outliers[:OUTLIERS]],
        all_outliers=len(checked.outliers),
        classes=_classes(checked),
        parts=list(checked.classes),
        unreadable=[(error.name, error.reason) for error in checked.unreadable.values()],
    )


def _classes(checked: Checked) -> list[page.ClassRow]:
    """Every class, the smallest first."""
    suspected = Counter(judged.of.class_names[one.label] for judged in checked.judged for one in judged.suspects)
    names = dict.fromkeys(name for counts in checked.classes.values() for name in counts)
    rows = [
        page.ClassRow(
            name=name,
            counts=[counts.get(name, 0) for counts in checked.classes.values()],
            suspects=suspected[name],
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: sum(row.counts))


# --- The corrected split


def refuse_split(config: CheckConfig, seen: Parts) -> None:
    """ConfigError if the corrected split cannot be written; before anything is compared."""
    if config.split is None:
        return
    if config.split.endswith(".jsonl"):
        for images in seen.parts.values():
            if not isinstance(images.store, Files):
                advice = "Write a split file: --split NAME.json." if config.test is None else "Unpack them first."
                raise ConfigError(
                    f"--split {config.split}: a table names image files, and those of {config.data} lie in archives or tables. {advice}"
                )
    elif seen.parts["train"].labels is None:
        raise ConfigError(
            f"--split {config.split}: the images of {config.data} have no classes; write a table: --split NAME.jsonl."
        )


def _write_split(config: CheckConfig, checked: Checked, path: str) -> None:
    left_out: set[int] = set(checked.unreadable)
    for pair in checked.same:
        one, other = checked.part(pair)
        if one == other or config.drop == "train":
            # Within a part the later one goes.
            if one != other or other == "train":
                left_out.add(pair.second)
        else:
            left_out.add(pair.first)
    kept = {}
    start = 0
    for part, images in checked.seen.parts.items():
        rest = np.array([i for i in range(len(images)) if start + i not in left_out], dtype=np.int64)
        start += len(images)
        if not len(rest):
            if config.split is None:  # nobody asked for one
                return
            raise RunError(f"--split {path}: no image of the {part} part is left; --drop decides which side gives way.")
        kept[part] = images.subset(rest)
    if path.endswith(".json"):
        splits.save_split(path, Splits(**kept))
        return
    base = os.path.abspath(os.path.dirname(path) or ".")
    with text_output(path) as stream:
        for part in ("train", "val", "test"):
            images = kept.get(part)
            for i in range(0 if images is None else len(images)):
                assert images is not None and isinstance(images.store, Files)
                place = os.path.relpath(os.path.abspath(images.store.path(int(images.rows[i]))), base)
                row: dict[str, Any] = {"image": place.replace(os.sep, "/")}
                if images.labels is not None:
                    names = [images.class_names[label] for label in np.atleast_1d(images.labels[i]) if label >= 0]
                    row["label"] = names if images.several else names[0]
                print(json.dumps({**row, "split": part}), file=stream)
