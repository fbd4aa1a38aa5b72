"""Detectors: torchvision's RetinaNet on the maps of BiT's network.

Source: the paper, section 3.7 (arXiv 1912.11370), and RetinaNet (arXiv 1708.02002); pyramid, heads, anchors, losses and the choice of
boxes are torchvision's. What the paper leaves open is decided in docs/decisions/detection.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from bigtransfer import catalog, model, ops
from bigtransfer.catalog import ModelCard, Readout
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.model import Network, ResNetV2
from bigtransfer.objects import CANDIDATES, MOST_BOXES, NMS_IOU, SCORE_THRESHOLD, SHAPES, STRIDES

_NORM_GROUPS = 32
_TAPS = Readout(blocks=(1, 2, 3), maxima=False)


class _LastLevels(LastLevelP6P7):
    """torchvision's, with gradients that are right where a map has one column (`ops.plain.conv2d`): P6 of images of 64 px has."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = _halved(self.p6, p[-1])
        return [*p, p6, _halved(self.p7, p6.relu())], [*names, "p6", "p7"]


def _halved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return ops.conv2d(x, layer.weight.to(x.dtype), 2, 1) + layer.bias.to(x.dtype)[:, None, None]


class Pyramid(nn.Module):
    """A network's last three maps, each after the GroupNorm and ReLU that it meets next, as the five of a feature pyramid: images
    `(n, 3, h, w)` in [-1, 1] -> P3 to P7, `(n, channels, h / stride, w / stride)` each."""

    def __init__(self, body: ResNetV2, channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = channels
        # P6 from P5, as in the code that the paper names; torchvision's own detector takes C5.
        last = _LastLevels(channels, channels)
        self.fpn = FeaturePyramidNetwork(list(body.architecture.stages[-3:]), channels, last)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = [found for found, _ in self.body.stage_maps(images, _TAPS)]
        named = OrderedDict((str(number), found) for number, found in enumerate(maps))
        with _autocast(images, self.fpn):
            return self.fpn(named)


def _autocast(x: Tensor, module: nn.Module) -> Any:
    """Where the input is of another type than the parameters, torch's modules compute in that of the input."""
    if x.dtype == next(module.parameters()).dtype:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, x.dtype)


class Detector(retinanet.RetinaNet):
    """Images `(n, 3, size, size)` in [-1, 1], size a multiple of 32, -> `Outputs`.

    Its card is as of a `model.Network`, with `detector` set: class names, input size, where it comes from. What torchvision's class does
    beside (lists of images of all sizes, resized and padded by itself) is left out: images come prepared as the card says.
    """

    transform: Any

    def __init__(self, body: ResNetV2, spec: catalog.Detector, num_classes: int) -> None:
        sizes = tuple(tuple(spec.anchor_scale * stride * 2 ** (i / 3) for i in range(3)) for stride in STRIDES)
        anchors = AnchorGenerator(sizes, (SHAPES,) * len(STRIDES))  # pyright: ignore[reportArgumentType] (floats are taken)
        pyramid = Pyramid(body, spec.channels)
        super().__init__(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=retinanet.RetinaNetHead(
                spec.channels, catalog.ANCHORS, num_classes, norm_layer=partial(nn.GroupNorm, _NORM_GROUPS)
            ),
            score_thresh=SCORE_THRESHOLD,
            nms_thresh=NMS_IOU,
            detections_per_img=MOST_BOXES,
            topk_candidates=CANDIDATES,
        )
        del self.transform
        self.spec, self.num_classes = spec, num_classes
        self.card = dataclasses.replace(
            ModelCard.bare(body.architecture, num_classes), detector=spec, input=catalog.InputSpec(size=512, mode="fit")
        )

    @property
    def body(self) -> ResNetV2:
        """The network that looks."""
        return self.backbone.body  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.head.parameters()).dtype

    def forward(self, images: Tensor, targets: Any = None) -> Outputs:
        assert targets is None, "the losses are those of the outputs"
        levels = list(self.backbone(images).values())
        with _autocast(images, self.head):
            found = self.head(levels)
        anchors = self.anchor_generator(ImageList(images[:1], [(images.shape[-2], images.shape[-1])]), levels)[0]
        return Outputs(
            self,
            found["cls_logits"].float(),
            found["bbox_regression"].float(),
            anchors.float(),
            tuple(catalog.ANCHORS * level.shape[-2] * level.shape[-1] for level in levels),
        )

    def activations(self, size: int) -> float:
        """About how many numbers a training keeps of one image of `size` x `size` px between forward and backward pass."""
        places = sum((-(-size // stride)) ** 2 for stride in STRIDES)
        # Of each tower's four layers the convolution's output, the norm's, the ReLU's; the pyramid's two; what there is for each anchor.
        own = places * (self.spec.channels * (2 * 4 * 3 + 2) + 4 * catalog.ANCHORS * (self.num_classes + 4))
        return self.body.architecture.activations(size) + own

    def folded(self, dtype: torch.dtype) -> Self:
        """The same for inference with inputs of `dtype`, its network with standardized kernels (`model.fold`); not to be trained."""
        with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced at once
            made = type(self)(model.fold(self.body, dtype), self.spec, self.num_classes)  # pyright: ignore[reportArgumentType]
        made.backbone.fpn.load_state_dict(self.backbone.fpn.state_dict())  # pyright: ignore
        made.head.load_state_dict(self.head.state_dict())
        made.card = self.card
        return made.to(next(self.parameters()).device).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a detector says of a batch, at every anchor."""

    detector: Detector
    logits: Tensor
    """float32 (n, anchors, classes); the sigmoid of each is a probability by itself."""
    offsets: Tensor
    """float32 (n, anchors, 4): of a box from its anchor, as R-CNN encodes them."""
    anchors: Tensor
    """float32 (anchors, 4): left, top, right, bottom, px of the input."""
    levels: tuple[int, ...]
    """How many of the anchors belong to each level, one after the other."""

    def losses(self, labels: Tensor) -> dict[str, Tensor]:
        """Focal loss of the classes and L1 of the offsets, each summed over the images, of which each is divided by its positive anchors.

        labels: float32 (n, k, 5), the class and the four sides of each object, px of the input; class -1 for none."""
        targets = []
        for rows in labels.to(self.logits.device):
            own = rows[rows[:, 0] >= 0]
            targets.append({"boxes": own[:, 1:], "labels": own[:, 0].long()})
        if not targets:
            return {"classes": self.logits.sum() * 0, "boxes": self.offsets.sum() * 0}
        head = {"cls_logits": self.logits, "bbox_regression": self.offsets}
        found = self.detector.compute_loss(targets, head, [self.anchors] * len(targets))
        # torchvision gives means over the images.
        return {
            "classes": found["classification"] * len(targets),
            "boxes": found["bbox_regression"] * len(targets),
        }

    def chosen(self, rows: Tensor) -> Outputs:
        """Those of some of the images."""
        return dataclasses.replace(self, logits=self.logits[rows], offsets=self.offsets[rows])

    def boxes(self, extents: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Of each image "boxes" (k, 4), "scores" (k,) and "labels" (k,), the best first: k at most `MOST_BOXES`. px of the input.

        extents: height and width of the part of the input that the image covers; no box reaches beyond."""
        head = {
            "cls_logits": list(self.logits.split(self.levels, dim=1)),
            "bbox_regression": list(self.offsets.split(self.levels, dim=1)),
        }
        anchors = [list(self.anchors.split(self.levels))] * len(extents)
        return self.detector.postprocess_detections(head, anchors, list(extents))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class BoxGoal:
    """A detector's goal (`train.objective.Goal`): the sum of the focal loss and of the boxes' L1, as torchvision has it."""

    def losses(
        self,
        output: Outputs,
        labels: Tensor,
        part: slice,
        mix: object = None,
        teacher: object = None,
        readable: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of images that could not be read none."""
        assert mix is None and teacher is None
        own = labels[part]
        if readable is not None:
            seen = readable[part].nonzero()[:, 0].to(output.logits.device)
            output, own = output.chosen(seen), own[seen.to(own.device)]
        return output.losses(own)

    def weighted(self, found: Mapping[str, Tensor]) -> Tensor:
        return found["classes"] + found["boxes"]


def on(network: Network, spec: catalog.Detector, num_classes: int) -> Detector:
    """A detector of that many classes whose network is this one, its head left out, with new pyramid and heads (torchvision's random
    weights). ConfigError for a network that is not BiT's."""
    if not isinstance(network, ResNetV2) or network.architecture.readout or network.architecture.beside:
        raise ConfigError(f"Detectors are made of BiT's networks; {network.card.name} is another.")
    if network.architecture.in_chans != 3:
        raise ConfigError(
            f"Detectors see images of 3 channels; {network.card.name} takes {network.architecture.in_chans}."
        )
    network.reset_classifier(0)
    return Detector(network, spec, num_classes)


def build(card: ModelCard) -> Detector:
    """A detector with random weights of the shape that a card says."""
    assert card.detector is not None
    network = model.build(card.architecture, 0)
    found = on(network, card.detector, card.num_classes)
    found.card = card
    return found


def restored(card: ModelCard, tensors: Mapping[str, Tensor], where: str) -> Detector:
    """The detector of that card with those tensors; WeightsError, which names the first odd one, if they are not the card's."""
    try:
        made = build(card)
    except ConfigError as error:
        raise WeightsError(f"{where} is not what its card says: {error}") from error
    wanted = made.state_dict()
    for name in (*wanted, *tensors):
        if name not in tensors or name not in wanted or tensors[name].shape != wanted[name].shape:
            raise WeightsError(f"{where} is not what its card says: it differs in {name}.")
    made.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    return made.eval()
