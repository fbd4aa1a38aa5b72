"""The input: whole shards from an object store through a bounded cache."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from simulation.assumptions import Store


@dataclass(frozen=True, kw_only=True)
class Input:
    """How the nodes of a job read: `lanes` sequences of shards, each consumed at the same pace by the ranks that it belongs to."""

    nodes: int
    lanes: int
    batch: int
    step: float
    """Seconds of a step that never waits."""
    shard_images: int
    image_bytes: float
    block_shards: int = 1
    """Shards that the images of one shuffled block lie in: all must be there before the first is drawn."""
    prefetch: int = 1
    """Shards of a lane that are fetched ahead of the block in use."""
    ahead: float = 0.0
    """Images of a lane: its next shard is asked for so many before it is needed, besides `prefetch`."""
    caches: int = 1
    """Per node: 1 shared by its processes, or one for each of them."""
    aligned: bool = False
    """All lanes reach the ends of their shards together (their lengths are whole numbers of shards); otherwise spread evenly."""

    @property
    def shard_bytes(self) -> float:
        return self.shard_images * self.image_bytes

    @property
    def readers(self) -> int:
        """Pairs (cache, lane): each fetches and keeps its own copy of a shard."""
        return max(self.nodes * self.caches, self.lanes)

    @property
    def cache_bytes(self) -> float:
        """Room that one node needs for its shards at most."""
        shards = self.block_shards + self.prefetch + math.ceil(self.ahead / self.shard_images)
        return self.readers / self.nodes * shards * self.shard_bytes

    @property
    def demand(self) -> float:
        """Bytes per second from the store, when nothing waits; what has several readers is fetched several times."""
        per_lane = self.batch / self.lanes / self.step * self.image_bytes
        return per_lane * self.readers


@dataclass(frozen=True)
class InputResult:
    first_batch: float
    """Seconds from a cold start until every node has the shards of its first batch."""
    settling: float
    """Seconds of waiting while each lane uses up its first block: after a start all shards are wanted at once."""
    waited: float
    """Share of the time after that in which the job waits for a shard."""
    requests: int
    refused: int
    """Of the requests, by the store's limit."""


_RETRY, _ARRIVED = 0, 1
_ORDER, _BEGIN = 0, 1


def simulate_input(plan: Input, store: Store, *, blocks: int = 12, seed: int = 0) -> InputResult:
    """Events: a shard arrives, a refused or failed request is sent again, a lane comes near its next block, a lane begins it.

    All lanes advance together, by batch / lanes images a step, and stop together when one misses a shard: the step is synchronous.
    Runs until each lane has consumed `blocks` blocks.
    """
    rng = np.random.default_rng(seed)
    readers, size = plan.readers, plan.shard_bytes
    length = plan.block_shards * plan.shard_images
    speed = plan.batch / plan.lanes / plan.step  # images per second of each lane
    # How much of its first block each lane has behind it.
    behind = np.zeros(readers) if plan.aligned else np.arange(readers) / readers * length
    behind = rng.permutation(behind).tolist()
    node_of = [reader * plan.nodes // readers for reader in range(readers)]

    events: list[tuple[float, int, int, int, int]] = []  # time, order, kind, reader, attempt
    serial = 0
    queued: list[deque[int]] = [deque() for _ in range(plan.nodes)]
    under_way = [0] * plan.nodes
    node_clock, bucket_clock, request_clock = [0.0] * plan.nodes, 0.0, 0.0
    ordered = [0] * readers  # shards asked for
    present = [0] * readers  # shards that have arrived (a lane's arrive in any order; only their number matters here)
    requests = refused = 0

    def push(time: float, kind: int, reader: int, attempt: int = 0) -> None:
        nonlocal serial
        serial += 1
        heapq.heappush(events, (time, serial, kind, reader, attempt))

    def duration() -> float:
        latency = store.latency * math.exp(store.latency_sigma * rng.standard_normal())
        rate = store.stream * math.exp(store.stream_sigma * rng.standard_normal())
        slow = store.slowness if rng.random() < store.straggle else 1.0
        return latency + size / rate * slow

    def send(now: float, reader: int, attempt: int) -> None:
        nonlocal bucket_clock, request_clock, requests, refused
        node = node_of[reader]
        requests += 1
        again = now + min(32.0, store.backoff * 2**attempt) * (0.5 + rng.random())
        if request_clock > now + 1.0:  # more than a second's worth of requests stands in line
            refused += 1
            push(again, _RETRY, reader, attempt + 1)
            return
        request_clock = max(request_clock, now) + 1 / store.requests
        if rng.random() < store.errors:
            push(again, _RETRY, reader, attempt + 1)
            return
        took = duration()
        if took > store.hedge * store.expected(size):
            requests += 1
            took = min(took, store.hedge * store.expected(size) + duration())
        # Node and bucket hand their bandwidth out in the order of the requests.
        node_clock[node] = max(node_clock[node], now) + size / store.node_bandwidth
        bucket_clock = max(bucket_clock, now) + size / store.bandwidth
        push(max(now + took, node_clock[node], bucket_clock), _ARRIVED, reader)

    def fill(now: float, node: int) -> None:
        while queued[node] and under_way[node] < store.streams:
            under_way[node] += 1
            send(now, queued[node].popleft(), 0)

    def order(now: float, reader: int, until: int) -> None:
        count = until - ordered[reader]
        if count > 0:
            ordered[reader] = until
            queued[node_of[reader]].extend([reader] * count)
            fill(now, node_of[reader])

    def handle(event: tuple[float, int, int, int, int]) -> None:
        now, _, kind, reader, attempt = event
        if kind == _RETRY:
            send(now, reader, attempt)
        else:
            present[reader] += 1
            node = node_of[reader]
            under_way[node] -= 1
            fill(now, node)

    # What the first batch needs goes first, then what comes after.
    for reader in range(readers):
        order(0.0, reader, plan.block_shards)
    for reader in range(readers):
        order(0.0, reader, plan.block_shards + plan.prefetch)

    def wait(now: float, needed: list[tuple[int, int]]) -> float:
        """When every reader of the list has that many shards, if all wait from `now` on."""
        while needed:
            reader, shards = needed[-1]
            if present[reader] >= shards:
                needed.pop()
            else:
                event = heapq.heappop(events)
                now = event[0]
                handle(event)
        return now

    now = first = wait(0.0, [(reader, plan.block_shards) for reader in range(readers)])

    # Positions of a lane at which its next block's last shards are asked for, and at which that block begins.
    marks: list[tuple[float, int, int, int]] = []
    for reader in range(readers):
        begins = length - behind[reader]
        marks += [(begins - plan.ahead, _ORDER, reader, 1), (begins, _BEGIN, reader, 1)]
    heapq.heapify(marks)
    position = waited = settling = 0.0
    settled: float | None = None
    while True:
        at, kind, reader, block = heapq.heappop(marks)
        if at > (blocks - 1) * length:
            break
        then = now + max(0.0, at - position) / speed
        while events and events[0][0] <= then:
            handle(heapq.heappop(events))
        now, position = then, max(position, at)
        if settled is None and position >= length:
            settled, settling, waited = now, waited, 0.0
        shards = (block + 1) * plan.block_shards
        if kind == _ORDER:
            order(now, reader, shards + plan.prefetch)
        else:
            going = wait(now, [(reader, shards)])
            waited += going - now
            now = going
        heapq.heappush(marks, (at + length, kind, reader, block + 1))
    assert settled is not None
    return InputResult(first, settling, waited / (now - settled), requests, refused)
