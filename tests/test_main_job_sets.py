"""The image sets of the main job: what benchmarks/sets.py makes of a repository."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import sets
from benchmarks.sets import Source


@pytest.fixture
def clone(tmp_path):
    """Writes files, path -> content, into a repository; a Source of it by the arguments."""

    def made(files, **options):
        folder, clone = tmp_path / "work", tmp_path / "clones" / "owner+name"
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "images"]):
            who = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
            subprocess.run(["git", *who, *words], cwd=folder, check=True)
        clone.parent.mkdir()
        (folder / ".git").rename(clone)
        return clone, Source(repository="owner+name", commit="HEAD", **options)

    return made


def numbered(folder, count, start=0):
    return {f"{folder}/{i:02}.jpg": f"{start + i}".encode() for i in range(count)}


def names(images):
    return {label: list(own) for label, own in images.items()}


def test_a_fifth_of_each_class_is_for_the_test_and_what_is_the_same_is_on_one_side(clone):
    # Of b ten are copies of a's, and eleven are its own.
    files = numbered("all/a/Imgs", 20) | numbered("all/b", 11, start=100)
    files |= {f"all/b/copy{i}.jpg": b"%d" % i for i in range(10, 20)}
    train, test = sets.parted(
        *clone({**files, "all/a/notes.txt": b"", "all/b/mask.gif": b"", "all/0.jpg": b""}, train="all")
    )
    assert sorted([*train["a"], *test["a"]]) == [f"{i:02}.jpg" for i in range(20)]
    assert len(train["b"]) + len(test["b"]) == 21
    content = [{one for own in part.values() for one in own.values()} for part in (train, test)]
    assert not content[0] & content[1]
    assert len(test["a"]) == 4
    assert len([name for name in test["b"] if "copy" not in name]) == 2


def test_the_division_stays_from_one_version_to_the_next(clone):
    _, test = sets.parted(*clone(numbered("all/a", 10) | numbered("all/b", 10, start=50), train="all"))
    assert names(test) == {"a": ["07.jpg", "08.jpg"], "b": ["04.jpg", "09.jpg"]}


def test_a_sources_own_division_stays_without_copies_and_of_large_sets_a_part_is_drawn(clone):
    files = numbered("learn/a", 9) | {"ask/a/x.jpg": b"4", "ask/a/y.jpg": b"50", "ask/a/z.jpg": b"51"}
    place, source = clone(files, train="learn", test="ask")
    train, test = sets.parted(place, source)
    assert names(train) == {"a": [f"{i:02}.jpg" for i in range(9) if i != 4]}
    assert names(test) == {"a": ["x.jpg", "y.jpg", "z.jpg"]}
    train, test = sets.parted(place, Source(repository="", commit="HEAD", train="learn", test="ask", most=(5, 2)))
    assert (len(train["a"]), len(test["a"])) == (5, 2) and "04.jpg" not in train["a"]


def test_of_a_class_that_has_too_few_a_fifth_is_for_the_test(clone):
    files = numbered("all/few", 5) | numbered("all/many", 20, start=50) | numbered("all/not", 9, start=90)
    train, test = sets.parted(*clone(files, train="all", without="not", most=(6, 3)))
    assert {label: (len(train[label]), len(test[label])) for label in test} == {"few": (4, 1), "many": (6, 3)}
    assert not set(train["many"]) & set(test["many"])


def test_of_a_table_only_what_is_certain_is_taken(clone):
    table = b"cells/0.jpg 0.0 mono\ncells/1.jpg 1.0 poly\ncells/2.jpg 0.333 mono\n"
    files = {f"cells/{i}.jpg": b"%d" % i for i in range(3)} | {"labels.csv": table}
    place, source = clone(files, train="cells", labels="labels.csv")
    assert names(sets.images(place, source, "cells")) == {"defect": ["1.jpg"], "whole": ["0.jpg"]}


def test_the_command_writes_whole_sets_once(clone, tmp_path, monkeypatch, capsys):
    _, source = clone(numbered("all/a", 10), train="all")
    monkeypatch.setattr(sets, "SETS", {"toys": source})
    monkeypatch.setattr(sys, "argv", ["sets", str(tmp_path / "clones"), str(tmp_path / "sets")])
    sets.main()
    assert capsys.readouterr().out == "toys: 1 classes, 8 / 2 images\n"
    written = sorted(path.relative_to(tmp_path / "sets").as_posix() for path in (tmp_path / "sets").rglob("*.jpg"))
    assert len(written) == 10 and {path.rsplit("/", 1)[0] for path in written} == {"toys/train/a", "toys/test/a"}
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["toys"]
    sets.main()
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sets", str(tmp_path / "elsewhere"), str(tmp_path / "others")])
    with pytest.raises(SystemExit, match=r"git clone --bare https://github.com/owner/name "):
        sets.main()
