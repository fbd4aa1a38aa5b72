"""`bit compare --models`: networks taken to the same images, and what the page says of what they cost."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import cli, weights
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.config import CompareConfig, FinetuneConfig
from bigtransfer.data import open_dataset
from bigtransfer.errors import ConfigError, DataError, RunError
from bigtransfer.evals.record import Evaluation
from bigtransfer.jobs import compare, finetune
from bigtransfer.jobs.finetune import dataset
from bigtransfer.jobs.working import Finetuned
from bigtransfer.model import ResNetV2
from bigtransfer.report import runs
from bigtransfer.report.comparison import Figure
from bigtransfer.report.runs import Cost, Row
from tests.html_pages import parse
from tests.test_report_sections import EVALUATION

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, ten images each, without parts."""
    root = tmp_path_factory.mktemp("data") / "colours"
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (24, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny ones of random weights, the second with a licence."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("one", "two")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            network = ResNetV2((1, 1, 1, 1), 1, 2)
        network.card = ModelCard(
            name=name,
            architecture=network.architecture,
            num_classes=2,
            input=InputSpec(size=32),
            licence="CC0-1.0" if number else "",
        )
        weights.save(folder / f"{name}.safetensors", network)
    return folder / "one.safetensors", folder / "two.safetensors"


# --- What is asked for


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"what": ()}, "Name the folders of finished runs"),
        ({"what": ("/nowhere/at all",)}, "There is no folder /nowhere/at all"),
        ({"what": (__file__,)}, "One run alone cannot be compared. Name another; or, if"),
        ({"what": ("a", "b/../a")}, "A run is named twice"),
        ({"what": ("a", "b"), "budget": "5m"}, "--budget is for --models"),
        ({"what": ("a", "b"), "test_fraction": 0.5}, "--test-fraction is for --models"),
        ({"what": ("a", "b"), "checkpoint_every": "1m"}, "--checkpoint-every is for --models"),
        ({"what": ("a", "b"), "models": "x,y"}, "--models takes one data set, not 2"),
        ({"what": ("a",), "models": "x"}, "--models needs two networks at least"),
        ({"what": ("a",), "models": "x, x"}, "--models needs different networks"),
        ({"what": ("a",), "models": " , ", "budget": "5m"}, "--models needs different networks"),
        ({"what": ("a",), "models": "x,y", "budget": "0s"}, "--budget must be more than 0 seconds"),
        ({"what": ("a",), "models": "x,y", "data": "b"}, "--data is for finished runs"),
        ({"what": ("a",), "models": "x,y", "test_fraction": 0.0}, "--test-fraction must be more than 0"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        CompareConfig(**fields)


def test_the_closed_form_of_all_comes_first_then_each_in_the_same_time(
    photos: Path, networks: tuple[Path, Path], tmp_path: Path
) -> None:
    config = CompareConfig(
        what=(str(photos),),
        models=", ".join(map(str, networks)),
        budget="30s",
        seed=7,
        crop=32,
        balance=True,
        workers=0,
        precision="fp32",
        checkpoint_every="7s",
    )
    asked = compare.planned(config, tmp_path)
    assert [Path(one.out or "").name for one in asked] == ["one-closed", "two-closed", "one-30s", "two-30s"]
    assert [one.linear for one in asked] == ["closed", "closed", "none", "none"]
    assert [one.budget for one in asked] == [None, None, "30s", "30s"]
    for one in asked:
        assert (one.data, one.seed, one.crop, one.balance, one.test_fraction) == (str(photos), 7, 32, True, 0.2)
        assert (one.workers, one.precision, one.checkpoint_every) == (0, "fp32", "7s")
    named = compare._told_apart(
        ["timm:resnet18.a1_in1k", "timm:resnet18@/x/w.safetensors", str(tmp_path / "run" / "model.safetensors"), "a/b"]
    )
    assert named == ["timm-resnet18.a1_in1k", "timm-resnet18-w", "run", "b"]
    with pytest.raises(ConfigError, match="would both be called b"):
        compare._told_apart(["a/b", "c/b"])
    for same in (["lite0", "efficientnet-lite0"], ["a/b.safetensors", "a/../a/b.safetensors"]):
        with pytest.raises(ConfigError, match="are the same network"):
            compare._told_apart(same)


def test_a_test_part_of_its_own_is_used_as_it_is(photos: Path, networks: tuple[Path, Path], tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "set" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / part).symlink_to(photos)
    config = CompareConfig(what=(str(tmp_path / "set"),), models=",".join(map(str, networks)))
    assert {one.test_fraction for one in compare.planned(config, tmp_path / "out")} == {None}
    without = tmp_path / "unlabelled"  # the images of its test part are in no class: some of the others are held out
    without.mkdir()
    for part, images in (("train", photos), ("test", photos / "red")):
        (without / part).symlink_to(images)
    config = dataclasses.replace(config, what=(str(without),))
    assert {one.test_fraction for one in compare.planned(config, tmp_path / "out")} == {0.2}
    held = FinetuneConfig(data=str(tmp_path / "set"), test_fraction=0.2)
    with pytest.raises(ConfigError, match="--test-fraction has no effect: the data set has a test part"):
        dataset.usable(held, open_dataset(held.data), None)


def test_what_cannot_be_used_is_refused_before_anything_is_done(
    photos: Path, networks: tuple[Path, Path], tmp_path: Path
) -> None:
    def refused(**changes: Any) -> str:
        fields: dict[str, Any] = {"what": (str(photos),), "models": ",".join(map(str, networks))} | changes
        with pytest.raises((ConfigError, DataError, RunError, weights.WeightsError, weights.UnknownModel)) as caught:
            compare.planned(CompareConfig(**fields), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "none.safetensors" in refused(models=f"{networks[0]},none.safetensors")
    assert "nothing" in refused(what=(str(tmp_path / "nothing"),))
    assert "has no classes" in refused(what=(str(photos / "red"),))
    assert "77" in refused(device="cuda:77")
    table = tmp_path / "labels.jsonl"
    rows = [{"file_name": str(photos / "red" / f"{i}.png"), "label": ["a", "b"][: i % 2 + 1]} for i in range(4)]
    table.write_text("\n".join(map(json.dumps, rows)))
    assert "several labels" in refused(what=(str(table),))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for place in (tmp_path / "run", table):
        with pytest.raises(RunError, match="not a folder for several runs"):
            compare.planned(CompareConfig(what=(str(photos),), models="a,b"), place)


# --- The runs


def test_two_networks_on_the_same_images(
    photos: Path,
    networks: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "SECONDS", 0.01)
    out = tmp_path / "out"
    asked = ["compare", str(photos), "--models", ",".join(map(str, networks)), "--out", str(out), "--device", "cpu"]
    asked += ["--precision", "fp32", "--workers", "0", "--json", str(tmp_path / "numbers.json")]
    assert cli.main(asked) == 0
    told = capsys.readouterr()
    assert told.out.endswith(f"\n\ncomparison: {out / 'comparison.html'}\n")
    assert "\non the 6 images that all were measured on:\n" in told.out
    splits = [json.loads((out / f"{name}-closed" / "split.json").read_text()) for name in ("one", "two")]
    assert splits[0] == splits[1] and {part: len(names) for part, names in splits[0].items()} == {
        "train": 24,
        "test": 6,
    }
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["one-closed", "two-closed"] and found["images"] == 6
    for row in found["rows"]:
        assert row["done"] == "closed form" and row["seconds"] > 0 and row["cost"]["per_image"] > 0
        folder = out / row["name"]
        assert row["cost"]["bytes"] == (folder / "model.safetensors").stat().st_size
        assert row["cost"]["parameters"] == sum(p.numel() for p in weights.load(folder).parameters())
        measured = json.loads((folder / "evaluation.json").read_text())
        assert row["right"] == pytest.approx(np.mean([one["rank"] == 0 for one in measured["predictions"]]))
    assert [row["cost"]["licence"] for row in found["rows"]] == ["", "CC0-1.0"]
    page = parse((out / "comparison.html").read_text())
    assert [row[0] for row in page.all("table")[1].rows()[1:]] == ["one-closed", "two-closed"]
    assert [row[-1] for row in page.all("table")[1].rows()[1:]] == ["not known", "CC0-1.0"]
    assert len(page.all("circle", "hollow")) == 2 and "two-closed" in told.out
    # Again: what is finished is found, a third network is added, and its page does not replace the other's.
    before = (out / "one-closed" / "model.safetensors").stat().st_mtime_ns
    third = tmp_path / "three.safetensors"
    weights.save(third, weights.load(networks[0]))
    asked[3] = f"{asked[3]},{third}"
    assert cli.main(asked) == 0
    told = capsys.readouterr()
    assert told.out.count("is finished. Remove it") == 2 and str(out / "comparison-2.html") in told.out
    assert (out / "one-closed" / "model.safetensors").stat().st_mtime_ns == before
    assert "gets most right" in told.out
    # A run whose budget left test images out is measured on all of them; `bit evaluate` can do so too, by the run's own split.
    plan = FinetuneConfig(data=str(photos), model=str(networks[0]), device="cpu", precision="fp32", test_fraction=0.2)
    done = Finetuned(folder=out / "one-closed", recipe=None, metrics={"test_images": 3.0})  # type: ignore[arg-type]
    compare._measure_whole(plan, dataclasses.replace(done, metrics={}))
    assert not (done.folder / runs.WHOLE).exists()
    assert not capsys.readouterr().out
    compare._measure_whole(plan, done)
    told = capsys.readouterr().out
    assert told.startswith("measured on all test images, beyond the budget") and " of 6 images\n" in told
    whole = json.loads((done.folder / runs.WHOLE).read_text())
    assert sorted(one["name"] for one in whole["predictions"]) == sorted(splits[0]["test"])
    whole["predictions"] = [one | {"rank": 1, "predicted": int(not one["true"])} for one in whole["predictions"]]
    (done.folder / runs.WHOLE).write_text(json.dumps(whole | {"top1": 0.0}))
    compare._measure_whole(plan, done)  # once is enough
    assert runs.compare([done.folder, out / "two-closed"]).rows[0].right == 0
    (done.folder / runs.WHOLE).unlink()
    # They are runs like any others.
    assert cli.main(["report", str(out / "one-closed")]) == 0
    assert cli.main(["predict", str(out / "one-closed"), str(photos / "red" / "0.png")]) == 0
    assert cli.main(["compare", str(out / "two-closed"), str(out / "one-closed"), "--device", "cpu"]) == 0
    assert (out / "two-closed" / "comparison.html").is_file()
    # One whose model cannot be read any more is not timed.
    (out / "two-closed" / "model.safetensors").write_bytes(b"no model")
    config = CompareConfig(what=(str(out / "one-closed"), str(out / "two-closed")), device="cpu")
    (first, second), _ = compare.measured([out / "one-closed", out / "two-closed"], config)
    assert first is not None and second is None


def test_one_that_fails_does_not_end_the_others_and_a_signal_ends_all(
    photos: Path,
    networks: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = CompareConfig(
        what=(str(photos),), models=",".join(map(str, networks)), budget="9s", out=str(tmp_path / "out")
    )
    seen: list[str] = []
    ends: dict[str, Any] = {}

    def pretend(one: FinetuneConfig) -> Finetuned:
        name = Path(one.out or "").name
        seen.append(name)
        if isinstance(ends.get(name), Exception):
            raise ends[name]
        return Finetuned(folder=Path(one.out or ""), recipe=None, metrics={}, stopped_by=ends.get(name))  # type: ignore[arg-type]

    whole: list[str] = []
    monkeypatch.setattr(compare, "_measure_whole", lambda one, _: whole.append(Path(one.out).name))
    compared: list[list[str]] = []
    monkeypatch.setattr(finetune, "finetune", pretend)
    monkeypatch.setattr(compare, "images", lambda *_: [])
    monkeypatch.setattr(compare, "_compare", lambda _, folders, *rest: compared.append([one.name for one in folders]))
    ends = {"one-closed": RunError("is busy")}
    assert compare.run(config) == 1
    assert seen == ["one-closed", "two-closed", "one-9s", "two-9s"] and compared == [["two-closed", "one-9s", "two-9s"]]
    assert f"not compared: {tmp_path / 'out' / 'one-closed'}: is busy" in capsys.readouterr().err
    assert whole == ["two-closed", "one-9s", "two-9s"]
    seen, ends = [], {"two-closed": signal.SIGTERM}
    assert compare.run(config) == 128 + signal.SIGTERM
    assert "what is finished stays. The same command goes on" in capsys.readouterr().out
    assert seen == ["one-closed", "two-closed"] and len(compared) == 1 and whole[3:] == ["one-closed"]
    ends = {"one-closed": DataError("no images")}
    with pytest.raises(DataError):
        compare.run(config)
    ends = {name: RunError("is busy") for name in ("one-closed", "two-closed", "one-9s")}
    with pytest.raises(RunError, match="Fewer than two runs"):
        compare.run(config)


def test_what_cannot_be_written_is_refused_before_anything_is_done(
    photos: Path, networks: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(compare, "_take", lambda _: done.append("taken") or 128)
    monkeypatch.setattr(compare, "measured", lambda *_: done.append("timed") or ([None, None], []))
    out = tmp_path / "out"
    folders = [out / "one-closed", out / "two-closed"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
        (folder / "config.json").write_text(json.dumps({"command": "finetune", "asked": {}}))

    def refused(**changes: Any) -> str:
        with pytest.raises((ConfigError, RunError)) as caught:
            compare.run(CompareConfig(**changes))
        assert not done
        return str(caught.value)

    with_networks: dict[str, Any] = {
        "what": (str(photos),),
        "models": ",".join(map(str, networks)),
        "out": str(out),
        "device": "cpu",
    }
    assert "would replace" in refused(**with_networks, json=str(networks[0]))
    assert "would replace" in refused(**with_networks, json=str(folders[0] / "config.json"))
    assert "Cannot write" in refused(**with_networks, json=str(tmp_path))
    finished: dict[str, Any] = {"what": tuple(map(str, folders)), "device": "cpu"}
    assert "would replace" in refused(**finished, json=str(folders[1] / "evaluation.json"))
    assert "Cannot write" in refused(**finished, out=str(tmp_path))
    (tmp_path / "page.html").touch()
    assert "what --json writes" in refused(
        **finished, out=str(tmp_path / "page.html"), json=str(tmp_path / "page.html")
    )
    evaluation = (folders[1] / "evaluation.json").read_text()
    (folders[1] / "evaluation.json").unlink()
    assert "two-closed is not finished" in refused(**finished)
    (folders[1] / "evaluation.json").write_text(evaluation)
    # The page goes to the first free place, which may be the one of the numbers.
    (folders[0] / "comparison.html").write_text("mine")
    with pytest.raises(ConfigError, match="what --json writes"):
        compare.run(CompareConfig(**finished, json=str(folders[0] / "comparison-2.html")))
    assert done == ["timed"]
    compare.run(CompareConfig(**finished, json=os.devnull))
    assert (folders[0] / "comparison-2.html").is_file() and (folders[0] / "comparison.html").read_text() == "mine"


# --- What the page says


def row(name: str, right: float, per_image: float | None, **changes: Any) -> Row:
    cost = None
    if per_image is not None:
        cost = Cost(per_image=per_image, sizes=(32,), parameters=1, bytes=1, licence="", network="")
    one = Row(
        name=name,
        evaluation=None,  # type: ignore[arg-type]
        right=right,
        interval=(max(0.0, right - 0.1), min(1.0, right + 0.1)),
        done="fine-tuned",
        seconds=None,
        cost=cost,
        start=name,
    )
    return dataclasses.replace(one, **changes)


def test_the_front_are_those_that_no_other_surpasses() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = [row(str(i), float(a), float(t)) for i, (a, t) in enumerate(rng.integers(1, 5, (6, 2)) / 5)]
        pairs = [(one.right, -one.cost.per_image) for one in rows if one.cost]
        wanted = {
            i for i, one in enumerate(pairs) if not any(o != one and o[0] >= one[0] and o[1] >= one[1] for o in pairs)
        }
        found = runs.front(rows)
        assert set(found) == wanted and len(found) == len(set(found))
        times = [-pairs[i][1] for i in found]
        assert times == sorted(times)
    assert runs.front([row("a", 0.5, None), row("b", 0.1, 1.0)]) == [1]


def test_where_the_points_of_the_figure_lie() -> None:
    rows = [row("a", 0.5, 0.001), row("b", 0.7, 0.1, done="closed form"), row("c", 0.4, 0.01), row("d", 0.9, None)]
    figure = runs.pareto(rows)
    assert [dot.text for dot in figure.dots] == ["1", "2", "3"] and [dot.hollow for dot in figure.dots] == [
        False,
        True,
        False,
    ]
    x = [dot.x for dot in figure.dots]
    assert (
        x[2] - x[0] == pytest.approx(x[1] - x[2], abs=0.2)
        and Figure.left < x[0] < x[2] < x[1] < Figure.width - Figure.right
    )
    heights = {level.text: level.at for level in figure.levels}
    y = [dot.y for dot in figure.dots]
    assert y[0] - y[1] == pytest.approx((heights["40%"] - heights["80%"]) / 2, abs=0.3)
    assert heights["40%"] == pytest.approx(y[2], abs=0.1)
    (_, ((_, low), (_, high))) = figure.lines[0]
    assert low - y[0] == pytest.approx(y[0] - high, abs=0.2) and high < y[0] < low
    assert [place.text for place in figure.places] == ["1", "2", "5", "10", "20", "50", "100"]
    assert figure.stairs == [(x[0], y[0]), (x[1], y[0]), (x[1], y[1])]
    assert [name for _, name, _ in figure.names] == ["1 a", "2 b", "3 c"]
    alone = runs.pareto([row("a", 1.0, 0.01)])
    assert not alone.stairs and len(alone.places) > 1 and alone.dots[0].y >= Figure.top


def test_which_of_several_is_to_be_taken() -> None:
    right = [np.arange(400) < count for count in (360, 352, 200)]
    rows = [row("slow", 0.9, 0.02), row("fast", 0.88, 0.005), row("poor", 0.5, 0.001)]
    said = runs._summary(rows, right)
    assert said == ["slow gets most right: 90.0% of 400 images, more than any other beyond chance."]
    right[1] = np.roll(right[1], 20)  # 12 images that only it gets right, 20 that only the first does
    said = runs._summary(rows, right)
    assert said == [
        "slow gets most right: 90.0% of 400 images.",
        "By these images it cannot be told apart from fast.",
        "The fastest of these is fast: 5 ms an image, 4 times as fast.",
    ]


def test_a_page_takes_the_place_of_its_own_only(tmp_path: Path) -> None:
    def shown(*names: str) -> runs.Runs:
        evaluation = msgspec.convert(EVALUATION, Evaluation)
        rows = [row(name, 0.5, None, evaluation=evaluation) for name in names]
        return runs.Runs(rows=rows, against=[], images=1, summary=[], notes=[])

    path = tmp_path / "comparison.html"
    assert runs.place(path, shown("a", "b")) == path
    runs.write(path, shown("a", "<b>"))
    assert runs.place(path, shown("a", "<b>")) == path
    assert runs.place(path, shown("a", "c")) == tmp_path / "comparison-2.html"
    (tmp_path / "comparison-2.html").write_text("mine")
    assert runs.place(path, shown("a", "c")) == tmp_path / "comparison-3.html"
