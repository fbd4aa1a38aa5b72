"""The images of a fine-tuning: opened, checked, held out, and compared for copies."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtransfer import data, hyperrule, weights
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import ImageSet, Splits, checks, exclusions, splits
from bigtransfer.errors import ConfigError, DataError, DownloadError, UnreadableImages
from bigtransfer.evals import shortcuts
from bigtransfer.jobs import training
from bigtransfer.terminal import line

OWN_VALIDATION = 0.1
"""Share of the training images held out where the data set brings neither validation nor test images."""

COMPARED = 50_000
"""Validation and test sets of at most this many images are searched for copies of training images."""

JUDGING = 10
"""Training images per class from which on some are held out to choose the best of several classifiers by. Fewer cannot be spared, and
would not tell them apart."""

JUDGES, MOST_JUDGES = 100, 0.2
"""So many images are held out for that at least, but no larger share than this."""


def channels(config: FinetuneConfig) -> int:
    """Channels of the images that the model takes; 3 if it has still to be downloaded, which comes after the data are checked."""
    if config.pretrained:
        with contextlib.suppress(DownloadError):
            return weights.describe(config.model).architecture.in_chans
    return 3


def opened(config: FinetuneConfig, channels: int) -> Splits:
    """The data set as it lies there; lists of labels that all hold one are labels."""
    there = data.open_dataset(
        config.data,
        multi_label=True,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        channels=channels,
    )
    return there if config.label_separator is not None else splits.single(there)


def left(config: FinetuneConfig, opened: Splits) -> tuple[Splits, dict[str, int]]:
    """The data set without the images that --exclude names, and how many of each part those are."""
    return (opened, {}) if config.exclude is None else exclusions.without(opened, config.exclude)


def counted(config: FinetuneConfig, parts: Splits) -> dict[str, Any]:
    """What of the data is used, for the record."""
    return {
        "name": config.data,
        "train": len(parts.train),
        "val": len(parts.val) if parts.val else 0,
        "test": len(parts.test) if parts.test else 0,
        "classes": len(parts.train.class_names),
    }


def state(opened: Splits) -> dict[str, Any]:
    """What is in the data set, for the record: to notice when that changes."""
    return {"found": sum(map(len, opened.parts().values())), "fingerprint": checks.fingerprint(opened)}


def changed(opened: Splits, then: Mapping[str, Any]) -> bool:
    """Whether the data set holds other images, or other classes of them, than on the record of an earlier start."""
    return "fingerprint" in then and checks.fingerprint(opened) != then["fingerprint"]


def usable(
    config: FinetuneConfig, parts: Splits, resumed: Path | None, *, as_it_is: bool = False
) -> tuple[Splits, list[dict[str, str]]]:
    """The images to train, validate and test on, all of them readable, and names and reasons of the ones that are not. as_it_is: nothing
    is held out unless asked for, and classes may be without images."""
    if parts.train.labels is None:
        raise DataError(
            " ".join([f"{config.data} has no classes. Put the images into one folder per class.", *parts.notes])
        )
    for note in parts.notes:
        print(f"note: {note}", file=sys.stderr)
    if parts.train.several and config.linear == "closed":
        raise ConfigError(
            f"--linear closed solves for one class per image; those of {config.data} have several. Use --linear sgd, or none."
        )
    if parts.train.several and config.balance:
        raise ConfigError(
            f"--balance is for one class per image; those of {config.data} have several, each learnt by itself."
        )
    split_file = resumed / "split.json" if resumed else config.split_file
    if split_file is not None:
        # What the split names was readable when it was made, so that resuming does not decode everything again.
        parts = splits.load_split(split_file, parts)
        if resumed:
            return parts, []
    elif config.test_fraction:
        parts = _with_test(parts, config.test_fraction, config.seed)
    unreadable: list[dict[str, str]] = []
    refused: list[UnreadableImages] = []
    looked_at = 0

    def readable(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        if images.labels is None:
            print(
                f"note: {len(images)} images for validation or test have no classes; they are not used", file=sys.stderr
            )
            return None
        nonlocal looked_at
        looked_at += len(images)
        try:
            kept, bad = training.readable(images, config.skip_bad_images)
        except UnreadableImages as error:  # told together with those of the other parts, to be mended at one go
            refused.append(error)
            return images
        unreadable.extend(bad)
        return kept

    train = parts.train
    if config.examples_per_class is not None:
        # Drawn before the check: thousands of images need not be decoded to train on ten.
        train = splits.per_class(train, config.examples_per_class, config.seed)
    train, val, test = readable(train), readable(parts.val), readable(parts.test)
    assert train is not None
    if refused:
        raise UnreadableImages([image for error in refused for image in error.images], looked_at)
    if unreadable:
        told = "1 unreadable image is left out; the report lists it"
        if len(unreadable) > 1:
            told = f"{len(unreadable)} unreadable images are left out; the report lists them"
        print(f"note: {told}", file=sys.stderr)
    if split_file is None:
        fraction = 0.0 if as_it_is and config.val_fraction is None else config.val_fraction
        if fraction is None:
            share = min(MOST_JUDGES, max(OWN_VALIDATION, JUDGES / max(1, len(train))))
            # Images that judge a training are taken from it; of fewer than it needs there is none to be judged.
            trained = config.steps is not None or hyperrule.enough_to_tune(int((1 - share) * len(train)))
            several = len(train) >= JUDGING * len(train.class_names)
            judged = config.budget is not None and config.pretrained and trained and several
            wanted = val is None and (test is None or train.several or judged)
            fraction = OWN_VALIDATION if wanted and train.class_counts().max() > 1 else 0.0
            if fraction and judged:
                fraction = share
        elif fraction > 0 and val is not None:
            raise ConfigError("--val-fraction has no effect: the data set has a validation part of its own.")
        if fraction > 0:
            train, val = splits.hold_out(train, fraction, config.seed)
    counts = train.class_counts()
    if not as_it_is and config.examples_per_class is None and counts.max() == 1 and len(counts) > 10:
        print(
            f"warning: each of the {len(train):,} training images is a class of its own; is what was taken for the classes something else, "
            "such as a number or a caption?",
            file=sys.stderr,
        )
    if len(train.class_names) < 2:
        raise DataError(
            f"{config.data} has one class only ({', '.join(train.class_names)}): there is nothing to tell apart."
        )
    empty = [name for name, count in zip(train.class_names, train.class_counts(), strict=True) if count == 0]
    if empty and not as_it_is:
        raise DataError(f"No training image of {', '.join(empty[:10])}. Add some, or remove the class.")
    return Splits(train=train, val=val, test=test, notes=parts.notes), unreadable


def _with_test(parts: Splits, fraction: float, seed: int) -> Splits:
    """With images held out of the training part for the test; ConfigError if there is a labelled test part already."""
    if parts.test is not None and parts.test.labels is not None:
        raise ConfigError("--test-fraction has no effect: the data set has a test part of its own.")
    train, test = splits.hold_out(parts.train, fraction, seed)
    return dataclasses.replace(parts, train=train, test=test)


def lent(config: FinetuneConfig, there: Splits, parts: Splits) -> ImageSet | None:
    """The validation images of `parts` if they were taken from the training images of the data set `there` without anybody's asking: what
    they have served for, they may be learnt from as well."""
    asked = config.val_fraction is not None or config.split_file is not None
    own = there.val is not None and there.val.labels is not None
    return None if asked or own else parts.val


def given_away(config: FinetuneConfig, images: ImageSet) -> str:
    """A warning, told and returned, if the files alone give the classes of the training images away; else empty."""
    if images.several:
        return ""
    found = next((one for one in shortcuts.judge_all(*checks.file_traits(images)) if one.telling), None)
    if found is None:
        return ""
    told = (
        f"By the {found.trait} alone the class of {found.recall:.0%} of the training images is told (mean per class; guessing: "
        f"{found.chance:.0%}). A model may go by that, and be wrong where it is otherwise. Take the images of all classes in the same way; "
        f"more is said by: bit check {line(config.data)}"
    )
    print(f"warning: {told}", file=sys.stderr)
    return told


def find_copies(parts: Splits) -> list[list[checks.Copy]]:
    """Images that are there more than once, told and returned."""
    compared = {part: images for part, images in parts.parts().items() if part == "train" or len(images) <= COMPARED}
    if len(compared) == 1 and len(parts.train) > COMPARED:
        return []
    copies = checks.find_copies(compared)
    kinds = (
        ("is", "are", "in several parts of the data; accuracy will look better than it is", checks.leaked),
        ("stands", "stand", "under different classes, of which only one can be right", checks.contradictory),
    )
    for singular, plural, where, found in kinds:
        if groups := list(filter(found, copies)):
            what = f"1 picture {singular}" if len(groups) == 1 else f"{len(groups):,} pictures {plural}"
            shown = "; ".join(" = ".join(one.name for one in group[:3]) for group in groups[:5])
            more = f"; and {len(groups) - 5:,} more" if len(groups) > 5 else ""
            print(f"warning: {what} {where}: {shown}{more}. The report lists them.", file=sys.stderr)
    repeated = sum(not checks.leaked(group) and not checks.contradictory(group) for group in copies)
    if repeated:
        what = "1 picture is" if repeated == 1 else f"{repeated:,} pictures are"
        print(f"note: {what} there more than once; the report lists them", file=sys.stderr)
    return copies
