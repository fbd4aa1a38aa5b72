"""Which images to label next, and `bit predict --suggest`."""

from __future__ import annotations

import csv

import pytest
import torch

from bigtransfer import cli
from bigtransfer.evals import suggest
from tests.test_check import model, picture  # noqa: F401 (a fixture)


def test_the_unsure_ones_are_chosen_and_the_same_each_time():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 12, generator=generator)
    sure = torch.full((60,), 0.9999)
    unsure = torch.arange(5, 60, 6)
    sure[unsure] = 0.55
    probabilities = torch.stack([sure, 1 - sure], 1)
    chosen = suggest.choose(features, probabilities, len(unsure))
    assert len(set(chosen)) == len(unsure) and len(set(chosen) & set(unsure.tolist())) >= 8
    assert chosen == suggest.choose(features, probabilities, len(unsure))
    everything = suggest.choose(features, probabilities, 100)
    assert sorted(everything) == list(range(60)) and set(everything[:10]) == set(unsure.tolist())


def test_pictures_of_one_kind_are_not_all_taken():
    """Fifty nearly equal uncertain pictures, and five others that are a little less so."""
    generator = torch.Generator().manual_seed(0)
    kinds = 3 * torch.randn(6, 20, generator=generator)
    which = torch.tensor([0] * 50 + [1, 2, 3, 4, 5])
    features = kinds[which] + 0.01 * torch.randn(55, 20, generator=generator)
    p = torch.where(which == 0, 0.51, 0.6)
    chosen = suggest.choose(features, torch.stack([p, 1 - p], 1), 6)
    assert sorted(int(which[i]) for i in chosen) == [0, 1, 2, 3, 4, 5]
    assert which[chosen[0]] == 0, "the cluster with most to be unsure of"


def test_copies_are_chosen_once_each():
    features = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1)
    p = torch.tensor([0.6, 0.6, 0.6, 0.6])
    assert len(set(suggest.choose(features, torch.stack([p, 1 - p], 1), 3))) == 3
    assert suggest.choose(torch.empty(0, 8), torch.empty(0, 2), 3) == []


def test_of_several_labels_the_doubt_is_of_each():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    probabilities = torch.full((30, 3), 0.999)
    probabilities[7, 1] = 0.5  # the softmax of such would hide it
    assert suggest.choose(features, probabilities, 1, several=True) == [7]


def test_the_command(tmp_path, model, capsys):  # noqa: F811
    for n in range(8):
        (tmp_path / "new").mkdir(exist_ok=True)
        picture(n).save(tmp_path / "new" / f"{n}.png")
    (tmp_path / "new" / "bad.png").write_bytes(b"")
    out, folder = tmp_path / "next.csv", tmp_path / "next"
    command = ["predict", model, str(tmp_path / "new"), "--suggest", "3", "--format", "csv", "--out", str(out)]
    assert cli.main([*command, "--suggest-to", str(folder)]) == 1
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["error"]) for row in rows] == [False] * 3 + [True]
    names = [row["image"].rpartition("/")[2] for row in rows[:3]]
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}-{name}" for n, name in enumerate(names, 1)]
    assert (folder / f"1-{names[0]}").read_bytes() == (tmp_path / "new" / names[0]).read_bytes()
    assert cli.main([*command, "--suggest-to", str(folder)]) == 2 and "something in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--suggest-to", "x"], "--suggest N"),
        (["--suggest", "2", "--features", "x.npz"], "--features"),
        (["--suggest", "0"], "1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(model, capsys, flags, said):  # noqa: F811
    assert cli.main(["predict", model, "a.png", *flags]) == 2
    assert said in capsys.readouterr().err
