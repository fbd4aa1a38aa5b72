"""`bit detect` measured: the time of a training step beside torchvision's own RetinaNet, and runs side by side.

    python -m benchmarks.detection steps --size 128 --images 2 --rounds 5
    python -m benchmarks.detection table runs/bccd-pretrained-0 runs/bccd-no-pretrained-0 ...

steps: RetinaNet on R50x1 by this package, in float32 and in bfloat16, and torchvision's `retinanet_resnet50_fpn` (all layers trained, its
own preparation of images left out by giving them in the final size), in turn, from random weights, the same made-up images and boxes:
forward, losses, backward, SGD. Seconds are the processor's, of one thread, which a crowded machine disturbs least.

table: of each run what its config.json asked and its evaluation.json says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torchvision.models.detection import retinanet_resnet50_fpn

from benchmarks.cells import commit, machine
from bigtransfer import catalog, detector, model
from bigtransfer.detector import BoxGoal
from bigtransfer.evals import detection
from bigtransfer.hyperrule import Recipe
from bigtransfer.train import loop

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("steps")
    timed.add_argument("--size", type=int, default=128)
    timed.add_argument("--images", type=int, default=2)
    timed.add_argument("--rounds", type=int, default=5)
    commands.add_parser("table").add_argument("runs", nargs="+", type=Path)
    asked = parser.parse_args()
    if asked.command == "steps":
        steps(asked.size, asked.images, asked.rounds)
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
