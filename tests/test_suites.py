"""What all suites rest on: benchmarks opened and checked, the bench, results and which of them are comparable."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import catalog, cli, records, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import ConfigError, DataError, RunError, UnreadableImages
from bigtransfer.jobs.suite import Workbench, called, chosen
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Predictor
from bigtransfer.suites import registry, results
from bigtransfer.suites.benchmark import Benchmark, MissingData, index_digest
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.suite import Suite, Task

SIZE = 16


def _read(folder: Path, parts: Iterable[str]) -> Mapping[str, ImageSet]:
    found = open_dataset(folder).parts()
    return {name: found[name] for name in parts if name in found}


BENCHMARK = Benchmark(
    name="squares",
    title="Squares",
    revision="1",
    parts={"train": 6, "test": 9},
    classes=3,
    licence="CC0",
    obtain="squares.zip from their authors.",
    gigabytes=0.002,
    folders=("squares", "Squares"),
    read=_read,
)


SQUARE, AS_THE_CARD_SAYS = Preparation(mode="square"), Preparation()


@dataclass(frozen=True, kw_only=True)
class TopOne(Protocol):
    name: ClassVar[str] = "top-one"
    needs: ClassVar[tuple[str, ...]] = ("test",)
    source: ClassVar[str] = "a test"

    preparation: Preparation = SQUARE

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        right = total = 0
        for logits, labels, _ in bench.logits(bench.parts["test"], self.preparation):
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
        return [Measurement(metric="top-1", value=right / total, images=total, interval=(0.0, 1.0))]


SUITE = Suite(
    name="shapes",
    title="Shapes",
    tasks=(Task(name="squares", benchmark=BENCHMARK, protocol=TopOne()),),
    extra=(Task(name="squares/large", benchmark=BENCHMARK, protocol=TopOne(preparation=Preparation(size=32))),),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, each in {"train": 2, "test": 3}.items():
        for label in "abc":
            folder = tmp_path / "root" / "squares" / part / label
            folder.mkdir(parents=True)
            for i in range(each):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"{part}{label}{i}.png")
    return tmp_path / "root"


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 3)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(3, network.num_features))  # pyright: ignore[reportCallIssue]
    network.card = ModelCard(
        name="tiny",
        architecture=network.architecture,
        num_classes=3,
        class_names=("a", "b", "c"),
        input=InputSpec(size=SIZE),
    )
    weights.save(tmp_path / "tiny.safetensors", network)
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.SUITES, "shapes", SUITE)


def test_a_benchmark_that_is_here_is_opened_and_its_parts_are_those_asked_for(root: Path) -> None:
    assert {name: len(images) for name, images in BENCHMARK.open(root, ["test"]).items()} == {"test": 9}
    assert set(BENCHMARK.open(root)) == {"train", "test"}


def test_missing_images_are_answered_by_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        BENCHMARK.open(tmp_path)
    for part in ("squares.zip from their authors", "2 MB", "CC0", str(tmp_path / "squares")):
        assert part in str(caught.value)


def test_a_partial_copy_is_refused_with_the_number_that_was_published(root: Path) -> None:
    (root / "squares" / "test" / "a" / "testa0.png").unlink()
    with pytest.raises(DataError, match="has 8 images, but 9 were published"):
        BENCHMARK.open(root)
    BENCHMARK.open(root, ["train"])


def test_a_part_that_is_not_there_is_named_with_its_number(root: Path) -> None:
    (root / "squares" / "test").rename(root / "away")
    with pytest.raises(DataError, match=r"no test part. Expected: 9 images"):
        BENCHMARK.open(root, ["test"])


def test_classes_of_another_number_are_refused(root: Path) -> None:
    with pytest.raises(DataError, match="has 3 classes, but 4 were published"):
        dataclasses.replace(BENCHMARK, classes=4).open(root)


def test_exchanged_labels_are_noticed_by_the_digest_of_the_lists(root: Path) -> None:
    known = index_digest(BENCHMARK.open(root)["test"])
    benchmark = dataclasses.replace(BENCHMARK, digests={"test": known})
    benchmark.open(root)
    test = root / "squares" / "test"
    (test / "a" / "testa0.png").rename(test / "b" / "testa0.png")
    (test / "b" / "testb0.png").rename(test / "a" / "testb0.png")
    with pytest.raises(DataError, match="other names or labels"):
        benchmark.open(root)


def test_the_digest_depends_neither_on_the_order_nor_on_folders_and_endings(root: Path) -> None:
    images = BENCHMARK.open(root)["test"]
    assert index_digest(images.subset([3, 0, 8, 1, 2, 4, 5, 6, 7])) == index_digest(images)
    assert index_digest(images.subset([0, 1, 2])) != index_digest(images)


@pytest.mark.parametrize(
    ("preparation", "expected"),
    [
        (Preparation(), InputSpec(size=64, mode="aspect", crop_pct=0.875)),
        (Preparation(mode="square"), InputSpec(size=64)),
        (Preparation(mode="square", size=480), InputSpec(size=480)),
        (Preparation(mode="aspect", size=480, resized=512), InputSpec(size=480, mode="aspect", crop_pct=0.9375)),
        (Preparation(mode="aspect", size=224), InputSpec(size=224, mode="aspect")),
        (
            Preparation(interpolation="bicubic"),
            InputSpec(size=64, mode="aspect", crop_pct=0.875, interpolation="bicubic"),
        ),
    ],
)
def test_a_preparation_leaves_open_what_the_card_decides(preparation: Preparation, expected: InputSpec) -> None:
    card = ModelCard(
        name="m",
        architecture=Architecture(units=(1, 1, 1, 1), width=1),
        num_classes=3,
        input=InputSpec(size=64, mode="aspect", crop_pct=0.875),
    )
    assert preparation.spec(card) == expected


def test_the_command_adds_results_and_tells_what_is_missing(
    root: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "r.jsonl")
    command = ["evaluate", model, "--suite", "shapes", "--root", str(root), "--results", file]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("shapes: squares: ")
    assert out.endswith(f"\nresults: {file}; beside what others published: bit results\n")
    assert cli.main([*command, "--task", "squares/*"]) == 0
    first, second = results.read([file])
    assert (first.task, second.task) == ("squares", "squares/large")
    assert first.metric == "top-1"
    assert first.images == 9
    assert first.input["size"] == SIZE
    assert second.input["size"] == 32
    assert first.weights == second.weights
    predictor = Predictor.load(model)
    expected = np.mean([p.label == p.name.split("/")[-2] for p in predictor.predict(root / "squares" / "test")])
    assert first.value == pytest.approx(expected)
    (root / "squares").rename(root / "gone")
    capsys.readouterr()
    assert cli.main(command) == 1
    assert "squares: not run" in capsys.readouterr().err
    assert len(results.read([file])) == 2


def test_images_that_cannot_be_read_are_no_result(root: Path, model: str) -> None:
    (root / "squares" / "test" / "a" / "testa0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    bench = Workbench(Predictor.load(model), BENCHMARK.open(root), seed=0)
    with pytest.raises(UnreadableImages, match="testa0"):
        TopOne().measure(bench)


def test_the_advice_for_unreadable_images_is_one_that_can_be_followed(
    root: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.SUITES, "shapes", SUITE)
    (root / "squares" / "test" / "a" / "testa0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = ["evaluate", model, "--suite", "shapes", "--root", str(root), "--results", str(tmp_path / "r.jsonl")]
    assert cli.main(command) == 1
    told = capsys.readouterr().err
    assert "testa0" in told
    assert "get these anew" in told
    assert "--skip-bad-images" not in told
    assert not (tmp_path / "r.jsonl").exists()


def test_what_the_system_refuses_names_the_benchmark_and_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "squares").write_text("a file where a folder should be")
    listing = dataclasses.replace(BENCHMARK, read=lambda folder, _: {part.name: part for part in folder.iterdir()})
    with pytest.raises(DataError, match=r"cannot be read: .*squares: Not a directory\. Get "):
        listing.open(tmp_path)


def test_features_are_kept_under_the_weights_the_preparation_and_the_images(root: Path, model: str) -> None:
    predictor = Predictor.load(model)
    images = BENCHMARK.open(root)["test"]

    def features(one: ImageSet, preparation: Preparation = AS_THE_CARD_SAYS) -> torch.Tensor:
        return Workbench(predictor, {"test": one}, seed=0).features(one, preparation)[0]

    first = features(images)
    torch.testing.assert_close(
        features(images.subset([2, 1, 0])), first[[2, 1, 0]], rtol=1e-5, atol=1e-5
    )  # other batches
    assert not torch.equal(features(images, Preparation(size=32)), first)
    with torch.no_grad():
        for tensor in predictor.state_dict().values():
            tensor += 0.1
    other = Predictor.load(model)
    assert torch.equal(Workbench(other, {}, seed=0).features(images, Preparation())[0], first)
    looked = []
    images.store.read = lambda *_: looked.append(1)  # type: ignore[method-assign]
    bench = Workbench(other, {}, seed=0)
    assert bench.used is None
    assert torch.equal(bench.features(images, Preparation())[0], first)
    assert not looked
    assert bench.used == Preparation().spec(other.card), "a result says how they were seen"


def _result(**changes: object) -> results.Result:
    values = {
        "suite": "s",
        "task": "t",
        "benchmark": "b",
        "revision": "1",
        "fingerprint": "f",
        "protocol": "p",
        "parameters": {"size": 1},
        "metric": "top-1",
        "value": 0.5,
        "images": 9,
        "model": "m",
        "weights": "w",
        "architecture": "a",
        "input": {"size": 1},
        "precision": "float32",
        "seed": 0,
        "seconds": 1.0,
        "environment": {},
        "date": "2026-11-26T11:00:00+00:00",
    }
    return results.Result(**(values | changes))  # type: ignore[arg-type]


def test_results_are_comparable_where_data_protocol_and_metric_are_the_same() -> None:
    one = _result()
    for changes in (
        {"benchmark": "c"},
        {"revision": "2"},
        {"fingerprint": "g"},
        {"protocol": "q"},
        {"parameters": {"size": 2}},
        {"metric": "top-5"},
    ):
        assert _result(**changes).key != one.key
    for changes in ({"model": "n"}, {"weights": "v"}, {"seed": 1}, {"value": 0.1}, {"date": "2027"}, {"suite": "z"}):
        assert _result(**changes).key == one.key


def test_a_results_file_is_added_to_and_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    results.append(file, [_result()])
    results.append(file, [_result(value=0.25), _result(value=0.75)])
    assert [one.value for one in results.read([file])] == [0.5, 0.25, 0.75]
    file.write_bytes(file.read_bytes().rstrip(b"\n") + b'\n{"format": 1}\n')
    with pytest.raises(RunError, match="line 4"):
        results.read([file])
    with pytest.raises(RunError, match="no file"):
        results.read([tmp_path / "none"])


def test_nothing_that_another_process_adds_meanwhile_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "r.jsonl"
    results.append(file, [_result()])
    other = threading.Thread(target=results.append, args=(file, [_result(value=0.25)]))
    lines = records.lines

    def meanwhile(*arguments: Any) -> list[bytes]:
        found = lines(*arguments)
        if not other.ident:
            other.start()
            other.join(0.1)
        return found

    monkeypatch.setattr(records, "lines", meanwhile)
    results.append(file, [_result(value=0.75)])
    other.join()
    assert sorted(one.value for one in results.read([file])) == [0.25, 0.5, 0.75]


def test_a_place_that_takes_no_results_is_told_before_anything_is_measured(
    root: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.SUITES, "shapes", SUITE)
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "damaged.jsonl").write_text("{}\n")
    for name, said in (
        (".", "directory"),
        ("damaged.jsonl", "line 1"),
        ("damaged.jsonl/r", "damaged"),
        ("/dev/null", "not a regular"),
    ):
        command = ["evaluate", model, "--suite", "shapes", "--root", str(root), "--results", str(tmp_path / name)]
        assert cli.main(command) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "damaged.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interval", [0.9, 0.1]), ("interval", [0.1]), ("images", 0), ("date", "yesterday"), ("date", "2026-11-26T11:00:00+02:00"),
        ("value", math.nan), ("value", 98.5), ("value", True), ("seed", 10**40), ("seconds", math.inf),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_is_refused_with_its_field(field: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    results.append(file, [_result()])
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(RunError, match=f"line 1: .*{field}"):
        results.read([file])


SECOND = dataclasses.replace(BENCHMARK, name="second", folders=("second",))
BAD = dataclasses.replace(BENCHMARK, name="bad", title="Bad", folders=("bad",))


def test_a_refused_task_does_not_end_the_others_and_the_same_command_goes_on_with_it(
    root: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [Task(name=one.name, benchmark=one, protocol=TopOne()) for one in (BAD, BENCHMARK, SECOND)]
    monkeypatch.setitem(registry.SUITES, "shapes", Suite(name="shapes", title="Shapes", tasks=tuple(tasks)))
    shutil.copytree(root / "squares", root / "second")
    shutil.copytree(root / "squares", root / "bad")
    (root / "bad" / "test" / "a" / "testa0.png").unlink()
    file = tmp_path / "r.jsonl"
    command = ["evaluate", model, "--suite", "shapes", "--root", str(root), "--results", str(file), "--device", "cpu"]
    plain, command = command, [*command, "--precision", "fp32"]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "shapes: bad: refused. The test part of Bad" in said.err
    assert "has 8 images, but 9 were published" in said.err
    assert "1 without a result, for the reasons above:\n  shapes: bad\nThe same command goes on" in said.err
    assert [one.task for one in results.read([file])] == ["squares", "second"]
    shutil.rmtree(root / "bad")
    shutil.copytree(root / "squares", root / "bad")
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert [one.task for one in results.read([file])] == ["squares", "second", "bad"], (
        "what is measured is not repeated"
    )
    assert out.count(" (measured on ") == 2
    assert cli.main([*command, "--seed", "1", "--task", "squares"]) == 0
    assert cli.main([*plain, "--precision", "bf16", "--task", "squares"]) == 0
    assert cli.main([*command, "--decoder", "exact", "--task", "squares"]) == 0
    assert len(results.read([file])) == 6, "what could give another number is measured"
    other = weights.load(model)
    other.card = dataclasses.replace(other.card, input=InputSpec(size=24))
    weights.save(tmp_path / "other.safetensors", other)
    assert cli.main(["evaluate", str(tmp_path / "other.safetensors"), *command[2:], "--task", "squares"]) == 0
    assert len(results.read([file])) == 7
    old = file.read_text().replace('"bigtransfer":"', '"bigtransfer":"0.0.1-')
    file.write_text(old)
    assert cli.main([*command, "--task", "squares"]) == 0
    assert len(results.read([file])) == 8


def test_only_the_published_weights_bear_the_name_of_a_published_model(
    root: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their numbers would stand beside the published ones: what a file says of itself and where it comes from proves nothing."""
    network = weights.load(model)
    for name in ("bit-m-r50x1", "bit-t-r26x1", "BiT-M-R50x1 ", "resnetv2_50x1_bitm_in21k"):
        known = catalog.find(name.strip())
        assert known is not None
        network.card = dataclasses.replace(known.card, name=name, architecture=network.architecture, num_classes=3)
        assert network.card.source == known.card.source
        file = tmp_path / "named.safetensors"
        weights.save(file, network)
        found = tmp_path / f"{name}.jsonl"
        command = ["evaluate", str(file), "--suite", "shapes", "--root", str(root), "--results", str(found)]
        assert cli.main(command) == 0
        assert {one.model for one in results.read([found])} == {f"{name} (by name only)"}
        assert f"The published one: bit evaluate {known.card.name}\n" in capsys.readouterr().err


def test_what_is_published_is_known_by_how_it_was_named_or_by_its_numbers(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = weights.load(model)
    monkeypatch.setitem(catalog.ARCHITECTURES, "tiny", network.architecture)
    card = dataclasses.replace(network.card, name="bit-m-tiny", source="https://example.org/tiny.npz")
    known = catalog.Published(card=card, addresses=("https://example.org/tiny.npz",))
    monkeypatch.setattr(catalog, "published", lambda: {card.name: known})
    monkeypatch.setattr(catalog, "find", lambda name: known if name == card.name else None)
    file = tmp_path / "copy.safetensors"
    network.card = card
    weights.save(file, network)
    predictor = Predictor.load(str(file))
    assert called(card.name, predictor) == called(known.addresses[0], predictor) == card.name
    assert called(str(file), predictor) == "bit-m-tiny (by name only)", "the published one is not here to compare with"
    cached = tmp_path / "cache" / "example.org" / "tiny.npz"
    cached.parent.mkdir(parents=True)
    weights.export(cached, network, "npz")
    assert called(str(file), predictor) == card.name
    with torch.no_grad():
        network.head.bias[0] += 1e-4  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    weights.save(file, network)
    assert called(str(file), Predictor.load(str(file))) == "bit-m-tiny (by name only)"


def test_no_two_sets_of_images_or_labels_look_like_one_in_the_results() -> None:
    """One made from another, as ReaL's labels of ILSVRC-2012's images or an earlier edition, has its own title and edition."""
    found: dict[tuple[str, str], Benchmark] = {}
    for suite in registry.SUITES.values():
        for task in (*suite.tasks, *suite.extra):
            own = task.benchmark
            same = found.setdefault((own.name, own.revision), own)
            assert (same.title, same.parts, same.classes, same.folders) == (
                own.title,
                own.parts,
                own.classes,
                own.folders,
            )
    kept = list(found.values())
    assert len({one.title for one in kept}) == len(kept) > 60
    related = [
        (one, other)
        for one, other in itertools.combinations(kept, 2)
        if one.name == other.name or one.folders == other.folders
    ]
    assert len(related) >= 2 and all(one.revision != other.revision for one, other in related)
    assert all(one.licence and one.obtain and one.folders and all(one.parts) for one in kept)
    # Whose authors forbid it is trained on nowhere.
    assert (
        {one.name for one in kept if not one.trainable}
        == {one.name for one in kept if "for testing only" in one.licence}
        == {"objectnet"}
    )


def test_suites_and_tasks_that_are_not_there(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean shapes\?"):
        registry.find("shape")
    with pytest.raises(ConfigError, match="squares, squares/large"):
        chosen(SUITE, ["circles"])
    assert [task.name for task in chosen(SUITE, [])] == ["squares"]
    assert [task.name for task in chosen(SUITE, ["*"])] == ["squares", "squares/large"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m"], "Name the images"),
        (["m", "photos", "--suite", "shapes"], "DATA is for images of your own"),
        (["m", "photos", "--root", "x"], "--root is for --suite"),
    ],
)
def test_flags_of_suites_and_of_images_do_not_mix(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
