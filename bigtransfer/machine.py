"""What this machine, or the container on it, lets the process have: cores and memory; and since when the process is at work."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from pathlib import Path

_CONTAINER_LIMITS = (
    # Control groups, version 2 and 1: limit, use, and the use's details with the line for pages of files not used lately.
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


began: float | None = None
"""When this process began as the command `bit` (`time.monotonic`); None if it only uses the package."""


def available_memory(groups: Path = Path("/sys/fs/cgroup"), machine: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory that new allocations can have: what the machine has free, or the container's limit where that is lower.

    Where the system does not say how much is free (macOS, Windows), half of the machine's memory, or 4 GiB if even that is unknown.
    """
    free = 4 << 30
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no sysconf, no such name
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, StopIteration):
        lines = machine.read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used, details, cached in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            # A group's use counts the cached pages of files it has read, which make room for others.
            stat = dict(line.split() for line in (groups / details).read_text().splitlines())
            free = min(free, left + int(stat.get(cached, 0)))
    return max(free, 0)


def usable_cores() -> int:
    """Processor cores that this process may use, which schedulers and containers often limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_OF_SEVERAL_MACHINES = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "pvfs2",
    "virtiofs",
)
"""Types of file systems that other machines may have mounted too; of those in user space ("fuse.sshfs") nearly all are such."""


def on_network(path: str | os.PathLike[str], mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a path is on a file system that other machines may share, where locks cannot be relied on. False where the system does not
    say (macOS, Windows)."""
    real, kind, longest = os.path.realpath(path), "", -1
    with contextlib.suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields, _, rest = line.partition(" - ")
            place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
            # Of two at one place the later one is seen.
            if len(place) >= longest and (real == place or real.startswith(place.rstrip("/") + "/")):
                kind, longest = rest.split()[0], len(place)
    return kind in _OF_SEVERAL_MACHINES or kind.startswith("fuse.")


def processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself; on Linux on ARM, where it has no name there, what it can."""
    with contextlib.suppress(OSError):
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if name := told.get("model name") or told.get("Features"):
            return name
    return platform.processor() or platform.machine()


def threads() -> int:
    """Threads that a computation on the CPU takes: as many as `$OMP_NUM_THREADS` says, as with torch, else one for each usable core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if re.fullmatch("[1-9][0-9]{0,3}", asked) else usable_cores()


def most_memory() -> str:
    """The most memory that this process has had so far, as the end of a sentence; "" where the system does not say."""
    try:
        import resource  # not on Windows
    except ImportError:
        return ""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", at most {most / 1e6:,.0f} MB of memory"
