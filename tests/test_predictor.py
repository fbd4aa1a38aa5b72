from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import weights
from bigtransfer.catalog import InputSpec
from bigtransfer.data import images as image_ops
from bigtransfer.errors import ConfigError, ImageError, TrainingError
from bigtransfer.model import ResNetV2, fold
from bigtransfer.predictor import Predictor, choose_device

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


def test_every_form_of_an_image_gives_the_same(predictor, pixels, tmp_path):
    image = pixels[0]
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    lazy = Image.open(io.BytesIO(path.read_bytes()))
    forms = [
        path,
        str(path),
        path.read_bytes(),
        Image.fromarray(image),
        lazy,
        image,
        torch.tensor(image).permute(2, 0, 1),
    ]
    predictions = predictor.predict(forms)
    for prediction in predictions[1:]:
        np.testing.assert_array_equal(prediction.probabilities, predictions[0].probabilities)
    assert [p.name for p in predictions[:4]] == [str(path), str(path), "image 2", "image 3"]
    named, computed = predictor.predict([("my name", image), path.read_bytes])
    assert named.name == "my name"
    np.testing.assert_allclose(computed.probabilities, named.probabilities, rtol=1e-4)
    for form in forms:
        (single,) = predictor.predict(form)
        np.testing.assert_allclose(single.probabilities, predictions[0].probabilities, rtol=1e-4)


def test_grey_and_transparent_arrays_are_read_as_their_files_would_be(predictor, pixels, tmp_path):
    grey = pixels[0][:, :, 0]
    rgba = np.concatenate([pixels[0], pixels[1][:, :, :1]], 2)
    for array in (grey, rgba):
        path = tmp_path / "a.png"
        Image.fromarray(array).save(path)
        from_array, from_file, from_tensor = predictor.predict(
            [array, path, torch.tensor(np.atleast_3d(array)).permute(2, 0, 1)]
        )
        np.testing.assert_array_equal(from_array.probabilities, from_file.probabilities)
        np.testing.assert_array_equal(from_tensor.probabilities, from_file.probabilities)


def test_batches_of_arrays_and_tensors_are_taken_apart(predictor, pixels):
    stack = np.stack(pixels)
    for images in (stack, torch.from_numpy(stack).permute(0, 3, 1, 2), iter(pixels)):
        assert len(predictor.predict(images)) == len(pixels)
    assert predictor.predict([]) == []


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


def test_bfloat16_stays_near_float32(network, predictor, pixels):
    low = Predictor(network, device="cpu", precision="bf16")
    assert low.dtype == torch.bfloat16
    for one, other in zip(low.predict(pixels), predictor.predict(pixels), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=0.05)
        assert not np.array_equal(one.probabilities, other.probabilities)


def test_one_channel_model(pixels):
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 3, in_chans=1)
    network.card = dataclasses.replace(network.card, input=InputSpec(size=SIZE))
    predictor = Predictor(network, device="cpu")
    assert predictor.class_names == ("0", "1", "2")
    results = predictor.predict([pixels[0][:, :, 0], pixels[0][:, :, :1], pixels[0]])
    np.testing.assert_array_equal(results[0].probabilities, results[1].probabilities)


def test_running_out_of_memory_halves_the_batch(network, pixels, monkeypatch):
    predictor = Predictor(network, device="cpu", precision="fp32")
    whole = predictor.predict(pixels)
    forward, sizes = predictor._model.features, []

    def limited(images):
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(predictor._model, "features", limited)
    for one, other in zip(predictor.predict(pixels), whole, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-7)
    assert sizes[0] == 7 and max(sizes[-2:]) <= 2

    def never(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predictor._model, "features", never)
    with pytest.raises(TrainingError, match="single image"):
        predictor.predict(pixels[:2])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 7), np.uint8), 3.5])
def test_what_is_no_image_is_an_error_of_the_caller(predictor, image):
    with pytest.raises(ConfigError, match="image 0"):
        predictor.predict([image])


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
