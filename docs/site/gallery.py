"""The pictures of the gallery, from a run that this makes: `python docs/site/gallery.py`.

Needs Chromium with its driver, selenium, and the extra `demo`.

Three kinds of the demo's emoji, 15 pictures each, by the closed form; ten seconds of one core.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from bigtransfer.jobs import demo

WIDTH, HEIGHT = 820, 760
"""Of a window; of a picture at most, px."""
REPORT = {
    "accuracy": None,
    "classes": "Class by class",
    "confusion": "What is confused with what",
    "mistakes": "Most confident mistakes",
    "map": "A map of the pictures",
    "unsure": "If it may say",
    "calibration": "Can the probabilities be trusted?",
}
"""Name of the picture -> beginning of the section's title; None: the page's head."""


def shoot(browser: webdriver.Chrome, page: Path, wanted: dict[str, str | None], folder: Path) -> None:
    browser.get(page.resolve().as_uri())
    sections = browser.find_elements("css selector", "section")
    titles = [each.find_element("css selector", "h2").text for each in sections]
    for name, title in wanted.items():
        if title is None:
            content = browser.get_screenshot_as_png()
        else:
            content = next(
                each for each, text in zip(sections, titles, strict=True) if text.startswith(title)
            ).screenshot_as_png
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(picture.height, HEIGHT)))
        picture.quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


def main() -> None:
    folder = Path(__file__).with_name("gallery")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as place:
        kinds = {name: pictures for name, pictures in demo.kinds().items() if name in ("animal", "food", "transport")}
        demo.write_pictures(Path(place) / "emoji", kinds, per_class=15, seed=0)
        command = ("finetune", "emoji", "--linear", "closed", "--out", "run")
        subprocess.run([sys.executable, "-m", "bigtransfer", *command], cwd=place, check=True)
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        browser.set_window_size(WIDTH, HEIGHT)
        shoot(browser, Path(place) / "run" / "report.html", REPORT, folder)
        browser.quit()


if __name__ == "__main__":
    main()
