"""Images of many clients computed together: whoever comes while the model computes is in its next batch.

A batch is thus as large as the load makes it: one image on an idle server, which waits for nobody, and many on a busy one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_PATIENCE = 0.1
"""Of the seconds that the last batch took: how long the next one waits to become as large. Clients who ask again as soon as they are
answered come a moment after the model is free; without this, batches of one and of all the others would take turns."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]
    since: float


class Queue(Generic[Item, Answer]):
    """Lives in one event loop; `compute` is called in `executor`, never twice at a time.

    compute: items -> as many answers, in their order. size: items of a batch at most. watch: told of every batch that was computed, how
    long each of its items waited and how long it took, in seconds.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        size: int,
        executor: Executor,
        watch: Callable[[Sequence[float], float], None] = lambda waited, took: None,
    ) -> None:
        self._compute, self._size, self._executor, self._watch = compute, size, executor, watch
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._arrived = asyncio.Event()
        self._last = (0, 0.0, 0.0)
        """Of the last batch: how many, how long it took, when it ended."""

    def __len__(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    async def answer(self, item: Item) -> Answer:
        """The answer of `compute`, or what it raises for this item alone. Who is cancelled here is no longer computed."""
        waiting = _Waiting[Item, Answer](item, asyncio.get_running_loop().create_future(), time.monotonic())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise

    async def run(self) -> None:
        """Compute batch after batch, until cancelled."""
        while True:
            await self._gathered()
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            if batch:
                await self._answered(batch)

    async def _gathered(self) -> None:
        """Wait until something is there, and a little longer for more of it if the last batch, just before, was larger."""
        if not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        many, took, ended = self._last
        deadline = ended + _PATIENCE * took
        while len(self._waiting) < many and (left := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break

    async def _answered(self, batch: list[_Waiting[Item, Answer]]) -> None:
        began = time.monotonic()
        try:
            answers = await self._computed([waiting.item for waiting in batch])
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].answer, error)
            else:  # what one of them does must not cost the others their answers
                for waiting in batch:
                    if not waiting.answer.done():
                        await self._answered([waiting])
            return
        ended = time.monotonic()
        self._last = (len(batch), ended - began, ended)
        self._watch([began - waiting.since for waiting in batch], ended - began)
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)

    async def _computed(self, items: list[Item]) -> Sequence[Answer]:
        answers = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, items)
        if len(answers) != len(items):
            raise AssertionError(f"{len(answers)} answers for {len(items)} items")
        return answers


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
