"""Runs of pytest for `mutants run`, one after another, each in a fork of a process that has torch and the like loaded already.

    python benchmarks/mutants_server.py FOLDER

Every line of standard input is a JSON list: seconds, then pytest's arguments. Its answer is one line, a JSON object: `status`, pytest's
exit status or null after so many seconds, and `printed`. FOLDER, a copy of the repository, is where they run and whose package they load.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback

LOADED = ("torch", "torchvision", "timm", "transformers", "pyarrow.parquet", "PIL.Image", "tqdm", "jinja2", "pytest")


def main() -> None:
    folder = sys.argv[1]
    sys.path[0] = folder
    os.chdir(folder)
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] in ("bigtransfer", "benchmarks", "tests") for name in sys.modules)
    for line in sys.stdin:
        seconds, *arguments = json.loads(line)
        with tempfile.TemporaryFile() as printed:
            child = os.fork()
            if child == 0:
                _child(arguments, printed.fileno())
            status = _ended(child, seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # whom its tests may have left behind
            printed.seek(0)
            text = printed.read().decode(errors="replace")
        print(json.dumps({"status": status, "printed": text}), flush=True)


def _child(arguments: list[str], printed: int) -> None:
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is used; some were loaded by others, of which it warns
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    status = 1
    try:
        status = int(pytest.main(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _ended(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main()
