"""The knobs of `bit info`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, Positional


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Config):
    """All that is known about one model; nothing is downloaded."""

    model: Positional[str]
    """A name from `bit models`, a model file of any form, or a run folder."""
    json: bool = False
    """Print JSON."""
