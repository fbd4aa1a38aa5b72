"""The BiT network: a pre-activation ResNet with GroupNorm and weight-standardized convolutions.

Source: arXiv 1912.11370 section 3 and the released code (google-research/big_transfer, `bit_pytorch/models.py`), from
which the details below are taken: zero padding before the max-pool, the stride on the 3x3 convolution, and the projection
shortcut that starts from the pre-activated input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer import ops
from bigtransfer.catalog import Architecture, ModelCard, architecture
from bigtransfer.errors import WeightsError

GROUPS = 32
"""Groups of every GroupNorm, at every width (released code)."""

Norm = Literal["gn", "bn"]


class Conv2d(nn.Conv2d):
    """A bias-free convolution; its float32 kernel is cast to the input's dtype at each use."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.conv2d(input, self.weight.to(input.dtype), self.stride[0], int(self.padding[0]))


class StdConv2d(nn.Conv2d):
    """A bias-free convolution whose kernel is standardized at each use (`ops.standardize`)."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.conv2d(input, ops.standardize(self.weight, dtype=input.dtype), self.stride[0], int(self.padding[0]))


class GroupNormReLU(nn.GroupNorm):
    """GroupNorm with `GROUPS` groups, then ReLU, as one operation."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-5)

    def forward(self, input: Tensor) -> Tensor:
        return ops.group_norm_relu(input, self.num_groups, self.weight, self.bias, self.eps)


class BatchNormReLU(nn.BatchNorm2d):
    """BatchNorm, then ReLU: the paper's ablation (section 4.3), not used by any released model."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class PreActBottleneck(nn.Module):
    """One residual unit: three times (norm, ReLU, conv) with kernels 1x1, 3x3, 1x1, plus the shortcut."""

    def __init__(self, conv: type[nn.Conv2d], norm: type[nn.Module], channels: int, out: int, stride: int) -> None:
        super().__init__()
        middle = out // 4
        self.norm1 = norm(channels)
        self.conv1 = conv(channels, middle, 1, bias=False)
        self.norm2 = norm(middle)
        self.conv2 = conv(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.norm3 = norm(middle)
        self.conv3 = conv(middle, out, 1, bias=False)
        self.proj = conv(channels, out, 1, stride=stride, bias=False) if stride != 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        # The projection starts from the pre-activated input, the identity from the raw one.
        shortcut = x if self.proj is None else self.proj(y)
        y = self.conv1(y)
        y = self.conv2(self.norm2(y))
        y = self.conv3(self.norm3(y))
        return y + shortcut


class ResNetV2(nn.Module):
    """BiT's ResNet-v2: float images `(n, in_chans, h, w)` in [-1, 1] -> logits `(n, num_classes)`.

    units: residual units in each of the four blocks, (3, 4, 6, 3) for R50. width: the factor x1, x2, x3, x4.
    num_classes 0 leaves the head out: the result is then the pooled features `(n, 2048 * width)`.
    norm "bn" and weight_standardization False give the other networks of the paper's normalization ablation.
    Any h, w >= 1 works; the paper uses 128 to 480. The head is not standardized and starts at zero.
    The input's dtype is the dtype of the computation (bfloat16 images run the network in bfloat16), except that
    standardization, statistics, pooling and the head stay in float32 and so do parameters and logits.

    `card` says what is known of the network besides its numbers: class names, input size, where it comes from. A copy has it too; the
    state dict does not hold it.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["card", "num_classes"]

    def __init__(
        self,
        units: Sequence[int] = (3, 4, 6, 3),
        width: int = 1,
        num_classes: int = 1000,
        *,
        in_chans: int = 3,
        norm: Norm = "gn",
        weight_standardization: bool = True,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(
            units=tuple(units), width=width, in_chans=in_chans, norm=norm, weight_standardization=weight_standardization
        )
        conv = StdConv2d if weight_standardization else Conv2d
        normalize: type[nn.Module] = GroupNormReLU if norm == "gn" else BatchNormReLU

        channels = 64 * width
        self.root = conv(in_chans, channels, 7, stride=2, padding=3, bias=False)
        blocks = []
        for block, count in enumerate(units):
            out = 256 * width * 2**block
            stride = 1 if block == 0 else 2
            residual = []
            for unit in range(count):
                residual.append(PreActBottleneck(conv, normalize, channels, out, stride if unit == 0 else 1))
                channels = out
            blocks.append(nn.Sequential(*residual))
        self.blocks = nn.ModuleList(blocks)
        self.norm = normalize(channels)
        self.num_features = channels
        self.head: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self._card = ModelCard.bare(self.architecture, num_classes)
        self.reset_parameters()

    @property
    def num_classes(self) -> int:
        """Length of the logits, as the head has it now; 0 without a linear layer in the head."""
        return next((m.out_features for m in reversed([*self.head.modules()]) if isinstance(m, nn.Linear)), 0)

    @property
    def card(self) -> ModelCard:
        """What is known of the network: what its file said, else its shape alone. After a change of the head's classes it has no
        class names and no scores any more."""
        same = self._card.num_classes == self.num_classes
        return self._card if same else self._card.with_classes(self.num_classes)

    @card.setter
    def card(self, card: ModelCard) -> None:
        """Raises WeightsError if the card is of another architecture or of other classes."""
        if (card.architecture, card.num_classes) != (self.architecture, self.num_classes):
            raise WeightsError(
                f"The card of {card.name} ({card.architecture}, {card.num_classes} classes) is of another network than this one "
                f"({self.architecture}, {self.num_classes} classes)."
            )
        self._card = card

    def reset_parameters(self) -> None:
        """Random kernels, norms at identity, the head at zero.

        The kernels' scale has no effect on the output where they are standardized, but it sets how far a learning rate turns them.
        It is torch's default, a third of the variance 1 / fan-in, as in the authors' PyTorch code: measured on Tiny-ImageNet, He's
        six times larger variance starts to learn later (docs/lab-notes.md).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm | nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The outputs of the four blocks: `(n, 256 * width * 2**b, ~h / 2**(b+2), ~w / 2**(b+2))`, before any final norm."""
        x = self.root(x)
        # Zeros, not max_pool's own -inf padding: where all real inputs are negative the two differ.
        x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Pooled features `(n, 2048 * width)` in the head's dtype: what the head sees."""
        last = self.norm(self.maps(x)[-1])
        return last.mean(dim=(2, 3), dtype=torch.promote_types(last.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All parameters but the head's."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in head]


def build(name: str | Architecture, num_classes: int, *, device: str | torch.device | None = None) -> ResNetV2:
    """A network with random weights from an architecture's name ("r50x1") or record; device "meta" allocates nothing."""
    arch = architecture(name) if isinstance(name, str) else name
    with torch.device(device or "cpu"):
        return ResNetV2(
            arch.units,
            arch.width,
            num_classes,
            in_chans=arch.in_chans,
            norm=arch.norm,
            weight_standardization=arch.weight_standardization,
        )


@torch.no_grad()
def fold(network: ResNetV2, dtype: torch.dtype = torch.float32) -> ResNetV2:
    """The same function for inputs of `dtype`, with the standardized kernels stored: nothing is left to standardize at each call.

    Bit for bit the result of `network` in eval mode. For inference only: the copy's kernels are not the trained parameters.
    """
    arch = dataclasses.replace(network.architecture, weight_standardization=False)
    folded = build(arch, network.num_classes, device="meta")
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        if isinstance(module, StdConv2d):
            tensors[f"{name}.weight"] = ops.standardize(module.weight).to(dtype)
    folded.load_state_dict(tensors, assign=True)
    folded.card = dataclasses.replace(network.card, architecture=arch)
    return folded.eval().requires_grad_(False)
