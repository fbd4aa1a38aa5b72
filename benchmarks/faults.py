"""A pre-training run of two processes under torchrun, whose processes are killed again and again, equals an undisturbed one bit for bit.

    python -m benchmarks.faults --kills 30 --data ../shared/data

Real photographs (flowers12 of the shelf; generated pictures where it is absent), R26x1 at 32 px with moving averages, a checkpoint
after every step. SIGKILL and SIGTERM hit one process at a time: while it starts, while it trains or validates, and while a checkpoint
is being written; torchrun restarts both. Then torchrun itself is ended, and the same command given again. In a second run the number
of processes changes from 2 to 1 to 3.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bigtransfer import weights
from bigtransfer.train import checkpoint

from .interruptions import log, photographs, processor, steps_logged

BATCH, IMAGES = 12, 720

MOMENTS = ("training", "writing a checkpoint", "training", "starting", "writing a checkpoint")
"""While what the kills come, in turn."""

PATIENCE = 600.0
"""Seconds after which something that should have happened will not."""

TOLERANCE = 0.02
"""Largest difference of a step's loss, nats, between runs whose sums are ordered otherwise."""


class Launch:
    """torchrun and the processes it starts."""

    def __init__(self, command: list[str], processes: int, output: Path) -> None:
        self.output, self.processes = output, processes
        self.ranks: list[int] = []
        """Process ids, in the order of the ranks."""
        self._seen = 0
        torchrun = (
            f"-m torch.distributed.run --standalone --nproc-per-node {processes} --max-restarts 1000 -m bigtransfer"
        )
        with open(output, "wb") as file:
            self.torchrun = subprocess.Popen(
                [sys.executable, *torchrun.split(), *command],
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait(self, condition: Callable[[], bool], every: float = 0.02) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.torchrun.poll() is not None or time.monotonic() > end:
                sys.exit(f"torchrun ended with {self.torchrun.poll()}, or nothing happened:\n{self.output.read_text()}")
            time.sleep(every)

    def started(self) -> None:
        """Wait until all processes have been started, after a kill: anew."""
        before = set(self.ranks)
        self.wait(lambda: len(self._children()) == self.processes and not before & set(self._children()))
        self.ranks, self._seen = self._children(), self.output.stat().st_size

    def origin(self) -> int | None:
        """The step from which the processes train; None if they do not yet."""
        found = re.compile(rb"\d steps of [^\n]*\n").search(self.output.read_bytes(), self._seen)
        if found is None:
            return None
        step = re.search(rb"from step (\d+)", found[0])
        return int(step[1]) if step else 0

    def end(self) -> int:
        """The exit status of torchrun, once it has one. None of the processes is left."""
        status = self.torchrun.wait()
        for pid in self.ranks:  # torchrun gives each a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return status

    def _children(self) -> list[int]:
        found: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.torchrun.pid:
                    rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", (entry / "environ").read_bytes())
                    if rank:
                        found[int(rank[1])] = int(entry.name)
        return [found[rank] for rank in sorted(found)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def half_written(run: Path) -> bool:
    """Whether there is a checkpoint that is not finished."""
    return any((run / checkpoint.FOLDER).glob(".*.tmp"))


@dataclass
class Times:
    """Seconds that the parts of an undisturbed run take: where the random moments are drawn from."""

    start: float
    step: float
    checkpoint: float


def undisturbed(command: list[str], run: Path, output: Path) -> Times:
    launch = Launch(command, 2, output)
    began = time.monotonic()
    launch.started()
    launch.wait(lambda: launch.origin() is not None)
    start = time.monotonic() - began
    launch.wait(lambda: steps_logged(run) >= 2)  # the first steps are slower
    began, taken, first = time.monotonic(), [], steps_logged(run)
    while len(taken) < 10:
        launch.wait(lambda: half_written(run), every=0.002)
        writing = time.monotonic()
        launch.wait(lambda: not half_written(run), every=0.002)
        taken.append(time.monotonic() - writing)
    step = (time.monotonic() - began) / (steps_logged(run) - first)
    if status := launch.end():
        sys.exit(f"exit status {status}:\n{output.read_text()}")
    return Times(start, step, statistics.median(taken))


@dataclass
class Kill:
    name: str
    rank: int
    moment: str
    origin: int | None
    """Step from which the processes trained; None: killed before they did."""
    reached: int
    """Steps in the log when the process was gone."""
    saved: int
    """Steps in the newest checkpoint then."""
    half_written: bool
    """Whether a checkpoint was left that was not finished."""
    same_so_far: bool


def kill(launch: Launch, run: Path, moment: str, number: int, chance: random.Random, times: Times) -> Kill:
    """End one of the processes of `launch` at a random moment of the kind."""
    if moment == "starting":
        time.sleep(chance.uniform(0.0, times.start))
    else:
        began = time.monotonic()
        launch.wait(lambda: launch.origin() is not None)
        times.start = time.monotonic() - began
        wanted = (launch.origin() or 0) + chance.randint(1, 2)
        launch.wait(lambda: steps_logged(run) >= wanted)
        if moment == "training":
            time.sleep(chance.uniform(0.0, times.step))
        else:
            launch.wait(lambda: half_written(run), every=0.002)
            time.sleep(chance.uniform(0.0, times.checkpoint))
    rank = chance.randrange(launch.processes)
    os.kill(launch.ranks[rank], number)
    launch.wait(lambda: gone(launch.ranks[rank]), every=0.002)
    return Kill(
        name=signal.Signals(number).name,
        rank=rank,
        moment=moment,
        origin=launch.origin(),
        reached=steps_logged(run),
        saved=max(checkpoint.steps(run), default=0),
        half_written=half_written(run),
        same_so_far=False,
    )


def apart(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of each tensor of two finished runs that is not the same, relative to its largest value."""
    a, b = (weights.load(folder).state_dict() for folder in (one, other))
    assert a.keys() == b.keys()
    return {
        name: float((a[name] - b[name]).abs().max() / b[name].abs().max().clamp(min=1e-12))
        for name in b
        if not torch.equal(a[name], b[name])
    }


def stop(launch: Launch, run: Path, number: int, steps: int) -> int:
    """After some more steps, send torchrun the signal, and if that is SIGKILL its processes too; the number of steps in the log."""
    launch.wait(lambda: launch.origin() is not None)
    wanted = (launch.origin() or 0) + steps
    launch.wait(lambda: steps_logged(run) >= wanted)
    launch.torchrun.send_signal(number)
    if number == signal.SIGKILL:
        for pid in launch.ranks:
            os.kill(pid, number)
    launch.end()
    return steps_logged(run)


def finish(launch: Launch) -> None:
    if status := launch.end():
        sys.exit(f"exit status {status}:\n{launch.output.read_text()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of single processes (default 30)")
    parser.add_argument("--steps", type=int, default=90, help="optimizer steps of the run (default 90)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default 0)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with flowers12.tar")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    date, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    asked = (
        f"--model r26x1 --batch-size {BATCH} --epochs {options.steps * BATCH / IMAGES:.8g} --crop 32 --learning-rate 0.01 --warmup 5 "
        "--schedule cosine --ema 0.9 --eval-every 20 --precision fp32 --workers 0 --device cpu"
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["BIT_CACHE"] = str(work / "cache")
        data, described = photographs(options.data, work)
        whole, run, other, output = work / "whole", work / "run", work / "other", work / "output.txt"

        def command(folder: Path, often: str = "0s") -> list[str]:
            return f"pretrain {data} --out {folder} {asked} --checkpoint-every {often}".split()

        times = undisturbed(command(whole), whole, output)
        expected = log(whole)
        assert steps_logged(whole) == options.steps
        usual = f"{times.step:.1f} s a step with its checkpoint, {times.checkpoint:.2f} s of them for that"
        print(f"{time.monotonic() - began:.0f} s: undisturbed, {usual}", flush=True)

        kills: list[Kill] = []
        launch = Launch(command(run), 2, output)
        while len(kills) < options.kills:
            launch.started()
            number = (signal.SIGKILL, signal.SIGTERM)[len(kills) % 2]
            each = kill(launch, run, MOMENTS[len(kills) % len(MOMENTS)], number, chance, times)
            lines = log(run)
            each.same_so_far = lines == expected[: len(lines)]
            kills.append(each)
            print(f"{time.monotonic() - began:.0f} s:", len(kills), each, flush=True)
        ends = ""
        for number, what in ((signal.SIGKILL, "torchrun and both processes"), (signal.SIGTERM, "torchrun")):
            launch.started()
            reached, saved = stop(launch, run, number, steps=2), max(checkpoint.steps(run))
            launch = Launch(command(run), 2, output)
            ends += f"| {signal.Signals(number).name} | {what} | {reached} | {saved} |\n"
        finish(launch)
        print(f"{time.monotonic() - began:.0f} s: finished after\n{ends}", flush=True)
        numbers, differences = log(run), apart(run, whole)
        same_card = weights.describe(run).metrics == weights.describe(whole).metrics

        changes = ""
        launch = Launch(command(other, "1h"), 2, output)
        launch.started()
        for before, processes in ((2, 1), (1, 3)):
            reached = stop(launch, other, signal.SIGTERM, steps=options.steps // 3)
            launch = Launch(command(other, "1h"), processes, output)
            launch.started()
            launch.wait(lambda reached=reached: steps_logged(other) > reached)
            first = [line["loss"] for line in log(other) if "loss" in line][reached]
            there = [line["loss"] for line in expected if "loss" in line][reached - 1 : reached + 1]
            changes += (
                f"| {before} to {processes} | {launch.origin()} | {first:.6f} | {there[1]:.6f} | {there[0]:.6f} |\n"
            )
        finish(launch)
        print(f"{time.monotonic() - began:.0f} s: finished after\n{changes}", flush=True)
        changed, drifted = log(other), apart(other, whole)

    def verdict(same: bool) -> str:
        return "yes" if same else "NO"

    taken = [line["step"] for line in numbers if "loss" in line]
    lost, repeated = set(range(options.steps)) - set(taken), len(taken) - len(set(taken))
    in_order = [line["step"] for line in changed] == [line["step"] for line in expected]
    losses = [
        abs(a["loss"] - b["loss"]) for a, b in zip(changed, expected, strict=False) if "loss" in a and "loss" in b
    ]
    same = not differences and numbers == expected and same_card and all(each.same_so_far for each in kills)
    again = sum(each.reached - each.saved for each in kills if each.origin is not None)
    rows = "\n".join(
        f"| {i} | {each.name} | {each.rank} | {each.moment} | {'not yet' if each.origin is None else each.origin} | {each.reached} "
        f"| {each.saved} | {verdict(each.half_written).lower()} | {verdict(each.same_so_far)} |"
        for i, each in enumerate(kills, 1)
    )
    other_weights = f"; largest relative differences: {differences}" if differences else ""
    hardware = f"{processor()}, torch threads: {torch.get_num_threads()} a process, beside other work"
    text = f"""# {len(kills)} kills of processes of one pre-training run, {date:%Y-%m-%d}

- Command: `python -m benchmarks.faults --kills {options.kills} --steps {options.steps} --seed {options.seed}`; each run is
  `torchrun --standalone --nproc-per-node 2 --max-restarts 1000 -m bigtransfer pretrain DATA {asked}
  --checkpoint-every 0s`
- Data: {described}; backend: gloo
- Versions: Python {platform.python_version()}, torch {torch.__version__}
- Hardware: {hardware}; {usual}; {time.monotonic() - began:.0f} s in all

All {len(kills)} kills, and the two ends of torchrun below, fell on one run. It was then compared with a run that nothing
disturbed, bit for bit:

- final weights (moving averages) identical: **{verdict(not differences)}**{other_weights}
- metrics.jsonl (losses, learning rates, gradient lengths, validation) identical: **{verdict(numbers == expected)}**
- images lost: **{len(lost) * BATCH}**; trained on twice in the final weights: **{repeated * BATCH}** (every step is in the log once,
  with the undisturbed run's loss)
- steps computed again because their checkpoint was not finished: {again} of {options.steps}

| kill | signal | rank | while | trained from step | steps logged | newest checkpoint | half-written one left | log identical so far |
|---|---|---|---|---|---|---|---|---|
{rows}

"Not yet": killed before it trained again. After SIGTERM all processes finish the step at hand and save; SIGKILL may leave a
half-written checkpoint beside the whole one of the step before. torchrun restarted both processes each time.

## torchrun itself ended, and the same command given again

| signal | to | steps logged | newest checkpoint |
|---|---|---|---|
{ends}
## Another number of processes

A second run of the same recipe, stopped by SIGTERM to torchrun; then the same command with another `--nproc-per-node`. The
first loss after the change is that of the same images, but sums are ordered otherwise.

| processes | went on from step | its loss | undisturbed, 2 processes | that of the step before |
|---|---|---|---|---|
{changes}
- every step once and in order: **{verdict(in_order)}**
- largest difference of a step's loss: {max(losses):.1e}; of the last: {losses[-1]:.1e} (tolerance {TOLERANCE})
- largest difference of the final weights, relative to each tensor's largest value: {max(drifted.values(), default=0.0):.1e}
"""
    out = options.out or Path(__file__).with_name("results") / f"faults_cpu_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    return 0 if same and not lost and not repeated and in_order and max(losses) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
