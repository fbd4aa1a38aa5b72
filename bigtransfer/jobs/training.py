"""What `finetune` and `pretrain` share: one run from its first step to its last, with progress, validation, checkpoints and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import bigtransfer
from bigtransfer import evals, runs
from bigtransfer.catalog import InputSpec
from bigtransfer.config import Config, fields_of
from bigtransfer.data import ImageSet, checks
from bigtransfer.data.augment import normalize
from bigtransfer.data.loader import FeatureLoader, TrainLoader, eval_batches, usable_cores
from bigtransfer.errors import ConfigError, RunError
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
        else f"{device.type}, {usable_cores()} cores",
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
    }


def spare_workers() -> int:
    """Decoding processes that leave a core for the training process."""
    return max(1, min(16, usable_cores() - 1))


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
    forward: Callable[[torch.Tensor], torch.Tensor],
    validate: Callable[[], Mapping[str, float]] | None,
    eval_every: int,
    checkpoint_seconds: float,
    tensorboard: bool = False,
) -> Outcome:
    """Take the steps from `state.step` to the recipe's end, logging each to `run`, and leave a checkpoint of the last one taken.

    forward: the part of the model that is trained, on a batch's images, or a compiled form of it.
    facts: what a checkpoint belongs to; a later `checkpoint.restore` with other facts is refused. validate: called every `eval_every`
    steps and after the last one; its numbers are logged. SIGINT and SIGTERM stop after the step at hand.
    """
    outcome = Outcome(finished=True)
    with contextlib.ExitStack() as stack:
        writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    "--tensorboard needs the package tensorboard: pip install 'bigtransfer[tensorboard]'"
                ) from error
            writer = stack.enter_context(SummaryWriter(run.folder / "tensorboard", purge_step=state.step))

        def log(step: int, numbers: Mapping[str, float]) -> None:
            run.log(step, **numbers)
            if writer is not None:
                for key, value in numbers.items():
                    writer.add_scalar(key, value, step)

        stop = stack.enter_context(loop.stop_on_signals())
        bar = stack.enter_context(
            tqdm(
                total=recipe.steps,
                initial=state.step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file need not hold every state of the bar
            )
        )
        # Closed also when an error ends the loop: they hold worker processes and a thread.
        batches = stack.enter_context(contextlib.closing(loader.batches(state.step, recipe.steps)))
        taken = stack.enter_context(
            contextlib.closing(
                loop.steps(state, batches, recipe, seed=loader.seed, device=device, dtype=dtype, forward=forward)
            )
        )
        saved_at = time.monotonic()
        for step in taken:
            outcome.seconds += step.seconds
            outcome.images += step.images
            log(
                step.number,
                {
                    "loss": step.loss,
                    "lr": step.learning_rate,
                    "images_per_second": round(step.rate, 2),
                    "data_wait": round(step.data_seconds / step.seconds, 4),
                },
            )
            bar.set_postfix_str(
                f"loss {step.loss:.3f}, lr {step.learning_rate:.2g}, {step.rate:.0f} img/s", refresh=False
            )
            bar.update()
            last = state.step == recipe.steps
            if validate is not None and (last or state.step % eval_every == 0):
                measured = validate()
                log(step.number, measured)
                bar.write(
                    f"step {state.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in measured.items()),
                    file=sys.stderr,
                )
            if last or stop or time.monotonic() - saved_at >= checkpoint_seconds:
                checkpoint.save(run.folder, state, facts)
                saved_at = time.monotonic()
            if stop and not last:
                outcome.finished, outcome.signal = False, stop.signal
                break
    return outcome


def validation(
    state: loop.State, images: ImageSet, spec: InputSpec, device: torch.device, dtype: torch.dtype
) -> Callable[[], dict[str, float]]:
    """A function that measures the model as it is now on a labelled set: "val/top1" and its like."""

    @torch.inference_mode()
    def logits(batch: torch.Tensor) -> torch.Tensor:
        return state.model(normalize(batch.to(device), dtype)).cpu()

    def measure() -> dict[str, float]:
        state.model.eval()
        # What fits with its activations for the backward pass fits without.
        result = evals.evaluate(logits, eval_batches(images, spec, state.micro_batch), len(images.class_names))
        state.model.train()
        return result.named("val")

    return measure


def resume(run: runs.Run, state: loop.State, facts: Mapping[str, Any]) -> bool:
    """Continue from the run's checkpoint if it has one: restore `state`, forget later log lines. True if there was one."""
    if not checkpoint.exists(run.folder):
        run.rewind(-1)
        return False
    checkpoint.restore(run.folder, state, facts)
    run.rewind(state.step - 1)
    return True


_NO_EFFECT = ("out", "workers", "cache", "tensorboard", "checkpoint_every", "name", "upstream", "class_names")
"""What a resumed run may be asked differently: it changes neither the training nor what is measured."""


def earlier(folder: Path, command: str, config: Config) -> dict[str, Any] | None:
    """config.json of the run of `command` that `folder` already holds; None if it holds none.

    RunError if that run was asked for something else, or `folder` holds something else.
    """
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "model.safetensors").exists():
            raise RunError(
                f"{folder} holds a model that is not from `bit {command}`. Choose another folder with --out."
            )
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, origin = dict(found["asked"]), found["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not a run's configuration ({error}). Choose another folder with --out.") from error
    if origin != command:
        raise RunError(f"{folder} holds the result of `bit {origin}`. Choose another folder with --out.")
    now = json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]

    def same(name: str) -> bool:
        one, other = before.get(name), now[name]
        if name in ("data", "model") and isinstance(one, str):  # photos and photos/ are one folder
            return os.path.normpath(one) == os.path.normpath(other)
        return one == other

    changes = [
        f"{field.flag} was {before.get(field.name)!r}, is now {now[field.name]!r}"
        for field in fields_of(type(config))
        if field.name not in _NO_EFFECT and not same(field.name)
    ]
    if changes:
        raise RunError(
            f"{folder} holds another run ({'; '.join(changes)}). Choose another folder with --out, or remove it."
        )
    return found


def readable(images: ImageSet, skip_bad: bool) -> tuple[ImageSet, list[dict[str, str]]]:
    """The images that can be decoded, and for unreadable.json the names and reasons of the others.

    UnreadableImages if there are any and not `skip_bad`.
    """
    kept, errors = checks.check(images, skip_bad=skip_bad, progress=True)
    gone = np.flatnonzero(~np.isin(images.rows, kept.rows))
    return kept, [{"name": images.name(int(i)), "reason": error.reason} for i, error in zip(gone, errors, strict=True)]


def same_threads(earlier: Mapping[str, Any]) -> None:
    """Compute with as many CPU threads as the run began with: sums over threads are rounded otherwise, and a resume is to repeat the
    uninterrupted run bit for bit even where fewer cores are free by then. earlier: the run's config.json."""
    threads = earlier.get("environment", {}).get("threads")
    if isinstance(threads, int) and threads >= 1 and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def run_folder(out: str | None, data: str, model: str) -> Path:
    """Where a run lives unless --out says otherwise: runs/DATA-MODEL."""
    if out is not None:
        return Path(out)
    name = Path(data.rstrip("/")).name or "data"
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return Path("runs") / f"{stem}-{Path(model).stem if Path(model).suffix else Path(model).name}"
