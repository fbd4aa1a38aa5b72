"""What a pre-trained model makes of its own upstream: top-1 at several input sizes, and how its training went.

    python -m benchmarks.upstream MODEL TINY_IMAGENET --run RUN --commit COMMIT --out benchmarks/results/upstream_NAME_DATE.md

MODEL: the file as it is shipped (float16). RUN: the run folder of its training, for the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
from pathlib import Path

import torch

import bigtransfer
from bigtransfer import data, evals, runs, weights
from bigtransfer.evals.metrics import Classification
from bigtransfer.feed.augment import normalize
from bigtransfer.feed.loader import eval_batches
from bigtransfer.jobs.pretrain import readable_names
from bigtransfer.model import ResNetV2


def measured(model: ResNetV2, folder: str, size: int, every: int) -> Classification:
    """The model on every `every`th validation image at an input size."""
    splits = data.open_dataset(folder)
    images = splits.val
    assert images is not None
    names = readable_names(images.class_names, str(Path(folder) / "classes.tsv"))
    assert names == model.card.class_names, "the classes must be the model's, in its order"
    images = images.subset(range(0, len(images), every))
    spec = dataclasses.replace(model.card.input, size=size)

    @torch.inference_mode()
    def logits(batch: torch.Tensor) -> torch.Tensor:
        return model(normalize(batch, torch.float32))

    return evals.evaluate(logits, eval_batches(images, spec, 128), model.num_classes)


def training_log(run: Path) -> list[str]:
    """How the loss and the accuracy went, from metrics.jsonl."""
    lines = runs.read_metrics(run / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    rates = [line["images_per_second"] for line in steps]
    config = json.loads((run / "config.json").read_text())
    batch = config["recipe"]["batch_size"]
    rows = [
        f"- {len(steps):,} steps of {batch} images, {sum(batch / rate for rate in rates) / 60:.0f} minutes of steps, "
        f"{statistics.median(rates):.0f} images/s (median; lowest tenth {sorted(rates)[len(rates) // 10]:.0f}); "
        f"{config['environment']['threads']} thread, torch {config['environment']['torch']}, {config['resolved']['dtype']}",
        "",
        "| step | loss, mean of 100 steps | learning rate | validation top-1 (training weights) |",
        "|---|---|---|---|",
    ]
    top1 = {line["step"]: line["val/top1"] for line in lines if "val/top1" in line}
    for step, value in top1.items():
        window = [line["loss"] for line in steps if step - 100 < line["step"] <= step]
        rate = next(line["lr"] for line in steps if line["step"] == step)
        rows.append(f"| {step + 1:,} | {statistics.fmean(window):.3f} | {rate:.3g} | {value:.1%} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="of the code that trained it")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[40, 48, 56, 64], help="input sizes (default 40 48 56 64)"
    )
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    model = weights.load(chosen.model)
    card = model.card
    whole = measured(model, chosen.data, card.input.size, 1)
    low, high = whole.top1_interval
    lines = [
        f"# {card.name} upstream: {card.upstream}",
        "",
        f"The shipped file ({chosen.model.stat().st_size / 1e6:.1f} MB), all {len(whole):,} validation images at "
        f"{card.input.size} px, float32:",
        f"**top-1 {whole.top1:.2%}** (95 % interval {low:.2%} to {high:.2%}), top-5 {whole.top5:.2%}, negative log-likelihood "
        f"{whole.nll:.3f}, calibration error {whole.ece:.2%}.",
        "",
        "## Other input sizes",
        "",
        "Every fourth validation image.",
        "",
        f"| input | {' | '.join(f'{size} px' for size in chosen.sizes)} |",
        "|---|" + "---|" * len(chosen.sizes),
    ]
    results = [measured(model, chosen.data, size, 4) for size in chosen.sizes]
    lines.append(f"| top-1 | {' | '.join(f'{result.top1:.1%}' for result in results)} |")
    lines.append(f"| negative log-likelihood | {' | '.join(f'{result.nll:.2f}' for result in results)} |")
    lines += ["", "## Training", "", f"- code of commit {chosen.commit}; `{card.source}`", *training_log(chosen.run)]
    cpu = next(
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    )
    lines += [
        "",
        f"- command: `python -m benchmarks.upstream MODEL TINY_IMAGENET --run RUN --commit {chosen.commit} --sizes "
        f"{' '.join(map(str, chosen.sizes))} --out OUT`",
        f"- {datetime.date.today()}, {cpu}, {os.cpu_count()} cores, torch {torch.__version__}, bigtransfer {bigtransfer.__version__}",
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
