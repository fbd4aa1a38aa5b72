"""Work done ahead of whoever needs its results, in threads or processes that end with the generator that they feed."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from bigtransfer.errors import BitError, DataError

T = TypeVar("T")
R = TypeVar("R")

Stopped = Callable[[], bool]
"""Asked now and then by long work: True when nobody wants its result any more."""

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C in a terminal, and many a scheduler's end, reach all of a job's processes; only the main one shall act on them."""


def in_threads(
    function: Callable[[T, Stopped], R], items: Iterable[T], *, threads: int, ahead: int
) -> Generator[R, None, None]:
    """`function(item, stopped)` of each item, in order, up to `ahead` items ahead. Raises what the function raises."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item, stop.is_set))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def in_processes(
    function: Callable[[T, Stopped], R], items: Iterable[T], *, processes: int, ahead: int = 2
) -> Generator[R, None, None]:
    """The same in worker processes, each of which works out up to `ahead` (at least 1) results ahead; function, items and results are
    pickled (tensors travel through shared memory, as torch has it).

    In a process that may have no children (a daemonic one, such as a worker of somebody's pool), threads do it.
    Raises the BitErrors that the function raises, and DataError if a worker dies. Each worker has a pipe of its own, so that one that is
    killed leaves no lock behind for the others to wait on.
    """
    if multiprocessing.current_process().daemon:
        yield from in_threads(function, items, threads=processes, ahead=ahead * processes)
        return
    context = multiprocessing.get_context()
    stop = context.RawValue("b", 0)
    workers: list[tuple[Any, Any]] = []  # processes and pipes, whose types differ by system

    def close() -> None:
        stop.value = 1
        for _, pipe in workers:
            with contextlib.suppress(OSError):  # it has died
                pipe.send(None)  # wakes the one that waits
        for process, pipe in workers:
            process.join(timeout=2)
            if process.is_alive():  # in the middle of an image; it has nothing to tidy up
                process.kill()
                process.join()
            pipe.close()

    # Without it, Python's exit would wait for them if the generator is never closed.
    atexit.register(close)
    try:
        for _ in range(processes):
            pipe, far_end = context.Pipe()
            process = context.Process(target=_serve, args=(function, far_end, stop), daemon=True)
            with _later(STOPPING):  # the worker is born with them held back, and ignores them before it lets them in
                process.start()
            far_end.close()  # so that the worker's death is the pipe's end
            workers.append((process, pipe))
        waiting: deque[tuple[Any, Any]] = deque()
        for number, item in enumerate(items):
            if number >= ahead * processes:
                yield _received(*waiting.popleft())
            waiting.append(workers[number % processes])
            _sent(*waiting[-1], item)
        while waiting:
            yield _received(*waiting.popleft())
    finally:
        atexit.unregister(close)
        close()


def _sent(process: Any, pipe: Any, item: object) -> None:
    try:
        pipe.send(item)
    except OSError as error:
        raise _died(process) from error


def _received(process: Any, pipe: Any) -> Any:
    try:
        result, error, trace = pipe.recv()
    except (EOFError, OSError) as broken:
        raise _died(process) from broken
    if error is not None:
        raise error
    if trace is not None:
        raise RuntimeError(f"in a worker process:\n{trace}")
    return result


def _died(process: Any) -> DataError:
    process.join(timeout=1)
    code = process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    return DataError(
        f"A process that decodes images {how}. If memory ran out, lower --workers; the same command goes on from the last checkpoint."
    )


@contextlib.contextmanager
def _later(signals: Iterable[signal.Signals]) -> Generator[None, None, None]:
    """Holds signals back until the end of the block (Windows cannot)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(function: Callable[[Any, Stopped], Any], pipe: Any, stop: Any) -> None:
    """A worker's life: until it is told to stop, or the main process is gone."""
    # A forked process does not have the threads that torch's operations ran on before, and would wait for them for ever; each worker
    # has a core of its own anyway. Not imported for this: it takes seconds.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent = multiprocessing.parent_process()
    assert parent is not None
    while True:
        # The pipe alone does not tell: workers forked later hold copies of the main process's end of it.
        ready = multiprocessing.connection.wait([pipe, parent.sentinel])
        if stop.value or parent.sentinel in ready:
            return
        try:
            item = pipe.recv()
            try:
                answer = function(item, lambda: bool(stop.value)), None, None
            except BitError as error:
                answer = None, error, None
            except Exception:
                answer = None, None, traceback.format_exc()
            pipe.send(answer)
        except (EOFError, OSError):
            return
