"""Networks of other libraries, timm and torchvision, as backbones: what each tells of itself, and its parts by one set of names.

A network is known by its library and the library's own name for it, which must be in the library's registry; beside it nothing is ever
given to what builds it but sizes within bounds (`catalog.Built`), so that a model file cannot ask for more than that. Its classifier is
taken off: what is left gives the maps of its stages and the pooled form of the last one, which is what the classifier sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bigtransfer import catalog, settings
from bigtransfer.catalog import Backbone, Built, InputSpec
from bigtransfer.errors import BitError, ConfigError, DownloadError, WeightsError

Library = Literal["timm", "torchvision"]

MANY = 6
"""Of a network whose maps are more than this, as those of a ViT's blocks are, four are looked at: after each quarter of its depth."""

Layout = Literal["maps", "maps, channels last", "tokens"]


@dataclass(frozen=True)
class Body:
    """A backbone at work."""

    network: nn.Module
    """All its parameters."""
    run: Callable[[nn.Module, Tensor, Collection[int]], tuple[Tensor, Mapping[int, Tensor]]]
    """(network, images as the library wants them, float (n, 3, h, w), stages) -> the pooled form of the last map (n, features), and the
    maps of those stages, (n, c, h, w)."""


@dataclass(frozen=True)
class Known:
    """What a library says of one of its networks, beside the `Backbone`."""

    input: InputSpec
    num_classes: int
    class_names: tuple[str, ...] | None
    licence: str
    source: str
    classifier: str
    """The name of the classifier, one linear layer, among its parameters; "" if it has none of that kind."""
    convolution: bool
    """Whether that is written as a convolution of 1 x 1."""
    pooling: str = ""
    """How timm pools its last map, in timm's words; "" where it has none for that."""
    left_out: frozenset[str] = frozenset()
    """Tensors of a classifier of another kind (two heads, norms of its own): what is taken is the network below it."""


def asked(model: str) -> tuple[Library, str, str | None] | None:
    """("timm", "resnet50.a1_in1k", "file.safetensors") of "timm:resnet50.a1_in1k@file.safetensors"; None of what names no library."""
    found = re.fullmatch(r"(timm|torchvision):([^@]*)(?:@(.+))?", model, re.DOTALL)
    return None if found is None else (cast(Library, found[1]), found[2], found[3])


@functools.lru_cache(maxsize=64)
def describe(library: Library, name: str, built: Built | None = None) -> tuple[Backbone, Known]:
    """What there is to know of a network of a library; nothing is downloaded for that, but one image is looked at with random weights.
    built: where it is not made as its name says.

    ConfigError where the library is missing or has no such network, WeightsError where the network cannot be a backbone.
    """
    where = f"{library}:{name}"
    make = _registered(library, name, built)
    with _building(where):
        whole = make().eval()
        mean, std, spec = (_known_to_timm if library == "timm" else _known_to_torchvision)(name, whole)
        if built is not None and built.img_size is not None:
            spec = dataclasses.replace(spec, size=built.img_size)
        classes, classifier, convolution = _classifier(library, whole)
        licence, names = _licence(library, whole), _class_names(library, whole, classes)
        taps = (_timm_taps if library == "timm" else _torchvision_taps)(where, whole, spec.size)
        tensors = set(whole.state_dict())
        backbone = _measured(library, name, _body(library, whole, taps), spec.size, taps, mean, std)
        backbone = dataclasses.replace(backbone, built=built)
        left_out = frozenset() if classifier else frozenset(tensors - set(whole.state_dict()))
    return backbone, Known(
        input=spec,
        num_classes=classes,
        class_names=names,
        licence=licence,
        source=where,
        classifier=classifier,
        convolution=convolution,
        pooling=pooling if isinstance(pooling := getattr(whole, "global_pool", ""), str) else "",
        left_out=left_out,
    )


def build(backbone: Backbone) -> Body:
    """The backbone with random weights, on the CPU, in evaluation mode."""
    with _building(f"{backbone.library}:{backbone.name}"):
        whole = _registered(backbone.library, backbone.name, backbone.built)()
        return _body(backbone.library, whole, backbone.taps)


@functools.lru_cache(maxsize=64)
def shapes(library: Library, name: str, built: Built | None = None) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the parameters and buffers, without allocating any where the network can be made so; raises like `build`."""
    made = _registered(library, name, built)
    with _building(f"{library}:{name}"):
        try:
            with torch.device("meta"):
                whole = made()
        except RuntimeError:  # a few compute with tensors while they are made, such as torchvision's RegNets
            whole = made()
        _without_classifier(library, whole)
    return {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}


def pretrained(library: Library, name: str, offline: bool | None) -> Mapping[str, Tensor]:
    """The library's own weights by its own names, downloaded by its own client if need be. DownloadError where that is forbidden (offline;
    None: `$BIT_OFFLINE`) or fails."""
    where = f"{library}:{name}"
    _registered(library, name)
    if settings.offline() if offline is None else offline:
        raise DownloadError(
            f"{where} has to be downloaded, which BIT_OFFLINE or --offline forbids. With its weights in a file: {where}@FILE"
        )
    try:
        if library == "timm":
            return importlib.import_module("timm").create_model(name, pretrained=True).state_dict()
        return importlib.import_module("torchvision.models").get_model(name, weights="DEFAULT").state_dict()
    except Exception as error:  # whatever the library, its hub's client and the network raise
        raise DownloadError(
            f"{where} cannot be had from {library}: {first_line(error)}. With its weights in a file: {where}@FILE"
        ) from error


@torch.no_grad()
def fold_norms(body: Body, backbone: Backbone) -> None:
    """Multiply each BatchNorm, whose statistics stay as they are, into the convolution before it, whose map nothing else may see: the same
    function within rounding, in place, for inference only. body: in evaluation mode."""
    modules = dict(body.network.named_modules())
    for name, following in _before_norms(body, backbone) if backbone.batch_norm else ():
        conv, norm = cast(nn.Conv2d, modules[name]), cast(nn.BatchNorm2d, modules[following])
        mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
        scale = (var + norm.eps).rsqrt() * (norm.weight.double() if norm.affine else 1.0)
        bias = (norm.bias.double() if norm.affine else 0.0) - mean * scale
        bias = bias if conv.bias is None else bias + conv.bias.double() * scale
        weight = conv.weight.double() * scale[:, None, None, None]
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        # What timm's own class does after the norm.
        rest = {part: getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)}
        owner, _, attribute = following.rpartition(".")
        setattr(body.network.get_submodule(owner), attribute, nn.Sequential(OrderedDict(rest)))


def _before_norms(body: Body, backbone: Backbone) -> list[tuple[str, str]]:
    """Names of the convolutions whose map one BatchNorm alone sees, each with that norm's: found by following an image. Both compute
    what torch's own do, and are called once."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    given: dict[int, str] = {}
    seen: list[Tensor] = []  # kept, so that no two have one id
    calls, readers, pairs = Counter[str](), Counter[int](), []

    class Following(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            read = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            readers.update(map(id, read))
            seen.extend(read)
            return func(*args, **(kwargs or {}))

    def convolved(module: nn.Module, _inputs: object, found: Tensor) -> None:
        calls[names[module]] += 1
        given[id(found)] = names[module]
        seen.append(found)

    def normed(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[names[module]] += 1
        pairs.append((id(inputs[0]), names[module]))

    names = {module: name for name, module in body.network.named_modules()}
    hooks = []
    for module in names:
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if kind in _CONVOLUTIONS:
            hooks.append(module.register_forward_hook(convolved))
        elif kind in _NORMS and cast(nn.BatchNorm2d, module).running_mean is not None:
            hooks.append(module.register_forward_pre_hook(normed))
    parameter = next(body.network.parameters())
    try:
        # For a few networks that take any size in principle, the small one is too small.
        for side in (_SMALL, backbone.size) if backbone.any_size else (backbone.size,):
            for noted in (given, seen, calls, readers, pairs):
                noted.clear()
            with contextlib.suppress(RuntimeError), Following():
                image = torch.zeros(1, 3, side, side, dtype=parameter.dtype, device=parameter.device)
                body.run(body.network, image, range(catalog.MOST_STAGES))
                break
        else:
            return []  # who looks at images with it says why
    except (AssertionError, IndexError, KeyError):
        return []  # a card that names stages that are not there: who looks at them says so
    finally:
        for hook in hooks:
            hook.remove()
    found = [(given[place], norm) for place, norm in pairs if place in given and readers[place] == 1]
    return [(conv, norm) for conv, norm in found if calls[conv] == 1 and calls[norm] == 1]


_SMALL = 64
"""px of an image by which a network is followed that takes any size."""

_CONVOLUTIONS = ("torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame")
_NORMS = ("torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d")
"""Others, as those with standardized kernels, may compute something else of the same parameters."""


def stem(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of the first layer that sees the image: of a network that cuts it into patches, their embedding."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return [] if first is None else list(first.parameters())


# --- What is the same for both


def _registered(library: Library, name: str, built: Built | None = None) -> Callable[[], nn.Module]:
    """What builds the network of that name with its classifier and random weights; ConfigError if the library has none."""
    if library == "timm":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise ConfigError(f"timm:{name} needs the package timm: pip install timm") from error
        architecture, _, tag = name.partition(".")
        near = timm.list_models(f"*{architecture}*")[:5] if re.fullmatch(r"\w+", architecture) else []
        known = re.fullmatch(r"\w+(\.\w+)?", name) is not None and timm.is_model(architecture)
        if not known or (tag and timm.get_pretrained_cfg(name, allow_unregistered=False) is None):
            raise ConfigError(
                f"timm {timm.__version__} has no model {name!r}." + (f" It has {', '.join(near)}." if near else "")
            )
        return functools.partial(_made_by_timm, name, built or Built())
    models: Any = importlib.import_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ConfigError(
            f"torchvision has no classifier {name!r}. It has {', '.join(models.list_models(module=models))}."
        )
    return functools.partial(models.get_model, name, weights=None)


class _building:
    """Within, what a library raises becomes a WeightsError, and its warnings are nobody's concern."""

    def __init__(self, where: str) -> None:
        self._where, self._quiet = where, warnings.catch_warnings()

    def __enter__(self) -> None:
        self._quiet.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._quiet.__exit__(None, None, None)
        if isinstance(error, Exception) and not isinstance(error, BitError):
            raise WeightsError(f"{self._where} cannot be used as a backbone: {first_line(error)}") from error


def _without_classifier(library: Library, network: Any) -> str:
    """Take the classifier off; what stands in its place, for torchvision."""
    if library == "timm":
        network.reset_classifier(0)
        return ""
    classifier = _last_linear(network)
    owner, _, attribute = classifier.rpartition(".")
    setattr(network.get_submodule(owner), attribute, nn.Identity())
    return classifier


def _body(library: Library, network: nn.Module, taps: Sequence[str]) -> Body:
    """The network, whose classifier is taken off, as a backbone that is looked at in these places."""
    classifier = _without_classifier(library, network)
    network.eval().requires_grad_(True)
    if library == "timm":
        return Body(network, functools.partial(_run_timm, taps=tuple(map(int, taps))))
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {tap: str(stage) for stage, tap in enumerate(taps)} | {classifier: "pooled"}
    return Body(create_feature_extractor(network, nodes), _run_torchvision)


def _measured(
    library: Library,
    name: str,
    body: Body,
    size: int,
    taps: tuple[str, ...],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Backbone:
    """What is found out by looking at an image of its own size, and of another."""
    from torch.utils.flop_counter import FlopCounterMode

    every, put_out = range(catalog.MOST_STAGES), 0

    def count(module: nn.Module, _inputs: object, found: object) -> None:
        nonlocal put_out
        put_out += found.numel() if isinstance(found, Tensor) and not any(module.children()) else 0

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hooks = [module.register_forward_hook(count) for module in body.network.modules()]
        image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        pooled, maps = body.run(body.network, image, every)
        for hook in hooks:
            hook.remove()
    if pooled.ndim != 2:
        raise WeightsError(f"its features are of the shape {tuple(pooled.shape)}")
    modules = [*body.network.modules()]
    first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
    return Backbone(
        library=library,
        name=name,
        version=str(importlib.import_module(library).__version__).partition("+")[0],
        taps=taps,
        stages=tuple(maps[stage].shape[1] for stage in sorted(maps)),
        features=pooled.shape[1],
        parameters=sum(parameter.numel() for parameter in body.network.parameters()),
        products=max(1, counter.get_total_flops() // 2),
        activations=max(1, put_out),
        size=size,
        averaged=_same(pooled, maps[max(maps)].mean((2, 3))),
        any_size=_takes(body, round(size * 2 / 3 / 16) * 16, every),
        mean=mean,
        std=std,
        batch_norm=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules),
        patches=first is not None and first.kernel_size == first.stride and first.stride[0] > 2,
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-3, atol=1e-5))


def _takes(body: Body, size: int, stages: Collection[int]) -> bool:
    try:
        with torch.no_grad():
            body.run(body.network, torch.zeros(1, 3, size, size), stages)
    except Exception:  # an assertion, a shape that does not fit, ...
        return False
    return True


def _layout(found: Tensor) -> Layout:
    """Of the map of a square image."""
    if found.ndim == 3:
        return "tokens"
    if found.ndim != 4:
        raise WeightsError(f"its map has the shape {tuple(found.shape)}")
    return "maps" if found.shape[2] == found.shape[3] else "maps, channels last"


def _as_map(found: Tensor) -> Tensor:
    """(n, c, h, w), of a square image; of tokens (n, l, c) those of patches, which come after the others."""
    layout = _layout(found)
    if layout == "tokens":
        side = math.isqrt(found.shape[1])
        return found[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))
    return found if layout == "maps" else found.permute(0, 3, 1, 2)


def _linear(module: Any) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    # timm's own class computes the same; others that derive from torch's may not.
    return (
        type(module) is nn.Linear or f"{type(module).__module__}.{type(module).__name__}" == "timm.layers.linear.Linear"
    )


def _classifier(library: Library, network: Any) -> tuple[int, str, bool]:
    """Classes and name of the classifier, and whether it is a convolution; (0, "", False) if it is not a linear layer."""
    if library == "torchvision":
        last = _last_linear(network)
        return network.get_submodule(last).out_features, last, False
    found = network.get_classifier()
    for path, module in network.named_modules():
        if module is found and _linear(module) and module.bias is not None:
            return module.weight.shape[0], path, module.weight.ndim == 4
    return 0, "", False


def _class_names(library: Library, network: Any, classes: int) -> tuple[str, ...] | None:
    if classes == 1000:
        return catalog.class_names("imagenet-1k")
    if library == "timm" and classes:
        data: Any = importlib.import_module("timm.data")
        subset = data.infer_imagenet_subset(network)
        names = data.ImageNetInfo(subset).label_descriptions() if subset else ()
        return tuple(names) if len(names) == classes else None
    return None


def _licence(library: Library, network: Any) -> str:
    return (network.pretrained_cfg.get("license") or "") if library == "timm" else "bsd-3-clause"


# --- timm


def _made_by_timm(name: str, built: Built) -> nn.Module:
    network: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, **built.arguments())
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    for changed, epsilon in ((norms, built.epsilon), (norms[-1:], built.last_epsilon)):
        for norm in changed if epsilon is not None else ():
            norm.eps = cast(float, epsilon)
    return network


def _known_to_timm(name: str, network: Any) -> tuple[tuple[float, float, float], tuple[float, float, float], InputSpec]:
    config = importlib.import_module("timm.data").resolve_data_config({}, model=network)
    height, width = config["input_size"][-2:]
    if config["input_size"][0] != 3 or height != width:
        raise WeightsError(
            f"timm:{name} takes images of {config['input_size']}; only square ones of 3 channels are possible."
        )
    mean, std = (cast(tuple[float, float, float], tuple(map(float, config[key]))) for key in ("mean", "std"))
    squash = config.get("crop_mode") == "squash"
    return (
        mean,
        std,
        InputSpec(
            size=height,
            mode="square" if squash else "aspect",
            crop_pct=1.0 if squash else float(config["crop_pct"]),
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        ),
    )


def _timm_taps(where: str, network: Any, size: int) -> tuple[str, ...]:
    """timm's networks tell their maps themselves, by number (`forward_intermediates`)."""
    if not hasattr(network, "forward_intermediates"):
        raise WeightsError(f"{where} cannot be used as a backbone: timm cannot tell its stages.")
    with torch.no_grad():
        last, maps = network.forward_intermediates(torch.zeros(1, 3, size, size))
    if not isinstance(last, Tensor):
        raise WeightsError(f"{where} cannot be used as a backbone: it has several last maps.")
    kept = _some(len(maps))
    if maps[kept[-1]].shape[1] == _as_map(last).shape[1]:
        kept = kept[:-1]  # the last map as the classifier sees it takes its place
    return tuple(map(str, kept))


def _some(count: int) -> list[int]:
    """Which of so many maps are looked at."""
    return [*range(count)] if count <= MANY else [math.ceil(count * quarter / 4) - 1 for quarter in (1, 2, 3, 4)]


def _run_timm(
    network: nn.Module, images: Tensor, stages: Collection[int], *, taps: tuple[int, ...]
) -> tuple[Tensor, Mapping[int, Tensor]]:
    theirs: Any = network
    wanted = [stage for stage in sorted(stages) if stage < len(taps)]
    found: dict[int, Tensor] = {}
    if wanted:
        last, maps = theirs.forward_intermediates(images, indices=[taps[stage] for stage in wanted])
        found = dict(zip(wanted, maps, strict=True))
    else:
        last = theirs.forward_features(images)
    if len(taps) in stages:
        found[len(taps)] = _as_map(last)
    return theirs.forward_head(last, pre_logits=True), found


# --- torchvision


def _known_to_torchvision(
    name: str, network: nn.Module
) -> tuple[tuple[float, float, float], tuple[float, float, float], InputSpec]:
    preset = importlib.import_module("torchvision.models").get_model_weights(name).DEFAULT.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    mean, std = (cast(tuple[float, float, float], tuple(map(float, values))) for values in (preset.mean, preset.std))
    return (
        mean,
        std,
        InputSpec(
            size=crop,
            mode="aspect",
            crop_pct=min(1.0, math.nextafter(crop / resize, 0)),
            interpolation="bilinear" if preset.interpolation.value == "bilinear" else "bicubic",
        ),
    )


def _last_linear(network: nn.Module) -> str:
    """The name of the classifier."""
    linear = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    if not linear:
        raise WeightsError("its classifier is not a linear layer")
    return linear[-1]


def _torchvision_taps(where: str, network: Any, size: int) -> tuple[str, ...]:
    """The modules at whose ends the stages of a torchvision network end."""
    if hasattr(network, "aux_logits"):
        raise WeightsError(f"{where} cannot be used as a backbone: it has classifiers in its middle.")
    for names in (
        ("layer1", "layer2", "layer3", "layer4"),
        ("stage2", "stage3", "stage4", "conv5"),
        tuple(f"trunk_output.block{number}" for number in (1, 2, 3, 4)),
        ("blocks.0", "blocks.1", "blocks.2", "blocks.3"),
    ):
        if all(_has(network, name) for name in names):
            return names
    if _has(network, "encoder.layers"):
        layers = [f"encoder.layers.{name}" for name, _ in network.encoder.layers.named_children()]
        return (*(layers[index] for index in _some(len(layers))[:-1]), "encoder.ln")
    for name in ("features", "layers"):
        if _has(network, name) and isinstance(getattr(network, name), nn.Sequential):
            return tuple(f"{name}.{child}" for child in _ends(getattr(network, name), size))
    raise WeightsError(f"{where} cannot be used as a backbone: its stages are not known.")


def _run_torchvision(
    network: nn.Module, images: Tensor, stages: Collection[int]
) -> tuple[Tensor, Mapping[int, Tensor]]:
    found = network(images)
    return found["pooled"], {stage: _as_map(found[str(stage)]) for stage in stages if str(stage) in found}


def _has(network: nn.Module, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True


@torch.no_grad()
def _ends(layers: nn.Sequential, size: int) -> list[str]:
    """The children of a chain of layers after which the map becomes smaller, and the last one."""
    x, sides = torch.zeros(1, 3, size, size), {}
    for name, child in layers.named_children():
        x = child(x)
        sides[name] = _as_map(x).shape[2]
    names = list(sides)
    return [name for name, following in zip(names, names[1:], strict=False) if sides[following] < sides[name]] + names[
        -1:
    ]


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
