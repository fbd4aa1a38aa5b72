"""`bit benchmark`: that it times what it says, and computes its figures right. Nothing here depends on how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtransfer import cli, weights
from bigtransfer.backends import by_onnxruntime, remembered
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.config import BenchmarkConfig
from bigtransfer.data import images
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.jobs import benchmark
from bigtransfer.jobs.benchmark import Measured, Row
from bigtransfer.model import ResNetV2
from bigtransfer.ops.memory import keep_freed_memory
from bigtransfer.predictor import Predictor

from .data_makers import class_folders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> ResNetV2:
    torch.manual_seed(0)
    made = ResNetV2((1, 1, 1, 1), 1, 7)
    torch.nn.init.normal_(made.head.weight, std=0.05)
    torch.nn.init.normal_(made.head.bias)
    made.card = ModelCard(name="tiny", architecture=made.architecture, num_classes=7, input=InputSpec(size=16))
    return made.eval()


def test_all_compute_the_same(network: ResNetV2) -> None:
    """Otherwise the figures of one would say nothing beside those of the other."""
    pytest.importorskip("timm")
    config = BenchmarkConfig(model="tiny", batch_sizes=(2, 3), backends=("torch",))
    rows = list(benchmark._rows(config, network, CPU, ("fp32", "bf16"), benchmark._made_up()[:2]))
    pixels = [row for row in rows if not row.decoding]
    assert [(row.by, row.precision, row.batch) for row in pixels] == [
        (by, precision, batch) for precision in ("fp32", "bf16") for by in ("torch", "timm") for batch in (2, 3)
    ]
    for row in pixels:
        assert row.error is not None and row.run() == row.batch
        low, high = (0, 1e-4) if row.precision == "fp32" else (1e-4, 0.1)
        assert low <= row.error < high, row
    assert [(row.by, row.batch) for row in rows if row.decoding] == [("torch", 2), ("torch", 3)] * 2


def test_another_backend(network: ResNetV2) -> None:
    pytest.importorskip("onnxruntime")
    config = BenchmarkConfig(model="tiny", batch_sizes=(2,), backends=("onnxruntime",), peers="none")
    rows = list(benchmark._rows(config, network, CPU, ("fp32", "bf16"), benchmark._made_up()[:2]))
    assert [(row.by, row.precision, row.decoding) for row in rows] == [
        ("onnxruntime", "fp32", False),
        ("onnxruntime", "fp32", True),
    ]
    assert rows[0].error is not None and rows[0].error < 1e-4 and rows[0].run() == 2


def test_a_peer_of_other_weights_would_show(network: ResNetV2) -> None:
    pytest.importorskip("timm")
    twin = benchmark._in_timm(network, CPU)
    assert twin is not None
    other = Predictor(network, device="cpu", precision="fp32")
    with torch.no_grad():
        next(twin.parameters()).mul_(-1)
    batch = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert not torch.allclose(benchmark._ask_timm(twin, torch.float32, CPU, batch), other.logits(batch), rtol=1e-3)


def test_decoding_is_in_it_or_not(network: ResNetV2, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = images.prepared
    monkeypatch.setattr(images, "prepared", lambda *given: (decoded.append(1), original(*given))[1])
    config = BenchmarkConfig(model="tiny", batch_sizes=(2,), peers="none", backends=("torch",))
    rows = list(benchmark._rows(config, network, CPU, ("fp32",), benchmark._made_up()[:2]))
    assert len(rows) == 2
    for row in rows:
        decoded.clear()
        assert len(decoded) == 0 and row.run() == (8 if row.decoding else 2)
        assert len(decoded) == (8 if row.decoding else 0)


def test_rates() -> None:
    times = iter([0.0, 2.0, 5.0])
    assert benchmark.rate(lambda: 10, 4, lambda: next(times)) == 20 / 5
    times = iter([0.0, 9.0])
    assert benchmark.rate(lambda: 10, 4, lambda: next(times)) == 10 / 9, "once at least"


def made(**changes: object) -> Measured:
    rows = [
        Row("torch", "fp32", 2, False, int, rates=[10.0, 30.0, 20.0], memory=5_000_000, error=1e-6),
        Row("timm", "fp32", 2, False, int, rates=[5.0, 10.0, 40.0], error=2e-6),
        Row("torch", "fp32", 2, True, int, rates=[4.0, 4.0, 4.0]),
    ]
    return Measured(**{"rows": rows, "peaks": {"fp32": 100e9}, "flops": 1e9, "others": 0.02, **changes})  # pyright: ignore[reportArgumentType]


def test_the_table(network: ResNetV2) -> None:
    shown = benchmark.table(network, made(), CPU)
    (ours,) = [line.split() for line in shown.splitlines() if line.startswith("torch") and "pixels" in line]
    # 20 images a second of a GFLOP each are a fifth of 100 GFLOP/s.
    assert ours == ["torch", "fp32", "2", "pixels", "20", "20%", "10..30", "5", "MB", "1.0e-06"]
    # The median of each round's own ratio, not the ratio of the medians.
    assert "torch: 2.00 times timm (eager, channels_last) in fp32, batch 2; 0.50 to 3.00 in the rounds" in shown
    assert "Other processes had 2% of the machine's cores" in shown and "busy" not in shown


def test_a_busy_machine_is_said(network: ResNetV2) -> None:
    assert "The machine was busy: other processes had 60% of its cores" in benchmark.table(
        network, made(others=0.6), CPU
    )
    assert "does not say" in benchmark.table(network, made(others=None), CPU)


def test_a_peak_that_was_measured_too_low_is_said(network: ResNetV2) -> None:
    shown = benchmark.table(network, made(peaks={"fp32": 15e9}), CPU)
    assert "133%" in shown and "More than 100% of the peak: other programs were in the way" in shown
    assert "More than 100%" not in benchmark.table(network, made(peaks={"fp32": 40e9}), CPU)


def test_what_the_machine_can_do_is_the_best_that_it_did(network: ResNetV2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less is what it did beside others."""
    found = iter([3e9, 9e9, 5e9])
    monkeypatch.setattr(benchmark, "matmul_flops", lambda *_: next(found))
    config = BenchmarkConfig(
        model="tiny", batch_sizes=(2,), peers="none", backends=("torch",), precisions=("fp32",), rounds=3, seconds=0.01
    )
    measured = benchmark.measure(config, network, CPU)
    assert measured.peaks == {"fp32": 9e9} and [len(row.rates) for row in measured.rows] == [3, 3]


def test_the_soonest_flags_are_told() -> None:
    rows = [
        Row("torch", "fp32", 1, False, int, rates=[10.0, 12.0, 14.0]),
        Row("openvino", "bf16", 1, False, int, rates=[30.0, 20.0, 29.0]),
        Row("onnxruntime", "fp32", 1, False, int, rates=[15.0, 18.0, 22.0]),
        Row("timm", "fp32", 1, False, int, rates=[99.0, 99.0, 99.0]),
        Row("torch", "fp32", 1, True, int, rates=[99.0, 99.0, 99.0]),
        Row("torch", "fp32", 16, False, int, rates=[10.0, 12.0, 14.0]),
        Row("openvino", "bf16", 16, False, int, rates=[9.0, 13.0, 13.0]),
    ]
    assert [*benchmark._soonest(made(rows=rows))] == [
        "soonest with 1 at a time: --backend openvino --precision bf16, 1.32 times onnxruntime in fp32, which comes next; 1.11 to 2.00 "
        "in the rounds",
        "soonest with 1 at a time in fp32: --backend onnxruntime --precision fp32, 1.50 times torch in fp32, which comes next; 1.50 to "
        "1.57 in the rounds",
        "soonest with 16 at a time: --backend openvino --precision bf16, 0.93 times torch in fp32, which comes next; 0.90 to 1.08 in the "
        "rounds, so no clear difference",
    ]


def test_what_is_remembered_is_what_was_measured(
    network: ResNetV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    model, photos = tmp_path / "tiny.safetensors", class_folders(tmp_path / "photos", {"ant": 2})
    weights.save(model, network)
    (one,) = [str(path) for path in photos.rglob("000.png")]
    predict = ["predict", str(model), one, "--backend", "fastest", "--device", "cpu", "--format", "jsonl"]
    assert cli.main(predict) == 2
    assert "was not measured on this machine" in capsys.readouterr().err
    speeds = {("torch", 1): 5.0, ("onnxruntime", 1): 9.0, ("torch", 3): 9.0, ("onnxruntime", 3): 5.0}

    def measured(config: BenchmarkConfig, *_: object) -> Measured:
        rows = [Row(by, "fp32", batch, False, int, rates=[rate]) for (by, batch), rate in speeds.items()]
        return made(rows=[*rows, Row("timm", "fp32", 1, False, int, rates=[99.0])])

    monkeypatch.setattr(benchmark, "measure", measured)
    assert cli.main(["benchmark", str(model), "--device", "cpu", "--remember"]) == 0
    assert "remembered for --backend fastest" in capsys.readouterr().out
    for batch, by in (
        (1, "onnxruntime"),
        (2, "torch"),
        (64, "torch"),
        (None, "torch"),
    ):  # 2 is nearer to 3: 1.5 times, not twice
        assert Predictor.load(model, device="cpu", backend="fastest", batch=batch).backend == by
    used = []
    monkeypatch.setattr(
        by_onnxruntime.OnnxRuntime,
        "run",
        lambda self, x: used.append(len(x)) or (np.zeros((1, 2048)), np.zeros((1, 7))),
    )
    assert cli.main(predict) == 0 and used == [1]  # a single image: what is soonest with one
    assert cli.main([*predict, "--batch-size", "3"]) == 0 and used == [1]
    # Of an exported file, which torch cannot compute; and only what was measured.
    assert cli.main(["convert", str(model), str(tmp_path / "tiny.onnx"), "--to", "onnx"]) == 0
    assert Predictor.load(tmp_path / "tiny.onnx", backend="fastest", batch=3).backend == "onnxruntime"
    assert remembered.fastest(network.card, batch=3, exported=True).backend == "onnxruntime"  # torch would be sooner
    with pytest.raises(ConfigError, match=r"Nothing was measured for tiny that fits here \(precision bf16\)"):
        Predictor.load(model, device="cpu", backend="fastest", precision="bf16")
    # What is measured anew takes the place of the same, and of nothing else; a damaged file is replaced as a whole.
    speeds.clear()
    speeds["torch", 1] = 90.0
    assert cli.main(["benchmark", str(model), "--device", "cpu", "--remember"]) == 0
    (file,) = (tmp_path / "cache" / "speed").glob("*.json")
    found = {
        (one["backend"], one["batch"]): one["images_per_second"] for one in json.loads(file.read_text())["figures"]
    }
    assert found == {("torch", 1): 90.0, ("onnxruntime", 1): 9.0, ("torch", 3): 9.0, ("onnxruntime", 3): 5.0}
    file.write_text("{")
    with pytest.raises(RunError, match=r"speed/\w+\.json.* bit benchmark MODEL --remember measures anew"):
        remembered.fastest(network.card)
    assert cli.main(["benchmark", str(model), "--device", "cpu", "--remember"]) == 0
    assert remembered.fastest(network.card).images_per_second == 90.0
    # Other threads are another machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    with pytest.raises(ConfigError, match="was not measured"):
        Predictor.load(model, device="cpu", backend="fastest")
    monkeypatch.undo()


def test_batches_beyond_the_memory_are_told(
    network: ResNetV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tiny.safetensors"
    weights.save(model, network)
    errors = iter(
        [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError()]
    )

    def measured(*_: object) -> Measured:
        raise next(errors)

    monkeypatch.setattr(benchmark, "measure", measured)
    for _ in range(2):
        assert cli.main(["benchmark", str(model), "--device", "cpu", "--batch-sizes", "1", "99"]) == 2
        assert "The memory is too small for 99 images of" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "measure", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        cli.main(["benchmark", str(model), "--device", "cpu"])


def test_what_others_had(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([(10.0, 100.0, 1.0), (40.0, 200.0, 11.0)])  # of 100 s of all cores 30 at work, 10 of them for us
    monkeypatch.setattr(benchmark.Others, "_counted", staticmethod(lambda: next(counted)))
    with benchmark.Others() as others:
        pass
    assert others.share == pytest.approx(0.2)


def test_the_system_says_it() -> None:
    counted = benchmark.Others._counted()
    if not Path("/proc/stat").exists():
        assert counted is None
    else:
        assert counted is not None and 0 < counted[0] < counted[1] and counted[2] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from /proc")
def test_memory_is_that_of_the_batch() -> None:
    keep_freed_memory()  # as a training in this process before has done
    torch.ones(60_000_000, dtype=torch.uint8)  # freed, and kept
    found = benchmark._memory_of(lambda: len(torch.ones(50_000_000, dtype=torch.uint8)), CPU)
    if found is not None:  # some containers do not let the peak be counted anew
        assert 40e6 < found < 120e6


def test_nothing_that_is_read_is_replaced(
    network: ResNetV2, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor measured for nothing: it is said before."""
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    file = tmp_path / "model.safetensors"
    weights.save(file, network)
    before = file.read_bytes()
    for model in (file, tmp_path):
        assert cli.main(["benchmark", str(model), "--json", str(file), "--seconds", "1000"]) == 2
        assert "would replace" in capsys.readouterr().err and file.read_bytes() == before
    assert cli.main(["benchmark", str(file), "--json", str(file / "a.json"), "--seconds", "1000"]) == 2
    for flag, values in (("batch-sizes", "2"), ("precisions", "fp32"), ("backends", "torch")):
        assert cli.main(["benchmark", str(file), f"--{flag}", values, values]) == 2
        assert f"--{flag} names one twice" in capsys.readouterr().err


def test_the_command(network: ResNetV2, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save(tmp_path / "tiny.safetensors", network)
    photos = class_folders(tmp_path / "photos", {"ant": 2})
    asked = ["benchmark", tmp_path / "tiny.safetensors", photos, "--batch-sizes", "2", "--precisions", "fp32"]
    asked += [
        "--backends",
        "torch",
        "--rounds",
        "2",
        "--seconds",
        "0.01",
        "--device",
        "cpu",
        "--json",
        tmp_path / "numbers.json",
    ]
    assert cli.main([*map(str, asked)]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "numbers.json").read_text())
    assert record["model"] == "tiny" and record["flops_per_image"] == network.architecture.forward_flops(16, 7)
    assert all(len(row["rates"]) == 2 and min(row["rates"]) > 0 for row in record["rows"])
    assert shown.count("files") == 1 and "GFLOP/s fp32" in shown
    (photos / "ant" / "000.png").write_bytes(b"\x89PNG")
    assert cli.main([*map(str, asked)]) == 2
    assert "cannot be read" in capsys.readouterr().err
