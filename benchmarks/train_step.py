"""Wall-clock of one fine-tuning step on a CPU: ours beside the same network in timm and transformers.

    python benchmarks/train_step.py            # writes benchmarks/results/train_step_cpu_<date>.md

A step is forward, cross-entropy, backward and SGD with momentum (torch's fused form for everybody), on random pictures.
All competitors start from the same weights and take turns, step by step, so that a slow minute of the machine hits all of
them; the ratios are medians of each round's own ratio. Competitors run in every eager setting that could be their best, and
they too profit from `keep_freed_memory`, which is ours but works on the whole process.
Each row states how far its gradients are from float64 ones, on a small network with the same weights.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import transformers
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2 as TimmResNetV2
from torch import Tensor, nn

from benchmarks.networks import fast_operations
from bigtransfer.catalog import Architecture
from bigtransfer.model import ResNetV2
from bigtransfer.ops import native
from bigtransfer.ops.memory import keep_freed_memory
from bigtransfer.ops.peak import matmul_flops

CLASSES = 200
CASES = {
    "R26x1, 64 px, batch 128": ((2, 2, 2, 2), 64, 128),
    "R50x1, 128 px, batch 32": ((3, 4, 6, 3), 128, 32),
}
OURS = {"ours, bf16": (torch.bfloat16, True), "ours, fp32": (torch.float32, True)}
OURS |= {"ours without fast operations, bf16": (torch.bfloat16, False)}


def timm_names(name: str) -> str:
    """timm's name for one of our parameters."""
    if name.startswith("blocks."):
        _, block, unit, rest = name.split(".", 3)
        return f"stages.{block}.blocks.{unit}.{rest.replace('proj.', 'downsample.conv.')}"
    return name.replace("root.", "stem.conv.").replace("head.", "head.fc.")


def transformers_names(name: str) -> str:
    name = timm_names(name).replace("stem.conv.", "bit.embedder.convolution.").replace(".blocks.", ".layers.")
    name = name.replace("head.fc.", "classifier.1.")
    return f"bit.encoder.{name}" if name.startswith("stages.") else name.replace("norm.", "bit.norm.")


def ours(units: tuple[int, ...]) -> ResNetV2:
    torch.manual_seed(0)
    network = ResNetV2(units, num_classes=CLASSES)
    nn.init.normal_(network.head.weight, std=0.01)
    return network


def in_timm(network: ResNetV2) -> nn.Module:
    """The same function with the same weights."""
    twin = TimmResNetV2(
        layers=network.architecture.units,
        num_classes=CLASSES,
        stem_type="fixed",
        conv_layer=functools.partial(StdConv2d, eps=1e-8),
        norm_layer=functools.partial(GroupNormAct, num_groups=32),
    )
    state = {timm_names(name): value for name, value in network.state_dict().items()}
    state["head.fc.weight"] = state["head.fc.weight"][:, :, None, None]
    twin.load_state_dict(state)
    return twin


class InTransformers(nn.Module):
    def __init__(self, network: ResNetV2) -> None:
        super().__init__()
        config = transformers.BitConfig(depths=list(network.architecture.units), num_labels=CLASSES)
        self.inner = transformers.BitForImageClassification(config)
        self.inner.load_state_dict({transformers_names(name): value for name, value in network.state_dict().items()})

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).logits


Loss = Callable[[Tensor, Tensor], Tensor]


def competitors(units: tuple[int, ...]) -> Iterator[tuple[str, nn.Module, Loss]]:
    """Name, network, and (float32 images, labels) -> loss; the same weights each time."""
    for name, (dtype, fast) in OURS.items():
        network = ours(units).to(memory_format=torch.channels_last)

        def loss(images: Tensor, labels: Tensor, network=network, dtype=dtype, fast=fast) -> Tensor:
            with fast_operations(fast):
                return F.cross_entropy(network(images.to(dtype)), labels)

        yield name, network, loss
    for library, build in (("timm", in_timm), ("transformers", InTransformers)):
        for setting in ("bf16 autocast, channels_last", "fp32, channels_last", "fp32"):
            network = build(ours(units))
            memory_format = torch.channels_last if "channels_last" in setting else torch.contiguous_format
            network = network.to(memory_format=memory_format).train()

            def loss(images: Tensor, labels: Tensor, network=network, setting=setting, layout=memory_format) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16) if "autocast" in setting else nullcontext():
                    logits = network(images.contiguous(memory_format=layout))
                return F.cross_entropy(logits.float(), labels)

            yield f"{library}, {setting}", network, loss
            if library == "timm" and setting == "bf16 autocast, channels_last":
                compiled = torch.compile(build(ours(units)).to(memory_format=memory_format).train())

                def loss(images: Tensor, labels: Tensor, network=compiled) -> Tensor:
                    with torch.autocast("cpu", torch.bfloat16):
                        logits = network(images)
                    return F.cross_entropy(logits.float(), labels)

                yield f"{library}, {setting}, compiled", compiled, loss


def batch(count: int, size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((count, 3, size, size), generator=generator) * 2 - 1
    return images.contiguous(memory_format=torch.channels_last), torch.randint(CLASSES, (count,), generator=generator)


def gradient_errors() -> dict[str, float]:
    """Relative error of the whole gradient against float64, for a network of one unit a block: the median of 5 batches.

    (A median, because a rounding error that opens a single ReLU or moves a single maximum weighs a thousand others.)
    """
    units = (1, 1, 1, 1)
    exact = ours(units).double()
    names = [name for name, _ in exact.named_parameters()]
    spelling = {"ours": str, "timm": timm_names, "transformers": lambda name: "inner." + transformers_names(name)}
    errors: dict[str, list[float]] = {}
    rivals = [rival for rival in competitors(units) if "compiled" not in rival[0]]
    for seed in range(5):
        images, labels = batch(4, 32, seed)
        exact.zero_grad()
        F.cross_entropy(exact(images.double()), labels).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in exact.parameters()])
        for name, network, loss in rivals:
            network.zero_grad()
            loss(images, labels).backward()
            parameters = dict(network.named_parameters())
            spell = spelling[name.split()[0].strip(",")]
            found = torch.cat([parameters[spell(n)].grad.flatten() for n in names]).double()
            errors.setdefault(name, []).append(float((found - gradient).norm() / gradient.norm()))
    return {name: statistics.median(values) for name, values in errors.items()}


def measure(units: tuple[int, ...], size: int, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, by competitor, after one unmeasured round."""
    images, labels = batch(count, size)
    steps = {}
    for name, network, loss in competitors(units):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.003, momentum=0.9, fused=True)

        def step(loss: Loss = loss, optimizer: torch.optim.SGD = optimizer) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss(images, labels).backward()
            optimizer.step()

        steps[name] = step
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {turn}: " + "; ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items() if s), flush=True)
    return seconds


def table(seconds: dict[str, list[float]], count: int, flops: float, errors: dict[str, float]) -> str:
    """flops: of a step on one image."""
    lines = [
        "| | median s | min s | images/s (median) | share of the peak | ours takes (median of the rounds' ratios) | gradient error |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    peaks = {
        kind: matmul_flops(torch.device("cpu"), dtype)
        for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }
    for name, times in seconds.items():
        twin = "ours, bf16" if "bf16" in name else "ours, fp32"
        ratio = statistics.median(a / b for a, b in zip(seconds[twin], times, strict=True))
        shown = f"**{ratio:.2f}x**" if not name.startswith("ours,") else ""
        median = statistics.median(times)
        peak = peaks["bf16" if "bf16" in name else "fp32"]
        error = f"{errors[name]:.1e}" if name in errors else ""
        lines.append(
            f"| {name} | {median:.3f} | {min(times):.3f} | {count / median:.1f} | {count * flops / median / peak:.0%} | {shown} | {error} |"
        )
    measured = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {kind}" for kind, peak in peaks.items())
    return (
        "\n".join(lines)
        + f"\n\nThe peak, measured right after: {measured}; a step has {flops / 1e9:.2f} GFLOP an image."
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if native.library() is None:
        print("No C compiler: ours runs without its fused operations.")
    keep_freed_memory()
    date = datetime.datetime.now(datetime.UTC)
    load = os.getloadavg()[0]
    errors = gradient_errors()
    text = f"""# A training step on a CPU, {date:%Y-%m-%d %H:%M} UTC

{processor()}, {torch.get_num_threads()} threads, load average at the start {load:.1f}; Python {platform.python_version()},
torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}; {options.rounds} alternated rounds.

Forward, cross-entropy ({CLASSES} classes), backward, SGD with momentum (fused). "Ours takes": our time at the same
precision divided by the row's, so below 1 we are faster. Gradient error: of the whole gradient against float64, relative,
same weights, one unit a block, 32 px, median of 5 batches. Share of the peak: three times the forward pass's operations, over
what the machine reaches in its fastest large matrix product (`ops.peak`). Written by `python benchmarks/train_step.py`.
"""
    for title, (units, size, count) in CASES.items():
        flops = 3 * Architecture(units=units).forward_flops(size, CLASSES)
        text += f"\n## {title}\n\n{table(measure(units, size, count, options.rounds), count, flops, errors)}\n"
    out = options.out or Path(__file__).with_name("results") / f"train_step_cpu_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")


if __name__ == "__main__":
    main()
