"""What all tests share: few threads, and the real images beside the repository where there are any."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tiny networks are faster on one thread, and sums come out the same on every machine. Must be set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where there is no GPU its kernels run in Triton's interpreter; Triton reads this when it is first imported, by torch or by us.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that lies beside the repository; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images in ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model hub, and nothing kept of earlier downloads."""
    monkeypatch.setenv("BIT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("BIT_OFFLINE", "1")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium without a window, by selenium; the test is skipped where one of them, or Chromium's driver, is not here."""
    selenium = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs Chromium and chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def browser(chromium: Any) -> Any:
    """The same, with nothing in its log yet."""
    chromium.get_log("browser")
    return chromium


@contextlib.contextmanager
def dying_at_a_checkpoint() -> Iterator[None]:
    """Within, a training ends right after it has written a checkpoint, like a process that is killed; it must get that far."""
    from bigtransfer.train import checkpoint  # loads torch, not before the threads are set

    original = checkpoint.save

    def die(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        raise SystemExit(9)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", die)
        with pytest.raises(SystemExit):
            yield
