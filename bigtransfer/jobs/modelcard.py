"""A folder's README.md: what people, and the Hugging Face hub, want to know of the model in it (https://huggingface.co/docs/hub/model-cards).

Its numbers are those of the run that made the model. Of the data set it tells the last part of the name, as folders have names of their
owners' choice before that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from bigtransfer import runs
from bigtransfer.catalog import ModelCard
from bigtransfer.evals.record import Evaluation
from bigtransfer.jobs import info
from bigtransfer.outputs import atomic_write
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Pictures
from bigtransfer.report.sections import headline
from bigtransfer.terminal import line
from bigtransfer.weights import configs

Library = Literal["bit", "timm", "transformers"]

_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
)
"""The hub's names of licences; what is none of these it wants as "other", with a name."""
_FEW = 20
"""Test images of a class with which an accuracy says little: of twenty all right, it may still be 84 % (Wilson's interval, 95 %)."""


def write(folder: Path, source: str, card: ModelCard, library: Library) -> None:
    """Write the README.md of `folder`, which holds the model in the form of that library, atomically. source: the model that it was made
    of; if that is a run's, the run's numbers are told. RunError if the run's files have not the form they should."""
    run = _run(source)
    with atomic_write(folder / "README.md") as temporary:
        text = "\n".join(_lines(card, library, folder.resolve().name, run))
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _run(source: str) -> Contents | None:
    folder = runs.folder_of(source)
    own = (folder / "evaluation.json").is_file() and Path(source).name in (folder.name, "model.safetensors")
    return Contents.read(folder, Pictures([])) if own else None


def _lines(card: ModelCard, library: Library, name: str, run: Contents | None) -> Iterator[str]:
    yield from ("---", *_front(card, library, name, run), "---", "")
    kind = "An image classifier" if card.num_classes else "Features of images"
    network = "a network of [Big Transfer (BiT)](https://arxiv.org/abs/1912.11370)"
    if card.architecture.backbone is not None:
        network = f"{_text(card.architecture.name)}, adapted as [Big Transfer](https://arxiv.org/abs/1912.11370) does"
    yield from (f"# {_text(name)}", "", f"{kind}: {network}.")
    yield from ("", "## What it is", "", "| | |", "|---|---|")
    elsewhere = {title for title, _ in info.measured(card)}
    for title, text in info.facts(card):
        if title not in elsewhere and not (title == "source" and Path(text).is_absolute()):
            yield f"| {_text(title)} | {_text(text)} |"
    if card.class_names:
        yield from ("", "Its classes, in the order of its outputs:", "", ", ".join(map(_text, card.class_names)))
    yield from ("", "## How good it is", "", *_measured(card, run))
    yield from ("", "## Limits", "", *(f"- {text}" for text in _limits(card, library, run)))
    yield from ("", "## How to use it", "", *_use(card, library))


def _front(card: ModelCard, library: Library, name: str, run: Contents | None) -> Iterator[str]:
    """What machines read: YAML, whose values are JSON, which YAML includes."""
    licence = card.licence.lower()
    task = "image-classification" if card.num_classes else "image-feature-extraction"
    tags = ["bit", "big-transfer", "bigtransfer", "resnet", *(["timm"] if library == "timm" else [])]
    front: dict[str, Any] = {
        "library_name": "bigtransfer" if library == "bit" else library,
        "pipeline_tag": task,
        "tags": [task, *tags],
    }
    if licence in _LICENCES:
        front["license"] = licence
    elif licence:
        front |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence).strip("-")}
    data = run.config.asked.get("data") if run and run.config else None
    if isinstance(data, str) and re.fullmatch(r"hf:[\w.-]+/[\w.-]+", data):
        front["datasets"] = [data.removeprefix("hf:")]
    found = run.evaluation or run.labels if run else None
    if found is not None and found.images:
        told = _numbers(found)
        front["metrics"] = sorted({kind for kind, _, _ in told})
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": _last(found.data) or "images", "type": "imagefolder", "split": found.split},
                        "metrics": [{"type": kind, "name": what, "value": value} for kind, what, value in told],
                    }
                ],
            }
        ]
    for key, value in front.items():
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _numbers(found: Any) -> list[tuple[str, str, float]]:
    """The hub's name of a metric, ours, and its value, of an evaluation; without what is undefined."""
    if isinstance(found, Evaluation):
        numbers = (
            ("accuracy", "top-1 accuracy", found.top1),
            ("recall", "mean of the classes' accuracies", found.mean_per_class),
            ("expected_calibration_error", "calibration error", found.ece),
        )
    else:
        numbers = (
            ("mean_average_precision", "mean average precision", found.map),
            ("f1", "F1 of all labels", found.micro_f1),
            ("exact_match", "images with all of their labels and no other", found.exact),
        )
    return [(kind, what, value) for kind, what, value in numbers if value is not None]


def _measured(card: ModelCard, run: Contents | None) -> Iterator[str]:
    found = run.evaluation or run.labels if run else None
    if run is None or found is None or not found.images:
        numbers = list(info.measured(card))
        if not numbers:
            yield "Nothing is known of that: it was not measured by what made this folder."
            return
        yield from ("| | |", "|---|---|", *(f"| {_text(title)} | {text} |" for title, text in numbers))
        return
    part = {"test": "test images", "val": "validation images", "train": "**training** images"}.get(
        found.split, f"images ({_text(found.split)})"
    )
    yield f"On {found.images:,} {part} of {_text(_last(found.data) or 'the data set')}:"
    yield from ("", "| | |", "|---|---|")
    for kind, what, value in _numbers(found):
        interval = ""
        if isinstance(found, Evaluation) and kind == "accuracy":
            interval = " (95 % interval {:.1%} to {:.1%})".format(*found.top1_interval)
        yield f"| {what} | {value:.1%}{interval} |"
    yield ""
    yield " ".join(_chosen(found.split, run))
    if isinstance(found, Evaluation):
        rows = sorted((row.recall, row.name, row.support) for row in found.per_class if row.recall not in (None, 1))
        if rows:
            yield from ("", "The classes that it finds least often:", "", "| class | found | images |", "|---|--:|--:|")
            yield from (f"| {_text(one)} | {recall:.1%} | {images:,} |" for recall, one, images in rows[:5])


def _chosen(split: str, run: Contents) -> Iterator[str]:
    """By which images what could be chosen was chosen, and whether they are those that it was measured on."""
    closed, choice = run.closed, run.choice
    steps = run.config.recipe.steps if run.config and run.config.recipe else 0
    if choice is not None:
        others = ", ".join(one.kind for one in choice.candidates if one.kind != choice.delivered)
        yield f"Delivered is the {choice.delivered}, chosen among itself and {others} on {choice.images:,} validation images."
    elif closed is not None and not steps:
        yield "What the classifier sees of the network was chosen by leave-one-out on the training images alone."
    elif split != "val" and any(logged.best is not None for logged in run.metrics):
        yield "The weights are those of the best validation, on images that are neither trained on nor measured here."
    if split == "test":
        yield "The test images had no part in learning or choosing."
    elif split == "val" and (choice is not None or steps):
        yield "**These are the images that it was chosen by as well, so that the numbers are a little better than the truth.**"


def _limits(card: ModelCard, library: Library, run: Contents | None) -> Iterator[str]:
    if card.num_classes and not card.multi_label:
        yield "It knows its classes only: an image of anything else gets one of them too, often with a high probability."
    yield (
        "The numbers hold for images like those that it was measured on. With another camera, place or way of choosing "
        "images it may be much worse: measure it on some of yours."
    )
    head = headline.compute(run) if run else None
    if run and run.evaluation is not None:
        few = [row for row in run.evaluation.per_class if row.support < _FEW]
        if few:
            yield (
                f"Of {len(few):,} of its {len(run.evaluation.per_class):,} classes fewer than {_FEW} images were measured, so that "
                "their own numbers say little."
            )
    if head and head.given_away:
        yield f"Something besides what they show may give the training images' classes away: {_text(head.given_away)}"
    found = head and (head.evaluated or head.labelled)
    if found and found.trained_on:
        yield f"{found.trained_on:,} of the images that it was measured on are among the training images too."
    if card.calibrated is None and card.num_classes:
        yield "Its probabilities were not calibrated."
    if library == "timm" and configs.timm_name(card.architecture) is None:
        yield (
            "timm has no name for this architecture: the file holds kernels that are standardized already, for plain convolutions. "
            "The answers are the same; trained further so, it is no Big Transfer network."
        )
    if not card.licence:
        yield "Its licence is not known to what made this folder."


def _use(card: ModelCard, library: Library) -> Iterator[str]:
    """Code for a folder that lies on the hub as USER/NAME."""
    yield from ("USER/NAME is where this folder lies on the hub.", "")
    if library == "timm":
        probabilities = "sigmoid()" if card.multi_label else "softmax(-1)"
        yield from (
            "```python",
            "import timm, torch",
            "from PIL import Image",
            "",
            'network = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
            'image = transform(Image.open("photo.jpg").convert("RGB"))[None]',
            "with torch.inference_mode():",
            f"    probabilities = network(image).{probabilities}[0]",
        )
        if card.class_names:
            yield 'print(dict(zip(network.pretrained_cfg["label_names"], probabilities.tolist())))'
        yield from ("```", "")
    elif library == "transformers" and card.num_classes:
        yield from (
            "```python",
            "from transformers import pipeline",
            "",
            'print(pipeline("image-classification", model="USER/NAME")("photo.jpg"))',
            "```",
            "",
        )
    yield from ("With bigtransfer, which made this folder:", "", "```", "bit predict hf-hub:USER/NAME photo.jpg", "```")


def _last(data: str) -> str:
    return Path(data).name or data


def _text(text: str) -> str:
    """Text that others chose, in a line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~&])", r"\\\1", line(text))
