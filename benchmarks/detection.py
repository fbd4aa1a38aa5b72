"""`bit detect` measured: the time of a training step beside torchvision's own RetinaNet, and runs side by side.

    python -m benchmarks.detection steps --size 128 --images 2 --rounds 5
    python -m benchmarks.detection starts bccd/ --cells cells/ --seeds 0 1 2 --steps 500
    python -m benchmarks.detection by-heart bccd/ --cells cells/ --images 16 --steps 500
    python -m benchmarks.detection reached cells/.../run bccd/
    python -m benchmarks.detection table runs/blood runs/blood-2 ...
    python -m benchmarks.detection backends runs/blood bccd/

steps: RetinaNet on R50x1 by this package, in float32 and in bfloat16, and torchvision's `retinanet_resnet50_fpn` (all layers trained, its
own preparation of images left out by giving them in the final size), in turn, from random weights, the same made-up images and boxes:
forward, losses, backward, SGD. Seconds are the processor's, of one thread, which a crowded machine disturbs least.

starts: `bit detect finetune` from the bundled network and from random weights, seed by seed, measured on the test images, or where there
are none on those for validation. by-heart: the first images of the training list of a set in VOC's layout, learnt without mirroring or
scaling and measured on themselves. Both are resumable: each training is a cell (`benchmarks.cells`), and the same command goes on where it
was stopped.

reached: what a training that was stopped had learnt by its latest checkpoint, measured on the test images.

table: of each run what its config.json asked and its evaluation.json says.

backends: a detector's ONNX file by each library, beside torch in float32, on up to 64 images: what its graph gives, and the boxes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import torch
import torchvision
from torchvision.models.detection import retinanet_resnet50_fpn

from benchmarks.cells import Cells, commit, machine
from bigtransfer import catalog, detector, model, weights
from bigtransfer.backends import Precision, graph
from bigtransfer.backends.by_onnxruntime import OnnxDetector
from bigtransfer.backends.by_openvino import OpenVinoDetector
from bigtransfer.backends.exported import ExportedDetector
from bigtransfer.config import DetectFinetuneConfig
from bigtransfer.data.boxes import open_boxes
from bigtransfer.detections import ObjectFinder
from bigtransfer.detector import BoxGoal
from bigtransfer.errors import ConfigError
from bigtransfer.evals import detection
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import parity
from bigtransfer.jobs.detect import finetune as job
from bigtransfer.jobs.detect import measuring
from bigtransfer.jobs.plan import recall
from bigtransfer.train import checkpoint, loop

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("steps")
    timed.add_argument("--size", type=int, default=128)
    timed.add_argument("--images", type=int, default=2)
    timed.add_argument("--rounds", type=int, default=5)
    commands.add_parser("table").add_argument("runs", nargs="+", type=Path)
    for name in ("starts", "by-heart"):
        learning = commands.add_parser(name)
        learning.add_argument("data", type=Path)
        learning.add_argument("--cells", type=Path, required=True)
        learning.add_argument("--seeds", type=int, nargs="+", default=[0])
        learning.add_argument("--steps", type=int, required=True)
        learning.add_argument("--batch-size", type=int, default=2)
        learning.add_argument("--size", type=int, default=256)
        learning.add_argument("--channels", type=int, default=64)
        learning.add_argument("--anchor-scale", type=float, default=2.0)
        learning.add_argument("--learning-rate", type=float, default=0.01)
        if name == "by-heart":
            learning.add_argument("--images", type=int, default=16)
    compared = commands.add_parser("backends")
    compared.add_argument("run", type=Path)
    compared.add_argument("data")
    stopped = commands.add_parser("reached")
    stopped.add_argument("run", type=Path)
    stopped.add_argument("data", type=Path)
    asked = parser.parse_args()
    if asked.command == "steps":
        steps(asked.size, asked.images, asked.rounds)
    elif asked.command == "starts":
        starts(asked)
    elif asked.command == "reached":
        reached(asked.run, asked.data)
    elif asked.command == "backends":
        backends(asked.run, asked.data)
    elif asked.command == "by-heart":
        by_heart(asked)
    else:
        table(asked.runs)
    print(f"\n{machine()}, torchvision {torchvision.__version__}; {commit()}")


def steps(size: int, images: int, rounds: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    corners = torch.rand(images, 6, 2) * size / 2
    boxes = torch.cat([corners, corners + size / 8 + torch.rand(images, 6, 2) * size / 4], dim=2)
    kinds = torch.randint(0, CLASSES, (images, 6))
    contenders = {
        "ours, bfloat16": _ours(pixels, boxes, kinds, torch.bfloat16),
        "ours, float32": _ours(pixels, boxes, kinds, torch.float32),
        "torchvision, float32": _torchvision(pixels, boxes, kinds),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():  # allocates
        step()
    for _ in range(rounds):
        for name, step in contenders.items():
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    what = f"step of {images} images of {size} px, {CLASSES} classes"
    print(f"| {what} | median s of one core | each round | share of torchvision's, median |")
    print("|---|---|---|---|")
    theirs = seconds["torchvision, float32"]
    for name, own in seconds.items():
        share = statistics.median(one / other for one, other in zip(own, theirs, strict=True))
        print(f"| {name} | {statistics.median(own):.2f} | {' '.join(f'{one:.2f}' for one in own)} | {share:.2f} |")


def _ours(pixels: torch.Tensor, boxes: torch.Tensor, kinds: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    made = detector.on(model.build("r50x1", 0), catalog.Detector(), CLASSES)
    made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    recipe = Recipe(steps=10**6, batch_size=len(pixels), resize=1, crop=1, base_learning_rate=1e-4, weight_decay=1e-4)
    state = loop.new_state(made, recipe, micro_batch=len(pixels))
    labels = torch.cat([kinds[..., None].float(), boxes], dim=2)
    batches = (loop.Batch(number, pixels, labels) for number in range(10**6))
    taken = loop.steps(state, batches, recipe, seed=0, device=torch.device("cpu"), dtype=dtype, aim=BoxGoal())
    return lambda: (next(taken), None)[1]


def _torchvision(pixels: torch.Tensor, boxes: torch.Tensor, kinds: torch.Tensor) -> Callable[[], None]:
    size = pixels.shape[-1]
    made = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        trainable_backbone_layers=5,
        min_size=size,
        max_size=size,
    ).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)
    targets = [{"boxes": own, "labels": kind} for own, kind in zip(boxes, kinds, strict=True)]

    def step() -> None:
        losses = made([one.float() / 255 for one in pixels], targets)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


KNOBS = ("steps", "batch_size", "size", "channels", "anchor_scale", "learning_rate")


def starts(asked: argparse.Namespace) -> None:
    cells = Cells(asked.cells)
    knobs = {name: getattr(asked, name) for name in KNOBS}
    rows = []
    for seed in asked.seeds:
        for pretrained in (True, False):
            of = {"data": asked.data.name, "pretrained": pretrained, "seed": seed, **knobs}
            rows.append((of, cells.once(of, lambda folder, of=of: _learnt(str(asked.data), folder, of))))
    _listed(
        cells, [(f"{'pre-trained' if of['pretrained'] else 'random'}, seed {of['seed']}", made) for of, made in rows]
    )


def by_heart(asked: argparse.Namespace) -> None:
    cells = Cells(asked.cells)
    few = asked.cells / f"first-{asked.images}"
    names = (asked.data / "ImageSets/Main/train.txt").read_text().split()[: asked.images]
    for kind, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (few / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(asked.data / kind / f"{name}.{ending}", few / kind)
    (few / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        (few / f"ImageSets/Main/{part}.txt").write_text("\n".join(names) + "\n")
    rows = []
    for seed in asked.seeds:
        of = {
            "data": f"{asked.data.name}, first {asked.images}",
            "pretrained": True,
            "seed": seed,
            "scales": (1.0, 1.0),
        }
        of |= {"flip": False} | {name: getattr(asked, name) for name in KNOBS}
        rows.append((f"seed {seed}", cells.once(of, lambda folder, of=of: _learnt(str(few), folder, of))))
    _listed(cells, rows)


def _learnt(data: str, folder: Path, of: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in of.items() if name != "data"}
    config = DetectFinetuneConfig(
        data=data, out=str(folder), eval_every=10**6, workers=0, cache="none", checkpoint_every="2m", **own
    )
    done = job.finetune(config)
    if done.stopped_by is not None:
        raise SystemExit(128 + done.stopped_by)
    result = detection.read_record(folder / "evaluation.json")
    kinds = [dataclasses.asdict(row) for row in result.per_class]
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    tenths = [statistics.fmean(losses[i * len(losses) // 10 : (i + 1) * len(losses) // 10]) for i in range(10)]
    return {**done.metrics, "per_class": kinds, "loss": tenths}


def _listed(cells: Cells, rows: list[tuple[str, dict[str, Any] | None]]) -> None:
    print("| | AP | AP50 | AP75 | AP50 of each class | found | missed | invented | loss, last tenth |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, made in rows:
        if made is None:
            print(f"| {name} | being made | | | | | | | |")
            continue
        part = "test" if "test_ap" in made else "val"  # of a set without a test part
        shares = " | ".join(f"{made[f'{part}_{what}']:.1%}" for what in ("ap", "ap50", "ap75"))
        kinds = ", ".join(f"{row['name']} {row['ap50']:.1%}" for row in made["per_class"])
        counts = " | ".join(
            f"{sum(row[what] for row in made['per_class']):,}" for what in ("found", "missed", "invented")
        )
        print(f"| {name} | {shares} | {kinds} | {counts} | {made['loss'][-1]:.2f} |")
    print(f"\ncommits: {', '.join(cells.commits())}")


def reached(folder: Path, data: Path) -> None:
    asked = json.loads((folder / "config.json").read_text())["asked"] | {"data": str(data)}
    asked["scales"] = tuple(asked["scales"])
    config = DetectFinetuneConfig(**asked)
    begun = recall(folder, job.COMMAND, config, job.DetectPlan)
    assert begun is not None
    parts = open_boxes(data)
    assert parts.test is not None
    made, _ = job._model(config, parts, begun.plan)
    state = loop.new_state(made, begun.plan.recipe, micro_batch=begun.plan.micro_batch)
    assert checkpoint.restore(folder, state, begun.plan.facts())
    made.card = dataclasses.replace(made.card, input=begun.plan.input)
    finder = ObjectFinder(made, device="cpu", precision="bf16" if begun.plan.dtype == "bfloat16" else "fp32")
    kept, found, _ = measuring.answers(finder, parts.test)
    result = detection.measured(kept, found, finder.thresholds, model="", data=str(data), split="test")
    print(f"after {state.step} of {begun.plan.recipe.steps} steps of {begun.plan.recipe.batch_size}:")
    print(measuring.described(result))


def backends(run: Path, data: str) -> None:
    made = weights.load_detector(run)
    content = graph.onnx_detector(made)
    pixels, _ = parity.images(data, str(run), made.card)
    print(f"{run}: {len(pixels)} images of {data} at {made.card.input.size} px, {len(content) / 1e6:.1f} MB\n")
    print("| by | logits, of the largest | offsets, of the largest | boxes of both | of these the other's too |")
    print("|---|---|---|---|---|")
    rows: tuple[tuple[str, type[ExportedDetector], Precision], ...] = (
        (f"onnxruntime {onnxruntime.__version__}, fp32", OnnxDetector, "fp32"),
        (f"OpenVINO {openvino.__version__.partition('-')[0]}, fp32", OpenVinoDetector, "fp32"),
        ("OpenVINO, bf16", OpenVinoDetector, "bf16"),
    )
    for name, by, precision in rows:
        try:
            found = parity.compare_boxes(content, made, pixels, by=by, precision=precision)
        except ConfigError as error:  # a processor without bf16
            print(f"| {name} | {error} | | | |")
            continue
        print(f"| {name} | {found.logits:.1e} | {found.offsets:.1e} | {found.boxes:,} | {found.same:,} |", flush=True)


def table(folders: list[Path]) -> None:
    print("| run | start | seed | steps | AP | AP50 | AP75 | found | missed | invented | AP50 of each class |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        result = detection.read_record(folder / "evaluation.json")
        asked, recipe = config["asked"], config["recipe"]
        start = asked["model"] if asked["pretrained"] else f"{asked['model']}, random weights"
        shares = (f"{share:.1%}" if share is not None else "–" for share in (result.ap, result.ap50, result.ap75))
        classes = ", ".join(f"{row.name} {row.ap50:.1%}" for row in result.per_class if row.ap50 is not None)
        counts = " | ".join(f"{count:,}" for count in result.counts())
        how = f"{folder.name} | {start} | {asked['seed']} | {recipe['steps']} x {recipe['batch_size']}"
        print(f"| {how} | {' | '.join(shares)} | {counts} | {classes} |")


if __name__ == "__main__":
    main()
