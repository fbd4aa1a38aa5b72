"""`bit shard --raw`: pixels as a model takes them, the same as decoded on the fly, and for no other input."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import cli, weights
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.data import index, native_size, open_dataset
from bigtransfer.errors import DataError, ImageError
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Predictor

from .data_makers import pattern

SPECS = [
    InputSpec(size=24),
    InputSpec(size=24, decoder="exact"),
    InputSpec(size=20, mode="aspect", crop_pct=0.875, interpolation="bicubic"),
    InputSpec(size=20, antialias=False),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files large enough to be decoded at a smaller scale, and PNG files, wide and high, one of them grey."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(9):
        folder = root / ("ant", "bee")[i % 2]
        folder.mkdir(exist_ok=True)
        picture = Image.fromarray(pattern(150 + 40 * i, 390 - 30 * i, i))
        if i == 4:
            picture = picture.convert("L")
        picture.save(folder / f"{i}.{('jpg', 'png')[i % 3 == 2]}", **({"quality": 90} if i % 3 != 2 else {}))
    return root


def model(path: Path, spec: InputSpec, channels: int = 3) -> Path:
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 2, in_chans=channels)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    network.card = ModelCard(
        name="tiny", architecture=network.architecture, num_classes=2, input=spec, class_names=("ant", "bee")
    )
    weights.save(path, network)
    return path


def shard(*arguments: object) -> int:
    return cli.main(["shard", *map(str, arguments)])


@pytest.fixture(scope="module")
def raw(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first spec, in three shards."""
    out = tmp_path_factory.mktemp("raw") / "shards"
    assert shard(photos, out, "--raw", "24", "--shard-images", "4") == 0
    return out


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_same_pixels(photos: Path, tmp_path: Path, spec: InputSpec, channels: int) -> None:
    if channels == 1 and spec is not SPECS[0]:
        pytest.skip("grey once is enough")
    given = model(tmp_path / "model.safetensors", spec, channels)
    assert shard(photos, tmp_path / "raw", "--raw", given, "--no-shuffle") == 0
    on_the_fly, stored = (open_dataset(place, channels=channels).train for place in (photos, tmp_path / "raw"))
    assert len(stored) == 9 and stored.class_names == on_the_fly.class_names
    assert stored.labels is not None and on_the_fly.labels is not None
    for i in range(9):
        expected, found = on_the_fly.read(i, spec), stored.read(i, spec)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        assert stored.size(i) == on_the_fly.size(i) and stored.labels[i] == on_the_fly.labels[i]
    found = stored.read(0, spec)
    found[:] = 0  # is its reader's, like all pixels
    assert stored.read(0, spec).any()


def test_answers_and_training_are_the_same(photos: Path, raw: Path, tmp_path: Path) -> None:
    given = model(tmp_path / "model.safetensors", SPECS[0])
    predictor = Predictor.load(given, device="cpu", precision="fp32")
    numbers = {}
    for name, place in (("photos", photos), ("raw", raw)):
        out = tmp_path / f"{name}.json"
        assert (
            cli.main(["evaluate", str(given), str(place), "--json", str(out), "--device", "cpu", "--batch-size", "1"])
            == 0
        )
        record = json.loads(out.read_text())
        numbers[name] = {key: record[key] for key in ("top1", "nll", "ece")}
    assert numbers["photos"] == pytest.approx(numbers["raw"], rel=1e-12)
    assert len(predictor.predict(open_dataset(raw).train)) == 9
    # The rule looks at the size of the originals, not at that of the records.
    assert native_size(open_dataset(raw).train) == native_size(open_dataset(photos).train)


def test_another_input_is_refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = open_dataset(raw).train
    for changes in (
        {"size": 25},
        {"decoder": "exact"},
        {"interpolation": "bicubic"},
        {"antialias": False},
        {"mode": "aspect"},
    ):
        with pytest.raises(DataError, match="holds raw pixels for an input of 24 x 24 px") as refused:
            stored.read(0, dataclasses.replace(SPECS[0], **changes))
        assert not isinstance(refused.value, ImageError), "no image that could be skipped"
    with pytest.raises(DataError, match="wanted is images of 1 channels"):
        open_dataset(raw, channels=1).train.read(0)
    other = model(tmp_path / "other.safetensors", InputSpec(size=32))
    assert cli.main(["evaluate", str(other), str(raw), "--device", "cpu", "--skip-bad-images"]) == 2
    assert "wanted is 32 x 32 px, 3 channels, bilinear, decoder fast" in capsys.readouterr().err


def test_it_pickles_and_the_command_goes_on(photos: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = open_dataset(raw).train
    copy = pickle.loads(pickle.dumps(stored))
    assert np.array_equal(copy.read(3, SPECS[0]), stored.read(3, SPECS[0]))
    before = {file.name: file.read_bytes() for file in raw.iterdir() if file.is_file() and file.name != "index.json"}
    (raw / "train-000001.tar").write_bytes(b"damaged")
    (raw / "train.heights.npy").unlink()
    assert shard(photos, raw, "--raw", "24", "--shard-images", "4") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Use them with models that take 24 x 24 px, 3 channels, bilinear, decoder fast; others are refused."
    )
    assert {
        file.name: file.read_bytes() for file in raw.iterdir() if file.is_file() and file.name != "index.json"
    } == before
    assert shard(raw, "--verify") == 0
    assert shard(photos, raw, "--raw", "25", "--shard-images", "4") == 2, "another size is another set"
    assert shard(photos, raw, "--shard-images", "4") == 2, "and so are image files"


def changed(raw: Path, copy: Path, change: Any) -> Path:
    copy.mkdir()
    for file in raw.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    record = json.loads((copy / "index.json").read_text())
    change(record, copy)
    (copy / "index.json").write_text(json.dumps(record))
    return copy


def sizes(copy: Path, kind: str, value: int) -> None:
    array = np.load(copy / f"train.{kind}.npy")
    array[2] = value
    np.save(copy / f"train.{kind}.npy", array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record, copy: record["raw"]["input"].update(size=23),
            "record 0 has 1,728 bytes, and those of 23 x 23 px",
        ),
        (lambda record, copy: record["raw"]["input"].update(size=0), "raw.input.size"),
        (lambda record, copy: record["raw"]["input"].update(size=10**9), "input size of 1,000,000,000"),
        (lambda record, copy: record["raw"].update(channels=2), "raw.channels"),
        (lambda record, copy: record["raw"]["input"].update(decoder="magic"), "raw.input.decoder"),
        (lambda record, copy: record.pop("raw"), "version 2 lacks raw records"),
        (lambda record, copy: record.update(version=1), "version 1 has no raw records"),
        (lambda record, copy: record.update(version=3), "reads 1 and 2; update"),
        (lambda record, copy: record["splits"]["train"]["arrays"].pop("heights"), "has no heights"),
        (lambda record, copy: sizes(copy, "lengths", 5), "record 2 has 5 bytes"),
        (lambda record, copy: sizes(copy, "heights", 0), "heights are not within 1 to"),
        (lambda record, copy: sizes(copy, "widths", 2**31), "widths are not within 1 to"),
        (lambda record, copy: sizes(copy, "offsets", 10**9), "outside of it"),
    ],
)
def test_hostile_shards_are_refused_at_the_door(raw: Path, tmp_path: Path, change: Any, message: str) -> None:
    place = changed(raw, tmp_path / "copy", change)
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(place)


def test_a_record_that_is_cut_off(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set so large that not all numbers are looked at when it is opened."""
    monkeypatch.setattr(index, "_check", lambda *given: None)
    place = changed(raw, tmp_path / "copy", lambda record, copy: sizes(copy, "lengths", 1000))
    stored = open_dataset(place).train
    with pytest.raises(ImageError, match="the record has 1,000 bytes instead of 1,728"):
        stored.read(2, SPECS[0])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--raw", "0"), "--raw 0: a side may have"),
        (("--raw", "99999999999"), "a side may have"),
        (("--raw", "24", "--resize", "5"), "--resize has no effect with --raw"),
        (("--raw", "no-such-model"), "No model or file named"),
    ],
)
def test_contradictions(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], message: str
) -> None:
    assert shard(photos, tmp_path / "out", *asked) == 2
    assert message in capsys.readouterr().err
