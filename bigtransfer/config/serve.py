"""The knobs of `bit serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bigtransfer.config.fields import Batch, Config, Must, Positional, PositiveInt, Span, seconds
from bigtransfer.errors import ConfigError

Port = Annotated[int, Must("0 to 65535", lambda value: 0 <= value <= 65535)]


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Config):
    """Say over HTTP what is on images: a page to drop them on, and an API.

    Only this machine can reach it unless --host says otherwise; then give it a token, too. docs/serving.md shows the API.
    """

    models: Positional[tuple[str, ...]]
    """Model files, run folders, files that `bit convert` exported, also of detectors, or names from `bit models`; NAME=MODEL gives one
    another name. The first answers where none is named."""

    # --- Network
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: at all that this machine has."""
    port: Port = 8000
    """Port to listen at; 0: one that is free."""
    hosts: tuple[str, ...] = ()
    """Names by which it may be called, such as photos.example.org. Default: this machine's; any, if --host lets others in."""
    token_file: str | None = None
    """File with tokens, one a line, of which clients must send one. Default: $BIT_TOKEN; without it, anybody may ask."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may use the API from a browser, such as https://example.org; * for all."""

    # --- Answers
    top_k: PositiveInt = 5
    """How many classes to give for each image, unless the request says."""

    # --- Limits
    max_images: PositiveInt = 64
    """Images of one request."""
    max_waiting: PositiveInt = 256
    """Images taken and not answered yet, of all requests; beyond it they are told to come back later."""
    max_connections: PositiveInt = 512
    """Connections; more are closed at once."""
    timeout: Span = "60s"
    """How long a request may take to arrive, and again to be answered."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    backend: Literal["auto", "fastest", "torch", "onnxruntime", "openvino"] = "auto"
    """What computes the networks. auto: onnxruntime for a model that `bit convert --to onnx` wrote, else torch. fastest: what
    `bit benchmark MODEL --remember` has found soonest on this machine."""
    batch_size: Batch | None = None
    """Images computed at a time at most. Default: by their size."""

    def check(self) -> None:
        if not self.models:
            raise ConfigError("No model given.")
        if self.max_images > self.max_waiting:
            raise ConfigError(f"--max-images {self.max_images} is more than --max-waiting {self.max_waiting} lets in.")
        if not 0 < seconds(self.timeout) <= 3600:
            raise ConfigError(f"--timeout must be more than 0 and an hour at most, not {self.timeout}.")
