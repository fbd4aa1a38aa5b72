"""Keeping the memory of freed tensors for the next ones, or giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in this process instead of giving it back to the kernel; elsewhere do nothing.

    A training step frees all its activations and the next one allocates them again. By default glibc returns blocks above 32 MiB, and
    the top of the heap, each time, and the kernel then clears every page anew: 5 % (bf16) to 12 % (fp32) of a step on a CPU
    (docs/decisions/cpu-operations.md), and up to half of the time of batches that are only looked at, of large images in networks whose
    maps outgrow their computation (docs/lab-notes.md). The process's peak stays what it was.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


def give_back_freed_memory() -> None:
    """Give glibc's freed memory back to the kernel, so that what is allocated next shows in the process's size; elsewhere do nothing."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
