from __future__ import annotations

import copy
import dataclasses
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import predictor as predictors
from bigtransfer import weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.catalog import InputSpec
from bigtransfer.data import images as image_ops
from bigtransfer.errors import ConfigError, DataError, ImageError, TrainingError
from bigtransfer.model import ResNetV2, fold
from bigtransfer.predictor import Predictor

SIZE = 32
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = ResNetV2((1, 1, 1, 1), 1, len(NAMES))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        model.head.weight.normal_(std=0.05)
    model.card = dataclasses.replace(model.card, name="tiny", input=InputSpec(size=SIZE), class_names=NAMES)
    return model


@pytest.fixture(scope="module")
def predictor(network):
    return Predictor(network, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(7, 5, 7, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((50, 40))) for image in coarse]


def expected(network, image):
    prepared = image_ops.prepare(image, InputSpec(size=SIZE)).transpose(2, 0, 1)[None]
    with torch.no_grad():
        return network.eval()((torch.tensor(prepared).float() - 127.5) / 127.5)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_network_is_the_same_function_bit_for_bit(network, dtype):
    images = torch.rand(2, 3, SIZE, SIZE).mul(2).sub(1).to(dtype)
    with torch.no_grad():
        assert torch.equal(fold(network, dtype)(images), network.eval()(images))


def test_folding_a_batch_norm_network_keeps_its_statistics():
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 2, norm="bn", weight_standardization=False)
    torch.nn.init.normal_(network.head.weight)
    images = torch.randn(4, 3, SIZE, SIZE)
    network.train()(images)
    with torch.no_grad():
        assert torch.equal(fold(network)(images), network.eval()(images))


def test_probabilities_are_those_of_the_network(network, predictor, pixels):
    for image, prediction in zip(pixels, predictor.predict(pixels), strict=True):
        np.testing.assert_allclose(prediction.probabilities, expected(network, image).softmax(0), rtol=1e-4, atol=1e-6)
        best = int(prediction.probabilities.argmax())
        assert prediction.label == NAMES[best]
        assert prediction.probability == prediction.top(1)[0][1] == float(prediction.probabilities[best])
        assert [p for _, p in prediction.top(6)] == sorted((float(p) for p in prediction.probabilities), reverse=True)
        assert len(prediction.top()) == 5
    assert len({prediction.label for prediction in predictor.predict(pixels)}) > 1


def answers(predictor, images, **options):
    """float64 (n, classes)"""
    predictions = predictor.predict(images, **options)
    assert all(prediction.error is None for prediction in predictions), predictions
    return np.array([prediction.probabilities for prediction in predictions], np.float64)


def probable(network, image):
    """What the network itself says of uint8 (h, w, c)."""
    return expected(network, image).softmax(0).double().numpy()


def test_every_form_of_an_image_gives_the_same(network, predictor, pixels, tmp_path):
    image = pixels[0]
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    tensor = torch.tensor(image).permute(2, 0, 1)
    with open(path, "rb") as opened:
        forms = {
            "path": path,
            "text": str(path),
            "bytes": path.read_bytes(),
            "bytearray": bytearray(path.read_bytes()),
            "memoryview": memoryview(path.read_bytes()),
            "file": opened,
            "file in memory": io.BytesIO(path.read_bytes()),
            "Pillow": Image.fromarray(image),
            "Pillow, lazy": Image.open(io.BytesIO(path.read_bytes())),
            "array": image,
            "array, not contiguous": np.ascontiguousarray(image[:, ::-1])[:, ::-1],
            "tensor": tensor,
            "tensor, a gradient": tensor.float().requires_grad_(),
            "function": path.read_bytes,
            "named": ("my name", image),
            "folder": tmp_path,
            "pattern": tmp_path / "*.png",
        }
        for name, form in forms.items():
            if name.startswith(("file", "Pillow, lazy")):
                continue  # they can be read once
            options = {"value_range": (0, 255)} if "gradient" in name else {}
            for given in (form, [form], iter([form])):  # one alone is one image
                found = answers(predictor, given, **options)
                np.testing.assert_allclose(found, [probable(network, image)], rtol=1e-4, err_msg=name)
        (from_file,) = predictor.predict(forms["file"])
        (from_memory,) = predictor.predict(forms["file in memory"])
        (lazy,) = predictor.predict(forms["Pillow, lazy"])
        for prediction in (from_file, from_memory, lazy):
            np.testing.assert_allclose(prediction.probabilities, probable(network, image), rtol=1e-4)
    predictions = predictor.predict([path, str(path), image, ("my name", image), tmp_path])
    assert [p.name for p in predictions] == [str(path), str(path), "image 2", "my name", str(path)]
    assert from_file.name == str(path) and from_memory.name == "image 0"
    assert [p.name for p in predictor.predict((str(path), str(path)))] == [str(path)] * 2, "two paths are two images"


def test_folders_patterns_and_addresses_are_many_images(network, predictor, pixels, tmp_path, monkeypatch):
    for number, image in enumerate(pixels[:4]):
        path = tmp_path / ("inner" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    monkeypatch.chdir(tmp_path)
    predictions = predictor.predict([tmp_path / "inner", "0.png", "**/[02].png"])
    assert [os.path.relpath(p.name) for p in predictions] == ["inner/1.png", "inner/3.png", "0.png", "0.png", "2.png"]
    for prediction, number in zip(predictions, (1, 3, 0, 0, 2), strict=True):
        np.testing.assert_allclose(prediction.probabilities, probable(network, pixels[number]), rtol=1e-4)
    Image.fromarray(pixels[5]).save("[5].png")
    np.testing.assert_allclose(answers(predictor, "[5].png"), [probable(network, pixels[5])], rtol=1e-4)
    with pytest.raises(DataError, match=r"no match|no image"):
        predictor.predict("none*.png")
    monkeypatch.setattr(predictors.web, "read", lambda address, at_most: (tmp_path / address[-5:]).read_bytes())
    (fetched,) = predictor.predict("http://localhost/0.png")
    assert fetched.name == "http://localhost/0.png"
    np.testing.assert_allclose(fetched.probabilities, probable(network, pixels[0]), rtol=1e-4)


def test_grey_and_transparent_arrays_are_read_as_their_files_would_be(network, predictor, pixels, tmp_path):
    grey = pixels[0][:, :, 0]
    alpha = pixels[1][:, :, :1]
    share = alpha / 255
    over_white = np.rint(255 + (pixels[0].astype(float) - 255) * share).astype(np.uint8)
    for array, looks in (
        (grey, np.repeat(grey[:, :, None], 3, 2)),
        (grey[:, :, None], np.repeat(grey[:, :, None], 3, 2)),
        (np.concatenate([pixels[0], alpha], 2), over_white),  # one image, not a batch of columns
        (np.concatenate([grey[:, :, None], alpha], 2), np.repeat(over_white[:, :, :1], 3, 2)),
    ):
        for given in (array, [array], torch.tensor(np.atleast_3d(array)).permute(2, 0, 1)):
            np.testing.assert_allclose(answers(predictor, given), [probable(network, looks)], rtol=0.02)
    np.testing.assert_allclose(answers(predictor, torch.tensor(grey)), answers(predictor, grey))


def test_batches_of_arrays_and_tensors_are_taken_apart(network, predictor, pixels):
    stack = np.stack(pixels)
    whole = np.array([probable(network, image) for image in pixels])
    grey = np.array([probable(network, np.repeat(image[:, :, :1], 3, 2)) for image in pixels])
    for images, looks in (
        (stack, whole),
        (torch.from_numpy(stack).permute(0, 3, 1, 2), whole),
        (iter(pixels), whole),
        (tuple(pixels), whole),
        (stack[..., 0], grey),  # (n, h, w)
        (stack[..., :1], grey),
        (torch.from_numpy(stack[..., 0])[:, None], grey),
    ):
        np.testing.assert_allclose(answers(predictor, images), looks, rtol=1e-3)
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("convert", "value_range"),
    [
        (lambda a: a / 255, (0, 1)),
        (lambda a: (a / 127.5 - 1).astype(np.float32), (-1, 1)),
        (lambda a: a.astype(np.float16), (0, 255)),
        (lambda a: a.astype(np.uint16) * 257, (0, 65535)),
        (lambda a: a.astype(np.int64) - 100, (-100, 155)),
        (lambda a: torch.tensor(a / 255).permute(2, 0, 1), (0.0, 1.0)),
        (lambda a: torch.tensor(a).bfloat16().permute(2, 0, 1), (0, 255)),
    ],
)
def test_other_values_than_bytes_have_a_stated_range(network, predictor, pixels, convert, value_range):
    image = convert(pixels[0])
    tolerance = 0.02 if getattr(image, "dtype", None) == torch.bfloat16 else 1e-4
    found = answers(predictor, image, value_range=value_range)
    np.testing.assert_allclose(found, [probable(network, pixels[0])], rtol=tolerance)
    features = predictor.features([pixels[0]])
    np.testing.assert_allclose(predictor.features([image], value_range=value_range), features, atol=0.05)
    with pytest.raises(ConfigError, match=r"not uint8.*value_range=\(0, 1\)"):
        predictor.predict(image)
    if value_range == (0, 1):
        beyond = np.where(pixels[0] > 100, pixels[0] * 100.0, -5.0)
        clipped = np.where(pixels[0] > 100, 255, 0).astype(np.uint8)
        np.testing.assert_allclose(
            answers(predictor, beyond, value_range=(0, 1)), [probable(network, clipped)], rtol=1e-4
        )
        (unknown,) = predictor.predict(np.full((4, 4), np.nan), value_range=(0, 1))
        assert "NaN" in unknown.error
        for wrong in ((1, 0), (0, 0), (0, float("nan"))):
            with pytest.raises(ConfigError, match="value_range"):
                predictor.predict(image, value_range=wrong)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((3, 40, 50), np.uint8), "channels come first"),
        (np.zeros((1, 40, 50), np.uint8), "channels come first"),
        ([np.zeros((4, 40, 50), np.uint8)], "channels come first"),
        (np.zeros((2, 3, 40, 50), np.uint8), "channels come first"),
        (torch.zeros(2, 40, 50, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(40, 50, 3, dtype=torch.uint8), "shape"),
        ([np.zeros((4, 4, 7), np.uint8)], "up to 4 channels"),
        (np.zeros((4, 0, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "axes"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "axes"),
        ([np.zeros((4, 4, 3), np.float32)], "value_range"),
        ([np.zeros((4, 4), bool)], "value_range"),
        ([3.5], "float is no image"),
        (3.5, "float is neither"),
        (None, "NoneType is neither"),
        ([io.StringIO("text")], "opened as text"),
    ],
)
def test_what_is_no_image_is_an_error_of_the_caller(predictor, images, said):
    with pytest.raises(ConfigError, match=said):
        predictor.predict(images)


def test_no_image_costs_the_others_their_answers(network, predictor, pixels, tmp_path, monkeypatch):
    """Whatever happens with one: also what nobody thought of."""
    monkeypatch.setenv("BIT_LIMITS", "image_bytes=100k")
    good = tmp_path / "good.png"
    Image.fromarray(pixels[0]).save(good)
    os.mkfifo(tmp_path / "pipe.jpg")

    def failing(error):
        def raises():
            raise error

        return raises

    large = io.BytesIO(bytes(100_001))
    bad = [
        tmp_path / "pipe.jpg",
        "/dev/zero",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        large,
        ("thin", Image.new("L", (1, 10**6 + 10)).tobytes()),
        *map(failing, (OverflowError("too large"), MemoryError(), OSError(5, "x"), ValueError("y"), RecursionError())),
    ]
    results = predictor.predict([good, *bad, good], batch_size=4)
    assert [result.error is None for result in results] == [True, *[False] * len(bad), True]
    assert "more than 100,000 bytes" in results[4].error and "OverflowError: too large" in results[6].error
    for result in (results[0], results[-1]):
        np.testing.assert_allclose(result.probabilities, probable(network, pixels[0]), rtol=1e-4)


def test_an_image_that_pillow_opened_is_decoded_only_if_its_format_is(predictor, tmp_path):
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (result,) = predictor.predict(Image.open(io.BytesIO(drawing)))
    assert "format EPS" in result.error
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "DDS")
    opened = Image.open(file)
    assert "format DDS" in predictor.predict([opened])[0].error
    opened.load()
    assert predictor.predict([opened])[0].error is None


@pytest.mark.parametrize(("side", "images"), [(32, 256), (480, 36), (3000, 1)])
def test_batches_are_of_eight_million_pixels(network, side, images):
    other = copy.deepcopy(network)
    other.card = dataclasses.replace(network.card, input=InputSpec(size=side))
    assert Predictor(other, device="cpu").batch_size == images


def test_batch_size_does_not_matter(predictor, pixels):
    whole = predictor.predict(pixels)
    for size in (1, 3):
        for one, other in zip(predictor.predict(pixels, batch_size=size), whole, strict=True):
            np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-7)


def test_unreadable_images_are_reported_and_the_others_go_on(predictor, pixels, tmp_path):
    good = io.BytesIO()
    Image.fromarray(pixels[0]).save(good, "PNG")
    whole = io.BytesIO()
    Image.fromarray(pixels[0]).save(whole, "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.getvalue()[: len(whole.getvalue()) * 3 // 4])
    results = predictor.predict(
        [
            good.getvalue(),
            cut,
            b"",
            tmp_path / "missing.png",
            Image.open(io.BytesIO(cut.read_bytes())),
            good.getvalue(),
        ],
        batch_size=2,
    )
    assert [result.error is None for result in results] == [True, False, False, False, False, True]
    assert "truncated" in results[1].error and results[1].name == str(cut)
    assert "empty" in results[2].error and "no such file" in results[3].error
    assert results[1].label is None and results[1].probability is None and results[1].top() == []
    np.testing.assert_allclose(results[5].probabilities, results[0].probabilities, rtol=1e-4)
    with pytest.raises(ImageError, match="truncated"):
        predictor.features([cut])


def test_features_are_what_the_head_sees(network, predictor, pixels):
    features = predictor.features(pixels)
    assert features.shape == (len(pixels), 2048) and features.dtype == np.float32
    logits = network.head(torch.from_numpy(features)).detach()
    np.testing.assert_allclose(
        logits, torch.stack([expected(network, image) for image in pixels]), rtol=1e-3, atol=1e-4
    )
    assert predictor.features([]).shape == (0, 2048)
    streamed = list(predictor.stream(pixels[:2], features=True))
    np.testing.assert_allclose(streamed[1].features, features[1], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_the_network_in_bfloat16(network, predictor, pixels):
    low = Predictor(network, device="cpu", precision="bf16")
    assert low.dtype == torch.bfloat16
    found, exact = answers(low, pixels), answers(predictor, pixels)
    error = np.abs(np.log(found / exact)).max()
    # 8 bits of mantissa through some thirty layers; rounding the results alone would give less than 0.004.
    assert 0.004 < error < 0.2
    features = low.features(pixels)
    relative = np.linalg.norm(features - predictor.features(pixels)) / np.linalg.norm(features)
    assert 0.001 < relative < 0.02


def test_one_channel_model(pixels):
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 3, in_chans=1)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    network.card = dataclasses.replace(network.card, input=InputSpec(size=SIZE))
    predictor = Predictor(network, device="cpu", precision="fp32")
    assert predictor.class_names == ("0", "1", "2")
    grey = pixels[0][:, :, :1]
    luma = np.rint(pixels[0] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[:, :, None]
    for given, seen, tolerance in ((grey[:, :, 0], grey, 1e-4), (grey, grey, 1e-4), (pixels[0], luma, 0.02)):
        np.testing.assert_allclose(answers(predictor, [given]), [probable(network, seen)], rtol=tolerance)
    assert np.abs(probable(network, grey) - probable(network, luma)).max() > 0.05


def test_running_out_of_memory_halves_the_batch(network, pixels, monkeypatch):
    predictor = Predictor(network, device="cpu", precision="fp32")
    whole = predictor.predict(pixels)
    computing = predictor._model
    forward, sizes = computing.features, []

    def limited(images):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(computing, "features", limited)
    for one, other in zip(predictor.predict(pixels), whole, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-7)
    assert sizes[0] == 7 and max(sizes[-2:]) <= 2

    def never(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(computing, "features", never)
    with pytest.raises(TrainingError, match="single image"):
        predictor.predict(pixels[:2])


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device(None).type in ("cpu", "cuda", "mps")
    with pytest.raises(ConfigError, match="no device cuda:99"):
        choose_device("cuda:99")
    for name in ("toaster", "meta"):
        with pytest.raises(ConfigError, match="cpu, cuda"):
            choose_device(name)


def test_loading_a_file_and_a_run_folder(network, predictor, pixels, tmp_path):
    weights.save(tmp_path / "model.safetensors", network)
    for model in (tmp_path, tmp_path / "model.safetensors"):
        loaded = Predictor.load(model, device="cpu", precision="fp32")
        assert loaded.class_names == NAMES and loaded.card.input.size == SIZE
        for one, other in zip(loaded.predict(pixels), predictor.predict(pixels), strict=True):
            np.testing.assert_array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_just_trained_answers_as_the_one_read_from_its_file(precision: Literal["fp32", "bf16"]) -> None:
    """Training keeps kernels in channels_last, where their sums are taken, and rounded, in another order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetV2((1, 1, 1, 1), 1, 4)
        torch.nn.init.normal_(model.head.weight)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8))
    expected = Predictor(model, device="cpu", precision=precision).logits(pixels)
    trained = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert torch.equal(Predictor(trained, device="cpu", precision=precision).logits(pixels), expected)


def test_file_addresses_from_python(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a b.png")
    torch.manual_seed(0)
    predictor = Predictor(ResNetV2((1, 1, 1, 1), 1, 3), device="cpu", precision="fp32")
    by_path, by_address = predictor.predict([str(tmp_path / "a b.png"), f"file://{tmp_path}/a%20b.png"])
    assert by_path.probabilities is not None and by_address.probabilities is not None
    assert np.array_equal(by_path.probabilities, by_address.probabilities)


def test_another_decoder_than_the_card_says(network, tmp_path):
    """And the file is read as `images.prepared` reads it, whatever form it comes in."""
    picture = np.random.default_rng(0).integers(0, 256, (8 * SIZE + 5, 9 * SIZE, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path)
    found = {}
    for decoder in (None, "fast", "exact"):
        predictor = Predictor(network, device="cpu", precision="fp32", decoder=decoder)
        assert predictor.card.input == dataclasses.replace(network.card.input, decoder=decoder or "fast")
        seen = image_ops.prepared(path, "a", 3, predictor.card.input)
        expected = predictor.logits(torch.tensor(seen).permute(2, 0, 1)[None]).softmax(1)[0].numpy()
        for form in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
            (answer,) = predictor.predict([form])
            np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-6)
        found[decoder] = expected
    assert (found[None] == found["fast"]).all() and (found["fast"] != found["exact"]).any()
    assert network.card.input.decoder == "fast"


def test_the_two_steps_of_a_prediction_are_the_whole(predictor: Predictor, pixels: list[np.ndarray]) -> None:
    """`prepare` each, from several threads, and `answer` all at once: what a server does."""
    with ThreadPoolExecutor(3) as pool:
        ready = list(pool.map(predictor.prepare, pixels))
    assert all(one.shape == (SIZE, SIZE, 3) and one.dtype == np.uint8 for one in ready)
    names = [f"image {i}" for i in range(len(pixels))]
    answers = predictor.answer(ready, names, features=True)
    for answer, expected in zip(answers, predictor.predict(pixels), strict=True):
        assert answer.name == expected.name
        np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    np.testing.assert_array_equal([answer.features for answer in answers], predictor.features(pixels))
    assert predictor.answer(ready[:1], ["x"])[0].features is None
    assert predictor.answer([], []) == []
    with pytest.raises(ImageError, match=r"broken: .*not in an image format"):
        predictor.prepare(b"no image", "broken")
    with pytest.raises(ValueError, match="argument 2 is longer"):  # a name too few must not shift the others
        predictor.answer(ready[:2], ["x"])


def test_predictions_are_a_list_and_a_table(predictor, pixels, tmp_path):
    bad = tmp_path / "<b>.png"
    bad.write_bytes(b"none")
    found = predictor.predict([("<i>", pixels[0]), *pixels[1:3], bad])
    assert isinstance(found, list) and len(found) == 4
    table = found.to_pandas(top=2)
    assert list(table.columns) == ["image", "label", "probability", "label_2", "probability_2", "error"]
    assert table["label"][0] == found[0].label and table["probability_2"][1] == found[1].top(2)[1][1]
    assert table["error"][3] == found[3].error and table["label"].isna().tolist() == [False, False, False, True]
    assert isinstance(found[:2], predictors.Predictions) and not isinstance(found[0], list)
    assert len(found[:0]) == 0 and list(predictor.predict([]).to_pandas().columns) == [
        "image",
        "label",
        "probability",
        "error",
    ]
    shown = found._repr_html_()
    assert "&lt;i&gt;" in shown and "<i>" not in shown and "<b>" not in shown
    assert f"<td>{found[0].label}</td><td>{found[0].probability:.1%}</td>" in shown
    assert "and 80 more" in predictors.Predictions(list(found) * 25)._repr_html_()
