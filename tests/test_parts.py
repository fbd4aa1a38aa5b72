"""Answers on many images in parts: by several processes and through kills each image once, and the same as from one process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from bigtransfer import cli, dist
from bigtransfer.config import EvaluateConfig
from bigtransfer.data import open_dataset
from bigtransfer.errors import RunError
from bigtransfer.jobs import evaluate, parts
from bigtransfer.predictor import Predictor

from . import network_makers
from .data_makers import class_folders

IMAGES = 108
NAMES = ("ant", "bee", "cat")
TINY = ("--device", "cpu", "--precision", "fp32", "--batch-size", "4")


def saved(path: Path, seed: int, **changes: Any) -> Path:
    return network_makers.saved(path, NAMES, size=16, seed=seed, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "model.safetensors", 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders of their classes, one of which cannot be read."""
    root = class_folders(tmp_path_factory.mktemp("photos"), {"ant": 40, "bee": 40, "cat": IMAGES - 80})
    (root / "bee" / "007.png").write_bytes((root / "bee" / "007.png").read_bytes()[:-40])
    return root


def bit(*arguments: object) -> int:
    return cli.main([*map(str, arguments)])


def predict(model: Path, photos: object, out: Path, *more: object) -> int:
    return bit("predict", model, photos, "--out", f"{out}/", "--part-images", "8", *TINY, *more)


def answers_of(folder: Path) -> dict[str, bytes]:
    """All that is in a finished folder, by the name of the file, but for what says when and how."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("part-*"))}


@pytest.fixture(scope="module")
def whole(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process that nobody disturbs makes of them, in part files of every column."""
    out = tmp_path_factory.mktemp("whole") / "answers"
    assert predict(model, photos, out, "--vectors", "features", "logits", "--probabilities") == 1
    return out


def test_each_image_once_and_right(model: Path, photos: Path, whole: Path) -> None:
    table = pyarrow.parquet.read_table(whole).to_pylist()
    names = [str(photos / path.relative_to(photos)) for path in sorted(photos.rglob("*.png"))]
    assert [row["image"] for row in table] == names
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    expected = predictor.stream([photos], features=True, logits=True, batch_size=4)
    for row, one in zip(table, expected, strict=True):
        assert row["error"] == one.error
        assert (row["error"] is not None) == row["image"].endswith("bee/007.png")
        if one.probabilities is not None:
            assert (row["label"], row["probability"]) == (one.label, one.probability)
            assert (row["label_3"], row["probability_3"]) == one.top()[2]
            for kind in ("features", "logits", "probabilities"):
                assert np.array_equal(np.float32(row[kind]), getattr(one, kind))
        else:
            assert row["label"] is row["logits"] is row["probabilities"] is None


def test_the_manifest_says_what_is_there(photos: Path, whole: Path) -> None:
    manifest = json.loads((whole / "_manifest.json").read_text())
    assert manifest["complete"] and manifest["images"] == IMAGES and manifest["unreadable"] == 1
    assert manifest["class_names"] == [*NAMES]
    assert [part["first"] for part in manifest["parts"]] == [*range(0, IMAGES, 8)]
    assert sum(part["images"] for part in manifest["parts"]) == IMAGES
    for part in manifest["parts"]:
        (file,) = part["files"]
        assert (whole / file["name"]).stat().st_size == file["bytes"]
        assert pyarrow.parquet.read_metadata(whole / file["name"]).num_rows == part["images"]


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", "bigtransfer", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow  # and a race: the kill must fall between the second's first part and the last of all
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes through /proc")
def test_two_processes_killed_and_gone_on_with_by_one(model: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL of one of two while parts come in; another process finishes; the files are those of an undisturbed one, byte for byte."""
    out = tmp_path / "answers"
    asked = ("--vectors", "features", "logits", "--probabilities")
    two = torchrun("predict", model, photos, "--out", f"{out}/", "--part-images", "8", *TINY, *asked)
    deadline = time.monotonic() + 600
    while len([*(out / ".parts").glob("*.json")]) < 3 and time.monotonic() < deadline:
        assert two.poll() is None
        time.sleep(0.005)
    children = sorted(map(int, Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()))
    os.kill(children[1], signal.SIGKILL)
    output, _ = two.communicate(timeout=600)
    assert two.returncode != 0, output
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert 3 <= len(before) < IMAGES // 8 and not (out / "_manifest.json").exists()
    places = sorted(int(file.stem.removeprefix("part-")) for file in before)
    assert places[0] < 7 <= places[-1], "both had begun"
    assert predict(model, photos, out, *asked) == 1
    assert answers_of(out) == answers_of(whole)
    lines = [*(out / ".parts").glob("*.json")]
    assert len(lines) == -(-IMAGES // 8)
    again = {file: file.stat().st_mtime_ns for file in before}
    assert sum(again[file] == before[file] for file in before) >= len(before) - 2, "what was there is not made again"


def test_what_stops_one_process_is_told_to_all() -> None:
    """The others would wait for it."""
    heard: list[Any] = []

    def broken(_: int) -> list[int]:
        raise RunError("a part is of another model")

    for size in (1, 2, 3):
        heard.clear()
        world: Any = types.SimpleNamespace(size=size, collect=lambda value: heard.append(value) or [[[4], ""], value])
        with pytest.raises(RunError, match="a part is of another model"):
            parts.Parts._told(world, broken, [1])
        assert len(heard) == (size > 1)
        assert parts.Parts._told(world, lambda one: [one], [1, 2]) == [4, 1, 2]


def test_two_processes_evaluate_like_one(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: the first leaves its half behind, the second finishes; what it says is what one process says."""
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 6, "cat": 5}, seed=3)
    (small / "bee" / "001.png").write_bytes(b"\x89PNG")
    said: list[Any] = []

    def collect(world: dist.World, value: Any) -> list[Any]:
        """As if both were there: rank 0 comes first, and the other hears what it has said."""
        if world.size == 1:
            return [value]
        said.append(value)
        return [said[len(said) - 1 - 3 * world.rank], value]

    monkeypatch.setattr(dist.World, "collect", collect)

    def asked(**more: Any) -> EvaluateConfig:
        return EvaluateConfig(model=str(model), data=str(small), device="cpu", precision="fp32", batch_size=4, **more)

    two = asked(out=str(tmp_path / "two"), part_images=4)
    assert evaluate.measured(two, dist.World(rank=0, size=2), torch.device("cpu")) is None
    assert [*(tmp_path / "two").iterdir()] == [tmp_path / "two" / ".work"]
    together = evaluate.measured(two, dist.World(rank=1, size=2), torch.device("cpu"))
    assert together is not None and len(together.unreadable) == 1
    evaluate.evaluate(asked(out=str(tmp_path / "one"), part_images=8))
    evaluate.evaluate(asked(json=str(tmp_path / "plain.json")))
    found = [json.loads(path.read_text()) for path in (*tmp_path.glob("*/evaluation.json"), tmp_path / "plain.json")]
    plain = found.pop()
    assert len(plain.pop("positions")) >= 3, "the map of the pictures, which takes all answers at once"
    assert [one.pop("positions") for one in found] == [[], []] and found == [plain, plain]
    assert not evaluate.evaluate(asked()).result.positions, "no map where nothing is written"  # pyright: ignore
    assert (tmp_path / "two" / "report.html").is_file()


class Killed(BaseException):
    """No error that anything catches."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """`run` ended right after that many parts."""
    original, made = parts.Parts.write, 0

    def write(*arguments: Any) -> None:
        nonlocal made
        original(*arguments)
        made += 1
        if made == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "write", write)
        with pytest.raises(Killed):
            run()


def test_an_evaluation_goes_on(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 6, "cat": 4}, seed=3)
    data = ("evaluate", model, small, *TINY, "--part-images", "4")
    out = tmp_path / "out"
    killed_after(2, monkeypatch, lambda: bit(*data, "--out", out))
    assert len([*(out / ".work").glob("part-*.npz")]) == 2 and not (out / "evaluation.json").exists()
    made = []
    original = parts.Parts.write
    monkeypatch.setattr(parts.Parts, "write", lambda *given: (made.append(given[1]), original(*given)))
    assert bit(*data, "--out", out) == 0
    assert made == [2, 3]
    assert bit(*data, "--out", tmp_path / "whole") == 0
    one, two = (json.loads((folder / "evaluation.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert one == two
    assert not [*(out / ".work").glob("part-*")], "what was kept on the way is cleared away"
    made.clear()
    assert bit(*data, "--out", out) == 0
    assert made == [0, 1, 2, 3], "a finished measurement is made anew, not shown again"
    assert bit(*data, "--out", out, "--batch-size", "2") == 0, "and may be replaced by another"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_text_parts(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 5}, seed=3)
    (small / "ant" / "001.png").write_bytes(b"\x89PNG")
    out = tmp_path / "answers"
    assert predict(model, small, out, "--format", form, "--vectors", "logits") == 1
    told = capsys.readouterr()
    assert told.out == f"{out}/: 11 images in 2 parts, _manifest.json says what is in them\n"
    assert told.err.endswith("1 of 11 images cannot be read\n")
    assert [*answers_of(out)] == [f"part-00000{i}.{ending}" for i in (0, 1) for ending in (form, "logits.npy")]
    if form == "csv":
        rows = [row for i in (0, 1) for row in csv.DictReader((out / f"part-00000{i}.csv").read_text().splitlines())]
    else:
        rows = [json.loads(line) for i in (0, 1) for line in (out / f"part-00000{i}.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == sorted(map(str, small.rglob("*.png")))
    logits = np.concatenate([np.load(out / f"part-00000{i}.logits.npy") for i in (0, 1)])
    assert np.isnan(logits).all(1).tolist() == [bool(row.get("error")) for row in rows] == [i == 1 for i in range(11)]
    assert [NAMES[i] for i in np.delete(logits, 1, 0).argmax(1)] == [row["label"] for row in rows if row.get("label")]


def test_other_models_images_and_questions_are_noticed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 5}, seed=3)
    own = tmp_path / "model.safetensors"
    own.write_bytes(model.read_bytes())
    out = tmp_path / "answers"
    assert predict(own, small, out) == 0
    first = answers_of(out)

    def refused(message: str, *more: object) -> None:
        capsys.readouterr()
        assert predict(own, small, out, *more) == 2
        assert message in capsys.readouterr().err
        assert answers_of(out) == first

    refused("top k 5 there, 2 here", "--top-k", "2")
    refused("endings ['parquet'] there, ['csv'] here", "--format", "csv")
    saved(own, 1)
    refused("the model is another")
    saved(own, 0, source="somewhere else")
    refused("the model's card is another")
    own.write_bytes(model.read_bytes())
    image = small / "ant" / "000.png"
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    refused("the images are others")
    image.rename(small / "ant" / "z.png")
    refused("the images are others")
    (small / "ant" / "z.png").unlink()
    image.write_bytes(content)
    assert predict(own, small, out) == 0
    assert "complete already: 11 images" in capsys.readouterr().out


def test_damaged_parts_are_made_again(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 14}, seed=3)
    out = tmp_path / "answers"
    assert predict(model, small, out) == 0
    before = answers_of(out)
    capsys.readouterr()
    assert predict(model, small, out) == 0
    assert capsys.readouterr().out == f"{out}/ is complete already: 20 images in 3 parts\n"
    (out / "part-000001.parquet").write_bytes(b"PAR1")
    (out / "part-000002.parquet").unlink()
    assert predict(model, small, out) == 0
    assert answers_of(out) == before
    at = (out / "part-000000.parquet").stat().st_size // 2
    with open(out / "part-000000.parquet", "rb+") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    capsys.readouterr()
    assert predict(model, small, out) == 0
    assert answers_of(out) == before, "one bit at the same length"
    assert "12 of 20 images are done" in capsys.readouterr().err, "and nothing else was made again"
    assert json.loads((out / "_manifest.json").read_text())["complete"]
    (out / ".parts" / "000000.json").write_text('{"first": 8, "images": 8, "unreadable": 0, "files": []}')
    assert predict(model, small, out) == 2, "a line that another program wrote"


def test_shards_and_archives(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = class_folders(tmp_path / "small", {"ant": 6, "bee": 5}, seed=3)
    assert bit("shard", small, tmp_path / "shards", "--shard-images", "4", "--no-shuffle") == 0
    assert predict(model, tmp_path / "shards", tmp_path / "one") == 0
    rows = pyarrow.parquet.read_table(tmp_path / "one").to_pylist()
    assert len({row["image"] for row in rows}) == 11
    subprocess.run(["tar", "cf", tmp_path / "small.tar", "-C", tmp_path, "small"], check=True)
    assert predict(model, tmp_path / "small.tar", tmp_path / "two") == 0
    assert predict(model, small, tmp_path / "three") == 0
    tables = [pyarrow.parquet.read_table(tmp_path / name).to_pylist() for name in ("one", "two", "three")]
    labels = [[(row["label"], row["probability"]) for row in table] for table in tables]
    assert labels[0] == labels[1] == labels[2]
    both = bit("predict", model, tmp_path / "shards", small, "--out", f"{tmp_path}/four/", "--part-images", "8", *TINY)
    assert both == 0
    rows = pyarrow.parquet.read_table(tmp_path / "four").to_pylist()
    assert len({row["image"] for row in rows}) == 22
    # Answers that lie among the images are no images, nor a class.
    assert predict(model, small, small / "answers") == 0
    opened = open_dataset(small)
    assert opened.train.class_names == ("ant", "bee") and any(
        "what `bit` wrote: answers" in note for note in opened.notes
    )
    assert predict(model, small, small / "answers") == 0
    assert "complete already" in capsys.readouterr().out


def test_processes_that_see_different_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = parts.Parts(tmp_path / "x", {"weights": "a"}, 5, 2, ("csv",))
    world = dist.World(rank=0, size=2)
    monkeypatch.setattr(dist.World, "collect", lambda self, value: [value, {**work.plan, "weights": "b"}])
    with pytest.raises(parts.ConfigError, match="Process 1 of 2 sees something else than process 0: the model is"):
        work.begin(world)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--part-images", "6"), "no multiple of the 4 images computed at a time; take 8"),
        (("--format", "table"), "--format table is to be read at once"),
        (("--features", "x.npz"), "--vectors features"),
    ],
)
def test_contradictions(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], message: str
) -> None:
    assert bit("predict", model, photos, "--out", f"{tmp_path}/a/", *TINY, *asked) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("asked", [("--vectors", "logits"), ("--part-images", "8"), ("--format", "parquet")])
def test_what_needs_a_folder(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    assert bit("predict", model, photos, *asked) == 2
    assert "needs a folder" in capsys.readouterr().err


def test_several_processes_need_a_folder(
    model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert bit("predict", model, photos, "--out", "x.csv") == 2
    assert "Several processes write into a folder" in capsys.readouterr().err


def test_a_folder_of_something_else(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").touch()
    assert predict(model, photos, tmp_path) == 2
    assert "is not empty (letter.txt)" in capsys.readouterr().err
