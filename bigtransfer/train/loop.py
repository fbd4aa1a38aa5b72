"""The one training loop: a generator that takes optimizer steps; whoever iterates over it logs, evaluates and saves."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bigtransfer import dist
from bigtransfer.dist import World
from bigtransfer.errors import ImageError, TrainingError
from bigtransfer.feed.loader import Batch
from bigtransfer.hyperrule import Recipe
from bigtransfer.machine import available_memory
from bigtransfer.model import Network
from bigtransfer.ops.memory import keep_freed_memory
from bigtransfer.train import objective, parallel
from bigtransfer.train.teacher import Lesson

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]


@dataclass
class State:
    """All that training changes; with the step number it determines the rest of the run (see `feed.augment`)."""

    model: nn.Module
    """A `Network`, or a detector made of one."""
    optimizer: torch.optim.SGD
    micro_batch: int
    """Images computed at a time. Halved for good when memory runs out, and saved with the rest: it decides how sums are rounded."""
    step: int = 0
    """Optimizer steps taken so far: the number of the next step."""
    origin: Sequence[tuple[nn.Parameter, Tensor]] = ()
    """Parameters that are pulled back (`Recipe.l2_sp`), each with where it began."""
    ema: dict[str, Tensor] | None = None
    """Moving averages of the parameters by name, float32, if they are kept (`track_average`)."""

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the moving averages as parameters, if they are kept: they are what is measured and delivered."""
        if self.ema is None:
            yield
            return
        pairs = [(_local(parameter), _local(self.ema[name])) for name, parameter in self.model.named_parameters()]

        def swap() -> None:
            # By value: FSDP has references of its own to the parameters' memory.
            for parameter, average in pairs:
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)

        swap()
        try:
            yield
        finally:
            swap()


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it unless it is sharded (DTensor)."""
    local: Any = tensor.detach()
    return local.to_local() if hasattr(local, "to_local") else local


@dataclass(frozen=True)
class Step:
    """One finished optimizer step."""

    number: int
    loss: float
    """Mean over the batch, nats."""
    gradient_norm: float
    """Euclidean length of the whole gradient, without weight decay and L2-SP."""
    learning_rate: float
    images: int
    """Of all processes; those left out as unreadable included."""
    side: int
    """Of the crops, px."""
    errors: tuple[ImageError, ...]
    """The images that this process's loader left out."""
    seconds: float
    """Wall-clock of the whole step."""
    data_seconds: float
    """The part of it spent waiting for the batch."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the loss is the weighted sum of, where there are several: with a teacher "labels" and "teacher", each the mean over the batch,
    nats; of boxes those of `detector.BoxGoal`."""

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
    model: nn.Module, recipe: Recipe, *, micro_batch: int, parameters: Iterable[nn.Parameter] | None = None
) -> State:
    """A state at step 0 that trains `parameters` (default: all) with plain SGD and momentum (not Nesterov). For the others no gradient is
    computed from then on.

    With L2-SP it is the parameters as they are now that the training is pulled back to; a checkpoint is restored after this.
    """
    chosen = list(model.parameters() if parameters is None else parameters)
    if parameters is not None:
        trained = {id(parameter) for parameter in chosen}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
    # Weight decay is for kernels and the head's matrix; biases and norms, the one-dimensional ones, have none.
    groups = [
        {"params": [p for p in chosen if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # torch has the one-kernel form for plain tensors only, not for sharded ones (DTensor).
    fused = not parallel.divided(chosen)
    origin = []
    if recipe.l2_sp:
        assert isinstance(model, Network)
        head = {id(parameter) for parameter in model.head.parameters()}
        origin = [(parameter, parameter.detach().clone()) for parameter in chosen if id(parameter) not in head]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, fused=fused)
    return State(model, optimizer, micro_batch, origin=origin)


def track_average(state: State) -> None:
    """Keep a moving average of the parameters from now on (`steps`' `ema_decay`)."""
    state.ema = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}


def _update_average(state: State, decay: float) -> None:
    """average <- d average + (1 - d) parameters; d rises to `decay` as (1 + t) / (10 + t), so that the first, random, parameters
    are soon forgotten (TensorFlow's convention)."""
    assert state.ema is not None
    decay = min(decay, (1 + state.step) / (10 + state.step))
    parameters = dict(state.model.named_parameters())
    torch._foreach_lerp_(list(state.ema.values()), [parameters[name].detach() for name in state.ema], 1 - decay)


def activation_bytes(model: Network | Detector, size: int, dtype: torch.dtype) -> int:
    """Estimated memory that one training image of `size` x `size` px needs between forward and backward pass."""
    return int(1.2 * model.activations(size) * dtype.itemsize)


PIXELS = 2**22
"""Of images that a CPU computes at a time."""


def fitting_micro_batch(
    model: Network | Detector, size: int, dtype: torch.dtype, device: torch.device, batch_size: int
) -> int:
    """The whole batch if its activations fit in memory, else the largest power of two of images that do.

    On a CPU at most 128, and at most `PIXELS` of them: more is not faster there and takes memory from others. Left free are room for
    gradients and momentum, and on a CPU what the loader may take for its cache (`feed.cache.CACHE_SHARE`).
    """
    if device.type == "cuda":
        free, share = torch.cuda.mem_get_info(device)[0], 0.7
    else:
        free, share = available_memory(), 0.5
    free -= 2 * sum(parameter.nbytes for parameter in model.parameters())
    fits = max(1, int(share * free / activation_bytes(model, size, dtype)))
    if device.type == "cpu":
        fits = min(fits, 128, max(1, PIXELS // size**2))
    return batch_size if fits >= batch_size else 2 ** int(math.log2(fits))


_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED")
"""What the RuntimeErrors say that mean it: torch on Linux, on Windows, on Macs' GPUs, and cuBLAS."""


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of torch's means."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def steps(
    state: State,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    forward: Callable[[Tensor], Any] | None = None,
    aim: objective.Goal | None = None,
    lesson: Lesson | None = None,
    ema_decay: float | None = None,
    learning_rate: Callable[[int], float] | None = None,
    world: World | None = None,
    sync: parallel.Sync | None = None,
) -> Generator[Step, None, None]:
    """Take one optimizer step for each of `batches` and yield it once taken; `state` is then ready to be saved.

    The gradient of a batch is the sum over its micro-batches of per-image gradients, divided by the recipe's batch size, so any split
    into micro-batches or among processes gives the same step up to rounding. Out of memory halves `state.micro_batch` and repeats the
    step, down to one image; among several processes it ends the training.
    forward: batch of images -> what `aim` takes, such as logits, by `state.model` unless given: a compiled form of it, or its head where
    `batches` are of features.
    aim: what is minimized; softmax cross-entropy over all classes unless given. lesson: the teacher's, whose classes are the last ones of
    the head, for batches that hold its crops.
    ema_decay: of the moving average, if `state` keeps one. learning_rate: of each step; the recipe's unless given.
    world: whose part of each batch `batches` hold; `forward` and `sync` are then those of `parallel.distribute`. MixUp needs the whole
    batch and therefore a world of one.
    Raises TrainingError when loss or gradient are not finite or one image does not fit; the state is then the one before that step.
    """
    world = World() if world is None else world
    assert world.size == 1 or recipe.mixup_alpha == 0, "MixUp's partners may be with another process"
    if device.type == "cpu":
        keep_freed_memory()
    aim = objective.Aim() if aim is None else aim
    model = state.model
    forward = model if forward is None else forward
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
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
        mix = objective.Mix.draw(recipe.mixup_alpha, seed, state.step, count, batch.images.device)
        while True:
            try:
                total = torch.zeros((), device=device)
                parts: dict[str, Tensor] = {}
                for start in range(0, count, state.micro_batch):
                    part = slice(start, min(start + state.micro_batch, count))
                    with dist.peers(), sync(part.stop == count) if sync else contextlib.nullcontext():
                        known = None
                        if lesson is not None:  # first, while the student needs no memory for its gradient
                            assert batch.teacher_images is not None
                            known = lesson.answers(batch.teacher_images, part, mix)
                        with objective.dropout(model, recipe.dropout, seed, state.step, count, part):
                            output = forward(objective.inputs(batch.images, part, mix, dtype, device))
                        losses = aim.losses(output, batch.labels, part, mix, known, batch.readable)
                        # The gradient is averaged over the processes, so each one's share counts as often as there are processes.
                        share = recipe.batch_size / world.size
                        micro = aim.weighted(losses) / share
                        micro.backward()
                    total += micro.detach()
                    if lesson is not None or len(losses) > 1:
                        for name, value in losses.items():
                            parts[name] = parts.get(name, 0.0) + value.detach() / share
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if world.size > 1:  # the others are already waiting for this process's gradients
                    raise TrainingError(
                        f"Out of memory in process {world.rank} with {state.micro_batch} images of {batch.images.shape[-1]} px at a "
                        "time. Give a smaller --micro-batch."
                    ) from error
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
        norm = _length([parameter.grad for parameter in parameters if parameter.grad is not None])
        loss_value, gradient_norm = (world.total(total) / world.size).item(), norm.item()
        if not (math.isfinite(loss_value) and math.isfinite(gradient_norm)):
            state.optimizer.zero_grad(set_to_none=True)
            what = "loss" if not math.isfinite(loss_value) else "gradient's length"
            raise TrainingError(
                f"The {what} is {gradient_norm if math.isfinite(loss_value) else loss_value} at step {state.step}: training has "
                f"diverged{f'; up to step {state.step - 1} all was finite' if state.step else ''}. Start a new run (another --out) "
                "with a lower --learning-rate, or with --precision fp32."
            )
        rate = (learning_rate or recipe.learning_rate)(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        _pull_back(state, recipe.l2_sp)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.ema is not None and ema_decay is not None:
            _update_average(state, ema_decay)
        yield Step(
            number=state.step - 1,
            loss=loss_value,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            images=recipe.batch_size,
            side=batch.images.shape[-1],
            errors=batch.errors,
            seconds=time.perf_counter() - started,
            data_seconds=waited,
            parts={name: (world.total(value) / world.size).item() for name, value in parts.items()},
        )


@torch.no_grad()
def _pull_back(state: State, strength: float) -> None:
    """Add to the gradients those of strength / 2 times the squared distance of the parameters from where they began."""
    gradients, parameters, starts = [], [], []
    for parameter, start in state.origin:
        if parameter.grad is not None:
            gradients.append(parameter.grad)
            parameters.append(parameter.detach())
            starts.append(start)
    if gradients:
        torch._foreach_add_(gradients, torch._foreach_sub(parameters, starts), alpha=strength)


def _length(gradients: list[Tensor]) -> Tensor:
    """Euclidean length of all gradients together, scalar; of sharded ones (DTensor), over all processes."""
    total: Any = torch.nn.utils.get_total_norm(gradients)
    # Not isinstance: importing DTensor takes a second, which only sharded runs have spent already.
    return total.full_tensor() if hasattr(total, "full_tensor") else total


@dataclass
class StopRequest:
    """Set when the user or the system asked the process to stop."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; the system and schedulers; a lost terminal; SLURM's `--signal=USR1@120`. Some systems lack the last two."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, the first of the signals `STOPPING` only sets the request, so that the loop can save; the second acts as usual. SIGHUP
    stays ignored where it is, as under nohup."""
    request = StopRequest()
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        request.signal = number
        for each, handler in previous.items():
            signal.signal(each, handler)

    # ValueError outside of the main thread (a notebook's executor, a server): signals stay as they are.
    with contextlib.suppress(ValueError):
        for each in STOPPING:
            if not (each == getattr(signal, "SIGHUP", None) and signal.getsignal(each) == signal.SIG_IGN):
                previous[each] = signal.signal(each, note)
    try:
        yield request
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
