"""Everything that can be asked of a GPU, in one run of minutes: is it right there, and how fast beside timm? Started by `gpu.sh`.

    python -m benchmarks.gpu run --out FOLDER --seconds 540     # results.jsonl, results.md and log.txt in FOLDER, as they come
    python -m benchmarks.gpu run --out FOLDER --device cpu --quick   # proves the script, on a CPU, with tiny sizes
    python -m benchmarks.gpu table FOLDER/results.jsonl --commit COMMIT > benchmarks/results/gpu_NAME_DATE.md

Parts: A facts and ceilings, B correctness, C whole steps and inference beside timm, D the small operations alone, E the commands.

Every competitor is a process of its own, so that one that crashes or hangs loses its own rows only, and all compile at the same time,
which is most of the minutes. First comes what is not timed, all at once: compiling and B and E. Then, one at a time, what is timed: the
competitors of a case take turns, `ROUNDS` times, while nothing else runs on the GPU. What did not fit into the time is named.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import fnmatch
import functools
import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROUNDS = 5
UNTIMED = 0.6
"""Share of the seconds after which no compilation and no check is waited for any more."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What competitors are timed at."""

    kind: str
    """train: forward, loss, backward and SGD; infer."""
    arch: str
    size: int
    batch: int

    @property
    def name(self) -> str:
        what = "training step" if self.kind == "train" else "inference"
        return f"{what}, {self.arch}, {self.size} px, batch {self.batch}"


CASES = (
    Case("train", "r50x1", 128, 256),
    Case("train", "r26x1", 64, 512),
    Case("train", "r50x1", 224, 128),
    Case("infer", "r50x1", 224, 256),
    Case("infer", "r50x1", 224, 1),
    Case("infer", "r50x1", 224, 64),
    Case("infer", "r26x1", 64, 256),
    Case("infer", "r50x1", 128, 1),
    Case("infer", "r50x1", 128, 256),
)
QUICK = (Case("train", "r26x1", 32, 4), Case("infer", "r26x1", 32, 4), Case("infer", "r26x1", 32, 1))


@dataclass(frozen=True)
class Form:
    """A way to run the same network."""

    name: str
    library: str
    form: str = "eager"
    """eager, compile, or graph: recorded once as a CUDA graph."""
    fast: bool = True
    """Ours: with the fused operations; without, BIT_NATIVE=0."""
    channels_last: bool = True
    half: bool = False
    """timm: weights in bf16 too, instead of autocast."""
    tuned: bool = False
    """torch.backends.cudnn.benchmark."""
    mode: str | None = None
    """Of torch.compile."""
    kinds: tuple[str, ...] = ("train", "infer")
    seconds: Mapping[Case, int] | None = None
    """Of the compiled: the cases, each with the least limit in which it is tried; None: every case, always."""

    def at(self, case: Case, limit: float) -> bool | None:
        """Whether it takes part; None: it would if there were more time."""
        if case.kind not in self.kinds:
            return False
        if self.seconds is None:
            return True
        if case not in self.seconds:
            return None
        return True if limit >= self.seconds[case] else None

    @property
    def facts(self) -> Row:
        return {
            name: getattr(self, name) for name in ("library", "form", "fast", "channels_last", "half", "tuned", "mode")
        }


# Cases -> the least limit in seconds in which they are compiled: most to be learnt from first.
_R50_128, _R26_64, _R50_224, _LARGE, _ONE, _MIDDLE, _SMALL_PX, _ONE_128, _ = CASES
OURS_COMPILED = {
    _R26_64: 90,
    _LARGE: 150,
    _R50_128: 150,
    _R50_224: 240,
    _MIDDLE: 300,
    _SMALL_PX: 300,
    QUICK[0]: 0,
    QUICK[1]: 0,
}
TIMM_COMPILED = {**OURS_COMPILED, _R50_128: 90, _LARGE: 90}
OURS_AT_ONE, TIMM_AT_ONE = {_ONE: 150, _ONE_128: 300}, {_ONE: 90, _ONE_128: 300}
AUTOTUNED = {_R50_128: 400, _LARGE: 400}
FORMS = (
    Form("ours", "ours"),
    Form("ours, without fused operations", "ours", fast=False),
    Form("ours, CUDA graph", "ours", "graph"),
    Form("ours, compile", "ours", "compile", seconds=OURS_COMPILED),
    Form("ours, compile reduce-overhead", "ours", "compile", mode="reduce-overhead", seconds=OURS_AT_ONE),
    Form("ours, cudnn.benchmark", "ours", tuned=True, kinds=("train",)),
    Form("timm", "timm", channels_last=False),
    Form("timm, channels_last", "timm"),
    Form("timm, cudnn.benchmark", "timm", channels_last=False, tuned=True, kinds=("train",)),
    Form("timm, CUDA graph", "timm", "graph", channels_last=False),
    Form("timm, bf16 weights", "timm", channels_last=False, half=True, kinds=("infer",)),
    Form("timm, compile", "timm", "compile", seconds=TIMM_COMPILED),
    Form("timm, compile reduce-overhead", "timm", "compile", mode="reduce-overhead", seconds=TIMM_AT_ONE),
    Form("timm, compile max-autotune", "timm", "compile", mode="max-autotune", seconds=AUTOTUNED),
)
SHAPES = (
    (256, 64, 56, 56), (256, 256, 56, 56), (256, 512, 28, 28), (256, 1024, 14, 14), (256, 2048, 7, 7),
    (256, 256, 16, 16), (256, 512, 8, 8), (256, 1024, 4, 4), (256, 2048, 2, 2),
)  # fmt: skip
QUICK_SHAPES = ((2, 64, 8, 8), (2, 256, 4, 4))
OPERATIONS = (
    Form("ours", "ours"),
    Form("plain, channels_last", "ours", fast=False),
    Form("torch, NCHW", "ours", fast=False, channels_last=False),
    Form("compile, channels_last", "ours", "compile"),
)


class Results:
    """Rows as they come, and the table of all so far."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.started = folder, list[Row](), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "results.jsonl").open("w", encoding="utf-8")

    def add(self, part: str, row: Mapping[str, Any]) -> None:
        row = {"part": part, "at": round(time.monotonic() - self.started, 2), **row}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def table(self) -> None:
        path = self.folder / "results.md"
        text = table(self.rows)
        path.with_suffix(".tmp").write_text(text, encoding="utf-8")
        path.with_suffix(".tmp").replace(path)


_spawn = multiprocessing.get_context("spawn")


@functools.cache
def _room(library: str) -> Any:
    """For so many processes at a time the device's memory has room for whole batches. By library: the first of ours builds its
    kernels, for which timm need not wait."""
    return _spawn.Semaphore(2)


def _serve(connection: Connection, module: str, *arguments: Any) -> None:
    # Imported by the processes only: they start at once, and this one needs no torch.
    importlib.import_module(module).serve(connection, *arguments)


@dataclass
class Worker:
    """A process that calls functions of `gpu_worker` by name."""

    name: str
    log: str
    nice: int = 0
    module: str = "benchmarks.gpu_worker"
    why_ended: str = ""
    """Empty while it lives."""
    waiting: collections.deque[tuple[str, Row, Any]] = field(default_factory=collections.deque)
    """Calls to come: function, arguments, and who asked."""
    busy: tuple[str, Row, Any] | None = None

    def __post_init__(self) -> None:
        self.connection, theirs = _spawn.Pipe()
        self.process = _spawn.Process(
            target=_serve, args=(theirs, self.module, self.log, _room(self.name.split(",")[0]), self.nice)
        )
        self.process.start()
        theirs.close()

    def call(self, function: str, asker: Any = None, **arguments: Any) -> None:
        self.waiting.append((function, arguments, asker))

    def begin(self) -> None:
        """Send the next call, if there is one and the process is free."""
        if self.busy is None and self.waiting and not self.why_ended:
            self.busy = self.waiting.popleft()
            try:
                self.connection.send(self.busy[:2])
            except OSError:
                self.end("its process died")

    def end(self, why: str) -> None:
        self.why_ended = self.why_ended or why
        self.process.kill()
        self.process.join(5)


def answered(
    workers: Iterable[Worker], until: float, grace: float = 0.0
) -> Iterable[tuple[Worker, tuple[str, Row, Any], Row]]:
    """Let all workers do all their calls, at the same time, and yield each answer: (worker, call, {"result": ...} or {"error": ...}).

    At `until` (monotonic) no new call begins; a worker that is not done `grace` seconds later, or dies, is ended. Calls that were not
    done are answered with why."""
    workers = list(workers)
    while True:
        for worker in workers:
            while time.monotonic() > until and worker.waiting:
                yield worker, worker.waiting.popleft(), {"error": "not begun in time"}
        for worker in workers:
            worker.begin()
            if worker.why_ended:
                calls = ([worker.busy] if worker.busy else []) + list(worker.waiting)
                worker.busy = None
                worker.waiting.clear()
                for call in calls:
                    yield worker, call, {"error": worker.why_ended}
        busy = {worker.connection: worker for worker in workers if worker.busy}
        if not busy:
            return
        end = until if time.monotonic() < until else until + grace
        for connection in wait(list(busy), timeout=max(0.0, end - time.monotonic())) or [None]:
            if connection is None:
                if end == until + grace:
                    for worker in busy.values():
                        worker.end("not done in time")
                continue
            worker = busy[connection]  # pyright: ignore[reportArgumentType]
            call = worker.busy
            assert call is not None
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join(5)
                worker.end(f"its process died (exit code {worker.process.exitcode})")
                continue
            worker.busy = None
            yield worker, call, answer


class Run:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.started = time.monotonic()
        self.results = Results(options.out)
        self.log = str(options.out / "log.txt")
        self.workers: dict[str, Worker] = {}
        self.cases = QUICK if options.quick else CASES
        self.shapes = QUICK_SHAPES if options.quick else SHAPES
        self.forms = [form for form in FORMS if form.form != "graph" or self.device == "cuda"]
        if options.only:
            self.forms = [f for f in self.forms if any(fnmatch.fnmatch(f.name, pattern) for pattern in options.only)]

    def left(self) -> float:
        """Seconds until everything must be written."""
        return self.started + self.options.seconds - 2.0 - time.monotonic()

    def worker(self, name: str, nice: int = 0) -> Worker:
        if name not in self.workers or self.workers[name].why_ended:
            self.workers[name] = Worker(name, self.log, nice)
        return self.workers[name]

    def note(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def left_out(self, what: str, why: str) -> None:
        self.results.add("left out", {"name": what, "why": why})

    def everything(self) -> None:
        parts = set(self.options.parts)
        # All start at once: what they import takes seconds.
        checkers = (
            [self.worker(f"check {number}") for number in range(1 if self.options.quick else 3)] if "B" in parts else []
        )
        contests = self.contests() if "C" in parts else []
        operators = self.operators() if "D" in parts else {}
        commands = self.worker("commands") if "E" in parts else None
        ceilings = self.worker("ceilings")
        if "A" in parts:
            self.facts(ceilings)
        if "B" in parts:
            self.plan_checks(checkers)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            until = self.started + UNTIMED * self.options.seconds
            if commands is not None:
                jobs = ["pretrain", "finetune"]
                if self.options.seconds >= 200 and not self.options.quick:
                    jobs.append("compiled")
                commands.call("make_photos", ("E", "synthetic images"), folder=f"{folder}/photos")
                for which in jobs:
                    arguments: Row = {"device": self.device, "folder": folder, "flowers": self.options.flowers}
                    commands.call("check_command", ("E", which), which=which, until=until - 1, **arguments)
            self.untimed(until)
        self.results.table()
        for step in (
            self.timed_ceilings,
            self.training,
            self.operations,
            self.step_kernels,
            self.inference,
            self.inference_kernels,
        ):
            try:
                step(contests, operators)
            except Exception as error:
                self.results.add("error", {"name": step.__name__, "error": f"{type(error).__name__}: {error}"})
            self.results.table()
        for worker in self.workers.values():
            worker.process.kill()

    # --- A, B, E and compilation

    def facts(self, worker: Worker) -> None:
        worker.call("facts", device=self.device)
        for _, _, answer in answered([worker], time.monotonic() + min(60.0, self.left())):
            for row in answer.get("result", [{"name": "facts", **answer}]):
                self.results.add("A", row)
        self.note("facts are there")

    def plan_checks(self, checkers: list[Worker]) -> None:
        quick, device = self.options.quick, self.device
        plans: list[list[tuple[str, Row]]] = [[], [], []]
        plans[0].append(("check_operations", {"quick": quick}))
        plans[1].append(("check_crops", {}))
        plans[1].append(("check_predictor", {}))
        plans[1].append(("check_resume", {"size": 32 if quick else 64}))
        plans[1].append(("check_memory", {"size": 256}))
        for arch, kind, height, width in (
            [("r26x1", "tame", 33, 32)]
            if quick
            else [
                ("r26x1", "tame", 64, 64),
                ("r50x1", "tame", 97, 65),
                ("r26x1", "wild", 97, 65),
                ("r50x1", "wild", 128, 128),
            ]
        ):
            plans[2].append(("check_network", {"arch": arch, "kind": kind, "height": height, "width": width}))
        for number, plan in enumerate(plans):
            for function, arguments in plan:
                checkers[number % len(checkers)].call(function, ("B", function), device=device, **arguments)

    def contests(self) -> list[tuple[Case, list[tuple[Form, Worker, str]]]]:
        """Cases with who takes part; whoever compiles has a process for each."""
        found = []
        for case in self.cases:
            entries = []
            for form in self.forms:
                takes_part = form.at(case, self.options.seconds)
                if takes_part is None and form.seconds is not None and case in form.seconds:
                    self.left_out(f"{form.name}: {case.name}", f"needs --seconds {form.seconds[case]}")
                if takes_part:
                    name = form.name if form.form != "compile" else f"{form.name}: {case.name}"
                    worker = self.worker(name, 5 if form.form == "compile" else 0)
                    worker.call(
                        "prepare", (form, case), key=case.name, case=vars(case), form=form.facts, device=self.device
                    )
                    entries.append((form, worker, case.name))
            found.append((case, entries))
        return found

    def operators(self) -> dict[Form, Worker]:
        found = {}
        for form in OPERATIONS:
            worker = found[form] = self.worker(f"operations, {form.name}")
            if form.form == "compile" and not self.options.quick:
                # Compiled now; the others are ready at once.
                for shape in self.compiled_shapes():
                    worker.call(
                        "prepare_operation",
                        (form, shape),
                        key=str(shape),
                        shape=list(shape),
                        form=form.facts,
                        device=self.device,
                    )
        return found

    def compiled_shapes(self) -> Sequence[tuple[int, ...]]:
        return self.shapes if self.options.seconds >= 200 else self.shapes[1:6:2]

    def untimed(self, until: float) -> None:
        for worker, (function, _, asker), answer in answered(
            self.workers.values(), until, grace=0.08 * self.options.seconds
        ):
            if asker is None:
                continue
            if isinstance(asker[0], str):
                rows = answer.get("result", [{"name": asker[1], **answer, "passed": False}])
                for row in rows:
                    self.results.add(asker[0], row)
            else:
                form, case = asker
                name = f"{form.name}: {case.name if isinstance(case, Case) else f'GN+ReLU {case}'}"
                if "error" in answer:
                    self.left_out(name, answer["error"])
                else:
                    self.results.add(
                        "prepared",
                        {"name": name, "form": form.name, "case": str(getattr(case, "name", case)), **answer["result"]},
                    )
            self.note(
                f"{worker.name}: {function} {'failed: ' + answer['error'][:150] if 'error' in answer else 'done'}"
            )

    # --- C, D: what is timed

    def one(self, worker: Worker, function: str, limit: float, **arguments: Any) -> Row:
        """The answer of one call while all others wait."""
        if worker.why_ended:
            return {"error": worker.why_ended}
        worker.call(function, **arguments)
        until = time.monotonic() + min(limit, max(0.5, self.left()))
        return [answer for _, _, answer in answered([worker], until)][-1]

    def timed_ceilings(self, *_: Any) -> None:
        answer = self.one(self.worker("ceilings"), "ceilings", 20, device=self.device)
        for row in answer.get("result", []):
            self.results.add("A", {**row, "name": "ceilings, right before the timing"})

    def training(self, contests: list[Any], _: Any) -> None:
        mine = [contest for contest in contests if contest[0].kind == "train"]
        # About half of what is left is for training, a fifth for the small operations, the rest for inference.
        self.contest(mine, 0.45 * self.left())

    def inference(self, contests: list[Any], _: Any) -> None:
        self.contest(
            [contest for contest in contests if contest[0].kind == "infer"],
            self.left() - (4 if self.left() > 30 else 0),
        )

    def contest(self, contests: list[tuple[Case, list[tuple[Form, Worker, str]]]], seconds: float) -> None:
        end = time.monotonic() + seconds
        for number, (case, entries) in enumerate(contests):
            entries = [entry for entry in entries if not entry[1].why_ended]
            share = (end - time.monotonic()) / (len(contests) - number)
            # Each turn also has calls that are not timed.
            each = min(1.0, 0.5 * share / max(1, len(entries) * ROUNDS))
            if each < 0.004 or self.left() < 1:
                self.left_out(case.name, "no time left")
                continue
            measured: dict[str, list[float]] = {}
            for turn in range(ROUNDS):
                if turn and time.monotonic() > end - 0.2 * share / ROUNDS:
                    break
                for form, worker, key in list(entries):
                    answer = self.one(
                        worker, "measure", 5 + 10 * each, key=key, seconds=each, form=form.facts, device=self.device
                    )
                    if "error" in answer:
                        self.left_out(f"{form.name}: {case.name}", answer["error"])
                        entries.remove((form, worker, key))
                    else:
                        measured.setdefault(form.name, []).append(answer["result"]["ms"])
            for form in FORMS:
                if form.name in measured:
                    self.results.add(
                        "C", {"name": form.name, "case": case.name, **vars(case), "ms": measured[form.name]}
                    )
            self.note(
                case.name + ": " + "; ".join(f"{name} {statistics.median(ms):.2f} ms" for name, ms in measured.items())
            )

    def operations(self, _: Any, operators: Mapping[Form, Worker]) -> None:
        if not operators:
            return
        end = time.monotonic() + (0.35 * self.left() if "C" in self.options.parts else 0.9 * self.left())
        for number, shape in enumerate(self.shapes):
            if time.monotonic() > end:
                self.left_out(f"GN+ReLU {shape}", "no time left")
                continue
            each = min(0.2, 0.3 * (end - time.monotonic()) / (len(self.shapes) - number) / (3 * 9))
            takers: list[tuple[str, Worker, Form]] = []
            for form, worker in operators.items():
                if form.form == "compile" and not self.options.quick and shape not in self.compiled_shapes():
                    continue
                if form.form != "compile" or self.options.quick:
                    arguments = {"key": str(shape), "shape": list(shape), "form": form.facts, "device": self.device}
                    answer = self.one(worker, "prepare_operation", 60 if self.options.quick else 10, **arguments)
                    if "error" in answer:
                        self.left_out(f"{form.name}: GN+ReLU {shape}", answer["error"])
                        continue
                takers.append((form.name, worker, form))
            copier = self.worker("ceilings")
            self.one(copier, "prepare_copy", 10, key=str(shape), shape=list(shape), device=self.device)
            measured: dict[str, list[float]] = {}
            for _turn in range(3):
                for name, worker, form in takers:
                    for way in ("forward", "backward"):
                        key = f"{shape} {way}"
                        answer = self.one(
                            worker, "measure", 10, key=key, seconds=each, form=form.facts, device=self.device
                        )
                        if "result" in answer:
                            measured.setdefault(f"{name} {way}", []).append(answer["result"]["ms"])
                answer = self.one(copier, "measure", 10, key=str(shape), seconds=each, form={}, device=self.device)
                if "result" in answer:
                    measured.setdefault("copy", []).append(answer["result"]["ms"])
            for name, worker, _form in takers:
                for way in ("forward", "backward"):
                    self.one(worker, "forget", 10, key=f"{shape} {way}", device=self.device)
                if f"{name} forward" in measured:
                    both = {way: measured.get(f"{name} {way}", []) for way in ("forward", "backward")}
                    self.results.add(
                        "D", {"name": name, "shape": list(shape), "copy": measured.get("copy", []), **both}
                    )
            self.one(copier, "forget", 10, key=str(shape), device=self.device)
        arch = "r26x1" if self.options.quick else "r50x1"
        for form in OPERATIONS[:2]:
            worker = operators[form]
            answer = self.one(
                worker, "prepare_standardization", 15, key="std", arch=arch, form=form.facts, device=self.device
            )
            if "result" in answer:
                row: Row = {"name": form.name, "standardize": arch, **answer["result"]}
                for way in ("forward", "backward"):
                    timed = self.one(
                        worker, "measure", 10, key=f"std {way}", seconds=0.1, form=form.facts, device=self.device
                    )
                    row[way] = [timed["result"]["ms"]] if "result" in timed else []
                self.results.add("D", row)
        self.note("the small operations are done")

    def step_kernels(self, contests: list[Any], _: Any) -> None:
        self.kernels(contests, "train", until=time.monotonic() + 0.3 * self.left())

    def inference_kernels(self, contests: list[Any], _: Any) -> None:
        self.kernels(contests, "infer", until=time.monotonic() + self.left())

    def kernels(self, contests: list[tuple[Case, list[tuple[Form, Worker, str]]]], kind: str, until: float) -> None:
        """Where the time of one call goes, for the first case of a kind, ours and timm's."""
        for case, entries in [contest for contest in contests if contest[0].kind == kind][:1]:
            taken = {form.name: (form, worker, key) for form, worker, key in entries if not worker.why_ended}
            for name in ("ours", "timm, compile", "timm", "ours, without fused operations"):
                if name not in taken:
                    continue
                if time.monotonic() > until - 1:
                    self.left_out(f"kernels of {name}: {case.name}", "no time left")
                    continue
                form, worker, key = taken[name]
                answer = self.one(worker, "profile", 20, key=key, form=form.facts, device=self.device)
                for row in answer.get("result", [{"error": answer.get("error")}]):
                    self.results.add("error" if "error" in row else "profile", {**row, "name": f"{name}: {case.name}"})


# --- The table


def _cells(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(*titles: str) -> list[str]:
    return [_cells(*titles), "|" + "---|" * len(titles)]


def _number(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def flops(row: Mapping[str, Any]) -> float:
    """Of one call of a case; the convention of `Architecture.forward_flops`, three times the forward pass for a training step."""
    from bigtransfer.catalog import architecture

    forward = architecture(row["arch"]).forward_flops(row["size"], 1000)
    return row["batch"] * forward * (3 if row["kind"] == "train" else 1)


def table(rows: Sequence[Row], commit: str = "", command: str = "") -> str:
    """Markdown of all rows, whatever is there."""
    by_part: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        by_part[row["part"]].append(row)
    begun = next((row for row in by_part["run"]), {})
    commit, command = commit or begun.get("commit", ""), command or begun.get("command", "")
    machine: Row = next((row for row in by_part["A"] if row["name"] == "machine"), {})
    lines = [f"# {machine.get('gpu', 'A GPU')}: is it right, and how fast?", ""]
    lines += [f"- Date: {begun.get('date', '?')}; commit: {commit or 'not known'}", f"- Command: `{command or '?'}`"]
    if machine:
        keys = ("memory_gib", "processors", "l2_mb", "capability", "driver", "cuda", "cudnn", "cores")
        shown = ", ".join(f"{key} {_number(machine[key])}" for key in keys if key in machine)
        lines.append(f"- Hardware: {machine.get('gpu', '?')}; {shown}")
        lines.append(
            "- Versions: " + ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        )
        used = ", ".join(f"{name} {what}" for name, what in machine.get("operations", {}).items())
        lines.append(f"- What autograd sees of the operations here: {used}")
    ceilings = [row for row in by_part["A"] if "copy_gb_s" in row]
    lines += [
        f"- {row['name']}: copies {row['copy_gb_s']:,.0f} GB/s (read and written), bf16 product {row['matmul_tflop_s']:,.0f} TFLOP/s"
        for row in ceilings
    ]
    peak = ceilings[-1]["matmul_tflop_s"] if ceilings else None
    bandwidth = ceilings[-1]["copy_gb_s"] if ceilings else None

    checks = by_part["B"] + by_part["E"]
    if checks:
        failed = [row for row in checks if not row.get("passed")]
        lines += ["", f"## Is it right: {len(checks) - len(failed)} of {len(checks)} within their limits", ""]
        lines += [
            'Errors are Euclidean lengths of differences over those of the float64 results; "plain": of the forms with BIT_NATIVE=0.',
            "",
        ]
        lines += _head("check", "found", "limit", "plain", "", "more")
        for row in checks:
            more = {
                k: v for k, v in row.items() if k not in ("part", "at", "name", "value", "limit", "plain", "passed")
            }
            said = "; ".join(f"{key} {_number(value)}" for key, value in more.items())
            verdict = "" if row.get("passed") else "**beyond**"
            lines.append(
                _cells(
                    row["name"],
                    _number(row.get("value")),
                    _number(row.get("limit")),
                    _number(row.get("plain")),
                    verdict,
                    said,
                )
            )

    prepared = {(row["form"], row["case"]): row for row in by_part["prepared"]}
    for case in dict.fromkeys(row["case"] for row in by_part["C"]):
        here = [row for row in by_part["C"] if row["case"] == case]
        titles = [
            "",
            "ms, median (min)",
            "images/s",
            "TFLOP/s",
            "of the product's",
            "ours is",
            "memory, GB",
            "logit error",
            "gradient error",
        ]
        lines += ["", f"## {case[0].upper()}{case[1:]}", "", *_head(*titles, "to prepare, s")]
        ours = next((row["ms"] for row in here if row["name"] == "ours"), None)
        for row in here:
            ms = statistics.median(row["ms"])
            rate = flops(row) / ms / 1e9
            ratio = ""
            if ours is not None and row["name"] != "ours":
                ratio = f"{statistics.median(b / a for a, b in zip(ours, row['ms'], strict=False)):.2f}x as fast"
            built = prepared.get((row["name"], case), {})
            lines.append(
                _cells(
                    row["name"], f"{ms:.3f} ({min(row['ms']):.3f})", f"{1e3 * row['batch'] / ms:,.0f}", f"{rate:.1f}",
                    f"{rate / peak:.0%}" if peak else "", ratio, _number(built.get("memory_gb")), _number(built.get("logit_error")),
                    _number(built.get("gradient_error")), _number(built.get("prepare_seconds")),
                )
            )  # fmt: skip

    norms = [row for row in by_part["D"] if "shape" in row]
    if norms:
        lines += ["", "## GroupNorm + ReLU alone, bf16", ""]
        lines += [
            "GB/s counts the least bytes: forward reads x and writes y, backward reads x and the gradient of y and writes that of x."
        ]
        lines += ["The copy is of one tensor of that shape, in the same rounds.", ""]
        lines += _head("shape", "", "forward, us", "GB/s", "backward, us", "GB/s", "copy, us", "copy, GB/s")
        for row in norms:
            size = 2
            for side in row["shape"]:
                size *= side
            cells: list[object] = [" x ".join(map(str, row["shape"])), row["name"]]
            for way, passes in (("forward", 2), ("backward", 3), ("copy", 2)):
                ms = statistics.median(row[way]) if row[way] else None
                cells += ["", ""] if ms is None else [f"{1e3 * ms:.1f}", f"{passes * size / ms / 1e6:,.0f}"]
            lines.append(_cells(*cells))
        if bandwidth:
            lines += ["", f"A copy of 4 GiB: {bandwidth:,.0f} GB/s."]
    for row in by_part["D"]:
        if "standardize" in row:
            both = ", ".join(f"{way} {row[way][0]:.3f} ms" for way in ("forward", "backward") if row[way])
            lines += ["", f"Standardizing all {row['kernels']} kernels of {row['standardize']}, {row['name']}: {both}."]

    for row in by_part["profile"]:
        lines += ["", f"## Kernels of {row['name']}: {row['total_ms']:.2f} ms in {row['launches']} launches", ""]
        lines += _head("kernel", "ms", "calls")
        lines += [
            _cells(f"`{kernel['kernel']}`".replace("|", "/"), f"{kernel['ms']:.3f}", kernel["calls"])
            for kernel in row["kernels"]
        ]

    rest = by_part["left out"] + by_part["error"]
    if rest:
        lines += ["", "## Left out", ""]
        # Of an error of CUDA the rest is advice.
        lines += [f"- {row['name']}: {str(row.get('why') or row.get('error')).splitlines()[0]}" for row in rest]
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """What fits on a screen."""
    checks = [row for row in rows if row["part"] in ("B", "E")]
    lines = [f"checks: {sum(bool(row.get('passed')) for row in checks)} of {len(checks)} within their limits"]
    lines += [
        f"  BEYOND {row['name']}: {row.get('value', row.get('error', ''))} (limit {row.get('limit', '')})"
        for row in checks
        if not row.get("passed")
    ]
    for row in rows:
        if row["part"] == "A" and "copy_gb_s" in row:
            lines.append(f"{row['name']}: {row['copy_gb_s']:.0f} GB/s, {row['matmul_tflop_s']:.0f} TFLOP/s")
    for case in dict.fromkeys(row["case"] for row in rows if row["part"] == "C"):
        here = [row for row in rows if row["part"] == "C" and row["case"] == case]
        lines.append(f"{case}, ms: " + "; ".join(f"{row['name']} {statistics.median(row['ms']):.2f}" for row in here))
    for row in rows:
        if row["part"] == "D" and "shape" in row:
            medians = [
                1e3 * statistics.median(row[way]) if row[way] else float("nan")
                for way in ("forward", "backward", "copy")
            ]
            lines.append(
                f"GN+ReLU {row['shape']} {row['name']}, us: {medians[0]:.1f}, {medians[1]:.1f}; copy {medians[2]:.1f}"
            )
    lines.append(f"left out: {sum(row['part'] in ('left out', 'error') for row in rows)}")
    return "\n".join(lines)


def commit() -> str:
    git = ["git", "describe", "--always", "--abbrev=10", "--dirty", "--exclude", "*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    run.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, results.md, log.txt")
    run.add_argument(
        "--seconds", type=float, default=540, help="limit for everything (default 540); decides what is left out"
    )
    run.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    run.add_argument("--quick", action="store_true", help="tiny sizes")
    run.add_argument("--parts", nargs="+", default=list("ABCDE"), choices=list("ABCDE"))
    run.add_argument("--only", nargs="+", metavar="PATTERN", help="competitors by name, such as 'ours*'")
    run.add_argument("--flowers", help="labelled images for `bit finetune`; else synthetic ones")
    show = commands.add_parser("table", help="results.jsonl as Markdown")
    show.add_argument("file", type=Path)
    show.add_argument("--commit", default="", help="where the run could not know it")
    options = parser.parse_args()
    if options.command == "table":
        rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
        print(table(rows, options.commit), end="")
        return
    # Many compile at the same time.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")
    os.environ.setdefault("OMP_NUM_THREADS", "4")
    at_work = Run(options)
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    said = "python -m benchmarks.gpu " + " ".join(sys.argv[1:])
    at_work.results.add("run", {"date": date, "commit": commit(), "command": said})
    try:
        at_work.everything()
    finally:
        for worker in at_work.workers.values():
            worker.process.kill()
        at_work.results.table()
        print(summary(at_work.results.rows))


if __name__ == "__main__":
    main()
