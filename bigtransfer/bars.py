"""Progress bars: tqdm's, where somebody looks on: on a terminal, and on a notebook's page, which says that it is no terminal."""

from __future__ import annotations

import sys
from typing import Any

import tqdm as library


def watched() -> bool:
    """Whether what standard error is given is seen at once, and may be written over; not so in a log file."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        if shell is not None and "IPKernelApp" in shell.config:
            return True
    return sys.stderr is not None and sys.stderr.isatty()


class tqdm(library.tqdm):
    """tqdm's own; disable=None: where nobody looks on."""

    def __init__(self, *arguments: Any, disable: bool | None = False, **options: Any) -> None:
        super().__init__(*arguments, disable=not watched() if disable is None else disable, **options)
