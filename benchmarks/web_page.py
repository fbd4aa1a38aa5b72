"""The page of `bit convert --to web` beside `bit predict`: the same answers, and how long they take.

    python -m benchmarks.web_page PAGE MODEL IMAGES ... [--step N]

Opens PAGE in headless Chromium (with its driver, and selenium), gives it every Nth file of the patterns, and compares.
"""

from __future__ import annotations

import argparse
import glob
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.cells import commit, machine
from bigtransfer.predictor import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", help="patterns")
    parser.add_argument("--step", type=int, default=1)
    asked = parser.parse_args()
    files = [file for pattern in asked.images for file in sorted(glob.glob(pattern))[:: asked.step]]
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    version = browser.capabilities["browserVersion"]
    begun = time.perf_counter()
    browser.get(asked.page.absolute().as_uri())
    while not browser.execute_script("return models.length"):
        time.sleep(0.05)
    loaded = time.perf_counter()
    browser.find_element("id", "files").send_keys("\n".join(str(Path(file).absolute()) for file in files))
    while not browser.execute_script("return rows.length && rows.every(row => row.answer)"):
        time.sleep(0.05)
    done = time.perf_counter()
    answers = browser.execute_script("return rows.map(row => row.answer)")
    browser.quit()
    wanted = Predictor.load(asked.model, device="cpu", precision="fp32").predict(files)
    known = [(a, one) for a, one in zip(answers, wanted, strict=True) if one.error is None and "error" not in a]
    same = sum(a["label"] == one.label for a, one in known)
    differences = np.array([abs(a["probability"] - dict(one.top(10**6))[a["label"]]) for a, one in known])
    quantiles = ", ".join(f"{np.quantile(differences, q):.1e}" for q in (0.5, 0.95, 1))
    print(f"{machine()}, commit {commit()}, Chromium {version}")
    print(f"{asked.page.name}: {asked.page.stat().st_size / 1e6:.1f} MB, ready after {loaded - begun:.1f} s")
    print(f"{len(known)} of {len(files)} images, {(done - loaded) / len(files):.2f} s each; same class: {same}")
    print(f"probability of that class, difference from bit predict: median, 95th percentile, largest {quantiles}")


if __name__ == "__main__":
    main()
