"""One frozen keyword-only dataclass per command, in a file of its name (those of `bit detect` in one): every knob, its default, its help
and its check in one place.

`fields` is what they are made of. No torch here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bigtransfer.config.benchmark import BenchmarkConfig
from bigtransfer.config.check import CheckConfig
from bigtransfer.config.compare import CompareConfig
from bigtransfer.config.convert import ConvertConfig
from bigtransfer.config.demo import DemoConfig
from bigtransfer.config.detect import DetectEvaluateConfig, DetectFinetuneConfig, DetectPredictConfig
from bigtransfer.config.distill import DistillConfig
from bigtransfer.config.evaluate import EvaluateConfig
from bigtransfer.config.fields import (
    Batch,
    Config,
    Count,
    Field,
    Must,
    NotNegative,
    Positional,
    Positive,
    PositiveInt,
    Seed,
    Share,
    Side,
    Span,
    Threads,
    Workers,
    fields_of,
    forbid,
    seconds,
)
from bigtransfer.config.finetune import FinetuneConfig
from bigtransfer.config.info import InfoConfig
from bigtransfer.config.models import ModelsConfig
from bigtransfer.config.predict import PredictConfig
from bigtransfer.config.pretrain import PretrainConfig
from bigtransfer.config.report import ReportConfig
from bigtransfer.config.results import ResultsConfig
from bigtransfer.config.serve import ServeConfig
from bigtransfer.config.shard import ShardConfig

__all__ = [
    "Batch",
    "BenchmarkConfig",
    "CheckConfig",
    "CompareConfig",
    "Config",
    "ConvertConfig",
    "Count",
    "DemoConfig",
    "DetectEvaluateConfig",
    "DetectFinetuneConfig",
    "DetectPredictConfig",
    "DistillConfig",
    "EvaluateConfig",
    "Field",
    "FinetuneConfig",
    "InfoConfig",
    "ModelsConfig",
    "Must",
    "NotNegative",
    "Positional",
    "Positive",
    "PositiveInt",
    "PredictConfig",
    "PretrainConfig",
    "ReportConfig",
    "ResultsConfig",
    "Seed",
    "ServeConfig",
    "ShardConfig",
    "Share",
    "Side",
    "Span",
    "Threads",
    "Workers",
    "command_line",
    "fields_of",
    "forbid",
    "of_command",
    "seconds",
]


def of_command(command: str) -> type[Config]:
    """The configuration class of a command: "finetune" -> FinetuneConfig, "detect finetune" -> DetectFinetuneConfig."""
    return globals()["".join(word.capitalize() for word in command.split()) + "Config"]


def command_line(command: str, values: Mapping[str, Any]) -> str:
    """What to type for these values of a command's fields, by name: "bit finetune photos/ --steps 70"; defaults are left out."""
    arguments, flags = [], []
    for field in fields_of(of_command(command)):
        value = values.get(field.name, field.default)
        value = tuple(value) if isinstance(value, list) else value  # as JSON gives it back
        if value == field.default or value is None:
            continue
        if field.type is bool:
            flags.append(field.flag if value else "--no-" + field.flag.removeprefix("--"))
            continue
        # Where several are taken, what earlier versions wrote down may be one.
        given = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        if field.positional:
            arguments += given
        else:
            flags += [field.flag, *given]
    return shlex.join(["bit", *command.split(), *arguments, *flags])
