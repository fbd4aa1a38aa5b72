"""The knobs of `bit convert`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Config, Positional, forbid
from bigtransfer.errors import ConfigError

ENDINGS: dict[str, tuple[str, ...]] = {
    "bit": (".safetensors",),
    "npz": (".npz",),
    "torch": (".tar", ".pth", ".pt"),
    "timm": (".safetensors", ".bin", ".pth", ".pt", ".tar"),
    "transformers": (),
    "onnx": (".onnx",),
    "web": (".html",),
}
"""Form -> how its file is called; bit and timm may also be folders, transformers always is one. Those of all forms but
onnx and web are of files of weights (`weights.formats.SUFFIXES`)."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """Write a model in the form that other software reads, or read any published form into a model file.

    What is written is read back and compared before the command says that it is done. With --to onnx and --to web the network becomes a
    program that runs without torch: its answers on images are compared with the model's.
    """

    source: Positional[str]
    """The model: a name from `bit models`, a run folder, a file of the authors (.npz, bit.pth.tar), of timm or of bigtransfer,
    a transformers or timm folder, or hf-hub:user/name."""
    destination: Positional[str]
    """File or folder to write. transformers: a folder; timm: a file (.safetensors, .pth) or a folder; npz: a .npz file; torch:
    a .pth.tar file; bit: a .safetensors file or a folder; onnx: an .onnx file; web: an .html file. A folder gets a README.md, and can be
    uploaded to the Hugging Face hub as it is."""
    to: Literal["bit", "timm", "transformers", "npz", "torch", "onnx", "web"] = "bit"
    """Form: bit is bigtransfer's own, npz and torch are those of the authors' code, onnx is for onnxruntime, OpenVINO and others,
    web is a page that classifies images in a browser, offline."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Number format of the stored weights; the 16-bit ones halve the size and lose digits. int8, for onnx and web, is a quarter
    of it and computes sooner: calibrated on the run's own images, and refused where it costs more than 2 % of accuracy."""
    overwrite: bool = False
    """Replace what is at the destination."""
    offline: bool = False
    """Never download (also BIT_OFFLINE=1)."""

    # --- Exported networks
    input: Literal["float32", "uint8"] | None = None
    """What an onnx file takes: float32 in [-1, 1], or uint8 pixels, which it scales itself. Default: float32."""
    runtime: str | None = None
    """The package onnxruntime-web that --to web puts into the page, as `npm pack` brings it. Default: brought by npm once (33 MB)."""
    images: str | None = None
    """Images to compare the answers on, in any form that `bit finetune` reads, or a folder; with int8, which is calibrated and measured on
    them, with labels. Default: those that the run was given, else made-up ones."""

    @property
    def is_folder(self) -> bool:
        """Whether the destination is a folder, to be shared on the Hugging Face hub for instance: what has no file's ending."""
        return not any(self.destination.endswith(suffix) for suffixes in ENDINGS.values() for suffix in suffixes)

    def check(self) -> None:
        suffix = os.path.splitext(self.destination)[1]
        fitting = ENDINGS[self.to]
        is_file = not self.is_folder
        if (is_file and suffix not in fitting) or (not is_file and self.to in ("npz", "torch", "onnx", "web")):
            wanted = f"should end in {' or '.join(fitting)}" if fitting else "should be a folder"
            meant = [form for form, suffixes in ENDINGS.items() if suffix in suffixes]
            other = f" If that is meant: --to {meant[0]}" if len(meant) == 1 else ""
            raise ConfigError(f"{self.destination} {wanted} with --to {self.to}.{other}")
        if self.to in ("npz", "torch"):
            forbid(self, ("dtype",), f"has no effect with --to {self.to}, which stores float32")
        if self.to in ("onnx", "web") and self.dtype == "bfloat16":
            raise ConfigError(f"--to {self.to} stores float32, float16 or int8.")
        if self.dtype == "int8" and self.to not in ("onnx", "web"):
            raise ConfigError(
                "--dtype int8 is for --to onnx and --to web: it is of a program, not of weights to train."
            )
        if self.dtype == "int8" and self.input == "float32":
            raise ConfigError("--dtype int8 takes pixels: leave --input out, or --input uint8.")
        if self.to not in ("onnx", "web"):
            forbid(self, ("images",), "is for --to onnx and --to web")
        if self.to != "onnx":
            forbid(self, ("input",), "is for --to onnx")
        if self.to != "web":
            forbid(self, ("runtime",), "is for --to web")
