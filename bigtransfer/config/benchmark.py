"""The knobs of `bit benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bigtransfer.config.fields import Batch, Config, Must, Positional, Positive, PositiveInt
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(Config):
    """How fast a model answers on this machine.

    Images per second by what computes, batch size and number format, from decoded pixels and from encoded images; the share of what the
    machine reaches in large products, measured in the same run; memory. Where timm is installed, the same network there. All take turns,
    so that a slow minute hits all of them; how busy the machine was with other things is said, and at the end which flag is soonest.
    """

    model: Positional[str]
    """A model file, a run folder, or a name from `bit models`."""
    images: Positional[str | None] = None
    """Folder of images for the figures with decoding. Default: made-up photographs of 500 x 375 px, as JPEG."""
    batch_sizes: tuple[Batch, ...] = (1, 16)
    """Images computed at a time."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ()
    """Number formats. Default: fp32, and bf16 where the hardware multiplies it."""
    backends: tuple[Literal["torch", "onnxruntime", "openvino"], ...] = ()
    """What computes. Default: torch, and on a CPU onnxruntime and openvino where they are installed."""
    peers: Literal["auto", "none"] = "auto"
    """auto: also timm's network of the same form with the same weights, where it is installed."""
    seconds: Annotated[Positive, Must("at most 3600", lambda value: value <= 3600)] = 0.5
    """For each figure in each round, at least one batch."""
    rounds: PositiveInt = 5
    """How often all take their turn; figures are medians of the rounds."""
    json: str | None = None
    """File for all numbers, those of each round too."""
    remember: bool = False
    """Keep the figures of this machine's CPU, for --backend fastest of `bit predict`, `evaluate` and `serve`."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""

    def check(self) -> None:
        if not self.batch_sizes:
            raise ConfigError("--batch-sizes needs at least one.")
        for name in ("batch_sizes", "precisions", "backends"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"--{name.replace('_', '-')} names one twice.")
