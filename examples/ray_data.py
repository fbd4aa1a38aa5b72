"""Ask a model about a folder of images as a Ray Data job: a row of Parquet for each image.

    python examples/ray_data.py MODEL IMAGES OUT [--actors 8] [--cores 1] [--gpus 0] [--batch 64]

MODEL: whatever `bit predict` takes. IMAGES: what `ray.data.read_binary_files` takes, such as a folder or an address in an object store.
Ray decides which actor gets which images, moves them and repeats what was lost; each actor holds the model once. On one machine without a
cluster the same program starts Ray by itself.

Without Ray `bit predict --out FOLDER/` under torchrun does the same, and promises more (docs/many-images.md).
"""

from __future__ import annotations

import argparse
from typing import Any

import pyarrow
import ray
import torch

from bigtransfer import Predictor

SCHEMA = pyarrow.schema(
    [
        ("image", pyarrow.string()),
        ("label", pyarrow.string()),
        ("probability", pyarrow.float64()),
        ("error", pyarrow.string()),
    ]
)
"""Told, not guessed: of a batch without an error Ray would make a column without a type, and of another one another."""


class Answers:
    """An actor: the model, loaded once, and what it makes of a batch."""

    def __init__(self, model: str, cores: int) -> None:
        torch.set_num_threads(cores)
        self.predictor = Predictor.load(model)

    def __call__(self, batch: dict[str, Any]) -> pyarrow.Table:
        """batch: columns "path" and "bytes". An image that cannot be read has an "error", and neither label nor probability."""
        found = self.predictor.predict(zip(batch["path"], batch["bytes"], strict=True), batch_size=len(batch["path"]))
        rows = [(one.name, one.label, one.probability, one.error) for one in found]
        return pyarrow.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def answers(
    model: str, images: str, *, actors: int = 1, cores: int = 1, gpus: float = 0, batch: int = 64
) -> ray.data.Dataset:
    """The data set of answers, which is computed when it is asked for."""
    return ray.data.read_binary_files(images, include_paths=True).map_batches(
        Answers,
        fn_constructor_args=(model, cores),
        batch_size=batch,
        concurrency=actors,
        num_cpus=cores,
        num_gpus=gpus,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "images", "out"):
        parser.add_argument(name)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1, help="of each actor")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    how = {"actors": asked.actors, "cores": asked.cores, "gpus": asked.gpus, "batch": asked.batch}
    answers(asked.model, asked.images, **how).write_parquet(asked.out)


if __name__ == "__main__":
    main()
