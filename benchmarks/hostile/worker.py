"""The process in which cases run: `python -m benchmarks.hostile.worker SCRATCH`, told by `supervisor.Worker` what to do.

It reads lines `{"campaign", "generator", "seed"}` and answers each with a line for every door that it opens, so that the supervisor knows
where it is, and one for the case. What the cases print goes into a file.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any

from bigtransfer.errors import BitError

from .cases import Campaign, numbers
from .guard import Guard, traps

CAMPAIGNS = ("images", "weights", "datasets", "runs", "server", "disk", "kills")
STACK_SIGNAL = signal.SIGRTMIN + 5
CANARY = "canary"
"""File in the scratch folder that no case may make: pickles try to."""

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
_NOISE = re.compile(
    rb"^(?!error: |note: |warning: |  )(?=.*(Warning|Traceback|Exception ignored|TIFF|libpng|JPEG))", re.M
)


def campaign(name: str) -> Campaign:
    return importlib.import_module(f"benchmarks.hostile.{name}").CAMPAIGN


def place_of(error: BaseException) -> str:
    """The innermost line of bigtransfer that the exception passed, as file:line function; else the innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}bigtransfer{os.sep}" in frame.filename]
    frame = (ours or frames)[-1]
    name = frame.filename.rpartition(f"{os.sep}bigtransfer{os.sep}")[2] if ours else frame.filename
    return f"{name}:{frame.lineno} {frame.name}"


def memory() -> dict[str, int]:
    """VmRSS and VmHWM of this process, bytes."""
    found = re.findall(r"(VmHWM|VmRSS):\s+(\d+)", Path("/proc/self/status").read_text())
    return {key: int(value) << 10 for key, value in found}


class Worker:
    def __init__(self, scratch: Path, answers: IO[str], printed: Path) -> None:
        self.scratch, self.answers, self.printed = scratch, answers, printed
        self.guard = Guard(scratch)
        self.known: dict[str, Campaign] = {}

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.answers, flush=True)

    def run(self, name: str, generator: str, seed: int) -> None:
        if name not in self.known:
            self.known[name] = campaign(name)
            self.known[name].prepare(self.scratch)
        chosen = self.known[name]
        folder = self.scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rng = numbers(name, generator, seed)
        case = chosen.generators[generator](rng, folder)
        os.truncate(self.printed, 0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is counted from here
        before = memory()["VmRSS"]
        doors = []
        self.guard.arm()
        for door, enter in chosen.doors(case, rng, self.scratch):
            self.say(door=door)
            started = time.monotonic()
            found = self._enter(enter)
            doors.append({"door": door, "seconds": round(time.monotonic() - started, 3), **found})
        seen = [(kind, what) for kind, what in self.guard.disarm() if what.partition("(")[0] not in chosen.allowed]
        peak = memory()["VmHWM"] - before
        for sprung, kind in ((self.scratch / "traps" / "sprung", "program"), (self.scratch / CANARY, "code")):
            if sprung.exists():
                seen.append((kind, sprung.read_text(errors="replace")[:300] if sprung.is_file() else str(sprung)))
                shutil.rmtree(sprung) if sprung.is_dir() else sprung.unlink()
        printed = self.printed.read_bytes()
        self.say(
            doors=doors,
            peak=peak,
            seen=seen,
            control=ascii(control[0].decode("utf-8", "replace")) if (control := _CONTROL.search(printed)) else "",
            noise=printed[noise.start() :][:200].decode("utf-8", "replace")
            if (noise := _NOISE.search(printed))
            else "",
        )

    def _enter(self, enter: Any) -> dict[str, str]:
        """How it went: ok; refused, with the message; or failed, with what and where."""
        try:
            enter()
        except BitError as error:
            return {"outcome": "refused", "message": ascii(str(error))[:300]}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return {
                "outcome": "failed",
                "what": type(error).__name__,
                "where": place_of(error),
                "message": ascii(str(error))[:300],
                "tail": ascii("".join(traceback.format_exception(error)))[-1500:],
            }
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return {"outcome": "ok"}


def main(scratch: Path) -> None:
    """Serve until the orders end."""
    for name in ("BIT_CACHE", "TMPDIR"):
        (scratch / name.lower()).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(scratch / name.lower())
    os.environ["PATH"] = f"{traps(scratch / 'traps')}{os.pathsep}{os.environ['PATH']}"
    printed = scratch / "printed"
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a case may read what it takes for an image from there
    opened = os.open(printed, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    faulthandler.register(STACK_SIGNAL, open(scratch / "stack", "w"), all_threads=True)  # noqa: SIM115 - for ever
    warnings.simplefilter("default")
    worker = Worker(scratch, answers, printed)
    for line in orders:
        asked = json.loads(line)
        try:
            worker.run(asked["campaign"], asked["generator"], asked["seed"])
        except Exception:  # a fault of the campaign's own
            worker.guard.disarm()
            worker.say(broken=traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
