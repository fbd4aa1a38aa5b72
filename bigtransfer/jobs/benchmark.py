"""`bit benchmark`: how fast a model answers on this machine, beside what the machine can do and what timm makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import bigtransfer
from bigtransfer import machine, outputs, weights
from bigtransfer.backends import Name, remembered
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.config import BenchmarkConfig
from bigtransfer.data.forms import open_images
from bigtransfer.errors import BitError, ConfigError, DataError
from bigtransfer.feed.augment import normalize
from bigtransfer.model import Network
from bigtransfer.ops.memory import give_back_freed_memory
from bigtransfer.ops.peak import matmul_flops
from bigtransfer.predictor import Predictor
from bigtransfer.train.loop import compute_dtype, out_of_memory
from bigtransfer.weights import names

_DRAWN = 64
"""Images of a folder that are taken."""
_BUSY = 0.1
"""Share of the machine that others may have before it is said that they disturb."""


@dataclass
class Row:
    """One way to answer, and what was measured of it."""

    by: str
    """What computes, such as "torch" or "timm"."""
    precision: str
    batch: int
    decoding: bool
    """Whether from encoded images; else from pixels in memory."""
    run: Callable[[], int] = field(repr=False)
    """Does it once; how many images it was."""
    rates: list[float] = field(default_factory=list)
    """Images per second, of each round."""
    memory: int | None = None
    """Bytes that it took at most beyond what was there before; None where the system does not say."""
    error: float | None = None
    """Largest difference of its logits from the plain network's in fp32, relative to their largest."""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Measured:
    """All that `bit benchmark` found out."""

    rows: list[Row]
    peaks: dict[str, float]
    """FLOP/s by number format."""
    flops: float
    """Of one image."""
    others: float | None
    """Share of the machine's cores that other processes had meanwhile; None where the system does not say."""


def run(config: BenchmarkConfig) -> None:
    """Measure, and show or write what came out."""
    if config.json is not None:
        read = config.model, os.path.join(config.model, "model.safetensors"), config.images
        outputs.refuse_replacing([("--json", config.json)], read)
        outputs.refuse_unwritable(config.json)
    network = weights.load(config.model)
    device = choose_device(config.device)
    if config.remember and device.type != "cpu":
        raise ConfigError("--remember is for the CPU, where several backends can compute: with --device cpu.")
    try:
        measured = measure(config, network, device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(
            f"The memory is too small for {max(config.batch_sizes):,} images of {network.card.input.size} px at a time. Measure with "
            "fewer: --batch-sizes."
        ) from error
    print(table(network, measured, device))
    if config.remember:
        file = remembered.remember(network.card, [*_figures(measured)])
        print(f"\nremembered for --backend fastest: {file}")
    if config.json is not None:
        outputs.write_json(config.json, record(config, network, measured, device))
        print(f"\nall numbers: {config.json}")


def measure(config: BenchmarkConfig, network: Network, device: torch.device) -> Measured:
    """Every figure, in rounds in which all take their turn."""
    precisions = config.precisions or (
        ("fp32", "bf16") if compute_dtype("auto", device) == torch.bfloat16 else ("fp32",)
    )
    files = _made_up() if config.images is None else _read(config.images)
    rows = list(_rows(config, network, device, precisions, files))
    for row in rows:
        row.memory = _memory_of(row.run, device)  # also what is done only once, such as choosing kernels
    peaks: dict[str, list[float]] = {precision: [] for precision in precisions}
    with Others() as others:
        for _ in range(config.rounds):
            for precision, found in peaks.items():
                found.append(matmul_flops(device, _DTYPES[precision]))
            for row in rows:
                row.rates.append(rate(row.run, config.seconds))
    flops = network.card.architecture.forward_flops(network.card.input.size, network.card.num_classes)
    return Measured(rows, {precision: max(found) for precision, found in peaks.items()}, flops, others.share)


def rate(run: Callable[[], int], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Images per second of `run` again and again for that long, once at least."""
    started, images = clock(), 0
    while True:
        images += run()
        passed = clock() - started
        if passed >= seconds:
            return images / max(passed, 1e-9)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _rows(
    config: BenchmarkConfig,
    network: Network,
    device: torch.device,
    precisions: Sequence[str],
    files: Sequence[bytes],
) -> Iterator[Row]:
    """Everything that takes its turn."""
    card = network.card
    size, channels = card.input.size, card.architecture.in_chans
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (max(config.batch_sizes), channels, size, size), dtype=torch.uint8, generator=generator
    )
    plain = Predictor(network, device="cpu", precision="fp32").logits(pixels[:_COMPARED])
    twin = _in_timm(network, device) if config.peers == "auto" else None
    for precision in precisions:
        predictors: dict[str, Predictor] = {}
        for name in _backends(config, device):
            if name != "onnxruntime" or precision == "fp32":  # it has no other
                how: Any = {"precision": precision, "backend": name}
                try:
                    predictors[name] = Predictor(network, device=str(device), **how)
                except BitError:
                    if config.backends or name == "torch":
                        raise
        ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [(name, one.logits) for name, one in predictors.items()]
        if twin is not None:
            ways.append(("timm", partial(_ask_timm, twin, _DTYPES[precision], device)))
        for by, ask in ways:
            error = float((ask(pixels[:_COMPARED]) - plain).abs().max() / plain.abs().max().clamp_min(1e-30))
            for batch in config.batch_sizes:
                yield Row(by, precision, batch, False, partial(_asked, ask, pixels[:batch]), error=error)
        for (name, predictor), batch in itertools.product(predictors.items(), config.batch_sizes):
            some = list(
                itertools.islice(itertools.cycle(files), max(2 * batch, 8))
            )  # two batches, for one to be decoded ahead
            yield Row(name, precision, batch, True, partial(_streamed, predictor, some, batch))


def _backends(config: BenchmarkConfig, device: torch.device) -> tuple[Name, ...]:
    """What is asked for, or what there is."""
    if config.backends:
        return config.backends
    if device.type != "cpu":
        return ("torch",)
    others: tuple[Name, ...] = ("onnxruntime", "openvino")
    return ("torch", *(name for name in others if importlib.util.find_spec(name) is not None))


_COMPARED = 4
"""Images whose answers are compared."""


def _asked(ask: Callable[[Tensor], Tensor], pixels: Tensor) -> int:
    ask(pixels)
    return len(pixels)


def _streamed(predictor: Predictor, files: Sequence[bytes], batch: int) -> int:
    for answer in predictor.stream(files, batch_size=batch):
        if answer.error is not None:
            raise DataError(f"{answer.name} cannot be read: {answer.error}. Leave it out of what is measured with.")
    return len(files)


def _in_timm(network: Network, device: torch.device) -> nn.Module | None:
    """timm's network of the same form with the same weights; None where timm is not installed, or has no such form."""
    architecture = network.card.architecture
    if (
        architecture.backbone is not None
        or architecture.norm != "gn"
        or architecture.readout is not None
        or architecture.beside is not None
    ):
        return None
    if not network.card.num_classes:
        return None
    try:
        from timm.layers import GroupNormAct, StdConv2d
        from timm.models.resnetv2 import ResNetV2 as Theirs
    except ImportError:
        return None
    twin = Theirs(
        list(architecture.units),
        width_factor=architecture.width,
        num_classes=network.card.num_classes,
        in_chans=architecture.in_chans,
        stem_type="fixed",
        conv_layer=partial(StdConv2d, eps=1e-8),
        norm_layer=partial(GroupNormAct, num_groups=32),
    )
    layout = names.LAYOUTS["timm"]
    state = {layout.their_name(name): layout.their_value(name, value) for name, value in network.state_dict().items()}
    twin.load_state_dict(state)
    return twin.eval().to(device).to(memory_format=torch.channels_last)


def _ask_timm(twin: nn.Module, dtype: torch.dtype, device: torch.device, images: Tensor) -> Tensor:
    """As timm's own benchmark does it: channels_last, autocast for bfloat16, not compiled."""
    lower = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with torch.inference_mode(), lower:
        batch = normalize(images.to(device), torch.float32).contiguous(memory_format=torch.channels_last)
        return twin(batch).float().cpu()


def _made_up() -> list[bytes]:
    """JPEG files with the detail of photographs, some 90 kB each: noise of every scale, as natural images have it."""
    files = []
    for seed in range(16):
        generator = np.random.default_rng(seed)
        picture = np.zeros((375, 500, 3))
        for scale in (4, 12, 40, 120, 375):
            coarse = generator.uniform(-1, 1, (max(2, scale), max(2, scale * 4 // 3), 3)).astype(np.float32)
            layers = [Image.fromarray(coarse[:, :, c]).resize((500, 375), Image.Resampling.BICUBIC) for c in range(3)]
            picture += np.stack([np.asarray(layer) for layer in layers], 2) / scale**0.5
        low, high = picture.min(), picture.max()
        file = io.BytesIO()
        Image.fromarray(((picture - low) * (255 / (high - low))).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _read(folder: str) -> list[bytes]:
    images = open_images([folder])
    drawn = np.random.default_rng(0).permutation(len(images))[:_DRAWN]
    return [images.data(int(i)) for i in drawn]


# --- What the system says


def _memory_of(run: Callable[[], int], device: torch.device) -> int | None:
    """Bytes that `run` takes at most beyond what the process has before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        give_back_freed_memory()  # what an earlier row freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted anew
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    except (OSError, ValueError, StopIteration):
        run()
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


class Others:
    """Within, which share of the machine's cores processes other than this one have."""

    share: float | None = None

    def __enter__(self) -> Others:
        self._before = self._counted()
        return self

    def __exit__(self, *error: object) -> None:
        after = self._counted()
        if self._before is not None and after is not None and after[1] > self._before[1]:
            busy, total, own = (now - then for now, then in zip(after, self._before, strict=True))
            self.share = min(max((busy - own) / total, 0.0), 1.0)

    @staticmethod
    def _counted() -> tuple[float, float, float] | None:
        """Seconds of all cores at work, of all cores, and of this process."""
        try:
            words = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
            numbers = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        except (OSError, ValueError, IndexError, AttributeError):
            return None
        times = os.times()
        idle = numbers[3] + numbers[4]
        return sum(numbers) - idle, sum(numbers), times.user + times.system


# --- What is shown


def table(network: Network, measured: Measured, device: torch.device) -> str:
    """The figures as text for a terminal."""
    card = network.card
    lines = [
        f"{card.name}, {card.input.size} px, {measured.flops / 1e9:.2f} GFLOP an image; {_machine(device)}",
        "peak in large products: "
        + ", ".join(f"{value / 1e9:,.0f} GFLOP/s {precision}" for precision, value in measured.peaks.items()),
        "",
        "by           format  batch  from     images/s   of peak  slowest..fastest round  memory  error",
    ]
    for row in measured.rows:
        share = row.rate * measured.flops / measured.peaks[row.precision]
        memory = "-" if row.memory is None else f"{row.memory / 1e6:,.0f} MB"
        error = "-" if row.error is None else f"{row.error:.1e}"
        spread = f"{_figure(min(row.rates))}..{_figure(max(row.rates))}"
        source = "files" if row.decoding else "pixels"
        lines.append(
            f"{row.by:<12} {row.precision:<6}  {row.batch:>5}  {source:<6}  {_figure(row.rate):>9}  {share:>7.0%}  "
            f"{spread:>22}  {memory:>6}  {error}"
        )
    lines += ["", *_remarks(measured)]
    return "\n".join(lines).rstrip()


def _figures(measured: Measured) -> Iterator[remembered.Figure]:
    """What `--backend fastest` chooses from."""
    for row in measured.rows:
        if row.by != "timm" and not row.decoding:
            found: Any = {"backend": row.by, "precision": row.precision}
            yield remembered.Figure(**found, batch=row.batch, images_per_second=row.rate)


def _soonest(measured: Measured) -> Iterator[str]:
    """By batch the flags that answer soonest: in any number format, and in fp32 where that is another."""
    ours = [row for row in measured.rows if row.by != "timm" and not row.decoding]
    for batch in dict.fromkeys(row.batch for row in ours):
        rows = sorted((row for row in ours if row.batch == batch), key=lambda row: row.rate, reverse=True)
        fp32 = [row for row in rows if row.precision == "fp32"]
        for among, what in ((rows, ""), (fp32 if fp32 and fp32[0] is not rows[0] else [], " in fp32")):
            if len(among) < 2:
                continue
            first, second = among[:2]
            ratios = [mine / theirs for mine, theirs in zip(first.rates, second.rates, strict=True)]
            yield (
                f"soonest with {batch} at a time{what}: --backend {first.by} --precision {first.precision}, "
                f"{statistics.median(ratios):.2f} times {second.by} in {second.precision}, which comes next; {min(ratios):.2f} to "
                f"{max(ratios):.2f} in the rounds{'' if min(ratios) > 1 else ', so no clear difference'}"
            )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _remarks(measured: Measured) -> list[str]:
    """Ratios, and what the figures do not show."""
    lines = []
    pairs: dict[tuple[str, int], dict[str, Row]] = {}
    for row in measured.rows:
        if not row.decoding:
            pairs.setdefault((row.precision, row.batch), {})[row.by] = row
    for (precision, batch), by in pairs.items():
        if "timm" in by:
            for name in (name for name in by if name != "timm"):
                ratios = [ours / theirs for ours, theirs in zip(by[name].rates, by["timm"].rates, strict=True)]
                lines.append(
                    f"{name}: {statistics.median(ratios):.2f} times timm (eager, channels_last) in {precision}, batch {batch}; "
                    f"{min(ratios):.2f} to {max(ratios):.2f} in the rounds"
                )
    if any(row.rate * measured.flops > measured.peaks[row.precision] for row in measured.rows):
        lines.append(
            "More than 100% of the peak: other programs were in the way when it was measured, and the shares are too high."
        )
    lines += _soonest(measured)
    if measured.others is None:
        lines.append("How busy the machine was otherwise, this system does not say.")
    elif measured.others > _BUSY:
        lines.append(
            f"The machine was busy: other processes had {measured.others:.0%} of its cores meanwhile. Ratios within this table hold "
            "better than the figures, which are lower than on a free machine."
        )
    else:
        lines.append(f"Other processes had {measured.others:.0%} of the machine's cores meanwhile.")
    return lines


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads of {machine.usable_cores()} cores"


def record(config: BenchmarkConfig, network: Network, measured: Measured, device: torch.device) -> dict[str, Any]:
    """All numbers, as JSON."""
    rows = []
    for row in measured.rows:
        kept = {key: getattr(row, key) for key in ("by", "precision", "batch", "decoding", "rates", "memory", "error")}
        share = row.rate * measured.flops / measured.peaks[row.precision]
        rows.append({**kept, "images_per_second": row.rate, "share_of_peak": share})
    return {
        "format": "bigtransfer benchmark",
        "version": 1,
        "model": network.card.name,
        "size": network.card.input.size,
        "flops_per_image": measured.flops,
        "peak_flops_per_second": measured.peaks,
        "others": measured.others,
        "rows": rows,
        "asked": dataclasses.asdict(config),
        "machine": {
            "device": _machine(device),
            "platform": platform.platform(),
            "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "timm": _version("timm"),
            "onnxruntime": _version("onnxruntime"),
            "openvino": _version("openvino"),
            "bigtransfer": bigtransfer.__version__,
        },
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
