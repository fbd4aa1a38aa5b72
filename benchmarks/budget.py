"""Is a budget kept when the machine is busier than it was? `bit finetune --budget` on one core that another process takes half of at times.

    python -m benchmarks.budget --data SETS/flowers12 --budget 60s --runs 20 --core 1 --work WORK

Every run starts in a new folder. The other process computes as fast as it can on the same core, and is stopped and let go on at moments
that the seed draws: idle and busy spells are exponentially distributed with a mean of a sixth of the budget, and a run begins with either
as likely. What else is at work on the core counts too: the results state the load of the machine. Time is counted from the start of the
process to its end, so with Python's start, the check of the images, validations, the evaluation on the test images and the report. Runs
that are done are kept in WORK: the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import Cells, machine
from bigtransfer import records
from bigtransfer.config import seconds
from bigtransfer.errors import RunError
from bigtransfer.evals.candidates import Closed
from bigtransfer.runs import atomic_write, read_budget, read_metrics

SPELL = 1 / 6
"""Mean length of the times in which the other process is busy or idle, as a share of the budget."""

KEPT = 0.15
"""A budget is kept that is not exceeded by more than this share."""

BUSY = "while True: pass"


@contextlib.contextmanager
def competitor(core: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes on `core`, stopped at first; it ends with the context."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.DEVNULL)
    try:
        process.send_signal(signal.SIGSTOP)
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        yield process
    finally:
        process.kill()
        process.wait()


def children_used() -> float:
    """Processor seconds of the processes that this one has started, and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def beside(
    other: subprocess.Popen[bytes], process: subprocess.Popen[bytes], chance: random.Random, mean: float
) -> float:
    """Let `other` compute now and then, in spells of `mean` seconds on average, until `process` has ended; for how many seconds it did."""
    busy, spent = chance.random() < 0.5, 0.0
    while True:
        other.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=chance.expovariate(1 / mean))
        spent += busy * (time.monotonic() - began)
        if process.poll() is not None:
            return spent
        busy = not busy


def measure(data: Path, budget: str, core: int | None, seed: int, run: Path) -> dict[str, Any]:
    """One fine-tuning run in the folder `run`, with the time it took."""
    command = ["finetune", str(data), "--out", str(run), "--budget", budget, "--seed", str(seed)]
    with competitor(core) as other, open(run.with_suffix(".log"), "wb") as output:
        loads, used = [os.getloadavg()[0]], children_used()
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "bigtransfer", *command], stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            busy = beside(other, process, random.Random(seed), SPELL * seconds(budget))
        finally:
            process.kill()  # does nothing to one that has ended
        took, processor = time.monotonic() - began, children_used() - used
        loads.append(os.getloadavg()[0])
    if process.returncode != 0:
        sys.exit(f"bit {' '.join(command)} ended with {process.returncode}:\n{run.with_suffix('.log').read_text()}")
    record = read_budget(run)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    choice = run / "choice.json"
    config, evaluation = (json.loads((run / name).read_text()) for name in ("config.json", "evaluation.json"))
    closed = records.read(run / "closed.json", Closed, RunError)
    return {
        "seconds": round(took, 2),
        "processor": round(processor, 2),
        "busy": round(busy / took, 3),
        "planned": config["recipe"]["steps"],
        "steps": len(lines),
        "closed": closed.seconds,
        "images": closed.images,
        "of": config["data"]["train"],
        "view": str(closed.view),
        "replanned": sum(one.reason == "pace" for one in record.replanned),
        "given back": any(one.reason == "learnt" for one in record.replanned),
        "delivered": json.loads(choice.read_text())["delivered"] if choice.is_file() else "closed form",
        "top1": evaluation.get("top1"),
        "measured": evaluation.get("images", 0),
        "test": config["data"]["test"],
        "load": max(loads),
    }


def results(found: list[dict[str, Any]], options: argparse.Namespace, commits: list[str]) -> str:
    """The results file: worst and median first, then every run."""
    budget = seconds(options.budget)
    ratios = [one["seconds"] / budget for one in found]
    over = sum(ratio > 1 + KEPT for ratio in ratios)
    changes = [one["replanned"] for one in found]
    columns = ["seed", "s", "of the budget", "of the core", "other process busy", "closed form, s", "of images", "seen"]
    columns += ["steps planned", "taken", "re-planned", "rest given back", "delivered", "test top-1", "of test images"]
    rows = [
        f"| {seed} | {one['seconds']:.1f} | {ratio:.2f} | {one['processor'] / one['seconds']:.0%} | {one['busy']:.0%} | "
        f"{one['closed']:.1f} | {one['images']} of {one['of']} | {one['view']} | {one['planned']} | {one['steps']} | "
        f"{one['replanned']} | {'yes' if one['given back'] else 'no'} | {one['delivered']} | "
        f"{'' if one['top1'] is None else format(one['top1'], '.1%')} | {one['measured']} of {one['test']} |"
        for seed, (one, ratio) in enumerate(zip(found, ratios, strict=True), options.seed)
    ]
    shares = [one["processor"] / one["seconds"] for one in found]
    tops = [one["top1"] for one in found if one["top1"] is not None]
    core = "" if options.core is None else f" --core {options.core}"
    return "\n".join(
        [
            f"# A budget of {options.budget} beside another process, {len(found)} runs, {datetime.date.today()}",
            "",
            f"Wall-clock over budget: median **{statistics.median(ratios):.2f}**, worst **{max(ratios):.2f}**, least "
            f"{min(ratios):.2f}; {over} of {len(found)} runs took more than {1 + KEPT:.2f} times the budget. Changes of the plan in a run: "
            f"median {statistics.median(changes):g}, most {max(changes)}. Of the core the runs had {min(shares):.0%} to {max(shares):.0%}, "
            f"median {statistics.median(shares):.0%}. Test top-1: {f'{statistics.mean(tops):.1%} on average' if tops else 'not measured'}.",
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *rows,
            "",
            "Of the core: processor time of the run over its wall-clock; what else is at work on the machine takes its part too. "
            "A run without steps found that there was no time for enough of them. A run that gives the rest of its budget "
            "back has learnt the images, or reached the most steps that the rule takes.",
            "",
            f"- command: `python -m benchmarks.budget --data SETS/{options.data.name} --budget {options.budget} --runs {len(found)} --seed "
            f"{options.seed}{core} --work WORK`; each run is `bit finetune DATA --budget {options.budget} --seed SEED`",
            f"- {machine()}; load of the machine during the runs: up to {max(one['load'] for one in found):.1f}",
            f"- commits of the package: {', '.join(commits)}",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, with a test part")
    parser.add_argument("--budget", default="60s", help="as of bit finetune")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each of the others has the next")
    parser.add_argument("--core", type=int, help="where both processes compute; default: wherever the system puts them")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs, and for those that are done")
    parser.add_argument("--to", type=Path, help="the Markdown file to write; default: in benchmarks/results")
    options = parser.parse_args()
    work = Cells(options.work)
    found = []
    for seed in range(options.seed, options.seed + options.runs):
        asked = {"data": options.data.name, "budget": options.budget, "core": options.core, "seed": seed}
        one = work.once(asked, lambda run, seed=seed: measure(options.data, options.budget, options.core, seed, run))
        if one is None:
            parser.error(f"another process is measuring seed {seed}")
        found.append(one)
    to = options.to or Path(__file__).with_name("results") / f"budget_cpu_{datetime.date.today()}.md"
    with atomic_write(to) as temporary:
        temporary.write_text(results(found, options, work.commits()), encoding="utf-8")
    print(f"written to {to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
