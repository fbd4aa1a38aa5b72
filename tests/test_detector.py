"""The detector: torchvision's RetinaNet on BiT's maps, its losses, its model file, its answers, and how it is measured."""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
import types
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from bigtransfer import catalog, cli, detector, model, objects, weights
from bigtransfer.backends import graph, onnx_file
from bigtransfer.backends.by_onnxruntime import OnnxDetector
from bigtransfer.backends.by_openvino import OpenVinoDetector
from bigtransfer.backends.by_torch import TorchDetector
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.data.boxes import BoxSet, open_boxes
from bigtransfer.detections import ObjectFinder
from bigtransfer.detector import BoxGoal, Detector
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.evals import detection
from bigtransfer.evals.detection import Objects
from bigtransfer.feed.augment import normalize
from bigtransfer.feed.boxes import BoxLoader, ScaleJitter
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import parity
from bigtransfer.jobs.detect import measuring
from bigtransfer.report import drawing
from bigtransfer.train import loop
from tests import box_makers
from tests.box_makers import scenes
from tests.network_makers import tiny_detector as tiny

TINY = Architecture(units=(1, 1, 1, 1))
SIDE = 64


def by_torchvision(ours: Detector) -> RetinaNet:
    """torchvision's own class, which resizes, pads, looks, matches and chooses by itself, with the same weights."""
    scale = ours.spec.anchor_scale
    sizes = tuple(tuple(scale * stride * 2 ** (i / 3) for i in range(3)) for stride in (8, 16, 32, 64, 128))
    theirs = RetinaNet(
        detector.Pyramid(model.build(TINY, 0), ours.spec.channels),  # type: ignore[arg-type]
        ours.num_classes,
        min_size=SIDE,
        max_size=SIDE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),  # type: ignore[arg-type]
        head=RetinaNetHead(ours.spec.channels, 9, ours.num_classes, norm_layer=partial(nn.GroupNorm, 32)),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        topk_candidates=1000,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def test_losses_are_not_asked_for_as_torchvision_has_them() -> None:
    with pytest.raises(AssertionError, match="the losses are those of the outputs"):
        tiny(2)(
            torch.zeros(1, 3, SIDE, SIDE), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
        )


def test_what_a_training_keeps_is_counted() -> None:
    """By what the modules put out: the budget's micro-batches and the memory of a device are planned with it."""
    ours, kept = tiny(2), 0

    def count(_module: nn.Module, _given: object, found: torch.Tensor) -> None:
        nonlocal kept
        kept += found[0].numel()

    for module in (*ours.head.modules(), *ours.backbone.fpn.modules()):
        if not [*module.children()]:
            module.register_forward_hook(count)
    with torch.no_grad():
        found = ours(torch.zeros(1, 3, 256, 256))
    again = 3 * (found.logits.numel() + found.offsets.numel())  # of what comes out the losses make as much thrice more
    own = ours.activations(256) - ours.body.architecture.activations(256)
    assert own == pytest.approx(kept + again, rel=0.01)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


# --- the network


def test_torchvision_s_retinanet_with_the_same_weights_gives_the_same_boxes() -> None:
    ours = tiny(3)
    images = pictures(3)
    with torch.no_grad():
        theirs = by_torchvision(ours)([torch.from_numpy(one).permute(2, 0, 1) / 255 for one in images])
    found = ObjectFinder(ours, device="cpu", precision="fp32").find(images)
    for one, other in zip(found, theirs, strict=True):
        real = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(1)
        other = {name: values[real] for name, values in other.items()}
        assert len(one.objects.scores) == len(other["scores"]) > 50
        # Scores that are equal but for rounding may change places.
        order, their_order = (
            np.lexsort(np.rint(one.objects.boxes[:, :2] * 10).T),
            np.lexsort(np.rint(other["boxes"][:, :2].numpy() * 10).T),
        )
        np.testing.assert_allclose(one.objects.boxes[order], other["boxes"].numpy()[their_order], atol=2e-3)
        np.testing.assert_allclose(one.objects.scores[order], other["scores"].numpy()[their_order], atol=1e-5)
        assert (one.objects.labels[order] == other["labels"].numpy()[their_order]).all()


def targets() -> Tensor:
    """Of three images: two objects, one, none."""
    rows = [[[0, 4, 4, 30, 40], [1, 20, 10, 60, 60]], [[1, 8, 30, 24, 50], [-1, 0, 0, 0, 0]], [[-1, 0, 0, 0, 0]] * 2]
    return torch.tensor(rows, dtype=torch.float32)


def test_the_losses_are_torchvision_s_summed_over_the_images() -> None:
    ours, labels = tiny(2), targets()
    images = pictures(3)
    theirs = by_torchvision(ours).train()
    wanted = theirs(
        [torch.from_numpy(one).permute(2, 0, 1) / 255 for one in images],
        [{"boxes": one[one[:, 0] >= 0, 1:], "labels": one[one[:, 0] >= 0, 0].long()} for one in labels],
    )
    found = ours(normalize(torch.from_numpy(images).permute(0, 3, 1, 2))).losses(labels)
    assert found["classes"].item() == pytest.approx(3 * wanted["classification"].item(), rel=1e-5)
    assert found["boxes"].item() == pytest.approx(3 * wanted["bbox_regression"].item(), rel=1e-5)
    assert BoxGoal().weighted(found).item() == pytest.approx(sum(found.values()).item())


def test_images_that_could_not_be_read_add_nothing() -> None:
    ours, labels = tiny(2), targets()
    outputs = ours(normalize(torch.from_numpy(pictures(3)).permute(0, 3, 1, 2)))
    readable = torch.tensor([True, False, True])
    some = BoxGoal().losses(outputs, labels, slice(0, 3), readable=readable)
    alone = [outputs.chosen(torch.tensor([i])).losses(labels[i : i + 1]) for i in (0, 2)]
    for name in some:
        assert some[name].item() == pytest.approx(sum(one[name].item() for one in alone), rel=1e-5)
    none = BoxGoal().losses(outputs, labels, slice(1, 2), readable=readable)
    assert BoxGoal().weighted(none).item() == 0


def test_micro_batches_give_the_same_step(tmp_path: Path) -> None:
    boxes = open_boxes(box_makers.voc(tmp_path, {"train": scenes(4)})).train
    recipe = Recipe(steps=1, batch_size=4, resize=SIDE, crop=SIDE, base_learning_rate=0.01)
    results = []
    for micro in (4, 3):
        ours = tiny(2).train()
        state = loop.new_state(ours, recipe, micro_batch=micro)
        batches = BoxLoader(boxes, ScaleJitter(size=SIDE), batch_size=4, seed=0).batches(0, 1)
        (step,) = loop.steps(
            state, batches, recipe, seed=0, device=torch.device("cpu"), dtype=torch.float32, aim=BoxGoal()
        )
        assert step.loss == pytest.approx(step.parts["classes"] + step.parts["boxes"], rel=1e-5)
        results.append((step.loss, step.gradient_norm))
    for one in results[1:]:
        assert one == pytest.approx(results[0], rel=1e-4)


def test_who_finds_no_objects_does_not_wait_for_torchvisions_networks() -> None:
    loaded = "import sys, bigtransfer.weights, bigtransfer.jobs.finetune; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_bfloat16_is_near_float32() -> None:
    ours = tiny(2)
    images = normalize(torch.from_numpy(pictures(2)).permute(0, 3, 1, 2))
    with torch.no_grad():
        exact, rough = ours(images), ours(images.bfloat16())
        folded = ours.folded(torch.bfloat16)(images.bfloat16())
    assert rough.logits.dtype == torch.float32
    assert (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()
    assert torch.equal(rough.logits, folded.logits) and torch.equal(rough.offsets, folded.offsets)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_gradients_of_the_last_levels_in_bfloat16(size: int) -> None:
    """Their maps have one column where images are small, of which oneDNN's gradient of a strided kernel is garbage."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        ours = tiny(2).train()
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1
        maps = ours.backbone(images.to(dtype).contiguous(memory_format=torch.channels_last))
        sum(maps[name].float().square().sum() for name in ("p6", "p7")).backward()  # pyright: ignore[reportAttributeAccessIssue]
        last = ours.backbone.fpn.extra_blocks
        found.append([parameter.grad.double() for layer in (last.p6, last.p7) for parameter in layer.parameters()])
    for exact, rough in zip(*found, strict=True):
        assert (rough - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("channels", [64, 96])
def test_the_card_knows_the_number_of_parameters(channels: int) -> None:
    made = detector.on(model.build(TINY, 10), catalog.Detector(channels=channels), 7)
    assert made.card.num_parameters == sum(parameter.numel() for parameter in made.parameters())


def test_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 channels"):
        detector.on(model.build(dataclasses.replace(TINY, in_chans=1), 0), catalog.Detector(), 2)
    joined = model.joined(model.build(TINY, 0), catalog.Readout(blocks=(2, 3)))
    with pytest.raises(ConfigError, match="BiT's networks"):
        detector.on(joined, catalog.Detector(), 2)


# --- the model file


def test_a_detector_s_file(tmp_path: Path) -> None:
    ours = tiny(2)
    ours.card = dataclasses.replace(ours.card, thresholds=(0.25, 0.75), metrics={"val_ap": 0.5})
    path = tmp_path / "model.safetensors"
    weights.save_detector(path, ours)
    back = weights.load_detector(path)
    assert back.card == ours.card == weights.describe(path) == weights.load_detector(tmp_path).card
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    with pytest.raises(WeightsError, match="is a detector"):
        weights.load(path)


def test_what_is_no_detector_or_not_what_it_says(tmp_path: Path) -> None:
    weights.save(tmp_path / "classifier.safetensors", model.build(TINY, 2))
    with pytest.raises(WeightsError, match="no detector"):
        weights.load_detector(tmp_path / "classifier.safetensors")
    with pytest.raises(WeightsError, match=r"^bit-t-r26x1 is no detector"):  # a name, and no file of that name
        weights.load_detector("bit-t-r26x1")
    path = tmp_path / "model.safetensors"
    weights.save_detector(path, tiny(2))
    tensors, card = load_file(path), tiny(2).card
    lacking = {name: tensor for name, tensor in tensors.items() if not name.endswith("bbox_reg.bias")}
    for odd in (
        lacking,
        tensors | {"extra": torch.zeros(1)},
        tensors | {"head.regression_head.bbox_reg.bias": torch.zeros(3)},
    ):
        save_file(odd, path, {"bigtransfer": card.to_json()})
        with pytest.raises(WeightsError, match="not what its card says"):
            weights.load_detector(path)
    record = json.loads(card.to_json())
    for change in ({"channels": 100}, {"channels": 2**20}, {"anchor_scale": 0}, {"anchor_scale": "wide"}, 5):
        save_file(tensors, path, {"bigtransfer": json.dumps(record | {"detector": change})})
        with pytest.raises(WeightsError, match="detector"):
            weights.load_detector(path)
    # A classifier's tensors under a detector's card, and a network of which there are none.
    weights.save(path, model.build(card.architecture, 2))
    save_file(load_file(path), path, {"bigtransfer": card.to_json()})
    with pytest.raises(WeightsError, match=r"model.safetensors is not what its card says"):
        weights.describe(path, whole=True)
    seen = dataclasses.replace(card, architecture=card.architecture.seen(Readout(blocks=(0, 3))))
    save_file(tensors, path, {"bigtransfer": seen.to_json()})
    with pytest.raises(WeightsError, match=r"model.safetensors is not what its card says.* are made of BiT's"):
        weights.load_detector(path)


def test_earlier_cards_are_read_as_classifiers() -> None:
    record = json.loads(ModelCard.bare(TINY, 2).to_json())
    del record["detector"]
    assert ModelCard.from_json(json.dumps(record)).detector is None


# --- the answers


def test_boxes_come_back_in_the_image_s_own_pixels() -> None:
    """What the network sees of an image and of its enlargement is the same; the boxes are enlarged, and none reaches beyond the image."""
    finder = ObjectFinder(tiny(2), device="cpu", precision="fp32")
    (pixels, size) = finder.prepare(np.random.default_rng(1).integers(0, 256, (32, SIDE, 3), dtype=np.uint8))
    assert pixels.shape == (SIDE, SIDE, 3) and size == (32, SIDE)
    one, other = finder.answer([pixels, pixels], [size, (96, 4 * SIDE)])
    assert len(one.scores) > 5 and (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    assert one.boxes[:, 2].max() <= SIDE and one.boxes[:, 3].max() <= 32 and one.boxes.min() >= 0
    assert other.boxes[:, 3].max() <= 96 and other.boxes[:, 2].max() <= 4 * SIDE
    (same,) = finder.answer([pixels], [(128, 4 * SIDE)])
    np.testing.assert_allclose(same.boxes, 4 * one.boxes, atol=0.02)  # sums of another batch are rounded otherwise


def test_answers_do_not_depend_on_the_batch_and_bad_images_do_not_stop_it(tmp_path: Path) -> None:
    finder = ObjectFinder(tiny(2), device="cpu", precision="fp32")
    images = pictures(3)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    found = finder.find([images[0], tmp_path / "bad.jpg", images[1], images[2]])
    assert found[1].error and not len(found[1].objects.labels)
    for one, pixels in zip((found[0], found[2], found[3]), images, strict=True):
        (alone,) = finder.find([pixels], batch_size=1)
        np.testing.assert_allclose(one.objects.boxes, alone.objects.boxes, atol=1e-3)
    record = found[0].record(0.3)
    assert record["width"] == SIDE and all(0.3 <= one["score"] <= 1 for one in record["objects"])
    assert found[1].record() == {"image": str(tmp_path / "bad.jpg"), "error": found[1].error}


# --- exported


@pytest.mark.parametrize(("size", "input"), [(SIDE, "float32"), (160, "uint8")])
def test_the_exported_detector_answers_as_with_torch(size: int, input: Any) -> None:
    """At 64 px P6 and P7 are of one place each; at 160 px the maps' sides are odd."""
    ours = tiny(3)
    ours.card = dataclasses.replace(ours.card, input=InputSpec(size=size, mode="fit"))
    content = graph.onnx_detector(ours, input=input)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, size, size), dtype=np.uint8)
    found = parity.compare_boxes(content, ours, pixels)
    assert max(found.logits, found.offsets) < 2e-4 and found.boxes > 20 and found.same > found.boxes / 2, (
        found
    )  # 9e-5 seen without AVX-512
    other = parity.compare_boxes(content, ours, pixels, by=OpenVinoDetector)
    assert max(other.logits, other.offsets) < 2e-4 and other.boxes > 20 and other.same > other.boxes / 2, other
    # And what is made of its numbers is what torchvision makes of the same ones, images of any shape included.
    runner = OnnxDetector(onnx_file.parse(content, "x"), "x", None, "auto")
    logits, offsets = runner.computed(pixels)
    plain = TorchDetector(ours, "cpu", "fp32")
    outputs = dataclasses.replace(
        plain.outputs(pixels), logits=torch.from_numpy(logits), offsets=torch.from_numpy(offsets)
    )
    extents = [(size, size), (40, size), (size, 33)]
    for one, other in zip(runner.run(pixels, extents), outputs.boxes(extents), strict=True):
        np.testing.assert_array_equal(one.labels, other["labels"].numpy())
        np.testing.assert_allclose(one.scores, other["scores"].numpy(), atol=1e-6)
        np.testing.assert_allclose(one.boxes, other["boxes"].numpy(), atol=1e-3)


def test_an_exported_detector_that_answers_otherwise_is_noticed() -> None:
    ours, other = tiny(2), tiny(2, seed=1)
    pixels = np.ascontiguousarray(pictures(2).transpose(0, 3, 1, 2))
    with pytest.raises(WeightsError, match="does not answer as the model does"):
        parity.compare_boxes(graph.onnx_detector(other), ours, pixels).check()
    found = parity.compare_boxes(graph.onnx_detector(ours), ours, pixels)
    found.check()
    with pytest.raises(WeightsError, match="differ by nan"):
        dataclasses.replace(found, offsets=float("nan")).check()


def test_a_detector_s_commands_take_the_exported_file_and_no_others_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tiny(2)
    file, out = tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx"
    weights.save_detector(file, ours)
    photos = [str(tmp_path / "photos" / name) for name in box_makers.write_images(tmp_path / "photos", scenes(3, 1))]
    assert cli.main(["convert", str(file), str(out), "--to", "onnx", "--images", str(tmp_path / "photos")]) == 0
    told = capsys.readouterr().out
    assert "3 images of" in told and "boxes the same" in told and f"bit detect predict {out} IMAGES" in told
    assert [one.name for one in ObjectFinder.load(out).find(photos)] == photos
    for one, other in zip(ObjectFinder.load(out).find(photos), ObjectFinder(ours).find(photos), strict=True):
        assert one.objects.labels[:3].tolist() == other.objects.labels[:3].tolist()
    script = (
        "import sys; from bigtransfer import cli; code = cli.main(sys.argv[1:]);"
        "slow = {'torch', 'torchvision', 'pycocotools', 'scipy', 'onnx', 'matplotlib'} & set(sys.modules);"
        "assert not slow, slow; sys.exit(code)"
    )
    arguments = ["detect", "predict", str(out), *photos, "--threshold", "0.1", "--format", "csv"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(".png,") > 3, done.stderr
    for wrong in (
        ["predict", str(out), photos[0]],
        ["predict", str(out), photos[0], "--backend", "openvino"],
        ["finetune", str(tmp_path), "--model", str(file), "--no-pretrained", "--out", str(tmp_path / "run")],
        ["compare", str(tmp_path), "--models", f"{file},bit-t-r26x1", "--out", str(tmp_path / "run")],
    ):
        box_makers.write_images(tmp_path / "red", scenes(1, 1))
        assert cli.main(wrong) == 2
        assert "is a detector" in capsys.readouterr().err, wrong
    # By whichever backend, and what cannot be is said.
    answers = {}
    for backend in ("onnxruntime", "openvino"):
        for which in (file, out):
            finder = ObjectFinder.load(which, backend=backend, precision="fp32")  # type: ignore[arg-type]
            answers[backend, which] = finder.find(photos[0])[0].record(0.1)
            assert (finder.device, finder.precision) == ("cpu", "fp32")
        command = ["detect", "predict", str(out), photos[0], "--backend", backend, "--precision", "fp32"]
        assert cli.main([*command, "--format", "jsonl", "--threshold", "0.1"]) == 0
        assert json.loads(capsys.readouterr().out) == answers[backend, out]
    first, *others = answers.values()
    for other in others:
        assert [one["label"] for one in other["objects"]] == [one["label"] for one in first["objects"]]
    assert cli.main(["detect", "predict", str(out), photos[0], "--backend", "torch"]) == 2
    assert "which torch does not compute" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="`bit benchmark` measures nothing"):
        ObjectFinder.load(out, backend="fastest")
    for ending, reason, flags in (
        ("safetensors", "no other program reads its form", ["--to", "timm"]),
        ("onnx", "--dtype float16 halves the file", ["--to", "onnx", "--dtype", "int8"]),
        ("html", f"`bit serve {file}` has one that draws boxes", ["--to", "web"]),
        ("html", f"`bit serve {file}` has one that draws boxes", ["--to", "web", "--dtype", "int8"]),
    ):
        with monkeypatch.context() as patch:  # before anything is done
            patch.setattr(weights, "load_detector", lambda *_: pytest.fail("it was loaded"))
            assert cli.main(["convert", str(file), str(tmp_path / f"no.{ending}"), *flags]) == 2
        told = capsys.readouterr().err
        assert "by --to onnx only" in told and reason in told
    network = model.build(TINY, 2)
    weights.save(tmp_path / "plain.safetensors", network)
    (tmp_path / "plain.onnx").write_bytes(graph.onnx_model(network))
    for other in ("plain.safetensors", "plain.onnx"):
        assert cli.main(["detect", "predict", str(tmp_path / other), photos[0]]) == 2
        assert "is no detector" in capsys.readouterr().err


def test_a_file_that_is_not_what_its_card_says_is_no_detector() -> None:
    ours = tiny(2)
    content = graph.onnx_detector(ours)
    ours.card = dataclasses.replace(ours.card, num_classes=3, class_names=("a", "b", "c"))
    changed = onnx.load_from_string(content)
    onnx.helper.set_model_props(changed, {onnx_file.CARD_KEY: ours.card.to_json()})
    with pytest.raises(WeightsError, match="not what its card says"):
        OnnxDetector(onnx_file.parse(changed.SerializeToString(), "x"), "x", None, "auto")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    ours = tiny(2)
    with torch.no_grad():
        ours.head.regression_head.bbox_reg.bias[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        ObjectFinder(ours, device="cpu").find(pictures(1))
    other = tiny(2)
    with torch.no_grad():  # of one class alone
        other.head.classification_head.cls_logits.bias[0] = float("inf")
    with pytest.raises(WeightsError, match="not finite"):
        ObjectFinder(other, device="cpu").find(pictures(1))
    weights.save_detector(tmp_path / "nan.safetensors", ours)
    with pytest.raises(WeightsError, match=r"nan\.safetensors holds numbers that are not finite, in .*bbox_reg\.bias"):
        weights.load_detector(tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="not finite"):
        weights.describe(tmp_path / "nan.safetensors", whole=True)


def test_boxes_are_drawn_around_what_is_in_them() -> None:
    shown = np.asarray(drawing.drawn(np.full((100, 120, 3), 7, np.uint8), np.array([[20.0, 30, 80, 90]]), ["ant"], [1]))
    assert (shown[32:89, 22:79] == 7).all(), "of a small image the lines are thin"
    assert (shown[30:91, (20, 80)] == (60, 180, 75)).all() and (shown[(30, 90), 20:81] == (60, 180, 75)).all()
    assert (shown[:30, :20] == 7).all() and not (shown[15:30, 20:50] == 7).all(), "what it is stands above"
    large = np.asarray(
        drawing.drawn(np.zeros((400, 1200, 3), np.uint8), np.array([[20.0, 90, 800, 300]]), ["ant"], [1])
    )
    assert large[200, 15:30, 1].astype(bool).sum() == 3, "of large images thicker"


def test_thresholds_of_each_class() -> None:
    objects = Objects(np.zeros((3, 4), np.float32), np.array([0.9, 0.6, 0.4], np.float32), np.array([0, 1, 0]))
    assert objects.above(np.array([0.5, 0.7])).scores.tolist() == pytest.approx([0.9])
    assert objects.above(np.array([0.4, 0.6], np.float32)).scores.tolist() == pytest.approx([0.9, 0.6, 0.4])


# --- how it is measured


def box_set(truths: list[list[tuple[int, list[float], bool]]], classes: int = 2, side: int = 200) -> BoxSet:
    """Images of `side` px with those objects: class, box, crowd."""

    class Nothing:
        encoded, remote, runs = True, False, None

        def name(self, row: int) -> str:
            return f"{row}.jpg"

    from bigtransfer.data import ImageSet

    flat = [one for own in truths for one in own]
    boxes = np.array([box for _, box, _ in flat], np.float32).reshape(-1, 4)
    return BoxSet(
        images=ImageSet(Nothing(), range(len(truths)), None, ()),  # type: ignore[arg-type]
        sizes=np.full((len(truths), 2), side),
        starts=np.cumsum([0, *map(len, truths)]),
        boxes=boxes,
        labels=np.array([label for label, _, _ in flat], np.int64),
        crowd=np.array([crowd for _, _, crowd in flat], bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        class_names=tuple("abcdefgh"[:classes]),
    )


def reference_ap(truths: BoxSet, found: list[Objects], label: int, overlap: float) -> float:
    """Average precision by its definition, float64: greedy matching by score, 101 points of recall. Crowds are not among these objects."""
    scored, total = [], 0
    for i, own in enumerate(found):
        here = truths.of(i)
        boxes = [
            box for box, kind in zip(truths.boxes[here].tolist(), truths.labels[here], strict=True) if kind == label
        ]
        total += len(boxes)
        taken: set[int] = set()
        order = sorted(np.flatnonzero(own.labels == label).tolist(), key=lambda k: -own.scores[k])
        for k in order:
            x = own.boxes[k].tolist()
            best, place = overlap, -1
            for j, y in enumerate(boxes):
                width = min(x[2], y[2]) - max(x[0], y[0])
                height = min(x[3], y[3]) - max(x[1], y[1])
                shared = max(width, 0) * max(height, 0)
                union = (x[2] - x[0]) * (x[3] - x[1]) + (y[2] - y[0]) * (y[3] - y[1]) - shared
                if j not in taken and shared / union >= best:
                    best, place = shared / union, j
            taken.add(place)
            scored.append((float(own.scores[k]), place >= 0))
    if not total:
        return float("nan")
    scored.sort(key=lambda one: -one[0])
    hits = np.cumsum([right for _, right in scored])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / total
    points = [max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(points))


def random_answers(truths: BoxSet, rng: np.random.Generator) -> list[Objects]:
    """Near the objects, somewhere else, twice, and of the wrong class."""
    found = []
    for i in range(len(truths)):
        own = truths.of(i)
        boxes, labels = [], []
        for box, label in zip(truths.boxes[own], truths.labels[own], strict=True):
            for _ in range(rng.integers(0, 3)):
                boxes.append(box + rng.normal(0, 6, 4))
                labels.append(label if rng.random() < 0.8 else 1 - label)
        for _ in range(rng.integers(0, 3)):
            left, top = rng.uniform(0, 150, 2)
            boxes.append(np.array([left, top, left + rng.uniform(5, 60), top + rng.uniform(5, 60)]))
            labels.append(rng.integers(0, 2))
        array = np.array(boxes, np.float32).reshape(-1, 4)
        array[:, 2:] = np.maximum(array[:, 2:], array[:, :2] + 1)
        order = rng.permutation(len(array))
        scores = rng.permutation(np.linspace(0.1, 0.95, len(array))).astype(np.float32) + np.float32(1e-3 * i)
        found.append(Objects(array[order], scores[order], np.array(labels, np.int64)[order]))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_is_what_it_is_by_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truths = []
    for _ in range(12):
        own = []
        for _ in range(rng.integers(0, 5)):
            left, top = rng.uniform(0, 120, 2)
            own.append(
                (int(rng.integers(0, 2)), [left, top, left + rng.uniform(8, 80), top + rng.uniform(8, 80)], False)
            )
        truths.append(own)
    boxes = box_set(truths)
    found = random_answers(boxes, rng)
    measured = detection.average_precision(boxes, found)
    every = [
        [reference_ap(boxes, found, label, overlap) for overlap in np.linspace(0.5, 0.95, 10)] for label in range(2)
    ]
    assert measured.summary["ap"] == pytest.approx(np.mean(every), abs=1e-4)
    assert measured.summary["ap50"] == pytest.approx(np.mean([one[0] for one in every]), abs=1e-4)
    assert measured.summary["ap75"] == pytest.approx(np.mean([one[5] for one in every]), abs=1e-4)
    np.testing.assert_allclose(measured.per_class, [[np.mean(one), one[0]] for one in every], atol=1e-4)


def test_a_hundred_objects_of_an_image_count() -> None:
    """COCO's measure has variants for the best 1 and 10 boxes of an image; these are not they."""
    places = [[float(x), float(y), x + 16.0, y + 16.0] for x in range(0, 200, 20) for y in range(0, 200, 20)]
    boxes = box_set([[(0, place, False) for place in places]], classes=1)
    found = Objects(np.array(places, np.float32), np.linspace(0.9, 0.5, 100, dtype=np.float32), np.zeros(100, np.int64))
    measured = detection.average_precision(boxes, [found])
    there = {name: value for name, value in measured.summary.items() if value is not None}
    assert there == pytest.approx(dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "recall"), 1.0))
    np.testing.assert_allclose(measured.per_class, 1.0)


def test_sizes_crowds_and_nothing_at_all() -> None:
    small, large = [10.0, 10, 30, 30], [50.0, 50, 160, 160]
    boxes = box_set([[(0, small, False), (0, large, False)], [(1, large, True)], []])
    nothing = [Objects.none()] * 3
    assert detection.average_precision(boxes, nothing).summary["ap"] == 0
    right = Objects(np.array([small], np.float32), np.array([0.9], np.float32), np.array([0]))
    on_crowd = Objects(np.array([[60, 60, 90, 90]], np.float32), np.array([0.99], np.float32), np.array([1]))
    found = [right, on_crowd, Objects.none()]
    summary = detection.average_precision(boxes, found).summary
    assert summary["ap_small"] == pytest.approx(1) and summary["ap_large"] == 0 and summary["ap_medium"] is None
    result = detection.measured(boxes, found, np.array([0.5, 0.5]), model="m", data="d", split="val")
    assert result.counts() == (1, 1, 0) and result.objects == 2
    assert result.per_class[1].ap is None and [row.name for row in result.per_image] == ["0.jpg", "1.jpg", "2.jpg"]
    kinds = [(one.kind, one.label, one.score) for one in result.per_image[0].objects]
    assert kinds == [("found", 0, 0.9), ("missed", 0, None)]
    empty = box_set([[], []])
    assert detection.average_precision(empty, [Objects.none()] * 2).summary["ap"] is None


def test_found_missed_invented_and_taken_for_another() -> None:
    one, other = [10.0, 10, 50, 50], [100.0, 100, 150, 150]
    boxes = box_set([[(0, one, False), (1, other, False)]])
    answers = Objects(
        np.array([one, one, other, [170, 170, 190, 190]], np.float32),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.array([0, 0, 0, 1]),
    )
    result = detection.measured(boxes, [answers], np.array([0.5, 0.5]), model="m", data="d", split="val")
    seen = [(seen.kind, seen.label, seen.rather) for seen in result.per_image[0].objects]
    # The second box on one object is invented; the third is the other class's object.
    assert seen == [
        ("found", 0, None),
        ("invented", 0, None),
        ("invented", 0, 1),
        ("invented", 1, None),
        ("missed", 1, None),
    ]
    assert result.counts() == (1, 1, 3)
    strict = detection.measured(boxes, [answers], np.array([0.85, 0.85]), model="m", data="d", split="val")
    assert strict.counts() == (1, 1, 0) and strict.ap == result.ap


def test_long_names_of_classes_are_seen_in_the_table() -> None:
    row = detection.ClassRow(
        name="", objects=3, ap=0.5, ap50=0.5, threshold=0.5, found=1, missed=2, invented=0,
    )  # fmt: skip
    names = ("ant", "a" * 12, "b" * 60)
    result = types.SimpleNamespace(
        **dict.fromkeys(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall"), 0.5),
        per_class=tuple(dataclasses.replace(row, name=name) for name in names),
    )
    table = measuring.described(result).splitlines()[-4:]  # type: ignore[arg-type]
    assert [line[:42] for line in table] == [f"{name:<40}  " for name in ("class", *names[:2], "b" * 40)]
    few = dataclasses.replace(row, name="a" * 12)
    result.per_class = (few,)
    assert measuring.described(result).splitlines()[-1].startswith("a" * 12 + "  ")  # type: ignore[arg-type]


def reference_seen(truths: BoxSet, i: int, given: Objects) -> list[tuple[str, int, float | None, int | None]]:
    """Kind, class, score and what it rather is, of what is found and missed on an image, by definition, in exact numbers."""

    def area(box: list[Fraction]) -> Fraction:
        return max(box[2] - box[0], Fraction(0)) * max(box[3] - box[1], Fraction(0))

    def shared(x: list[Fraction], y: list[Fraction]) -> Fraction:
        sides = [pick(pair) for pick, pair in zip((max, max, min, min), zip(x, y, strict=True), strict=True)]
        return Fraction(0) if sides[0] > sides[2] else area(sides)

    def union(x: list[Fraction], y: list[Fraction]) -> Fraction:
        return shared(x, y) / (area(x) + area(y) - shared(x, y))

    own = truths.of(i)
    there = [[Fraction(side) for side in box] for box in truths.boxes[own].tolist()]
    kinds, crowd = truths.labels[own].tolist(), truths.crowd[own].tolist()
    boxes = [[Fraction(side) for side in box] for box in given.boxes.tolist()]
    labels, scores = given.labels.tolist(), given.scores.tolist()
    taken: dict[int, int] = {}
    for k in sorted(range(len(boxes)), key=lambda k: (-scores[k], k)):
        left = [j for j in range(len(there)) if kinds[j] == labels[k] and not crowd[j] and j not in taken]
        best = max(left, key=lambda j: (union(boxes[k], there[j]), -j), default=None)
        if best is not None and 2 * union(boxes[k], there[best]) >= 1:
            taken[best] = k
    missed = [j for j in range(len(there)) if j not in taken and not crowd[j]]
    seen: list[tuple[str, int, float | None, int | None]] = []
    for k, box in enumerate(boxes):
        if k in taken.values():
            seen.append(("found", labels[k], round(scores[k], 4), None))
            continue
        crowds = [there[j] for j in range(len(there)) if crowd[j] and kinds[j] == labels[k]]
        if any(2 * shared(box, one) >= area(box) for one in crowds):
            continue
        others = [j for j in missed if kinds[j] != labels[k] and 2 * union(box, there[j]) >= 1]
        rather = max(others, key=lambda j: (union(box, there[j]), -j), default=None)
        seen.append(("invented", labels[k], round(scores[k], 4), None if rather is None else kinds[rather]))
    return [*seen, *(("missed", kinds[j], None, None) for j in missed)]


def test_what_is_found_missed_and_invented_is_so_by_definition() -> None:
    """Boxes on a coarse grid, so that overlaps of exactly a half, ties of overlap and score, boxes inside boxes and crowds are common."""
    rng = np.random.default_rng(5)

    def placed() -> list[float]:
        corner, sides = rng.choice([0, 0, 0, 8, 40], 2), rng.choice([16, 24, 32], 2)
        return np.concatenate([corner, corner + sides]).astype(float).tolist()

    truths = [
        [(int(rng.integers(3)), placed(), rng.random() < 0.15) for _ in range(rng.integers(8))] for _ in range(120)
    ]
    boxes, found = box_set(truths, classes=3), []
    for own in truths:
        given = [one[:2] if rng.random() < 0.4 else (int(rng.integers(3)), placed()) for one in own]
        found.append(
            Objects(
                np.array([box for _, box in given], np.float32).reshape(-1, 4),
                rng.integers(4, 8, len(given)).astype(np.float32) / 8,
                np.array([label for label, _ in given], np.int64),
            )
        )
    thresholds = np.array([0.5, 0.375, 0.625])
    result = detection.measured(boxes, found, thresholds, model="m", data="d", split="val")
    tallied = collections.Counter()
    for i, (row, every) in enumerate(zip(result.per_image, found, strict=True)):
        wanted = reference_seen(boxes, i, every.above(thresholds))
        assert [(one.kind, one.label, one.score, one.rather) for one in row.objects] == wanted
        tallied.update((kind, label, rather is not None) for kind, label, _, rather in wanted)
    for label, row in enumerate(result.per_class):
        told = {
            kind: sum(tallied[kind, label, other] for other in (False, True))
            for kind in ("found", "missed", "invented")
        }
        assert {"found": row.found, "missed": row.missed, "invented": row.invented} == told
        assert min(told.values()) > 15 and tallied["invented", label, True] > 3


def test_the_thresholds_have_the_best_f1() -> None:
    rng = np.random.default_rng(3)
    truths = [
        [(int(rng.integers(0, 2)), [40.0 * k, 10, 40.0 * k + 30, 40], False) for k in range(4)] for _ in range(10)
    ]
    boxes = box_set(truths, classes=3)
    found = random_answers(boxes, rng)
    chosen = detection.best_thresholds(boxes, found)
    assert chosen[2] == detection.DEFAULT_THRESHOLD  # no object of it

    def f1(thresholds: np.ndarray, label: int) -> float:
        row = detection.measured(boxes, found, thresholds, model="", data="", split="").per_class[label]
        return 2 * row.found / max(1, 2 * row.found + row.missed + row.invented)

    for label in (0, 1):
        best = f1(chosen, label)
        assert best > 0
        for threshold in np.linspace(0.1, 1, 19):
            assert f1(np.full(3, threshold), label) <= best + 1e-9


def test_the_record_survives_the_disk_and_is_checked(tmp_path: Path) -> None:
    boxes = box_set([[(0, [10.0, 10, 50, 50], False)]])
    answers = Objects(np.array([[10, 10, 50, 48]], np.float32), np.array([0.9], np.float32), np.array([0]))
    result = detection.measured(boxes, [answers], np.array([0.5, 0.5]), model="m", data="d", split="val", notes=["odd"])
    path = tmp_path / "evaluation.json"
    detection.write_record(path, result)
    assert detection.read_record(path) == result == detection.read_any(path)
    record = json.loads(path.read_text())
    record["per_class"][0]["found"] = -1
    path.write_text(json.dumps(record))
    from bigtransfer.errors import RunError

    with pytest.raises(RunError, match=r"per_class.*found"):
        detection.read_any(path)


def test_the_measure_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ConfigError, match=r"bigtransfer\[detection\]"):
        detection.average_precision(box_set([[]]), [Objects.none()])


def test_where_nothing_is_likely_nothing_is_found() -> None:
    levels = objects.anchors(catalog.Detector(), 64)
    count = sum(map(len, levels))
    found = objects.chosen(
        np.full((1, count, 2), -20, np.float32), np.zeros((1, count, 4), np.float32), levels, [(64, 64)]
    )
    assert [one.tolist() for one in (found[0].boxes, found[0].scores, found[0].labels)] == [[], [], []]
