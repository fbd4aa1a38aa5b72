"""`bit demo`: from a folder of images to a classifier, on real handwritten digits that scikit-learn ships."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from bigtransfer.config import DemoConfig, FinetuneConfig, command_line
from bigtransfer.data import open_dataset
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals.metrics import wilson
from bigtransfer.jobs import finetune

TEST_PER_CLASS = 50
MARKER = "written-by-bit-demo.txt"


def run(config: DemoConfig) -> int:
    """Write the images, train, compare. Needs scikit-learn; ConfigError without."""
    out = _fresh(Path(config.out))
    images = out / "digits"
    write_digits(images, config.examples_per_class, config.seed)
    learnt, tested = 10 * config.examples_per_class, 10 * TEST_PER_CLASS
    print(f"{images}: {learnt} handwritten digits to learn from, {tested} others to be tested on,")
    print("as PNG files of 8 x 8 px in one folder per class: just what a folder of your own photos would be.\n")

    asked = FinetuneConfig(
        data=str(images),
        out=str(out / "pretrained"),
        budget=config.budget,
        flip=False,  # a mirrored digit is another sign
        seed=config.seed,
    )
    pretrained = _finetune(asked)
    # The very same training, step for step: asked by its numbers, for a second budget might buy more or fewer steps.
    recipe = pretrained.recipe
    random = _finetune(
        dataclasses.replace(
            asked,
            out=str(out / "random"),
            pretrained=False,
            budget=None,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            learning_rate=recipe.base_learning_rate,
            resize=recipe.resize,
            crop=recipe.crop,
        )
    )
    rows = {
        f"{asked.model}, fine-tuned": pretrained.metrics["test_top1"],
        "the same network from random weights": random.metrics["test_top1"],
        "a linear classifier on the pixels": linear_on_pixels(images),
    }
    print(f"Correct on the {tested} images that none of them had seen (95% interval):")
    for title, accuracy in rows.items():
        low, high = wilson(accuracy, tested)
        print(f"  {title:<38}{accuracy:7.1%}   ({low:.1%} to {high:.1%})")
    print(
        "Digits of 8 x 8 px have little in common with the photographs this network has seen, so its start is worth little here.\n"
        "On photographs it is worth more: see its card and its measurements, bigtransfer/pretrained/bit-t-r26x1.md."
    )
    print(f"\nThe report, to open in a browser: {out / 'pretrained' / 'report.html'}")
    print("Next, with your own images, one folder per class:\n  bit finetune path/to/photos --budget 10m")
    return 0


def _finetune(asked: FinetuneConfig) -> finetune.Finetuned:
    """What `bit finetune` does, under the command that does it; KeyboardInterrupt if it was stopped."""
    print(f"$ {command_line('finetune', dataclasses.asdict(asked))}\n", flush=True)
    done = finetune.finetune(asked)
    print()
    if done.stopped_by is not None:
        raise KeyboardInterrupt
    return done


def _fresh(out: Path) -> Path:
    """The demo's folder, without what an earlier demo left; RunError if it holds anything else."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not from an earlier demo. Choose another folder with --out.")
    for name in ("digits", "pretrained", "random"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("`bit demo` made this folder and overwrites it.\n", encoding="utf-8")
    return out


def write_digits(folder: Path, per_class: int, seed: int) -> None:
    """Write `per_class` images of each digit to folder/train/DIGIT and 50 others to folder/test/DIGIT, as 8 x 8 grey PNG.

    Source: scikit-learn's `load_digits`, the 1,797 images of the test part of UCI's optical handwritten digits. ConfigError if
    there are not that many.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("`bit demo` needs scikit-learn for its images: pip install 'bigtransfer[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # counts of 0..16
    most = np.bincount(labels).min() - TEST_PER_CLASS
    if per_class > most:
        raise ConfigError(f"--examples-per-class can be {most} at most for this data set, not {per_class}.")
    random = np.random.default_rng(seed)
    for label in range(10):
        chosen = random.permutation(np.flatnonzero(labels == label))
        for part, indices in (("train", chosen[:per_class]), ("test", chosen[per_class:][:TEST_PER_CLASS])):
            home = folder / part / str(label)
            home.mkdir(parents=True)
            for index in indices:
                Image.fromarray(pixels[index]).save(home / f"{index:04}.png")


def linear_on_pixels(folder: Path) -> float:
    """Test accuracy of scikit-learn's logistic regression on the raw pixels of the same files."""
    from sklearn.linear_model import LogisticRegression

    splits = open_dataset(folder, channels=1)
    assert splits.test is not None
    (train, labels), (test, truth) = (
        (np.stack([part.read(i).ravel() / 255 for i in range(len(part))]), part.labels)
        for part in (splits.train, splits.test)
    )
    return LogisticRegression(max_iter=1000).fit(train, labels).score(test, truth)
