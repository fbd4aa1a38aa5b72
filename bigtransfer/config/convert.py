"""The knobs of `bit convert`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Config, Positional, forbid
from bigtransfer.errors import ConfigError

_WEIGHT_SUFFIXES: dict[str, tuple[str, ...]] = {
    "bit": (".safetensors",),
    "npz": (".npz",),
    "torch": (".tar", ".pth", ".pt"),
    "timm": (".safetensors", ".bin", ".pth", ".pt", ".tar"),
    "transformers": (),
}
"""Form -> how its file is called; timm may also be a folder, transformers always is one."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """Write a model in the form that other software reads, or read any published form into a model file.

    What is written is read back and compared before the command says that it is done.
    """

    source: Positional[str]
    """The model: a name from `bit models`, a run folder, a file of the authors (.npz, bit.pth.tar), of timm or of bigtransfer,
    a transformers or timm folder, or hf-hub:user/name."""
    destination: Positional[str]
    """File or folder to write. transformers: a folder; timm: a file (.safetensors, .pth) or a folder; npz: a .npz file; torch:
    a .pth.tar file; bit: a .safetensors file."""
    to: Literal["bit", "timm", "transformers", "npz", "torch"] = "bit"
    """Form: bit is bigtransfer's own, npz and torch are those of the authors' code."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the stored weights; the 16-bit ones halve the size and lose digits."""
    overwrite: bool = False
    """Replace what is at the destination."""
    offline: bool = False
    """Never download (also BIT_OFFLINE=1)."""

    def check(self) -> None:
        known = {suffix for suffixes in _WEIGHT_SUFFIXES.values() for suffix in suffixes}
        suffix = os.path.splitext(self.destination)[1]
        fitting = _WEIGHT_SUFFIXES[self.to]
        is_file = suffix in known
        if (is_file and suffix not in fitting) or (not is_file and self.to in ("bit", "npz", "torch")):
            wanted = f"should end in {' or '.join(fitting)}" if fitting else "should be a folder"
            raise ConfigError(f"{self.destination} {wanted} with --to {self.to}.")
        if self.to in ("npz", "torch"):
            forbid(self, ("dtype",), f"has no effect with --to {self.to}, which stores float32")
