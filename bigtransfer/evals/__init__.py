"""Measuring a model: `evaluate` and its `Classification`, how to show and keep it, and the linear probe on frozen features."""

from bigtransfer.evals import multilabel
from bigtransfer.evals.metrics import Classification, describe, evaluate, wilson
from bigtransfer.evals.record import (
    Dedup,
    Evaluation,
    LabelsEvaluation,
    as_record,
    labels_record,
    read_record,
    without,
    write_record,
)

__all__ = [
    "Classification",
    "Dedup",
    "Evaluation",
    "LabelsEvaluation",
    "as_record",
    "describe",
    "evaluate",
    "labels_record",
    "multilabel",
    "read_record",
    "wilson",
    "without",
    "write_record",
]
