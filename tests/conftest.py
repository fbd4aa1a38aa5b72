"""What all tests share: few threads, and the real images beside the repository where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tiny networks are faster on one thread, and sums come out the same on every machine. Must be set before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that lies beside the repository; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real images in ../shared/data, which is not here")
    return SHARED_DATA
