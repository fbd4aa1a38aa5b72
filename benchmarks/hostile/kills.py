"""Commands that are killed at any moment and given again: in the end they leave exactly what they leave undisturbed. `benchmarks.faults`
and `benchmarks.interruptions` do the same at length for trainings, of one process and of several under torchrun."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bigtransfer import cli

from . import commands
from .cases import Campaign, Case, Door, Wrong

SIGNALS = ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU")
_took: dict[str, float] = {}


def _fork(given: list[str]) -> int:
    """A process that does the command; this one has torch loaded already."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        status = 70
        try:
            status = cli.main(given)
        finally:
            os._exit(status)
    return pid


def prepare(scratch: Path) -> None:
    for name in commands.COMMANDS:
        commands.expected(name, scratch)
        out = scratch / "timed"
        shutil.rmtree(out, ignore_errors=True)
        given = commands.arguments(name, scratch, out)
        started = time.monotonic()
        os.waitpid(_fork(given), 0)
        _took[name] = time.monotonic() - started


def _case(rng: Random, folder: Path, *, name: str) -> Case:
    kills = [(rng.choice(SIGNALS), rng.random()) for _ in range(rng.choice((1, 1, 2, 3)))]
    return Case(folder, {"name": name, "kills": kills})


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    name, out = case.options["name"], scratch / "case" / "out"
    given = commands.arguments(name, scratch, out)

    def killed(kind: str, moment: float) -> None:
        pid = _fork(given)
        time.sleep(moment * 1.1 * _took[name])
        os.kill(pid, getattr(signal, kind))
        end = time.monotonic() + 15
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                if kind != "SIGUSR1":
                    raise Wrong(f"{name} did not end within 15 s of {kind}")
                return
            time.sleep(0.005)

    for kind, moment in case.options["kills"]:
        yield f"{name}, {kind} after {moment:.2f} of its time", functools.partial(killed, kind, moment)

    def again() -> None:
        if (status := cli.main([*given, *commands.again(name, out)])) != 0:
            raise Wrong(f"given again: exit status {status}")
        commands.compare(name, scratch, out)

    yield f"{name}, again", again


CAMPAIGN = Campaign(
    "kills",
    {name.replace(" ", "."): functools.partial(_case, name=name) for name in commands.COMMANDS},
    doors,
    prepare,
    allowed=frozenset(("os.fork",)),
)
