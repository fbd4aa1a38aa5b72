"""`bit convert`: a model from any published form into another, read back before it counts as done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer import files, outputs, page, weights
from bigtransfer.backends import graph
from bigtransfer.catalog import ModelCard
from bigtransfer.config import ConvertConfig
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.jobs import int8, modelcard, parity
from bigtransfer.model import Network
from bigtransfer.weights import configs

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector


def run(config: ConvertConfig) -> None:
    destination = Path(config.destination)
    if destination.exists() and not config.overwrite and not (destination.is_dir() and not any(destination.iterdir())):
        raise ConfigError(f"{destination} exists already. Choose another destination, or pass --overwrite.")
    detector = None
    if weights.is_detector(config.source):
        _refuse(config)
        detector = weights.load_detector(config.source)
    network = weights.load(config.source, offline=config.offline or None) if detector is None else detector.body
    card = network.card if detector is None else detector.card
    print(f"{config.source}: {card.name}, {card.num_parameters:,} parameters, {card.num_classes:,} classes", flush=True)
    if destination.is_file() == config.is_folder and destination.exists():
        raise ConfigError(
            f"{destination} is a {'file' if destination.is_file() else 'folder'} already; remove it first."
        )
    if detector is not None:
        _export_detector(config, detector, destination)
        return
    if config.to in ("onnx", "web"):
        _export(config, network, destination)
        return
    assert config.dtype != "int8"  # which the configuration allows exported networks only
    weights.export(destination, network, config.to, dtype=config.dtype)
    if config.is_folder:
        assert config.to in ("bit", "timm", "transformers")
        modelcard.write(destination, config.source, card, config.to)

    if different := weights.differing(destination, network, config.to, config.dtype):
        raise WeightsError(
            f"{destination} does not hold what was written to it ({different[0]} differs). Is the disk sound?"
        )
    count = len(network.state_dict())
    print(f"{destination}: {_size(destination)} in {config.to} form, all {count} tensors read back and identical")
    if (config.to in ("npz", "torch") or destination.suffix in (".pth", ".pt", ".bin", ".tar")) and card.class_names:
        print("This form has no place for the class names and the input size; keep the source for them.")
    if note := _use(config, card.num_classes, configs.timm_name(card.architecture)):
        print(f"Use it:\n  {note}")
    if config.is_folder:
        print(
            f"Share it, once you have read and completed what {destination / 'README.md'} says of it:\n"
            f"  hf upload USER/{destination.resolve().name} {config.destination}"
        )


def _refuse(config: ConvertConfig) -> None:
    """ConfigError for what a detector is not converted to."""
    only = f"{config.source} is a detector, which is converted by --to onnx only, in float32 or float16"
    if config.to == "web":
        raise ConfigError(
            f"{only}: the page of --to web classifies. `bit serve {config.source}` has one that draws boxes, and computes on this machine."
        )
    if config.to != "onnx":
        raise ConfigError(f"{only}: no other program reads its form.")
    if config.dtype == "int8":
        raise ConfigError(
            f"{only}: what 8 bits cost is measured in accuracy, which boxes do not have. --dtype float16 halves the file."
        )


def _export(config: ConvertConfig, network: Network, destination: Path) -> None:
    """The network as an ONNX file or as a page with it inside, once its answers are those of the network."""
    card = network.card
    web = None
    if config.to == "web":  # what is missing is said before anything is computed
        page.check(card)
        web = page.runtime(config.runtime, no_network=config.offline or None)
    pixels, where = parity.images(config.images, config.source, card)
    dtype = "float16" if config.dtype == "float16" else "float32"
    pixels_in = web or config.dtype == "int8" or config.input == "uint8"
    content = graph.onnx_model(network, input="uint8" if pixels_in else "float32", dtype=dtype)
    found = parity.compare(content, network, pixels, parity.TOLERANCES[dtype])
    print(f"{len(pixels)} images of {where}, computed by onnxruntime and by torch in float32:\n  {found}", flush=True)
    found.check()
    if config.dtype == "int8":
        content, told = int8.quantized(content, card, config.source, config.images)
        print(f"int8: {told}", flush=True)
    _write(destination, page.alone(content, card, web).encode() if web else content)
    if web:
        print(
            f"{destination}: {_size(destination)}, a page with the network and onnxruntime-web {page.VERSION} inside; it asks nobody"
        )
        print(f"Use it:\n  open {destination} in a browser (also from a memory stick, by e-mail, or on any web server)")
        return
    sides = f"{card.input.size}, {card.input.size}" if graph.of_one_size(card) else "height, width"
    _told(destination, card, sides, bool(pixels_in))
    print(f"Use it:\n  bit predict {config.destination} IMAGES")


def _export_detector(config: ConvertConfig, detector: Detector, destination: Path) -> None:
    """The same of a detector; its boxes are made of what the file gives by `objects.chosen`."""
    card = detector.card
    pixels, where = parity.images(config.images, config.source, card)
    dtype = "float16" if config.dtype == "float16" else "float32"
    content = graph.onnx_detector(detector, input=config.input or "float32", dtype=dtype)
    found = parity.compare_boxes(content, detector, pixels, parity.TOLERANCES[dtype])
    print(f"{len(pixels)} images of {where}, computed by onnxruntime and by torch in float32:\n  {found}", flush=True)
    found.check()
    _write(destination, content)
    _told(destination, card, f"{card.input.size}, {card.input.size}", config.input == "uint8")
    print(f"Use it:\n  bit detect predict {config.destination} IMAGES")


def _write(destination: Path, content: bytes) -> None:
    with outputs.atomic_write(destination) as temporary:
        temporary.write_bytes(content)
    if files.read(destination, "exported_bytes") != content:
        raise WeightsError(f"{destination} does not hold what was written to it. Is the disk sound?")


def _told(destination: Path, card: ModelCard, sides: str, pixels: bool) -> None:
    taken = "uint8 pixels" if pixels else "float32 in [-1, 1]"
    print(
        f"{destination}: {_size(destination)}, ONNX with operators of version {graph.OPSET}; takes RGB (batch, "
        f"{card.architecture.in_chans}, {sides}), {taken}"
    )


def _size(path: Path) -> str:
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def _use(config: ConvertConfig, num_classes: int, timm_name: str | None) -> str:
    where = config.destination
    if config.to == "bit":
        return f"bit predict {where} IMAGES"
    if config.to == "transformers":
        return f'transformers.AutoModelForImageClassification.from_pretrained("{where}")'
    if config.to == "timm" and config.is_folder:
        return f'timm.create_model("local-dir:{where}", pretrained=True)'
    if config.to == "timm" and timm_name:
        return f'timm.create_model("{timm_name}", checkpoint_path="{where}", num_classes={num_classes})'
    return ""
