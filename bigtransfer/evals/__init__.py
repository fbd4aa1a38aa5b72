"""Measuring a model: `evaluate` and its `Classification`, and the linear probe on frozen features."""

from bigtransfer.evals.metrics import Classification, evaluate

__all__ = ["Classification", "evaluate"]
