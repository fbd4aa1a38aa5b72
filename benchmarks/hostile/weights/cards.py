"""Model cards inside model files, every field of every wrong type; and config.json of timm's and transformers' folders."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer.catalog import ARCHITECTURES, InputSpec, ModelCard
from bigtransfer.weights import configs

from .. import jsons
from ..cases import Case
from ..models import CLASSES, card
from .tensors import header, write

_SIZES = (0, -5, "48", 3.7, 1, 7, 10**5, 10**9, None, True, [16, 16], 2**63, 224.0, float("nan"))


def fields(rng: Random, folder: Path) -> Case:
    """One or two fields of the card are something else; the tensors are whole."""
    head, size = header()
    record = jsons.spoiled(rng, json.loads(card().to_json()))
    head["__metadata__"] = {"bigtransfer": json.dumps(record)}
    return Case(write(folder / "model.safetensors", head, size), {"used": True})


def ranges(rng: Random, folder: Path) -> Case:
    """Values of the right type out of range, and names that mislead."""
    head, size = header()
    record: dict[str, Any] = json.loads(card(rng.choice(("square", "aspect"))).to_json())
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(9):
            case 0:
                record["input"]["size"] = rng.choice(_SIZES)
            case 1:
                record["input"]["crop_pct"] = rng.choice((0, -1, 1e-9, 2.0, "1", None, float("inf"), 1e300))
            case 2:
                record["input"][rng.choice(("mode", "interpolation", "antialias"))] = rng.choice(
                    ("x", "", None, 1, "lanczos", [], "SQUARE")
                )
            case 3:
                names = rng.choice(
                    (
                        ["a", "b"],
                        ["a"] * 3,
                        [1, 2, 3],
                        [None] * 3,
                        [[], [], []],
                        "abc",
                        {},
                        [jsons.ESCAPES, "=1+1", "a\nb"],
                        ["x" * 100_000, "b", "c"],
                        ["a", "b", "\ud800"],
                        ["", " ", "c"],
                    )
                )
                record["class_names"] = names
            case 4:
                record["num_classes"] = rng.choice((0, 2, 4, -1, "3", 3.0, None, 10**9, True))
            case 5:
                record["architecture"]["units"] = rng.choice(
                    (
                        [],
                        [1],
                        [1, 1, 1],
                        [1, 1, 1, 2],
                        [1, 1, 1, 1, 1],
                        [0, 1, 1, 1],
                        [-1, 1, 1, 1],
                        [1.0, 1, 1, 1],
                        ["1"] * 4,
                        [10**9] * 4,
                        [[1]] * 4,
                        "1111",
                        [10**5, 1, 1, 1],
                    )
                )
            case 6:
                record["architecture"][rng.choice(("width", "in_chans", "norm", "weight_standardization"))] = (
                    rng.choice((0, -1, 2, 10**6, "1", None, "bn", "gn", 1.5, False, [], 4, 2**40))
                )
            case 7:
                record[rng.choice(("name", "licence", "source", "upstream"))] = rng.choice(jsons.TEXTS)
            case _:
                record[rng.choice(("metrics", "recipe"))] = jsons.spoiled(
                    rng, {"steps": 10, "test_top1": 0.5, "schedule": [1, 2]}, most=3
                )
    head["__metadata__"] = {"bigtransfer": json.dumps(record)}
    return Case(write(folder / "model.safetensors", head, size), {"used": True})


# --- timm's and transformers' folders


@functools.cache
def _written(form: str, scratch: str) -> dict[str, bytes]:
    folder = Path(scratch) / f"form-{form}"
    known = ModelCard(
        name="x",
        architecture=ARCHITECTURES["r50x1"],
        num_classes=3,
        input=InputSpec(size=224, mode="aspect", crop_pct=0.875),
        class_names=CLASSES,
        licence="mit",
    )
    folder.mkdir(exist_ok=True)
    (configs.write_timm if form == "timm" else configs.write_transformers)(folder, known)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def configs_(rng: Random, folder: Path) -> Case:
    """config.json and preprocessor_config.json with other values, other types, other encodings; or what is no file."""
    form = rng.choice(("timm", "transformers"))
    target = folder / "model"
    target.mkdir()
    head, size = header(form, with_card=False)
    write(target / "model.safetensors", head, size)
    for name, content in _written(form, str(folder.parent)).items():
        record = json.loads(content)
        data = json.dumps(record).encode()
        if rng.random() < 0.7:
            data = jsons.text(rng, jsons.spoiled(rng, record, most=3))
        (target / name).write_bytes(data)
    if rng.random() < 0.2:
        name = rng.choice(("config.json", "preprocessor_config.json"))
        (target / name).unlink(missing_ok=True)
        match rng.randrange(5):
            case 0:
                (target / name).mkdir()
            case 1:
                os.mkfifo(target / name)
            case 2:
                (target / name).symlink_to(target / name)
            case 3:
                (target / name).symlink_to("/dev/zero")
            case _:
                with open(target / name, "wb") as file:
                    file.truncate(5 << 30)
    return Case(target, {"used": rng.random() < 0.3})


def inputs(rng: Random, folder: Path) -> Case:
    """The fields that say how the input is made, one by one."""
    form = rng.choice(("timm", "transformers"))
    target = folder / "model"
    target.mkdir()
    head, size = header(form, with_card=False)
    write(target / "model.safetensors", head, size)
    files = {name: json.loads(content) for name, content in _written(form, str(folder.parent)).items()}
    number = rng.choice(
        (*_SIZES, {"height": 5}, {"shortest_edge": "x"}, {"shortest_edge": -1}, {"height": 3, "width": None}, [])
    )
    if form == "timm":
        inner = files["config.json"]["pretrained_cfg"]
        match rng.randrange(6):
            case 0:
                inner["input_size"] = rng.choice(([3, number, number], number, [], [3], "3,224,224", {"0": 3}))
            case 1:
                inner[rng.choice(("mean", "std"))] = rng.choice(
                    (number, [0.5, "x", 0.5], [0.485, 0.456, 0.406], "0.5", [None] * 3, [[0.5]] * 3)
                )
            case 2:
                inner["crop_pct"] = number
            case 3:
                files["config.json"]["label_names"] = rng.choice(
                    (number, "abc", {"0": "a"}, [1, 2, 3], [None, 1, []], [jsons.ESCAPES, "b", "c"], ["a", "b"])
                )
            case 4:
                inner[rng.choice(("license", "interpolation", "crop_mode"))] = jsons.value(rng)
            case _:
                files["config.json"]["pretrained_cfg"] = jsons.value(rng)
    else:
        config, processor = files["config.json"], files["preprocessor_config.json"]
        match rng.randrange(6):
            case 0:
                processor[rng.choice(("size", "crop_size"))] = number
            case 1:
                processor[rng.choice(("image_mean", "image_std"))] = rng.choice(
                    (number, [0.5, "x", 0.5], [0.4, 0.5, 0.6], "0.5", [None] * 3)
                )
            case 2:
                processor["resample"] = jsons.value(rng)
            case 3:
                config["id2label"] = rng.choice(
                    (
                        number,
                        ["a", "b", "c"],
                        {"0": 1, "1": [], "2": None},
                        {"0": jsons.ESCAPES, "1": "b", "2": "c"},
                        {"a": "b"},
                        {"1": "a"},
                    )
                )
            case 4:
                config[rng.choice(("model_type", "depths", "hidden_sizes", "num_channels", "layer_type"))] = (
                    jsons.value(rng)
                )
            case _:
                processor["do_center_crop"] = jsons.value(rng)
    for name, record in files.items():
        (target / name).write_text(json.dumps(record))
    return Case(target, {"used": True})


GENERATORS = {"card.fields": fields, "card.ranges": ranges, "folder.configs": configs_, "folder.inputs": inputs}
