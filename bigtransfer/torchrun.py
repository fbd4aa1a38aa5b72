"""The torchrun that started this process, if one did. No torch here.

torchrun starts all processes again whenever one ends with a status other than 0, as often as --max-restarts says, and ends itself with 40
lines of traceback. That is right for a process that died, and wrong for a misspelt flag.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

_PATIENCE = 1.0
"""Seconds for what takes milliseconds: a process to end that was told to."""


def agent() -> int | None:
    """Process id of the torchrun command that started this process; None if something else did, such as a program of one's own that
    uses torch's launcher, which must live on."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
        # "python /usr/bin/torchrun ...", "python -m torch.distributed.run ...", which show as the path of run.py
        if any(re.search(rb"(^|/)torchrun$|torch[./]distributed[./](run|launch)(\.py)?$", word) for word in words[:6]):
            return parent
    return None


def end_job(agent: int, message: str) -> NoReturn:
    """End the training on this machine, torchrun (process `agent`) with it, with `message` as the last line: for what no restart can mend.

    All processes may have met the same mistake: only the first to come here speaks, and ends the others.
    """
    if not _first():
        time.sleep(5 * _PATIENCE)  # the first one ends this process too
        os._exit(2)
    for sibling in _children(agent) - {os.getpid()}:
        with contextlib.suppress(OSError):
            os.kill(sibling, signal.SIGKILL)  # whatever they would say now comes of this
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Of the signals that torchrun leaves alone, so that it says nothing more; not SIGKILL, which looks like a lack of memory. As the first
    # process of a container it is out of reach of these, but not of SIGTERM, which it handles.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        with contextlib.suppress(OSError):
            os.kill(agent, number)
        deadline = time.monotonic() + _PATIENCE
        while os.getppid() == agent and time.monotonic() < deadline:
            time.sleep(0.01)
    os._exit(2)


def _first() -> bool:
    """Whether this process is the first of its job, on this machine, that asks."""
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not place:
        return True
    try:
        # .../ATTEMPT/LOCAL_RANK/error.json, in a folder of this torchrun's own
        os.close(os.open(Path(place).parent.parent / "bit-error", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def _children(process: int) -> set[int]:
    """The processes that `process` has started and that have not ended."""
    found: set[int] = set()
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= set(map(int, path.read_text().split()))
    return found
