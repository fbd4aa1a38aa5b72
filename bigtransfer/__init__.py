"""Big Transfer (BiT) for PyTorch: pre-trained image classifiers, fine-tuned by one rule.

The public names below are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["BitError", "Predictor", "Recipe", "__version__", "recipe"]

_HOMES = {
    "BitError": "errors",
    "Predictor": "predictor",
    "Recipe": "hyperrule",
    "recipe": "hyperrule",
}
"""Public name -> the module that defines it."""

if TYPE_CHECKING:
    from bigtransfer.errors import BitError as BitError
    from bigtransfer.hyperrule import Recipe as Recipe
    from bigtransfer.hyperrule import recipe as recipe
    from bigtransfer.predictor import Predictor as Predictor


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bigtransfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bigtransfer.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
