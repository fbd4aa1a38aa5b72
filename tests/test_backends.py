"""Networks exported to ONNX, and computed by other backends than torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from bigtransfer import backends, cli, weights
from bigtransfer.backends import by_onnxruntime, by_openvino, graph, onnx_file
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.errors import BitError, ConfigError, WeightsError
from bigtransfer.jobs import parity
from bigtransfer.model import Network, ResNetV2, build, joined
from bigtransfer.predictor import Predictor

CLASSES = ("ant", "bee", "größe \U0001f41c")
SIZE = 40


def network(arch: Architecture | None = None, **card: Any) -> ResNetV2:
    """A unit in each block, so that a test takes no second."""
    torch.manual_seed(0)
    arch = arch or Architecture(units=(1, 1, 1, 1))
    made = build(arch, len(CLASSES)).eval()
    assert isinstance(made, ResNetV2)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.2, 0.3)
    torch.nn.init.normal_(made.head.weight, std=0.2)  # pyright: ignore[reportArgumentType]
    for name, buffer in made.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    made.card = ModelCard(
        name="tiny",
        architecture=arch,
        num_classes=len(CLASSES),
        input=InputSpec(size=SIZE),
        class_names=CLASSES,
        **card,
    )
    return made


READOUT = Readout(blocks=(0, 1), sizes=(24, SIZE), mirrored=True)
FORMS = {
    "plain": (network, {}),
    "several blocks, two sizes, both views": (network, {"arch": Architecture(units=(1, 1), readout=READOUT)}),
    "a size of its own": (
        network,
        {"arch": Architecture(units=(1, 1), readout=Readout(blocks=(1,), sizes=(28,), maxima=False))},
    ),
    "beside": (
        network,
        {
            "arch": Architecture(
                units=(1, 1),
                readout=READOUT,
                beside=Architecture(units=(1,), readout=Readout(blocks=(0,), mirrored=True)),
            )
        },
    ),
    "grey, BatchNorm, several labels": (
        network,
        {
            "arch": Architecture(units=(1, 1, 1, 1), norm="bn", in_chans=1),
            "multi_label": True,
            "thresholds": (0.3, 0.5, 0.9),
        },
    ),
}


def pictures(channels: int = 3, count: int = 4, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_network_answers_as_with_torch(form: str) -> None:
    make, arguments = FORMS[form]
    input: graph.Input = "uint8" if "beside" in form else "float32"
    made = make(**arguments)
    content = graph.onnx_model(made, input=input)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    images = pictures(made.architecture.in_chans)
    images[0, :, :, : SIZE // 2] = 0  # nothing like its mirror image
    found = parity.compare(content, made, images)
    assert (found.count, found.same) == (4, 4)
    assert max(found.logits, found.probabilities, found.features) < 1e-5, found  # 3.8e-6 seen without AVX-512
    # Images of other sizes too, where the form allows.
    if not graph.of_one_size(made.card):
        other = dataclasses.replace(made.card, input=InputSpec(size=57))
        made.card = other
        found = parity.compare(graph.onnx_model(made, input=input), made, pictures(made.architecture.in_chans, size=57))
        assert max(found.logits, found.features) < 1e-5, found


LITE_READOUTS = {
    "plain": None,
    "all blocks": Readout(blocks=(0, 1, 2, 3, 4, 5)),
    "some at two sizes, mirrored": Readout(blocks=(1, 5), sizes=(39, 64), mirrored=True),
    "below the last": Readout(blocks=(2,), maxima=False),
}


@pytest.mark.parametrize("side", [64, 65])
@pytest.mark.parametrize("readout", LITE_READOUTS)
def test_efficientnet_lite_answers_as_with_torch(readout: str, side: int) -> None:
    """At even and odd sizes, for which TensorFlow pads otherwise."""
    pytest.importorskip("timm")
    how = LITE_READOUTS[readout]
    if how is not None and how.sizes:
        how = dataclasses.replace(how, sizes=(39, side))
    made = foreign("tf_efficientnet_lite0", side, how)
    content = graph.onnx_model(made, input="uint8")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    onnx_file.parse(content, "it")
    images = pictures(size=side)
    images[0, :, :, : side // 2] = 0
    found = parity.compare(content, made, images)
    assert (found.count, found.same) == (4, 4)
    assert max(found.logits, found.probabilities, found.features) < 5e-6, found


FOREIGN = {
    "test_resnet": (64, None),
    "test_convnext": (64, Readout(blocks=(1, 3), sizes=(48, 64), mirrored=True)),
    "test_vit": (160, Readout(blocks=(0, 1))),
    "test_mambaout": (64, Readout(blocks=(0, 1, 2, 3), maxima=False)),
}
"""timm's networks of a few layers -> size, px, and readout."""


def foreign(name: str, side: int, readout: Readout | None) -> Network:
    """As if trained, with a head for five classes."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    made = weights.load(f"timm:{name}", pretrained=False, num_classes=0)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    made = made if readout is None else joined(made, readout)
    made.reset_classifier(5)
    torch.nn.init.normal_(made.head.weight, std=0.05)  # type: ignore[arg-type]
    made.card = dataclasses.replace(made.card, input=InputSpec(size=side), class_names=tuple("abcde"))
    return made.eval()


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_other_libraries_answer_as_with_torch(name: str) -> None:
    """Any number of images at a time; from the file as it was read again."""
    made = foreign(name, *FOREIGN[name])
    content = graph.onnx_model(made, input="uint8")
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    images = pictures(size=made.card.input.size)
    images[0, :, :, : images.shape[-1] // 2] = 0
    found = parity.compare(content, made, images)
    assert (found.count, found.same) == (4, 4)
    assert max(found.logits, found.probabilities, found.features) < 5e-6, found
    session = by_onnxruntime.OnnxRuntime(onnx_file.parse(content, "it"), "it", None, "fp32")
    whole, alone = session.run(images), session.run(images[2:3])
    np.testing.assert_allclose(alone[1][0], whole[1][2], rtol=1e-4, atol=1e-5)
    half = graph.onnx_model(made, input="uint8", dtype="float16")
    assert len(half) < 0.75 * len(content)
    assert 0 < parity.compare(half, made, images).logits < 1e-2


def test_layers_that_cannot_be_exported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = foreign("test_resnet", *FOREIGN["test_resnet"])
    monkeypatch.setattr(onnx_file, "OPERATIONS", onnx_file.OPERATIONS - {"Relu"})
    with pytest.raises(WeightsError, match=r"timm:test_resnet cannot be exported to ONNX here: .* does not run Relu\."):
        graph.onnx_model(made)

    def unknown(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", unknown)
    with pytest.raises(WeightsError, match=r"cannot be exported to ONNX by torch: no such operator$"):
        graph.onnx_model(made)


def test_a_graph_that_answers_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network(Architecture(units=(1, 1), readout=READOUT))
    weights.save(tmp_path / "model.safetensors", made)
    # The mirror image forgotten: not far from right, and wrong.
    monkeypatch.setitem(graph._BACKWARDS, "axis", 2)
    arguments = ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out.onnx"), "--to", "onnx"]
    assert cli.main(arguments) == 2
    assert not (tmp_path / "out.onnx").exists()
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="does not answer as the model does"):
        dataclasses.replace(parity.compare(graph.onnx_model(made), made, pictures()), same=3).check()
    with pytest.raises(WeightsError, match="does not answer"):
        dataclasses.replace(parity.compare(graph.onnx_model(made), made, pictures()), logits=float("nan")).check()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model file, the ONNX file that `bit convert` made of it, and images."""
    root = tmp_path_factory.mktemp("exported")
    weights.save(root / "model.safetensors", network(Architecture(units=(1, 1), readout=READOUT)))
    (root / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (30, 20)), ("b.jpg", (400, 300)), ("deep/c.png", (61, 47))):
        coarse = Image.fromarray(rng.integers(256, size=(5, 7, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / "photos" / name)
    arguments = [str(root / "model.safetensors"), str(root / "model.onnx"), "--to", "onnx"]
    assert cli.main(["convert", *arguments, "--images", str(root / "photos")]) == 0
    return root / "model.safetensors", root / "model.onnx", root / "photos"


def test_convert_says_how_well_the_answers_agree(
    exported: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, photos = exported
    there = tmp_path / "there.onnx"
    arguments = ["convert", str(model), str(there), "--to", "onnx", "--input", "uint8"]
    assert cli.main([*arguments, "--images", str(photos)]) == 0
    out = capsys.readouterr().out
    assert f"3 images of {photos}, computed by onnxruntime and by torch in float32:" in out
    assert "the same class for all 3 (allowed: 0.0001)" in out
    assert f"operators of version {graph.OPSET}; takes RGB (batch, 3, 40, 40), uint8 pixels" in out
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert "16 images of made-up pictures (--images names real ones)" in capsys.readouterr().out
    assert cli.main(["convert", str(there), str(tmp_path / "back.safetensors")]) == 2
    assert "is an exported network" in capsys.readouterr().err
    assert cli.main(["convert", str(model), str(tmp_path / "x.safetensors"), "--input", "uint8"]) == 2
    assert "--input is for --to onnx" in capsys.readouterr().err
    assert (
        cli.main(["convert", str(model), str(tmp_path / "x.onnx"), "--to", "onnx", "--images", str(tmp_path / "no")])
        == 2
    )
    assert not (tmp_path / "x.onnx").exists()


def test_the_commands_take_exported_networks(
    exported: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, photos = exported

    def answers(path: Path, *flags: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        arguments = ["predict", str(path), str(photos), "--format", "jsonl", "--probabilities", "--precision", "fp32"]
        assert cli.main([*arguments, *flags]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    wanted = answers(model, "--device", "cpu")
    assert len({one["label"] for one in wanted}) > 1 or len({one["probability"] for one in wanted}) == 3
    for found in (
        answers(file),
        answers(file, "--backend", "openvino"),
        answers(model, "--backend", "onnxruntime"),
        answers(model, "--backend", "openvino"),
    ):
        assert [one["image"] for one in found] == [one["image"] for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)
            assert one["label"] == other["label"]
    assert cli.main(["info", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class_names"] == list(CLASSES)
    for flags, message in (
        (["--backend", "torch"], "torch does not compute"),
        (["--precision", "bf16"], "computes in fp32"),
    ):
        assert cli.main(["predict", str(file), str(photos), *flags]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["predict", str(file), str(photos), "--device", "cuda:7"]) == 2
    assert "no device 'cuda:7'" in capsys.readouterr().err
    assert cli.main(["predict", "nowhere.onnx", str(photos)]) == 2
    assert "There is no file nowhere.onnx" in capsys.readouterr().err


def test_the_same_interface(exported: tuple[Path, Path, Path]) -> None:
    model, file, photos = exported
    plain, other = Predictor.load(model, device="cpu", precision="fp32"), Predictor.load(file)
    assert (plain.backend, other.backend) == ("torch", "onnxruntime")
    assert (other.device, other.precision, other.card) == ("cpu", "fp32", plain.card)
    images = torch.from_numpy(pictures())
    torch.testing.assert_close(other.logits(images), plain.logits(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.pooled(images), plain.pooled(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.features(photos), plain.features(photos), rtol=1e-4, atol=1e-5)
    assert other.features([]).shape == (0, plain.card.architecture.num_features)
    with pytest.raises(ConfigError, match="Only torch has"):
        other.state_dict()


def test_openvino(exported: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, file, _ = exported
    before = by_openvino.signal_stack()
    plain, other = (
        Predictor.load(model, device="cpu", precision="fp32"),
        Predictor.load(file, backend="openvino", precision="fp32"),
    )
    assert (other.backend, other.device, other.precision) == ("openvino", "cpu", "fp32")
    images = torch.from_numpy(pictures(count=3))
    wanted = plain.logits(images)
    torch.testing.assert_close(other.logits(images), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.pooled(images[:1]), plain.pooled(images[:1]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="on the CPU here, not on 'cuda'"):
        Predictor.load(file, backend="openvino", device="cuda")
    if Predictor.load(file, backend="openvino").precision == "fp32":  # this processor has no bf16
        with pytest.raises(ConfigError, match="no bf16"):
            Predictor.load(file, backend="openvino", precision="bf16")
    else:  # rounded, so that it was bf16, and no more than that
        rough = Predictor.load(file, backend="openvino", precision="bf16")
        assert 1e-5 < float((rough.logits(images) - wanted).abs().max() / wanted.abs().max()) < 0.05
    for change in (more_classes, other_size):
        (tmp_path / "changed.onnx").write_bytes(altered(file.read_bytes(), change))
        with pytest.raises(WeightsError, match="not what its card says"):
            Predictor.load(tmp_path / "changed.onnx", backend="openvino")
    after = by_openvino.signal_stack()  # or the next signal would be handled on a stack that OpenVINO has freed
    if before is not None and after is not None:
        assert (after.start, after.flags, after.size) == (before.start, before.flags, before.size)


def test_predict_does_not_load_torch(exported: tuple[Path, Path, Path]) -> None:
    """Nor anything else that takes long; and says the same as where torch is loaded."""
    model, file, photos = exported
    script = (
        "import sys; from bigtransfer import cli; code = cli.main(sys.argv[1:]);"
        "slow = {'torch', 'torchvision', 'pandas', 'pyarrow', 'scipy', 'onnx', 'matplotlib', 'datasets'} & set(sys.modules);"
        "assert not slow, slow; sys.exit(code)"
    )
    arguments = ["predict", str(file), str(photos), "--format", "jsonl", "--probabilities"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    wanted = Predictor.load(model, device="cpu", precision="fp32").predict(str(photos))
    for line, answer in zip(done.stdout.splitlines(), wanted, strict=True):
        found = json.loads(line)
        assert found["label"] == answer.label and answer.probabilities is not None
        np.testing.assert_allclose([*found["probabilities"].values()], answer.probabilities, atol=2e-6)


# --- The door


def altered(content: bytes, change: Any) -> bytes:
    model = onnx.load_from_string(content)
    change(model)
    return model.SerializeToString()


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_by_location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def external_in_an_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.external_data.add(key="location", value="../secret")


def loop(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "body"


def loops(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPHS).graphs.add(name="body")


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Conv")


def plug_in(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.someone"


def operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def no_card(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def two_cards(model: onnx.ModelProto) -> None:
    model.metadata_props.append(model.metadata_props[0])


def card_of_nonsense(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "{}"


def more_classes(model: onnx.ModelProto) -> None:
    card = json.loads(model.metadata_props[0].value) | {"num_classes": 4, "class_names": None}
    model.metadata_props[0].value = json.dumps(card)


def other_size(model: onnx.ModelProto) -> None:
    card = json.loads(model.metadata_props[0].value)
    card["input"]["size"] = 48
    model.metadata_props[0].value = json.dumps(card)


def other_results(model: onnx.ModelProto) -> None:
    """Logits and probabilities change places: of the right shape."""
    names = {"logits": "probabilities", "probabilities": "logits"}
    for node in model.graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def weights_of(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(
        one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 4
    )


def not_a_number(model: onnx.ModelProto) -> None:
    """OpenVINO's ReLU makes zeros of them, and the answers look like any others."""
    tensor = weights_of(model)
    tensor.raw_data = tensor.raw_data[:-4] + np.float32(np.nan).tobytes()


def infinite_among_typed_numbers(model: onnx.ModelProto) -> None:
    tensor = weights_of(model)
    numbers = onnx.numpy_helper.to_array(tensor).ravel().tolist()
    tensor.ClearField("raw_data")
    tensor.float_data.extend([*numbers[:-1], np.inf])


def infinite_in_half(model: onnx.ModelProto) -> None:
    tensor = weights_of(model)
    numbers = onnx.numpy_helper.to_array(tensor).astype(np.float16)
    numbers.flat[5] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))


def half_as_whole_numbers(model: onnx.ModelProto) -> None:
    """ONNX knows two ways to store them."""
    infinite_in_half(model)
    tensor = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16)
    bits = np.frombuffer(tensor.raw_data, np.uint16).tolist()
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(bits)


def infinite_in_double(model: onnx.ModelProto) -> None:
    tensor = weights_of(model)
    numbers = onnx.numpy_helper.to_array(tensor).astype(np.float64)
    numbers.flat[5] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))


def other_result(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def no_probabilities(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "logits"


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "mask"


def wrong_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "reads constants from other files"),
        (external_by_location_alone, "reads constants from other files"),
        (external_in_an_attribute, "reads constants from other files"),
        (loop, "has loops or branches"),
        (loops, "has loops or branches"),
        (function, "has functions of its own"),
        (plug_in, "has operators of others than ONNX"),
        (operator, "operators that an exported BiT network has not: Loop"),
        (training, "has a graph for training"),
        (sparse, "has sparse constants"),
        (no_card, "carries no model card"),
        (two_cards, "carries 2 model cards"),
        (card_of_nonsense, "its card"),
        (more_classes, "not what its card says"),
        (other_size, "not what its card says"),
        (fixed_batch, "not what its card says"),
        (other_result, "not what its card says .its result logits has the shape None"),
        (no_probabilities, "not what its card says .its result probabilities has the shape None"),
        (other_input, "not what its card says .its input is image .*of type 10"),
        (another_input, "not what its card says .its input is image .*, mask"),
        (wrong_constant, "damaged"),
        (not_a_number, "weights that are not finite"),
        (infinite_among_typed_numbers, "weights that are not finite"),
        (infinite_in_half, "weights that are not finite"),
        (half_as_whole_numbers, "damaged"),
        (infinite_in_double, "constants of other kinds of numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_bit_convert_did_not_write_is_not_run(
    exported: tuple[Path, Path, Path], tmp_path: Path, change: Any, message: str
) -> None:
    file = tmp_path / "changed.onnx"
    file.write_bytes(altered(exported[1].read_bytes(), change))
    with pytest.raises(WeightsError, match=message):
        backends.opened(file)
    if change is not wrong_constant:  # `bit info` says so too, and anybody who does not compute with it
        with pytest.raises(WeightsError, match=message):
            backends.describe(file)


def mixed_up(model: onnx.ModelProto) -> None:
    other = {"logits": "probabilities", "probabilities": "logits"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [other.get(name, name) for name in names]


def of_several(model: onnx.ModelProto) -> None:
    card = json.loads(model.metadata_props[0].value) | {"multi_label": True}
    model.metadata_props[0].value = json.dumps(card)


@pytest.mark.parametrize("change", [mixed_up, of_several])
@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_results_that_are_not_those_of_one_another(
    exported: tuple[Path, Path, Path], tmp_path: Path, change: Any, library: Any
) -> None:
    file, pixels = tmp_path / "changed.onnx", pictures()
    file.write_bytes(exported[1].read_bytes())
    backends.opened(file, backend=library).run(pixels)
    file.write_bytes(altered(file.read_bytes(), change))
    with pytest.raises(WeightsError, match=r"changed.onnx is damaged.* probabilities are not those of its logits"):
        backends.opened(file, backend=library).run(pixels)


def test_a_card_of_stages_that_are_not_there() -> None:
    network = weights.load("efficientnet-lite0", num_classes=0)
    assert network.architecture.backbone is not None
    backbone = dataclasses.replace(network.architecture.backbone, taps=("0", "1", "2", "3", "9"))
    network.architecture = dataclasses.replace(network.architecture, backbone=backbone)
    with pytest.raises(WeightsError, match="cannot be looked at as the model says"):
        graph.onnx_model(network)


def test_damaged_files(exported: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, file = exported[1].read_bytes(), tmp_path / "damaged.onnx"
    rng = np.random.default_rng(0)
    for kept in (0, 1, 7, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(WeightsError, match=r"damaged\.onnx is empty" if kept == 0 else None):
            backends.opened(file)
    for _ in range(30):  # anything but a crash
        noisy = bytearray(content)
        for place in rng.integers(len(noisy) - 6000, len(noisy), 8):
            noisy[place] = rng.integers(256)
        try:
            onnx_file.parse(bytes(noisy), "noisy")
        except BitError:
            continue
    file.write_bytes(content)
    monkeypatch.setenv("BIT_LIMITS", "exported_bytes=1000")
    with pytest.raises(WeightsError, match="exported_bytes"):
        backends.opened(file)


def test_what_a_missing_package_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs the package onnx.*pip install 'bigtransfer\[onnx\]'"):
        graph.onnx_model(network())


def test_networks_that_the_form_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made = network()
    made.reset_classifier(len(CLASSES), "max")
    with pytest.raises(WeightsError, match="pool by averaging"):
        graph.onnx_model(made)
