"""What `bit check` finds of labels, pictures and traits, each beside its plain definition or what was planted."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from bigtransfer import cli
from bigtransfer.data import exclusions, open_dataset
from bigtransfer.errors import DataError
from bigtransfer.evals import linear, quality, shortcuts, suspects
from bigtransfer.jobs.check import findings
from tests import html_pages
from tests.test_check import model, picture  # noqa: F401 (a fixture)

# --- Labels


def clusters(n: int, d: int, classes: int, seed: int = 0, spread: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float (n, d) around a centre for each class, and the classes int (n,), in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + spread * torch.randn(n, d, generator=generator), labels


def refitted(features, labels, classes, probe, out) -> torch.Tensor:
    """Scores (len(out), classes) of the rows `out` by ridge regression on the others, with the standardization of all: by its definition,
    an augmented matrix whose intercept is not penalised."""
    scatter = torch.zeros(1, features.shape[1]) if probe.scatter is None else probe.scatter
    mean, scale = linear.standardization(features)
    x = torch.cat([(features.double() - mean) * scale, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    y = torch.nn.functional.one_hot(labels, classes).double()
    rest = torch.tensor([i for i in range(len(features)) if i not in out])
    penalties = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    d = features.shape[1]
    penalties[:d, :d] = probe.penalty * (torch.eye(d, dtype=torch.float64) + scatter.double().T @ scatter.double())
    weight = torch.linalg.solve(x[rest].T @ x[rest] + penalties, x[rest].T @ y[rest])
    return x[list(out)] @ weight


@pytest.mark.parametrize("directions", [0, 4])
@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 50)])
def test_left_out_is_what_fitting_without_them_gives(n, d, directions):
    features, labels = clusters(n, d, 3)
    scatter = torch.randn(directions, d, generator=torch.Generator().manual_seed(1)) if directions else None
    probe = linear.fit(features, labels, 3, scatter=scatter)
    groups = torch.arange(n)
    groups[[4, 9, 11]] = 4
    scores = linear.left_out(features, labels, 3, probe, groups=groups) * probe.temperature
    alone = linear.left_out(features, labels, 3, probe) * probe.temperature
    for out in ([0], [7], [4, 9, 11]):
        wanted = refitted(features, labels, 3, probe, out)
        torch.testing.assert_close(scores[out], wanted, rtol=1e-6, atol=1e-8)
        if len(out) > 1:
            assert not torch.allclose(alone[out], wanted, atol=1e-3)
    hits = (alone.argmax(1) == labels).double().mean()
    assert float(hits) == pytest.approx(probe.leave_one_out_top1)


def test_planted_labels_are_found_and_the_likeliest_class_is_named():
    features, labels = clusters(240, 24, 4, spread=0.8)
    wrong = labels.clone()
    planted = [0, 33, 70, 111]
    wrong[planted] = (labels[planted] + 1) % 4
    found, agreement = suspects.wrong_labels(features, wrong, 4)
    assert {one.image for one in found[:4]} == set(planted) and len(found) <= 6
    assert all(one.likely == int(labels[one.image]) and one.label == int(wrong[one.image]) for one in found[:4])
    assert [one.times for one in found] == sorted((one.times for one in found), reverse=True)
    assert all(one.times >= suspects.TIMES for one in found)
    assert agreement is not None and 0.9 < agreement < 1
    clean, _ = suspects.wrong_labels(features, labels, 4)
    # Of equally likely ones the first image comes first, in whatever order they are given.
    equal, _ = suspects.suspected(
        torch.tensor([[0.0, 9.0]] * 3), torch.zeros(3, dtype=torch.int64), torch.tensor([7, 2, 5])
    )
    assert [one.image for one in equal] == [2, 5, 7]
    assert len(clean) <= 2


def test_of_too_many_images_each_class_is_judged_in_proportion():
    rows, labels = np.arange(100, 700), np.arange(600) % 30 == 0  # twenty of them
    some = findings._few(rows, labels, most=60)
    assert len(set(some)) == 60 and np.array_equal(some, np.sort(some)) and labels[some - 100].sum() == 2
    assert np.array_equal(some, findings._few(rows, labels, most=60)), "the same ones each time"
    assert np.array_equal(findings._few(rows, labels, most=600), rows)
    plain = findings._few(rows, most=60)
    assert len(set(plain)) == 60 and np.array_equal(plain, np.sort(plain)) and not np.array_equal(plain, some)


def test_copies_do_not_vouch_for_each_other():
    """A picture that is there five times with a wrong label: the copies know nothing of it but that label."""
    features, labels = clusters(120, 60, 4)
    copies = [0, 4, 8, 12, 16]
    features[copies] = features[0].clone()
    labels[copies] = 1
    groups = torch.arange(120)
    groups[copies] = 0
    found, _ = suspects.wrong_labels(features, labels, 4, groups=groups)
    assert set(copies) <= {one.image for one in found}
    alone, _ = suspects.wrong_labels(features, labels, 4)
    assert not set(copies) & {one.image for one in alone}


def test_of_small_classes_nothing_is_said():
    features, labels = clusters(60, 12, 3)
    labels[labels == 2] = 0
    labels[:3] = 2  # three images
    found, _ = suspects.wrong_labels(features, labels, 3)
    assert not any(2 in (one.label, one.likely) for one in found)
    assert suspects.wrong_labels(features[:6], torch.tensor([0, 0, 0, 1, 1, 1]), 3) == ([], None)


def test_outliers_are_far_from_all_others():
    features, _ = clusters(100, 16, 2, spread=0.3)
    generator = torch.Generator().manual_seed(1)
    features[[17, 60]] = 3 * torch.randn(2, 16, generator=generator)
    found = [one.image for one in suspects.outliers(features)]
    assert set(found[:2]) == {17, 60} and len(found) <= 3
    features[[61, 62]] = features[60].clone()  # which do not make it usual if they are known to be the same
    groups = torch.arange(100)
    groups[[61, 62]] = 60
    found = [one.image for one in suspects.outliers(features, groups)]
    assert set(found[:4]) == {17, 60, 61, 62}
    assert 60 not in {one.image for one in suspects.outliers(features)[:1]}
    assert suspects.outliers(features[:20]) == []


# --- Pictures


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def flaws_of(*images: Image.Image) -> list[set[str]]:
    found = quality.flaws([quality.look(pixels(image)) for image in images])
    return [{one.flaw for one in found if one.image == i} for i in range(len(images))]


def detailed(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with forms of every size, as photos have them."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side in (4, 8, 16, 32, 64, 128):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) - 128
    return Image.fromarray((128 + 0.4 * total).clip(0, 255).astype(np.uint8))


def test_flaws_are_told_apart():
    good = [detailed(seed) for seed in range(6)]
    bad = {
        "blurred": good[0].filter(ImageFilter.GaussianBlur(2.5)),
        "dark": Image.fromarray((pixels(good[1]) * 0.15).astype(np.uint8)),
        "bright": Image.fromarray((235 + pixels(good[2]) * 0.07).astype(np.uint8)),
        "uniform": Image.new("RGB", (160, 120), (90, 130, 60)),
        "tiny": good[3].resize((24, 20)),
        "odd shape": detailed(9, 400, 50),
    }
    assert flaws_of(*good, *bad.values()) == [set()] * 6 + [{flaw} for flaw in bad]


def test_what_is_in_focus_before_a_soft_background_is_not_blurred():
    sharp = detailed(0)
    soft = sharp.filter(ImageFilter.GaussianBlur(2))
    soft.paste(sharp.crop((0, 0, 40, 30)), (40, 30))
    assert flaws_of(soft) == [set()] and quality.look(pixels(soft)).sharpness > 0.7


def test_a_blurred_picture_is_blurred_at_any_size():
    blurred = detailed(0, 640, 480).filter(ImageFilter.GaussianBlur(12))
    assert flaws_of(blurred, blurred.resize((320, 240))) == [{"blurred"}] * 2
    assert np.isnan(quality.look(pixels(detailed(0, 39, 60))).sharpness)  # too small to tell


def test_nothing_but_black_is_dark_and_no_more():
    assert flaws_of(*[detailed(seed) for seed in range(3)], Image.new("RGB", (160, 120)))[3] == {"dark"}
    assert quality.flaws([None, None]) == []


# --- Traits


def test_a_trait_that_tells_the_class_is_told_of():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    sizes = np.where(rng.random(120) < 0.9, 100 + 50 * labels, 100 + 50 * rng.integers(0, 4, 120)).astype(float)
    noise = rng.normal(size=120)
    words = ["x" if label < 2 else "y" for label in labels]
    told, half, nothing = shortcuts.judge_all({"noise": noise, "words": words, "size": sizes}, labels)
    assert (told.trait, half.trait, nothing.trait) == ("size", "words", "noise")
    assert told.telling and told.low < told.recall < told.high and 0.85 < told.recall < 0.98 and told.chance == 0.25
    assert half.recall == pytest.approx(0.5) and not nothing.telling and nothing.low < 0.25 < nothing.high
    assert shortcuts.judge("same", np.ones(120), labels) is None
    assert shortcuts.judge("few", noise[:8], np.array([0, 0, 0, 0, 1, 1, 1, 1])) is None


def test_a_trait_of_one_large_class_is_not_taken_for_knowledge():
    """Of 95 % of one class guessing is right nearly always; what counts is the mean over classes."""
    labels = np.array([0] * 190 + [1] * 10)
    found = shortcuts.judge("noise", np.random.default_rng(0).normal(size=200), labels)
    assert found is not None and found.chance == 0.5 and not found.telling
    # All of the small class and half of the large one have the trait: right are 100 % and 50 %, of all images 52.5 %.
    half = shortcuts.judge("half", np.array([0, 1] * 95 + [1] * 10, dtype=float), labels)
    assert half is not None and half.recall == pytest.approx(0.75)


def test_a_unique_trait_is_not_learnt_by_heart():
    labels = np.repeat(np.arange(2), 50)
    found = shortcuts.judge("name", [f"{i}" for i in range(100)], labels)
    assert found is not None and found.recall == pytest.approx(0.5)


def test_copies_do_not_tell_the_trait_of_each_other():
    """A trait by chance, and each image there twice: what was learnt of one copy must not answer for the other."""
    rng = np.random.default_rng(0)
    words = [f"{i}" for i in range(40)] * 2
    labels, groups = np.tile(rng.permutation(np.arange(40) % 2), 2), np.tile(np.arange(40), 2)
    fooled, honest = shortcuts.judge("word", words, labels), shortcuts.judge("word", words, labels, groups=groups)
    assert fooled is not None and fooled.telling and honest is not None
    assert honest.recall == pytest.approx(0.5) and not honest.telling
    # Twice as many images of the same pictures say no more.
    once = shortcuts.judge("word", words[:40], labels[:40])
    assert once is not None and honest.high - honest.low == pytest.approx(once.high - once.low)
    same = np.concatenate([np.zeros(10, int), np.arange(1, 11)])
    assert shortcuts.judge("few", rng.normal(size=20), np.repeat([0, 1], 10), groups=same) is None


# --- The command


def test_everything_at_once(tmp_path, model, capsys):  # noqa: F811
    """Two classes that differ in colour and in size, with a wrong label, a blurred picture and one that contradicts itself."""
    data = tmp_path / "d"
    for kind, colour, side in (("blue", 0, 96), ("red", 2, 64)):
        for n in range(14):
            values = pixels(detailed(n + 100 * colour, side, side)).copy()
            values[..., colour] //= 8
            (data / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(data / kind / f"{n}.png")
    Image.open(data / "red" / "3.png").filter(ImageFilter.GaussianBlur(3)).save(data / "red" / "3.png")
    (data / "red" / "0.png").rename(data / "blue" / "strange.png")
    (data / "red" / "twin.png").write_bytes((data / "blue" / "5.png").read_bytes())
    out = tmp_path / "out"
    assert cli.main(["check", str(data), "--model", model, "--out", str(out)]) == 0
    with open(out / "findings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["finding"], row["image"]): row for row in rows}
    assert tuple(rows[0]) == exclusions.FINDINGS
    assert {name for kind, name in found if kind == "contradiction"} == {"blue/5.png", "red/twin.png"}
    assert [name for kind, name in found if kind == "blurred"] == ["red/3.png"]
    assert found["label", "blue/strange.png"]["likely"] == "red"
    left_out = exclusions.read(out / "findings.csv", "train")
    assert {"blue/5.png", "red/twin.png", "blue/strange.png"} <= set(left_out) and "red/3.png" not in left_out
    assert exclusions.read(out / "findings.csv", "test") == []
    said = capsys.readouterr().out
    assert "1. A shortcut: the " in said and "under different classes" in said and "1 image is blurred." in said
    page = html_pages.parse((out / "check.html").read_text(encoding="utf-8"))
    links = {link.attributes["href"] for link in page.all("a")}
    sections = {f"#{section.attributes['id']}" for section in page.all("section") if section.attributes.get("id")}
    assert links == {"#shortcuts", "#same", "#labels", "#flaws"} | ({"#outliers"} & links) and links <= sections
    assert "rather red" in page.text and [row[0] for row in page.rows() if row[0] == "height and width"] == [
        "height and width"
    ]
    run = tmp_path / "run"
    assert cli.main(["finetune", str(data), "--model", model, "--linear", "closed", "--out", str(run)]) == 0
    suspected = json.loads((run / "suspects.json").read_text(encoding="utf-8"))
    assert ("blue/strange.png", "blue", "red") in [(one["name"], one["label"], one["likely"]) for one in suspected]
    report = html_pages.parse((run / "report.html").read_text(encoding="utf-8"))
    (shown,) = (one for one in report.all("section") if one.all("h2")[0].text == "Your data")
    assert len(shown.all("img")) == len(suspected) and f"bit check {data}" in shown.text
    rest, counts = exclusions.without(open_dataset(data), out / "findings.csv")
    assert counts == {"train": len(left_out)} and len(rest.train) == 29 - len(left_out)


def test_labels_of_test_images_are_told_but_never_left_out(tmp_path):
    from bigtransfer.data.sources import Files, ImageSet
    from bigtransfer.evals.suspects import Suspect
    from bigtransfer.jobs.check.findings import Checked, Judged, Labelled, findings
    from bigtransfer.jobs.check.looking import Parts

    store = Files(tmp_path, ["0", "1", "2", "3"])
    names = ("a", "b")
    parts = {
        part: ImageSet(store, np.array(rows), np.array([0, 1]), names)
        for part, rows in (("test", [0, 1]), ("train", [2, 3]))
    }
    suspected = [Suspect(image=i, label=0, likely=1, own_probability=0.01, likely_probability=0.9) for i in (0, 2)]
    labelled = Labelled(rows=np.arange(4), labels=np.array([0, 1, 0, 1]), class_names=names)
    checked = Checked(
        seen=Parts(parts), within=True, pairs=[], unreadable={}, outliers=[], flaws=[], classes={}, imbalance=None, folder=tmp_path,
        seconds=0.0, judged=[Judged(of=labelled, suspects=suspected, agreement=0.5, shortcuts=[], growth=None)],
    )  # fmt: skip
    assert [(one.image, one.exclude) for one in findings(checked)] == [(0, ""), (2, "train")]


@pytest.mark.parametrize(
    ("rows", "said"),
    [("x.png,train,a,label,1,b,,perhaps\n", "line 2"), (",train,a,label,1,b,,train\n", "line 2"), ('"x\n', "line")],
)
def test_damaged_findings_are_refused(tmp_path, rows, said):
    path = tmp_path / "findings.csv"
    path.write_text(",".join(exclusions.FINDINGS) + "\n" + rows)
    with pytest.raises(DataError, match=said):
        exclusions.read(path, "train")


def test_the_last_column_says_who_leaves_an_image_out(tmp_path):
    path = tmp_path / "findings.csv"
    rows = [("a", "train"), ("b", "test"), ("c", "all"), ("d", ""), ("a", "")]
    path.write_text(
        ",".join(exclusions.FINDINGS) + "\n" + "".join(f"{name},train,k,label,1,,,{who}\n" for name, who in rows)
    )
    assert exclusions.read(path, "train") == ["a", "c"] and exclusions.read(path, "test") == ["b", "c"]
    path.write_text("image,part,class\nx,train,a\n")
    with pytest.raises(DataError, match="lacks the column exclude"):
        exclusions.read(path, "train")
