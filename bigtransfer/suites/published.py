"""What others published, and results of ours beside it: only where benchmark, protocol and metric are the same in every detail."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from bigtransfer.suites.registry import SUITES
from bigtransfer.suites.results import Result
from bigtransfer.suites.suite import Suite, Task


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which number of ours a published one is to be compared with."""

    suite: str
    task: str
    """Of the suite; or an aggregate of it, such as "mean_19"."""
    metric: str
    """Of an aggregate: ""."""
    tolerance: float
    """Share (0.01: a percentage point) by which two careful measurements may differ; where a spread was published, at least that."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number, as it was published."""

    model: str
    """As its authors call it."""
    task: str
    metric: str
    text: str
    """The number as it is printed, in percent: "99.37±0.06", "45.8/57.9/65.7" (lowest, median, highest)."""
    source: str
    verified: bool
    """Whether it was read in the source; otherwise it is known from elsewhere only."""
    note: str

    @property
    def value(self) -> float | None:
        """0 to 1; None where it is no share (a cost, average precision in a unit of its own)."""
        return self._numbers[0] if self._numbers else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of several runs: lowest and highest, or two standard deviations to each side; None where nothing is said."""
        return self._numbers[1:] if self._numbers and self._numbers[2] > self._numbers[1] else None

    @functools.cached_property
    def _numbers(self) -> tuple[float, float, float] | None:
        if match := re.fullmatch(r"([\d.]+)±([\d.]+)", self.text):
            value, spread = float(match[1]) / 100, float(match[2]) / 100
            return value, value - 2 * spread, value + 2 * spread
        if match := re.fullmatch(r"([\d.]+)/([\d.]+)/([\d.]+)", self.text):
            return float(match[2]) / 100, float(match[1]) / 100, float(match[3]) / 100
        if re.fullmatch(r"[\d.]+", self.text):
            value = float(self.text) / 100
            return value, value, value
        return None

    @property
    def weights(self) -> str | None:
        """Name in our catalogue of the weights that it was measured with, or was fine-tuned from; None where nobody has them."""
        return _weights(self.model, self.task)

    @property
    def target(self) -> Target | None:
        """None where nothing here measures that."""
        return _target(self)

    def within(self, value: float) -> bool:
        """Whether a number of ours (0 to 1) is as near as two careful measurements are."""
        assert self.value is not None
        assert self.target is not None
        low, high = self.bounds or (self.value, self.value)
        tolerance = self.target.tolerance
        return min(low, self.value - tolerance) <= value <= max(high, self.value + tolerance)


@functools.cache
def published() -> tuple[Published, ...]:
    """All, in the order of the file."""
    text = (importlib.resources.files("bigtransfer.suites") / "files" / "published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            model=row["model"],
            task=row["task"],
            metric=row["metric"],
            text=row["value"],
            source=row["source"],
            verified=row["verified"] == "V",
            note=row["note"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )


def headline(one: Published) -> bool:
    """Whether it is one of the numbers by which BiT is known: those `bit results` always lists."""
    return (one.model, one.task, one.metric, one.text) in _HEADLINE


_HEADLINE = {
    ("BiT-M", "OmniBenchmark (21 realms)", "average top-1", "40.4"),
    *(
        (f"BiT-{size} R152x4", "ObjectNet (113 classes)", metric, value)
        for metric, values in {
            "top-1 resize&crop": ("58.7", "47.0", "36.0"),
            "top-5 resize&crop": ("80.0", "69.0", "57.0"),
            "top-5 bounding box": ("85.1", "76.0", "64.4"),
        }.items()
        for size, value in zip("LMS", values, strict=True)
    ),
    ("BiT-L R152x4", "CIFAR-10", "top-1", "99.37±0.06"),
    ("BiT-M R152x4", "CIFAR-10", "top-1", "98.91"),
    ("BiT-L R152x4", "CIFAR-100", "top-1", "93.51±0.08"),
    ("BiT-M R152x4", "CIFAR-100", "top-1", "92.17"),
    ("BiT-L R152x4", "VTAB-1k, 40 random trials per task", "mean top-1", "78.72"),
    ("BiT-L R152x4", "VTAB-1k (19 tasks)", "mean top-1", "76.29±1.70"),
    ("BiT-M R152x4", "VTAB-1k (19 tasks)", "mean top-1", "70.64"),
    ("BiT-S R152x4", "VTAB-1k (19 tasks)", "mean top-1", "66.87"),
    ("BiT-L R152x4", "Flowers-102", "top-1", "99.63±0.03"),
    ("BiT-M R152x4", "Flowers-102", "top-1", "99.3"),
    ("BiT-L R152x4", "Oxford-IIIT Pets", "top-1", "96.62±0.23"),
    ("BiT-M", "Oxford-IIIT Pets", "top-1", "94.47"),
    ("BiT-L R152x4", "ILSVRC-2012", "top-1", "87.54±0.02"),
    ("BiT-L R152x4", "ILSVRC-2012", "top-5", "98.46±0.02"),
    ("BiT-L R152x4", "ILSVRC-2012 10/class", "top-1 (median of 5)", "76.8"),
    ("BiT-L R152x4", "CIFAR-10 10/class", "top-1 (median of 5)", "97.0"),
}

# --- Whose weights

_MEASURED_AS_THEY_ARE = ("ILSVRC-2012", "ImageNet-ReaL", "ObjectNet (113 classes)")
"""What BiT-M was fine-tuned on ILSVRC-2012 for; those weights are published too."""

_TIMM = {
    "goog_in21k_ft_in1k": "bit-m-r{}-ilsvrc2012",
    "goog_teacher_in21k_ft_in1k": "bit-teacher-r{}-224",
    "goog_teacher_in21k_ft_in1k_384": "bit-teacher-r{}-384",
    "goog_distilled_in1k": "bit-distilled-r{}-224",
}


def _weights(model: str, task: str) -> str | None:
    if match := re.fullmatch(r"resnetv2_(\d+x\d+)_bit\.(\w+)", model):
        return _TIMM[match[2]].format(match[1])
    if match := re.fullmatch(r"BiT-M-R(\d+x\d+)-(ILSVRC2012|nonfinetuned)", model):
        return f"bit-m-r{match[1]}" + ("-ilsvrc2012" if match[2] == "ILSVRC2012" else "")
    if match := re.fullmatch(r"BiT-R50x1 distilled @(\d+)", model):
        return f"bit-distilled-r50x1-{match[1]}"
    if task.startswith("OmniBenchmark"):
        return "bit-m-r50x1"
    if match := re.fullmatch(r"BiT-([SM])(?: R(\d+x\d+))?(?: \(.*\))?", model):
        own = f"bit-{match[1].lower()}-r{match[2] or '152x4'}"
        if task not in _MEASURED_AS_THEY_ARE or "HyperRule" in model:
            return own
        return f"{own}-ilsvrc2012" if match[1] == "M" else None
    return None


def _why_no_weights(model: str) -> str:
    if model.startswith("BiT-L"):
        return "the weights of BiT-L were never released"
    if model.startswith("BiT-S"):
        return "the weights of BiT-S fine-tuned on ILSVRC-2012 were never released"
    return "the weights were not released, or are not BiT's"


# --- Which number of ours

_EXACT = 0.001
"""Of the same weights on the same images."""
_TUNED = 0.01
"""Of two fine-tunings: seeds, and libraries that resize differently."""
_FEW = 0.03
"""Of medians of few draws of few images."""

_SETS = {"CIFAR-10": "cifar-10", "CIFAR-100": "cifar-100", "Oxford-IIIT Pets": "pets", "Flowers-102": "flowers-102"}

_TIMM_TASKS = {
    "imagenet": "ilsvrc-2012",
    "imagenet_real": "real",
    "imagenetv2_mf": "v2-matched-frequency",
    "imagenet_a": "a",
    "imagenet_r": "r",
    "imagenet_sketch": "sketch",
}
_TESTBED_TASKS = {
    "val": "ilsvrc-2012",
    "imagenetv2-matched-frequency-format-val": "v2-matched-frequency",
    "imagenetv2-threshold-0.7-format-val": "v2-threshold0.7",
    "imagenetv2-top-images-format-val": "v2-top-images",
    "imagenet-a": "a",
    "imagenet-r": "r",
    "imagenet-sketch": "sketch",
}
_GROUPS = {
    "VTAB-1k (19 tasks)": "mean_19",
    "VTAB-1k natural": "natural",
    "VTAB-1k specialized": "specialized",
    "VTAB-1k structured": "structured",
}


def _target(one: Published) -> Target | None:
    """Of the published tasks, which of ours; the rest (detection, pre-training, other networks) is not measured here."""

    def of(suite: str, task: str, metric: str, tolerance: float) -> Target:
        return Target(suite=suite, task=task, metric=metric, tolerance=tolerance)

    task, metric = one.task, one.metric.split(" ")[0]
    if one.value is None or one.model.endswith("superseded)") or "batch 4096" in one.model:
        return None
    if "timm" in one.source:
        name = _TIMM_TASKS.get(task.split(" ")[0])
        # timm's bicubic at 0.875 is what the cards of those models say.
        variant = "card" if "goog_teacher" in one.model or "distilled" in one.model else "aspect"
        return None if name is None else of("imagenet", f"{name}/{variant}", metric, _EXACT)
    if "testbed" in one.source:
        if task.startswith("objectnet"):
            return of("objectnet", "objectnet/testbed-beta", metric, _EXACT)
        name = _TESTBED_TASKS.get(task.split(" ")[0])
        return None if name is None else of("imagenet", f"{name}/square-480", metric, _EXACT)
    if task == "ObjectNet (113 classes)":
        return of("objectnet", "objectnet-box" if "bounding box" in one.metric else "objectnet", metric, 3 * _EXACT)
    if task in _GROUPS and "deduplicated" not in one.note:
        return of("vtab-1k", _GROUPS[task], "", _TUNED)
    if task.startswith("VTAB-1k, 40 random trials"):
        return of("vtab-1k-search", "mean_19", "", _TUNED)
    if task.startswith("OmniBenchmark"):
        return of("omnibenchmark", "average_top1", "", 0.02)
    if task in ("ILSVRC-2012", "ImageNet-ReaL") and "HyperRule" not in one.model:
        return of("imagenet", "ilsvrc-2012" if task == "ILSVRC-2012" else "real", metric, 3 * _EXACT)
    ending = "/readme" if "lr 0.001" in one.model else "/code" if "HyperRule" in one.model else ""
    shots = re.fullmatch(r"(.*) (\d+)/class", task)
    name = {**_SETS, "ILSVRC-2012": "ilsvrc-2012"}.get(shots[1] if shots else task)
    if name is None:
        return None
    if shots:
        return of("few-shot", f"{name}/{shots[2]}-shot{ending}", "top-1 (median)", _FEW)
    if name == "ilsvrc-2012":
        return of("few-shot", f"{name}/full{ending}", metric, _TUNED)
    return of("transfer", f"{name}{ending}", metric, _TUNED)


def _task(target: Target) -> Task | None:
    """The task; None for an aggregate, and where there is no such suite or task."""
    suite = SUITES.get(target.suite)
    try:
        return None if suite is None else suite.task(target.task)
    except KeyError:
        return None


# --- Side by side

Verdict = Literal["within tolerance", "off", "not run", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published number, and one of ours for the same model and task, or why there is none."""

    published: Published
    verdict: Verdict
    remark: str
    """not run: what to get and do. not comparable: what differs."""
    value: float | None = None
    interval: tuple[float, float] | None = None
    images: int | None = None
    date: str = ""

    @property
    def difference(self) -> float | None:
        """Ours less theirs; None where the two cannot be compared."""
        if self.value is None or self.published.value is None or self.verdict == "not comparable":
            return None
        return self.value - self.published.value


def rows(results: Sequence[Result], chosen: Iterable[Published], root: Path) -> list[Row]:
    """Every published number of `chosen` with every result of ours for it: one row at least. root: where benchmarks' images lie."""
    found, told = [], set[str]()
    for one in chosen:
        own = _beside(one, results)
        found += own if any(row.verdict != "not comparable" for row in own) else [_not_run(one, root, told), *own]
    return found


def _beside(one: Published, results: Sequence[Result]) -> list[Row]:
    target = one.target
    if target is None or one.weights is None:
        return []
    mine = [result for result in results if result.model == one.weights]
    task = _task(target)
    if task is None:
        suite = SUITES.get(target.suite)
        return [] if suite is None else _of_aggregate(one, target.task, suite, mine)
    found: list[Row] = []
    comparable: list[Result] = []
    for result in latest(mine):
        if result.benchmark != task.benchmark.name or result.metric != target.metric:
            continue
        if different := differences(result, task):
            if result.suite == target.suite and result.task == target.task:  # under that name, and yet something else
                found.append(_row(one, result, "not comparable", f"other than published: {'; '.join(different)}"))
            continue
        remark = apart(result, comparable)
        comparable.append(result)
        found.append(_row(one, result, "within tolerance" if one.within(result.value) else "off", remark))
    return found


def apart(result: Result, others: Sequence[Result]) -> str:
    """In what a result is another than all of `others` of the same model; "" if in nothing that would have to be told."""
    shown = {
        "other images or labels": result.fingerprint,
        "other weights of that name": result.weights,
        f"input {_shown_input(result)}": _shown_input(result),
    }
    before = [(one.fingerprint, one.weights, _shown_input(one)) for one in others if one.model == result.model]
    new = [
        what for number, (what, value) in enumerate(shown.items()) if value not in {values[number] for values in before}
    ]
    return f"of {', '.join(new)}: not as above" if before and new else ""


def _shown_input(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(result.input.items()))


def _row(one: Published, result: Result, verdict: Verdict, remark: str) -> Row:
    notes = [
        remark,
        result.note,
        f"seed {result.seed}" if result.seed else "",
        f"computed in {result.precision}" if result.precision != "float32" else "",
    ]
    return Row(
        published=one,
        verdict=verdict,
        remark="; ".join(filter(None, notes)),
        value=result.value,
        interval=result.interval,
        images=result.images,
        date=result.date[:10],
    )


def _of_aggregate(one: Published, name: str, suite: Suite, mine: Sequence[Result]) -> list[Row]:
    if name not in suite.aggregates:
        return []
    found = []
    counted: list[Result] = []
    for values, last in complete(suite, mine):
        value = suite.aggregates[name](values)
        verdict: Verdict = "within tolerance" if one.within(value) else "off"
        # Of the tasks' notes and intervals none is the mean's.
        last = msgspec.structs.replace(last, value=value, interval=None, note=f"{len(suite.tasks)} tasks")
        other = counted and last.weights not in {each.weights for each in counted}
        counted.append(last)
        row = _row(one, last, verdict, "of other weights of that name: not as above" if other else "")
        found.append(dataclasses.replace(row, images=None))
    return found


def complete(suite: Suite, results: Sequence[Result]) -> list[tuple[dict[str, float], Result]]:
    """Of each model and seed for which all tasks of the suite were measured by its protocols: the suite's metric of each (the latest, where
    it was measured on several copies of the images), and the last of the results."""
    by_model: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in latest(results):
        for task in suite.tasks:
            comparable = result.benchmark == task.benchmark.name and result.metric == suite.averaged
            if comparable and not differences(result, task):
                of_model = by_model.setdefault((result.model, result.weights, result.seed, result.precision), {})
                of_model[task.name] = result
    wanted = {task.name for task in suite.tasks}
    return [
        ({name: result.value for name, result in own.items()}, max(own.values(), key=lambda one: one.date))
        for own in by_model.values()
        if own.keys() == wanted
    ]


def differences(result: Result, task: Task) -> list[str]:
    """In what a result is other than the task asks for; empty if it is comparable."""
    found = []
    if result.revision != task.benchmark.revision:
        found.append(f"edition {result.revision} of the images, not {task.benchmark.revision}")
    if result.protocol != task.protocol.name:
        return [*found, f"protocol {result.protocol}, not {task.protocol.name}"]
    asked = _flat(json.loads(json.dumps(task.protocol.parameters())))
    used = _flat(result.parameters)
    for name in sorted(asked.keys() | used.keys()):
        if asked.get(name) != used.get(name):
            found.append(f"{name} {_shown(used.get(name))}, not {_shown(asked.get(name))}")
    return found


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _shown(value: Any) -> str:
    return "not stated" if value is None else str(value)


def latest(results: Sequence[Result]) -> list[Result]:
    """Without those that were measured again since: same key, model, weights, seed, precision and input."""
    kept = {}
    # By date: files may be named in any order, and lines of two machines be mixed. Of the same second the later line counts.
    for result in sorted(results, key=lambda one: one.date):
        content = json.dumps(result.input, sort_keys=True)
        identity = (result.key, result.model, result.weights, result.seed, result.precision, content)
        kept.pop(identity, None)
        kept[identity] = result
    return list(kept.values())


def _not_run(one: Published, root: Path, told: set[str]) -> Row:
    """told: benchmarks of which a row above says how to get them."""

    def row(remark: str) -> Row:
        return Row(published=one, verdict="not run", remark=remark)

    target = one.target
    suite = None if target is None else SUITES.get(target.suite)
    if target is None or suite is None:
        return row("nothing here measures it")
    task = _task(target)
    if task is None and target.task not in suite.aggregates:
        return row("nothing here measures it")
    reasons = [] if one.weights is not None else [_why_no_weights(one.model)]
    tasks = [task] if task is not None else list(suite.tasks)
    absent = [each for each in tasks if each.benchmark.place(root) is None]
    if absent:
        first = absent[0].benchmark
        reasons.append(f"{first.title} is not here (as above)" if first.title in told else str(first.missing(root)))
        told.add(first.title)
        if len(absent) > 1:
            reasons.append(
                f"{len(absent) - 1} more of its {len(tasks)} tasks: bit results --suite {suite.name} tells what they need"
            )
    if one.weights is not None:
        only = "" if task is None else f" --task {target.task}"
        reasons.append(f"bit evaluate {one.weights} --suite {suite.name}{only}")
    return row("; ".join(reasons))
