"""The classic transfer sets from their true layouts, and learning from all or few of their images."""

from __future__ import annotations

import dataclasses
import pickle
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.catalog import class_names
from bigtransfer.data import cifar
from bigtransfer.errors import DataError
from bigtransfer.evals import linear
from bigtransfer.suites import registry, transfer
from bigtransfer.suites.benchmark import Benchmark, index_digest
from bigtransfer.suites.learning import (
    BIG_VISION,
    LEARNERS,
    FewShot,
    FewshotLsr,
    HyperRule,
    LinearProbe,
    OnFeatures,
    Transfer,
    drawn,
)
from tests.transfer_makers import (
    PixelBench,
    cifar_arrays,
    make_cifar_binary,
    make_cifar_pickled,
    make_flowers,
    make_pets,
    names_at,
    rearranged,
)

EACH = {"train": 2, "val": 2, "test": 1, "train+val": 4}
Make = Callable[[Path, Mapping[str, int]], None]


def _small(benchmark: Benchmark) -> Benchmark:
    return dataclasses.replace(benchmark, parts={part: EACH[part] * benchmark.classes for part in benchmark.parts})


def _cifar(make: Callable[..., None], edition: cifar.Edition) -> Make:
    return lambda folder, each: make(folder, edition, each)


CASES = {
    "cifar-10-batches-bin": (transfer.CIFAR10, _cifar(make_cifar_binary, cifar.CIFAR10), (1, 2)),
    "cifar-10-batches-py": (transfer.CIFAR10, _cifar(make_cifar_pickled, cifar.CIFAR10), (1, 2)),
    "cifar-100-binary": (transfer.CIFAR100, _cifar(make_cifar_binary, cifar.CIFAR100), (1, 2)),
    "cifar-100-python": (transfer.CIFAR100, _cifar(make_cifar_pickled, cifar.CIFAR100), (1, 2)),
    "oxford-iiit-pet": (transfer.PETS, make_pets, (0, 0)),
    "flowers-102": (transfer.FLOWERS, make_flowers, (0, 0)),
}


@pytest.mark.parametrize("folder", CASES)
def test_every_image_of_every_layout_has_its_label(folder: str, tmp_path: Path) -> None:
    benchmark, make, at = CASES[folder]
    make(tmp_path / folder, EACH)
    parts = _small(benchmark).open(tmp_path)
    assert parts.keys() == benchmark.parts.keys()
    for images in parts.values():
        assert images.labels is not None
        codes = [int(images.read(i)[at][0]) for i in range(len(images))]
        assert codes == np.asarray(images.labels).tolist()
        assert len({images.name(i) for i in range(len(images))}) == len(images)


def test_the_pixels_of_cifar_are_those_that_were_stored_and_both_forms_are_one_set(tmp_path: Path) -> None:
    make_cifar_binary(tmp_path / "cifar-100-binary", cifar.CIFAR100, EACH)
    binary = _small(transfer.CIFAR100).open(tmp_path)
    pixels, labels = cifar_arrays(100, EACH["train"], 0)
    train = pickle.loads(pickle.dumps(binary["train"]))
    assert all(np.array_equal(train.read(i), pixels[i]) for i in range(0, 200, 37))
    assert train.size(3) == (32, 32)
    assert train.labels.tolist() == labels.tolist()
    assert len(pickle.dumps(train.store)) < 2000
    for protocol in (2, 4, 5):
        make_cifar_pickled(tmp_path / f"{protocol}" / "cifar-100-python", cifar.CIFAR100, EACH, protocol)
        pickled = _small(transfer.CIFAR100).open(tmp_path / f"{protocol}")
        for part, images in pickled.items():
            assert index_digest(images) == index_digest(binary[part])
            assert images.data(5) == binary[part].data(5)


class _Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return open, ("/dev/null",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": _Dangerous()}), "could run any code"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.int32), b"labels": [0, 1, 2]}), "not one row of 3,072 bytes"),
        (pickle.dumps({b"data": np.zeros((3, 3000), np.uint8), b"labels": [0, 1, 2]}), "not one row of 3,072 bytes"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1]}), "2 labels for 3 images"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, "x"]}), "labels that are no numbers"),
        (pickle.dumps({b"labels": [0]}), "does not hold"),
        (pickle.dumps([1]), "does not hold a dictionary"),
        (b"\x80\x02" + b"(" * 10, "is no file of CIFAR"),
        (b"no pickle", "is no file of CIFAR"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 11]}), "label 11 among 10 classes"),
    ],
)
def test_a_pickle_that_is_not_cifars_is_refused_and_never_run(content: bytes, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    make_cifar_pickled(folder, cifar.CIFAR10, EACH)
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        _small(transfer.CIFAR10).open(tmp_path)
    assert "data_batch" in str(caught.value) or "cifar-10-batches-py" in str(caught.value)


def test_a_batch_that_is_cut_off_or_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    make_cifar_binary(folder, cifar.CIFAR10, EACH)
    whole = (folder / "data_batch_2.bin").read_bytes()
    (folder / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_2.bin has .* no whole number of records"):
        _small(transfer.CIFAR10).open(tmp_path)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2.bin"):
        _small(transfer.CIFAR10).open(tmp_path)


def test_class_names_in_another_order_are_refused(tmp_path: Path) -> None:
    make_cifar_binary(tmp_path / "cifar-10-batches-bin", cifar.CIFAR10, EACH)
    names = tmp_path / "cifar-10-batches-bin" / "batches.meta.txt"
    names.write_text(names.read_text().replace("cat", "dog", 1))
    with pytest.raises(DataError, match="class 3 is called 'dog' there, but 'cat' as published"):
        _small(transfer.CIFAR10).open(tmp_path)
    names.write_text("airplane\n")
    with pytest.raises(DataError, match="names 1 classes, but 10"):
        _small(transfer.CIFAR10).open(tmp_path)


def test_labels_that_are_not_spread_evenly_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    make_cifar_binary(folder, cifar.CIFAR10, EACH)
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[0] = (content[0] + 1) % 10
    (folder / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match="labels not mixed up"):
        _small(transfer.CIFAR10).open(tmp_path, ["test"])


@pytest.mark.parametrize("benchmark", [transfer.CIFAR10, transfer.CIFAR100])
def test_cifar_as_folders_of_image_files(benchmark: Benchmark, tmp_path: Path) -> None:
    from PIL import Image

    names = class_names(benchmark.name.replace("-", ""))
    assert names is not None
    base = tmp_path / benchmark.name
    for part in ("train", "test"):
        pixels, labels = cifar_arrays(benchmark.classes, EACH[part], 0)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            folder = base / part / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    parts = _small(benchmark).open(tmp_path)
    assert {name: len(images) for name, images in parts.items()} == {
        "train": 2 * benchmark.classes,
        "test": benchmark.classes,
    }
    for part in ("train", "test"):
        (base / part / names[2]).rename(base / part / "aaa")
    with pytest.raises(DataError, match="folders of the classes are aaa, "):
        _small(benchmark).open(tmp_path)


def test_pets_whose_class_numbers_do_not_fit_their_breeds_are_refused(tmp_path: Path) -> None:
    make_pets(tmp_path / "pets", EACH)
    file = tmp_path / "pets" / "annotations" / "test.txt"
    lines = file.read_text().splitlines()
    wrong = lines[0].split()
    for row in (
        f"{wrong[0]} 2 1 1",
        f"{wrong[0]} 99 1 1",
        f"{wrong[0]} {'9' * 5000} 1 1",
        f"{wrong[0]}",
        "#Image CLASS-ID",
    ):
        file.write_text("\n".join([row, *lines[1:]]))
        with pytest.raises(DataError, match=r"test.txt, line 1"):
            _small(transfer.PETS).open(tmp_path)
    file.write_text("\n".join(lines))
    (tmp_path / "pets" / "images" / f"{wrong[0]}.jpg").unlink()
    with pytest.raises(DataError, match="1 of 37 listed images are not there"):
        _small(transfer.PETS).open(tmp_path)


def test_all_of_what_was_published_is_asked_for() -> None:
    """Images in all, as their authors count them."""
    published = (
        (transfer.FLOWERS, 8_189),
        (transfer.PETS, 7_349),
        (transfer.CIFAR10, 60_000),
        (transfer.CIFAR100, 60_000),
    )
    for benchmark, count in published:
        parts = benchmark.parts
        assert sum(parts[part] for part in parts if "+" not in part) == count, benchmark.name
        for part in parts:
            assert parts[part] == sum(parts[one] for one in part.split("+")), benchmark.name


def test_flowers_splits_used_the_other_way_round_or_without_their_files(tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    make_flowers(tmp_path / "flowers-102", EACH)
    assert len(_small(transfer.FLOWERS).open(tmp_path, ["train+val"])["train+val"]) == 4 * 102
    file = tmp_path / "flowers-102" / "setid.mat"
    ids = {key: value for key, value in loadmat(file).items() if not key.startswith("_")}
    savemat(file, ids | {"trnid": ids["tstid"], "tstid": ids["trnid"]})
    with pytest.raises(DataError, match="102 images, but 204 were published"):
        _small(transfer.FLOWERS).open(tmp_path)
    savemat(file, {"trnid": ids["trnid"]})
    with pytest.raises(DataError, match=r"setid.mat holds no numbers called valid"):
        _small(transfer.FLOWERS).open(tmp_path)
    savemat(file, ids | {"trnid": ids["trnid"] + 10_000})
    with pytest.raises(DataError, match="of 510 that have labels"):
        _small(transfer.FLOWERS).open(tmp_path)
    file.write_bytes(b"junk" * 100)
    with pytest.raises(DataError, match=r"setid.mat"):
        _small(transfer.FLOWERS).open(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, object]:
    make_cifar_binary(tmp_path / "cifar-10-batches-bin", cifar.CIFAR10, {"train": 12, "test": 3})
    benchmark = dataclasses.replace(transfer.CIFAR10, parts={"train": 120, "test": 30})
    return dict(benchmark.open(tmp_path))


def test_the_rule_learns_from_the_drawn_images_and_the_median_is_of_its_accuracies(parts: dict) -> None:
    bench = PixelBench(parts, (1, 2))
    protocol = FewShot(learner=HyperRule(variant="code"), shots=2)
    median, *each = protocol.measure(bench)
    assert median.metric == "top-1 (median)"
    assert [one.metric for one in each] == [f"top-1 (draw {number})" for number in range(5)]
    assert median.value == 1.0
    assert len(bench.calls) == 5
    for number, ((_, names, settings), one) in enumerate(zip(bench.calls, each, strict=True)):
        assert settings == {"variant": "code", "seed": number}
        assert sorted(names_at(parts["train"], one.drawn)) == names
        assert len(set(names)) == 20
    assert len({one.drawn for one in each}) == 5


def test_draws_are_of_each_class_nested_and_do_not_depend_on_the_order(parts: dict) -> None:
    train = parts["train"]
    rows = drawn(train, 5, seed=3)
    assert np.bincount(train.labels[rows]).tolist() == [5] * 10
    assert set(drawn(train, 1, seed=3)) <= set(rows)
    assert set(drawn(train, 5, seed=4)) != set(rows)
    mixed = rearranged(train)
    again = drawn(mixed, 5, seed=3)
    assert [mixed.name(i) for i in again] == [train.name(i) for i in rows]
    with pytest.raises(DataError, match="13 images of each class are asked for, but there are 12 of airplane"):
        drawn(train, 13, seed=0)


@pytest.mark.parametrize("make", [make_cifar_binary, make_cifar_pickled])
def test_a_copy_of_cifar_that_lacks_a_file_is_refused(make: Callable[..., None], tmp_path: Path) -> None:
    make(tmp_path / "c", cifar.CIFAR10, {"train": 5, "test": 1})
    names = class_names("cifar10")
    assert names is not None and set(cifar.parts(tmp_path / "c", cifar.CIFAR10, names)) == {"train", "test"}
    if make is make_cifar_binary:
        content = bytearray((tmp_path / "c" / "data_batch_2.bin").read_bytes())
        content[0] = 10
        (tmp_path / "c" / "data_batch_2.bin").write_bytes(content)
        with pytest.raises(DataError, match="label 10 among 10 classes"):
            cifar.parts(tmp_path / "c", cifar.CIFAR10, names)
    next((tmp_path / "c").glob("data_batch_3*")).unlink()
    with pytest.raises(DataError, match="data_batch_3"):
        cifar.parts(tmp_path / "c", cifar.CIFAR10, names)


def test_how_many_draws_there_are_and_what_is_measured_on() -> None:
    suite = registry.find("few-shot")
    tasks = [*suite.tasks, *suite.extra]
    draws = {
        (type(protocol.learner).__name__, protocol.subsets)
        for task in tasks
        if isinstance(protocol := task.protocol, FewShot)
    }
    assert draws == {("HyperRule", 5), ("ClosedForm", 5), ("LinearProbe", 5), ("FewshotLsr", 3)}
    all_five = (1, 5, 10, 25, 100)
    shots = {"ilsvrc-2012": all_five, "cifar-10": all_five, "cifar-100": all_five, "pets": all_five[:4]}
    shots["flowers-102"] = all_five[:2]
    assert [task.name for task in suite.tasks] == [
        f"{name}/{one}" for name, some in shots.items() for one in (*(f"{shot}-shot" for shot in some), "full")
    ]
    counts = {task.name: task.protocol.shots for task in tasks if isinstance(task.protocol, FewShot)}
    assert all(f"/{shots}-shot" in name for name, shots in counts.items())
    for task in tasks:
        assert isinstance(task.protocol, FewShot | Transfer)
        assert task.protocol.test == ("val" if task.name.startswith("ilsvrc") else "test")


def test_draws_are_those_of_big_vision(parts: dict) -> None:
    """evaluators/fewshot_lsr.py: one generator, a permutation for each class in turn, the first of each."""
    train = parts["train"]
    rng = np.random.default_rng(1)
    permuted = [rng.permutation(np.where(np.asarray(train.labels) == label)[0]) for label in range(10)]
    assert drawn(train, 3, seed=1).tolist() == np.concatenate([rows[:3] for rows in permuted]).tolist()


@pytest.mark.parametrize("learner", [LinearProbe(), FewshotLsr()])
def test_numbers_do_not_depend_on_the_order_of_images(learner: OnFeatures, parts: dict) -> None:
    protocols = (FewShot(learner=learner, shots=4, subsets=3), Transfer(learner=learner))
    for protocol in protocols:
        first = protocol.measure(PixelBench(parts, (1, 2), noise=0.4))
        mixed = {name: rearranged(images, 5) for name, images in parts.items()}
        second = protocol.measure(PixelBench(mixed, (1, 2), noise=0.4))
        assert first == second
        assert 0.3 < first[0].value < 1
        if isinstance(protocol, FewShot):
            values = [one.value for one in first[1:]]
            assert first[0].value == statistics.median(values)
            assert len(set(values)) > 1


def test_the_few_shot_evaluation_of_big_vision_is_that_of_the_drawn_images(parts: dict) -> None:
    bench = PixelBench(parts, (1, 2), noise=0.4)
    results = FewShot(learner=FewshotLsr(), shots=2, subsets=3).measure(bench)
    assert {call[2] for call in bench.calls} == {BIG_VISION}
    train, test = (bench.features(parts[name], BIG_VISION) for name in ("train", "test"))
    for number, one in enumerate(results[1:]):
        rows = drawn(parts["train"], 2, number)
        classifier = linear.fewshot_lsr(train[0][rows], train[1][rows], 10)
        expected = (classifier(test[0]).argmax(1) == test[1]).float().mean().item()
        assert one.value == pytest.approx(expected)


def test_few_images_do_not_make_the_network_look_at_all(parts: dict) -> None:
    few, most = PixelBench(parts, (1, 2)), PixelBench(parts, (1, 2))
    FewShot(learner=LinearProbe(), shots=1, subsets=5).measure(few)
    assert few.calls[0][1] <= 50
    FewShot(learner=LinearProbe(), shots=10, subsets=5).measure(most)
    assert most.calls[0][1] == 120


def test_other_seeds_draw_others(parts: dict) -> None:
    draws = [
        [one.drawn for one in FewShot(learner=LinearProbe(), shots=2).measure(PixelBench(parts, (1, 2), seed=seed))[1:]]
        for seed in (0, 1)
    ]
    assert not set(draws[0]) & set(draws[1])


def test_what_changes_the_numbers_stands_in_the_parameters() -> None:
    one = FewShot(learner=FewshotLsr(), shots=5)
    assert one.parameters()["learner"]["kind"] == "fewshot-lsr"
    assert one.parameters()["learner"]["preparation"]["resized"] == 256
    assert one.parameters()["shots"] == 5
    assert Transfer(train="train+val").needs == ("train+val", "test")
    everything = [
        task.protocol.parameters()
        for suite in (transfer.TRANSFER, transfer.FEW_SHOT)
        for task in (*suite.tasks, *suite.extra)
        if task.benchmark is transfer.FLOWERS
    ]
    assert (
        len({str(one) for one in everything}) == len(everything) - len(LEARNERS) - 2
    )  # all of k-shot are those of transfer


def test_the_suites_have_every_set_and_curve() -> None:
    assert [task.name for task in registry.find("transfer").tasks] == ["cifar-10", "cifar-100", "pets", "flowers-102"]
    few = registry.find("few-shot")
    for name in ("ilsvrc-2012", "cifar-10", "cifar-100"):
        for shots in ("1-shot", "5-shot", "10-shot", "25-shot", "100-shot", "full"):
            for ending in ("", "/closed-form", "/linear-probe", "/fewshot-lsr", "/code"):
                few.task(f"{name}/{shots}{ending}")
    names = [task.name for suite in (few, registry.find("transfer")) for task in (*suite.tasks, *suite.extra)]
    assert len(set(names)) == len(names)
    assert isinstance(few.task("cifar-10/full").protocol, Transfer)


def test_a_matlab_file_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    make_flowers(tmp_path / "flowers-102", EACH)
    (tmp_path / "flowers-102" / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"imagelabels\.mat: No such file"):
        _small(transfer.FLOWERS).open(tmp_path)
