"""Checkpoints: bit for bit there and back, by one process and by several, and whatever is damaged, foreign or full."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bigtransfer.errors import RunError
from bigtransfer.feed.loader import Batch, FeatureLoader
from bigtransfer.hyperrule import Recipe
from bigtransfer.model import ResNetV2
from bigtransfer.train import checkpoint, loop, storage

CPU = torch.device("cpu")
RECIPE = Recipe(steps=3, batch_size=4, resize=32, crop=32, base_learning_rate=0.1, warmup=2, weight_decay=0.01)
FACTS = {"seed": 0, "recipe": {"steps": 3, "decays": (1, 2)}}


def new(seed: int = 0, *, micro_batch: int = 2, units: tuple[int, ...] = (1,)) -> loop.State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetV2(units, num_classes=3)
        torch.nn.init.normal_(model.head.weight, std=0.05)
    return loop.new_state(model.to(memory_format=torch.channels_last), RECIPE, micro_batch=micro_batch)


def train(state: loop.State, stop: int = RECIPE.steps) -> loop.State:
    batches = []
    for step in range(state.step, stop):
        rng = np.random.default_rng((9, step))
        pixels = torch.from_numpy(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
        batches.append(Batch(step, pixels, torch.from_numpy(rng.integers(0, 3, 4))))
    for _ in loop.steps(state, batches, RECIPE, seed=4, device=CPU, dtype=torch.float32):
        pass
    return state


def tensors(state: loop.State) -> dict[str, Tensor]:
    found = {**state.model.state_dict(), **{f"ema {name}": tensor for name, tensor in (state.ema or {}).items()}}
    for name, parameter in state.model.named_parameters():
        if "momentum_buffer" in state.optimizer.state[parameter]:
            found[f"momentum {name}"] = state.optimizer.state[parameter]["momentum_buffer"]
    return found


def same(one: loop.State, other: loop.State) -> bool:
    """Equal bit for bit, and as fast to go on from."""
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].stride() == b[k].stride() for k in a)


def saved(folder: Path, *numbers: int) -> loop.State:
    """Checkpoints after these numbers of steps; the state at the last."""
    state = new()
    for number in numbers:
        checkpoint.save(folder, train(state, number), FACTS)
    return state


def shard(path: Path) -> Path:
    (file,) = path.glob("*.safetensors")
    return file


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def test_it_gives_everything_back_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    after = new(seed=5, micro_batch=4)
    assert checkpoint.restore(tmp_path, after, json.loads(json.dumps(FACTS)))
    assert (after.step, after.micro_batch) == (1, 2), "the split decides how sums are rounded, so it is kept"
    assert same(train(after), train(new()))


def test_moving_averages_are_part_of_it(tmp_path: Path) -> None:
    state, after = train(new(), 1), new(seed=5)
    state.ema = {name: torch.randn_like(parameter) for name, parameter in state.model.named_parameters()}
    checkpoint.save(tmp_path, state, FACTS)
    after.ema = {name: parameter.detach().clone() for name, parameter in after.model.named_parameters()}
    assert checkpoint.restore(tmp_path, after, FACTS) and same(after, state)
    with pytest.raises(RunError, match="of another network"):
        checkpoint.restore(tmp_path, new(), FACTS)


def test_a_trained_head_only(tmp_path: Path) -> None:
    model = new().model
    state = loop.new_state(model, RECIPE, micro_batch=2, parameters=model.head.parameters())
    source = FeatureLoader(torch.ones(4, model.num_features), torch.tensor([0, 1, 2, 0]), batch_size=4, seed=0)
    steps = loop.steps(state, source.batches(0, 3), RECIPE, seed=0, device=CPU, dtype=torch.float32, forward=model.head)
    next(steps)
    checkpoint.save(tmp_path, state, FACTS)
    other = new(seed=5).model
    again = loop.new_state(other, RECIPE, micro_batch=2, parameters=other.head.parameters())
    checkpoint.restore(tmp_path, again, FACTS)
    assert torch.equal(other.root.weight, model.root.weight) and len(again.optimizer.state) == 2


def test_the_last_ones_are_kept_and_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    assert not checkpoint.exists(tmp_path) and checkpoint.steps(tmp_path) == []
    assert not checkpoint.restore(tmp_path, new(), FACTS), "there is none"
    state = saved(tmp_path, 1, 2)
    half = tmp_path / "checkpoints" / ".step-00000003.0a1b2c3d.tmp"
    half.mkdir()
    (half / "shard-00001.safetensors").write_bytes(b"half")
    assert checkpoint.steps(tmp_path) == [1, 2]
    path = checkpoint.save(tmp_path, train(state, 3), FACTS)
    assert names(tmp_path) == ["step-00000002", "step-00000003"] and checkpoint.latest(tmp_path) == path
    checkpoint.save(tmp_path, state, FACTS, keep=1)
    assert names(tmp_path) == ["step-00000003"], "the same step once more takes its place"
    checkpoint.remove(tmp_path)
    assert os.listdir(tmp_path) == [] and not checkpoint.exists(tmp_path)
    checkpoint.remove(tmp_path)


def test_what_is_in_the_files(tmp_path: Path) -> None:
    state = saved(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    manifest = json.loads((path / "checkpoint.json").read_text())
    assert manifest.pop("files") == {shard(path).name: shard(path).stat().st_size}
    # Bit by bit, from the definition: the reversed polynomial 0x82F63B78, all bits set before and inverted after.
    value = 0xFFFFFFFF
    for byte in shard(path).read_bytes()[:1000]:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    (tmp_path / "start").write_bytes(shard(path).read_bytes()[:1000])
    assert storage.checksum(tmp_path / "start") == f"{value ^ 0xFFFFFFFF:08x}"
    assert manifest.pop("checksums") == {shard(path).name: storage.checksum(shard(path))}
    assert len(manifest.pop("checksum")) == 8
    facts = {"seed": 0, "recipe": {"steps": 3, "decays": [1, 2]}}
    assert manifest == {"format": 1, "step": 1, "micro_batch": 2, "facts": facts}
    with safe_open(shard(path), framework="pt") as file:
        assert torch.equal(file.get_tensor("model.root.weight"), state.model.root.weight)
        momentum = state.optimizer.state[state.model.head.bias]["momentum_buffer"]
        assert torch.equal(file.get_tensor("momentum.head.bias"), momentum)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    state = saved(tmp_path, 1)
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    after = new(seed=5)
    assert checkpoint.restore(tmp_path, after, FACTS) and same(after, state)


def spoil(path: Path, how: str) -> None:
    file, manifest = shard(path), path / "checkpoint.json"
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "missing":
        file.unlink()
    elif how == "zeros":
        file.write_bytes(bytes(len(content)))
    elif how == "foreign":
        save_file({"weight": torch.zeros(3)}, file)
    elif how == "no manifest":
        manifest.unlink()
    elif how == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif how == "other JSON":
        manifest.write_text("[]")
    elif how == "later format":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    elif how == "flipped bit":
        content = bytearray(content)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "one more file":
        save_file({"model.head.bias": torch.ones(3)}, path / "shard-00002.safetensors")


MANIFESTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "other micro-batch": (("micro_batch",), 5),
    "step of another": (("step",), 7),
    "negative step": (("step",), -1),
    "step as text": (("step",), "1"),
    "no micro-batch": (("micro_batch",), 0),
    "no facts": (("facts",), None),
    "facts as a list": (("facts",), [1]),
    "files as a list": (("files",), []),
    "size as text": (("files", "shard-00001.safetensors"), "1"),
    "a file elsewhere": (("files", "../../config.json"), 3),
    "checksum as a number": (("checksums", "shard-00001.safetensors"), 1),
    "no checksum of the file": (("checksums",), {}),
}
"""Ways in which somebody may change checkpoint.json: where, and to what."""


DAMAGES = (
    "flipped bit",
    "one more file",
    "truncated",
    "missing",
    "zeros",
    "foreign",
    "no manifest",
    "torn manifest",
    "other JSON",
    "later format",
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_never_loaded(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    first, second = sorted((tmp_path / "checkpoints").iterdir())
    spoil(second, how)
    after = new(seed=5)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.restore(tmp_path, after, FACTS)
    assert after.step == 1 and same(after, train(new(), 1))
    assert str(second) in caplog.text and f"going on from {first.name}" in caplog.text
    checkpoint.save(tmp_path, train(after, 2), FACTS)  # what was damaged is replaced
    assert checkpoint.latest(tmp_path) == second
    for path in (first, second):
        spoil(path, how)
    fresh = new(seed=5)
    with pytest.raises(RunError, match=r"cannot be read .*, and no earlier one either\. Remove ") as caught:
        checkpoint.restore(tmp_path, fresh, FACTS)
    assert str(second) in str(caught.value)
    assert fresh.step == 0 and same(fresh, new(seed=5))


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001"
    good = (path / "checkpoint.json").read_text()
    for how, (place, value) in MANIFESTS.items():
        changed = json.loads(good)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        if how != "other micro-batch":  # by somebody who means it
            del changed["checksum"]
        (path / "checkpoint.json").write_text(json.dumps(changed))
        with pytest.raises(RunError, match=r"step-00000001 cannot be read \(.*\), and no earlier one either"):
            checkpoint.latest(tmp_path)
    (path / "checkpoint.json").write_text(good)
    assert checkpoint.latest(tmp_path) == path


def test_what_is_later_than_a_new_one_is_gone(tmp_path: Path) -> None:
    """It was damaged, and would take the place of a good one among the last that are kept."""
    saved(tmp_path, 1, 2, 3)
    spoil(tmp_path / "checkpoints" / "step-00000003", "truncated")
    spoil(tmp_path / "checkpoints" / "step-00000002", "truncated")
    checkpoint.save(tmp_path, train(new(), 1), FACTS)
    assert names(tmp_path) == ["step-00000001"]


def test_an_earlier_one_without_checksums_is_loaded_and_said_to_be_unverified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(tmp_path, 1)
    manifest = tmp_path / "checkpoints" / "step-00000001" / "checkpoint.json"
    stored = json.loads(manifest.read_text())
    del stored["checksums"], stored["checksum"]
    manifest.write_text(json.dumps(stored))
    after = new(seed=5)
    assert checkpoint.restore(tmp_path, after, FACTS) and same(after, state)
    assert "without checksums: its contents cannot be verified" in caplog.text
    caplog.clear()
    saved(tmp_path, 1)
    assert checkpoint.restore(tmp_path, new(), FACTS) and "verified" not in caplog.text


def test_it_is_on_the_disk_when_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents, then the names in the folder, then the folder's own name, each waited for, as the machine may die at any moment."""
    done: list[object] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(number: int) -> None:
        done.append(os.fstat(number).st_ino)
        sync(number)

    def noted_replace(old: Path, new: Path) -> None:
        done.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    saved(tmp_path, 1)
    path = tmp_path / "checkpoints" / "step-00000001"

    def inode(each: Path) -> int:
        return each.stat().st_ino

    file, manifest = shard(path), path / "checkpoint.json"
    assert done == [
        *(inode(file), file.name, inode(path)),
        *(inode(manifest), manifest.name, inode(path)),
        *(path.name, inode(path.parent), inode(tmp_path)),
    ]


def test_that_of_another_run_or_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    fresh = new(seed=5)
    with pytest.raises(RunError, match=r"another run: loss was None, is now 'sigmoid'\."):
        checkpoint.restore(tmp_path, fresh, {**FACTS, "loss": "sigmoid"})
    with pytest.raises(RunError, match=r"another run: seed was 0, is now None\."):
        checkpoint.restore(tmp_path, fresh, {"recipe": FACTS["recipe"]})
    with pytest.raises(RunError, match=r"another run: seed was 0, is now 1\. Choose another --out"):
        checkpoint.restore(tmp_path, fresh, {**FACTS, "seed": 1})
    with pytest.raises(RunError, match=r"of another network\. Remove .*checkpoints to start"):
        checkpoint.restore(tmp_path, new(units=(1, 1)), FACTS)
    assert fresh.step == 0 and same(fresh, new(seed=5))


def test_a_file_that_cannot_be_read_to_its_end_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    class Breaking(storage.dcp.HuggingFaceStorageReader):
        def _process_read_request(self, f: Any, req: Any, planner: Any) -> None:
            if req.storage_index.fqn == "momentum.head.bias":
                raise OSError(errno.EIO, "Input/output error")
            super()._process_read_request(f, req, planner)

    monkeypatch.setattr(storage.dcp, "HuggingFaceStorageReader", Breaking)
    fresh = new(seed=5)
    with pytest.raises(RunError, match=r"cannot be read .*Input/output error"):
        checkpoint.restore(tmp_path, fresh, FACTS)
    assert fresh.step == 0 and same(fresh, new(seed=5))


def test_without_space_the_one_before_stays(tmp_path: Path) -> None:
    """A real limit: files of this process may not grow beyond 256 KiB for a while."""
    resource = pytest.importorskip("resource")
    state = saved(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, limits[1]))
    try:
        with pytest.raises(RunError, match=r"step-00000002 cannot be written .*too large.*Make room"):
            checkpoint.save(tmp_path, train(state, 2), FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000001"]
    after = new(seed=5)
    assert checkpoint.restore(tmp_path, after, FACTS) and after.step == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        checkpoint.save(tmp_path, new(), FACTS)


def test_an_interrupt_while_writing_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, new(), FACTS)
    assert names(tmp_path) == []


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What worlds of several processes found (checkpoint_worker.py), and the folder they worked in."""
    folder = tmp_path_factory.mktemp("worlds")
    worker = Path(__file__).with_name("checkpoint_worker.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", worker, folder], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_write_it_and_any_number_reads_it(worlds: tuple[Path, dict[str, Any]], strategy: str) -> None:
    folder, found = worlds
    assert found[f"{strategy} saved"] == "step-00000001"
    for size in (2, 1, 4 if strategy == "ddp" else 3):
        assert found[f"{strategy} {size}"] == [[1, 2, True]] * size
    parts = [load_file(path) for path in (folder / strategy / "checkpoints" / "step-00000001").glob("*.safetensors")]
    written = [sum(tensor.numel() for tensor in part.values() if tensor.ndim) for part in parts]
    model = ResNetV2((1,), num_classes=3, norm="bn")
    vectors = sum(buffer.numel() for buffer in model.buffers() if buffer.ndim)
    assert sum(written) == 3 * sum(parameter.numel() for parameter in model.parameters()) + vectors, "everything once"
    assert len(written) == 2 and max(written) < 0.6 * sum(written), "each process writes about as much"


def test_what_was_divided_is_read_whole(worlds: tuple[Path, dict[str, Any]]) -> None:
    assert worlds[1]["divided, whole"] == [[1, 2, True]] * 2


def test_if_one_process_cannot_write_all_learn_of_it(worlds: tuple[Path, dict[str, Any]]) -> None:
    folder, found = worlds
    assert len(found["full"]) == 2 and all("No space left on device" in message for message in found["full"])
    assert names(folder / "ddp") == ["step-00000001"]


def test_a_folder_that_one_process_does_not_see(worlds: tuple[Path, dict[str, Any]]) -> None:
    folder, found = worlds
    assert len(found["elsewhere"]) == 2
    assert all(
        "Process 1 does not see" in message and "all machines share" in message for message in found["elsewhere"]
    )
    assert names(folder / "0" / "run") == [] and not (folder / "1" / "run").exists()


def test_predict_does_not_pay_for_it(worlds: tuple[Path, dict[str, Any]]) -> None:
    assert worlds[1]["loaded by predict"] is False
