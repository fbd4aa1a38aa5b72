"""Where the processor time of one command goes that does little: before, in imports by package, and after them.

    python -m benchmarks.startup predict MODEL.onnx IMAGE     # any command of `bit` with its arguments
    python -m benchmarks.startup --modules 30 predict ...     # the modules that cost most, too

`time.process_time` around every first import, so that other programs on the machine are not in it (they slow it all the same).
Prints a table in Markdown; what the command prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib._bootstrap as bootstrap
import os
import platform
import sys
import time
from collections import Counter

before = time.process_time()
whole: dict[str, float] = {}
"""Seconds by module, with what it imports."""
own: Counter[str] = Counter()
"""Seconds by package, without."""
_open: list[float] = []
_load = bootstrap._find_and_load  # pyright: ignore[reportAttributeAccessIssue]


def _timed(name: str, import_: object) -> object:
    if name in sys.modules:
        return _load(name, import_)
    started = time.process_time()
    _open.append(0.0)
    try:
        return _load(name, import_)
    finally:
        took = time.process_time() - started
        whole[name] = took
        own[name.partition(".")[0]] += took - _open.pop()
        if _open:
            _open[-1] += took


def main() -> None:
    arguments = sys.argv[1:]
    modules = 0
    if arguments[:1] == ["--modules"]:
        modules, arguments = int(arguments[1]), arguments[2:]
    if not arguments:
        sys.exit(__doc__)
    bootstrap._find_and_load = _timed  # pyright: ignore[reportAttributeAccessIssue]
    started = time.process_time()
    from bigtransfer import cli

    with contextlib.redirect_stdout(sys.stderr):
        status = cli.main(arguments)
    total = time.process_time() - started
    imports = sum(own.values())
    torch = "with" if "torch" in sys.modules else "without"
    print(
        f"- exit status {status}, {torch} torch, Python {platform.python_version()}, load average {os.getloadavg()[0]:.0f}"
    )
    print(f"- {len(whole)} modules\n\n| ms of processor time | |\n|---|---|")
    print(f"| {before * 1e3:.0f} | Python itself, before the first line |")
    print(
        f"| {imports * 1e3:.0f} | imports: {', '.join(f'{name} {spent * 1e3:.0f}' for name, spent in own.most_common(8))} |"
    )
    print(f"| {(total - imports) * 1e3:.0f} | what the command does |")
    print(f"| {(before + total) * 1e3:.0f} | together |")
    for name, spent in sorted(whole.items(), key=lambda item: -item[1])[:modules]:
        print(f"| {spent * 1e3:.1f} | {name}, with what it imports |")


if __name__ == "__main__":
    main()
