"""How long one step takes: arithmetic of the convolutions on one GPU, and the sum of the gradients over the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigtransfer.catalog import Architecture
from simulation.assumptions import CLASSES, RICH, Gpu, Links


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
