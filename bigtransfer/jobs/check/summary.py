"""What was found, in short: what to look at first."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from bigtransfer.config import CheckConfig
from bigtransfer.data.layout import quoted
from bigtransfer.evals import quality
from bigtransfer.evals.growth import Growth
from bigtransfer.evals.shortcuts import Shortcut
from bigtransfer.jobs.check.findings import Checked, findings
from bigtransfer.report.check import Topic
from bigtransfer.terminal import line

FEW = 10
"""Images of a class below which there are few."""


def topics(checked: Checked) -> list[Topic]:
    """What was found, the gravest first: what makes the measured accuracy wrong, then what spoils the training, then the rest."""
    found: list[Topic] = []

    def say(section: str, text: str) -> None:
        found.append(Topic(section=section, text=text))

    for text in _leaks(checked):
        say("same", text)
    for judged in checked.judged:
        for one in judged.shortcuts[:1]:
            if one.telling:
                say("shortcuts", _shortcut(one))
    if unreadable := len(checked.unreadable):
        say("unreadable", f"{_are(unreadable, 'image')} left out: not readable.")
    kinds = Counter(one.finding for one in findings(checked))
    if kinds["contradiction"]:
        say("same", f"{kinds['contradiction']:,} images show the same picture under different classes.")
    if suspects := kinds["label"]:
        share = suspects / len(checked.seen)
        say("labels", f"{_are(suspects, 'label')} likely to be wrong ({share:.1%} of all).")
    for text in _repeats(checked):
        say("same", text)
    if checked.imbalance is not None:
        say("classes", f"Imbalanced: {checked.imbalance}.")
    few = [name for name, count in checked.classes.get("train", {}).items() if count < FEW]
    if few:
        shown = ", ".join(map(quoted, few[:3])) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
        say("classes", f"{_count(len(few), 'class', 'classes')} with fewer than {FEW} training images: {shown}.")
    for flaw in quality.MEANINGS:
        if kinds[flaw]:
            say("flaws", f"{_are(kinds[flaw], 'image')} {_ADJECTIVES.get(flaw, flaw)}.")
    if kinds["outlier"]:
        say("outliers", f"{_are(kinds['outlier'], 'image')} like no other.")
    return found


_ADJECTIVES = {"uniform": "of one colour only", "odd shape": "of an odd shape"}


def nothing(checked: Checked) -> list[str]:
    """What was looked for and not found, in sentences."""
    found = []
    several = len(checked.seen.parts) > 1
    leaking = {checked.part(pair)[0] for pair in checked.leaks}
    for part in checked.seen.parts:
        if several and part != "train" and part not in leaking:
            found.append(f"No {part} image shows the same as an image of another part.")
    if checked.within and not several and not checked.same:
        found.append("No image repeats another one.")
    return found


def images(config: CheckConfig, checked: Checked) -> str:
    """Which images were looked at, in words."""
    parts = checked.seen.parts
    if config.test is not None:
        return f"test: {len(parts['test']):,} images of {config.test}; train: {len(parts['train']):,} images of {config.data}"
    listed = ", ".join(f"{len(part):,} of {name}" for name, part in parts.items())
    return f"{len(checked.seen):,} images of {config.data}" + (f": {listed}" if len(parts) > 1 else "")


def of(config: CheckConfig, checked: Checked) -> str:
    """What `bit check` prints."""
    rows = [f"{images(config, checked)}; looked at in {checked.seconds:.0f} s", ""]
    found = topics(checked)
    if found:
        rows.append("what to look at first:")
        rows += [f"  {number}. {line(topic.text)}" for number, topic in enumerate(found, 1)]
    rows += nothing(checked)
    if not found:
        rows.append("Nothing else was found.")
    for judged in checked.judged:
        if judged.growth is not None:
            rows += ["", _growth(judged.growth, judged.of.class_names)]
    if not config.features:
        rows.append("Labels and outliers were not looked for: --no-features.")
    elif any(part.several for part in checked.seen.parts.values()):
        rows.append("Labels and shortcuts were not looked for: images have several labels each.")
    if checked.unreadable:
        errors = list(checked.unreadable.values())
        rows += ["", f"{_count(len(errors), 'image')} cannot be read:"]
        rows += [f"  {line(str(error))}" for error in errors[:10]]
        if len(errors) > 10:
            rows.append(f"  ... and {len(errors) - 10} more")
    table = checked.folder / "findings.csv"
    rows += ["", f"page:   {checked.folder / 'check.html'}"]
    rows.append(f"table:  {table}" + (f"; pairs: {checked.folder / 'duplicates.csv'}" if checked.pairs else ""))
    left_out = [one for one in findings(checked) if one.exclude]
    for side, command in (
        ("train", f"bit finetune {shlex.quote(config.data)}"),
        ("test", f"bit evaluate MODEL {shlex.quote(config.data if config.test is None else config.test)}"),
    ):
        if side == "train" and (why_not := _not_learnt(checked)):
            rows.append(why_not)
            continue
        count = len({one.image for one in left_out if one.exclude in (side, "all")})
        if count and (side == "train" or any(one.exclude == side for one in left_out)):
            rows.append(f"use:    {command} --exclude {shlex.quote(str(table))}   ({_count(count, 'image')})")
    if (path := split_file(config, checked)) is not None and Path(path).is_file():
        rows.append(f"split:  {path}")
    return "\n".join(rows)


def _not_learnt(checked: Checked) -> str:
    """Why nothing can be learnt from the training images, in a sentence; empty if it can."""
    train = checked.seen.parts.get("train")
    if train is None:
        return ""
    if train.labels is None:
        return "note:   these images have no classes; for `bit finetune` put them into one folder per class."
    if len(train.class_names) < 2:
        return "note:   these images are of one class; `bit finetune` needs two at least."
    return ""


def split_file(config: CheckConfig, checked: Checked) -> str | None:
    """Where the corrected split is written; None if there is no need of one, and none was asked for."""
    if config.split is not None or not checked.within or not checked.leaks:
        return config.split
    train = checked.seen.parts.get("train")
    return str(checked.folder / "split.json") if train is not None and train.labels is not None else None


def _leaks(checked: Checked) -> list[str]:
    found = []
    for part, of_part in checked.seen.parts.items():
        pairs = [pair for pair in checked.leaks if checked.part(pair)[0] == part]
        if pairs:
            count, others = len({pair.first for pair in pairs}), len({pair.second for pair in pairs})
            where = " or ".join(dict.fromkeys(checked.part(pair)[1] for pair in pairs))
            found.append(
                f"{count:,} of {len(of_part):,} {part} images ({count / len(of_part):.1%}) show the same as {others:,} {where} images: "
                "what is measured on them looks better than it is."
            )
    return found


def _repeats(checked: Checked) -> list[str]:
    found = []
    for part, of_part in checked.seen.parts.items():
        within = {pair.second for pair in checked.same if checked.part(pair) == (part, part)}
        if within:
            found.append(f"{len(within):,} of {len(of_part):,} {part} images repeat an earlier one of {part}.")
    return found


def _shortcut(one: Shortcut) -> str:
    return (
        f"A shortcut: the {one.trait} alone tells the class of {one.recall:.0%} of the images (mean per class), guessing of "
        f"{one.chance:.0%}."
    )


def _growth(found: Growth, class_names: tuple[str, ...]) -> str:
    now, (twice, four) = found.points[-1], found.forecasts
    text = (
        f"more photos: {now.accuracy:.1%} with {now.images:,} (closed form); with {twice.images:,} about {twice.accuracy:.1%} "
        f"({twice.low:.1%} to {twice.high:.1%}), with {four.images:,} about {four.accuracy:.1%} ({four.low:.1%} to {four.high:.1%})"
    )
    remark = f". {found.remark}" if found.remark else ""
    first = [line(quoted(class_names[gain.label])) for gain in found.gains[:3] if gain.doubled - gain.recall > 0.005]
    return text + (f"; most by {', '.join(first)}" if first and len(class_names) > 2 else "") + remark


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _are(number: int, one: str) -> str:
    """ "1 image is", "2 images are"."""
    return f"{_count(number, one)} {'is' if number == 1 else 'are'}"
