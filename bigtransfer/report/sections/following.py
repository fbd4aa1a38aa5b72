"""What to do with the model now."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Following:
    literal: str
    """The model, as Python takes it."""
    quoted: str
    """The model, as a shell takes it."""
    detects: bool
    """Whether it is a detector."""


def compute(run: Contents) -> Following | None:
    model = str(run.folder) if run.has("model.safetensors") else run.model
    detects = run.detection is not None or (run.config is not None and run.config.detects)
    return Following(literal=repr(model), quoted=shlex.quote(model), detects=detects) if model else None
