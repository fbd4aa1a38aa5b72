"""A campaign in which everything goes wrong: proof that the others would notice."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from bigtransfer import hyperrule
from bigtransfer.errors import DataError

from .cases import Campaign, Case, Door
from .worker import CANARY


def _hang() -> None:
    while True:
        pass


def _write_elsewhere() -> None:
    path = Path(__file__).with_name("never")
    try:
        path.write_text("")
    finally:
        path.unlink(missing_ok=True)


class _Code:
    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (0.0,)


def _refused(message: str) -> None:
    raise DataError(message)


def _connect(host: str) -> None:
    with socket.socket() as one:
        one.settimeout(0.1)
        one.connect_ex((host, 9))


WRONGS: dict[str, Callable[[Path], object]] = {
    "traceback": lambda scratch: hyperrule.upstream("x", 1),  # type: ignore[arg-type]
    "exit": lambda scratch: sys.exit(0),
    "hang": lambda scratch: _hang(),
    "waiting": lambda scratch: time.sleep(1000),
    "crash": lambda scratch: os.kill(os.getpid(), 11),
    "memory": lambda scratch: len(bytearray(400 << 20)),
    "more memory": lambda scratch: [bytearray(100 << 20) for _ in range(100) if time.sleep(0.02) is None],
    "program": lambda scratch: subprocess.run(["true"], check=True),
    "system": lambda scratch: os.system("true"),
    "fork": lambda scratch: os.fork() or os._exit(0),
    "trap": lambda scratch: os.posix_spawnp("gs", ["gs", "x"], dict(os.environ)) and time.sleep(0.3),
    "network": lambda scratch: _connect("192.0.2.1"),
    "name": lambda scratch: socket.getaddrinfo("nothing.invalid", 80),
    "code": lambda scratch: pickle.loads(pickle.dumps(_Code())),
    "canary": lambda scratch: (scratch / CANARY).touch(),
    "write": lambda scratch: _write_elsewhere(),
    "control": lambda scratch: print("\x1b[31m"),
    "noise": lambda scratch: warnings.warn("noise", UserWarning),
}
RIGHTS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda scratch: None,
    "refusal": lambda scratch: _refused("no such thing"),
    "text": lambda scratch: print("error: a\tb\né"),
    "home": lambda scratch: _connect("127.0.0.1"),
    "own files": lambda scratch: (scratch / "case" / "x").write_text("x"),
}


def _doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    yield "door", lambda: (WRONGS | RIGHTS)[case.options["name"]](scratch)


CAMPAIGN = Campaign(
    "wrongs",
    {name: lambda rng, folder, name=name: Case(folder, {"name": name}) for name in (*WRONGS, *RIGHTS)},
    _doors,
)
