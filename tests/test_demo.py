"""`bit demo`: its images are real, its comparison is fair, and it leaves other people's folders alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the demo's images come with scikit-learn")

from sklearn.datasets import load_digits

from bigtransfer import cli
from bigtransfer.config import DemoConfig, FinetuneConfig
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.jobs import demo


def test_the_digits_are_written_as_they_are(tmp_path: Path) -> None:
    demo.write_digits(tmp_path, per_class=3, seed=0)
    digits = load_digits()
    seen = set()
    for part, count in (("train", 3), ("test", demo.TEST_PER_CLASS)):
        for label in range(10):
            files = list((tmp_path / part / str(label)).iterdir())
            assert len(files) == count
            for file in files:
                index = int(file.stem)
                assert index not in seen  # no image is both learnt from and tested on
                seen.add(index)
                assert digits.target[index] == label
                image = Image.open(file)
                assert (image.mode, image.size) == ("L", (8, 8))
                assert np.abs(np.asarray(image) / 255 * 16 - digits.images[index]).max() < 0.5


def test_the_seed_chooses_the_digits(tmp_path: Path) -> None:
    def names(folder: str, seed: int) -> list[str]:
        demo.write_digits(tmp_path / folder, per_class=1, seed=seed)
        return sorted(str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*.png"))

    first = names("a", 0)
    assert names("b", 0) == first
    assert names("c", 1) != first


def test_the_pixel_classifier_is_a_serious_opponent(tmp_path: Path) -> None:
    demo.write_digits(tmp_path, per_class=10, seed=0)
    assert demo.linear_on_pixels(tmp_path) > 0.85


def test_more_digits_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--examples-per-class can be 124 at most"):
        demo.write_digits(tmp_path, per_class=150, seed=0)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.txt").write_text("three years of work")
    with pytest.raises(RunError, match="not from an earlier demo"):
        demo.run(DemoConfig(out=str(tmp_path)))
    assert (tmp_path / "digits" / "thesis.txt").exists()


@pytest.mark.slow
def test_the_whole_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TEST_PER_CLASS", 5)
    asked = DemoConfig(out=str(tmp_path / "demo"), budget="1s", examples_per_class=2)
    for _ in range(2):  # an earlier demo is overwritten
        assert demo.run(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        commands = [line.removeprefix("$ bit finetune ") for line in lines if line.startswith("$ ")]
        with_pretrained, from_random = (cli.parse("finetune", shlex.split(command)) for command in commands)
        assert isinstance(with_pretrained, FinetuneConfig)
        assert isinstance(from_random, FinetuneConfig)
        assert (with_pretrained.pretrained, from_random.pretrained) == (True, False)
        # Both were trained by the same recipe, apart from the words about it.
        recipes = [
            json.loads((tmp_path / "demo" / name / "config.json").read_text())["recipe"]
            for name in ("pretrained", "random")
        ]
        assert {**recipes[0], "notes": None} == {**recipes[1], "notes": None}
        title = lines.index("Correct on the 50 images that none of them had seen (95% interval):")
        shares = [float(line.split("%")[0].split()[-1]) for line in lines[title + 1 : title + 4]]
        assert all(0 <= share <= 100 for share in shares)
        assert (tmp_path / "demo" / "pretrained" / "report.html").is_file()
