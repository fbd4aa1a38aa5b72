"""What `benchmarks.gpu` has done by its processes: a function for each thing, called by name, one after the other.

A process owns its CUDA context: a kernel that breaks one costs nothing but that process's part. "cuda" may be "cpu" everywhere, which
proves the script, not the GPU.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.networks import WEIGHTS, as_theirs, fast_operations, randomize, timm_network
from bigtransfer import catalog, model, ops
from bigtransfer.feed.augment import InceptionCrop, SquareCrop, draws
from bigtransfer.feed.cache import DecodedImages
from bigtransfer.feed.device import DeviceImages
from bigtransfer.feed.loader import Batch
from bigtransfer.hyperrule import Recipe
from bigtransfer.model import ResNetV2
from bigtransfer.ops import plain
from bigtransfer.predictor import Predictor
from bigtransfer.train import checkpoint, loop
from bigtransfer.weights import names

Row = dict[str, Any]
"""One line of the results."""

CLASSES = 1000
SEEN = 4
"""Images by whose logits and gradient a competitor's error is told."""


_room: AbstractContextManager[Any] = contextlib.nullcontext()
"""Held while whole batches are computed side by side with other processes: the device's memory is for a few of them at a time."""


def serve(connection: Connection, log: str, room: AbstractContextManager[Any], nice: int) -> None:
    """Call the functions that come through `connection`, (name, arguments), and send back what they return, or how they failed."""
    global _room
    _room = room
    os.nice(nice)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # What is compared is compared in the format it claims to have.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = {"result": globals()[name](**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        connection.send(answer)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Euclidean length of the difference over that of `expected`."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- A: facts and ceilings


def facts(device: str) -> list[Row]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "NumPy": np.__version__}
    versions["Pillow"] = PIL.__version__
    for name in ("torchvision", "triton", "timm"):
        with contextlib.suppress(ImportError):
            versions[name] = __import__(name).__version__
    row: Row = {"name": "machine", "versions": versions, "cores": os.cpu_count()}
    if device == "cuda":
        of = torch.cuda.get_device_properties(0)
        row |= {
            "gpu": of.name,
            "memory_gib": of.total_memory / 2**30,
            "processors": of.multi_processor_count,
            "l2_mb": of.L2_cache_size / 1e6,
            "capability": f"{of.major}.{of.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = [
                "nvidia-smi",
                "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit",
                "--format=csv,noheader",
            ]
            row["driver"] = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    else:
        row["gpu"] = "none: this run proves the script only"
    x = torch.randn(2, 64, 4, 4, device=device).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    weight = torch.ones(64, device=device, requires_grad=True)
    norm = ops.group_norm_relu(x, 32, weight, weight)
    kernel = torch.randn(8, 4, 3, 3, device=device, requires_grad=True)
    standard = ops.standardize(kernel, dtype=torch.bfloat16)
    row["operations"] = {"GN+ReLU": type(norm.grad_fn).__name__, "standardize": type(standard.grad_fn).__name__}
    return [row, *ceilings(device)]


def ceilings(device: str) -> list[Row]:
    """Device-to-device copies, bytes read and written, and a large product of bf16 matrices of random numbers: medians."""
    cuda = device == "cuda"
    rate = copy_rate(2**30 if cuda else 2**20, device)
    emptied(device)
    side = 8192 if cuda else 512
    one, other = torch.randn(2, side, side, device=device).to(torch.bfloat16)
    product_ms = statistics.median(times(lambda: one @ other, 20, device))
    return [{"name": "ceilings", "copy_gb_s": rate, "matmul_tflop_s": 2 * side**3 / product_ms / 1e9}]


def copy_rate(values: int, device: str) -> float:
    """GB/s of copying so many float32."""
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(times(lambda: target.copy_(source), 15, device)) / 1e6


def emptied(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def times(run: Callable[[], object], count: int, device: str, warm: int = 3) -> list[float]:
    """ms from the beginning of one call to that of the next, on the device."""
    for _ in range(warm):
        run()
    if device != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            run()
            marks.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in zip(marks, marks[1:], strict=False)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(events, events[1:], strict=False)]


# --- B: is it right?


def within(name: str, value: float, limit: float, **more: Any) -> Row:
    return {"name": name, "value": value, "limit": limit, "passed": bool(value <= limit), **more}


@functools.cache
def original(arch: str, kind: str) -> ResNetV2:
    """The same weights in every process."""
    built = model.build(arch, CLASSES, device="meta").to_empty(device="cpu")
    randomize(built, 0, WEIGHTS[kind])
    return built


def network(arch: str, kind: str) -> ResNetV2:
    return copy.deepcopy(original(arch, kind))


def pictures(count: int, height: int, width: int, device: str = "cpu") -> Tensor:
    """In [-1, 1], float32, every value one that bf16 has."""
    generator = torch.Generator(device).manual_seed(1)
    images = torch.rand((count, 3, height, width), generator=generator, device=device) * 2 - 1
    return images.to(torch.bfloat16).float()


def labels(count: int) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(2))


def answers(net: nn.Module, images: Tensor, wanted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of the cross-entropy by the parameters' names."""
    net.zero_grad()
    logits = net(images)
    F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), wanted).backward()
    return logits.detach(), {
        name: parameter.grad.detach().clone()
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }


def whole(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten().double().cpu() for name in sorted(gradients)])


def check_network(device: str, arch: str, kind: str, height: int, width: int) -> list[Row]:
    """Logits and gradients against the CPU in float64, with the fast operations and without."""
    net = network(arch, kind)
    images, wanted = pictures(SEEN, height, width), labels(SEEN)
    expected, gradients = answers(copy.deepcopy(net).double(), images.double(), wanted)
    title = f"{arch}, {kind} weights, {height} x {width} px"
    net.to(device, memory_format=torch.channels_last)
    rows = []
    there, gradients_there = answers(copy.deepcopy(net).double(), images.double().to(device), wanted.to(device))
    rows.append(within(f"{title}: float64 logits", error_of(there, expected), 1e-10))
    rows.append(
        within(f"{title}: float64 gradient", error_of(whole(gradients_there), whole(gradients)), 1e-8)
    )  # where no ReLU is about to turn
    limits = {torch.float32: (1e-4, 1e-2), torch.bfloat16: (0.15, 0.6)}
    for dtype, (of_logits, of_gradient) in limits.items():
        found = {}
        for fast in (True, False):
            with fast_operations(fast):
                inputs = images.to(device, dtype, memory_format=torch.channels_last)
                logits, got = answers(net, inputs, wanted.to(device))
            found[fast] = error_of(logits, expected), error_of(whole(got), whole(gradients))
        for index, (what, limit) in enumerate((("logits", of_logits), ("gradient", of_gradient))):
            name = f"{title}: {str(dtype).split('.')[1]} {what}"
            # Of wild weights even the plain form's gradient can be far off in bf16: then no farther than that one's.
            allowed = max(limit, min(1.0, 1.05 * found[False][index]))
            rows.append(within(name, found[True][index], allowed, plain=found[False][index]))
    return rows


SHAPES = [
    (1, 64, 1, 1), (3, 64, 7, 5), (2, 192, 9, 4), (7, 96, 5, 11), (2, 256, 13, 1), (2, 6144, 3, 3), (1, 8192, 2, 2), (5, 2048, 2, 2),
    (33, 512, 8, 8), (4, 1024, 14, 14), (3, 2048, 7, 7), (2, 64, 112, 112), (4, 256, 56, 56), (1, 64, 240, 240), (130, 64, 16, 16),
]  # fmt: skip
KERNELS = [
    (64, 3, 7, 7),
    (64, 64, 1, 1),
    (64, 64, 3, 3),
    (512, 512, 3, 3),
    (2048, 512, 1, 1),
    (513, 7, 3, 3),
    (1, 1, 2, 3),
]


def check_operations(device: str, quick: bool) -> list[Row]:
    """GN+ReLU and standardization in the form that `ops` takes here, beside the plain form, against float64; worst shapes named."""
    rows = []
    shapes = [shape for shape in SHAPES if not quick or np.prod(shape) < 3e5]
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
        for layout in (torch.channels_last, torch.contiguous_format):
            for offset in (0.0, 30.0):
                worst: dict[str, tuple[float, tuple[int, ...]]] = {}
                plainly: dict[str, float] = {}
                for number, shape in enumerate(shapes):
                    x, weight, bias, tangent = norm_inputs(shape, dtype, layout, offset, number, device)
                    # One place of a million at which rounding turns ReLU on or off is an error of 1e-3 of the gradient.
                    before = F.group_norm(x.double(), 32, weight.double(), bias.double())
                    tangent = tangent.masked_fill(before.abs() < 1e-4, 0.0)
                    where = "cpu" if x.numel() < 3e5 else device
                    exact = gradients_of(
                        plain.group_norm_relu, *(t.to(where, torch.float64) for t in (x, weight, bias, tangent))
                    )
                    for fast in (True, False):
                        with fast_operations(fast):
                            found = gradients_of(ops.group_norm_relu, x, weight, bias, tangent)
                        parts = zip(("y", "x", "weight", "bias"), found, exact, strict=True)
                        for part, got, want in parts:
                            wrong = error_of(got, want)
                            wrong = wrong if wrong == wrong else float("inf")
                            if not fast:
                                plainly[part] = max(plainly.get(part, 0.0), wrong)
                            elif part not in worst or wrong > worst[part][0]:
                                worst[part] = wrong, shape
                kind = f"{str(dtype).split('.')[1]}, {'NHWC' if layout == torch.channels_last else 'NCHW'}, mean {offset:g}"
                for part, (wrong, shape) in worst.items():
                    name = f"GN+ReLU {kind}: {'y' if part == 'y' else 'gradient of ' + part}"
                    # A mean hides differences even from float32; and maps that are not channels_last, which no network here
                    # has, are torch's affair.
                    loose = layout != torch.channels_last or (offset and dtype == torch.float32)
                    allowed = limit * (10 if loose else 1)
                    if layout != torch.channels_last and offset and dtype == torch.bfloat16:
                        allowed *= 5  # torch's sums of squares, seen on an H200: 0.17
                    rows.append(within(name, wrong, allowed, plain=plainly[part], worst=list(shape)))
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        worst_of, plain_of = {"y": (0.0, ()), "gradient": (0.0, ())}, {"y": 0.0, "gradient": 0.0}
        for number, shape in enumerate(KERNELS):
            generator = torch.Generator().manual_seed(number)
            kernel = (torch.randn(shape, generator=generator) * 0.05 + 0.02).to(device)
            tangent = torch.randn(shape, generator=generator).to(dtype).to(device)
            want = standard_of(lambda k: plain.standardize(k), kernel.double(), tangent.double())
            for fast in (True, False):
                with fast_operations(fast):
                    found = standard_of(lambda k, dtype=dtype: ops.standardize(k, dtype=dtype), kernel, tangent)
                for part, got, right in zip(("y", "gradient"), found, want, strict=True):
                    wrong = error_of(got, right)
                    if not fast:
                        plain_of[part] = max(plain_of[part], wrong)
                    elif not wrong <= worst_of[part][0]:
                        worst_of[part] = wrong, shape
        for part, (wrong, shape) in worst_of.items():
            name = f"standardize {str(dtype).split('.')[1]}: {part}"
            rows.append(within(name, wrong, limit, plain=plain_of[part], worst=list(shape)))
    return rows


def norm_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, offset: float, seed: int, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    x, tangent = ((drawn(*shape) + by).to(dtype).contiguous(memory_format=layout) for by in (offset, 0.0))
    return x, drawn(shape[1]).abs() + 0.5, drawn(shape[1]) * 0.5, tangent


def gradients_of(form: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, tangent: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = form(inputs[0], 32, *inputs[1:])
    return [y, *torch.autograd.grad(y, inputs, tangent)]


def standard_of(form: Callable[[Tensor], Tensor], kernel: Tensor, tangent: Tensor) -> list[Tensor]:
    kernel = kernel.detach().requires_grad_()
    y = form(kernel)
    return [y, *torch.autograd.grad(y, kernel, tangent)]


def check_crops(device: str) -> list[Row]:
    """`DeviceImages` against the same code on the CPU, to the bit, and against Pillow: to the bit from version 13 on."""
    rng = np.random.default_rng(0)
    augmentations = [
        InceptionCrop(size=48, min_area=0.25),
        InceptionCrop(size=37, style="tensorflow"),
        InceptionCrop(size=128),
        SquareCrop(resize=40, crop=32, antialias=False),
    ]
    rows = []
    exact = int(PIL.__version__.split(".")[0]) >= 13
    for augmentation in augmentations:
        same, wrong, share = True, 0, 1.0
        for sizes in (
            np.full((200, 2), (64, 64)),
            np.full((50, 2), (40, 40)),
            rng.integers(1, 12, (150, 2)),
            rng.integers(20, 300, (60, 2)),
        ):
            square = isinstance(augmentation, SquareCrop)
            if square != (sizes[0].tolist() == [40, 40] and len(sizes) == 50):
                continue
            pixels = rng.integers(0, 256, sizes.prod(axis=1).sum() * 3, dtype=np.uint8)
            decoded = DecodedImages(pixels, sizes.astype(np.int64), 3, {})
            indices = rng.permutation(len(sizes))
            crops = augmentation.crops(decoded.sizes[indices], draws(augmentation, 0, 0, len(indices)))
            expected = decoded.crop(indices, crops, augmentation)
            here = DeviceImages(decoded, torch.device("cpu")).crop(indices, crops, augmentation)
            there = DeviceImages(decoded, torch.device(device)).crop(indices, crops, augmentation).cpu()
            same &= torch.equal(here, there)
            difference = (there.int() - expected.int()).abs()
            wrong, share = max(wrong, int(difference.max())), min(share, float((difference == 0).float().mean()))
        title = f"{type(augmentation).__name__} to {augmentation.side} px"
        rows.append(within(f"{title}: unlike the CPU's crops", 0 if same else 1, 0))
        rows.append(within(f"{title}: levels from Pillow's crops", wrong, 0 if exact else 2, equal_share=share))
    return rows


def check_predictor(device: str) -> list[Row]:
    """The bundled model on random pixels and on smooth ones, against itself on the CPU in float32."""
    rng = np.random.default_rng(0)
    reference = Predictor.load("bit-t-r26x1", device="cpu", precision="fp32")
    size = reference.card.input.size
    smooth = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size))) for _ in range(24)
    ]
    images = torch.from_numpy(np.stack([*smooth, *rng.integers(0, 256, (8, size, size, 3), np.uint8)])).permute(
        0, 3, 1, 2
    )
    expected = reference.logits(images)
    rows = []
    for precision, limit in (("fp32", 1e-4), ("bf16", 5e-2)):
        found = Predictor.load("bit-t-r26x1", device=device, precision=precision).logits(images)
        agree = float((found.argmax(1) == expected.argmax(1)).float().mean())
        rows.append(
            within(
                f"Predictor, bundled model, {precision}: logits", error_of(found, expected), limit, same_answer=agree
            )
        )
    return rows


RECIPE = Recipe(
    steps=6, batch_size=32, resize=64, crop=64, base_learning_rate=0.05, warmup=2, weight_decay=1e-4, mixup_alpha=0.1
)


def train(state: loop.State, stop: int, device: str, dtype: torch.dtype, size: int) -> list[float]:
    batches = []
    for step in range(state.step, stop):
        rng = np.random.default_rng((9, step))
        pixels = torch.from_numpy(rng.integers(0, 256, (RECIPE.batch_size, size, size, 3), dtype=np.uint8)).permute(
            0, 3, 1, 2
        )
        batches.append(Batch(step, pixels, torch.from_numpy(rng.integers(0, CLASSES, RECIPE.batch_size))))
    return [s.loss for s in loop.steps(state, batches, RECIPE, seed=4, device=torch.device(device), dtype=dtype)]


def new_state(device: str, arch: str = "r26x1", micro_batch: int = 16) -> loop.State:
    net = network(arch, "tame").to(device, memory_format=torch.channels_last)
    return loop.new_state(net, RECIPE, micro_batch=micro_batch)


def unlike(one: loop.State, other: loop.State) -> float:
    """Relative difference of all weights and momenta; 0 only if every bit is the same."""
    pairs = [(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)]
    pairs += [
        (one.optimizer.state[a]["momentum_buffer"], other.optimizer.state[b]["momentum_buffer"]) for a, b in pairs
    ]
    if all(torch.equal(a, b) for a, b in pairs):
        return 0.0
    return max(1e-300, *(error_of(a, b) for a, b in pairs))


def check_resume(device: str, size: int) -> list[Row]:
    """Six steps at once, twice, and three steps, a checkpoint, and three more in a new state: the same bits."""
    rows = []
    for deterministic in (True, False):
        torch.backends.cudnn.deterministic = deterministic
        first, again, half = (new_state(device) for _ in range(3))
        losses = train(first, 6, device, torch.bfloat16, size)
        train(again, 6, device, torch.bfloat16, size)
        with tempfile.TemporaryDirectory() as folder:
            train(half, 3, device, torch.bfloat16, size)
            checkpoint.save(Path(folder), half, {"seed": 0})
            resumed = new_state(device, micro_batch=4)
            assert checkpoint.restore(Path(folder), resumed, {"seed": 0}) and resumed.step == 3
            train(resumed, 6, device, torch.bfloat16, size)
        how = "deterministic cuDNN" if deterministic else "cuDNN as it comes"
        repeated = unlike(again, first)
        # Where the same run twice differs, a resumed one may as well.
        limit = 0.0 if deterministic else 3 * repeated
        rows.append(
            within(f"resumed, {how}: unlike the uninterrupted run", unlike(resumed, first), limit, repeated=repeated)
        )
        if deterministic:
            rows.append(within("training: loss after six steps, nats", losses[-1], 20.0, first=losses[0]))
    torch.backends.cudnn.deterministic = False
    return rows


def check_memory(device: str, size: int) -> list[Row]:
    """A device with too little memory for the batch, but not for eight images: the loop halves its micro-batch and takes the same step."""
    if device != "cuda":
        return []
    few, many = new_state(device, micro_batch=4), new_state(device, micro_batch=RECIPE.batch_size)
    train(few, 1, device, torch.float32, size)
    torch.cuda.empty_cache()
    # Of the estimate for 32 images the fused operations need half; momentum, gradients and workspaces come to it.
    room = torch.cuda.memory_reserved() + 4 * sum(parameter.nbytes for parameter in many.model.parameters()) + 2**28
    room += 10 * loop.activation_bytes(many.model, size, torch.float32)
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.get_device_properties(0).total_memory))
    try:
        train(many, 1, device, torch.float32, size)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return [
        within("out of memory: images at a time afterwards, of 32", many.micro_batch, RECIPE.batch_size // 2),
        within("out of memory: unlike a step of 4 images at a time, fp32", unlike(many, few), 1e-2),
    ]


# --- C: speed

_runs: dict[str, Callable[[], object]] = {}
_kept: dict[str, object] = {}


def competitor(arch: str, form: Mapping[str, Any], device: str) -> nn.Module:
    net = network(arch, "tame")
    if form["library"] == "timm":
        net = as_theirs(timm_network(catalog.architecture(arch), CLASSES), net, "timm")
    layout = torch.channels_last if form.get("channels_last", True) else torch.contiguous_format
    return net.to(device, memory_format=layout)


def called(net: nn.Module, form: Mapping[str, Any], device: str) -> Callable[[Tensor], Tensor]:
    """Images in bf16 -> logits in float32, as that library does it in bf16."""
    if form["form"] == "compile":
        net = torch.compile(net, dynamic=False, mode=form.get("mode"))
    if form["library"] == "ours" or form.get("half"):
        return lambda images: net(images).float()

    def within_autocast(images: Tensor) -> Tensor:
        # A graph must not hold what autocast keeps from one call to the next.
        with torch.autocast(device, torch.bfloat16, cache_enabled=form["form"] != "graph"):
            return net(images).float()

    return within_autocast


def batch_for(case: Mapping[str, Any], form: Mapping[str, Any], device: str) -> Tensor:
    layout = torch.channels_last if form.get("channels_last", True) else torch.contiguous_format
    images = pictures(case["batch"], case["size"], case["size"], device).to(torch.bfloat16)
    return images.contiguous(memory_format=layout)


def prepare(key: str, case: Mapping[str, Any], form: Mapping[str, Any], device: str) -> Row:
    """Build what is to be timed, run it until it is warm, and tell its error beside float64, its memory, and what that took."""
    torch.backends.cudnn.benchmark = bool(form.get("tuned"))
    started = time.perf_counter()
    seen = min(SEEN, case["batch"])
    images = batch_for(case, form, device)
    exact = network(case["arch"], "tame").double().to(device)
    wanted = labels(case["batch"]).to(device)
    if case["kind"] == "train":
        expected, gradients = answers(exact, images[:seen].double(), wanted[:seen])
        with_gradients = {name: tensor.cpu() for name, tensor in gradients.items()}
        del gradients
    else:
        with torch.no_grad():
            expected, with_gradients = exact(images[:seen].double()), {}
    expected = expected.cpu()
    del exact
    emptied(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # Those that compile are few, and would hold the others up.
    crowded = case["kind"] == "train" and form["form"] != "compile"
    build = prepare_training if case["kind"] == "train" else prepare_inference
    for attempt in range(4):
        with _room if crowded else contextlib.nullcontext(), fast_operations(form.get("fast", True)):
            try:
                row = build(key, case, form, device, images, wanted, expected, with_gradients)
                settle(device)
                if device == "cuda":
                    row["memory_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
                break
            except torch.OutOfMemoryError:  # others prepare at the same time
                if attempt == 3:
                    raise
            finally:
                emptied(device)
        time.sleep(3)
    return {**row, "prepare_seconds": time.perf_counter() - started}


def prepare_training(
    key: str,
    case: Mapping[str, Any],
    form: Mapping[str, Any],
    device: str,
    images: Tensor,
    wanted: Tensor,
    expected: Tensor,
    gradients: Mapping[str, Tensor],
) -> Row:
    net = competitor(case["arch"], form, device).train()
    forward = called(net, form, device)
    row: Row = {}
    if form["form"] != "compile":  # which would compile it for these few images too
        logits = forward(images[: len(expected)])
        F.cross_entropy(logits, wanted[: len(expected)]).backward()
        spelled = names.LAYOUTS["timm"].their_name if form["library"] == "timm" else str
        own = dict(net.named_parameters())
        found = {name: own[spelled(name)].grad.reshape(tensor.shape) for name, tensor in gradients.items()}
        row = {"logit_error": error_of(logits, expected), "gradient_error": error_of(whole(found), whole(gradients))}
        del logits, found, own
        net.zero_grad()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, fused=True)
    loss = torch.zeros((), device=device)

    def step() -> None:
        nonlocal loss
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward(images), wanted)
        loss.backward()
        optimizer.step()

    if "logit_error" not in row:
        logits = forward(images)
        row["logit_error"] = error_of(logits[: len(expected)], expected)
        del logits
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if form["form"] == "graph":
        _runs[key], _kept[key] = graphed(step)
    else:
        for _ in range(3):
            step()
        _runs[key] = step
    settle(device)
    assert torch.isfinite(loss.detach()).all(), "the loss is not finite"
    return row


def prepare_inference(
    key: str,
    case: Mapping[str, Any],
    form: Mapping[str, Any],
    device: str,
    images: Tensor,
    wanted: Tensor,
    expected: Tensor,
    gradients: Mapping[str, Tensor],
) -> Row:
    net = competitor(case["arch"], form, device).eval().requires_grad_(False)
    if form["library"] == "ours":
        net = model.fold(net, torch.bfloat16).to(memory_format=torch.channels_last)
    elif form.get("half"):
        net = net.to(torch.bfloat16)
    forward = called(net, form, device)
    out: Tensor | None = None

    def run() -> None:
        nonlocal out
        with torch.inference_mode():
            out = forward(images)

    for _ in range(3):
        run()
    if form["form"] == "graph":
        _runs[key], _kept[key] = graphed(run)
    else:
        _runs[key] = run
    settle(device)
    assert out is not None
    return {"logit_error": error_of(out[: len(expected)], expected)}


def graphed(run: Callable[[], None]) -> tuple[Callable[[], object], object]:
    """`run`, recorded once and replayed. (A user would copy new images into the recorded ones: microseconds.)"""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    # The graph has the addresses of what `run` holds, and holds none of it.
    return graph.replay, (graph, run)


def measure(key: str, seconds: float, form: Mapping[str, Any], device: str) -> Row:
    """Median ms of as many calls as fit into about `seconds`."""
    torch.backends.cudnn.benchmark = bool(form.get("tuned"))
    run = _runs[key]
    with fast_operations(form.get("fast", True)):
        for _ in range(2):
            run()
        settle(device)
        started = time.perf_counter()
        run()
        settle(device)
        once = time.perf_counter() - started
        found = times(run, max(3, min(300, int(seconds / max(once, 1e-6)))), device, warm=0)
    # The others need memory too, and emptying takes time.
    if device == "cuda" and torch.cuda.memory_reserved() > 3e9:
        torch.cuda.empty_cache()
    return {"ms": statistics.median(found), "calls": len(found)}


def forget(key: str, device: str) -> Row:
    _runs.pop(key, None)
    _kept.pop(key, None)
    emptied(device)
    return {}


def profile(key: str, form: Mapping[str, Any], device: str) -> list[Row]:
    """Where the time of one call goes on the device: the twenty kernels that take most of it, ms."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    run = _runs[key]
    with fast_operations(form.get("fast", True)):
        run()
        with profiled(activities=[activity], acc_events=True) as found:
            run()
            settle(device)
    time_of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, time_of))
    total = sum(getattr(event, time_of) for event in events)
    kernels = [
        {"kernel": re.sub(r"\s+", " ", event.key)[:110], "ms": getattr(event, time_of) / 1e3, "calls": event.count}
        for event in events[:20]
    ]
    return [
        {"name": key, "total_ms": total / 1e3, "launches": sum(event.count for event in events), "kernels": kernels}
    ]


# --- D: the small operations alone


def prepare_operation(key: str, shape: list[int], form: Mapping[str, Any], device: str) -> Row:
    """GN+ReLU of one shape, forward and backward, as `key` with "forward" or "backward" behind."""
    layout = torch.channels_last if form.get("channels_last", True) else torch.contiguous_format
    x, weight, bias, tangent = norm_inputs(tuple(shape), torch.bfloat16, layout, 0.0, 0, device)
    operation: Callable[..., Tensor] = ops.group_norm_relu
    if form["form"] == "compile":
        operation = torch.compile(plain.group_norm_relu, dynamic=False)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]

    def forward() -> Tensor:
        return operation(inputs[0], 32, *inputs[1:])

    with fast_operations(form.get("fast", True)):
        y = forward()
        _runs[f"{key} forward"] = forward
        _runs[f"{key} backward"] = lambda: torch.autograd.grad(y, inputs, tangent, retain_graph=True)
        _runs[f"{key} backward"]()
    settle(device)
    return {}


def prepare_copy(key: str, shape: list[int], device: str) -> Row:
    source = torch.randn(shape, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    _runs[key] = lambda: target.copy_(source)
    return {}


def prepare_standardization(key: str, arch: str, form: Mapping[str, Any], device: str) -> Row:
    """All kernels of a network, forward and backward."""
    net = competitor(arch, {"library": "ours"}, device)
    kernels = [module.weight for module in net.modules() if isinstance(module, model.StdConv2d)]
    with fast_operations(form.get("fast", True)):
        results = [ops.standardize(kernel, dtype=torch.bfloat16) for kernel in kernels]
        tangents = [torch.randn_like(result) for result in results]
        _runs[f"{key} forward"] = lambda: [ops.standardize(kernel, dtype=torch.bfloat16) for kernel in kernels]
        _runs[f"{key} backward"] = lambda: torch.autograd.grad(results, kernels, tangents, retain_graph=True)
        _runs[f"{key} backward"]()
    settle(device)
    return {"kernels": len(kernels), "parameters": sum(kernel.numel() for kernel in kernels)}


# --- E: the commands


def make_photos(folder: str) -> list[Row]:
    """Smooth coloured noise of five classes, 64 to 90 px, in train/ and val/: what a command needs to run, not what one learns from."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("val", 12)):
        for label in range(5):
            place = Path(folder) / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                small = rng.integers(0, 256, (label + 2, label + 2, 3), np.uint8)
                image = Image.fromarray(small).resize(tuple(rng.integers(64, 91, 2).tolist()), Image.Resampling.BICUBIC)
                image.save(place / f"{number:03d}.png")
    return []


def check_command(which: str, device: str, folder: str, until: float, flowers: str | None) -> list[Row]:
    """`bit pretrain` under torchrun with one process (NCCL on a GPU) and decoded images on the device, eager or "compiled", or `bit
    finetune`; ended at `until` (monotonic)."""
    photos, place, small = f"{folder}/photos", f"{folder}/{which}", device != "cuda"
    begun = [sys.executable, "-m"]
    if which == "finetune":
        name = f"bit finetune, bundled model, {'the images given' if flowers else 'synthetic images'}"
        command = [*begun, "bigtransfer", "finetune", flowers or photos, "--steps", "2" if small else "60"]
        command += ["--batch-size", "8" if small else "128"]
    else:
        name = f"bit pretrain, torchrun with one process, --cache device{' --compile' if which == 'compiled' else ''}"
        command = [
            *begun,
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "1",
            "-m",
            "bigtransfer",
            "pretrain",
        ]
        command += [
            photos,
            "--model",
            "r26x1",
            "--epochs",
            "0.1" if small else "10",
            "--batch-size",
            "8" if small else "64",
        ]
        command += ["--warmup", "2", "--crop", "32" if small else "64", "--cache", "device"]
        command += ["--compile"] * (which == "compiled")
    started, limit = time.monotonic(), max(1.0, until - time.monotonic())
    row: Row = {"name": name, "passed": False}
    process = subprocess.Popen(
        [*command, "--device", device, "--out", place], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        row["status"] = process.wait(limit)
        if row["status"] == 0:
            row |= {**last_metrics(place), "passed": True}
    except subprocess.TimeoutExpired:
        row["error"] = f"not done within {limit:.0f} s"
        # torchrun's processes have groups of their own: it must end them.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return [{**row, "seconds": time.monotonic() - started}]


def last_metrics(folder: str) -> Row:
    """The last losses and rates of a run folder's metrics.jsonl."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    rates = [line["images_per_second"] for line in steps if "images_per_second" in line]
    row: Row = {"steps": len(steps), "first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"]}
    if rates:
        row["images_per_second"] = statistics.median(rates[len(rates) // 2 :])
    for line in lines:
        row |= {name: line[name] for name in ("val/top1", "data_wait", "mfu") if name in line}
    return row
