"""Pre-training past our machines (300 million images, R152x4, N nodes): models of compute and network, simulations of input and failures.

`python -m benchmarks.scale_report` runs everything and writes the tables.

No figure of a GPU, a network or an object store here is a measurement of ours. What is assumed stands in the dataclasses below, each
value with its source: [P] public, [S] the project's collected figures (H200 floors and decoding speeds), [A] our assumption, to be
replaced by the buyer's own. What is computed follows from them and from `bigtransfer.catalog`; what is measured (`measure_*`) is our
own Python on one core. Random numbers are seeded.
"""

from __future__ import annotations

import contextlib
import heapq
import io
import math
import tarfile
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from bigtransfer.catalog import Architecture

IMAGES = 300_000_000
"""JFT-300M (the paper)."""
CLASSES = 18_291
"""Of JFT-300M [P: Sun et al. 2017]."""
HOUR = 3600.0


# --- What is assumed


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One H200-class GPU, and how our kernels are taken to use it: an estimate, not a measurement."""

    flops: float = 790e12
    """Peak of bf16 matrix products, FLOP/s [S]."""
    share: float = 0.75
    """Of that peak that large products reach [S: the column "fused @0.75"]."""
    memory: float = 4.3e12
    """Bytes/s, reads and writes together [S]."""
    norm_passes: tuple[int, int] = (3, 6)
    """Passes over the activations of one fused GroupNorm+ReLU, forward and backward; fits the collected floors within 3 %."""
    parameter_bytes: tuple[int, int, int] = (6, 14, 20)
    """Traffic per parameter and step of weight standardization forward, backward, and of SGD with momentum [S]."""
    processors: int = 132
    tile: int = 128
    """A matrix product is cut into tiles of tile x tile, one a processor at a time [A]: small products leave processors idle."""
    kernel: float = 5e-6
    """Shortest time of one kernel, s [A]."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """What the GPUs of a job talk over."""

    name: str = "400 Gb/s per GPU"
    between: float = 50e9
    """Bytes/s per GPU and direction between nodes."""
    inside: float = 450e9
    """Bytes/s per GPU and direction inside a node: NVLink 4."""
    share: float = 0.8
    """Of either that collectives reach [A]."""
    latency: float = 10e-6
    """Per hop of a tree, s [A]."""
    gpus: int = 8
    """Per node."""


RICH = Links()
POOR = Links(name="100 Gb/s per node", between=12.5e9 / 8)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A way to store the images."""

    name: str
    bytes: float
    """Of an average image."""
    decode: float
    """Images per second and core: decoding, the random crop, the resize to 224 px."""


STORED = (
    Images(name="as collected (460 x 391, JPEG)", bytes=118e3, decode=413),  # [S], both
    Images(
        name="shorter side 256, JPEG q90", bytes=20e3, decode=900
    ),  # 17 to 19 kB, see the result; decode measured there
    Images(name="raw uint8 256 x 256", bytes=256 * 256 * 3, decode=28_863),  # [S]
)
SMALL = STORED[1]


@dataclass(frozen=True, kw_only=True)
class Store:
    """An object store as its clients see it, and how they ask."""

    latency: float = 0.15
    """Median time to the first byte, s [P: S3's guide says 100 to 200 ms]."""
    latency_sigma: float = 0.5
    """Of its logarithm [A]."""
    stream: float = 60e6
    """Median bytes/s of one connection [A]."""
    stream_sigma: float = 0.3
    errors: float = 1e-3
    """Share of requests that fail [A]."""
    straggle: float = 1e-3
    """Share of requests that are slow [A]..."""
    slowness: float = 20.0
    """... and how many times."""
    hedge: float = math.inf
    """A second request is sent when one takes this many times the median; the faster counts."""
    requests: float = 5500.0
    """Per second, for the whole bucket: more are refused [P: S3 per prefix; GCS begins near 5000]."""
    bandwidth: float = 25e9
    """Bytes/s of the whole bucket [A: 200 Gb/s]."""
    node_bandwidth: float = 5e9
    """Bytes/s into one node [A: 40 Gb/s of its storage network]."""
    streams: int = 16
    """Requests that one node has under way."""
    backoff: float = 0.5
    """First wait after a refusal or error, s; doubled each time up to 32 s, times 0.5 to 1.5 at random."""

    def expected(self, size: float) -> float:
        """Median seconds of a request for `size` bytes that nothing else slows down."""
        return self.latency + size / self.stream


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How often nodes are lost, and what a restart takes."""

    node: float = 419 / (54 * 24 * 16384 / 8)
    """Failures per node and hour. [P: Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 GPUs, 8 a node]"""
    rack: float = 1e-5
    """Failures per rack and hour that take all of its nodes [A]."""
    rack_nodes: int = 4
    repair: float = 24 * HOUR
    """Until a lost node is back [A]."""
    slow: float = 1e-4
    """Per node and hour: it becomes slow (heat, a bad link) [A]..."""
    slow_factor: float = 1.3
    slow_for: float = 2 * HOUR
    """... until someone or something notices [A]."""
    detect: float = 30.0
    """From a crash to all processes stopped, s [A]. A hang costs the time-out of the process group instead."""
    start: float = 90.0
    """Python, torch, CUDA, compiled kernels from their cache [A]."""
    rendezvous: float = 10 / 4000
    """Seconds per node of torchrun's [P: pytorch PR 124982: 10 s at 4000 hosts, 373 s before it]."""
    last_call: float = 30.0
    """torchrun's wait for more nodes when fewer than the maximum have come [torch's default]."""
    communicators: float = 5e-3
    """Seconds per rank to make NCCL's [A]."""

    def restart(self, nodes: int, *, load: float, pipeline: float, full: bool = True, gpus: int = 8) -> float:
        """Seconds from a crash to the next step. load: reading the checkpoint; pipeline: until the first batch; full: with all nodes."""
        meeting = nodes * self.rendezvous + (0.0 if full else self.last_call)
        return self.detect + self.start + meeting + nodes * gpus * self.communicators + load + pipeline


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system that all nodes share, for checkpoints."""

    node: float = 2e9
    """Bytes/s of one node [A]."""
    whole: float = 50e9
    """Bytes/s of all together [A]."""
    operations: float = 20_000.0
    """Files opened per second, by all nodes together [A]."""
    sync: float = 5e-3
    """Seconds to make one file durable [A]."""


# --- Arithmetic: one step


@dataclass(frozen=True)
class Conv:
    """One convolution: `kernel` x `kernel`, from `before`^2 pixels of `inputs` channels to `after`^2 of `outputs`."""

    inputs: int
    outputs: int
    kernel: int
    before: int
    after: int
    normed: bool
    """GroupNorm+ReLU of its own in front of it; the root and the projections have none."""

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel**2

    @property
    def flops(self) -> float:
        """Of one image, forward; a multiply-add counts as 2."""
        return 2.0 * self.weights * self.after**2


def convolutions(arch: Architecture, px: int) -> list[Conv]:
    """The convolutions that an image of `px` x `px` passes through, in order."""

    def halved(side: int) -> int:
        return (side - 1) // 2 + 1

    side = halved(px)
    channels = 64 * arch.width
    found = [Conv(arch.in_chans, channels, 7, px, side, False)]
    side = halved(side)
    for block, units in enumerate(arch.units):
        out = 256 * arch.width * 2**block
        for unit in range(units):
            after = halved(side) if unit == 0 and block > 0 else side
            found.append(Conv(channels, out // 4, 1, side, side, True))
            found.append(Conv(out // 4, out // 4, 3, side, after, True))
            found.append(Conv(out // 4, out, 1, after, after, True))
            if unit == 0:
                found.append(Conv(channels, out, 1, side, after, False))
            channels, side = out, after
    return found


def forward_flops(arch: Architecture, px: int) -> float:
    """FLOPs of one image, forward, without the head."""
    return sum(conv.flops for conv in convolutions(arch, px))


def _product(gpu: Gpu, rows: float, columns: float, flops: float, moved: float) -> float:
    """Seconds of a matrix product with `rows` x `columns` results: bound by arithmetic, with idle processors, or by memory."""
    across = min(gpu.tile, columns)
    tiles = math.ceil(rows / gpu.tile) * math.ceil(columns / across)
    # The last round of tiles is rarely full; the last row of tiles rarely covers only real results.
    used = rows * columns / (math.ceil(tiles / gpu.processors) * gpu.processors * gpu.tile * across)
    return max(flops / (gpu.flops * gpu.share * min(1.0, used)), moved / gpu.memory, gpu.kernel)


@dataclass(frozen=True)
class Compute:
    """Seconds of one GPU for its part of a batch."""

    forward: float
    backward: tuple[tuple[float, int], ...]
    """(seconds, parameters whose gradients are then ready), from the head to the root."""
    update: float

    @property
    def total(self) -> float:
        return self.forward + sum(seconds for seconds, _ in self.backward) + self.update


def compute(arch: Architecture, px: int, images: float, classes: int = CLASSES, gpu: Gpu | None = None) -> Compute:
    """The time of `images` images, forward, backward and update, on one GPU, by the model of `Gpu`."""
    gpu = gpu or Gpu()
    forward, backward = 0.0, []
    features = arch.num_features
    head = Conv(features, classes, 1, 1, 1, False)
    for conv in [*convolutions(arch, px), head]:
        into, out = images * conv.before**2, images * conv.after**2
        moved = 2 * (into * conv.inputs + out * conv.outputs + conv.weights)
        flops = conv.flops * images
        passes = 2 * into * conv.inputs / gpu.memory if conv.normed else 0.0
        standardize, back, _ = (bytes * conv.weights / gpu.memory for bytes in gpu.parameter_bytes)
        forward += _product(gpu, out, conv.outputs, flops, moved) + passes * gpu.norm_passes[0] + standardize
        # The weights' gradient sums over pixels, which can be split among processors: it is taken to fill them.
        seconds = _product(gpu, into, conv.inputs, flops, moved) + max(
            flops / (gpu.flops * gpu.share), moved / gpu.memory
        )
        backward.append((seconds + passes * gpu.norm_passes[1] + back, conv.weights))
    return Compute(
        forward, tuple(reversed(backward)), arch.num_parameters(classes) * gpu.parameter_bytes[2] / gpu.memory
    )


def all_reduce(bytes: float, nodes: int, links: Links) -> float:
    """Seconds to sum `bytes` over all GPUs: inside the nodes and between them at once, the slower counts, plus the hops of a tree."""
    inside = 2 * (links.gpus - 1) / links.gpus * bytes / (links.inside * links.share)
    between = 2 * (nodes - 1) / nodes * bytes / links.gpus / (links.between * links.share)
    hops = 2 * math.log2(links.gpus) + (2 * math.ceil(math.log2(nodes)) if nodes > 1 else 0)
    return max(inside, between) + hops * links.latency


@dataclass(frozen=True)
class StepTime:
    """One synchronous step of data parallelism."""

    compute: float
    """Seconds of the GPUs' own work."""
    network: float
    """Seconds that the network is busy."""
    exposed: float
    """The part of those that the backward pass does not hide."""

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed


def step_time(
    arch: Architecture,
    batch: int,
    nodes: int,
    links: Links = RICH,
    *,
    px: int = 224,
    classes: int = CLASSES,
    gradient_bytes: int = 4,
    bucket: float = 25e6,
) -> StepTime:
    """Backward pass and all-reduce laid beside each other: gradients are sent in buckets as they become ready, one after another.

    gradient_bytes: per parameter on the wire, 4 (float32) or 2 (bfloat16). bucket: bytes (DDP's default is 25 MB).
    """
    work = compute(arch, px, batch / (nodes * links.gpus), classes)
    now, free, busy, waiting = 0.0, 0.0, 0.0, 0.0
    for number, (seconds, parameters) in enumerate(work.backward):
        now += seconds
        waiting += parameters * gradient_bytes
        if waiting >= bucket or number == len(work.backward) - 1:
            # A layer larger than the bucket travels as several.
            parts = max(1, round(waiting / bucket))
            took = parts * all_reduce(waiting / parts, nodes, links)
            free = max(free, now) + took
            busy += took
            waiting = 0.0
    return StepTime(work.total, busy, max(0.0, free - now))


# --- Input: whole shards through a bounded cache


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


# --- Input: decoding by many workers


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Each rank's workers take turns in making its part of the batches, a bounded number ahead (torch's DataLoader).

    Workers that share each batch instead (`data.loader` for shards) are as many ranks of one worker.
    """

    ranks: int
    workers: int
    """Per rank."""
    ahead: int = 2
    """Parts of batches that a worker may have made before they are used."""
    seconds: float = 0.1
    """Mean of one part's decoding by one worker."""
    spread: float = 0.1
    """Standard deviation of a part's time, relative; 1: exponential."""
    hiccup: float = 0.0
    """Share of parts during which the worker stands still..."""
    hiccup_seconds: float = 0.0
    """... for so long."""
    step: float = 0.05


def simulate_decoding(plan: Decoding, *, steps: int = 3000, seed: int = 0) -> float:
    """Share of the time that the synchronous step waits for the slowest rank's part of the batch; the first tenth is not counted."""
    rng = np.random.default_rng(seed)
    shape = 1 / plan.spread**2 if plan.spread else 0.0
    done = np.zeros((plan.workers, plan.ranks))  # when each worker finished its last part
    depth = plan.workers * plan.ahead
    used = np.zeros(steps + 1)  # when the step began that used a part
    now, waited, began = 0.0, 0.0, 0.0
    for number in range(steps):
        took = np.full(plan.ranks, plan.seconds)
        if shape:
            took *= rng.gamma(shape, 1 / shape, plan.ranks)
        if plan.hiccup:
            took += plan.hiccup_seconds * (rng.random(plan.ranks) < plan.hiccup)
        worker = number % plan.workers
        # A worker begins once it is free and the part `depth` steps before has been taken away.
        room = used[number - depth] if number >= depth else 0.0
        done[worker] = np.maximum(done[worker], room) + took
        ready = float(done[worker].max())
        if number == steps // 10:
            waited, began = 0.0, now
        waited += max(0.0, ready - now)
        used[number] = max(now, ready)
        now = used[number] + plan.step
    return waited / (now - began)


# --- Checkpoints and failures, in closed form


def daly(interval: float, save: float, restart: float, between_failures: float) -> float:
    """Expected wall-clock seconds per second of work, with exponential failures that also strike saves and restarts (Daly 2006)."""
    m = between_failures
    return m * math.exp(restart / m) * math.expm1((interval + save) / m) / interval


def best_interval(save: float, between_failures: float) -> float:
    """The interval, s of work, that makes `daly` least (the restart has no influence on it); Young's sqrt(2 save M) where save << M."""
    low, high = 1e-3, 100 * between_failures + 1.0
    for _ in range(60):  # the cost has one valley
        a, b = low * (high / low) ** 0.382, low * (high / low) ** 0.618
        worse = _cost(a, save, between_failures) > _cost(b, save, between_failures)
        low, high = (a, high) if worse else (low, b)
    return low


def _cost(interval: float, save: float, between_failures: float) -> float:
    ratio = (interval + save) / between_failures
    return math.inf if ratio > 500 else math.expm1(ratio) / interval


@dataclass(frozen=True)
class Checkpoint:
    """What `train.checkpoint` does with one checkpoint on that many ranks: the ranks write and read together."""

    bytes: float
    files: int
    save: float
    """Seconds that training stands still: written side by side, then rank 0 makes every file durable, one after another."""
    load: float
    """Seconds until all have read what they need: every rank opens every file for its header, then reads."""


def checkpoint(arch: Architecture, nodes: int, disk: Disk, *, sharded: bool = False, gpus: int = 8) -> Checkpoint:
    """Weights and momentum in float32. sharded (FSDP): a rank reads its part; otherwise (DDP) each rank reads all, and the tensors are
    divided among at most as many writers as there are tensors."""
    ranks = nodes * gpus
    size = 8.0 * arch.num_parameters(CLASSES)
    tensors = 2 * (len(convolutions(arch, 224)) + 2 * (3 * sum(arch.units) + 1) + 2)
    files = ranks if sharded else min(ranks, tensors)
    writers = min(nodes, math.ceil(files / gpus))
    rate = min(disk.whole, writers * disk.node)
    read = size if sharded else size * ranks
    load = ranks * files / disk.operations + read / min(disk.whole, nodes * disk.node)
    return Checkpoint(size, files, size / rate + files * disk.sync, load)


# --- Elastic restarts


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training that needs `work` seconds with all nodes and no trouble."""

    nodes: int
    work: float
    interval: float
    """Seconds of training from one checkpoint to the next."""
    save: float
    """Seconds that a checkpoint stops the training."""
    restart: Callable[[int], float]
    """Nodes -> seconds from a failure until the training goes on."""
    spares: int = 0
    shrink: bool = True
    """Without spares, go on with fewer nodes (torchrun's --nnodes MIN:MAX); otherwise wait for a repair."""
    speed: Callable[[int], float] | None = None
    """Nodes -> pace relative to all of them; None: in proportion."""


@dataclass(frozen=True)
class JobResult:
    seconds: float
    goodput: float
    """work / seconds."""
    restarts: int
    lost: float
    """Share of the time whose work was lost with a failure."""
    down: float
    """Share of the time in restarts and in waiting for repairs."""


def simulate_job(job: Job, failures: Failures, *, seed: int = 0) -> JobResult:
    """Events: a node or rack fails, a node comes back, a node turns slow or is cured, a checkpoint or the job is finished."""
    rng = np.random.default_rng(seed)
    pace = job.speed or (lambda nodes: nodes / job.nodes)
    now = done = saved = lost = down = 0.0
    nodes, spares, restarts = job.nodes, job.spares, 0
    repairs: list[float] = []  # when lost nodes are back
    cures: list[float] = []  # when slow nodes are found out
    phase: Literal["train", "save", "restart"] = "train"
    left = 0.0  # of a save or restart
    since = 0.0  # seconds of training since the last checkpoint

    def refill() -> None:
        nonlocal nodes, spares, restarts, phase, left
        joined = min(spares, job.nodes - nodes)
        nodes, spares, restarts = nodes + joined, spares - joined, restarts + 1
        phase, left = "restart", job.restart(nodes)

    while True:
        idle = nodes < (1 if job.shrink else job.nodes)
        speed = pace(nodes) / (failures.slow_factor if cures else 1.0) if nodes else 0.0
        to_end = (job.work - done) / speed if speed else math.inf
        if idle:
            own = math.inf
        elif phase == "train":
            own = min(job.interval - since, to_end)
        else:
            own = left
        # The waiting times are exponential, so drawing them anew after each event changes nothing. Waiting nodes do not fail.
        rates = np.array([failures.node, failures.rack / failures.rack_nodes, failures.slow]) * nodes / HOUR
        node_lost, rack_lost, slowed = (
            rng.exponential(1 / rate) if rate > 0 and not idle else math.inf for rate in rates
        )
        repaired = repairs[0] - now if repairs else math.inf
        cured = cures[0] - now if cures else math.inf
        spent = min(own, node_lost, rack_lost, slowed, repaired, cured)
        now += spent
        if idle or phase == "restart":
            down += spent
        if not idle and phase == "train":
            done, since = done + spent * speed, since + spent
        elif not idle:
            left -= spent

        if spent == own:
            if phase == "restart":
                phase = "train"
            elif phase == "save":
                saved, since, phase = done, 0.0, "train"
                if spares and nodes < job.nodes:  # a good moment to grow: nothing is lost
                    refill()
            elif own == to_end:
                now += job.save
                break
            else:
                phase, left = "save", job.save
        elif spent in (node_lost, rack_lost):
            gone = 1 if spent == node_lost else min(nodes, failures.rack_nodes)
            nodes -= gone
            for _ in range(gone):
                heapq.heappush(repairs, now + failures.repair)
            lost += done - saved
            done, since = saved, 0.0
            refill()
        elif spent == slowed:
            heapq.heappush(cures, now + failures.slow_for)
        elif spent == cured:
            heapq.heappop(cures)
        else:
            heapq.heappop(repairs)
            spares += 1
            if idle:
                joined = min(spares, job.nodes - nodes)
                nodes, spares = nodes + joined, spares - joined
    return JobResult(now, job.work / now, restarts, lost / now, down / now)


# --- The order of images: our own code, replayed


class _Order(Protocol):
    def indices(self, step: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Replay:
    """What the steps that counted in the end have shown."""

    epochs: int
    restarts: int
    worlds: tuple[int, int]
    """Fewest and most ranks."""
    repeated_steps: int
    """Taken again after a restart."""
    wrong: int
    """Images of an epoch not seen, or seen more than once."""


def replay(
    make: Callable[[], _Order],
    images: int,
    batch: int,
    *,
    epochs: int,
    mean_steps: float,
    keep: int,
    ranks: int,
    seed: int = 0,
) -> Replay:
    """Train without a network: every rank of a world of random size (1..ranks) takes its part of each batch (`dist.World.part`), until
    a failure after about `mean_steps` steps; a new world goes on from the last checkpoint (one every `keep` steps) with a new order.

    `batch` divides `images`, so that epochs end with batches.
    """
    from bigtransfer.dist import World

    assert images % batch == 0
    rng = np.random.default_rng(seed)
    total = epochs * images // batch
    seen: list[np.ndarray] = []  # by step, what all ranks together read
    sizes, restarts, repeated = [], 0, 0
    while len(seen) < total:
        size = int(rng.integers(1, ranks + 1))
        sizes.append(size)
        worlds = [World(rank=rank, size=size) for rank in range(size)]
        order = make()
        for _ in range(1 + int(rng.exponential(mean_steps))):
            if len(seen) < total:
                chosen = order.indices(len(seen))
                seen.append(np.concatenate([chosen[list(world.part(batch))] for world in worlds]))
        if len(seen) < total:
            restarts += 1
            lost = len(seen) % keep
            repeated += lost
            del seen[len(seen) - lost :]
    wrong = 0
    for epoch in range(epochs):
        read = np.concatenate(seen[epoch * images // batch : (epoch + 1) * images // batch])
        wrong += int((np.bincount(read, minlength=images) != 1).sum())
    return Replay(epochs, restarts, (min(sizes), max(sizes)), repeated, wrong)


def readers_per_run(order: _Order, runs: np.ndarray, batch: int, parts: int) -> float:
    """How many of `parts` equal, contiguous parts of every batch (ranks, or nodes) meet an average run in the first epoch."""
    from bigtransfer.dist import World

    part_of = np.empty(batch, dtype=np.int64)
    for part in range(parts):
        part_of[list(World(rank=part, size=parts).part(batch))] = part
    pairs = [
        np.unique(part_of * len(runs) + np.searchsorted(runs, order.indices(step), side="right") - 1)
        for step in range(int(runs[-1]) // batch)
    ]
    return len(np.unique(np.concatenate(pairs))) / (len(runs) - 1)


# --- What our own Python costs, measured


@dataclass(frozen=True)
class IndexCost:
    """Opening a data set of tar shards with one core, for each further image."""

    seconds: float
    kept: float
    """Bytes on the heap afterwards, in every process. Arrays that are mapped into memory, which processes share, do not count."""
    peak: float
    """Bytes on the heap at most."""


def measure_index(images: int, *, indexed: bool) -> IndexCost:
    """Open shards of `images` and of twice as many images (of one pixel, which are not decoded), and compare.

    indexed: as `bit shard` writes them; otherwise plain WebDataset, whose tar headers are read.
    """
    costs = []
    for count in (images, 2 * images):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(_opening(Path(folder), count, indexed))
    return IndexCost(*((more - less) / images for less, more in zip(*costs, strict=True)))


def _opening(folder: Path, images: int, indexed: bool) -> tuple[float, float, float]:
    """(seconds of the processor, bytes kept, bytes at the peak) to open a set of so many images."""
    from PIL import Image

    from bigtransfer.config import ShardConfig
    from bigtransfer.data import open_dataset
    from bigtransfer.jobs import shard

    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "JPEG")
    source = str(folder / "train-000000.tar")
    with tarfile.open(source, "w") as tar:
        for number in range(images):
            for ending, content in (("jpg", pixel.getvalue()), ("cls", str(number % 1000).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if indexed:
        with contextlib.redirect_stdout(io.StringIO()):
            shard.run(ShardConfig(source=source, destination=str(folder / "shards"), threads=1))
        source = str(folder / "shards")
    open_dataset(source)
    started = time.process_time()
    opened = open_dataset(source)
    seconds = time.process_time() - started
    del opened
    tracemalloc.start()
    opened = open_dataset(source)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(opened.train) == images
    return seconds, kept, peak


def measure_decoding(archive: Path, count: int = 60) -> list[tuple[str, float, float]]:
    """(what, bytes per image, images per second and core) of our decoder and Inception crop to 224 px.

    For photographs of a tar file as they are and enlarged to a shorter side of 256 px, JPEG q90. Seconds of the processor, best of 3,
    so that other work does not count.
    """
    from PIL import Image

    from bigtransfer.data import images
    from bigtransfer.data.augment import InceptionCrop, draws

    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.lower().endswith(".jpg")][:count]
        files = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    larger = []
    for file in files:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        share = 256 / min(image.size)
        output = io.BytesIO()
        image.resize((round(image.width * share), round(image.height * share))).save(output, "JPEG", quality=90)
        larger.append(output.getvalue())
    crop = InceptionCrop(size=224)
    rows = draws(crop, 0, 0, count)
    found = []
    for what, encoded in ((f"{archive.stem}, as it is", files), (f"{archive.stem}, shorter side 256, q90", larger)):
        best = math.inf
        for _ in range(3):
            started = time.process_time()
            for file, row in zip(encoded, rows, strict=True):
                crop.apply(crop.prepare(images.decode(file, what)), row)
            best = min(best, time.process_time() - started)
        found.append((what, sum(map(len, encoded)) / count, count / best))
    return found


def measure_order(batch: int = 4096, run: int = 12_500, steps: int = 20) -> tuple[float, int]:
    """Seconds of the processor for the order of one batch of all 300 million images in runs of `run`, and the order's number of lanes."""
    from bigtransfer.data.order import LaneOrder

    order = LaneOrder(np.arange(0, IMAGES + 1, run), batch, 0)
    order.indices(0)
    started = time.process_time()
    for step in range(1, 1 + steps):
        order.indices(step * 997)
    return (time.process_time() - started) / steps, order.lanes
