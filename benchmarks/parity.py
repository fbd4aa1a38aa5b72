"""Do four implementations of BiT compute the same function? A table of relative logit errors for every published architecture.

    python -m benchmarks.parity --out benchmarks/results/parity_cpu_DATE.md [ARCHITECTURE ...]

The same random weights (kernels with a mean and a log-normal scale per output channel, GroupNorm away from the identity, a
head that is not zero) go into ours, into timm's and transformers' classes under their own names, and into the float64 NumPy
network of tests/reference, which was written from the description. The error is max |a - b| / max |b|, b being the NumPy logits.

Rounding sets in at every layer and is amplified by those that follow, so the error says as much of the weights as of the
program. Hence two kinds of weights ("wild": residual branches as large as the shortcut; "tame": smaller; no published weights
were at hand to say which they resemble), and for each the amplification: relative change of the logits per relative change of
the input (noise of 1e-6, float64).
Weights are shared between the programs: R152x4 (929 M parameters) needs about 12 GB.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from torch import Tensor, nn

from benchmarks.networks import WEIGHTS, as_theirs, randomize, timm_network
from bigtransfer import catalog, model
from bigtransfer.catalog import Architecture
from bigtransfer.weights import names
from tests.reference.network import Network

CLASSES = 10
SIZES = ((64, 64), (97, 65))
"""Inputs, height x width px: one even and square, one odd and oblong."""
NOISE = 1e-6


class Lazily64(Mapping[str, np.ndarray]):
    """Our weights as the reference wants them, float64 and HWIO, converted one tensor at a time."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        layout = names.LAYOUTS["npz"]
        self._tensors = {layout.their_name(name): layout.their_value(name, tensor) for name, tensor in state.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].numpy().astype(np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def transformers_network(arch: Architecture) -> nn.Module:
    config = transformers.BitConfig(
        depths=list(arch.units),
        embedding_size=64 * arch.width,
        hidden_sizes=[256 * arch.width * 2**block for block in range(4)],
        num_labels=CLASSES,
    )
    with torch.device("meta"):
        return transformers.BitForImageClassification(config)


def logits(network: nn.Module, images: Tensor) -> np.ndarray:
    with torch.inference_mode():
        out = network(images)
    return getattr(out, "logits", out).double().numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def rows(name: str, weights: str, seed: int) -> Iterator[tuple[str, ...]]:
    arch = catalog.architecture(name)
    network = model.build(arch, CLASSES, device="meta").to_empty(device="cpu").eval()
    randomize(network, seed, WEIGHTS[weights])
    reference = Network({})
    reference.params = Lazily64(network.state_dict())  # pyright: ignore - a mapping is all that it needs
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = [torch.rand(2, 3, height, width, generator=generator) * 2 - 1 for height, width in SIZES]
    expected, seconds = [], []
    for images in inputs:
        start = time.perf_counter()
        expected.append(reference.logits(images.permute(0, 2, 3, 1).double().numpy()))
        seconds.append(time.perf_counter() - start)

    def errors(other: nn.Module, dtype: torch.dtype = torch.float32) -> list[str]:
        return [f"{relative(logits(other, x.to(dtype)), b):.1e}" for x, b in zip(inputs, expected, strict=True)]

    ours32 = errors(network)
    timm32 = errors(as_theirs(timm_network(arch, CLASSES), network, "timm"))
    transformers32 = errors(as_theirs(transformers_network(arch), network, "transformers"))
    ours64 = errors(network.double(), torch.float64)
    for index, (images, (height, width)) in enumerate(zip(inputs, SIZES, strict=True)):
        noise = 1 + NOISE * torch.randn(images.shape, generator=generator, dtype=torch.float64)
        amplification = relative(logits(network, images.double() * noise), expected[index]) / NOISE
        yield (
            name,
            f"{arch.num_parameters(CLASSES) / 1e6:,.1f} M",
            weights,
            f"{height} x {width}",
            f"{amplification:.1f}",
            ours32[index],
            ours64[index],
            timm32[index],
            transformers32[index],
            f"{np.abs(expected[index]).max():.2f}",
            f"{seconds[index]:.0f}",
        )


def hardware() -> str:
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), cpu)
    return f"{cpu}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", default=list(catalog.ARCHITECTURES))
    parser.add_argument("--out", type=Path, help="Markdown file to write.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    versions = {"torch": torch, "timm": timm, "transformers": transformers, "numpy": np}
    head = [
        "# Parity: ours, timm and transformers against float64 NumPy",
        "",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; seed {asked.seed}; 2 images; {CLASSES} classes",
        f"- Command: `python -m benchmarks.parity {' '.join(sys.argv[1:])}`",
        f"- Versions: Python {platform.python_version()}, "
        + ", ".join(f"{name} {module.__version__}" for name, module in versions.items()),
        f"- Hardware: {hardware()}",
        "- Random weights: kernels with mean and log-normal scale per channel, GroupNorm gamma 0.5 to 1.5 and beta N(0, 0.3),",
        "  head N(0, 0.02); tame: the last GroupNorm of each residual branch x 0.2; wild: x 1.",
        "- Error: max abs difference of the logits / largest abs logit of the NumPy network. Amplification: relative change of the",
        "  logits per relative change of the input; float32 rounds at 6e-8, at every layer.",
        "- timm and transformers add 1e-8 to a kernel's variance, the authors and ours 1e-10: most of their difference.",
        "",
    ]
    titles = ["network", "parameters", "weights", "input", "amplification", "ours fp32", "ours fp64", "timm fp32"]
    titles += ["transformers fp32", "largest logit", "NumPy s"]
    lines = [*head, f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    print("\n".join(lines), flush=True)
    for name in asked.architectures:
        for kind in WEIGHTS:
            for row in rows(name, kind, asked.seed):
                lines.append(f"| {' | '.join(row)} |")
                print(lines[-1], flush=True)
    if asked.out:
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
