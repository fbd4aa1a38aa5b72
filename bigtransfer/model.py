"""Networks: what they all have (`Network`), BiT's own (`ResNetV2`), and those of other libraries (`Foreign`).

BiT's is a pre-activation ResNet with GroupNorm and weight-standardized convolutions.
Source: arXiv 1912.11370 section 3 and the released code (google-research/big_transfer, `bit_pytorch/models.py`), from
which the details below are taken: zero padding before the max-pool, the stride on the 3x3 convolution, and the projection
shortcut that starts from the pre-activated input.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigtransfer import libraries, ops
from bigtransfer.catalog import Architecture, ModelCard, Readout, architecture
from bigtransfer.errors import ConfigError, WeightsError

GROUPS = 32
"""Groups of every GroupNorm, at every width (released code)."""

Norm = Literal["gn", "bn"]

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "")
"""What `ResNetV2.global_pool` may be: BiT's average, and timm's others (`ops.pool`); "" leaves the map as it is."""


class PooledMap(NamedTuple):
    """A map that some of the features are pooled from."""

    map: Tensor
    """`(n, channels, h, w)`, after the norm and ReLU."""
    pooling: str
    """How its pixels become features: one of `POOLINGS` but ""."""
    start: int
    """Where its features begin in the vector that the head sees."""
    share: float = 1.0
    """What they are multiplied by there; those of several maps at one place are added."""
    mirrored: bool = False
    """The map is of the mirror image."""


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
        # Not super().forward, which neither TorchScript nor torch.fx can follow.
        if self.training:
            self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        momentum: float = self.momentum  # pyright: ignore[reportAssignmentType]
        mean, variance = self.running_mean, self.running_var
        return F.relu(F.batch_norm(input, mean, variance, self.weight, self.bias, self.training, momentum, self.eps))


_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
"""What the normalizations of all networks here are, our own and other libraries'."""


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


class Network(nn.Module):
    """What all networks here have, whosever they are: float images `(n, in_chans, h, w)` in [-1, 1] -> logits `(n, num_classes)`, by
    features `(n, num_features)` and a `head` that is one linear layer (`nn.Identity` without classes).

    A kind of network tells what its head sees of an image (`features`), the maps that this is pooled from (`pooled_maps`), those that
    its stages end with (`stage_maps`), and which of its modules are its layers (`parts`); its `architecture` says in what shape, before
    anything is built.

    `card` says what is known of the network besides its numbers: class names, input size, where it comes from. A copy has it too; the
    state dict does not hold it.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["card", "dtype", "num_classes"]

    parts: ClassVar[tuple[str, ...]] = ()
    """The modules that networks share which differ in what their heads see (`joined`)."""

    architecture: Architecture
    head: nn.Module
    num_features: int
    _card: ModelCard
    scatter: Tensor | None = None
    """How images of one class differ, where that is known of the network from the images it learnt from: float `(r, d)`, S such that
    S^T S is about the scatter within classes of its d features of all blocks at one size, standardized. Belongs to the layers: networks
    that share them have it (`joined`), copies have it, the state dict and model files do not."""

    @property
    def num_classes(self) -> int:
        """Length of the logits, as the head has it now; 0 without a linear layer in the head."""
        sizes = [
            size for module in self.head.modules() if isinstance(size := getattr(module, "out_features", None), int)
        ]
        return sizes[-1] if sizes else 0

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

    @property
    def dtype(self) -> torch.dtype:
        """Of features, head and logits: the parameters', but for kernels that are stored in the dtype of the computation (`fold`)."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, `(n, num_features)` in `dtype`."""
        raise NotImplementedError

    def activations(self, size: int) -> float:
        """As `Architecture.activations`."""
        return self.architecture.activations(size)

    def pooled_maps(self, x: Tensor) -> list[PooledMap]:
        """The maps that `features` are pooled from: pooled, multiplied by their shares and added at their places, they are `features(x)`.
        What is not pooled from a map by its mean or maximum is a map of one place.

        Raises ConfigError where nothing is pooled (`reset_classifier(n, "")`)."""
        raise NotImplementedError

    def stage_maps(self, x: Tensor, readout: Readout) -> list[tuple[Tensor, str]]:
        """The maps `(n, c, h, w)` that the readout's blocks end with, as what follows them sees them, each with how it is pooled
        (`ops.pool`): one after the other, pooled, they are the readout's features of images of one size."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one of zeros for `num_classes` (0: none). Raises ConfigError for what is no number of classes, and for
        another pooling (`global_pool`) than the network's own."""
        if global_pool not in (None, "avg"):
            raise ConfigError(f"This network pools in its own way; global_pool cannot be {global_pool!r}.")
        self._fresh_head(self.num_features, num_classes)

    def _fresh_head(self, inputs: int, num_classes: int) -> None:
        if num_classes < 0:
            raise ConfigError(f"num_classes must be 0 or more, not {num_classes}.")
        place = next(parameter for name, parameter in self.named_parameters() if not name.startswith("head.")).device
        head = nn.Linear(inputs, num_classes, device=place, dtype=self.dtype) if num_classes else nn.Identity()
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.head = head.train(self.training)
        self._card = self._card.with_classes(num_classes)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All parameters but the head's."""
        head = {id(parameter) for parameter in self.head.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in head]

    def norm_parameters(self) -> list[nn.Parameter]:
        """The scales and shifts of all normalizations; none where a network has none, or none that learns."""
        norms = [module for module in self.modules() if isinstance(module, _NORMS)]
        return list(dict.fromkeys(parameter for norm in norms for parameter in norm.parameters(recurse=False)))

    def stem_parameters(self) -> list[nn.Parameter]:
        """Those of the first layer that sees the image."""
        return libraries.stem(self)


class ResNetV2(Network):
    """BiT's ResNet-v2: float images `(n, in_chans, h, w)` in [-1, 1] -> logits `(n, num_classes)`.

    units: residual units in each of the four blocks, (3, 4, 6, 3) for R50. width: the factor x1, x2, x3, x4.
    num_classes 0 leaves the head out: the result is then the pooled features `(n, 2048 * width)`, or with `reset_classifier(0, "")` the
    last map `(n, 2048 * width, ~h / 32, ~w / 32)`.
    norm "bn" and weight_standardization False give the other networks of the paper's normalization ablation.
    Any h, w >= 1 works; the paper uses 128 to 480. The head is not standardized and starts at zero.
    The input's dtype is the dtype of the computation (bfloat16 images run a float32 network in bfloat16), except that standardization,
    statistics and pooling are computed in at least float32; head and logits have the dtype of the parameters.

    What timm's networks have beside `forward` is here with the same names and meaning: `forward_features`, `forward_head`,
    `forward_intermediates`, `feature_info`, `get_classifier`, `reset_classifier` (but a new head starts at zero, as BiT's do), and
    `set_grad_checkpointing`.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["card", "dtype", "feature_info", "num_classes"]

    parts: ClassVar[tuple[str, ...]] = ("root", "blocks", "norm")

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
        self.global_pool = "avg"
        self.grad_checkpointing = False
        self.norm_checkpointing = False
        self.head: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self._card = ModelCard.bare(self.architecture, num_classes)
        self.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype  # pyright: ignore[reportReturnType]

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

    def _stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution's output, of half the size, and what the blocks start from, of a quarter."""
        x = self.root(x)
        # Zeros, not max_pool's own -inf padding: where all real inputs are negative the two differ.
        return x, F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map after the final norm and ReLU: `(n, 2048 * width, ~h / 32, ~w / 32)`, in the input's dtype."""
        x = self._stem(x)[1]
        for block in self.blocks:
            if torch.jit.is_scripting():
                x = block(x)
            else:
                x = _through(block, x, self.grad_checkpointing, self.norm_checkpointing)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """`forward_features`' map -> logits, or with pre_logits what the head sees: the pooled features `(n, 2048 * width)`."""
        if self.global_pool != "":
            x = ops.pool(x, self.global_pool)
        x = x.to(self.norm.weight.dtype)
        if pre_logits:
            return x
        return self.head(x) if self.global_pool != "" else self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features `(n, 2048 * width)` in the parameters' dtype: what the head sees."""
        return self.forward_head(self.forward_features(x), pre_logits=True)

    def pooled_maps(self, x: Tensor) -> list[PooledMap]:
        if not self.global_pool:
            raise ConfigError('Without pooling (global_pool "") there are no features that maps are pooled to.')
        return [PooledMap(self.forward_features(x), self.global_pool, 0)]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        *,
        intermediates_only: Literal[True],
    ) -> list[Tensor]: ...
    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        intermediates_only: Literal[False] = ...,
    ) -> tuple[Tensor, list[Tensor]]: ...
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map as `forward_features` gives it, and the maps of `feature_info` on the way there, from the largest on.

        indices: which of the five, negative ones from the end; a number: so many of the last; None: all. norm: the last map after the
        final norm and ReLU instead of before. stop_early: leave out the blocks after the last map asked for (the first value is then
        not normalized). intermediates_only: the list alone. Raises ConfigError for maps that there are not.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"forward_intermediates gives maps as NCHW only, not {output_fmt!r}.")
        count = len(self.blocks) + 1
        asked = [*range(count)] if indices is None else indices
        if isinstance(asked, int):
            asked = [*range(count - asked, count)] if 0 < asked <= count else [count]
        wanted = {index + count if index < 0 else index for index in asked}
        if not wanted or not wanted <= {*range(count)}:
            raise ConfigError(
                f"forward_intermediates has maps 0 to {count - 1}, or -{count} to -1; asked for: {indices}."
            )
        first, x = self._stem(x)
        maps = [first] if 0 in wanted else []
        last = max(wanted) if stop_early else count - 1
        for index, block in enumerate(self.blocks[:last], start=1):
            x = _through(block, x, self.grad_checkpointing, self.norm_checkpointing)
            if index in wanted:
                maps.append(self.norm(x) if norm and index == count - 1 else x)
        if intermediates_only:
            return maps
        return (self.norm(x) if last == count - 1 else x), maps

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The five maps of `forward_intermediates`: channels, how many times smaller than the image, and the module they come from."""
        width = self.architecture.width
        blocks = [
            {"num_chs": 256 * width * 2**block, "reduction": 2 ** (block + 2), "module": f"blocks.{block}"}
            for block in range(len(self.blocks))
        ]
        return [{"num_chs": 64 * width, "reduction": 2, "module": "root"}, *blocks]

    def get_classifier(self) -> nn.Module:
        """The head: `nn.Linear`, or `nn.Identity` where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one of zeros for `num_classes` (0: none), and the pooling if `global_pool` is not None: one of `POOLINGS`.

        Raises ConfigError for what is neither. Model files hold networks with average pooling, BiT's, only.
        """
        if global_pool is not None and global_pool not in POOLINGS:
            raise ConfigError(f"global_pool must be one of {', '.join(map(repr, POOLINGS))}, not {global_pool!r}.")
        pool = self.global_pool if global_pool is None else global_pool
        self._fresh_head(self.num_features * (2 if pool == "catavgmax" else 1), num_classes)
        self.global_pool = pool

    def set_grad_checkpointing(self, enable: bool = True, *, norms_only: bool = False) -> None:
        """Whether training keeps only each residual unit's input and computes the rest again for the gradients: a fraction of the
        memory, a third more time, the same numbers. Raises ConfigError with BatchNorm, which would count every batch twice.

        norms_only: keeps the inputs of all norms, and computes only their results again, which the convolutions would keep: half of the
        activations, a few percent more time, the same numbers. For the fast forms of the norm only (`ops.norms_recomputed`), not under
        torch.compile.
        """
        if enable and self.architecture.norm == "bn":
            raise ConfigError(
                "Gradient checkpointing is not for BatchNorm: its running statistics would see every batch twice."
            )
        self.grad_checkpointing = enable and not norms_only
        self.norm_checkpointing = enable and norms_only

    def stage_maps(self, x: Tensor, readout: Readout) -> list[tuple[Tensor, str]]:
        y, found = self._stem(x)[1], []
        for number, block in enumerate(self.blocks[: max(readout.blocks) + 1]):
            y = _through(block, y, self.grad_checkpointing, self.norm_checkpointing)
            if number in readout.blocks:
                # The norm that the map meets next in the network, too.
                last = number + 1 == len(self.blocks)
                following = self.norm if last else cast(nn.Sequential, self.blocks[number + 1])[0].norm1
                found.append((cast(nn.Module, following)(y), "catavgmax" if readout.maxima else "avg"))
        return found


class Foreign(Network):
    """A network of another library (`libraries`) with a head of ours.

    Its layers are always in evaluation mode: BatchNorm keeps the statistics that it came with, dropout and stochastic depth are off. So a
    batch's gradient is the sum of its images', however many are computed at a time, and a training is a function of its seed.
    Images of another dtype than the parameters' are computed by torch's autocast.
    """

    parts: ClassVar[tuple[str, ...]] = ("body",)

    scale: Tensor
    shift: Tensor

    def __init__(self, arch: Architecture, num_classes: int, body: libraries.Body | None = None) -> None:
        super().__init__()
        assert arch.backbone is not None
        made = libraries.build(arch.backbone) if body is None else body
        self.architecture = arch
        self.body, self._run = made.network, made.run
        # Of images in [-1, 1], which stand for pixels from 0 to 1.
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (arch.backbone.mean, arch.backbone.std))
        place = next(self.body.parameters()).device
        self.register_buffer("scale", (0.5 / std).float().view(1, 3, 1, 1).to(place), persistent=False)
        self.register_buffer("shift", ((0.5 - mean) / std).float().view(1, 3, 1, 1).to(place), persistent=False)
        self.num_features = arch.pooled_features
        self.head = nn.Identity()
        self._card = ModelCard.bare(arch, 0)
        self.reset_classifier(num_classes)

    def at_hand(self) -> libraries.Body:
        """Its layers, for another network that shares them."""
        return libraries.Body(self.body, self._run)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.body.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype

    def _looked(self, x: Tensor, stages: Sequence[int]) -> tuple[Tensor, Mapping[int, Tensor]]:
        own, backbone = self.dtype, self.architecture.backbone
        seen = x.to(self.scale.dtype) * self.scale + self.shift
        try:
            if x.dtype == own:
                return self._run(self.body, seen.to(own), stages)
            with torch.autocast(x.device.type, x.dtype):
                return self._run(self.body, seen, stages)
        except RuntimeError as error:
            assert backbone is not None
            small = x.ndim == 4 and min(x.shape[-2:]) < backbone.size
            if not small or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"{self.architecture.name} was made for {backbone.size} px and does not take images of {x.shape[-2]} x {x.shape[-1]}: "
                f"{libraries.first_line(error)}. Take larger ones (--crop)."
            ) from error

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head sees, `(n, num_features)`."""
        return self._looked(x, ())[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """`forward_features`' vector -> logits, or with pre_logits the vector in the parameters' dtype."""
        x = x.to(self.dtype)
        return x if pre_logits else self.head(x)

    def features(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x), pre_logits=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def pooled_maps(self, x: Tensor) -> list[PooledMap]:
        ((one, pooling),) = self.stage_maps(x, self.architecture.last_map)
        return [PooledMap(one, pooling, 0)]

    def stage_maps(self, x: Tensor, readout: Readout) -> list[tuple[Tensor, str]]:
        arch = self.architecture
        assert arch.backbone is not None
        last = len(arch.stages) - 1
        try:
            pooled, maps = self._looked(x, readout.blocks)
        except (AssertionError, IndexError, KeyError) as error:
            raise WeightsError(
                f"{arch.name} cannot be looked at as the model says: {libraries.first_line(error)}"
            ) from error
        found: list[tuple[Tensor, str]] = []
        for block in readout.blocks:
            if maps[block].shape[1] != arch.stages[block] or pooled.shape[1] != arch.pooled_features:
                raise WeightsError(
                    f"{arch.name} is another network here than where the model was made: stage {block + 1} gives {maps[block].shape[1]} "
                    f"channels, not {arch.stages[block]}."
                )
            if block != last or arch.backbone.averaged:
                found.append((maps[block], "catavgmax" if readout.maxima else "avg"))
            else:
                found.append((pooled[:, :, None, None], "avg"))
                found += [(maps[block], "max")] if readout.maxima else []
        return found


class Joined(Network):
    """A network with a head that sees more than the last map's pooled form: what `catalog.Readout` names, or the features of a second
    network, `beside`, or both. Comes before the kind of network among the bases of a class.

    The features are one vector in the parameters' dtype. Those of one size follow those of the other, smallest first; within a size they
    come block by block, within a block the means before the maxima; those of `beside` come last. Where the readout is mirrored they are the
    means of those of the image and of its mirror image. Images are resized to the readout's
    sizes bilinearly in float32, averaging over the source area where they shrink. `forward_features` gives that vector, there being no
    single map.
    """

    beside: Network | None

    def _join(self, arch: Architecture, num_classes: int, beside: Network | None = None) -> None:
        """Make of the network, which has no head yet, one with such a head."""
        self.architecture = arch
        if beside is None and arch.beside is not None:
            # Networks of other libraries know constants of their own, wherever ours are made.
            with torch.device("cpu") if arch.beside.backbone is not None else contextlib.nullcontext():
                beside = build(arch.beside, 0)
        self.beside = beside
        self.num_features = arch.num_features
        self._card = ModelCard.bare(arch, 0)
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head sees, `(n, features)`."""
        readout = self.architecture.readout
        if readout is None:
            own: Any = super()
            seen = own.forward_head(own.forward_features(x), pre_logits=True)
        else:
            seen = self._seen(x, readout)
            if readout.mirrored:
                seen = (seen + self._seen(x.flip(-1), readout)) / 2
        return seen if self.beside is None else torch.cat([seen, self.beside.features(x)], dim=1)

    def pooled_maps(self, x: Tensor) -> list[PooledMap]:
        readout = self.architecture.readout
        found: list[PooledMap] = []
        if readout is None:
            found += [PooledMap(one, pooling, 0) for one, pooling in self.stage_maps(x, self.architecture.last_map)]
        else:
            share = 0.5 if readout.mirrored else 1.0
            found += self._maps(x, readout, share)
            if readout.mirrored:
                found += [one._replace(mirrored=True) for one in self._maps(x.flip(-1), readout, share)]
        if self.beside is not None:
            own = self.num_features - self.beside.num_features
            found += [one._replace(start=own + one.start) for one in self.beside.pooled_maps(x)]
        return found

    def _seen(self, x: Tensor, readout: Readout) -> Tensor:
        """The readout's features of images as they are."""
        return torch.cat([ops.pool(one.map, one.pooling) for one in self._maps(x, readout)], dim=1)

    def _maps(self, x: Tensor, readout: Readout, share: float = 1.0) -> list[PooledMap]:
        """The blocks' maps of images as they are, at each of the readout's sizes."""
        found, start = [], 0
        for size in readout.sizes or (None,):
            for one, pooling in self.stage_maps(x if size is None else _resized(x, size), readout):
                found.append(PooledMap(one, pooling, start, share))
                start += one.shape[1] * (2 if pooling == "catavgmax" else 1)
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """`forward_features`' vector -> logits, or with pre_logits the vector in the parameters' dtype."""
        x = x.to(self.dtype)
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one of zeros for `num_classes` (0: none). Raises ConfigError for another pooling than "avg" or None: the
        architecture states its own."""
        if global_pool not in (None, "avg"):
            raise ConfigError(f"The network's readout states how it pools; global_pool cannot be {global_pool!r}.")
        super().reset_classifier(num_classes)


class JoinedResNetV2(Joined, ResNetV2):
    """BiT's network with such a head."""

    def __init__(self, arch: Architecture, num_classes: int, beside: Network | None = None) -> None:
        super().__init__(
            arch.units,
            arch.width,
            0,
            in_chans=arch.in_chans,
            norm=arch.norm,
            weight_standardization=arch.weight_standardization,
        )
        self._join(arch, num_classes, beside)


class JoinedForeign(Joined, Foreign):
    """A network of another library with such a head."""

    def __init__(
        self,
        arch: Architecture,
        num_classes: int,
        body: libraries.Body | None = None,
        beside: Network | None = None,
    ) -> None:
        super().__init__(dataclasses.replace(arch, readout=None, beside=None), 0, body)
        self._join(arch, num_classes, beside)


def _resized(x: Tensor, side: int) -> Tensor:
    """Images `(n, c, h, w)` at `side` x `side` px, in their dtype."""
    if x.shape[-2:] == (side, side):
        return x
    resized = F.interpolate(x.float(), (side, side), mode="bilinear", antialias=True)
    return resized.to(x.dtype, memory_format=torch.channels_last)


def joined(network: Network, readout: Readout | None, beside: Network | None = None) -> Network:
    """A network without a head, of the same layers, which it shares with `network`, whose head will see the features named and those of
    `beside`."""
    own = dataclasses.replace(network.architecture, readout=readout, beside=beside and beside.architecture)
    other: Network
    if isinstance(network, Foreign):
        other = _foreign(own, 0, network.at_hand(), beside)
    else:
        assert isinstance(network, ResNetV2)
        made = build(own, 0, device="meta")
        assert isinstance(made, ResNetV2)
        for name in network.parts:
            setattr(made, name, getattr(network, name))
        if isinstance(made, JoinedResNetV2) and beside is not None:
            made.beside = beside
        made.grad_checkpointing, made.norm_checkpointing = network.grad_checkpointing, network.norm_checkpointing
        other = made
    other.card = dataclasses.replace(network.card.with_classes(0), architecture=own)
    other.scatter = network.scatter
    return other.train(network.training)


def reading(network: Network, architecture: Architecture) -> Network:
    """A network without a head, of the same layers, which it shares with `network`, whose head will see what this architecture, of the same
    layers, says: of the network and of the one beside it, if there is one."""
    other = network.beside if isinstance(network, Joined) else None
    beside = None if other is None or architecture.beside is None else joined(other, architecture.beside.readout)
    return joined(network, architecture.readout, beside)


def side_by_side(first: Network, second: Network) -> Network:
    """Both as one network without a head, of their layers: its features are those of the first and then those of the second, each as it
    makes them. Raises ConfigError as `ModelCard.side_by_side`."""
    card = first.card.side_by_side(second.card)
    both = joined(first, None, joined(second, None))
    both.card = card
    return both


def _foreign(
    arch: Architecture, num_classes: int, body: libraries.Body | None = None, beside: Network | None = None
) -> Foreign:
    if arch.readout is None and arch.beside is None:
        return Foreign(arch, num_classes, body)
    return JoinedForeign(arch, num_classes, body, beside)


def _through(block: nn.Module, x: Tensor, units: bool, norms: bool) -> Tensor:
    """`block(x)`. units: only the units' inputs are kept for the backward pass; norms: only the norms' inputs."""
    if torch.compiler.is_compiling() and not units:
        return block(x)
    if units:
        for unit in block.children():
            x = cast(Tensor, checkpoint(unit, x, use_reentrant=False, preserve_rng_state=False))
        return x
    with contextlib.ExitStack() as stack:
        if isinstance(x, Tensor) and x.is_cuda:
            # A block at a time, so that the gradients of the last blocks can be on their way to other processes while those of the first
            # are computed.
            kernels = [module.weight for module in block.modules() if isinstance(module, StdConv2d)]
            stack.enter_context(ops.standardized_ahead(kernels, x.dtype))
        if norms and torch.is_grad_enabled():
            stack.enter_context(ops.norms_recomputed())
        return block(x)


def build(name: str | Architecture, num_classes: int, *, device: str | torch.device | None = None) -> Network:
    """A network with random weights from an architecture's name ("r50x1") or record; device "meta" allocates nothing, but for networks of
    other libraries, which know constants of their own."""
    arch = architecture(name) if isinstance(name, str) else name
    if arch.backbone is not None:
        return _foreign(arch, num_classes)
    with torch.device(device or "cpu"):
        if arch.readout is not None or arch.beside is not None:
            return JoinedResNetV2(arch, num_classes)
        return ResNetV2(
            arch.units,
            arch.width,
            num_classes,
            in_chans=arch.in_chans,
            norm=arch.norm,
            weight_standardization=arch.weight_standardization,
        )


@torch.no_grad()
def fold(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    """The same function for inputs of `dtype`, with the standardized kernels stored: nothing is left to standardize at each call. Of a
    network of another library it is a copy whose BatchNorms are multiplied into the convolutions before them.

    Of ours bit for bit the result of `network` in eval mode with its kernels in torch's default layout, also where they have another,
    of the others within rounding: a model just trained and the same one read from its file give the same answers. For inference only:
    the copy's kernels are not the trained parameters.
    """
    folded = _folded(network, dtype) if isinstance(network, ResNetV2) else copy.deepcopy(network)
    folded.eval().requires_grad_(False)
    for one in (folded, folded.beside if isinstance(folded, Joined) else None):
        if isinstance(one, Foreign) and one.architecture.backbone is not None:
            libraries.fold_norms(one.at_hand(), one.architecture.backbone)
    return folded


def _folded(network: ResNetV2, dtype: torch.dtype) -> ResNetV2:
    """The copy with the standardized kernels."""
    arch = network.architecture
    beside = arch.beside and dataclasses.replace(arch.beside, weight_standardization=False)
    arch = dataclasses.replace(arch, weight_standardization=False, beside=beside)
    folded = build(arch, 0, device="meta")
    assert isinstance(folded, ResNetV2)
    folded.head, folded.global_pool = copy.deepcopy(network.head), network.global_pool
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        if isinstance(module, StdConv2d):
            tensors[f"{name}.weight"] = ops.standardize(module.weight.contiguous()).to(dtype)
    folded.load_state_dict(tensors, assign=True)
    folded.card = dataclasses.replace(network.card, architecture=arch)
    return folded
