"""What sees programs, connections, unpickling and writing while a case runs: Python's audit events, and traps."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

_PROGRAMS = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
)
_NETWORK = frozenset(("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"))
_UNPICKLED = frozenset(("pickle.find_class",))
_WATCHED = _PROGRAMS | _NETWORK | _UNPICKLED | {"open"}

HOME = ("127.0.0.1", "localhost", "::1")
"""The only addresses that a campaign asks for."""


class Guard:
    """Notes, while armed, what must not happen. An audit hook cannot be taken away again, so one guard serves a process."""

    def __init__(self, *writable: Path) -> None:
        """writable: folders into which a case may write."""
        self._writable = tuple(f"{folder.resolve()}{os.sep}" for folder in writable)
        self._armed = False
        self._busy = threading.local()
        self.seen: list[tuple[str, str]] = []
        """(program, network, code or write, what)."""
        sys.addaudithook(self._hook)

    def arm(self) -> None:
        self.seen, self._armed = [], True

    def disarm(self) -> list[tuple[str, str]]:
        self._armed = False
        return self.seen

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed or event not in _WATCHED or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            self._note(event, arguments)
        finally:
            self._busy.now = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROGRAMS:
            self.seen.append(("program", f"{event}{arguments!r}"[:300]))
        elif event in _UNPICKLED:
            self.seen.append(("code", f"{event}{arguments!r}"[:300]))
        elif event in _NETWORK:
            host = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
            host = host[0] if isinstance(host, tuple) else host
            host = host.decode("utf-8", "replace") if isinstance(host, bytes) else host
            if host not in HOME:
                self.seen.append(("network", f"{event} {host!r}"[:300]))
        else:
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                real = os.path.realpath(os.fsdecode(path))
                if not real.startswith((*self._writable, "/dev/", "/proc/self/")):
                    self.seen.append(("write", real[:300]))


def traps(folder: Path) -> Path:
    """A folder for PATH of programs that decoders are known to start; each leaves a file `sprung` beside them when it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("gs", "gswin32c", "gswin64c", "djpeg", "cjpeg", "convert", "magick", "inkscape", "rsvg-convert"):
        script = folder / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >> "{folder / "sprung"}"\nexit 1\n')
        script.chmod(0o755)
    return folder
