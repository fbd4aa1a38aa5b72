"""The package from Python: the README's road from a folder to predictions, and the models as torch modules."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bigtransfer
from bigtransfer import catalog, weights
from bigtransfer.config import EvaluateConfig, FinetuneConfig, PretrainConfig, fields_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of noise, one dark and one bright, 8 images each."""
    random = np.random.default_rng(0)
    for label, low in (("bright", 150), ("dark", 0)):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(low, low + 100, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_from_a_folder_to_predictions(photos: Path, tmp_path: Path) -> None:
    done = bigtransfer.finetune(
        photos,
        model="r26x1",
        pretrained=False,
        out=tmp_path / "run",
        steps=2,
        batch_size=4,
        crop=32,
        workers=0,
        device="cpu",
        precision="fp32",
    )
    assert done.folder == tmp_path / "run"
    assert done.model.is_file()
    assert (done.folder / "report.html").is_file()
    assert done.recipe.steps == 2

    measured = bigtransfer.evaluate(done.model, photos, device="cpu")
    assert len(measured) == 16
    assert measured.confusion().sum() == 16

    predictor = bigtransfer.Predictor.load(done.model, device="cpu")
    answers = predictor.predict([photos / "dark" / "0.png", photos / "bright" / "0.png"])
    assert [Path(answer.name).parent.name for answer in answers] == ["dark", "bright"]
    held_out = json.loads((done.folder / "split.json").read_text())["val"]
    guesses = [answer.label for answer in predictor.predict([photos / name for name in held_out])]
    right = [guess == Path(name).parent.name for guess, name in zip(guesses, held_out, strict=True)]
    assert len(held_out) == 2 and done.metrics["val_top1"] == np.mean(right)

    network = bigtransfer.load_model(done.model)
    card = network.card
    assert card.class_names == ("bright", "dark")
    assert card.input.size == 32
    with torch.inference_mode():
        for answer in answers:  # by Pillow's own resizing and the definition of softmax
            small = Image.open(answer.name).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.asarray(small, dtype=np.float32)).permute(2, 0, 1)[None]
            logits = network(pixels / 127.5 - 1)[0].double()
            probabilities = (logits.exp() / logits.exp().sum()).numpy()
            assert answer.probabilities == pytest.approx(probabilities, abs=2e-3)
            assert answer.label == card.class_names[int(probabilities.argmax())]


def test_unreadable_images_are_an_error_unless_expected(photos: Path, tmp_path: Path) -> None:
    network = bigtransfer.create_model("r26x1", 2, pretrained=False)
    network.card = catalog.ModelCard(
        name="two",
        architecture=network.architecture,
        num_classes=2,
        input=catalog.InputSpec(size=32),
        class_names=("bright", "dark"),
    )
    weights.save(tmp_path / "two.safetensors", network)
    (photos / "dark" / "torn.png").write_bytes((photos / "dark" / "0.png").read_bytes()[:100])
    with pytest.raises(bigtransfer.BitError, match=r"1 of 17 images cannot be read:\n.*torn.png"):
        bigtransfer.evaluate(tmp_path / "two.safetensors", photos)
    assert len(bigtransfer.evaluate(tmp_path / "two.safetensors", photos, skip_bad_images=True)) == 16


def test_a_new_head_is_zero_and_no_head_gives_features() -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    with torch.inference_mode():
        logits = bigtransfer.create_model("r26x1", 5, pretrained=False)(images)
        features = bigtransfer.create_model("r26x1", 0, pretrained=False, in_chans=1)(images[:, :1])
    assert torch.equal(logits, torch.zeros(2, 5))
    assert features.shape == (2, 2048)
    assert features.abs().sum() > 0


def test_unknown_models_are_named() -> None:
    with pytest.raises(bigtransfer.BitError, match=r"Did you mean .*bit-m-r50x1"):
        bigtransfer.load_model("bit-m-r50x")


def test_published_models_are_listed() -> None:
    assert {"bit-t-r26x1", "bit-s-r50x1", "bit-m-r101x3"} <= set(bigtransfer.list_models())


@pytest.mark.parametrize(
    ("name", "config"), [("finetune", FinetuneConfig), ("evaluate", EvaluateConfig), ("pretrain", PretrainConfig)]
)
def test_the_keywords_are_the_flags(name: str, config: type) -> None:
    function = getattr(bigtransfer, name)
    assert {*inspect.signature(function).parameters} == {field.name for field in fields_of(config)}
    assert all(field.help.split()[0] in function.__doc__ for field in fields_of(config))
    with pytest.raises(bigtransfer.BitError, match="--device must be text, not 3"):
        function(*["x"] * sum(field.positional for field in fields_of(config)), device=3)
    with pytest.raises(TypeError, match="batchsize"):
        function(*["x"] * sum(field.positional for field in fields_of(config)), batchsize=3)
