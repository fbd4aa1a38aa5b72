"""`bit results`: ours beside the published number, and only where they are comparable."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import re
from pathlib import Path

import msgspec
import pytest

from bigtransfer import catalog, cli
from bigtransfer.report import comparison
from bigtransfer.suites import published, registry, results
from bigtransfer.suites.published import Published
from bigtransfer.suites.results import Result
from bigtransfer.suites.suite import Task
from tests.test_suites_own import EXAMPLE

HEADLINES = [one for one in published.published() if published.headline(one)]


def _of(task: Task, suite: str, **changes: object) -> Result:
    values = {
        "suite": suite,
        "task": task.name,
        "benchmark": task.benchmark.name,
        "revision": task.benchmark.revision,
        "fingerprint": "f",
        "protocol": task.protocol.name,
        "parameters": json.loads(json.dumps(task.protocol.parameters())),
        "metric": "top-1",
        "value": 0.985,
        "interval": (0.98, 0.99),
        "images": 10_000,
        "model": "bit-m-r152x4",
        "weights": "w",
        "architecture": "r152x4",
        "input": {"size": 480},
        "precision": "float32",
        "seed": 0,
        "seconds": 1.0,
        "environment": {},
        "date": "2026-11-26T11:00:00+00:00",
    }
    return Result(**(values | changes))  # type: ignore[arg-type]


CIFAR10 = registry.find("transfer").task("cifar-10")


def _published(model: str, task: str, source: str = "paper v3 Table 2") -> Published:
    return next(one for one in published.published() if (one.model, one.task, one.source) == (model, task, source))


BIT_M = _published("BiT-M R152x4", "CIFAR-10")


def test_every_well_known_number_has_a_row_with_what_to_do(tmp_path: Path) -> None:
    assert len(HEADLINES) == 26
    rows = published.rows([], HEADLINES, tmp_path)
    assert [row.published for row in rows] == HEADLINES
    assert {row.verdict for row in rows} == {"not run"}
    assert all(row.remark and row.difference is None for row in rows)
    again = next(row for row in rows if row.published == BIT_M)
    assert "CIFAR-10 is not here (as above)" in again.remark
    (row,) = published.rows([], [BIT_M], tmp_path)
    for part in (
        str(tmp_path / "cifar-10-batches-bin"),
        "0.2 GB",
        "cs.toronto.edu",
        "bit evaluate bit-m-r152x4 --suite transfer",
    ):
        assert part in row.remark
    large = next(row for row in rows if row.published.model == "BiT-L R152x4" and row.published.task == "CIFAR-10")
    assert "never released" in large.remark


def test_every_published_number_has_a_row_and_names_what_exists() -> None:
    everything = published.published()
    assert len(everything) == 498
    assert {one.published for one in published.rows([], everything, Path("nowhere"))} == set(everything)
    for one in everything:
        assert one.weights is None or one.weights in catalog.published(), one
        target = one.target
        if target is not None and target.suite in registry.SUITES:
            suite = registry.SUITES[target.suite]
            assert target.task in suite.aggregates or suite.task(target.task)
        assert one.value is None or 0 < one.value < 1 or target is None


@pytest.mark.parametrize(
    ("text", "value", "bounds"),
    [
        ("98.91", 0.9891, None),
        ("99.37±0.06", 0.9937, (0.9925, 0.9949)),
        ("45.8/57.9/65.7", 0.579, (0.458, 0.657)),
        ("9.9k", None, None),
    ],
)
def test_published_numbers_as_they_are_printed(
    text: str, value: float | None, bounds: tuple[float, float] | None
) -> None:
    one = dataclasses.replace(BIT_M, text=text)
    assert one.value == (None if value is None else pytest.approx(value))
    assert one.bounds == (None if bounds is None else pytest.approx(bounds))


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.9891, "within tolerance"), (0.9795, "within tolerance"), (0.978, "off"), (1.0, "off")]
)
def test_a_comparable_result_has_its_difference_and_verdict(value: float, verdict: str, tmp_path: Path) -> None:
    (row,) = published.rows([_of(CIFAR10, "transfer", value=value)], [BIT_M], tmp_path)
    assert row.verdict == verdict
    assert row.difference == pytest.approx(value - 0.9891)
    assert row.interval == (0.98, 0.99)
    assert row.images == 10_000


def test_a_spread_that_was_published_widens_the_tolerance(tmp_path: Path) -> None:
    one = _published("BiT-M R50x1 (PyTorch; batch 128, lr 0.001)", "CIFAR-10 1/class", "big_transfer README")
    task = registry.find("few-shot").task("cifar-10/1-shot/readme")
    for value, verdict in ((0.46, "within tolerance"), (0.656, "within tolerance"), (0.44, "off"), (0.67, "off")):
        mine = _of(task, "few-shot", value=value, metric="top-1 (median)", model="bit-m-r50x1")
        (row,) = published.rows([mine], [one], tmp_path)
        assert row.verdict == verdict, value


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "few-shot"}, "protocol few-shot, not transfer"),
        (
            {"parameters": {"train": "train", "test": "test", "learner": {"kind": "linear-probe"}}},
            "learner.kind linear-probe",
        ),
        ({"revision": "2020"}, "edition 2020"),
    ],
)
def test_a_result_of_another_protocol_is_never_compared_and_says_so(
    changes: dict[str, object], told: str, tmp_path: Path
) -> None:
    rows = published.rows([_of(CIFAR10, "transfer", **changes)], [BIT_M], tmp_path)
    assert [row.verdict for row in rows] == ["not run", "not comparable"]
    assert told in rows[1].remark
    assert rows[1].difference is None
    both = published.rows([_of(CIFAR10, "transfer"), _of(CIFAR10, "transfer", **changes)], [BIT_M], tmp_path)
    assert [row.verdict for row in both] == ["within tolerance", "not comparable"]


def test_results_of_other_models_metrics_and_benchmarks_are_not_beside_it(tmp_path: Path) -> None:
    pets = registry.find("transfer").task("pets")
    others = [
        _of(CIFAR10, "transfer", model="bit-m-r50x1"),
        _of(CIFAR10, "transfer", metric="mean-per-class"),
        _of(pets, "transfer"),
    ]
    (row,) = published.rows(others, [BIT_M], tmp_path)
    assert row.verdict == "not run"


def test_two_results_of_other_images_are_two_rows_and_say_so(tmp_path: Path) -> None:
    mine = [_of(CIFAR10, "transfer"), _of(CIFAR10, "transfer", fingerprint="g"), _of(CIFAR10, "transfer", value=0.99)]
    rows = published.rows(mine, [BIT_M], tmp_path)
    assert [row.value for row in rows] == [0.985, 0.99] or [row.value for row in rows] == [0.985, 0.99][::-1]
    assert "other images" in rows[1].remark
    turned = [
        _of(CIFAR10, "transfer", input={"size": 480, "mode": "square"}),
        _of(CIFAR10, "transfer", fingerprint="g", input={"mode": "square", "size": 480}),
    ]
    assert published.rows(turned, [BIT_M], tmp_path)[1].remark == "of other images or labels: not as above"


def test_of_a_number_measured_again_the_later_date_counts_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    late = _of(CIFAR10, "transfer", value=0.99, input={"size": 480, "mode": "square"})
    early = _of(CIFAR10, "transfer", value=0.5, date="2026-11-25T23:00:00+00:00", input={"mode": "square", "size": 480})
    for mine in ([late, early], [early, late]):
        (row,) = published.rows(mine, [BIT_M], tmp_path)
        assert row.value == 0.99


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "v"}, "other weights of that name"),
        ({"input": {"size": 224}}, "input size 224"),
        ({"precision": "bfloat16"}, "computed in bfloat16"),
        ({"seed": 3}, "seed 3"),
    ],
)
def test_rows_of_one_model_say_in_what_they_differ(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    mine = [_of(CIFAR10, "transfer"), _of(CIFAR10, "transfer", value=0.5, **changes)]
    first, second = published.rows(mine, [BIT_M], tmp_path)
    assert first.remark == ""
    assert told in second.remark
    suite = registry.find("vtab-1k")
    one = _published("BiT-M R152x4", "VTAB-1k (19 tasks)")
    if "input" not in changes:
        whole = [_of(task, suite.name, **more) for more in ({}, changes) for task in suite.tasks]
        remark = published.rows(whole, [one], tmp_path)[1].remark
        assert told in remark and ("other weights" in remark) == ("weights" in changes)


def test_means_are_of_one_metric(tmp_path: Path) -> None:
    """Also where the line of that metric was lost, and another one of the task is there."""
    suite = registry.find("vtab-1k")
    one = _published("BiT-M R152x4", "VTAB-1k (19 tasks)")
    mine = [_of(task, suite.name, value=0.7) for task in suite.tasks]
    assert "18 more of its 19 tasks: bit results --suite vtab-1k" in published.rows([], [one], tmp_path)[0].remark
    (alone,) = published.rows([], [BIT_M], tmp_path)
    assert "more of its" not in alone.remark
    assert alone.remark.endswith("; bit evaluate bit-m-r152x4 --suite transfer --task cifar-10")
    other = _changed(mine[0], metric="mean-per-class", value=0.1)
    (row,) = published.rows([other, *mine], [one], tmp_path)
    assert row.value == pytest.approx(0.7)
    (row,) = published.rows([other, *mine[1:]], [one], tmp_path)
    assert row.verdict == "not run"


def test_tables_never_mix_keys() -> None:
    mine = [
        _of(CIFAR10, "transfer"),
        _of(CIFAR10, "transfer", model="bit-t-r26x1", value=0.7),
        _of(CIFAR10, "transfer", fingerprint="g"),
        _of(CIFAR10, "transfer", parameters={"train": "other"}),
        _of(CIFAR10, "transfer", metric="mean-per-class"),
    ]
    found = comparison.tables(mine)
    for members in found.values():
        assert len({one.key for one in members}) == 1
    titles = [title for _, title in found]
    assert len(set(titles)) == len(titles) == 4
    assert sum("other images or another protocol" in title for title in titles) == 3


def test_means_are_of_all_tasks_by_the_protocol_of_the_suite(tmp_path: Path) -> None:
    suite = registry.find("vtab-1k")
    one = _published("BiT-M R152x4", "VTAB-1k (19 tasks)")
    mine = [_of(task, suite.name, value=0.60 + 0.01 * number) for number, task in enumerate(suite.tasks)]
    (row,) = published.rows(mine, [one], tmp_path)
    assert row.value == pytest.approx(0.69)
    assert row.verdict == "off"
    (row,) = published.rows(mine[:-1], [one], tmp_path)
    assert row.verdict == "not run"
    other = [*mine[:-1], _changed(mine[-1], parameters={})]
    (row,) = published.rows(other, [one], tmp_path)
    assert row.verdict == "not run"
    other = [*mine[:-1], _changed(mine[-1], weights="v")]
    (row,) = published.rows(other, [one], tmp_path)
    assert row.verdict == "not run"


def _changed(result: Result, **changes: object) -> Result:
    return msgspec.structs.replace(result, **changes)


def _curve() -> list[Result]:
    suite = registry.find("few-shot")
    found = []
    for model, better in (("bit-t-r26x1", 0.3), ("r26x1-random", 0.0)):
        for place, shots in enumerate(("1-shot", "5-shot", "full")):
            task = suite.task(f"cifar-10/{shots}/linear-probe")
            value = 0.2 + better + 0.1 * place
            if shots == "full":
                found.append(_of(task, "few-shot", model=model, value=value))
                continue
            found.append(_of(task, "few-shot", model=model, value=value, metric="top-1 (median)", interval=None))
            found += [
                _of(task, "few-shot", model=model, value=value + 0.01 * d, metric=f"top-1 (draw {d})", drawn=[1, 2])
                for d in range(-2, 3)
            ]
    return found


def test_few_shot_curves_have_a_line_of_medians_and_a_dot_for_each_draw() -> None:
    (figure,) = comparison.few_shot(_curve())
    assert [place.text for place in figure.places] == ["1", "5", "full"]
    assert [len(points) for _, points in figure.lines] == [3, 3]
    assert len(figure.dots) == 2 * (2 * 6 + 1)
    (_, good), (_, poor) = figure.lines
    assert all(above[1] < below[1] for above, below in zip(good, poor, strict=True))
    assert good[0][1] > good[2][1]
    assert "Not all points are comparable" not in figure.note
    mixed = [*_curve(), _changed(_curve()[0], fingerprint="g", model="another")]
    assert "Not all points are comparable" in comparison.few_shot(mixed)[0].note


def test_places_of_curves_and_rows_of_tables_are_in_the_order_of_their_numbers() -> None:
    suite = registry.find("few-shot")
    names = ["100-shot", "full", "5-shot", "1-shot", "25-shot", "10-shot"]
    mine = [
        _of(suite.task(f"cifar-10/{shots}/linear-probe"), "few-shot", metric="top-1 (median)", value=0.1 * number)
        for number, shots in enumerate(names)
    ]
    (figure,) = comparison.few_shot(mine)
    assert [place.text for place in figure.places] == ["1", "5", "10", "25", "100", "full"]
    several = [_of(CIFAR10, "transfer", model=f"m{value}", value=value) for value in (0.5, 0.9, 0.7)]
    (members,) = comparison.tables(several).values()
    assert [one.value for one in members] == [0.9, 0.7, 0.5]


def test_a_figure_by_hand() -> None:
    """460 by 260, of which 400 by 220 are the plot from (48, 12) on: three places 133.3 apart."""
    (figure,) = comparison.few_shot(_curve())
    assert (figure.width, figure.height, figure.left, figure.right, figure.top, figure.floor) == (
        460,
        260,
        48,
        12,
        12,
        232,
    )
    assert [(level.at, level.text) for level in figure.levels] == [
        (232.0, "0%"), (177.0, "25%"), (122.0, "50%"), (67.0, "75%"), (12.0, "100%"),
    ]  # fmt: skip
    assert [(place.at, place.text) for place in figure.places] == [(114.7, "1"), (248.0, "5"), (381.3, "full")]
    assert figure.title == "cifar-10, linear-probe: top-1 over images of each class"
    assert list(figure.lines) == [
        (0, [(114.7, 122.0), (248.0, 100.0), (381.3, 78.0)]),
        (1, [(114.7, 188.0), (248.0, 166.0), (381.3, 144.0)]),
    ]
    assert list(figure.names) == [(0, "bit-t-r26x1", True), (1, "r26x1-random", True)]
    assert [(dot.x, dot.y, dot.colour, dot.hint) for dot in (figure.dots[0], figure.dots[1], figure.dots[-1])] == [
        (114.7, 122.0, 0, "bit-t-r26x1, 1-shot, top-1 (median): 50.00%"),
        (114.7, 126.4, 0, "bit-t-r26x1, 1-shot, top-1 (draw -2): 48.00%"),
        (381.3, 144.0, 1, "r26x1-random, full, top-1: 40.00%"),
    ]
    other = [_changed(one, seed=3) for one in _curve()[:1]]
    assert comparison.few_shot(other)[0].names == [(0, "bit-t-r26x1, seed 3", True)]
    unlike = [_curve()[0], _changed(_curve()[1], weights="v")]
    assert "Not all points are comparable" in comparison.few_shot(unlike)[0].note, "a dot of other weights"
    assert comparison.few_shot([_of(CIFAR10, "transfer"), _changed(_curve()[0], metric="mean-per-class")]) == []


def test_bars_by_hand() -> None:
    """Two places 200 apart, of which 160 are for the bars of two series."""
    series = {"ours": ({1: 0.5, 2: 1.0}, True), "theirs": ({2: 0.25}, False)}
    figure = comparison._bars("t", series, ["one", "two"], [1, 2])
    assert [(bar.x, bar.y, bar.colour, bar.hint, wide, ours) for bar, wide, ours in figure.bars] == [
        (68.0, 122.0, 0, "ours, one: 50.00%", 79.0, True),
        (268.0, 12.0, 0, "ours, two: 100.00%", 79.0, True),
        (348.0, 177.0, 1, "theirs, two: 25.00%", 79.0, False),
    ]
    assert [(place.at, place.text) for place in figure.places] == [(148.0, "one"), (348.0, "two")]
    assert figure.names == [(0, "ours", True), (1, "theirs", False)] and figure.title == "t"
    many = comparison._bars("t", {str(n): ({1: 0.5}, True) for n in range(400)}, ["one"], [1])
    assert {wide for _, wide, _ in many.bars} == {0.5}, "narrow ones are seen all the same"


def test_the_command_writes_the_page_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page, table = (tmp_path / name for name in ("r.jsonl", "r.html", "r.csv"))
    vtab = registry.find("vtab-1k")
    mine = [*_curve(), _of(CIFAR10, "transfer"), *(_of(task, "vtab-1k", value=0.7, note="<b>") for task in vtab.tasks)]
    results.append(file, mine)
    root = str(tmp_path / "none")
    assert cli.main(["results", str(file), "--root", root, "--out", str(page), "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"\npage: {page}\n") and "bit results FILE shows it here" not in shown
    assert re.search(r"BiT-M R152x4 +CIFAR-10, top-1 +98.91 +98.50% +-0.41 +98.00% to 99.00% +within tolerance", shown)
    assert "24 not run" in shown
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "VTAB-1k by the BiT-HyperRule: means of the groups" in text
    assert "BiT-M R152x4 (re-run)" in html.unescape(text)
    assert "<b></td>" not in text
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(row["kind"] == "published" for row in rows) == 26
    assert sum(row["kind"] == "ours" for row in rows) == len(mine)
    assert all(row["key"] for row in rows if row["kind"] == "ours")


@pytest.mark.parametrize("flag", ["--out", "--csv"])
def test_what_is_read_is_never_replaced(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results.append("results.jsonl", [_of(CIFAR10, "transfer")])
    Path("link").symlink_to("results.jsonl")
    Path("mine.toml").write_text(EXAMPLE)
    before = Path("results.jsonl").read_bytes()
    for arguments in (
        ["results.jsonl", flag, "results.jsonl"],
        [flag, "results.jsonl"],
        ["link", flag, "results.jsonl"],
        ["results.jsonl", flag, "./link"],
        ["--suite", "mine.toml", flag, "mine.toml"],
        ["results.jsonl", "--csv", "new", "--out", "../" + tmp_path.name + "/new"],
    ):
        assert cli.main(["results", "--root", "none", *arguments]) == 2
    assert Path("results.jsonl").read_bytes() == before
    assert Path("mine.toml").read_text() == EXAMPLE
    assert not Path("new").exists()
    assert cli.main(["results", "--root", "none", flag, "new"]) == 0


def test_long_names_of_models_do_not_make_tables_wide_and_stay_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page, table = (tmp_path / name for name in ("r.jsonl", "r.html", "r.csv"))
    names = [f"{'long ' * 4000}{middle}{' end' * 40}" for middle in "ab"] + ["\u202e" * 50]
    mine = [_of(CIFAR10, "transfer", model=name, precision="x" * 500) for name in names]
    results.append(file, [*mine, *(msgspec.structs.replace(one, model=name) for name in names for one in _curve())])
    assert cli.main(["results", str(file), "--root", "none", "--out", str(page), "--csv", str(table)]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("  long") or "u202e" in row]
    assert rows and max(map(len, rows)) < 220
    shown = {re.split("  +", row.strip())[0] for row in rows}
    assert len(shown) == 3 and max(map(len, shown)) == 60
    text = html.unescape(page.read_text())
    assert all(name in text for name in shown) and max(map(len, text.splitlines())) < 20_000
    with table.open() as stream:
        assert {row["model"] for row in csv.DictReader(stream)} >= set(names[:2]), "the table is for programs"


def test_bars_of_two_models_of_one_name_are_two() -> None:
    box = registry.find("objectnet").task("objectnet")
    vtab = registry.find("vtab-1k")
    others = ({"weights": "v"}, {"precision": "bfloat16"}, {"seed": 1})
    mine = [_of(box, "objectnet", value=0.1 * n, **more) for n, more in enumerate(({}, *others), 1)]
    (figure,) = comparison.objectnet(mine)
    assert len([name for _, name, ours in figure.names if ours]) == 4
    whole = [
        _of(task, vtab.name, value=0.1 * n, **more) for n, more in enumerate(({}, *others), 1) for task in vtab.tasks
    ]
    (figure,) = comparison.groups(whole, [])
    assert len([name for _, name, ours in figure.names if ours]) == 4


def test_without_results_it_lists_suites_and_their_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIT_BENCHMARKS", str(tmp_path))
    assert cli.main(["results"]) == 0
    shown = capsys.readouterr().out
    for name in registry.SUITES:
        assert f"  {name}: " in shown
    assert "cifar-10/100-shot" in shown
    assert cli.main(["results", "--suite", "transfer"]) == 0
    shown = capsys.readouterr().out
    assert "pets: Oxford-IIIT Pets is not here. Get images.tar.gz" in shown
    assert "only by --task: cifar-10/code" in shown
    assert "VTAB" not in shown
    assert cli.main(["results", "none.jsonl"]) == 2
    assert "There is no file none.jsonl" in capsys.readouterr().err
