"""Interrupted and resumed equals uninterrupted, bit for bit: one fine-tuning run, killed again and again at random moments.

    python -m benchmarks.interruptions --kills 20 --data ../shared/data

Real photographs (flowers12 of the shelf; generated pictures where it is absent), a tiny network with random weights in place of
a pre-trained one, and a checkpoint after every step, so that many kills fall into its writing. SIGTERM and SIGKILL take turns; a
fifth of the kills comes while the process is still starting. After each one the same command runs again, every third time with
the images decoded by a worker process instead of kept in memory, which may not matter either.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bigtransfer import weights
from bigtransfer.catalog import InputSpec
from bigtransfer.jobs import training
from bigtransfer.model import ResNetV2

BATCH = 16

OTHERWISE = ["--cache", "none", "--workers", "1"]

EARLY = 0.2
"""Share of kills in the first seconds, before or while the run is resumed."""


@dataclass(frozen=True)
class Kill:
    name: str
    moment: str
    started_from: int | None
    """None: killed before it had resumed."""
    reached: int
    same_so_far: bool

    @property
    def origin(self) -> str:
        return "not yet" if self.started_from is None else str(self.started_from)


def photographs(shelf: Path, work: Path) -> tuple[Path, str]:
    """A folder of class folders, and what it is."""
    archive = shelf / "flowers12.tar"
    if archive.is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        return work / "flowers12", "flowers12 (720 photographs to train on, 240 to test on)"
    generator = np.random.default_rng(0)
    for label in range(12):
        for part, count in (("train", 60), ("test", 20)):
            folder = work / "generated" / part / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((120, 90)).save(folder / f"{i}.png")
    return work / "generated", "generated pictures (720 to train on, 240 to test on)"


def tiny_model(path: Path) -> Path:
    """A model file of the smallest network of BiT's grammar, one unit a block, with random weights."""
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), num_classes=5)
    network.card = dataclasses.replace(network.card, name="tiny", input=InputSpec(size=64))
    weights.save(path, network)
    return path


def log(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the clock and without a torn last line."""
    lines = []
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append({key: value for key, value in json.loads(line).items() if key not in training.CLOCK})
        except json.JSONDecodeError:
            continue
    return lines


def steps_logged(run: Path) -> int:
    return sum("loss" in line for line in log(run))


def start(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    with open(output, "wb") as file:
        return subprocess.Popen([sys.executable, "-m", "bigtransfer", *command], stdout=file, stderr=subprocess.STDOUT)


def interrupt(
    command: list[str], run: Path, output: Path, number: int, chance: random.Random, step_seconds: float
) -> str:
    """Start the command, kill it at a random moment, wait for its end; which kind of moment it was."""
    before = steps_logged(run)
    process = start(command, output)
    if before and chance.random() < EARLY:
        moment = "starting"
        time.sleep(chance.uniform(0.0, 8.0))
    else:
        moment = "training"
        # The log is rewound on a resume, so what counts is steps after the process has said from where it goes on.
        wanted = chance.randint(1, 3)
        while process.poll() is None:
            resumed = re.search(rb"resumed after step (\d+)", output.read_bytes())
            base = int(resumed.group(1)) if resumed else 0
            if (resumed or not before) and steps_logged(run) >= base + wanted:
                break
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, min(2 * step_seconds, 0.5)))  # somewhere within a step or its checkpoint
    process.send_signal(number)
    process.wait()
    if process.returncode not in (-number, 128 + number):
        sys.exit(f"exit status {process.returncode} instead of a kill:\n{output.read_text()}")
    if list((run / "checkpoints").glob(".*.tmp")):
        moment = "writing a checkpoint"
    return moment


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="interruptions (default 20)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of the run (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default 0)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with flowers12.tar")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    date = datetime.datetime.now(datetime.UTC)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        data, described = photographs(options.data, work)
        model = tiny_model(work / "tiny.safetensors")

        def command(run: Path) -> list[str]:
            asked = f"--steps {options.steps} --batch-size {BATCH} --crop 64 --val-fraction 0.05 --eval-every 10"
            given = f"finetune {data} --model {model} --out {run} {asked} --device cpu --checkpoint-every 0s"
            return given.split()

        whole, run, output = work / "whole", work / "run", work / "output.txt"
        began = time.monotonic()
        if start(command(whole), output).wait() != 0:
            sys.exit(output.read_text())
        expected = log(whole)
        rates = [
            line["images_per_second"]
            for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        step_seconds = BATCH / statistics.median(rates)
        print(f"uninterrupted: {options.steps} steps in {time.monotonic() - began:.0f} s", flush=True)

        kills: list[Kill] = []
        while len(kills) < options.kills:
            number = (signal.SIGTERM, signal.SIGKILL)[len(kills) % 2]
            loading = OTHERWISE if len(kills) % 3 == 2 else []
            moment = interrupt([*command(run), *loading], run, output, number, chance, step_seconds)
            resumed = re.search(r"resumed after step (\d+)", output.read_text())
            lines = log(run)
            kills.append(
                Kill(
                    name=signal.Signals(number).name,
                    moment=moment,
                    started_from=int(resumed.group(1)) if resumed else None if kills else 0,
                    reached=steps_logged(run),
                    same_so_far=lines == expected[: len(lines)],
                )
            )
            print(len(kills), kills[-1], flush=True)
        if start(command(run), output).wait() != 0:
            sys.exit(output.read_text())
        one, other = (weights.load(folder).state_dict() for folder in (run, whole))
        apart = {
            name: float((one[name] - other[name]).abs().max())
            for name in other
            if not torch.equal(one[name], other[name])
        }
        same_weights = not apart and one.keys() == other.keys()
        same_numbers = log(run) == expected
        dtype = json.loads((run / "config.json").read_text())["resolved"]["dtype"]
        cards = [weights.describe(folder).metrics for folder in (run, whole)]

    def verdict(same: bool) -> str:
        return "yes" if same else "NO"

    rows = "\n".join(
        f"| {i} | {kill.name} | {kill.moment} | {kill.origin} | {kill.reached} | {verdict(kill.same_so_far)} |"
        for i, kill in enumerate(kills, 1)
    )
    otherwise = " ".join(OTHERWISE)
    finished = "After the last kill the run went on to its end. Identical to the uninterrupted run, bit for bit:"
    text = f"""# {len(kills)} interruptions of one fine-tuning run, {date:%Y-%m-%d}

- Command: `python -m benchmarks.interruptions --kills {options.kills} --steps {options.steps} --seed {options.seed}`; each run
  is `bit finetune DATA --model tiny.safetensors --steps {options.steps} --batch-size {BATCH} --crop 64 --val-fraction 0.05
  --eval-every 10 --device cpu --checkpoint-every 0s`, every third start with `{otherwise}`
- Data: {described}; network: one unit a block, random weights, {sum(t.numel() for t in other.values()) / 1e6:.1f} M parameters
- Versions: Python {platform.python_version()}, torch {torch.__version__}
- Hardware: {processor()}, torch threads: {torch.get_num_threads()}, {dtype}, beside other work; median step {step_seconds:.2f} s

{finished}

- final weights: **{verdict(same_weights)}**{f"; largest difference by tensor: {apart}" if apart else ""}
- metrics.jsonl (losses, learning rates, validation): **{verdict(same_numbers)}**
- measured on the test images: **{verdict(cards[0] == cards[1])}**

| kill | signal | while | resumed from step | steps logged at the kill | log identical so far |
|---|---|---|---|---|---|
{rows}

A kill while starting comes before the process has resumed or soon after. SIGKILL loses at most the step at hand; what was logged of
it is forgotten and logged again. "Writing a checkpoint": a half-written file was left beside the whole one of the step before.
"""
    out = options.out or Path(__file__).with_name("results") / f"interruptions_cpu_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    everything = same_weights and same_numbers and cards[0] == cards[1] and all(kill.same_so_far for kill in kills)
    return 0 if everything else 1


if __name__ == "__main__":
    sys.exit(main())
