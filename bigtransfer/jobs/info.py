"""`bit info`: one model's card, for people."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigtransfer import backends, catalog, fetch, hyperrule, settings
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.config import InfoConfig
from bigtransfer.terminal import json_line, line

_WIDTH = 100


def run(config: InfoConfig) -> None:
    record = catalog.meant(config.model)
    if record is not None and fetch.local(record) is None:
        card = record.full_card()
    elif record is None and backends.is_exported(config.model):
        card = backends.describe(config.model)
    else:
        from bigtransfer import weights  # loads torch, which takes seconds and only reading files needs

        card = weights.describe(config.model, whole=True)
    if config.json:
        record = json.loads(card.to_json()) | {"num_parameters": card.num_parameters}
        print(json_line(record, sys.stdout, indent=1))
        return
    print(line(card.name))
    lines = [(line(title), text) for title, text in _lines(card, config.model)]
    indent = max(len(title) for title, _ in lines) + 4
    for title, text in lines:
        print(
            textwrap.fill(
                line(text),
                _WIDTH,
                initial_indent=f"  {title}".ljust(indent),
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def _lines(card: ModelCard, model: str) -> Iterator[tuple[str, str]]:
    yield from facts(card)
    record = catalog.meant(model)
    if record is None:
        path = Path(model)
        if os.path.isfile(path):
            yield "file", f"{path} ({path.stat().st_size / 1e6:,.1f} MB)"
        return
    if record.aliases:
        yield "also called", ", ".join(record.aliases)
    place = fetch.location(record)
    if place == "cached":
        yield "weights", "downloaded, in " + str(settings.cache_folder())
    else:
        yield (
            "weights",
            {"bundled": "part of this package", "missing": "missing here"}.get(
                place, f"downloaded on first use, into {settings.cache_folder()}"
            ),
        )


def facts(card: ModelCard) -> Iterator[tuple[str, str]]:
    """What is known of a model wherever it lies, in titles and words."""
    yield "architecture", _detector(card) + _architecture(card.architecture)
    yield "parameters", f"{card.num_parameters:,} ({card.num_parameters * 4 / 1e6:,.0f} MB in float32)"
    yield "classes", _classes(card)
    yield "input", _input(card.input, card.architecture.in_chans, card.architecture.backbone is not None)
    if (found := card.calibrated) is not None:
        yield (
            "probabilities",
            f"logits divided by {found.temperature:.3g} (in the head already), by {found.images:,} images: calibration error there "
            f"{found.ece[0]:.1%} before, {found.ece[1]:.1%} since",
        )
    if card.upstream:
        yield "trained on", card.upstream
    yield from measured(card)
    if card.recipe:
        yield "recipe", ", ".join(_recipe(card.recipe))
    yield "licence", card.licence or "not stated"
    if card.source:
        yield "source", card.source


def measured(card: ModelCard) -> Iterator[tuple[str, str]]:
    """The card's metrics in words."""
    for name, value in card.metrics.items():
        if (top := re.search(r"top[-_ ]?(\d+)", name)) and 0 < card.num_classes <= int(top[1]):
            continue  # as many guesses as classes: always right
        yield name.replace("/", " ").replace("_", " "), f"{value:.2%}" if _is_share(name, value) else f"{value:g}"


def _detector(card: ModelCard) -> str:
    """What a detector has around its network; "" of a classifier."""
    if card.detector is None:
        return ""
    smallest = card.detector.anchor_scale * 8
    return f"a detector, RetinaNet of {card.detector.channels} channels with anchors from {smallest:g} px on, made of "


def _architecture(arch: Architecture) -> str:
    if arch.backbone is not None:
        own = arch.backbone
        return (
            f"{own.name} of {own.library} {own.version}, {len(own.stages)} stages, {arch.num_features:,} features{_readout(arch.readout)}"
            + ("" if arch.beside is None else f", beside {_architecture(arch.beside)}")
        )
    known = arch.name
    norm = {"gn": "GroupNorm", "bn": "BatchNorm"}[arch.norm]
    standardized = "with" if arch.weight_standardization else "without"
    return (
        f"{known}{': ' if known else ''}{'-'.join(map(str, arch.units))} residual units, width x{arch.width}, {norm} "
        f"{standardized} weight standardization, {arch.num_features:,} features{_readout(arch.readout)}"
        + ("" if arch.beside is None else f", beside {_architecture(arch.beside)}")
    )


def _readout(readout: Readout | None) -> str:
    if readout is None:
        return ""
    sizes = f" of the image at {', '.join(map(str, readout.sizes))} px" if readout.sizes else ""
    blocks = ", ".join(str(block + 1) for block in readout.blocks)
    mirrored = ", mirrored too" if readout.mirrored else ""
    return f": means{' and maxima' if readout.maxima else ''} of block{'s' if len(readout.blocks) > 1 else ''} {blocks}{sizes}{mirrored}"


def _classes(card: ModelCard) -> str:
    if not card.num_classes:
        return "none: the network gives features"
    if card.multi_label:
        return f"{_named_classes(card)} (an image may have several)"
    return _named_classes(card)


def _named_classes(card: ModelCard) -> str:
    if not card.class_names:
        return f"{card.num_classes:,} (names unknown)"
    shown, names = 6, card.class_names
    if len(names) <= shown + 1:
        return f"{card.num_classes:,}: {'; '.join(names)}"
    return f"{card.num_classes:,}: {'; '.join(names[:shown])}; ... {names[-1]}"


def _input(spec: InputSpec, channels: int, foreign: bool = False) -> str:
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    if spec.mode == "square":
        how = f"both sides resized to {spec.size}, whatever the aspect ratio"
    elif spec.mode == "fit":
        how = f"longer side resized to {spec.size}, the rest grey"
    else:
        short = spec.resized
        how = f"shorter side resized to {short}, then the centre {spec.size} x {spec.size}"
    antialias = "" if spec.antialias else ", without antialiasing"
    scale = "" if foreign else " in [-1, 1]"
    exact = ", decoded whole" if spec.decoder == "exact" and spec.antialias else ""
    return f"{spec.size} x {spec.size} px, {colour}{scale}; {how} ({spec.interpolation}{antialias}{exact})"


def _recipe(recipe: Mapping[str, Any]) -> Iterator[str]:
    for key, value in hyperrule.in_effect(recipe).items():
        shown = (
            " ".join(map(str, value))
            if isinstance(value, (list, tuple))
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        yield f"{key.replace('_', ' ')} {shown}"


def _is_share(name: str, value: float) -> bool:
    return 0 <= value <= 1 and (any(word in name for word in _SHARES) or re.search(r"_ap(\d+|_|$)", name) is not None)


_SHARES = ("top", "accuracy", "ece", "mean_per_class", "map", "f1", "exact", "precision", "recall")
"""Parts of the names of metrics that are shares."""
