"""`bit distill`: a pre-training that a teacher leads, without labels."""

from __future__ import annotations

from bigtransfer.config import DistillConfig
from bigtransfer.jobs import pretrain


def run(config: DistillConfig) -> int:
    """As `pretrain.run`."""
    return pretrain.run(config.pretraining())
