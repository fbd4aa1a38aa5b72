"""Images with boxes: data sets in the layouts of COCO, PASCAL VOC and YOLO, checked once and the same from then on.

    data.boxes.open_boxes("blood/") -> BoxSplits of BoxSets

`coco`, `voc` and `yolo` say what the files say (`written.Found`); here it is compared with the images and with itself. Boxes are
`(left, top, right, bottom)` in px of the upright image, from its upper left corner, 0 <= left < right <= width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtransfer.data.boxes import coco, voc, yolo
from bigtransfer.data.boxes.written import Found, Written
from bigtransfer.data.layout import listed, quoted
from bigtransfer.data.sources import Files, ImageSet, LeftOut
from bigtransfer.errors import DataError, ImageError, UnreadableImages
from bigtransfer.limits import limits

__all__ = ["BoxSet", "BoxSplits", "hold_out", "matched", "open_boxes"]

_SHOWN = 5
"""Bad boxes that an error shows."""


@dataclass(frozen=True, eq=False)
class BoxSet:
    """Images with the objects on them; picklable."""

    images: ImageSet
    """Without labels of their own."""
    sizes: np.ndarray
    """int64 (n, 2): height and width of each upright image, px."""
    starts: np.ndarray
    """int64 (n + 1,): image i has the objects starts[i] ... starts[i + 1] - 1."""
    boxes: np.ndarray
    """float32 (objects, 4), px."""
    labels: np.ndarray
    """int64 (objects,): places in `class_names`."""
    crowd: np.ndarray
    """bool (objects,): neither learnt nor counted (COCO's crowds, VOC's difficult ones)."""
    areas: np.ndarray
    """float32 (objects,), px: of COCO's outlines where the files say them, else of the boxes. Decides what is small, medium and large."""
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def of(self, i: int) -> slice:
        """The objects of image `i`."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def subset(self, indices: Sequence[int] | np.ndarray) -> BoxSet:
        """The images at those indices, in that order, with their objects."""
        indices = np.asarray(indices, dtype=np.int64)
        counts = self.starts[indices + 1] - self.starts[indices]
        places = np.concatenate([np.arange(0), *(np.arange(*self.starts[i : i + 2]) for i in indices.tolist())])
        return dataclasses.replace(
            self,
            images=self.images.subset(indices),
            sizes=self.sizes[indices],
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=self.boxes[places],
            labels=self.labels[places],
            crowd=self.crowd[places],
            areas=self.areas[places],
        )

    def with_classes(self, labels: np.ndarray, class_names: tuple[str, ...]) -> BoxSet:
        """The same with classes in another order: `labels[old]` is the new number of a class."""
        return dataclasses.replace(
            self, labels=np.asarray(labels, dtype=np.int64)[self.labels], class_names=class_names
        )

    def class_counts(self) -> np.ndarray:
        """int64 (classes,): objects of each class, without crowds."""
        return np.bincount(self.labels[~self.crowd], minlength=len(self.class_names))

    def fingerprint(self) -> str:
        """SHA-256 of the images' names and bytes on the disk, and of all objects: another one where what is learnt is another."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        digest.update(repr(self.class_names).encode(errors="surrogateescape"))
        for array in (self.starts, self.boxes, self.labels, self.crowd):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class BoxSplits:
    """The parts of a data set; all share one tuple of class names."""

    train: BoxSet
    val: BoxSet | None = None
    test: BoxSet | None = None
    form: str = ""
    """ "COCO", "PASCAL VOC" or "YOLO"."""
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def parts(self) -> dict[str, BoxSet]:
        """Those that there are, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {part: boxes for part, boxes in named.items() if boxes is not None}


def open_boxes(
    data: str | os.PathLike[str], *, skip_bad_boxes: bool = False, skip_bad_images: bool = False
) -> BoxSplits:
    """The data set in a folder of COCO's, VOC's or YOLO's layout, or of one COCO file.

    Every image's header is read (its pixels are not): boxes are compared with its size. What is done with odd boxes:

    no width or no height   left out, and their number told (COCO's own files hold some)
    over the edge           cut there, and their number told
    no number or infinite, turned round (right of them left), wholly outside of the image
                            DataError, or with `skip_bad_boxes` left out and listed
    crowds, difficult ones  kept, marked

    Raises DataError too for classes and images that are not there, and more objects on an image than `limits.image_boxes`;
    UnreadableImages where files are missing or none, unless `skip_bad_images`.
    """
    found = _found(Path(data))
    if not any(len(own) for own in found.parts.values()):
        raise DataError(f"{data}, of {found.form}'s layout, has no images.")
    if not found.class_names:
        raise DataError(f"{data}, of {found.form}'s layout, has no objects: there is nothing to find.")
    notes, left_out, parts = list(found.notes), [], {}
    for split, own in found.parts.items():
        if own:
            parts[split], of_part, gone = _checked(found, split, own, skip_bad_boxes, skip_bad_images)
            notes += of_part
            left_out += gone
    if "train" not in parts:
        if len(parts) > 1:
            raise DataError(f"{data} has {listed(parts)} but no train part.")
        parts = {"train": next(iter(parts.values()))}  # given by itself, to be measured on
    return BoxSplits(**parts, form=found.form, notes=tuple(notes), left_out=tuple(left_out))


def hold_out(boxes: BoxSet, fraction: float, seed: int) -> tuple[BoxSet, BoxSet]:
    """(train, val): a part of the images drawn at random, at least one, is held out. DataError where fewer than two images are there."""
    if len(boxes) < 2:
        raise DataError("One image cannot be divided into some to learn from and some to be measured on.")
    count = min(len(boxes) - 1, max(1, round(fraction * len(boxes))))
    drawn = np.random.default_rng(seed).permutation(len(boxes))
    return boxes.subset(np.sort(drawn[count:])), boxes.subset(np.sort(drawn[:count]))


def _found(data: Path) -> Found:
    try:
        if data.is_file() and data.suffix.lower() == ".json":
            return coco.read(data.parent, {"train": data})
        if data.is_file() and data.suffix.lower() in (".yaml", ".yml"):
            data = data.parent
        if not data.is_dir():
            what = "is no folder" if data.exists() else "does not exist"
            raise DataError(f"{data} {what}. {_FORMS}")
        if files := coco.files(data):
            return coco.read(data, files)
        if xml := voc.parts(data):
            return voc.read(data, xml)
        if folders := yolo.parts(data):
            return yolo.read(data, folders)
        inner = [path for path in data.iterdir() if path.is_dir()]
    except OSError as error:
        raise DataError(f"{error.filename or data} cannot be read: {error.strerror}.") from error
    if len(inner) == 1 and not inner[0].is_symlink():
        return _found(inner[0])
    raise DataError(f"{data} holds no boxes in a layout that is known here. {_FORMS}")


_FORMS = (
    "Known are COCO (annotations/instances_train2017.json and train2017/, or a JSON file by itself), PASCAL VOC (Annotations/*.xml, "
    "JPEGImages/ and ImageSets/Main/train.txt, or XML files beside the images) and YOLO (images/train, labels/train and data.yaml)."
)


def _checked(
    found: Found, split: str, written: Sequence[Written], skip_bad_boxes: bool, skip_bad_images: bool
) -> tuple[BoxSet, list[str], list[LeftOut]]:
    images = ImageSet(Files(found.root, [one.path for one in written]), range(len(written)), None, ())
    sizes, errors = _sizes(images, written)
    if errors and not skip_bad_images:
        raise UnreadableImages(errors, len(images))
    left_out = [LeftOut(name=error.name, reason=error.reason) for error in errors]
    kept = np.flatnonzero(sizes[:, 0] > 0)
    if not len(kept):
        raise DataError(f"No image of {split} can be read. {UnreadableImages(errors, len(images))}")
    notes, bad, empty, over = [], [], 0, 0
    rows, starts = [], [0]
    for i in kept.tolist():
        one = written[i]
        if len(one.rows) > limits().image_boxes:
            raise DataError(
                f"{one.where}: {len(one.rows):,} objects on one image. If they are meant, raise the limit: --limits image_boxes=N."
            )
        height, width = sizes[i].tolist()
        # In float64: what a file says to the last digit is compared before it is rounded.
        boxes = np.array([row.box for row in one.rows], dtype=np.float64).reshape(-1, 4)
        if one.relative:
            boxes = boxes * [width, height, width, height]
        for number, (row, box) in enumerate(zip(one.rows, boxes, strict=True)):
            left, top, right, bottom = box.tolist()
            reason = _wrong(left, top, right, bottom, height, width)
            if reason:
                bad.append(
                    LeftOut(name=one.where, reason=f"object {number + 1} ({found.class_names[row.label]}) {reason}")
                )
                continue
            cut = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
            # YOLO's shares and VOC's counting from 1 are off by less than a pixel as a matter of course.
            over += max(cut[0] - left, cut[1] - top, right - cut[2], bottom - cut[3]) > 1
            if not (np.float32(cut[2]) > np.float32(cut[0]) and np.float32(cut[3]) > np.float32(cut[1])):
                empty += 1
                continue
            area = row.area
            if area is None or not 0 < area < np.inf:
                area = (cut[2] - cut[0]) * (cut[3] - cut[1])
            rows.append((cut, row.label, row.crowd, area))
        starts.append(len(rows))
    if bad and not skip_bad_boxes:
        shown = "\n".join(f"  {one.name}: {one.reason}" for one in bad[:_SHOWN])
        more = f"\n  ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{len(bad)} {'box' if len(bad) == 1 else 'boxes'} of {split} cannot be right:\n{shown}{more}\nMend the annotations, or pass "
            "--skip-bad-boxes to go on without them."
        )
    for count, what in (
        (empty, "without width or height are left out"),
        (over, "over the edge of their image are cut there"),
    ):
        if count:
            notes.append(f"{count:,} {'box' if count == 1 else 'boxes'} of {split} {what}.")
    crowd = np.array([row[2] for row in rows], dtype=bool)
    if crowd.any():
        notes.append(f"{int(crowd.sum()):,} objects of {split} are crowds or difficult: neither learnt nor counted.")
    return (
        BoxSet(
            images=images.subset(kept),
            sizes=sizes[kept],
            starts=np.array(starts, dtype=np.int64),
            boxes=np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4),
            labels=np.array([row[1] for row in rows], dtype=np.int64),
            crowd=crowd,
            areas=np.array([row[3] for row in rows], dtype=np.float32),
            class_names=found.class_names,
        ),
        notes,
        left_out + bad,
    )


def _wrong(left: float, top: float, right: float, bottom: float, height: int, width: int) -> str:
    """What cannot be about a box, in words; "" if nothing."""
    shown = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not all(np.isfinite((left, top, right, bottom))):
        return f"has a side that is no finite number: {shown}"
    if right < left or bottom < top:
        return f"is turned round: {shown} as left, top, right, bottom"
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return f"lies outside of the image of {width} x {height} px: {shown}"
    return ""


def _sizes(images: ImageSet, written: Sequence[Written]) -> tuple[np.ndarray, list[ImageError]]:
    """Height and width of each image, int64 (n, 2), 0 of those that are not to be had or are of another size than their annotations say."""

    def size(i: int) -> tuple[int, int] | ImageError:
        try:
            found = images.size(i)
        except ImageError as error:
            return ImageError(error.name, error.reason)
        stated = written[i].size
        if stated is not None and found != stated:
            turned = ", as it is stored before its EXIF orientation turns it" if found == stated[::-1] else ""
            return ImageError(
                images.name(i),
                f"it is {found[1]} x {found[0]} px, its annotations are for {stated[1]} x {stated[0]}{turned}: their boxes would be "
                "somewhere else",
            )
        return found

    sizes, errors = np.zeros((len(images), 2), dtype=np.int64), []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, found in enumerate(pool.map(size, range(len(images)), chunksize=64)):
            if isinstance(found, ImageError):
                errors.append(found)
            else:
                sizes[i] = found
    return sizes, errors


def matched(boxes: BoxSet, class_names: Sequence[str], where: str) -> BoxSet:
    """The same with the classes numbered as a model's. DataError, which names them, for classes that the model does not know."""
    known = {name: label for label, name in enumerate(class_names)}
    present = {boxes.class_names[label] for label in np.unique(boxes.labels).tolist()}
    if unknown := sorted(present - known.keys()):
        raise DataError(
            f"{where} has objects of classes that the model does not know: {listed(map(quoted, unknown))}. It knows "
            f"{listed(map(quoted, class_names))}."
        )
    return boxes.with_classes(
        np.array([known.get(name, 0) for name in boxes.class_names], dtype=np.int64), tuple(class_names)
    )
