"""Progress bars: tqdm's, where somebody looks on: on a terminal, and on a notebook's page, which says that it is no terminal."""

from __future__ import annotations

import sys
from typing import Any

import tqdm as library

EVERY = 30.0
"""Seconds between the lines that stand for a bar in a log file: hours of work should show there too, but not every state of them."""


def watched() -> bool:
    """Whether what standard error is given is seen at once, and may be written over; not so in a log file."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None and "IPKernelApp" in shell.config:
            return True
    return sys.stderr is not None and sys.stderr.isatty()


class tqdm(library.tqdm):
    """tqdm's own; disable=None: where nobody looks on, a line every `EVERY` seconds in the bar's place."""

    _lines = False

    def __init__(self, *arguments: Any, disable: bool | None = False, **options: Any) -> None:
        if disable is None and not watched():
            self._lines = True
            options |= {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1, "delay": EVERY, "leave": False}
            disable = sys.stderr is None
        super().__init__(*arguments, disable=bool(disable), **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._lines:
            return bool(super().display(msg, pos))
        if msg is not None:  # the bar is to be wiped out
            return False
        rate, left = self.format_dict["rate"], ""
        if self.total and rate:
            left = f" of {self.total:,} {self.unit}, {self.format_interval((self.total - self.n) / rate)} left"
        # As a bar begins, by which those who asked for none are spared it (`terminal.guarded`).
        self.fp.write(f"\r{self.desc or 'done'}: {self.n:,}{left or f' {self.unit}'}\n")
        self.fp.flush()
        return True
