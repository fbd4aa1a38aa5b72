"""ILSVRC-2012 in every layout, ReaL, V2, A, R, Sketch and out of context: the right images under the right numbers, and who competes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtransfer import catalog, cli, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.errors import ConfigError, DataError, WeightsError
from bigtransfer.model import ResNetV2
from bigtransfer.suites import ilsvrc, imagenet, out_of_context, registry, results
from bigtransfer.suites.benchmark import Benchmark, MissingData, index_digest
from bigtransfer.suites.imagenet import Places, TopK, ValidationTopK, outputs_of, places_of_best
from bigtransfer.suites.protocol import Measurement, Preparation
from tests import imagenet_makers as makers
from tests.imagenet_makers import VALIDATION, WNIDS, CodedBench, file_of

SMALL = ilsvrc.ilsvrc2012(val=len(VALIDATION), digest=makers.digest())
WORDS = tuple(catalog.class_names("imagenet-1k") or ())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))


def values(measured: list[Measurement]) -> dict[str, float]:
    return {one.metric: one.value for one in measured}


# --- Which output is which class


def _card(count: int, names: tuple[str, ...] | None) -> ModelCard:
    architecture = Architecture(units=(1, 1, 1, 1))
    return ModelCard(
        name="m", architecture=architecture, num_classes=count, class_names=names, input=InputSpec(size=16)
    )


def test_a_head_of_ilsvrc_is_taken_by_number_or_by_its_names() -> None:
    in_order = np.arange(1000)
    turned = tuple(reversed(WNIDS))
    large = dict(zip(catalog.wordnet_ids("imagenet-21k"), catalog.class_names("imagenet-21k") or (), strict=True))
    synset_words = tuple(large.get(wnid, "teddy, teddy bear") for wnid in WNIDS)
    for names in (None, WORDS, WNIDS, tuple(map(str, range(1000)))):
        assert np.array_equal(outputs_of(_card(1000, names)), in_order)
    assert np.array_equal(outputs_of(_card(1000, turned)), in_order[::-1])
    assert synset_words[1] == "goldfish, Carassius auratus"


def test_the_head_of_imagenet_21k_lacks_one_class() -> None:
    for names in (None, catalog.class_names("imagenet-21k"), catalog.wordnet_ids("imagenet-21k")):
        found = outputs_of(_card(21843, names))
        assert np.flatnonzero(found < 0).tolist() == [850]
        ids = catalog.wordnet_ids("imagenet-21k")
        assert [ids[i] for i in found if i >= 0] == [wnid for wnid in WNIDS if wnid != "n04399382"]


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (200, None),
        (21841, None),
        (200, WNIDS[:200]),
        (1000, tuple(f"kind {i}" for i in range(1000))),
        (1000, tuple(catalog.wordnet_ids("imagenet-21k")[:1000])),
        (1000, ("something else", *WORDS[1:])),
    ],
)
def test_a_model_of_other_classes_is_refused(count: int, names: tuple[str, ...] | None) -> None:
    with pytest.raises(ConfigError, match="a classifier of ImageNet's classes is needed"):
        outputs_of(_card(count, names))


def test_a_model_that_does_not_fit_is_refused_before_it_has_seen_an_image(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet")
    bench = CodedBench(SMALL.open(tmp_path, ["val"]), names=WNIDS[:200], outputs=200)
    with pytest.raises(ConfigError, match="coded has 200 classes"):
        ValidationTopK().measure(bench)
    assert not bench.seen


# --- Layouts


LAYOUTS: list[Callable[[Path], None]] = [
    makers.torchvision,
    makers.original_extracted,
    makers.original_packed,
    makers.kaggle,
    makers.webdataset,
    partial(makers.webdataset, labels=[WNIDS[label] for _, label in VALIDATION]),
    makers.parquet,
    partial(makers.parquet, names=WORDS),
]


@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_images_under_the_same_numbers(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "imagenet")
    parts = SMALL.open(tmp_path, ["val"])
    measured = ValidationTopK().measure(CodedBench(parts, names=tuple(reversed(WNIDS))))
    assert values(list(measured)) == {"top-1": 1.0, "top-5": 1.0}
    if "webdataset" not in getattr(make, "__name__", str(make)):
        assert index_digest(parts["val"]) == makers.digest()


def test_the_same_images_of_two_layouts_are_comparable(tmp_path: Path) -> None:
    makers.kaggle(tmp_path / "a" / "imagenet")
    makers.parquet(tmp_path / "b" / "imagenet")
    digests = {index_digest(SMALL.open(tmp_path / one, ["val"])["val"]) for one in "ab"}
    assert len(digests) == 1


def test_archives_that_hold_one_folder_are_looked_into(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet" / "imagenet" / "ILSVRC2012")
    assert len(SMALL.open(tmp_path, ["val"])["val"]) == len(VALIDATION)


def test_train_is_found_beside_val(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet")
    makers.class_folders(tmp_path / "imagenet" / "train", [(1, 3), (2, 999)])
    benchmark = ilsvrc.ilsvrc2012(train=2, val=len(VALIDATION), digest=makers.digest())
    train = benchmark.open(tmp_path)["train"]
    assert train.labels is not None and np.asarray(train.labels).tolist() == [3, 999]


def test_archives_that_do_not_say_which_part_they_are_are_none(tmp_path: Path) -> None:
    makers.original_packed(tmp_path / "imagenet")
    with pytest.raises(DataError, match="has no train part"):
        SMALL.open(tmp_path)


def test_shards_may_lie_in_a_folder_of_their_part(tmp_path: Path) -> None:
    makers.webdataset(tmp_path / "made")
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    for i, shard in enumerate(sorted((tmp_path / "made").iterdir())):
        shard.rename(tmp_path / "imagenet" / "val" / f"{i:05d}.tar")
    assert len(SMALL.open(tmp_path, ["val"])["val"]) == len(VALIDATION)


DEVKIT = [ilsvrc.lists()["devkit"][label] for _, label in VALIDATION]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(makers.parquet, labels=[number - 1 for number in DEVKIT]), "numbers of the development kit"),
        (partial(makers.webdataset, labels=[1000, *DEVKIT[1:]]), "labels up to 1,000"),
        (partial(makers.parquet, names=(*WORDS[500:], *WORDS[:500])), "its class 0 is '.*', not 'tench'"),
        (partial(makers.webdataset, labels=["cat", *WORDS[1:8]]), "neither numbers from 0 to 999 nor WordNet"),
        (partial(makers.parquet, labels=[970, 65, 230, 809, 415, 674, 850, 999]), "other names or labels"),
    ],
)
def test_labels_of_another_numbering_are_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "imagenet")
    with pytest.raises(DataError, match=message):
        SMALL.open(tmp_path, ["val"])


def test_labels_of_the_development_kit_counted_from_one_are_noticed_too(tmp_path: Path) -> None:
    assert max(DEVKIT) < 1000
    makers.parquet(tmp_path / "imagenet", labels=DEVKIT)
    with pytest.raises(DataError, match="numbers of the development kit"):
        SMALL.open(tmp_path, ["val"])


def test_shards_without_names_are_counted_class_by_class(tmp_path: Path) -> None:
    makers.webdataset(tmp_path / "imagenet")
    with pytest.raises(DataError, match=r"0 images of the class n01440764, but 1 of each"):
        dataclasses.replace(SMALL, per_class={"val": 1}).open(tmp_path, ["val"])
    assert ilsvrc.ILSVRC2012.per_class == {"val": 50}


def test_one_published_name_is_enough_for_the_lists_to_be_compared(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet")
    one = tmp_path / "imagenet" / "val" / WNIDS[65] / "ILSVRC2012_val_00000001.JPEG"
    one.rename(one.with_name("mine.JPEG"))
    with pytest.raises(DataError, match="other names or labels"):
        SMALL.open(tmp_path, ["val"])


def test_images_side_by_side_need_what_says_their_classes(tmp_path: Path) -> None:
    makers.flat(tmp_path / "imagenet" / "val")
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv, or the development kit"):
        SMALL.open(tmp_path, ["val"])
    truth = tmp_path / "imagenet" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n")
    with pytest.raises(DataError, match="says nothing about"):
        SMALL.open(tmp_path, ["val"])
    for wrong in ("n01440764", "1001", "0", "9" * 5000):
        truth.write_text(f"1\n{wrong}\n")
        with pytest.raises(DataError, match="line 2: a number from 1 to 1,000 was expected"):
            SMALL.open(tmp_path, ["val"])
    (tmp_path / "imagenet" / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,12\n"
    )
    with pytest.raises(DataError, match="line 2: an ImageId and a WordNet identity were expected, not '12'"):
        SMALL.open(tmp_path, ["val"])


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 no more", b"text"])
def test_a_damaged_development_kit_is_a_message(tmp_path: Path, content: bytes) -> None:
    makers.flat(tmp_path / "imagenet" / "val")
    (tmp_path / "imagenet" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz (cannot be read|does not hold)"):
        SMALL.open(tmp_path, ["val"])


def test_folders_of_other_classes_are_named(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "val" / WNIDS[65]).rename(tmp_path / "imagenet" / "val" / "n00000001")
    with pytest.raises(DataError, match="n00000001 is not a class of ILSVRC-2012"):
        SMALL.open(tmp_path, ["val"])


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"ILSVRC2012_img_val\.tar.*6\.7 GB"):
        ilsvrc.ILSVRC2012.open(tmp_path, ["val"])
    makers.torchvision(tmp_path / "imagenet")
    with pytest.raises(DataError, match="has 8 images, but 50,000 were published"):
        ilsvrc.ILSVRC2012.open(tmp_path, ["val"])


# --- ReaL


def test_real_goes_by_the_names_of_the_images_and_takes_any_of_its_labels(tmp_path: Path) -> None:
    # Of the images 1 to 10: 1 shows none of the classes; 2: 970 or 795, 3: 230 or 231, 8: 700 (by the original label 415), 10: 332.
    shown = {1: 65, 2: 795, 3: 230, 8: 700, 10: 415}
    originals = {1: 65, 2: 970, 3: 230, 8: 415, 10: 332}
    for number, label in originals.items():
        folder = tmp_path / "imagenet" / "val" / WNIDS[label]
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(file_of(shown[number]))
    digest = makers.digest(list(originals.items()))
    parts = ilsvrc.imagenet_real(val=4, digest=digest).open(tmp_path)
    top1, _ = ValidationTopK().measure(CodedBench(parts))
    assert (top1.value, top1.images) == (0.75, 4)


def test_real_has_the_published_numbers() -> None:
    lengths = np.bincount([len(classes) for classes in ilsvrc.real_labels()])
    assert lengths.tolist() == [3163, 39394, 5408, 1319, 411, 161, 88, 41, 13, 2]
    assert ilsvrc.IMAGENET_REAL.parts == {"val": 50_000 - 3163}


def test_real_needs_the_names(tmp_path: Path) -> None:
    makers.webdataset(tmp_path / "imagenet")
    with pytest.raises(DataError, match="go by the names of the images"):
        ilsvrc.imagenet_real(digest=makers.digest()).open(tmp_path)


# --- Sets of their own


def _images(folder: Path, images: dict[str, list[tuple[int, int]]], ending: str = ".jpg") -> None:
    """Folder of a class -> (answer that the model will give, place) of each image."""
    for name, answers in images.items():
        (folder / name).mkdir(parents=True)
        for i, (answer, place) in enumerate(answers):
            (folder / name / f"{name}_{i}{ending}").write_bytes(file_of(answer, place))


def _small(benchmark: Benchmark, images: int) -> Benchmark:
    return dataclasses.replace(benchmark, parts={"test": images}, per_class={})


def test_the_folders_of_v2_are_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "imagenetv2-matched-frequency-format-val"
    _images(folder, {str(n): [(n, 0)] for n in (0, 1, 2, 10, 100, 999)}, ".jpeg")
    parts = _small(imagenet.IMAGENET_V2["matched-frequency"], 6).open(tmp_path)
    assert values(list(TopK().measure(CodedBench(parts)))) == {"top-1": 1.0, "top-5": 1.0}
    (folder / "999").rename(folder / "1000")
    with pytest.raises(DataError, match="1000 is not a class"):
        _small(imagenet.IMAGENET_V2["matched-frequency"], 6).open(tmp_path)


def test_top_5_counts_the_five_highest(tmp_path: Path) -> None:
    _images(tmp_path / "sketch", {WNIDS[7]: [(7, place) for place in range(7)]}, ".JPEG")
    measured = TopK().measure(CodedBench(_small(imagenet.IMAGENET_SKETCH, 7).open(tmp_path)))
    assert values(list(measured)) == {"top-1": 1 / 7, "top-5": 5 / 7}
    low, high = measured[0].interval or (0, 0)
    assert low == pytest.approx(0.0257, abs=1e-3) and high == pytest.approx(0.5131, abs=1e-3)  # Wilson's, by hand


@pytest.mark.parametrize("which", ["imagenet-a", "imagenet-r"])
def test_only_the_200_classes_of_a_and_r_compete(tmp_path: Path, which: str) -> None:
    own = ilsvrc.lists()[which]
    outside = next(i for i in range(own[0] + 1, 1000) if i not in own and i - 1 in own)
    images = {WNIDS[i]: [(i, 0)] for i in own}
    images[WNIDS[outside - 1]] = [(outside - 1, 1)]  # the class behind it, which is not of the set, is higher
    _images(tmp_path / which, images)
    benchmark = _small(imagenet.IMAGENET_A if which == "imagenet-a" else imagenet.IMAGENET_R, 200)
    bench = CodedBench(benchmark.open(tmp_path))
    assert values(list(TopK(among="own").measure(bench)))["top-1"] == 1.0
    assert values(list(TopK().measure(bench)))["top-1"] == 1 - 1 / 200
    assert registry.SUITES["imagenet"].task(which[-1]).protocol.parameters()["among"] == "own"
    (tmp_path / which / WNIDS[own[0]]).rename(tmp_path / which / WNIDS[next(i for i in range(1000) if i not in own)])
    with pytest.raises(DataError, match=rf"not the 200 of the set: also n\d+; without {WNIDS[own[0]]}"):
        benchmark.open(tmp_path)


# --- Out of context


def test_folders_of_objects_are_resolved(tmp_path: Path) -> None:
    resolve = out_of_context.directory_classes
    assert resolve("traffic_light") == (920,)
    assert resolve("Studio couch") == (831,)
    assert resolve("limousine") == (627,)
    assert resolve("tiger shark") == (3,)
    assert resolve("Carcharodon carcharias") == (2,)
    assert resolve("kite") == (21,)
    assert resolve(WNIDS[5]) == (5,)
    assert resolve("crane") == ()  # the bird and the machine
    assert resolve("sofa") == ()


def test_folders_that_cannot_be_resolved_are_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "out-of-context"
    _images(root, {"zebra": [(340, 0)], "crane": [(517, 0)], "car": [(817, 0)]})
    benchmark = _small(out_of_context.OUT_OF_CONTEXT, 3)
    with pytest.raises(DataError, match=r"cannot be told: car, crane\. Say it in .*classes\.json"):
        benchmark.open(tmp_path)
    (root / "classes.json").write_text(json.dumps({"crane": 134, "car": [436, 817]}))
    measured = TopK().measure(CodedBench(benchmark.open(tmp_path)))
    assert measured[0].value == pytest.approx(2 / 3)
    (root / "classes.json").write_text(json.dumps({"crane": 1000}))
    with pytest.raises(DataError, match="crane: numbers of classes"):
        benchmark.open(tmp_path)


# --- Metrics


def test_of_equal_values_the_first_counts_as_higher() -> None:
    values = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    right = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=bool)
    assert places_of_best(values, right).tolist() == [0, 1, 1]


def test_a_class_without_an_output_is_never_right() -> None:
    values = np.array([[-np.inf, 1.0, 0.0], [-np.inf, -np.inf, 0.0]])
    right = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    assert (places_of_best(values, right) > 0).all()


def test_the_head_of_21k_is_wrong_about_teddies_and_says_so(tmp_path: Path) -> None:
    makers.torchvision(tmp_path / "imagenet")
    measured = ValidationTopK().measure(CodedBench(SMALL.open(tmp_path, ["val"]), outputs=21843))
    assert measured[0].value == 7 / 8
    assert "no output for class 850" in measured[0].note


def test_no_other_output_stands_for_the_class_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.torchvision(tmp_path / "imagenet")
    monkeypatch.setattr(CodedBench, "_answer", lambda *_: np.arange(21843, dtype=np.float32)[::-1].copy())
    bench = CodedBench(SMALL.open(tmp_path, ["val"]), outputs=21843)
    rows = [values for values, _, _ in imagenet.scores(bench, bench.parts["val"], imagenet.SQUARE)]
    assert np.isneginf(np.concatenate(rows)[:, 850]).all()


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.torchvision(tmp_path / "imagenet")
    monkeypatch.setattr(CodedBench, "_answer", lambda *_: np.full(1000, np.nan, np.float32))
    with pytest.raises(WeightsError, match="not finite"):
        ValidationTopK().measure(CodedBench(SMALL.open(tmp_path, ["val"])))


def test_chance_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.torchvision(tmp_path / "imagenet")
    bench = CodedBench(SMALL.open(tmp_path, ["val"]))
    assert "chance" not in ValidationTopK().measure(bench)[0].note
    monkeypatch.setattr(CodedBench, "_answer", lambda *_: np.arange(1000, dtype=np.float32)[::-1].copy())
    assert "no better than chance" in ValidationTopK().measure(bench)[0].note


@pytest.mark.parametrize("seed", range(4))
def test_numbers_do_not_depend_on_batches_order_or_images_that_come_twice(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {WNIDS[int(i)]: [(int(i), int(rng.integers(8)))] * 2 for i in rng.choice(1000, 6, replace=False)}
    _images(tmp_path / "sketch", images, ".JPEG")
    parts = _small(imagenet.IMAGENET_SKETCH, 12).open(tmp_path)
    reference = list(TopK().measure(CodedBench(parts, batch=1)))
    padded = [*rng.permutation(12).tolist(), *rng.integers(12, size=3).tolist()]
    for batch in (1, 5, 64):
        assert list(TopK().measure(CodedBench(parts, batch=batch, order=padded))) == reference


def test_an_image_that_was_not_seen_is_noticed() -> None:
    places = Places(3)
    places.add(np.array([0, 2]), np.array([0, 0]))
    with pytest.raises(AssertionError, match="not all images"):
        places.share("top-1", 1)


def test_both_sides_are_resized_by_default_and_variants_keep_the_aspect(tmp_path: Path) -> None:
    (tmp_path / "sketch" / WNIDS[3]).mkdir(parents=True)
    (tmp_path / "sketch" / WNIDS[3] / "wide.JPEG").write_bytes(file_of(3, height=16, width=64))
    parts = _small(imagenet.IMAGENET_SKETCH, 1).open(tmp_path)
    suite = registry.SUITES["imagenet"]
    shapes = {
        name: suite.task(name).protocol.preparation.spec(CodedBench(parts).card)  # type: ignore[attr-defined]
        for name in ("sketch", "sketch/aspect", "sketch/square-480")
    }
    assert shapes["sketch"] == InputSpec(size=16)
    assert shapes["sketch/aspect"] == InputSpec(size=16, mode="aspect")
    assert shapes["sketch/square-480"] == InputSpec(size=480)
    assert TopK(preparation=Preparation(mode="aspect")).measure(CodedBench(parts))[0].value == 1.0


# --- The command


def test_the_command_measures_a_network_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network whose answer is always class 7, and then 8."""
    network = ResNetV2((1, 1, 1, 1), 1, 1000)
    with torch.no_grad():
        network.head.bias.zero_()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
        network.head.weight.zero_()  # pyright: ignore[reportCallIssue]
        network.head.bias[7:9] = torch.tensor([2.0, 1.0])  # pyright: ignore[reportOptionalSubscript]
    network.card = dataclasses.replace(_card(1000, None), architecture=network.architecture)
    weights.save(tmp_path / "seven.safetensors", network)
    _images(tmp_path / "root" / "sketch", {WNIDS[7]: [(0, 0)] * 3, WNIDS[8]: [(0, 0)]}, ".JPEG")
    suite = registry.SUITES["imagenet"]
    task = dataclasses.replace(suite.task("sketch"), benchmark=_small(imagenet.IMAGENET_SKETCH, 4))
    monkeypatch.setitem(
        registry.SUITES, "imagenet", dataclasses.replace(suite, tasks=(suite.task("a"), task), extra=())
    )
    file = str(tmp_path / "r.jsonl")
    command = ["evaluate", str(tmp_path / "seven.safetensors"), "--suite", "imagenet", "--root", str(tmp_path / "root")]
    assert cli.main([*command, "--results", file, "--device", "cpu"]) == 1
    assert "a: not run. ImageNet-A is not here" in capsys.readouterr().err
    top1, top5 = results.read([file])
    assert (top1.value, top5.value, top1.benchmark) == (0.75, 1.0, "imagenet-sketch")
    assert "order of the WordNet identities" in top1.note
