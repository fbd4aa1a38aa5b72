"""The one training loop: a generator that takes optimizer steps; whoever iterates over it logs, evaluates and saves."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigtransfer.data.loader import Batch, available_memory
from bigtransfer.errors import TrainingError
from bigtransfer.hyperrule import Recipe
from bigtransfer.model import ResNetV2
from bigtransfer.ops.memory import keep_freed_memory
from bigtransfer.train import objective

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]


@dataclass
class State:
    """All that training changes; with the step number it determines the rest of the run (see `data.augment`)."""

    model: ResNetV2
    optimizer: torch.optim.SGD
    micro_batch: int
    """Images computed at a time. Halved for good when memory runs out, and saved with the rest: it decides how sums are rounded."""
    step: int = 0
    """Optimizer steps taken so far: the number of the next step."""


@dataclass(frozen=True)
class Step:
    """One finished optimizer step."""

    number: int
    loss: float
    """Mean over the batch, nats."""
    learning_rate: float
    images: int
    seconds: float
    """Wall-clock of the whole step."""
    data_seconds: float
    """The part of it spent waiting for the batch."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the network's input. "auto" is bfloat16 where the hardware multiplies it natively, else float32.

    float16 is never chosen: CPUs without AVX-512-FP16 run it hundreds of times slower.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _cpu_has_bf16()
    return torch.bfloat16 if native else torch.float32


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def new_state(
    model: ResNetV2, recipe: Recipe, *, micro_batch: int, parameters: Iterable[nn.Parameter] | None = None
) -> State:
    """A state at step 0 that trains `parameters` (default: all) with plain SGD and momentum (not Nesterov)."""
    chosen = list(model.parameters() if parameters is None else parameters)
    # Weight decay is for kernels and the head's matrix; biases and norms, the one-dimensional ones, have none.
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return State(model, torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, fused=True), micro_batch)


def activation_bytes(model: ResNetV2, size: int, dtype: torch.dtype) -> int:
    """Estimated memory that one training image of `size` x `size` px needs between forward and backward pass."""
    arch = model.architecture
    area = (math.ceil(size / 2)) ** 2
    values = 64 * arch.width * area  # the root's output
    for block, units in enumerate(arch.units):
        out = 256 * arch.width * 2**block
        side = math.ceil(size / 2 ** (block + 2))
        # Each unit keeps the inputs and outputs of its three norms: one at its input's width, two at a quarter of its output's.
        values += units * side**2 * (2 * out + 4 * (out // 4) + out)
    return int(1.2 * values * dtype.itemsize)


def fitting_micro_batch(model: ResNetV2, size: int, dtype: torch.dtype, device: torch.device, batch_size: int) -> int:
    """The whole batch if its activations fit in memory, else the largest power of two of images that do.

    At most 128 on a CPU, where more is not faster. Left free are room for gradients and momentum, and on a CPU what the loader may
    take for its cache (`data.loader.CACHE_SHARE`).
    """
    if device.type == "cuda":
        free, share = torch.cuda.mem_get_info(device)[0], 0.7
    else:
        free, share = available_memory(), 0.5
    free -= 2 * sum(parameter.nbytes for parameter in model.parameters())
    fits = max(1, int(share * free / activation_bytes(model, size, dtype)))
    if device.type == "cpu":
        fits = min(fits, 128)
    return batch_size if fits >= batch_size else 2 ** int(math.log2(fits))


_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED")
"""What the RuntimeErrors say that mean it: torch on Linux, on Windows, on Macs' GPUs, and cuBLAS."""


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def steps(
    state: State,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Generator[Step, None, None]:
    """Take one optimizer step for each of `batches` and yield it once taken; `state` is then ready to be saved.

    The gradient of a batch is the sum over its micro-batches of per-image gradients, divided by the batch's size, so any split gives
    the same step up to rounding. Out of memory halves `state.micro_batch` and repeats the step, down to one image.
    forward: batch of images -> logits, by `state.model` unless given: a compiled form of it, or its head where `batches` are of features.
    Raises TrainingError when the loss is not finite or one image does not fit; the state is then the one before that step.
    """
    if device.type == "cpu":
        keep_freed_memory()
    model = state.model
    forward = model if forward is None else forward
    model.train()
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        assert batch.step == state.step, "the loader and the state disagree about the step"
        waited = time.perf_counter() - started
        count = len(batch.labels)
        mix = objective.Mix.draw(recipe.mixup_alpha, seed, state.step, count)
        while True:
            try:
                total = torch.zeros((), device=device)
                for start in range(0, count, state.micro_batch):
                    part = slice(start, min(start + state.micro_batch, count))
                    logits = forward(objective.inputs(batch.images, part, mix, dtype, device))
                    loss = objective.loss_sum(logits, batch.labels, part, mix) / count
                    loss.backward()
                    total += loss.detach()
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                # More than the batch would change nothing.
                state.micro_batch = min(state.micro_batch, count) // 2
                if state.micro_batch == 0:
                    state.micro_batch = 1
                    raise TrainingError(
                        f"Out of memory with one image of {batch.images.shape[-1]} px at a time. Choose a smaller --crop or model."
                    ) from error
                log.warning("out of memory: going on with micro-batches of %d", state.micro_batch)
            # Outside the except block, where the failed pass's tensors are no longer referenced by the traceback.
            state.optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        loss_value = float(total)
        if not math.isfinite(loss_value):
            state.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"The loss is {loss_value} at step {state.step}: training has diverged. Start a new run (another --out) with a lower "
                "--learning-rate, or with --precision fp32."
            )
        rate = recipe.learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        yield Step(
            number=state.step - 1,
            loss=loss_value,
            learning_rate=rate,
            images=count,
            seconds=time.perf_counter() - started,
            data_seconds=waited,
        )


@dataclass
class StopRequest:
    """Set when the user or the system asked the process to stop."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, the first SIGINT or SIGTERM only sets the request, so that the loop can save; the second acts as usual."""
    request = StopRequest()
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        request.signal = number
        for each, handler in previous.items():
            signal.signal(each, handler)

    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, note)
    except ValueError:  # not the main thread (a notebook's executor, a server): signals stay as they are
        previous.clear()
    try:
        yield request
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
