"""The process that watches a worker: how long it takes, how much memory, and whether it lives."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .worker import STACK_SIGNAL


@dataclass(frozen=True)
class Limits:
    cpu: float = 20.0
    """Seconds of the processor that one door may take; as many it may wait for something without using any."""
    wall: float = 120.0
    """Seconds that it may take in all: other work on the machine slows it down."""
    memory: int = 2 << 30
    """Bytes that a case may take besides what the process had."""


_PAGE, _TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass
class Result:
    """What became of a case."""

    campaign: str
    generator: str
    seed: int
    doors: list[dict[str, Any]] = field(default_factory=list)
    peak: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    control: str = ""
    noise: str = ""
    limits: Limits = field(default_factory=Limits)
    kept: str = ""
    """Where its files were put, if something was wrong."""

    def faults(self) -> list[tuple[str, str, str]]:
        """(kind, what and where, detail) of everything that was wrong."""
        found = []
        for door in self.doors:
            if door["outcome"] == "failed" and door["what"] == "Wrong":
                found.append(
                    ("wrong answer", f"{door['door'].partition(',')[0]}: {door['message'][:60]}", door["message"])
                )
            elif door["outcome"] == "failed":
                found.append(("traceback", f"{door['what']} at {door['where']}", door["message"]))
            elif door["outcome"] in ("hang", "crash", "memory"):
                found.append((door["outcome"], f"{door['door']}: {door.get('where', '')}", door.get("message", "")))
        if self.peak > self.limits.memory and not any(kind == "memory" for kind, _, _ in found):
            found.append(("memory", self.generator, f"{self.peak / 1e9:.1f} GB"))
        found += [(kind, re.sub(r"0x[0-9a-f]+|\d+", "N", what)[:80], what) for kind, what in self.seen]
        if self.control:
            found.append(("control character", f"{self.generator}: printed", self.control))
        if self.noise:
            found.append(("noise", re.sub(r"0x[0-9a-f]+|\d+", "N", self.noise)[:80], self.noise))
        return found


class Broken(RuntimeError):
    """A case cannot be made, or the worker not be started: a fault of the campaign's own."""


class Worker:
    """A process that runs cases, started again when it was lost."""

    def __init__(self, scratch: Path, keep: Path | None = None, limits: Limits | None = None) -> None:
        """scratch: a folder for it alone. keep: where the files of cases go in which something was wrong."""
        self.scratch, self.keep, self.limits = scratch, keep, limits or Limits()
        self._process: subprocess.Popen[str] | None = None
        self._selector = selectors.DefaultSelector()
        self._pending = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.hostile.worker", str(self.scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "OMP_NUM_THREADS": "1", "BIT_OFFLINE": "1"},
            )
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
            self._selector.register(self._process.stdout, selectors.EVENT_READ)
            self._pending = b""
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            assert self._process.stdout is not None and self._process.stdin is not None
            self._selector.unregister(self._process.stdout)
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None

    def run(self, campaign: str, generator: str, seed: int) -> Result:
        result = Result(campaign, generator, seed, limits=self.limits)
        fresh = self._process is None
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({"campaign": campaign, "generator": generator, "seed": seed}) + "\n")
        process.stdin.flush()
        # A worker that starts has torch to load and models to make, which is not the case's fault.
        self._watch(result, spare=100.0 if fresh else 0.0)
        if result.faults() and self.keep is not None:
            target = self.keep / campaign / f"{generator}-{seed}"
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                (self.scratch / "case").rename(target)  # not copied: it may hold pipes and files of any size
            result.kept = str(target)
        return result

    def _watch(self, result: Result, spare: float) -> None:
        process = self._start()
        door, began, used = "making the case", time.monotonic(), self._cpu()
        base, busy, before = None, began, used
        while True:
            for facts in self._answers(0.05):
                if "broken" in facts:
                    raise Broken(f"{result.generator} {result.seed}: {facts['broken']}")
                if "door" in facts:
                    door, began, used, spare = facts["door"], time.monotonic(), self._cpu(), 0.0
                    busy = began
                    base = self._resident() if base is None else base
                else:
                    for name, value in facts.items():
                        setattr(result, name, value)
                    return
            if process.poll() is not None:
                self._end()
                if door == "making the case":
                    where = f"{result.generator} {result.seed}: the worker ended with {process.returncode}"
                    raise Broken(f"{where}:\n{(self.scratch / 'printed').read_text()[-2000:]}")
                result.doors.append({"door": door, "outcome": "crash", "where": f"exit status {process.returncode}"})
                return
            if (cpu := self._cpu()) > before + 0.05:
                busy, before = time.monotonic(), cpu
            spent, waited, cpu = time.monotonic() - began, time.monotonic() - busy, cpu - used
            grown = 0 if base is None else self._resident() - base
            large = grown > 1.5 * self.limits.memory
            if large or max(spent - self.limits.wall, waited - self.limits.cpu, cpu - self.limits.cpu) > spare:
                kind = "memory" if large else "hang"
                where = self._stack()
                self._end()
                if door == "making the case":
                    raise Broken(f"{result.generator} {result.seed}: its making takes too long ({where})")
                detail = f"{spent:.0f} s, {cpu:.0f} s of the processor, {grown / 1e9:.1f} GB"
                result.doors.append({"door": door, "outcome": kind, "where": where, "message": detail})
                return

    def _answers(self, wait: float) -> Iterator[dict[str, Any]]:
        assert self._process is not None and self._process.stdout is not None
        if not self._selector.select(wait):
            return
        with contextlib.suppress(BlockingIOError):
            self._pending += os.read(self._process.stdout.fileno(), 1 << 20)
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            yield json.loads(line)

    def _cpu(self) -> float:
        try:
            fields = Path(f"/proc/{self._start().pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / _TICK

    def _resident(self) -> int:
        try:
            return int(Path(f"/proc/{self._start().pid}/statm").read_text().split()[1]) * _PAGE
        except OSError:
            return 0

    def _stack(self) -> str:
        """Where the worker is: the innermost line of bigtransfer in any thread."""
        stack = self.scratch / "stack"
        before = stack.stat().st_size if stack.exists() else 0
        with contextlib.suppress(OSError):
            self._start().send_signal(STACK_SIGNAL)
            time.sleep(0.3)
            text = stack.read_text()[before:]
            found = re.findall(r'File ".*?/bigtransfer/([^"]+)", line (\d+) in (\w+)', text)
            other = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', text)
            for file, line, function in (*found, *other)[:1]:
                return f"{file}:{line} {function}"
        return "unknown"
