"""The examples with the libraries that they are for, where these are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtransfer import Predictor
from tests.network_makers import saved


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_ray_data_job_answers_as_predict_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine its processes take minutes to start.
    for name in ("raylet_start_wait_time_s", "worker_register_timeout_seconds", "gcs_server_request_timeout_seconds"):
        monkeypatch.setenv(f"RAY_{name}", "600")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "600000")
    ray = pytest.importorskip("ray")
    from examples import ray_data

    model, photos = saved(tmp_path / "tiny.safetensors", ("ant", "bee", "cat"), std=1.0), tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    (photos / "torn.png").write_bytes((photos / "0.png").read_bytes()[:60])
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        ray_data.answers(str(model), str(photos), batch=4).write_parquet(str(tmp_path / "out"))
    finally:
        ray.shutdown()
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    told = {Path(row["image"]).name: row for row in rows}
    assert len(rows) == len(told) == 10, "every image once"
    torn = told.pop("torn.png")
    assert torn["label"] is None and torn["probability"] is None and torn["error"]
    expected = {Path(one.name).name: one for one in Predictor.load(model).predict([*map(str, photos.glob("?.png"))])}
    assert told.keys() == expected.keys() and len({row["label"] for row in told.values()}) > 1
    for name, row in told.items():
        assert row["error"] is None and row["label"] == expected[name].label
        assert row["probability"] == pytest.approx(expected[name].probability, abs=2e-3)
