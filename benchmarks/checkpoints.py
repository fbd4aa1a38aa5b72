"""What a checkpoint costs: the folder that `train.checkpoint` writes beside one plain safetensors file of the same tensors, and
beside what torch.distributed.checkpoint's own writer of safetensors takes.

    python -m benchmarks.checkpoints --model r26x1

All are on the disk (fsync) when the clock stops; they take turns, so that other work on the machine meets all alike.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from bigtransfer import runs
from bigtransfer.catalog import architecture
from bigtransfer.hyperrule import Recipe
from bigtransfer.model import build
from bigtransfer.train import checkpoint, loop

from .interruptions import processor


def state_of(name: str, classes: int) -> loop.State:
    """A network in the middle of its training."""
    torch.manual_seed(0)
    model = build(architecture(name), classes).to(memory_format=torch.channels_last)
    state = loop.new_state(model, Recipe(steps=2, batch_size=1, resize=32, crop=32), micro_batch=1)
    for parameter in model.parameters():
        state.optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    state.step = 1
    return state


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor time."""
    started, worked = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started, time.process_time() - worked


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="r26x1", help="architecture (default r26x1)")
    parser.add_argument("--classes", type=int, default=200, help="of its head (default 200)")
    parser.add_argument("--repeats", type=int, default=15, help="of each measurement (default 15)")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC)
    warnings.filterwarnings("ignore", "torch.distributed is disabled")
    state = state_of(options.model, options.classes)
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        tensors[f"momentum.{name}"] = state.optimizer.state[parameter]["momentum_buffer"]
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        folder = Path(scratch)

        def one_file() -> None:
            with runs.atomic_write(folder / "one.safetensors") as temporary:
                save_file(contiguous(), temporary)

        def contiguous() -> dict[str, torch.Tensor]:
            return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

        def torch_writer() -> None:
            writer = dcp.HuggingFaceStorageWriter(str(folder / "torch"), save_distributed=True)
            dcp.save(contiguous(), storage_writer=writer, no_dist=True)

        def load_one_file() -> None:
            for name, tensor in load_file(folder / "one.safetensors").items():
                tensors[name].detach().copy_(tensor)

        actions: dict[str, Callable[[], object]] = {
            "save, one file": one_file,
            "save, checkpoint": lambda: checkpoint.save(folder, state, {}, keep=1),
            "save, torch's writer": torch_writer,
            "load, one file": load_one_file,
            "load, checkpoint": lambda: checkpoint.restore(folder, state, {}),
        }
        for action in actions.values():
            action()  # loads modules, and fills the caches
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
        for _ in range(options.repeats):
            for name, action in actions.items():
                taken[name].append(seconds(action))
        size = os.path.getsize(folder / "one.safetensors")
    rows = ""
    for name, times in taken.items():
        wall, processor_time = zip(*times, strict=True)
        numbers = (statistics.median(wall), min(wall), max(wall), statistics.median(processor_time))
        rows += f"| {name} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |\n"
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    text = f"""# Saving and loading a checkpoint, {date:%Y-%m-%d}

- Command: `python -m benchmarks.checkpoints --model {options.model} --classes {options.classes} --repeats {options.repeats}`
- State: {options.model}, {parameters / 1e6:.1f} M parameters and their momentum, float32, {size / 1e6:.0f} MB
- Versions: Python {platform.python_version()}, torch {torch.__version__}
- Hardware: {processor()}, torch threads: {torch.get_num_threads()}, beside other work; a virtual machine's disk

| seconds | median | least | most | processor, median |
|---|---|---|---|---|
{rows}
Loading reads from the page cache and ends with the copy into the model; that of a checkpoint includes its checks.
"""
    out = options.out or Path(__file__).with_name("results") / f"checkpoints_cpu_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")


if __name__ == "__main__":
    main()
