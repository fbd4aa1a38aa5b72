"""Folders for the Hugging Face hub: their model cards, and the whole way through a hub on this machine, by its own client."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtransfer import Predictor, catalog, cli, weights
from tests import data_makers
from tests.hub_server import TOKEN, Hub, running
from tests.test_report_sections import EVALUATION, write
from tests.test_weights import assert_same_weights, card_of, ours

pytestmark = pytest.mark.usefixtures("offline")

FINETUNED = {
    "command": "finetune",
    "asked": {"data": "/home/somebody/photos", "model": "bit-t-r26x1", "linear": "closed"},
    "data": {"train": 40},
}
MEASURED = EVALUATION | {"data": "/home/somebody/photos"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    weights.save(tmp_path / "run" / "model.safetensors", ours())
    write(tmp_path / "run", "config.json", FINETUNED)
    write(tmp_path / "run", "evaluation.json", MEASURED)
    return tmp_path / "run"


def converted(run: Path, folder: Path, form: str) -> tuple[dict[str, Any], str]:
    """What machines and what people read of the card that `bit convert` writes."""
    assert cli.main(["convert", str(run), str(folder), "--to", form]) == 0
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize(
    ("form", "library"), [("bit", "bigtransfer"), ("timm", "timm"), ("transformers", "transformers")]
)
def test_a_folder_has_a_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, library: str
) -> None:
    folder = tmp_path / "photos-1.5"  # with a dot, and yet no file
    front, body = converted(run, folder, form)
    assert f"hf upload USER/photos-1.5 {folder}" in capsys.readouterr().out
    assert (front["library_name"], front["license"], front["pipeline_tag"]) == (
        library,
        "cc0-1.0",
        "image-classification",
    )
    (results,) = front["model-index"][0]["results"]
    found = {one["type"]: one["value"] for one in results["metrics"]}
    assert found["accuracy"] == EVALUATION["top1"] and results["dataset"]["name"] == "photos"
    low, high = EVALUATION["top1_interval"]
    assert f"{EVALUATION['top1']:.1%} (95 % interval {low:.1%} to {high:.1%})" in body
    assert f"On {EVALUATION['images']:,} test images of photos" in body
    assert "/home" not in body and "somebody" not in str(front)
    assert ", ".join(card_of().class_names or ()) in body
    assert "bit predict hf-hub:USER/NAME photo.jpg" in body
    assert ("kernels that are standardized already" in body) == (form == "timm")


def test_what_others_named_stays_text(tmp_path: Path) -> None:
    names = ("<script>", "a|b", "[x](http://y)", "*", "d\ne")
    network = ours(num_classes=5)
    network.card = card_of(num_classes=5, class_names=names, licence='Own "terms": 1', metrics={})
    weights.save(tmp_path / "m.safetensors", network)
    front, body = converted(tmp_path / "m.safetensors", tmp_path / "folder", "bit")
    assert r"\<script\>, a\|b, \[x\](http://y), \*, d\\ne" in body
    assert (front["license"], front["license_name"]) == ("other", "own-terms-1")
    assert "Nothing is known of that" in body and "metrics" not in front


def test_what_was_chosen_by_the_measured_images_is_said(run: Path, tmp_path: Path) -> None:
    write(run, "evaluation.json", MEASURED | {"split": "val"})
    candidates = [{"kind": kind, "top1": 0.5, "loss": 1.0} for kind in ("closed form", "fine-tuned")]
    write(run, "choice.json", {"delivered": "fine-tuned", "candidates": candidates, "images": 12})
    _, body = converted(run, tmp_path / "folder", "bit")
    assert "Delivered is the fine-tuned, chosen" in body and "on 12 validation images" in body
    assert "These are the images that it was chosen by as well" in body


# --- There and back


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


def client(hub: Hub, home: Path, *command: str) -> str:
    """What the hub's own client, or Python with it, says. A process of its own: it reads its settings once."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def code_of(folder: Path, photo: Path) -> str:
    """The Python in a model card, as somebody would run it who has replaced USER/NAME and photo.jpg."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code.replace("USER/NAME", "user/flowers").replace("photo.jpg", str(photo))


def test_the_bundled_architecture_through_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up by `hf upload`; down by timm as the card tells, and by us."""
    pytest.importorskip("timm")
    pytest.importorskip("huggingface_hub")
    network = ours(catalog.architecture("r26x1"), 3)
    network.card = dataclasses.replace(network.card, class_names=("rose", "lily", "daisy"))
    weights.save(tmp_path / "model.safetensors", network)
    folder = tmp_path / "flowers-1.5"  # a folder, whatever its name
    converted(tmp_path / "model.safetensors", folder, "timm")
    client(hub, tmp_path / "home", "-m", "huggingface_hub.cli.hf", "upload", "user/flowers", str(folder))
    stored = hub.repositories["user/flowers"]
    assert sorted(stored) == ["README.md", "config.json", "model.safetensors"]

    photo = data_makers.write(tmp_path / "photo.png", height=80, width=90)
    said = client(hub, tmp_path / "home", "-c", code_of(folder, photo))
    answers = ast.literal_eval(said)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.delenv("BIT_OFFLINE")
    back = weights.load("hf-hub:user/flowers")
    assert back.card.class_names == network.card.class_names and back.card.input == network.card.input
    (answer,) = Predictor.load("hf-hub:user/flowers", device="cpu", precision="fp32", decoder="exact").predict([photo])
    assert answers == pytest.approx(
        dict(zip(network.card.class_names or (), answer.probabilities, strict=True)), abs=5e-3
    )


def test_our_own_form_keeps_everything(hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted(run, tmp_path / "folder", "bit")
    hub.repositories["user/own"] = {file.name: file.read_bytes() for file in (tmp_path / "folder").iterdir()}
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.delenv("BIT_OFFLINE")
    back = weights.load("hf-hub:user/own")
    assert_same_weights(back, ours())
    assert back.card == card_of()
