"""The knobs of `bit models`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, Positional


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(Config):
    """List the models that can be used by name.

    Without a pattern, the many models fine-tuned on VTAB-1k are shown as one line per architecture.
    """

    pattern: Positional[str] = ""
    """Only names that contain this text, or match this shell pattern ("bit-m-*x3")."""
    json: bool = False
    """Print JSON with all that is known about each."""
