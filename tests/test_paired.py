"""Runs compared on the same images: the numbers by other routes, and what must not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bigtransfer import cli
from bigtransfer.evals.metrics import wilson
from bigtransfer.evals.paired import Paired
from bigtransfer.report import runs
from tests.html_pages import parse
from tests.test_report_sections import EVALUATION, LABELS, counted, write


def test_the_numbers_of_a_pair() -> None:
    first = np.array([True] * 70 + [False] * 30)
    second = np.array([True] * 60 + [False] * 10 + [True] * 25 + [False] * 5)
    found = Paired.of(first, second)
    assert (found.images, found.first_only, found.second_only) == (100, 10, 25)
    assert found.difference == pytest.approx(second.mean() - first.mean())
    assert found.p == pytest.approx(stats.binomtest(10, 35).pvalue)
    draws = np.random.default_rng(0).integers(0, 100, (20_000, 100))
    bootstrap = np.quantile((second.astype(float) - first)[draws].mean(1), [0.025, 0.975])
    assert found.interval == pytest.approx(bootstrap, abs=0.012)
    back = Paired.of(second, first)
    assert back.difference == -found.difference and back.p == found.p
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    # Narrower than of two separate samples: that both were measured on the same images is worth something.
    apart = wilson(0.85, 100)[1] - wilson(0.85, 100)[0] + wilson(0.7, 100)[1] - wilson(0.7, 100)[0]
    assert found.interval[1] - found.interval[0] < apart


def test_the_interval_keeps_its_promise_and_equal_runs_are_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    held = significant = 0
    for _ in range(2000):
        cells = rng.choice(4, 40, p=[0.7, 0.1, 0.1, 0.1])  # both, first only, second only, none
        found = Paired.of(np.isin(cells, [0, 1]), np.isin(cells, [0, 2]))
        held += found.interval[0] <= 0 <= found.interval[1]
        significant += found.p < 0.05
    assert held / 2000 > 0.93 and significant / 2000 < 0.05
    none = Paired(images=0, first_only=0, second_only=0)
    assert none.difference == 0 and none.p == 1 and none.interval[0] < 0 < none.interval[1]
    assert Paired(images=5000, first_only=3000, second_only=10).p == pytest.approx(0, abs=1e-12)


def changed(**values: Any) -> dict[str, Any]:
    record = EVALUATION | values
    return counted(record) if "predictions" in values else record


def answered(row: dict[str, Any], right: bool) -> dict[str, Any]:
    """The row of an image that is told so."""
    wrong = (row["true"] + 1) % len(EVALUATION["class_names"])
    return row | {"predicted": row["true"] if right else wrong, "rank": int(not right)}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Of eight images the second gets one wrong that the first gets right, and two right that it gets wrong; in another order."""
    folders = tmp_path / "before", tmp_path / "after"
    for folder in folders:
        folder.mkdir()
    write(folders[0], "evaluation.json", EVALUATION)
    rows = [dict(row) for row in EVALUATION["predictions"]]
    for place, said, rank in ((0, 1, 1), (1, 0, 0), (4, 1, 0)):
        rows[place] |= {"predicted": said, "rank": rank}
    write(folders[1], "evaluation.json", changed(predictions=rows[::-1], top1=5 / 8))
    return folders


def test_two_runs_in_the_terminal_and_on_a_page(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = two
    assert cli.main(["compare", str(before), str(after)]) == 0
    told = capsys.readouterr().out
    paired = Paired(images=8, first_only=1, second_only=2)
    low, high = paired.interval
    points = f"12.5 percentage points (95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    verdict = f"before and after cannot be told apart by these images: after is ahead by {points}"
    assert verdict in told and str(before / "comparison.html") in told
    page = parse((before / "comparison.html").read_text())
    assert page.all("p", "hero")[0].text == f"{verdict}."
    tables = page.all("table")
    assert [row[:3] for row in tables[0].rows()[1:]] == [["before", "8", "50.0%"], ["after", "8", "62.5%"]]
    assert tables[1].rows()[1] == ["after", "+12.5", f"{100 * low:+.1f} to {100 * high:+.1f}", "2", "1", "1"]
    shown = {one.all("h2")[0].text: [small.text for small in one.all("small")] for one in page.all("section")}
    assert shown["after is right, and before said"] == ["1.png", "1.png"]
    assert shown["before is right, and after said"] == ["0.png"]
    # The other way round the difference and its interval are still of the one that is ahead.
    (found,) = runs.compare([after, before]).against
    assert found.verdict == f"after and before cannot be told apart by these images: after is ahead by {points}"
    write(after, "evaluation.json", EVALUATION)
    assert "these images: both get as many right (95% interval -" in runs.compare([before, after]).against[0].verdict


def test_a_clear_difference_is_told_either_way(tmp_path: Path) -> None:
    good, bad = [
        [
            answered(row, right) | {"name": f"{i}/{k}"}
            for k in range(9)
            for i, row in enumerate(EVALUATION["predictions"])
        ]
        for right in (True, False)
    ]
    for name, rows in (("good", good), ("bad", bad)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, "evaluation.json", changed(predictions=rows))
    for order in (("good", "bad"), ("bad", "good")):
        (found,) = runs.compare([tmp_path / name for name in order]).against
        assert found.verdict.startswith("good is better than bad by 100.0 percentage points")


def test_a_few_images_told_differently_are_no_difference(tmp_path: Path) -> None:
    """Four of sixteen for one and none for the other, of which the interval alone would make something: p is 0.125."""
    rows = [row | {"name": f"{i}/{k}"} for k in range(8) for i, row in enumerate(EVALUATION["predictions"])]
    rows = rows[:16]
    for name, wrong in (("good", 0), ("bad", 4), ("worse", 6)):
        (tmp_path / name).mkdir()
        own = [answered(row, i >= wrong) for i, row in enumerate(rows)]
        write(tmp_path / name, "evaluation.json", changed(predictions=own))
    shown = runs.compare([tmp_path / name for name in ("good", "bad", "worse")])
    alike, worse = (one.verdict for one in shown.against)
    assert alike.startswith(
        "good and bad cannot be told apart by these images: good is ahead by 25.0 percentage points"
    )
    assert worse.startswith("good is better than worse by 37.5 percentage points")
    assert shown.summary[1] == "By these images it cannot be told apart from bad."


def test_what_was_said_of_a_measurement_is_said_beside_others(two: tuple[Path, Path]) -> None:
    """That the model had been trained on its images, for instance."""
    write(two[1], "evaluation.json", changed(notes=["8 of these 8 images are those that the model was trained on."]))
    notes = runs.compare(two).notes
    assert f"{two[1].name}: 8 of these 8 images are those that the model was trained on." in notes


def test_what_cannot_be_compared_is_refused(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = two

    def refused(*folders: Path) -> str:
        assert cli.main(["compare", *map(str, folders)]) == 2
        return capsys.readouterr().err

    rows = [dict(row) for row in EVALUATION["predictions"]]
    write(after, "evaluation.json", changed(predictions=[row | {"name": f"other/{row['name']}"} for row in rows]))
    assert "measured on different images" in refused(before, after)
    write(after, "evaluation.json", changed(class_names=["ant", "cat", "bee", "dog"]))
    assert "b/0.png is of class 'bee' in before and of 'cat' in after" in refused(before, after)
    write(after, "evaluation.json", changed(predictions=[*rows, rows[0]]))
    assert "several images of one name" in refused(before, after)
    # Names say little: IMG_0001.jpg is another picture in every folder.
    for row in rows:
        row["content"] = f"{rows.index(row):016x}"
    write(before, "evaluation.json", changed(predictions=rows))
    other = rows[3]["name"]
    write(after, "evaluation.json", changed(predictions=[*rows[:3], rows[3] | {"content": "f" * 16}, *rows[4:]]))
    assert f"{other} is another picture in after than in before" in refused(before, after)
    write(after, "evaluation.json", changed(predictions=rows, data="meadow"))
    (note,) = (one for one in runs.compare(two).notes if one.startswith("Measured on"))
    assert note.endswith("meadow; the pictures are the same.")
    write(after, "evaluation.json", changed(data="meadow"))  # of an earlier version, or of images that lie elsewhere
    (note,) = (one for one in runs.compare(two).notes if one.startswith("Measured on"))
    assert note.endswith("taken for the same images, as names and classes are the same.")
    write(before, "evaluation.json", EVALUATION)
    write(after, "evaluation.json", LABELS)
    assert "several labels" in refused(before, after)
    (after / "evaluation.json").write_text("{}")
    assert "holds no evaluation" in refused(before, after)
    write(after, "evaluation.json", changed(predictions=[], confused=[]))
    assert "holds no evaluation" in refused(before, after)
    assert "no run folder" in refused(before, tmp_path / "none")
    (after / "evaluation.json").unlink()
    asked = {"data": "my photos", "model": "bit-t-r26x1", "budget": "1m"}
    write(after, "config.json", {"command": "finetune", "asked": asked})
    assert "goes on from what is there: bit finetune 'my photos' --model bit-t-r26x1 --budget 1m" in refused(
        before, after
    )
    write(after, "evaluation.json", changed(predictions=rows[:6], data="meadow"))
    assert cli.main(["compare", str(before), str(after), "--out", str(tmp_path / "page.html")]) == 0
    told = parse((tmp_path / "page.html").read_text()).text
    assert "2 further images of before are not in every run" in told and "the same 6 images" in told
    write(after, "evaluation.json", changed(predictions=rows[:7]))
    assert "1 further image of before is not in every run" in runs.compare([before, after]).notes[0]
    assert "Measured on garden, meadow; taken for the same images" in told
    (before / "split.json").write_text("{}")
    for name in ("split.json", "evaluation.json", "report.html"):
        (before / name).touch()
        assert cli.main(["compare", str(before), str(after), "--out", str(before / name)]) == 2
        assert "which is read" in capsys.readouterr().err
    assert cli.main(["compare", str(before), "--out", "x.html"]) == 2
    assert "One run alone cannot be compared" in capsys.readouterr().err
    assert json.loads((before / "evaluation.json").read_text()) == EVALUATION


def test_runs_of_one_name_and_whole_evaluations_of_another_kind(two: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = two
    (tmp_path / "other").mkdir()
    twin = after.rename(tmp_path / "other" / before.name)
    assert [row.name for row in runs.compare([before, twin]).rows] == [str(before), str(twin)]
    right = [row.right for row in runs.compare([before, twin]).rows]
    write(twin, runs.WHOLE, LABELS)  # of several labels for each image
    assert [row.right for row in runs.compare([before, twin]).rows] == right
