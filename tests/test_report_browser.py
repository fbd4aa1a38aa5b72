"""The report in a real browser: no errors, tables sort, the map answers the pointer, and a phone's width is enough.

Skipped where there is no browser (`conftest.browser`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtransfer import report
from tests.data_makers import pattern
from tests.test_report_sections import BEFORE, EVALUATION, write


class Pictures:
    """A data set of every name that the evaluation has."""

    channels = 3
    names = tuple(row["name"] for row in EVALUATION["predictions"])

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def read(self, i: int, spec: Any = None) -> np.ndarray:
        return pattern(200, 300, i) if spec is None else pattern(spec.size, spec.size, i)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("run")
    write(folder, "evaluation.json", EVALUATION | {"uncalibrated": BEFORE})
    return report.write(folder, [Pictures()]).as_uri()  # pyright: ignore[reportArgumentType]


def test_no_errors_and_nothing_is_asked_for(browser: Any, address: str) -> None:
    browser.get(address)
    assert browser.get_log("browser") == []
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [one for one in asked if not one.startswith("data:")] == []
    broken = "return [...document.images].filter(one => !one.naturalWidth).length + ',' + document.images.length"
    assert browser.execute_script(broken).startswith("0,") and not browser.execute_script(broken).endswith(",0")


def test_tables_sort_by_a_click(browser: Any, address: str) -> None:
    browser.get(address)
    rows = "return [...document.querySelectorAll('table.sortable tbody th')].map(one => one.textContent)"
    assert browser.execute_script(rows) == ["bee", "cat", "ant"]
    head = browser.find_elements("css selector", "table.sortable thead button")
    head[0].click()
    assert browser.execute_script(rows) == ["ant", "bee", "cat"]
    head[1].click()
    head[1].click()
    assert browser.execute_script(rows)[0] == "ant"  # the most images first


def test_the_map_answers_the_pointer(browser: Any, address: str) -> None:
    from selenium.webdriver import ActionChains

    browser.set_window_size(1000, 900)
    browser.get(address)
    tip = browser.find_element("css selector", ".landscape .tip")
    spots = browser.find_elements("css selector", ".landscape .spot")
    assert not tip.is_displayed() and len(spots) == 4
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", spots[2])
    ActionChains(browser).move_to_element(spots[2]).perform()
    assert tip.is_displayed() and tip.text == "taken for bee (80%), is ant\n1.png"
    tile = tip.find_element("css selector", "i")
    assert tile.value_of_css_property("background-position") == "0px -112px"  # the third of two columns
    assert tile.value_of_css_property("background-size") == "224px 224px"
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    assert not tip.is_displayed()
    browser.find_elements("css selector", ".legend button")[1].click()  # bees alone
    dim = [spot.get_attribute("class").endswith("dim") for spot in spots]
    assert dim == [True, True, True, False]
    browser.find_elements("css selector", ".legend button")[1].click()
    assert not any("dim" in spot.get_attribute("class") for spot in spots)


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(browser: Any, address: str, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(address)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
