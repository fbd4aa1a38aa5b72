"""The page of `bit serve` in a real browser: images dropped, pasted and chosen, their answers, and the CSV that is saved.

Skipped where there is no browser (`conftest.browser`).
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtransfer import cli, weights
from bigtransfer.predictor import Predictor
from tests.test_serve import NAMES, listening, png, tiny

_GIVEN = """
const made = document.createElement("input"), files = [];
made.type = "file"; made.multiple = true; made.id = "given";
document.body.append(made);
"""
_SENT = """
const transfer = new DataTransfer(), given = document.getElementById("given");
for (const file of given.files) transfer.items.add(file);
given.remove();
document.dispatchEvent(arguments[0] === "drop" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true})
  : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
"""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny(), device="cpu", precision="fp32")


@pytest.fixture
def page(browser: Any, predictor: Predictor) -> Iterator[Any]:
    with listening(predictor, timeout="60s") as (host, port):
        browser.get(f"http://{host}:{port}/")
        yield browser


def photos(folder: Path, count: int) -> list[Path]:
    made = [folder / f"photo {i}.png" for i in range(count)]
    for i, photo in enumerate(made):
        photo.write_bytes(png(i))
    return made


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def give(page: Any, how: str, files: list[Path]) -> None:
    """As a drop or a paste of the system would: a browser lets scripts make those events, with files that somebody chose."""
    page.execute_script(_GIVEN)
    page.find_element("id", "given").send_keys("\n".join(map(str, files)))
    page.execute_script(_SENT, how)


def asked_for(bar: Any) -> bool:
    """Whether a class's map is shown or waited for; else the bar's title says what went wrong."""
    return bar.get_attribute("aria-pressed") == "true"


def answered(page: Any, count: int) -> list[Any]:
    until(lambda: page.execute_script("return rows.length && rows.every(row => row.answer)"))
    found = page.execute_script("return rows.map(row => row.answer)")
    assert len(found) == count
    return found


def test_a_photo_that_is_dropped_is_answered_and_explained(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    until(lambda: "6 classes" in page.find_element("id", "about").text)
    give(page, "drop", photos(tmp_path, 1))
    (answer,) = answered(page, 1)
    (expected,) = predictor.predict([tmp_path / "photo 0.png"])
    assert (answer["label"], answer["probability"]) == (expected.label, pytest.approx(expected.probability, abs=1e-5))
    assert page.find_element("css selector", "#list .label").text == expected.label
    first = page.find_element("css selector", "#list .top button")
    assert first.text.split()[-1] == f"{100 * (expected.probability or 0):.1f}%"
    first.click()
    until(lambda: page.find_elements("css selector", "#list img.picture") or not asked_for(first))
    assert asked_for(first), first.get_attribute("title")
    told = page.find_element("css selector", "#list img.picture").get_attribute("title")
    assert re.match(r"Orange speaks for crane #[23], blue for \w+", told), "the network has two classes of that name"
    first.click()
    until(lambda: page.find_elements("css selector", "#list canvas.picture"))
    assert page.get_log("browser") == []
    asked = page.execute_script("return performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert set(asked) == {page.execute_script("return location.origin")}, "nobody else"


def test_many_files_and_their_table(page: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pasted and chosen, one of them no image; saved as `bit predict --format csv` writes it."""
    files = photos(tmp_path, 20)
    give(page, "paste", files[:8])
    (tmp_path / "=no image.png").write_bytes(b"nothing")
    chosen = [*files[8:], tmp_path / "=no image.png"]
    page.find_element("id", "files").send_keys("\n".join(map(str, chosen)))
    answered(page, 21)
    assert page.find_element("id", "summary").text == "21 images, 1 without an answer"
    counts = [part.rpartition(": ") for part in page.find_element("id", "counts").text.split(" · ")]
    assert sum(int(number) for _, _, number in counts) == 20 and {name for name, _, _ in counts} <= set(NAMES)

    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "saved")})
    page.find_element("id", "csv").click()
    saved = tmp_path / "saved" / "predictions.csv"
    until(saved.is_file)
    model = tmp_path / "model.safetensors"
    weights.save(model, tiny())
    asked = ["--format", "csv", "--device", "cpu", "--precision", "fp32"]
    assert cli.main(["predict", str(model), *map(str, [*files, chosen[-1]]), *asked]) == 1, "one is no image"
    expected = list(csv.reader(capsys.readouterr().out.splitlines()))
    found = list(csv.reader(saved.read_text(encoding="utf-8").splitlines()))
    assert found[0] == expected[0] and len(found) == 22
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine[0].removeprefix("'") == Path(theirs[0]).name and mine[1] == theirs[1]
        assert float(mine[2] or 0) == pytest.approx(float(theirs[2] or 0), abs=1e-5)
    assert found[-1][0] == "'=no image.png", "no formula for a spreadsheet"
    page.find_element("id", "clear").click()
    assert not page.find_element("id", "results").is_displayed()
    (told,) = page.get_log("browser")
    assert told["source"] == "network" and "422" in told["message"], "the browser's own line of what is no image"
