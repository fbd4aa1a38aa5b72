"""What the benchmarks of accuracy share: measurements that are made once and kept, their spread, and where they were made."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import bigtransfer
from bigtransfer import data, evals, runs
from bigtransfer.config import EvaluateConfig, FinetuneConfig
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.errors import RunError
from bigtransfer.jobs.evaluate import evaluate
from bigtransfer.jobs.finetune import finetune
from bigtransfer.jobs.working import Finetuned


class Cells:
    """Results of measurements by what was asked, one JSON file each in `folder`: a benchmark that was stopped goes on, and several
    processes that run the same command share the work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, asked: Mapping[str, Any], measure: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any] | None:
        """What `measure` returned for `asked`, now or earlier; None while another process is measuring it.

        measure gets a folder of its own for its runs, in which it finds what it left when it was stopped, and which goes when it is done.
        """
        text = json.dumps(asked, sort_keys=True)
        place = self.folder / hashlib.sha256(text.encode()).hexdigest()[:20]
        path = place.with_suffix(".json")
        if not path.is_file():
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(runs.Run(place).hold())
                except RunError:
                    return None
                if not path.is_file():
                    started = time.perf_counter()
                    with contextlib.redirect_stdout(io.StringIO()):
                        result = dict(measure(place / "run"))
                    spent = time.perf_counter() - started
                    runs.write_json(path, {"asked": asked, "result": result, "seconds": spent, "commit": commit()})
                    print(f"{text} -> {result}, {spent:.1f} s", flush=True)
                shutil.rmtree(place)
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def commits(self) -> list[str]:
        """Of the package, at the times of the measurements."""
        return sorted({json.loads(path.read_text(encoding="utf-8"))["commit"] for path in self.folder.glob("*.json")})


def top1(config: FinetuneConfig) -> float:
    """On the test images, of a fine-tuning run; if a signal stops it, so does the process."""
    done = finetune(config)
    if done.stopped_by is not None:
        raise SystemExit(128 + done.stopped_by)
    return on_all_test_images(done, config.data)["test_top1"]


def on_all_test_images(done: Finetuned, data: str | os.PathLike[str]) -> dict[str, float]:
    """The metrics of a run on `data`; measured anew if its budget was used up before all test images had been looked at."""
    if "test_images" not in done.metrics:
        return done.metrics
    asked = EvaluateConfig(model=str(done.folder), data=os.fspath(data), split="test")
    result = evaluate(asked).result
    assert isinstance(result, evals.Classification)
    return {name.replace("/", "_"): value for name, value in result.named("test").items()}


def commit() -> str:
    """The commit that the package's source is of, the last that changed it, with "-dirty" after it if it is not as committed."""
    folder = Path(bigtransfer.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("log", "-1", "--format=%H", "--", ".")[:10] + ("-dirty" if git("status", "--short", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"bigtransfer {bigtransfer.__version__}"


def machine() -> str:
    """Date, processor, versions: a line for the foot of a results file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return (
        f"{datetime.date.today()}; {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread per process; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range of shares in per cent: "24.2 (20.2 to 29.4)"."""
    shown = [100 * value for value in values]
    return f"{statistics.median(shown):.{digits}f} ({min(shown):.{digits}f} to {max(shown):.{digits}f})"


def link_subset(images: ImageSet, root: Path, target: Path) -> None:
    """Links to the files of `images`, a set below `root`, in folders of their classes below `target`."""
    assert images.labels is not None
    for i in range(len(images)):
        file = target / images.class_names[int(images.labels[i])] / Path(images.name(i)).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to((root / images.name(i)).resolve())


def prepared(source: Path, work: Path, *, held_out: float | None = None, test_per_class: int | None = None) -> Path:
    """A folder of train/ and test/ with links to the images below `source`, the same at every call; `source` itself if nothing is asked.

    held_out: share of each class that becomes the test part of a set without split. test_per_class: how many test images of each
    class are kept. Both are drawn with seed 0."""
    if held_out is None and test_per_class is None:
        return source
    target = work / "data" / source.name
    if not (target / "split.json").is_file():
        parts = data.open_dataset(str(source))
        train, test = (parts.train, parts.test) if held_out is None else splits.hold_out(parts.train, held_out, seed=0)
        assert test is not None
        if test_per_class is not None:
            test = splits.per_class(test, test_per_class, seed=0)
        link_subset(train, source, target / "train")
        link_subset(test, source, target / "test")
        splits.save_split(target / "split.json", Splits(train=train, test=test))
    return target
