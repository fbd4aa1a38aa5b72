"""How well `bit check` finds near-duplicates: changed copies of real images, the public lists of CIFAR's, leaks of real sets.

usage: python -m benchmarks.duplicates changes WORK SET...             images of SET/test/<class>/ and ten changed copies of each
       python -m benchmarks.duplicates strangers WORK SET SET...       the images of the first set against those of the others
       python -m benchmarks.duplicates cifar WORK CIFAR LISTS [N]      CIFAR/{train,test}/<class>/NNNN.*: its place among its class
       python -m benchmarks.duplicates leaks WORK SET...               SET/{train,test}: what is in both

Each runs the command itself, in WORK, and prints what came out as Markdown. LISTS: a folder with cifair_duplicates_cifar10.csv (Barz &
Denzler) and labels.json (`{"train": [...], "test": [...]}`, CIFAR-10's labels in the original order).
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageEnhance, ImageOps

import bigtransfer
from bigtransfer import cli

EACH = int(os.environ.get("EACH", "60"))
"""Images of each set that `changes` and `strangers` take."""


def encoded(image: Image.Image, _: random.Random) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file).convert("RGB")


def scaled(factor: float) -> Callable[[Image.Image, random.Random], Image.Image]:
    return lambda image, _: image.resize((max(8, round(image.width * factor)), max(8, round(image.height * factor))))


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    """A window of 90% of height and width, anywhere."""
    width, height = round(0.9 * image.width), round(0.9 * image.height)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


CHANGES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "JPEG, quality 50": encoded,
    "half size": scaled(0.5),
    "double size": scaled(2),
    "crop 90%, anywhere": cropped,
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "brightness +20%": lambda image, _: ImageEnhance.Brightness(image).enhance(1.2),
    "brightness -20%": lambda image, _: ImageEnhance.Brightness(image).enhance(0.8),
    "border 4%, black": lambda image, _: ImageOps.expand(image, border=max(1, round(0.04 * max(image.size)))),
    "crop, mirrored, JPEG 50": lambda image, rng: encoded(ImageOps.mirror(cropped(image, rng)), rng),
    "central square": lambda image, _: ImageOps.fit(image, (min(image.size),) * 2),
}
"""The last is more than the aim asks for: of a picture of 3:2 it keeps two thirds."""


def drawn(folder: Path, count: int) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    random.Random(0).shuffle(paths)
    return paths[:count]


def command(*arguments: str) -> float:
    """Run `bit check`; seconds."""
    print(f"\n`bit check {' '.join(arguments)}`\n", flush=True)
    started = time.perf_counter()
    status = cli.main(["check", *arguments])
    if status != 0:
        raise SystemExit(f"exit status {status}")
    return time.perf_counter() - started


def found(folder: Path) -> list[dict[str, str]]:
    with open(folder / "duplicates.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["verdict"] != "similar"]


def changes(work: Path, sets: Sequence[str]) -> None:
    shutil.rmtree(work / "changes", ignore_errors=True)
    rng = random.Random(1)
    count = 0
    for name in sets:
        for number, path in enumerate(drawn(Path(name) / "test", EACH)):
            image = Image.open(path).convert("RGB")
            original = f"{Path(name).name}-{number}"
            places = [work / "changes" / "train" / "all" / f"{original}.png"]
            places += [work / "changes" / "test" / change / f"{original}.png" for change in CHANGES]
            images = [image, *(change(image, rng) for change in CHANGES.values())]
            for place, one in zip(places, images, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                one.save(place)
            count += 1
    for flags in ([], ["--no-features"]):
        out = work / "changes" / ("hashes" if flags else "features")
        base = work / "changes"
        seconds = command(str(base / "train"), str(base / "test"), "--out", str(out), *flags)
        right: Counter[str] = Counter()
        wrong = []
        for row in found(out):
            change, name = row["test"].split("/")
            if name == Path(row["train"]).name:
                right[change] += 1
            else:
                wrong.append((row["test"], row["train"]))
        images, pairs = count * (1 + len(CHANGES)), count * count * len(CHANGES)
        print(f"\n{images:,} images, {pairs:,} pairs in {seconds:.0f} s ({images / seconds:.0f} images/s)\n")
        print("| change | found | recall |\n|---|---|---|")
        for change in CHANGES:
            print(f"| {change} | {right[change]} of {count} | {right[change] / count:.3f} |")
        asked = sum(right[change] for change in list(CHANGES)[:-1])
        print(
            f"| all but the last | {asked} of {count * (len(CHANGES) - 1)} | {asked / count / (len(CHANGES) - 1):.3f} |"
        )
        print(
            f"\npairs of different pictures called the same: {len(wrong)} ({len(wrong) / pairs * 1e6:.1f} per million)"
        )
        for one, other in wrong[:10]:
            print(f"- {one} = {other}")


def strangers(work: Path, sets: Sequence[str]) -> None:
    shutil.rmtree(work / "strangers", ignore_errors=True)
    counts = [0, 0]
    for which, name in enumerate(sets):
        side = "test" if which == 0 else "train"
        for number, path in enumerate(drawn(Path(name), 5 * EACH)):
            place = work / "strangers" / side / Path(name).name / f"{number}{path.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
            counts[which > 0] += 1
    base = work / "strangers"
    seconds = command(str(base / "train"), str(base / "test"), "--out", str(base / "out"))
    rows, pairs = found(base / "out"), counts[0] * counts[1]
    print(f"\n{sum(counts):,} images, {pairs:,} pairs in {seconds:.0f} s ({sum(counts) / seconds:.0f} images/s)")
    print(f"\ncalled the same: {len(rows)} ({len(rows) / pairs * 1e6:.2f} per million pairs)")
    for row in rows[:20]:
        print(f"- {row['test']} = {row['train']}: {row['correlation']}, fine {row['detail']}, cosine {row['cosine']}")


def cifar(work: Path, images: Path, lists: Path, count: int = 2000, trained: int = 50_000) -> None:
    """The listed test images and others, `count` in all, against `trained` training images, all listed ones among them."""
    labels = json.loads((lists / "labels.json").read_text())
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    with open(lists / "cifair_duplicates_cifar10.csv", encoding="utf-8") as file:
        listed = {(int(row["TestID"]), int(row["TrainID"])): int(row["Judgment"]) for row in csv.DictReader(file)}
    shutil.rmtree(work / "cifar", ignore_errors=True)
    for part, size in (("test", count), ("train", trained)):
        seen: dict[int, int] = defaultdict(int)
        paths = []
        for label in labels[part]:
            (path,) = (images / part / names[label]).glob(f"{seen[label]:04d}.*")
            paths.append(path)
            seen[label] += 1
        wanted = {pair[part == "train"] for pair in listed}
        others = sorted(set(range(len(paths))) - wanted)
        random.Random(0).shuffle(others)
        for place in sorted(wanted) + others[: size - len(wanted)]:
            link = work / "cifar" / part / names[labels[part][place]] / f"{place}{paths[place].suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(paths[place])
    base = work / "cifar"
    for flags in [["--no-features"], []] if trained <= 10_000 else [["--no-features"]]:
        out = base / ("hashes" if flags else "features")
        seconds = command(str(base / "train"), str(base / "test"), "--out", str(out), *flags)
        pairs = {(int(Path(row["test"]).stem), int(Path(row["train"]).stem)) for row in found(out)}
        tests = {one for one, _ in pairs}
        print(f"\n{count + trained:,} images, {count * trained:,} pairs in {seconds:.0f} s\n")
        print("| judgement | pairs listed | found | recall | test images found |\n|---|---|---|---|---|")
        for judged, what in ((0, "exact"), (1, "near-duplicate"), (2, "very similar")):
            those = [pair for pair, value in listed.items() if value == judged]
            hit = sum(pair in pairs for pair in those)
            of = sum(one in tests for one, _ in those)
            share = f"{hit / len(those):.3f}" if those else "–"
            print(f"| {judged}: {what} | {len(those)} | {hit} | {share} | {of} |")
        hit = sum(pair in pairs for pair in listed)
        print(f"| all | {len(listed)} | {hit} | {hit / len(listed):.3f} | {sum(one in tests for one, _ in listed)} |")
        other = sorted(tests - {one for one, _ in listed})
        print(
            f"\npairs found: {len(pairs)}, of {len(tests)} test images, of which {len(tests) - len(other)} are listed: "
            f"precision {(len(tests) - len(other)) / max(1, len(tests)):.3f} of test images (the list has one training image of each)."
        )
        print(f"Not listed: {other[:60]}")


def leaks(work: Path, sets: Sequence[str]) -> None:
    for name in sets:
        out = work / "leaks" / Path(name).name
        seconds = command(name, "--out", str(out))
        count = sum(path.is_file() for path in Path(name).rglob("*"))
        print(f"\n{seconds:.0f} s ({count / seconds:.0f} images/s)", flush=True)


def main(arguments: Sequence[str]) -> None:
    what, work, *rest = arguments
    Path(work).mkdir(parents=True, exist_ok=True)
    processor = (
        next((row for row in _processor() if "model name" in row), platform.processor()).partition(":")[2].strip()
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(
        f"bigtransfer {bigtransfer.__version__} ({commit}), torch {torch.__version__}, Python {platform.python_version()}, "
        f"{torch.get_num_threads()} thread(s) of {processor}\n\n`python -m benchmarks.duplicates {' '.join(arguments)}`",
        flush=True,
    )
    if what == "cifar":
        cifar(Path(work).resolve(), Path(rest[0]).resolve(), Path(rest[1]), *map(int, rest[2:]))
    else:
        {"changes": changes, "strangers": strangers, "leaks": leaks}[what](Path(work), rest)


def _processor() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1:])
