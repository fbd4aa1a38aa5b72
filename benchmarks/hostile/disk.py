"""Disks that are full after any number of bytes: every command that writes is refused with a message that names the place, leaves
nothing half written, keeps what was there, and does its work once there is room."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bigtransfer import cli

from . import commands
from .cases import Campaign, Case, Door, Wrong

_MS_REMOUNT, _MS_REC, _MS_PRIVATE, _CLONE_NEWNS = 32, 16384, 1 << 18, 0x20000
ROOM = 1 << 30


def _mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {target}")


@functools.cache
def mounted(scratch: Path) -> bool:
    """Whether a disk of our own could be put at scratch/disk; it is seen by this process alone, and goes with it."""
    (scratch / "disk").mkdir(exist_ok=True)
    if os.geteuid() or ctypes.CDLL(None).unshare(_CLONE_NEWNS):
        return False
    with contextlib.suppress(OSError):
        _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE, "")
        _mount("tmpfs", scratch / "disk", "tmpfs", 0, f"size={ROOM}")
        return True
    return False


def prepare(scratch: Path) -> None:
    mounted(scratch)
    for name in commands.COMMANDS:
        commands.expected(name, scratch)


def _case(rng: Random, folder: Path, *, name: str) -> Case:
    """How many bytes there are, and of which: of the disk, or of a single file."""
    return Case(
        folder, {"name": name, "share": rng.random() ** 2, "old": rng.random() < 0.3, "file": rng.random() < 0.3}
    )


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    name, by_file = case.options["name"], case.options["file"] or not mounted(scratch)
    disk = scratch / "disk" if mounted(scratch) else scratch / "case"
    for left in disk.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    out = disk / "out"
    given = commands.arguments(name, scratch, out)
    whole = {"finetune": 200 << 20}.get(name, 70 << 20 if "convert" in name or "linear" in name else 1 << 20)
    room = int(case.options["share"] * whole)
    before = _old(name, out) if case.options["old"] else {}
    used = commands.size_of(disk)

    def limited() -> None:
        said = io.StringIO()
        with _room(disk, used, room, by_file), contextlib.redirect_stderr(said):
            status = cli.main(given)
        print(said.getvalue())
        text = said.getvalue()
        if status not in (0, 2):
            raise Wrong(f"exit status {status}: {text[-200:]}")
        if status == 2 and str(disk) not in text:
            raise Wrong(f"the message names no place: {text[-300:]}")
        if status == 2:
            for path, data in before.items():
                kept = path.exists() and path.read_bytes() == data
                if not kept and commands.print_of(out).get(path.name) != commands.expected(name, scratch)[path.name]:
                    raise Wrong(f"{path.name}, which was there before, is gone or half of a new one")
            going_on = (out / ".plan.json").exists()  # what the same command goes on from
            if not going_on and (half := [path.name for path in out.rglob(".*") if path.name != ".lock"]):
                raise Wrong(f"left half written: {half}")

    yield f"{name}, {'files of' if by_file else 'a disk of'} {room} bytes", limited

    def again() -> None:
        if (status := cli.main([*given, *commands.again(name, out)])) != 0:
            raise Wrong(f"with room: exit status {status}")
        commands.compare(name, scratch, out)

    yield f"{name}, with room", again


def _old(name: str, out: Path) -> dict[Path, bytes]:
    """What an earlier command left where this one will write."""
    found = {}
    for word in commands.COMMANDS[name].split():
        if word.startswith("OUT/") and "predict" in name:
            path = out / word[4:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"of before")
            found[path] = b"of before"
    return found


@contextlib.contextmanager
def _room(disk: Path, used: int, room: int, by_file: bool) -> Iterator[None]:
    """At most `room` bytes more on the disk, or in any file."""
    if by_file:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1), before[1]))
    else:
        _mount("tmpfs", disk, "tmpfs", _MS_REMOUNT, f"size={-(-(used + room) // 4096) * 4096 + 4096}")
    try:
        yield
    finally:
        if by_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        else:
            _mount("tmpfs", disk, "tmpfs", _MS_REMOUNT, f"size={ROOM}")


CAMPAIGN = Campaign(
    "disk",
    {name.replace(" ", "."): functools.partial(_case, name=name) for name in commands.COMMANDS},
    doors,
    prepare,
)
