"""`bit check`: same pictures and what it makes of them; `--exclude` of the commands that read its tables."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from bigtransfer import cli
from bigtransfer.data import exclusions, open_dataset, splits
from bigtransfer.errors import DataError
from bigtransfer.evals import duplicates
from bigtransfer.evals.duplicates import SIDE, Sketches, registered, screened
from bigtransfer.terminal import cell
from tests import html_pages, network_makers
from tests.data_makers import encoded


def picture(seed: int, width: int = 80, height: int = 64) -> Image.Image:
    """A picture with large and small forms, unlike any other one."""
    rng = np.random.default_rng(seed)
    forms = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        )
        for n in (4, 9)
    ]
    return Image.fromarray((0.6 * forms[0] + 0.4 * forms[1]).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    import io

    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=quality)))


CHANGES = {
    "encoded": jpeg,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "cropped": lambda image: image.crop((5, 1, 5 + round(0.9 * image.width), 1 + round(0.9 * image.height))),
    "mirrored": ImageOps.mirror,
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "bordered": lambda image: ImageOps.expand(image, border=3),
    "square": lambda image: ImageOps.fit(image, (64, 64)),
}


def sketches(images, features=None) -> Sketches:
    pixels = [np.asarray(image.convert("RGB")) for image in images]
    return Sketches(
        thumbnails=np.array([duplicates.thumbnail(image) for image in pixels]).reshape(-1, SIDE, SIDE),
        digests=np.array([duplicates.digest(image) for image in pixels]).reshape(-1, 16),
        features=np.zeros((len(pixels), 0), np.float16) if features is None else features.astype(np.float16),
        readable=np.ones(len(pixels), bool),
    )


def grey(*images) -> torch.Tensor:
    return torch.from_numpy(sketches(images).thumbnails).float()


def found(pairs):
    return {(pair.first, pair.second): pair.verdict for pair in pairs if pair.verdict != "similar"}


# --- The method


def test_the_hash_of_the_mirror_image_comes_without_mirroring():
    images = grey(*(picture(seed) for seed in range(8)))
    plain, mirrored = duplicates.hashes(images)
    assert torch.equal(mirrored, duplicates.hashes(images.flip(2))[0])
    assert torch.equal(duplicates.differences(images)[1], duplicates.differences(images.flip(2))[0])
    assert set(plain.unique().tolist()) == {-1.0, 1.0}
    distance = (64 - plain @ plain.T) / 2
    flat = torch.full((1, SIDE, SIDE), 90.0) + torch.randn(
        1, SIDE, SIDE
    )  # less than any contrast: like nothing, itself included
    for found_in in (duplicates.hashes, duplicates.differences):
        assert all(side.eq(0).all() for side in found_in(flat))
    assert plain.mean(1).abs().max() < 0.05, "as many bits are above the median as below"
    assert distance.diagonal().eq(0).all() and distance[0, 1:].min() > duplicates.HAMMING


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_among_others(change):
    originals = [picture(seed) for seed in range(12)]
    features = np.eye(12)  # what a network would say, and hashes alone miss of other crops
    changed = sketches([CHANGES[change](image) for image in originals], features)
    assert found(duplicates.search(changed, sketches(originals, features))) == {(i, i): "near" for i in range(12)}


@pytest.mark.parametrize("change", ["encoded", "half", "double", "mirrored", "bright", "dark"])
def test_hashes_alone_find_what_keeps_its_framing(change):
    originals = [picture(seed) for seed in range(12)]
    pairs = duplicates.search(sketches([CHANGES[change](image) for image in originals]), sketches(originals))
    assert found(pairs) == {(i, i): "near" for i in range(12)}
    assert all(pair.mirrored == (change == "mirrored") for pair in pairs if pair.first == pair.second)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (96, 72)])
def test_central_squares_are_found_among_what_was_squashed_to_squares(width, height):
    originals = [picture(seed, width, height) for seed in range(6)]
    squashed = sketches([image.resize((64, 64)) for image in originals])
    cut = sketches([ImageOps.fit(image, (64, 64)) for image in originals])
    for one, other in ((squashed, cut), (cut, squashed)):
        assert found(duplicates.search(one, other)) == {(i, i): "near" for i in range(6)}


def test_the_parts_that_a_picture_is_fitted_to_reach_to_26_of_32():
    """The smallest square part is 26 px, which one of 25 still fits and one of 24 no more."""
    rng = np.random.default_rng(5)
    whole = torch.from_numpy(np.stack([rng.integers(0, 256, (SIDE, SIDE)) for _ in range(4)])).float()
    fits = {}
    for side in (24, 25, 26, 27):
        part = torch.nn.functional.interpolate(
            whole[:, None, 3 : 3 + side, 4 : 4 + side], size=(SIDE, SIDE), mode="nearest"
        )
        fits[side] = registered(whole, part[:, 0], torch.zeros(4, dtype=torch.int64))[1]
    assert min(fits[side].min() for side in (25, 26, 27)) > 0.7, fits
    assert fits[24].max() < 0.6, fits


def test_pictures_of_alike_large_forms_are_not_the_same():
    """Horizons: the same gradient with other details."""
    ramp = np.linspace(20, 230, 64)[:, None, None] * np.ones((64, 80, 3))
    rng = np.random.default_rng(0)
    images = [Image.fromarray((ramp + rng.normal(0, 12, ramp.shape)).clip(0, 255).astype(np.uint8)) for _ in range(4)]
    pairs = duplicates.search(sketches(images, np.ones((4, 1))))
    assert found(pairs) == {}
    assert {pair.verdict for pair in pairs} == {"similar"} and max(
        pair.correlation for pair in pairs
    ) > duplicates.CLOSE


def test_a_thin_picture_is_as_large_as_its_longer_side():
    thin = np.zeros((10, 200, 3), np.uint8)
    assert duplicates.shrunk(thin, 50).shape == (50, 50, 3)
    assert duplicates.shrunk(thin, 200) is thin and duplicates.shrunk(thin, None) is thin


def test_images_without_contrast_are_equal_or_nothing():
    flat = [Image.new("RGB", (40, 40), (shade, shade, shade)) for shade in (0, 0, 255, 128)]
    assert found(duplicates.search(sketches(flat))) == {(0, 1): "copy"}
    noisy = Image.fromarray(np.random.default_rng(0).integers(126, 130, (40, 40, 3)).astype(np.uint8))
    assert found(duplicates.search(sketches([noisy]), sketches(flat))) == {}


def test_a_faint_trace_of_a_picture_is_no_likeness():
    """Whichever of the two it is in: what deviates by less than a grey value is noise."""
    strong = grey(picture(0))
    faint = 128 + 0.005 * (strong - strong.mean())
    for one, other in ((faint, strong), (strong, faint)):
        assert registered(one, other, torch.zeros(1, dtype=torch.int64))[0].item() < 0.5


def test_unreadable_images_have_no_duplicates():
    side = sketches([picture(0), picture(0)])
    unread = Sketches(
        thumbnails=side.thumbnails, digests=side.digests, features=side.features, readable=np.array([True, False])
    )
    assert duplicates.search(unread) == [] and duplicates.search(side, unread)[0].second == 0


def test_every_copy_of_many_is_told_of():
    """Of an image with more copies than candidates are kept, none may stay in the set unnoticed."""
    pairs = duplicates.search(sketches([picture(1)] * 200))
    assert {pair.second for pair in pairs} == set(range(1, 200)) and {pair.verdict for pair in pairs} == {"copy"}


def test_candidates_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    images = [picture(seed % 9) for seed in range(30)]
    features = rng.normal(size=(30, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    one, other = sketches(images, features), sketches(images[::-1], features[::-1])
    whole = duplicates.search(one), duplicates.search(one, other)
    monkeypatch.setattr(duplicates, "_ROWS", 7)
    monkeypatch.setattr(duplicates, "_COLUMNS", 11)
    again = duplicates.search(one), duplicates.search(one, other)
    assert [found(pairs) for pairs in whole] == [found(pairs) for pairs in again]
    assert len(found(whole[0])) > 20


def test_nearest_neighbours_are_the_nearest(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(n, 16)).astype(np.float16) for n in (20, 40))
    monkeypatch.setattr(duplicates, "_COLUMNS", 9)
    pairs = duplicates._by_features(one, other, within=False)
    best = np.argsort(-(one.astype(float) @ other.astype(float).T), axis=1)[:, : duplicates.NEIGHBOURS]
    assert {*map(tuple, pairs.tolist())} == {(i, j) for i, row in enumerate(best.tolist()) for j in row}


def test_an_approximate_index_finds_the_same(monkeypatch):
    pytest.importorskip("usearch")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 16))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    exact = duplicates._by_features(features, features, within=True)
    monkeypatch.setattr(duplicates, "EXACT", 0)
    near = duplicates._by_features(features, features, within=True)
    assert np.array_equal(near, duplicates._by_features(features, features, within=True))
    shared = {*map(tuple, exact.tolist())} & {*map(tuple, near.tolist())}
    assert len(shared) > 0.95 * len({*map(tuple, exact.tolist())})


def test_registration_says_how_well_the_best_fit_fits():
    one, other = grey(picture(0)), grey(picture(1))
    correlation, way = screened(one, one)
    close, detail = registered(one, one, way)
    assert way.item() in (0, 1) and min(correlation.item(), close.item(), detail.item()) > 0.98
    correlation, way = screened(one, other)
    assert registered(one, other, way)[0].item() < duplicates.LOOSE


# --- The command


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, 8 training and 4 test images; test/a/0 and 1 are train/a/2 and 3 changed; train/b/7 repeats train/b/6."""
    root = tmp_path_factory.mktemp("check") / "set"
    for part, seeds in (("train", range(8)), ("test", range(100, 104))):
        for n, seed in enumerate(seeds):
            path = root / part / ("a" if n < len(seeds) // 2 else "b") / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
    jpeg(picture(2)).save(root / "test" / "a" / "0.png")
    ImageOps.mirror(picture(3)).save(root / "test" / "a" / "1.png")
    picture(6).save(root / "train" / "b" / "7.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(network_makers.saved(tmp_path_factory.mktemp("model") / "tiny.safetensors", ("a", "b"), std=1))


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def excluded(folder, side):
    return sorted(exclusions.read(folder / "findings.csv", side))


def test_between_two_sets(data, tmp_path, capsys, model):
    out = tmp_path / "out"
    assert cli.main(["check", str(data / "train"), str(data / "test"), "--model", model, "--out", str(out)]) == 0
    same = [row for row in rows_of(out / "duplicates.csv") if row["verdict"] != "similar"]
    assert [(row["test"], row["train"], row["mirrored"]) for row in same] == [
        ("a/0.png", "a/2.png", "0"),
        ("a/1.png", "a/3.png", "1"),
    ]
    assert all(int(row["hash"]) <= 10 and 0.9 < float(row["correlation"]) <= 1 and row["cosine"] for row in same)
    assert excluded(out, "test") == ["a/0.png", "a/1.png"] and excluded(out, "train") == ["a/2.png", "a/3.png"]
    said = capsys.readouterr().out
    assert "1. 2 of 4 test images (50.0%) show the same as 2 train images" in said
    for command in (f"bit finetune {data / 'train'}", f"bit evaluate MODEL {data / 'test'}"):
        assert f"use:    {command} --exclude {out / 'findings.csv'}   (2 images)\n" in said
    record = json.loads((out / "config.json").read_text())
    assert record["command"] == "check" and record["found"]["findings"]["leak"] == 4
    assert record["found"]["images"] == {"test": 4, "train": 8}
    shown = html_pages.parse((out / "check.html").read_text(encoding="utf-8"))
    assert len(shown.all("img")) >= 4 and "a/0.png" in shown.text


def test_the_same_again_is_the_same(data, tmp_path, model):
    files = []
    for name, flags in (("one", ["--batch-size", "3", "--workers", "1"]), ("two", [])):
        out = tmp_path / name
        assert cli.main(["check", str(data), "--model", model, "--out", str(out), *flags]) == 0
        files.append([(out / file).read_bytes() for file in ("duplicates.csv", "findings.csv")])
    # What a network computes may differ in the last digit with the batch.
    cut = [[[row.split(b",")[:4] for row in content.splitlines()] for content in contents] for contents in files]
    assert cut[0] == cut[1]


def test_within_one_set(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["check", str(data), "--no-features", "--out", str(out)]) == 0
    same = [row for row in rows_of(out / "duplicates.csv") if row["verdict"] != "similar"]
    assert [(row["test_part"], row["train_part"], row["verdict"], row["cosine"]) for row in same] == [
        ("test", "train", "near", ""),
        ("test", "train", "near", ""),
        ("train", "train", "copy", ""),
    ]
    assert excluded(out, "train") == ["train/a/2.png", "train/a/3.png", "train/b/7.png"]
    assert excluded(out, "test") == ["test/a/0.png", "test/a/1.png"]
    said = capsys.readouterr().out
    assert "2. 1 of 8 train images repeat an earlier one" in said
    assert f"\npage:   {out / 'check.html'}\ntable:  {out / 'findings.csv'}; pairs: {out / 'duplicates.csv'}\n" in said
    assert f"use:    bit finetune {data} --exclude {out / 'findings.csv'}   (3 images)\n" in said
    assert f"use:    bit evaluate MODEL {data} --exclude {out / 'findings.csv'}   (2 images)\n" in said
    # Where parts leak a split without leaks is written unasked.
    assert f"split:  {out / 'split.json'}\n" in said
    corrected = splits.load_split(out / "split.json", open_dataset(data))
    assert len(corrected.train) == 5 and corrected.test is not None and len(corrected.test) == 4


@pytest.mark.parametrize(("folder", "said"), [("b", "of one class"), ("b/x", "have no classes")])
def test_a_training_that_cannot_be_is_not_recommended(data, tmp_path, capsys, folder, said):
    """Images of one class, and images without any, of which one repeats another."""
    shown = tmp_path / "set"
    shutil.copytree(data / "train" / "b", shown / folder)
    where = shown / "b" / "x" if folder == "b/x" else shown
    assert cli.main(["check", str(where), "--no-features", "--out", str(tmp_path / "o")]) == 0
    told = capsys.readouterr().out
    assert said in told and "use:    bit finetune" not in told and "repeat an earlier one" in told


def test_a_corrected_split_as_a_split_file_and_as_a_table(data, tmp_path, capsys):
    for name in ("split.json", "split.jsonl"):
        assert (
            cli.main(
                ["check", str(data), "--no-features", "--out", str(tmp_path / "o"), "--split", str(tmp_path / name)]
            )
            == 0
        )
    corrected = splits.load_split(tmp_path / "split.json", open_dataset(data))
    table = open_dataset(tmp_path / "split.jsonl")
    for each in (corrected, table):
        assert len(each.train) == 5 and each.test is not None and len(each.test) == 4
        assert each.train.class_names == ("a", "b")
        assert each.train.class_counts().tolist() == [2, 3]
        assert cli_names(each.train) == {"0.png", "1.png", "4.png", "5.png", "6.png"}
    assert cli.main(["check", str(tmp_path / "split.jsonl"), "--no-features", "--out", str(tmp_path / "again")]) == 0
    assert not [row for row in rows_of(tmp_path / "again" / "duplicates.csv") if row["verdict"] != "similar"]
    said = capsys.readouterr().out
    assert f"\nsplit:  {tmp_path / 'split.jsonl'}\n" in said
    assert said.count("No test image shows the same as an image of another part.\n") == 1
    assert "No train image" not in said and "No image repeats" not in said


def test_a_folder_without_duplicates(tmp_path, capsys):
    for seed in range(3):
        (tmp_path / "d" / "ab"[seed % 2]).mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / "d" / "ab"[seed % 2] / f"{seed}.png")
    command = ["check", str(tmp_path / "d"), "--no-features", "--out", str(tmp_path / "o")]
    assert cli.main(command) == 0
    assert "No image repeats another one.\n" in capsys.readouterr().out
    for number in range(11):
        (tmp_path / "d" / "a" / f"bad{number}.png").write_bytes(b"")
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert (
        "1. 11 images are left out: not readable." in said
        and "11 images cannot be read" in said
        and "  ... and 1 more\n" in said
        and said.count("is empty") == 10
    )
    (tmp_path / "d" / "a" / "bad0.png").unlink()
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert said.count("is empty") == 10 and "more" not in said


def test_the_test_side_may_give_way(data, tmp_path):
    target = tmp_path / "split.jsonl"
    command = ["check", str(data / "train"), str(data / "test"), "--no-features", "--out", str(tmp_path / "o")]
    assert cli.main([*command, "--split", str(target), "--drop", "test"]) == 0
    table = open_dataset(target)
    assert table.test is not None and (len(table.train), len(table.test)) == (8, 2)


def cli_names(images):
    return {os.path.basename(images.name(i)) for i in range(len(images))}


def test_the_smaller_resolution_decides(tmp_path, model):
    """Pictures of 20 px are found among large ones with details that those cannot show."""
    for n in range(3):
        rng = np.random.default_rng(n)
        large = np.asarray(picture(n, 240, 240)).astype(int) + rng.integers(-60, 60, (240, 240, 3))
        large = Image.fromarray(large.clip(0, 255).astype(np.uint8))
        for part, image in (("train", large), ("test", large.resize((20, 20), Image.Resampling.BILINEAR))):
            (tmp_path / part / "a").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / part / "a" / f"{n}.png")
    command = ["check", str(tmp_path / "train"), str(tmp_path / "test"), "--model", model, "--out", str(tmp_path / "o")]
    assert cli.main(command) == 0
    rows = [row for row in rows_of(tmp_path / "o" / "duplicates.csv") if row["verdict"] != "similar"]
    assert [row["test"] == row["train"] for row in rows] == [True] * 3
    assert all(float(row["cosine"]) > 0.98 for row in rows)


def test_unreadable_images_are_named_and_the_rest_goes_on(data, tmp_path, capsys):
    (tmp_path / "t" / "a").mkdir(parents=True)
    (tmp_path / "t" / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    picture(2).save(tmp_path / "t" / "a" / "good.png")
    command = ["check", str(data / "train"), str(tmp_path / "t"), "--no-features", "--out", str(tmp_path / "o")]
    assert cli.main(command) == 1
    assert "a/bad.png" in capsys.readouterr().out
    assert cli.main([*command, "--skip-bad-images"]) == 0
    assert excluded(tmp_path / "o", "test") == ["a/bad.png", "a/good.png"]
    (tmp_path / "t" / "a" / "good.png").unlink()
    assert cli.main(command) == 2 and "None of 1 images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["=1+1.png", "-x.png", "@a.png", "é‮.png", 'a,b"c.png', "<b>&.png", "new\nline.png"])
def test_names_that_others_chose_stay_harmless_and_are_found_again(tmp_path, name):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        picture(1).save(tmp_path / part / name)
        picture(2 if part == "train" else 3).save(tmp_path / part / "other.png")
    out = tmp_path / "out"
    command = ["check", str(tmp_path / "train"), str(tmp_path / "test"), "--no-features", "--out", str(out)]
    assert cli.main(command) == 0
    (row,) = [row for row in rows_of(out / "duplicates.csv") if row["verdict"] != "similar"]
    assert row["test"][0] not in "=-@" and "\n" not in row["test"] and "‮" not in row["test"]
    page = (out / "check.html").read_text(encoding="utf-8")
    assert "<b>&" not in page and "‮" not in page
    images = open_dataset(tmp_path / "test", min_classes=1)
    for file in ("duplicates.csv", "findings.csv"):
        names = exclusions.read(out / file, "test")
        (place,) = exclusions.find(images.parts(), names, out / file)["train"]
        assert images.train.name(int(place)) == name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--split", "x.csv"], ".jsonl"),
        (["--no-features", "--model", "other.safetensors"], "--no-features"),
        (["--out", "{run}"], "run of `bit finetune`"),
        (["--split", "{table}"], "would replace"),
    ],
)
def test_what_makes_no_sense_is_refused(data, tmp_path, capsys, flags, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"command": "finetune"}')
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"image": str(data / "train" / "a" / "0.png"), "label": "a"}) + "\n")
    source = str(table if "{table}" in flags else data)
    given = [flag.format(run=tmp_path / "run", table=table) for flag in flags]
    assert cli.main(["check", source, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error


def test_the_split_does_not_replace_the_record_of_the_comparison(data, tmp_path, capsys):
    out = tmp_path / "o"
    assert cli.main(["check", str(data), "--no-features", "--out", str(out), "--split", str(out / "config.json")]) == 2
    assert "would replace what --out writes" in capsys.readouterr().err and not out.exists()


def test_a_split_of_two_sets_has_no_split_file(data, capsys):
    assert cli.main(["check", str(data / "train"), str(data / "test"), "--drop", "test"]) == 2
    assert "--split" in capsys.readouterr().err
    assert cli.main(["check", str(data / "train"), str(data / "test"), "--split", "x.json"]) == 2
    assert "--split NAME.jsonl" in capsys.readouterr().err


# --- --exclude


def test_names_that_are_nowhere_are_named(data, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufefftrain/a/2.png\r\n\ntrain/a/2.png\nnowhere.png\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"names\.txt names images that the data set does not have: nowhere\.png"):
        exclusions.without(open_dataset(data), path)
    path.write_text("train/a/2.png\ntest/b/3.png\n")
    rest, counts = exclusions.without(open_dataset(data), path)
    assert counts == {"train": 1, "test": 1} and rest.test is not None and (len(rest.train), len(rest.test)) == (7, 3)
    path.write_text("".join(f"test/{kind}/{n}.png\n" for n, kind in enumerate("aabb")))
    with pytest.raises(DataError, match="leaves no image of the test part"):
        exclusions.without(open_dataset(data), path)


HEAD = ",".join(exclusions.COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n\n", "is empty"),
        (b"test,train,verdict\na,b,near\n", "lacks the column"),
        (HEAD.encode() + b"a,b,test,train,1,,1,1,0,perhaps\n", "line 2"),
        (HEAD.encode() + b"a\n", "line 2"),
        (HEAD.encode() + b'"a,b\n', "line"),
        (HEAD.encode() + b'a"b,c,test,train,1,,1,1,0,near\n"x"y,b,test,train,1,,1,1,0,near\n', "line"),
    ],
)
def test_damaged_lists_are_refused(data, tmp_path, content, said):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        exclusions.without(open_dataset(data), path)


def test_what_the_table_leaves_out_depends_on_the_side(tmp_path):
    path = tmp_path / "d.csv"
    rows = ["t1,r1,test,train", "t2,r2,test,train", "t3,t4,test,test", "r5,r6,train,train", "v1,r7,val,train"]
    verdicts = ["near", "similar", "copy", "copy", "near"]
    path.write_text(HEAD + "".join(f"{row},1,,1,1,0,{verdict}\n" for row, verdict in zip(rows, verdicts, strict=True)))
    assert exclusions.read(path, "test") == ["t1", "v1"]
    assert exclusions.read(path, "train") == ["r1", "r6", "r7"]


@pytest.mark.parametrize(("separator", "quote"), [(",", '"'), (";", ""), (";", '"'), ("\t", "")])
def test_tables_that_a_spreadsheet_program_saved_again(tmp_path, separator, quote):
    path = tmp_path / "findings.csv"
    rows = [
        exclusions.FINDINGS,
        ["a.png", "train", "cat", "repeat", "0,9", "", "", "train"],
        ["b.png", *6 * [""], "test"],
    ]
    path.write_text(
        "".join(
            separator.join(f'"{cell}"' if quote or separator in cell else cell for cell in row) + "\r\n" for row in rows
        )
    )
    assert (exclusions.read(path, "train"), exclusions.read(path, "test")) == (["a.png"], ["b.png"])
    row = ["t1", "r1", "test", "train", "1", "", "1", "1", "0", "near"]
    path.write_text(
        "".join(separator.join(f"{quote}{cell}{quote}" for cell in row) + "\r\n" for row in (exclusions.COLUMNS, row))
    )
    assert exclusions.read(path, "test") == ["t1"]


def test_names_that_begin_a_formula_are_told_apart(tmp_path):
    """In a table they have an apostrophe more, which may be part of another image's name."""
    for i, name in enumerate(("@x", "'@x", "a", "b")):
        Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,label\n@x.png,a\n'@x.png,b\na.png,a\nb.png,b\n")
    splits = open_dataset(tmp_path / "labels.csv")
    for gone, kept in (("@x.png", "'@x.png"), ("'@x.png", "@x.png")):
        (tmp_path / "f.csv").write_text(",".join(exclusions.FINDINGS) + f"\n{cell(gone)},,,,,,,all\n")
        rest, _ = exclusions.without(splits, tmp_path / "f.csv")
        left = {rest.train.name(i) for i in range(len(rest.train))}
        assert kept in left and gone not in left
        (tmp_path / "list.txt").write_text(f"{gone}\n")
        rest, _ = exclusions.without(splits, tmp_path / "list.txt")
        assert {rest.train.name(i) for i in range(len(rest.train))} == left


def test_no_file_is_said(data, tmp_path, capsys):
    assert cli.main(["finetune", str(data), "--exclude", "nothing.txt", "--out", str(tmp_path / "run")]) == 2
    assert "--exclude nothing.txt: No such file" in capsys.readouterr().err


def test_evaluate_says_full_and_dedup(data, tmp_path, model, capsys):
    names = tmp_path / "names.txt"
    names.write_text("test/a/0.png\ntest/b/2.png\ntrain/a/1.png\n")
    result = tmp_path / "all.json"
    assert cli.main(["evaluate", model, str(data), "--exclude", str(names), "--json", str(result)]) == 0
    record = json.loads(result.read_text())
    right = {row["name"]: row["rank"] == 0 for row in record["predictions"]}
    rest = [value for name, value in right.items() if name not in names.read_text()]
    dedup = record["dedup"]
    assert (dedup["excluded"], dedup["images"], len(right)) == (2, 2, 4)
    assert dedup["full"] == sum(right.values()) / 4 == record["top1"] and dedup["dedup"] == sum(rest) / 2
    said = capsys.readouterr().out
    assert "Full" in said and "Dedup" in said and "dropped 2" in said
    assert any("Without the 2 images" in note for note in record["notes"])


def test_full_and_dedup_differ_where_they_should():
    from bigtransfer import evals

    result = evals.Classification(2)
    result.update(torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]]), torch.tensor([0, 0, 0, 0]), torch.arange(4))
    dedup = evals.without(result, np.array([0, 1]), "list.txt")
    assert (dedup.full, dedup.dedup, dedup.excluded, dedup.images) == (0.75, 0.5, 2, 2)
    assert "Without the 2 images that list.txt names" in dedup.sentence()
    assert "Without the image that list.txt names" in evals.without(result, np.array([0]), "list.txt").sentence()
    assert evals.without(result, np.arange(4), "list.txt").dedup is None
    several = evals.multilabel.MultiLabel(2)
    several.update(
        torch.tensor([[1.0, -1], [1, -1], [-1, 1]]), torch.tensor([[0, -1], [1, -1], [1, -1]]), torch.arange(3)
    )
    rest = evals.without(several, np.array([1]), "list.txt")
    assert rest.dedup == 1.0 and rest.full is not None and rest.full < 1 and rest.metric == "mAP"


def test_finetune_leaves_them_out_and_says_so(data, tmp_path, model, capsys):
    run = tmp_path / "run"
    names = tmp_path / "names.txt"
    names.write_text("train/a/2.png\ntest/a/0.png\n")
    command = [
        "finetune",
        str(data),
        "--model",
        model,
        "--linear",
        "closed",
        "--out",
        str(run),
        "--exclude",
        str(names),
    ]
    assert cli.main(command) == 0
    assert "excluded: 2 images (1 of train, 1 of test)" in capsys.readouterr().out
    record = json.loads((run / "config.json").read_text())["data"]
    assert (record["excluded"], record["train"], record["test"]) == (2, 7, 3)
    assert "train/a/2.png" not in (run / "split.json").read_text()


def test_pretrain_leaves_them_out_of_each_set(data, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("train/a/2.png\ntest/a/0.png\n")
    command = ["pretrain", str(data), "--model", "r26x1", "--epochs", "1", "--batch-size", "8", "--warmup", "0"]
    command += ["--crop", "16", "--out", str(tmp_path / "run"), "--workers", "0", "--exclude", str(names)]
    from bigtransfer.jobs import pretrain

    sets, excluded = pretrain._open(cli.parse("pretrain", command[1:]))  # pyright: ignore
    assert excluded == {"train": 1, "test": 1} and len(sets[0].train) == 7 and len(sets[0].val) == 3
    two = cli.parse("pretrain", [str(data), *command[1:]])
    sets, excluded = pretrain._open(two)  # pyright: ignore
    assert [len(one.train) for one in sets] == [7, 7] and sum(excluded.values()) == 4
