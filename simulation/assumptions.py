"""What is assumed: [P] public, [S] the project's collected figures (H200 floors and decoding speeds), [A] our assumption, to be replaced
by the buyer's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

IMAGES = 300_000_000
"""JFT-300M (the paper)."""
CLASSES = 18_291
"""Of JFT-300M [P: Sun et al. 2017]."""
HOUR = 3600.0


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
