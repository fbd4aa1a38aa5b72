"""What is known about models before any tensor is loaded: architectures, inputs, and the published weights. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bigtransfer.errors import ConfigError, WeightsError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a `model.ResNetV2` without its head."""

    units: tuple[int, ...]
    """Residual units in each of the four blocks."""
    width: int = 1
    """Width factor: x1, x2, x3, x4."""
    in_chans: int = 3
    norm: Literal["gn", "bn"] = "gn"
    weight_standardization: bool = True

    @property
    def num_features(self) -> int:
        """Length of the pooled feature vector."""
        return 2048 * self.width

    def num_parameters(self, num_classes: int) -> int:
        """Trainable parameters with a head of `num_classes` (0: none)."""
        stem = 64 * self.width
        total = stem * self.in_chans * 49
        channels = stem
        for block, count in enumerate(self.units):
            out = 256 * self.width * 2**block
            middle = out // 4
            for unit in range(count):
                total += 2 * channels + 4 * middle + channels * middle + 9 * middle**2 + middle * out
                if unit == 0:
                    total += channels * out
                channels = out
        total += 2 * channels
        return total + (channels + 1) * num_classes


ARCHITECTURES: Mapping[str, Architecture] = {
    f"r{depth}x{width}": Architecture(units=units, width=width)
    for depth, units, widths in (
        (26, (2, 2, 2, 2), (1,)),  # the small network of the bundled model; not in the paper
        (50, (3, 4, 6, 3), (1, 3)),
        (101, (3, 4, 23, 3), (1, 3)),
        (152, (3, 8, 36, 3), (2, 4)),
    )
    for width in widths
}
"""The published architectures (released code) and the small ones of the same grammar, by name."""


def architecture(name: str) -> Architecture:
    """The architecture of that name; ConfigError if there is none."""
    found = ARCHITECTURES.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise ConfigError(f"No architecture named {name!r}. Known: {', '.join(ARCHITECTURES)}.")
    return found


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the model's input at evaluation. Pixels are always RGB scaled to [-1, 1]."""

    size: int
    """Height and width of the input, px."""
    mode: Literal["square", "aspect"] = "square"
    """square: resize both sides to `size`, ignoring the aspect ratio (BiT's own evaluation).
    aspect: resize the shorter side to `size / crop_pct`, then centre-crop (timm, transformers)."""
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    """Average over the source area when shrinking. The authors' TF and JAX pipelines did not; Pillow always does."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that is known about one model except its tensors; also what the header of a model file holds."""

    name: str
    architecture: Architecture
    num_classes: int
    input: InputSpec
    class_names: tuple[str, ...] | None = None
    upstream: str = ""
    """What the weights were trained on, and if fine-tuned, on what."""
    licence: str = ""
    source: str = ""
    """Where the weights come from: an address, or the command that made them."""
    recipe: Mapping[str, Any] | None = None
    """The resolved rule the weights were trained with."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        return self.architecture.num_parameters(self.num_classes)

    def to_json(self) -> str:
        return json.dumps({"format": 1, **dataclasses.asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """The inverse of `to_json`; WeightsError if `text` is not such a record."""
        try:
            record = json.loads(text)
            if record.pop("format") != 1:
                raise WeightsError("This model file was written by a newer bigtransfer; update to read it.")
            record["architecture"]["units"] = tuple(record["architecture"]["units"])
            record["architecture"] = Architecture(**record["architecture"])
            record["input"] = InputSpec(**record["input"])
            if record["class_names"] is not None:
                record["class_names"] = tuple(record["class_names"])
            return cls(**record)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"The model file's description cannot be read: {error}") from error
