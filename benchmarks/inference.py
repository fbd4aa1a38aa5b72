"""Time of one image by backend, in alternated rounds: torch as `Predictor` uses it, onnxruntime, OpenVINO, and timm's eager network where
it is installed. Error beside speed.

    python -m benchmarks.inference [--arch r50x1|bundled] [--sizes 128 224] [--batches 1 16] [--rounds 5] [--wall] [--torch-export]
    python -m benchmarks.inference --model RUN --exported RUN-int8.onnx --images DATA [--count 60] [--batches 1 8]

One process and one thread; in every round each backend computes the same batch, in another order each time. By default the time is the
processor's (`time.process_time`), not the clock's: on a machine that others use too it is what the computation took. The best of the
rounds and their median are given, as ratios to torch in fp32. The error is the largest difference of logits from torch's in float64,
relative to the largest logit. Prints a table in Markdown.

The second form measures a model of one's own, and files that `bit convert --to onnx` made of it, such as one in 8 bits, at the
model's size on test images: error and top-1 are of `--count` of them, drawn evenly.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from bigtransfer import backends, weights
from bigtransfer.backends import graph, onnx_file
from bigtransfer.backends.by_onnxruntime import OnnxRuntime
from bigtransfer.backends.by_openvino import OpenVino
from bigtransfer.backends.by_torch import Torch
from bigtransfer.data import open_dataset, splits
from bigtransfer.errors import BitError
from bigtransfer.feed.augment import normalize
from bigtransfer.model import Network, build, fold
from bigtransfer.weights import configs

Run = Callable[[np.ndarray], np.ndarray]


def network_of(arch: str) -> Network:
    """The bundled network, or one of random weights of that architecture with a head that is not zero."""
    if arch == "bundled":
        return weights.load("bit-t-r26x1")
    torch.manual_seed(0)
    made = build(arch, 1000).eval()
    torch.nn.init.normal_(made.head.weight, std=0.02)  # pyright: ignore[reportArgumentType]
    return made


def contenders(network: Network, exported: Sequence[str], *, by_torch_export: bool = False) -> dict[str, Run]:
    """What is compared, each from uint8 images to logits. exported: ONNX files. by_torch_export: also what `torch.export` makes."""

    def of(backend: backends.Backend) -> Run:
        return lambda images: backend.run(images)[1]

    found = {f"torch {precision}": of(Torch(network, "cpu", precision)) for precision in ("fp32", "bf16")}
    file = onnx_file.parse(graph.onnx_model(network, input="uint8"), "network")
    found["onnxruntime fp32"] = of(OnnxRuntime(file, "network", "cpu", "fp32"))
    for precision in ("fp32", "bf16"):
        try:
            found[f"openvino {precision}"] = of(OpenVino(file, "network", "cpu", precision))
        except BitError as error:
            print(f"- openvino {precision}: {error}")
    for path in exported:
        given = onnx_file.read(path)
        kind = "int8" if given.quantized else "as exported"
        found[f"{Path(path).name} ({kind}), onnxruntime"] = of(OnnxRuntime(given, path, "cpu", "auto"))
        try:
            found[f"{Path(path).name} ({kind}), openvino"] = of(OpenVino(given, path, "cpu", "auto"))
        except BitError as error:
            print(f"- {path} by openvino: {error}")
    if by_torch_export:
        found["torch.export fp32"] = _exported(network)
    if (theirs := _timm(network)) is not None:
        found["timm fp32, eager, channels_last"] = theirs
    return found


def _exported(network: Network) -> Run:
    """The network with its kernels standardized once, as the program that `torch.export` makes of it for any batch."""
    size = network.card.input.size
    example = torch.zeros(2, network.architecture.in_chans, size, size)
    started = time.process_time()
    program = torch.export.export(
        fold(network, torch.float32).eval(),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},),
    )
    print(f"- torch.export: {time.process_time() - started:.1f} s of processor time, {len(program.graph.nodes)} nodes")
    module = program.module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(normalize(torch.from_numpy(images))).numpy()

    return run


def _timm(network: Network) -> Run | None:
    try:
        import timm
    except ImportError:
        return None
    if network.architecture.readout is not None or network.architecture.beside is not None:
        return None
    name = configs.timm_name(network.architecture)
    if name is None:
        return None
    theirs = timm.create_model(name, num_classes=network.num_classes).eval()
    theirs = theirs.to(memory_format=torch.channels_last)  # its time does not depend on the weights; no error is given

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return theirs(normalize(torch.from_numpy(images))).numpy()

    return run


def exact(network: Network, images: np.ndarray) -> np.ndarray:
    """The logits in float64."""
    wide = build(network.architecture, network.card.num_classes).eval().double()
    wide.load_state_dict(network.state_dict())
    with torch.inference_mode():
        return wide((torch.from_numpy(images).double() - 127.5) / 127.5).numpy()


def labelled(data: str, network: Network, count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many test images, evenly of all classes, as the network takes them, uint8 `(n, channels, size, size)`, and their labels among the
    network's classes."""
    sets = open_dataset(data, channels=network.architecture.in_chans)
    images = next(one for one in (sets.test, sets.val, sets.train) if one is not None)
    images = splits.evenly(images, count, 0)
    assert images.labels is not None and network.card.class_names is not None
    pixels = [images.read(i, network.card.input) for i in range(len(images))]
    of = {name: number for number, name in enumerate(network.card.class_names)}
    wanted = [of[images.class_names[int(label)]] for label in np.asarray(images.labels)]
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), np.array(wanted)


def measure(
    runs: dict[str, Run], images: np.ndarray, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each round, by contender."""
    for run in runs.values():
        run(images)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        names = [*runs]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = clock()
            runs[name](images)
            times[name].append(clock() - started)
    return times


def _judged(run: Run, network: Network, images: np.ndarray, labels: np.ndarray) -> str:
    """The cells for error and top-1, in batches of 8."""
    found = np.concatenate([run(images[i : i + 8]) for i in range(0, len(images), 8)])
    wanted = np.concatenate([exact(network, images[i : i + 8]) for i in range(0, len(images), 8)])
    return f"{np.abs(found - wanted).max() / np.abs(wanted).max():.1e} | {(found.argmax(1) == labels).mean():.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="r50x1")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="the clock's time instead of the processor's")
    parser.add_argument("--model", help="a model with classes, in the place of --arch and --sizes")
    parser.add_argument("--exported", nargs="+", default=[], help="ONNX files made of it")
    parser.add_argument("--torch-export", action="store_true", help="also the program that torch.export makes")
    parser.add_argument("--images", help="with --model: labelled images, as `bit evaluate` takes them")
    parser.add_argument("--count", type=int, default=60, help="images for error and top-1 (default 60)")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.images is None):
        parser.error("--model and --images go together")
    torch.set_num_threads(1)
    network = weights.load(arguments.model) if arguments.model else network_of(arguments.arch)
    tested = labelled(arguments.images, network, arguments.count) if arguments.model else None
    sizes = [network.card.input.size] if arguments.model else arguments.sizes
    runs = contenders(network, arguments.exported, by_torch_export=arguments.torch_export)
    packages = {}
    for package in ("torch", "onnxruntime", "openvino", "timm"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "-"
    versions = ", ".join(f"{name} {value}" for name, value in packages.items())
    print(
        f"- {network.card.name if arguments.model else arguments.arch}; {versions}; Python {platform.python_version()}"
    )
    print(
        f"- {arguments.rounds} rounds, {'wall' if arguments.wall else 'processor'} time, 1 thread; load average at the start "
        f"{os.getloadavg()[0]:.0f}\n"
    )
    print(
        f"| px | batch | backend | ms an image: best, median | of torch fp32: best, median | error |{' top-1 |' if tested else ''}"
    )
    print(f"|---|---|---|---|---|---|{'---|' if tested else ''}")
    shown = {name: _judged(run, network, *tested) for name, run in runs.items()} if tested else {}
    rng = np.random.default_rng(0)
    clock = time.perf_counter if arguments.wall else time.process_time
    for size in sizes:
        for batch in arguments.batches:
            images = (
                rng.integers(0, 256, (batch, 3, size, size), dtype=np.uint8) if tested is None else tested[0][:batch]
            )
            wanted = None if tested else exact(network, images[:2])
            times = measure(runs, images, arguments.rounds, clock)
            base = times["torch fp32"]
            for name, seconds in times.items():
                best, middle = (1000 * take(seconds) / batch for take in (min, statistics.median))
                ratios = min(seconds) / min(base), statistics.median(seconds) / statistics.median(base)
                if wanted is None:
                    last = shown[name]
                elif name.startswith("timm"):
                    last = ""
                else:
                    last = f"{np.abs(runs[name](images[:2]) - wanted).max() / np.abs(wanted).max():.1e}"
                print(
                    f"| {size} | {batch} | {name} | {best:.1f}, {middle:.1f} | {ratios[0]:.2f}, {ratios[1]:.2f} | {last} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
