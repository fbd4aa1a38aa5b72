"""timm's and torchvision's networks as backbones of ours: the same logits and features as the libraries' own code gives.

    python -m benchmarks.backbones [NAME ...] --out benchmarks/results/FILE.md

Of each network, with random weights whose norms and statistics are not those of a beginning: the library's own logits against ours, from a
file in the library's form through a model file of ours; the pooled features; and mean and maximum of each stage against the library's maps.
Then the latter as an ONNX file by onnxruntime, against ours by torch. Differences are relative to the largest number of the library's, or
of torch's.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.cells import commit
from bigtransfer import libraries, model, weights
from bigtransfer.backends import graph
from bigtransfer.catalog import Readout
from bigtransfer.errors import BitError
from bigtransfer.jobs import parity

_NAMES = """
timm:resnet18 timm:resnext50_32x4d timm:seresnet50 timm:regnety_004 timm:efficientnet_b0
timm:tf_efficientnet_lite0 timm:mobilenetv2_100 timm:mobilenetv3_small_100 timm:mobilenetv4_conv_small
timm:densenet121 timm:vgg11_bn timm:repvgg_a0 timm:ghostnet_100 timm:hrnet_w18_small timm:resnetv2_50x1_bit
timm:nfnet_l0 timm:inception_v3 timm:convnext_atto timm:convnextv2_atto timm:vit_tiny_patch16_224
timm:deit_tiny_distilled_patch16_224 timm:eva02_tiny_patch14_224 timm:beit_base_patch16_224
timm:swin_tiny_patch4_window7_224 timm:swinv2_tiny_window8_256 timm:mixer_s32_224 timm:resmlp_12_224
timm:poolformer_s12 timm:mobilevit_xxs timm:maxvit_tiny_tf_224 timm:xcit_nano_12_p16_224
timm:efficientformer_l1 timm:levit_128s timm:hiera_tiny_224 timm:pvt_v2_b0 timm:davit_tiny timm:mambaout_femto
timm:starnet_s1 timm:crossvit_tiny_240 torchvision:resnet18 torchvision:efficientnet_b0
torchvision:mobilenet_v3_small torchvision:convnext_tiny torchvision:swin_t torchvision:vit_b_16
torchvision:regnet_y_400mf torchvision:densenet121 torchvision:shufflenet_v2_x0_5 torchvision:mnasnet0_5
"""


@torch.no_grad()
def _randomized(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for part, low, high in (
            ("weight", 0.5, 1.5),
            ("running_var", 0.5, 1.5),
            ("bias", -0.3, 0.3),
            ("running_mean", -0.3, 0.3),
        ):
            tensor = getattr(module, part, None)
            if isinstance(tensor, Tensor) and tensor.ndim == 1:
                nn.init.uniform_(tensor, low, high)
    return network.eval()


def _error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _made(library: str, name: str) -> Any:
    torch.manual_seed(0)
    if library == "timm":
        import timm

        return _randomized(timm.create_model(name))
    from torchvision.models import get_model

    return _randomized(get_model(name, weights=None))


def _exported(network: model.Network) -> str:
    """How far an ONNX file's features are from torch's, or why there is none."""
    try:
        content = graph.onnx_model(network, input="uint8")
    except BitError as error:
        return f"no: {error}"
    size = network.card.input.size
    return f"{parity.compare(content, network, np.random.default_rng(1).integers(0, 256, (2, 3, size, size), dtype=np.uint8)).features:.1e}"


@torch.no_grad()
def compare(spec: str, folder: Path) -> str:
    """A row of the table."""
    library, name = spec.split(":")
    began, theirs = time.perf_counter(), _made(library, name)
    file = folder / "theirs.safetensors"
    safetensors.torch.save_file({key: value.clone() for key, value in theirs.state_dict().items()}, file)
    try:
        network = weights.load(f"{spec}@{file}")
    except BitError as error:
        return f"| {spec} | refused: {error} | | | | | | |"
    weights.save(folder / "ours.safetensors", network)
    network = weights.load(folder / "ours.safetensors")
    arch, size = network.architecture, network.card.input.size
    backbone = arch.backbone
    assert backbone is not None
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    x, y = pixels * 2 - 1, (pixels - mean) / std
    logits = "no classes" if not network.num_classes else f"{_error(network(x), theirs(y)):.1e}"
    whole = model.joined(network, Readout(blocks=tuple(range(len(arch.stages))))).eval()
    seen = whole.features(x)
    if library == "timm":
        last, maps = theirs.forward_intermediates(y)
        pooled = theirs.forward_head(last, pre_logits=True)
        found = [maps[int(tap)] for tap in backbone.taps]
        by_hand = [part for one in found for part in (one.mean((2, 3)), one.amax((2, 3)))] + [pooled]
        by_hand.append(libraries._as_map(last).amax((2, 3)))
    else:
        kept: dict[str, Tensor] = {}
        hooks = [
            theirs.get_submodule(tap).register_forward_hook(lambda _m, _i, out, tap=tap: kept.__setitem__(tap, out))
            for tap in backbone.taps
        ]
        inputs: list[Tensor] = []
        classifier = theirs.get_submodule(libraries._last_linear(theirs))
        hooks.append(classifier.register_forward_pre_hook(lambda _m, given: inputs.append(given[0])))
        theirs(y)
        for hook in hooks:
            hook.remove()
        pooled = inputs[0]
        found = [libraries._as_map(kept[tap]) for tap in backbone.taps]
        by_hand = [part for one in found[:-1] for part in (one.mean((2, 3)), one.amax((2, 3)))]
        by_hand += [pooled, found[-1].amax((2, 3))]
    features = _error(network.features(x), pooled)
    stages = _error(seen, torch.cat(by_hand, dim=1))
    kinds = [word for word, there in (("BatchNorm", backbone.batch_norm), ("patches", backbone.patches)) if there]
    return (
        f"| {spec} | {logits} | {features:.1e} | {stages:.1e} | {_exported(whole)} | {len(arch.stages)} | "
        f"{'any' if backbone.any_size else size} | "
        f"{', '.join(kinds)} |"
    ) + f" <!-- {time.perf_counter() - began:.0f} s -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=_NAMES.split())
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    import timm
    import torchvision

    head = "| network | logits | pooled features | stages | stages as ONNX | number of stages | sizes, px | has |\n"
    head += "|---|---|---|---|---|--:|--:|---|"
    rows = []
    for spec in asked.names:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(spec, Path(folder)))
        print(rows[-1], flush=True)
        asked.out.write_text(
            "# Networks of timm and torchvision as backbones: parity with the libraries' own code\n\n"
            "Largest difference of two random images, relative to the library's largest number; float32, random weights, with norms and "
            "statistics drawn\naway from where they begin; through a file in the library's form and a model file of ours. As ONNX: the "
            "stages by onnxruntime, relative to\nours by torch.\n\n"
            f"{head}\n" + "\n".join(row.split(" <!--")[0] for row in rows) + "\n\n"
            f"- command: `python -m benchmarks.backbones --out {asked.out}`\n"
            f"- {datetime.date.today()}; {platform.machine()}, {torch.get_num_threads()} thread; Python {platform.python_version()}, torch "
            f"{torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}; commit of the package {commit()}\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
