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


def compute(run: Contents) -> Following | None:
    model = str(run.folder) if run.has("model.safetensors") else run.model
    return Following(literal=repr(model), quoted=shlex.quote(model)) if model else None
