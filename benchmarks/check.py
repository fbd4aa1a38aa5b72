"""How well `bit check` finds errors that were planted among real images, beside cleanlab and cleanvision.

usage: [EACH=40] python -m benchmarks.check WORK SET...

SET/train/<class>/ or SET/<class>/. Of each set EACH images of each class are copied to WORK, and changed at random: 5% get the label of
another class, 4% are copied and re-encoded, 4% blurred (1.5% of the longer side) and 4% darkened (to a fifth). A quarter as many others
stay as they are, to measure what leaving out the suspected labels does. Labels that are wrong between the most similar classes are
planted among the same images, instead of the random ones. cleanlab and cleanvision run with their defaults if they are installed;
cleanlab gets the same probabilities. Prints Markdown.
"""

from __future__ import annotations

import io
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

import bigtransfer
from bigtransfer import weights
from bigtransfer.config import CheckConfig
from bigtransfer.data import open_dataset
from bigtransfer.evals import linear, suspects
from bigtransfer.jobs.check import looking
from bigtransfer.jobs.check.findings import find, findings, groups_of
from bigtransfer.jobs.check.looking import Parts

EACH = int(os.environ.get("EACH", "40"))
ENDINGS = (".jpg", ".jpeg", ".png")


def scored(found: Collection[object], planted: Collection[object]) -> str:
    """Precision and recall, as two cells."""
    right = len(set(found) & set(planted))
    precision = f"{right / len(set(found)):.2f} ({right} of {len(set(found))})" if found else "– (0 found)"
    return f"{precision} | {right / len(set(planted)):.2f} ({right} of {len(set(planted))})"


def planted(source: Path, target: Path, rng: random.Random) -> dict[str, set[str]]:
    """Copy and change images; names, relative to TARGET/train, of what was planted."""
    root = source / "train" if (source / "train").is_dir() else source
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    shutil.rmtree(target, ignore_errors=True)
    places: list[tuple[Path, str]] = []
    for name in classes:
        files = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in ENDINGS)
        rng.shuffle(files)
        for part, some in (("train", files[:EACH]), ("clean", files[EACH : EACH + max(4, EACH // 4)])):
            (target / part / name).mkdir(parents=True)
            for path in some:
                if part == "train":
                    places.append((path, name))
                else:
                    shutil.copy(path, target / part / name)
    rng.shuffle(places)
    few = [round(share * len(places)) for share in (0.05, 0.04, 0.04, 0.04)]
    kinds = ["wrong"] * few[0] + ["copied"] * few[1] + ["blurred"] * few[2] + ["dark"] * few[3]
    kinds += ["as it is"] * (len(places) - len(kinds))
    made: dict[str, set[str]] = {kind: set() for kind in ("wrong", "copied", "blurred", "dark")}
    for number, ((path, name), kind) in enumerate(zip(places, kinds, strict=True)):
        shown = name
        if kind == "wrong":
            shown = rng.choice([other for other in classes if other != name])
        image = Image.open(path).convert("RGB")
        if kind == "blurred":
            image = image.filter(ImageFilter.GaussianBlur(0.015 * max(image.size)))
        elif kind == "dark":
            image = ImageEnhance.Brightness(image).enhance(0.2)
        place = f"{shown}/{number}-{name}{path.suffix if kind not in ('blurred', 'dark') else '.png'}"
        if kind in ("blurred", "dark"):
            image.save(target / "train" / place)
        else:
            shutil.copy(path, target / "train" / place)
        if kind == "copied":
            encoded = io.BytesIO()
            image.save(encoded, "JPEG", quality=60)
            twin = f"{shown}/{number}-{name}-twin.jpg"
            (target / "train" / twin).write_bytes(encoded.getvalue())
            made["copied"].update((place, twin))
        elif kind != "as it is":
            made[kind].add(place)
    return made


def accuracy(
    features: torch.Tensor, labels: np.ndarray, keep: np.ndarray, test: tuple[torch.Tensor, torch.Tensor], classes: int
) -> str:
    probe = linear.fit(features[keep], torch.from_numpy(labels[keep]), classes)
    with torch.no_grad():
        right = probe.head(test[0]).argmax(1) == test[1]
    return f"{float(right.double().mean()):.1%}"


def measure(source: Path, work: Path) -> None:
    rng = random.Random(0)
    target = work / source.name
    made = planted(source, target, rng)
    config = CheckConfig(data=str(target / "train"))
    network = weights.load(config.model)
    data = open_dataset(config.data).train
    seen = Parts({"train": data})
    began = time.perf_counter()
    cpu = time.process_time()
    eye = looking.open_eye(config, network, len(seen))
    looked = looking.look(seen, eye, config)
    checked = find(seen, looked, within=True, folder=work, began=began)
    print(f"\n## {source.name}\n\n{len(data)} images of {len(data.class_names)} classes, looked at and judged in {checked.seconds:.0f} s "
          f"({time.process_time() - cpu:.0f} s of processor time)\n")  # fmt: skip
    names = [data.name(i) for i in range(len(data))]
    by_kind: dict[str, set[str]] = {}
    for one in findings(checked):
        by_kind.setdefault(one.finding, set()).add(names[one.image])
    pictures = {names[i] for pair in checked.same for i in (pair.first, pair.second)}
    rows = [
        ("copies (images in a pair)", "`bit check`", pictures, made["copied"]),
        ("blurred", "`bit check`", by_kind.get("blurred", set()), made["blurred"]),
        ("dark", "`bit check`", by_kind.get("dark", set()), made["dark"]),
    ]
    rows += cleanvision(target / "train", made)

    features, groups = torch.from_numpy(looked.features.astype(np.float32)), torch.from_numpy(groups_of(checked))
    assert data.labels is not None
    given, classes = np.asarray(data.labels).astype(np.int64), len(data.class_names)
    true = np.array([data.class_names.index(Path(name).stem.split("-", 1)[1].removesuffix("-twin")) for name in names])
    # Between the most similar classes, as a classifier of the true labels has them.
    probe = linear.fit(features, torch.from_numpy(true), classes)
    said = linear.left_out(features, torch.from_numpy(true), classes, probe, groups=groups).softmax(1).numpy()
    taken = np.stack([said[true == label].mean(0) for label in range(classes)])
    np.fill_diagonal(taken, -1)
    similar = true.copy()
    wrong = np.random.default_rng(0).choice(len(true), round(0.05 * len(true)), replace=False)
    similar[wrong] = taken[true[wrong]].argmax(1)
    clean = open_dataset(str(target / "clean")).train
    test = looking.look(Parts({"train": clean}), eye, config)
    assert clean.labels is not None
    held_out = torch.from_numpy(test.features.astype(np.float32)), torch.from_numpy(np.asarray(clean.labels))
    kept = []
    for kind, labels in (("random", given), ("similar", similar)):
        bad = np.flatnonzero(labels != true)
        found, agreement = suspects.wrong_labels(features, torch.from_numpy(labels), classes, groups=groups)
        chosen = [one.image for one in found]
        rows.append((f"labels, {kind}", "`bit check`", set(chosen), set(bad.tolist())))
        first = set(chosen[: len(bad)])
        rows.append((f"labels, {kind}", f"its first {len(bad)}", first, set(bad.tolist())))
        rows += cleanlab(kind, features, labels, classes, groups, bad)
        everything = np.arange(len(labels))
        kept.append(
            f"| {kind} | {accuracy(features, labels, everything, held_out, classes)} | "
            f"{accuracy(features, labels, np.setdiff1d(everything, chosen), held_out, classes)} | "
            f"{accuracy(features, labels, np.setdiff1d(everything, bad), held_out, classes)} | {agreement:.1%} |"
        )
    print("| planted | found by | precision | recall |\n|---|---|---|---|")
    for what, by, found, of in rows:
        print(f"| {what} | {by} | {scored(found, of)} |")
    print(f"\nThe closed form's accuracy on {len(clean)} other images of the set, learnt from\n")
    print(
        "| labels | all | without the suspects | without the wrong ones | images that the others agree with |\n|---|---|---|---|---|"
    )
    print("\n".join(kept), flush=True)


def cleanlab(
    kind: str, features: torch.Tensor, labels: np.ndarray, classes: int, groups: torch.Tensor, bad: np.ndarray
) -> list[tuple[str, str, set[int], set[int]]]:
    try:
        from cleanlab.filter import find_label_issues  # pyright: ignore
        from cleanlab.version import __version__ as version  # pyright: ignore
    except ImportError:
        return []
    probe = linear.fit(features, torch.from_numpy(labels), classes)
    said = linear.left_out(features, torch.from_numpy(labels), classes, probe, groups=groups).softmax(1).numpy()
    order = find_label_issues(labels, said, return_indices_ranked_by="self_confidence").tolist()
    wrong = set(bad.tolist())
    return [
        (f"labels, {kind}", f"cleanlab {version}", set(order), wrong),
        (f"labels, {kind}", f"its first {len(bad)}", set(order[: len(bad)]), wrong),
    ]


def cleanvision(folder: Path, made: dict[str, set[str]]) -> list[tuple[str, str, set[str], set[str]]]:
    try:
        from cleanvision import Imagelab  # pyright: ignore
    except ImportError:
        return []
    lab = Imagelab(data_path=str(folder))
    lab.find_issues(n_jobs=1, verbose=False)
    issues = lab.issues

    def those(*columns: str) -> set[str]:
        rows = issues[issues[[f"is_{column}_issue" for column in columns]].any(axis=1)]
        return {os.path.relpath(path, folder.resolve()) for path in rows.index}

    return [
        ("copies (images in a pair)", "cleanvision", those("exact_duplicates", "near_duplicates"), made["copied"]),
        ("blurred", "cleanvision", those("blurry"), made["blurred"]),
        ("dark", "cleanvision", those("dark"), made["dark"]),
    ]


def main(arguments: Sequence[str]) -> None:
    work, *sets = arguments
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"bigtransfer {bigtransfer.__version__} ({commit}), torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread(s)\n\n`EACH={EACH} python -m benchmarks.check {' '.join(arguments)}`",
        flush=True,
    )
    for one in sets:
        measure(Path(one), Path(work).resolve())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
