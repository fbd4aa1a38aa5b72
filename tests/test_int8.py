"""Exported networks in int8: what they cost is measured, stated and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from bigtransfer import backends, cli, weights
from bigtransfer.backends import int8 as backend
from bigtransfer.catalog import Architecture
from bigtransfer.errors import ConfigError
from bigtransfer.jobs import int8
from bigtransfer.predictor import Predictor
from tests.test_backends import CLASSES, network


def to_int8(model: Path, there: Path, data: Path) -> list[str]:
    return ["convert", str(model), str(there), "--to", "onnx", "--dtype", "int8", "--images", str(data)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model file, images of its classes in parts (those that it takes for them), and the int8 file made by them."""
    root = tmp_path_factory.mktemp("int8")
    weights.save(root / "model.safetensors", network(Architecture(units=(1, 1))))
    rng = np.random.default_rng(0)
    predictor = Predictor.load(root / "model.safetensors", device="cpu", precision="fp32")
    for number in range(36):
        image = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8)).resize((50, 50))
        folder = root / "data" / ("train" if number % 3 else "test") / str(predictor.predict(image)[0].label)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    for part in ("train", "test"):
        for name in CLASSES:
            folder = root / "data" / part / name
            folder.mkdir(exist_ok=True)
            if not any(folder.iterdir()):
                Image.new("RGB", (50, 50)).save(folder / "black.png")
    command = ["convert", str(root / "model.safetensors"), str(root / "int8.onnx"), "--to", "onnx", "--dtype", "int8"]
    assert cli.main([*command, "--images", str(root / "data")]) == 0
    return root / "model.safetensors", root / "data", root / "int8.onnx"


def test_what_it_costs_is_measured_and_stored(
    made: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, file = made
    assert file.stat().st_size < 0.4 * model.stat().st_size
    held = sorted((data / "test").glob("*/*.png"))
    exact, rough = Predictor.load(model, device="cpu", precision="fp32"), Predictor.load(file)
    labels = [one.parent.name for one in held]
    right = [sum(a.label == b for a, b in zip(p.predict(held), labels, strict=True)) for p in (exact, rough)]
    metrics = rough.card.metrics
    assert metrics["int8/images"] == len(held)
    assert metrics["int8/float32_top1"] == pytest.approx(right[0] / len(held))
    assert metrics["int8/top1"] == pytest.approx(right[1] / len(held))
    assert cli.main(["info", str(file)]) == 0
    assert "int8 top1" in capsys.readouterr().out
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} < kinds


def test_no_sum_of_two_products_is_cut_off(made: tuple[Path, Path, Path]) -> None:
    """Processors without VNNI add pairs of products, of at most 255 and a weight, in 16 bits: 2 * 255 * 127 does not fit."""
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(made[2]).graph.initializer]
    kernels = [one for one in stored if one.dtype == np.int8 and one.ndim == 4]
    assert len(kernels) >= 5
    largest = max(int(np.abs(one.astype(int)).max()) for one in kernels)
    assert largest >= 60 and 2 * 255 * largest < 2**15


@pytest.mark.parametrize("by", ["onnxruntime", "openvino"])
def test_both_backends_compute_it(made: tuple[Path, Path, Path], by: Any) -> None:
    model, data, file = made
    exact, rough = Predictor.load(model, device="cpu", precision="fp32"), Predictor.load(file, backend=by)
    assert (rough.backend, rough.precision) == (by, "int8")
    pixels = [exact.prepare(path, path.name) for path in sorted((data / "test").glob("*/*.png"))]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    wanted, found = exact.logits(images), rough.logits(images)
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert 1e-4 < error < 0.1  # rounded, so that it was int8, and no more than that
    with pytest.raises(ConfigError, match="computes in int8, for which it was calibrated"):
        Predictor.load(file, backend=by, precision="fp32")


def test_ranges_come_from_the_training_images(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    quantized = backend.quantized

    def watched(content: bytes, batches: Any) -> bytes:
        some = list(batches)
        seen.append(np.concatenate(some))
        return quantized(content, some)

    monkeypatch.setattr(backend, "quantized", watched)
    model, data, _ = made
    command = to_int8(model, tmp_path / "x.onnx", data)
    assert cli.main(command) == 0
    assert "too few to see a loss of 2%" in capsys.readouterr().out
    exact = Predictor.load(model, device="cpu", precision="fp32")
    files = sorted((data / "train").glob("*/*.png"))
    wanted = np.stack([exact.prepare(path, path.name).transpose(2, 0, 1) for path in files])
    assert {one.tobytes() for one in seen[0]} == {one.tobytes() for one in wanted}


def test_too_dear_is_refused(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, _ = made
    quantized = backend.quantized

    def spoilt(content: bytes, batches: Any) -> bytes:
        """Everything is the first class."""
        model = onnx.load_from_string(quantized(content, batches))
        (bias,) = [one for one in model.graph.initializer if one.name == "head.bias"]
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([1e4, 0, 0], np.float32), bias.name))
        return model.SerializeToString()

    monkeypatch.setattr(backend, "quantized", spoilt)
    command = to_int8(model, tmp_path / "x.onnx", data)
    assert cli.main(command) == 2
    assert "int8 loses too much (2% is allowed): calibrated on" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(("lost", "code"), [(1, 0), (6, 2)])
def test_one_image_of_few_is_no_loss(
    made: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lost: int,
    code: int,
) -> None:
    """Of the dozen here it would be 8 %, and is a matter of chance."""
    model, data, _ = made
    runtimes: list[Any] = []

    class Worse(int8.OnnxRuntime):
        def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            features, logits = super().run(images)
            if self not in runtimes:
                runtimes.append(self)
                if len(runtimes) == 2:  # that in int8; its first batch
                    logits[:lost] = -logits[:lost]
            return features, logits

    monkeypatch.setattr(int8, "OnnxRuntime", Worse)
    assert cli.main(to_int8(model, tmp_path / "x.onnx", data)) == code
    told = capsys.readouterr()
    assert ("int8 loses too much" in told.err) == bool(code) and (tmp_path / "x.onnx").exists() == (not code)
    assert "too few to see a loss of 2%" in told.out + told.err


def test_the_split_is_that_of_the_run(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, _ = made
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(model.read_bytes())
    (run / "config.json").write_text(json.dumps({"command": "finetune", "asked": {"data": str(data)}}))
    names = [str(path.relative_to(data)) for path in sorted(data.glob("*/*/*.png"))]
    (run / "split.json").write_text(json.dumps({"train": names[:20], "val": names[20:], "test": None}))
    parts, where = int8._parts(str(run), None, backends.opened(made[2]).card)
    assert where == str(data) and parts.test is None and parts.val is not None
    assert sorted(parts.val.name(i) for i in range(len(parts.val))) == sorted(names[20:])
    command = ["convert", str(run), str(tmp_path / "x.onnx"), "--to", "onnx", "--dtype", "int8"]
    assert cli.main(command) == 0  # the model may have been solved again with the images held out
    assert (
        f"on {len(names) - 20} val images" in (told := capsys.readouterr().out) and "may have learnt from them" in told
    )
    assert cli.main(to_int8(model, tmp_path / "y.onnx", data)) == 0
    assert "may have learnt" not in capsys.readouterr().out


def test_what_is_refused(made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, _ = made
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(model.read_bytes())
    several = tmp_path / "several.safetensors"
    weights.save(several, network(multi_label=True))
    images = ["--images", str(data)]
    for source, there, flags, message in (
        (alone, "x.onnx", ["--to", "onnx"], "name a data set: --images DATA"),
        (several, "x.onnx", ["--to", "onnx", *images], "for models of one class an image"),
        (model, "x.safetensors", [], "--dtype int8 is for --to onnx and --to web"),
        (model, "x.onnx", ["--to", "onnx", "--input", "float32", *images], "takes pixels"),
    ):
        assert cli.main(["convert", str(source), str(tmp_path / there), "--dtype", "int8", *flags]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / there).exists()
