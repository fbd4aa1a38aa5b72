"""Miniature copies of the ImageNet family in their true layouts, and a bench that sees in an image what was coded into its pixels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtransfer import catalog
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.data import ImageSet
from bigtransfer.data import images as image_ops
from bigtransfer.suites.ilsvrc import lists
from bigtransfer.suites.protocol import Bench, Preparation
from tests.data_makers import encoded

WNIDS = catalog.wordnet_ids("imagenet-1k")


def coded(answer: int, place: int = 0, height: int = 24, width: int = 24) -> np.ndarray:
    """A picture that `CodedBench` takes for the class `answer`, after `place` others: the `place` numbers behind it are higher."""
    colour = [8 * (answer // 32) + 4, 8 * (answer % 32) + 4, 8 * place + 4]
    return np.full((height, width, 3), colour, np.uint8)


def file_of(answer: int, place: int = 0, **size: int) -> bytes:
    return encoded(coded(answer, place, **size), "JPEG", quality=100, subsampling=0)


class CodedBench(Bench):
    """Answers what is coded into the mean of all pixels of the prepared image, in batches of any size and order."""

    def __init__(
        self,
        parts: Mapping[str, ImageSet],
        *,
        names: Sequence[str] | None = None,
        outputs: int = 1000,
        size: int = 16,
        batch: int = 5,
        order: Sequence[int] | None = None,
    ) -> None:
        """names: WordNet identities of the outputs, in their order."""
        self.card = ModelCard(
            name="coded",
            architecture=Architecture(units=(1, 1, 1, 1)),
            num_classes=outputs,
            class_names=None if names is None else tuple(names),
            input=InputSpec(size=size),
        )
        self.device, self.seed, self.parts = torch.device("cpu"), 0, parts
        self._batch, self._order = batch, order
        if names is None:
            names = WNIDS if outputs == 1000 else catalog.wordnet_ids("imagenet-21k")
        self._output = {name: i for i, name in enumerate(names)}
        self.seen: list[np.ndarray] = []
        """Every prepared image."""

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = list(range(len(images)) if self._order is None else self._order)
        for start in range(0, len(order), self._batch):
            indices = order[start : start + self._batch]
            rows = [self._answer(image_ops.prepare(images.read(i), preparation.spec(self.card))) for i in indices]
            labels = torch.from_numpy(np.asarray(images.labels)[indices])
            yield torch.from_numpy(np.stack(rows)), labels, torch.tensor(indices)

    def _answer(self, pixels: np.ndarray) -> np.ndarray:
        self.seen.append(pixels)
        high, low, place = (int(value) // 8 for value in pixels.reshape(-1, 3).mean(axis=0))
        row = np.zeros(self.card.num_classes, np.float32)
        answer = min(32 * high + low, 999)
        for i in range(place + 1):
            if (output := self._output.get(WNIDS[(answer + i) % 1000])) is not None:
                row[output] = 1 + i
        return row


# --- ILSVRC-2012


VALIDATION = ((1, 65), (2, 970), (3, 230), (4, 809), (8, 415), (9, 674), (37, 850), (50, 999))
"""(number in the file's name, class) of some validation images; 850 stands for one whose ReaL labels are empty."""


def digest(images: Sequence[tuple[int, int]] = VALIDATION) -> str:
    lines = sorted(f"ILSVRC2012_val_{number:08d}\t{label}".encode() for number, label in images)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def flat(folder: Path, images: Sequence[tuple[int, int]] = VALIDATION) -> None:
    folder.mkdir(parents=True)
    for number, label in images:
        (folder / _name(number)).write_bytes(file_of(label))


def class_folders(folder: Path, images: Sequence[tuple[int, int]] = VALIDATION) -> None:
    for number, label in images:
        place = folder / WNIDS[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / _name(number)).write_bytes(file_of(label))


def torchvision(root: Path) -> None:
    class_folders(root / "val")


def original_extracted(root: Path) -> None:
    flat(root / "val")
    (root / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    (root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(ground_truth())


def original_packed(root: Path) -> None:
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, label in VALIDATION:
            _add(tar, _name(number), file_of(label))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        _add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", ground_truth().encode())


def ground_truth() -> str:
    """A line for each of the first fifty images, in the development kit's numbers."""
    known = dict(VALIDATION)
    return "".join(f"{lists()['devkit'][known.get(number, 0)]}\n" for number in range(1, 51))


def kaggle(root: Path) -> None:
    flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for number, label in VALIDATION:
            rows.writerow([_name(number).removesuffix(".JPEG"), f"{WNIDS[label]} 111 108 441 193 "])


def webdataset(root: Path, labels: Sequence[object] | None = None) -> None:
    root.mkdir()
    half = len(VALIDATION) // 2
    labels = [label for _, label in VALIDATION] if labels is None else labels
    for shard in range(2):
        with tarfile.open(root / f"imagenet-val-{shard:06d}.tar", "w") as tar:
            for i in range(shard * half, (shard + 1) * half):
                _add(tar, f"{i:08d}.jpg", file_of(VALIDATION[i][1]))
                _add(tar, f"{i:08d}.cls", str(labels[i]).encode())


def parquet(root: Path, names: Sequence[str] | None = None, labels: Sequence[int] | None = None) -> None:
    """names: the classes that the file declares, as Hugging Face's data sets do; None: none."""
    import pyarrow
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    labels = [label for _, label in VALIDATION] if labels is None else labels
    half = len(VALIDATION) // 2
    for part in range(2):
        chosen = VALIDATION[part * half : (part + 1) * half]
        rows = [
            {"bytes": file_of(label), "path": f"ILSVRC2012_val_{number:08d}_{WNIDS[label]}.JPEG"}
            for number, label in chosen
        ]
        table = pyarrow.table({"image": rows, "label": list(labels[part * half : (part + 1) * half])})
        if names is not None:
            features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pyarrow.parquet.write_table(table, root / "data" / f"validation-{part:05d}-of-00002.parquet")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


# --- ObjectNet


def bordered(pixels: np.ndarray) -> bytes:
    """A PNG with ObjectNet's border around the picture."""
    framed = np.full((pixels.shape[0] + 4, pixels.shape[1] + 4, 3), (255, 0, 0), np.uint8)
    framed[2:-2, 2:-2] = pixels
    alpha = np.full((*framed.shape[:2], 1), 255, np.uint8)
    return encoded(Image.fromarray(np.concatenate([framed, alpha], axis=2)))


def encrypted_zip(path: Path, members: Mapping[str, bytes], password: bytes) -> None:
    """A ZIP file encrypted in the traditional way (APPNOTE 6.1), which Python can read and not write: written plain, then its contents
    and the flags replaced, with the twelve bytes of the encryption's header before each content."""
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0xEDB88320 if number & 1 else 0)
        table.append(number)

    def encrypt(content: bytes) -> bytes:
        keys = [0x12345678, 0x23456789, 0x34567890]

        def update(byte: int) -> None:
            keys[0] = table[(keys[0] ^ byte) & 0xFF] ^ keys[0] >> 8
            keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
            keys[2] = table[(keys[2] ^ keys[1] >> 24) & 0xFF] ^ keys[2] >> 8

        for byte in password:
            update(byte)
        result = bytearray()
        for byte in content:
            key = (keys[2] | 2) & 0xFFFF
            result.append(byte ^ (key * (key ^ 1) >> 8 & 0xFF))
            update(byte)
        return bytes(result)

    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as packed:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            packed.writestr(entry, bytes(12) + content)
    data = bytearray(plain.getvalue())
    with zipfile.ZipFile(plain) as packed:
        entries = packed.infolist()
    at = data.index(b"PK\x01\x02")
    for entry, content in zip(entries, members.values(), strict=True):
        start = entry.header_offset + 30 + len(entry.filename)
        check = zlib.crc32(content)
        data[start : start + 12 + len(content)] = encrypt(bytes(11) + bytes([check >> 24]) + content)
        for flags, crc, size in ((entry.header_offset + 6, 14 - 6, 22 - 6), (at + 8, 16 - 8, 24 - 8)):
            data[flags] |= 1
            data[flags + crc : flags + crc + 4] = check.to_bytes(4, "little")
            data[flags + size : flags + size + 4] = len(content).to_bytes(4, "little")
        at += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)
    path.write_bytes(bytes(data))
