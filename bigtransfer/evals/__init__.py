"""Measuring a model: `evaluate` and its `Classification`, how to show and keep it, and the linear probe on frozen features."""

from bigtransfer.evals.metrics import Classification, as_record, describe, evaluate, save_evaluation, write_record

__all__ = ["Classification", "as_record", "describe", "evaluate", "save_evaluation", "write_record"]
