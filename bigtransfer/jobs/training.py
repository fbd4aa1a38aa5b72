"""What `finetune` and `pretrain` share: one run from its first step to its last, with progress, validation, checkpoints and stops."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import bigtransfer
from bigtransfer import runs
from bigtransfer.data.loader import FeatureLoader, TrainLoader
from bigtransfer.errors import ConfigError
from bigtransfer.hyperrule import Recipe
from bigtransfer.train import checkpoint, loop


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    return {
        "bigtransfer": bigtransfer.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
    }


def spare_workers() -> int:
    """Decoding processes that leave a core for the training process."""
    return max(1, min(16, (os.cpu_count() or 1) - 1))


@dataclass(kw_only=True)
class Outcome:
    """How `train` ended."""

    finished: bool
    """False: a signal asked it to stop; the checkpoint is written."""
    signal: int | None = None
    seconds: float = 0.0
    """Wall-clock of the steps of this process, without validation."""
    images: int = 0


def train(
    run: runs.Run,
    state: loop.State,
    loader: TrainLoader | FeatureLoader,
    recipe: Recipe,
    *,
    facts: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    micro_batch: int,
    forward: Callable[[torch.Tensor], torch.Tensor],
    validate: Callable[[], Mapping[str, float]] | None,
    eval_every: int,
    checkpoint_seconds: float,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Take the steps from `state.step` to the recipe's end, logging each to `run`.

    forward: the part of the model that is trained, on a batch's images, or a compiled form of it.
    facts: what a checkpoint belongs to; a later `checkpoint.restore` with other facts is refused. validate: called every `eval_every`
    steps and after the last one; its numbers are logged. SIGINT and SIGTERM stop after the step at hand, with a checkpoint.
    """
    seed = loader.seed
    writer = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tensorboard needs the package tensorboard: pip install 'bigtransfer[tensorboard]'"
            ) from error
        writer = SummaryWriter(run.folder / "tensorboard", purge_step=state.step)
    outcome = Outcome(finished=True)
    saved_at = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=state.step, desc="training", unit="step", disable=quiet, dynamic_ncols=True)
    with loop.stop_on_signals() as stop, bar:
        batches = loader.batches(state.step, recipe.steps)
        taken = loop.steps(
            state, batches, recipe, seed=seed, device=device, dtype=dtype, micro_batch=micro_batch, forward=forward
        )
        for step in taken:
            outcome.seconds += step.seconds
            outcome.images += step.images
            numbers = {
                "loss": step.loss,
                "lr": step.learning_rate,
                "images_per_second": round(step.rate, 2),
                "data_wait": round(step.data_seconds / step.seconds, 4),
            }
            run.log(step.number, **numbers)
            if writer is not None:
                for key, value in numbers.items():
                    writer.add_scalar(key, value, step.number)
            bar.set_postfix_str(
                f"loss {step.loss:.3f}, lr {step.learning_rate:.2g}, {step.rate:.0f} img/s", refresh=False
            )
            bar.update()
            last = state.step == recipe.steps
            if validate is not None and (last or state.step % eval_every == 0):
                measured = dict(validate())
                run.log(step.number, **measured)
                if writer is not None:
                    for key, value in measured.items():
                        writer.add_scalar(key, value, step.number)
                state.model.train()
                bar.write(
                    f"step {state.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in measured.items()),
                    file=sys.stderr,
                )
            if last:
                break
            if stop or time.monotonic() - saved_at >= checkpoint_seconds:
                checkpoint.save(run.folder, state, dict(facts))
                saved_at = time.monotonic()
            if stop:
                outcome.finished, outcome.signal = False, stop.signal
                break
        batches.close()
    if writer is not None:
        writer.close()
    return outcome


def resume(run: runs.Run, state: loop.State, facts: Mapping[str, Any]) -> bool:
    """Continue from the run's checkpoint if it has one: restore `state`, forget later log lines. True if there was one."""
    if not checkpoint.exists(run.folder):
        run.rewind(-1)
        return False
    checkpoint.restore(run.folder, state, dict(facts))
    run.rewind(state.step - 1)
    return True


def run_folder(out: str | None, data: str, model: str) -> Path:
    """Where a run lives unless --out says otherwise: runs/DATA-MODEL."""
    if out is not None:
        return Path(out)
    name = Path(data.rstrip("/")).name or "data"
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return Path("runs") / f"{stem}-{Path(model).stem if Path(model).suffix else Path(model).name}"
