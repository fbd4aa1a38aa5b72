"""Big Transfer (BiT) for PyTorch: pre-trained image classifiers, fine-tuned by one rule.

The public names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BitError",
    "Predictor",
    "Recipe",
    "Teacher",
    "__version__",
    "create_model",
    "evaluate",
    "finetune",
    "list_models",
    "load_model",
    "pretrain",
    "recipe",
]

_HOMES = {
    "BitError": "errors",
    "Predictor": "predictor",
    "Recipe": "hyperrule",
    "Teacher": "train.teacher",
    "create_model": "api",
    "evaluate": "api",
    "finetune": "api",
    "list_models": "catalog",
    "load_model": "api",
    "pretrain": "api",
    "recipe": "hyperrule",
}
"""Public name -> the module that defines it."""

if TYPE_CHECKING:
    from bigtransfer.api import create_model, evaluate, finetune, load_model, pretrain
    from bigtransfer.catalog import list_models
    from bigtransfer.errors import BitError
    from bigtransfer.hyperrule import Recipe, recipe
    from bigtransfer.predictor import Predictor
    from bigtransfer.train.teacher import Teacher


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bigtransfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bigtransfer.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
