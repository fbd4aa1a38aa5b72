"""Writing shards with an index: a data set of any form, in a form that is opened at once and read in long pieces (`index` reads it).

What is under way lies in the folder as hidden files: `.plan.json` (what was asked), `.journal.jsonl` (one line per finished shard) and
arrays that are filled as shards are. A shard is renamed into place before its line is written, so that a killed command repeats at most
one shard; index.json comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

import bigtransfer
from bigtransfer import records, runs
from bigtransfer.config import ShardConfig
from bigtransfer.data import images, index
from bigtransfer.data.index import Index, IndexedSplit, NotNegative, Raw, Shard, Stated
from bigtransfer.data.sources import ImageSet, Splits
from bigtransfer.errors import DataError, ImageError, RunError, UnreadableImages
from bigtransfer.machine import usable_cores

_BLOCK = 512
"""Of tar files, bytes."""
_AHEAD = 8
"""Images per thread that are prepared before they are written."""
_MIXED_RUNS = 32
"""Files of a source whose images are mixed with one another, where reading in random order would read each file over and over."""
_PIECE = 1 << 20
"""Images whose numbers are in memory at a time."""
_ARRAYS = {"offsets": "int64", "lengths": "uint32", "places": "int64"}
"""What is kept of each image while shards are written; its place is that in the order of writing."""
_OF_RAW = {"heights": "uint32", "widths": "uint32"}
"""The same of raw records."""
SHARD_MB = 256.0
_JPEG_SIDE = 65_500
"""Pixels that a side of a JPEG file may have, in libjpeg."""
_JOURNAL = ".journal.jsonl"


def write(
    folder: Path, splits: Splits, config: ShardConfig, progress: Callable[[int], Any], raw: Raw | None = None
) -> Index:
    """The data set as shards in `folder`; those that are there already and undamaged are kept.

    raw: the form of raw records instead of image files. progress: given the number of images, a bar as tqdm's.
    RunError if the folder holds something else, or there is no room.
    UnreadableImages if an image cannot be decoded and is not to be left out.
    """
    try:
        return _write(folder, splits, config, progress, raw)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(
            f"Cannot write shards into {folder}: {error.strerror}. Make room; the same command then goes on."
        ) from error


def _write(folder: Path, splits: Splits, config: ShardConfig, progress: Callable[[int], Any], raw: Raw | None) -> Index:
    parts = {name: part for name in index.SPLITS if (part := getattr(splits, name)) is not None}
    plan = _plan(parts, config)
    if raw is not None:
        plan["raw"] = dataclasses.asdict(raw)
    before, finished = _earlier(folder, plan)
    written = {name: _Split(folder, name, part, config, before.get(name, _Done()), raw) for name, part in parts.items()}
    if not finished:
        runs.write_json(folder / index.PLAN, plan)
    total = sum(map(len, parts.values()))
    with ThreadPoolExecutor(config.threads or usable_cores()) as pool, progress(total) as bar:
        for split in written.values():
            split.repair(pool, bar)
            if not finished:
                split.go_on(pool, bar)
    if finished:
        for name, part in Index.read(folder / "index.json", str(folder / "index.json")).splits.items():
            written[name].restore(part)
    else:
        _finish(folder, config, splits.train.class_names, plan, written, raw)
    for file in (*folder.glob(".*.npy"), folder / index.PLAN, folder / _JOURNAL):
        file.unlink(missing_ok=True)
    return Index.read(folder / "index.json", str(folder / "index.json"))


def _finish(
    folder: Path,
    config: ShardConfig,
    class_names: tuple[str, ...],
    plan: dict[str, Any],
    written: dict[str, _Split],
    raw: Raw | None,
) -> None:
    """Write what stands beside the shards, and last the index."""
    made = Index(
        class_names=class_names,
        splits={name: split.finish() for name, split in written.items()},
        made={
            "by": f"bigtransfer {bigtransfer.__version__}, Pillow {Image.__version__}",
            "from": config.source,
            "plan": plan,
            "skipped": {name: split.done.skipped for name, split in written.items()},
        },
        raw=raw,
    )
    if unreadable := [one for split in written.values() for one in split.done.unreadable]:
        runs.write_json(folder / "unreadable.json", unreadable)
    made.write(folder / "index.json")


def _plan(parts: dict[str, ImageSet], config: ShardConfig) -> dict[str, Any]:
    """All that decides what the shards hold; two plans that are equal give the same files."""
    asked = {
        name: getattr(config, name) for name in ("resize", "quality", "shuffle", "seed", "shard_mb", "shard_images")
    }
    return {**asked, "images": {name: _fingerprint(part) for name, part in parts.items()}}


def _fingerprint(part: ImageSet) -> str:
    """Number, classes and labels of the images, and some of their names."""
    digest = hashlib.sha256(json.dumps([len(part), part.class_names]).encode())
    if part.labels is not None:
        digest.update(np.ascontiguousarray(part.labels, dtype=np.int32).tobytes())
    for i in np.linspace(0, len(part) - 1, min(len(part), 1000)).astype(np.int64):
        digest.update(part.name(int(i)).encode(errors="surrogateescape") + b"\0")
    return f"{len(part)}-{digest.hexdigest()[:16]}"


@dataclass
class _Done:
    """What is finished of a split."""

    shards: list[Shard] = dataclasses.field(default_factory=list)
    skipped: list[int] = dataclasses.field(default_factory=list)
    """Places, in the order of writing, of the images that cannot be read."""
    unreadable: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Their names and reasons."""
    images: int = 0

    def add(self, shard: Shard | None, skipped: Sequence[_Skipped]) -> None:
        self.skipped += [one.place for one in skipped]
        self.unreadable += [{"name": one.name, "reason": one.reason} for one in skipped]
        if shard is not None:
            self.shards.append(shard)
            self.images += shard.images


@dataclass(frozen=True)
class _Sample:
    """One image as it will stand in a shard, or why it cannot."""

    place: int
    content: bytes = b""
    ending: str = ""
    label_ending: str = ""
    label: bytes = b""
    error: ImageError | None = None
    native: tuple[int, int] = (0, 0)
    """Height and width of the image that a raw record is made of."""

    @property
    def size(self) -> int:
        """Bytes in a tar file."""
        return sum(_BLOCK + len(part) + -len(part) % _BLOCK for part in (self.content, self.label) if part)


class _Peekable:
    """Samples of which the next one can be looked at."""

    def __init__(self, samples: Iterator[_Sample]) -> None:
        self._samples = samples
        self.advance()

    def advance(self) -> None:
        self.next = next(self._samples, None)


@dataclass
class _Written:
    """What a shard was made of."""

    rows: dict[str, list[int]]
    """For each of its images, what goes into the arrays."""
    bad: list[_Sample]
    shard: Shard | None


def _earlier(folder: Path, plan: dict[str, Any]) -> tuple[dict[str, _Done], bool]:
    """What an earlier command has finished, and whether that is all. RunError if it was another command."""
    done: dict[str, _Done] = {}
    if (folder / "index.json").is_file():
        found = Index.read(folder / "index.json", str(folder / "index.json"))
        made = records.convert(dict(found.made), _Made, f"{folder / 'index.json'}: made", RunError)
        _same(folder, made.plan, plan)
        for split, part in found.splits.items():
            done[split] = _Done(list(part.shards), made.skipped.get(split, []), images=part.images)
        return done, True
    if not (folder / index.PLAN).is_file():
        if others := [path.name for path in folder.iterdir() if not path.name.startswith(".")]:
            raise RunError(f"{folder} is not empty ({others[0]}). Choose an empty or a new folder.")
        return done, False
    before = records.read(folder / index.PLAN, dict[str, Any], RunError)
    _same(folder, before, plan)
    lines = [
        records.convert(line, _Line, f"{folder / _JOURNAL}, line {number}", RunError)
        for number, line in enumerate(_journal(folder / _JOURNAL), start=1)
    ]
    with runs.atomic_write(folder / _JOURNAL) as temporary:  # without a last line that was cut off
        text = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
    for line in lines:
        done.setdefault(line.split, _Done()).add(line.shard, line.skipped)
    return done, False


def _journal(path: Path) -> list[Any]:
    """The lines of the journal, without one that was cut off."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


@dataclass
class _Made:
    """What `Index.made` holds for a command that is given again."""

    plan: dict[str, Any]
    skipped: dict[str, list[NotNegative]]


@dataclass
class _Skipped:
    """An image that is left out, and its place in the order of writing."""

    place: NotNegative
    name: str
    reason: str


@dataclass
class _Line:
    """A line of the journal."""

    split: Literal["train", "val", "test"]
    shard: Shard | None
    skipped: list[_Skipped]


def _same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = [
        f"{_flag(key)} {before.get(key)!r} then, {value!r} now" if key != "images" else "the images are others"
        for key in {**now, **before}
        if before.get(key) != (value := now.get(key))
    ]
    if different:
        raise RunError(
            f"{folder} holds shards of another command: {'; '.join(different)}. Choose another folder, or remove it."
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _Split:
    """One split on its way into shards."""

    def __init__(
        self, folder: Path, name: str, images: ImageSet, config: ShardConfig, done: _Done, raw: Raw | None
    ) -> None:
        self.folder, self.name, self.images, self.config, self.done, self.raw = folder, name, images, config, done, raw
        self.kinds = _ARRAYS if raw is None else _ARRAYS | _OF_RAW
        self.order = _order(images, config.seed) if config.shuffle else np.arange(len(images))

    def repair(self, pool: ThreadPoolExecutor, bar: Any) -> None:
        """Write those finished shards again that are not what they were."""
        row = 0
        for shard, damage in zip(
            self.done.shards, pool.map(lambda shard: damage_of(self.folder, shard), self.done.shards), strict=True
        ):
            if damage is not None:
                samples = _Peekable(self._samples(pool, self._kept()[row : row + shard.images]))
                written = self._write(shard.name, samples, row, lambda: None)
                if written.shard != shard:
                    (self.folder / shard.name).unlink(missing_ok=True)
                    raise RunError(
                        f"{self.folder / shard.name} {damage}, and what is written in its place now differs from what was there: "
                        f"the images have changed, or the version of Pillow. Remove {self.folder} and write it anew."
                    )
                bar.write(f"{self.folder / shard.name} {damage}; written again.")
            row += shard.images
            bar.update(shard.images)

    def restore(self, part: IndexedSplit) -> None:
        """Write the arrays of a finished split again, from its shards, if one of them is not what it was."""
        if all(damage_of(self.folder, array) is None for array in part.arrays.values()):
            return
        arrays = {kind: self._array(kind, dtype, new=True) for kind, dtype in self.kinds.items()}
        arrays["places"][: self.done.images] = self._kept()
        row = 0
        for shard in self.done.shards:
            with tarfile.open(self.folder / shard.name) as tar:
                members = [member for member in tar if not member.name.endswith((".cls", ".json"))]
            arrays["offsets"][row : row + shard.images] = [member.offset_data for member in members]
            arrays["lengths"][row : row + shard.images] = [member.size for member in members]
            row += shard.images
        if self.raw is not None:
            for row, place in enumerate(self._kept()):
                arrays["heights"][row], arrays["widths"][row] = self.images.size(int(self.order[place]))
        if self.finish() != part:
            raise RunError(
                f"The arrays in {self.folder} are damaged and cannot be restored. Remove it and write it anew."
            )

    def go_on(self, pool: ThreadPoolExecutor, bar: Any) -> None:
        """Write the shards that are not there yet."""
        start = self.done.images + len(self.done.skipped)  # every place up to there was either written or skipped
        samples = _Peekable(self._samples(pool, np.arange(start, len(self.order))))
        arrays = {kind: self._array(kind, dtype, new=start == 0) for kind, dtype in self.kinds.items()}
        while samples.next is not None:
            row = self.done.images
            written = self._write(f"{self.name}-{len(self.done.shards):06d}.tar", samples, row, bar.update)
            for kind, array in arrays.items():
                array[row : row + len(written.rows[kind])] = written.rows[kind]
                array.flush()
            skipped = [
                _Skipped(one.place, one.error.name, one.error.reason) for one in written.bad if one.error is not None
            ]
            with open(self.folder / _JOURNAL, "a", encoding="utf-8") as file:
                line = {"split": self.name, "shard": written.shard, "skipped": skipped}
                file.write(json.dumps(line, default=dataclasses.asdict) + "\n")
            self.done.add(written.shard, skipped)
        if not self.done.images:
            raise DataError(f"No image of {self.name} can be read; the first: {self.done.unreadable[0]}.")

    def finish(self) -> IndexedSplit:
        """The arrays beside the shards, and what the index says of them all."""
        count = self.done.images
        whole = {kind: self._array(kind, dtype, new=False) for kind, dtype in self.kinds.items()}
        stated = {}
        for kind in (kind for kind in self.kinds if kind != "places"):
            stated[kind] = self._save(kind, lambda start, stop, array=whole[kind]: array[start:stop], (count,))
        source = whole["places"]
        if (labels := self.images.labels) is not None:
            stated["labels"] = self._save(
                "labels",
                lambda start, stop: labels[self.order[source[start:stop]]].astype(np.int32),
                (count, *labels.shape[1:]),
            )
        with (
            runs.atomic_write(self.folder / f"{self.name}.names.txt") as temporary,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file,
        ):
            for place in source[:count]:
                file.write(self.images.name(int(self.order[place])).replace("\n", "\\n") + "\n")
        return IndexedSplit(shards=tuple(self.done.shards), arrays=stated)

    def _save(self, kind: str, values: Callable[[int, int], np.ndarray], shape: tuple[int, ...]) -> Stated:
        """`<split>.<kind>.npy`, piece by piece."""
        path = self.folder / f"{self.name}.{kind}.npy"
        with runs.atomic_write(path) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=values(0, 1).dtype, shape=shape)
            for start in range(0, shape[0], _PIECE):
                array[start : start + _PIECE] = values(start, min(start + _PIECE, shape[0]))
            array.flush()
        return Stated(name=path.name, bytes=path.stat().st_size, sha256=_sha256(path))

    def _array(self, kind: str, dtype: str, *, new: bool) -> np.memmap:
        """The hidden array that is filled as shards are written."""
        path = self.folder / f".{self.name}.{kind}.npy"
        if new:
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(self.order),))
        if not path.is_file():
            raise RunError(f"{path} is gone, so that this cannot go on. Remove {self.folder} and write it anew.")
        return np.lib.format.open_memmap(path, mode="r+")

    def _kept(self) -> np.ndarray:
        """Places of the images that are or will be in shards, as far as is known which ones cannot be read."""
        return np.delete(np.arange(len(self.order)), self.done.skipped)

    def _samples(self, pool: ThreadPoolExecutor, places: np.ndarray) -> Generator[_Sample, None, None]:
        """The images at those places of the order, prepared ahead of time by threads."""
        ahead: deque[Future[_Sample]] = deque()
        for place in places:
            ahead.append(pool.submit(self._sample, int(place)))
            if len(ahead) >= _AHEAD * (self.config.threads or usable_cores()):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _sample(self, place: int) -> _Sample:
        i = int(self.order[place])
        try:
            if self.raw is None:
                content, ending, native = *_encoded(self.images, i, self.config), (0, 0)
            else:
                content, ending = self.images.read(i, self.raw.input).tobytes(), self.raw.ending
                native = self.images.size(i)
        except ImageError as error:
            return _Sample(place, error=ImageError(self.images.name(i), error.reason))
        if self.images.labels is None:
            return _Sample(place, content, ending, native=native)
        label = self.images.labels[i]
        if label.ndim:
            text = json.dumps({"label": [int(one) for one in label if one >= 0]})
            return _Sample(place, content, ending, "json", text.encode(), native=native)
        return _Sample(place, content, ending, "cls", str(int(label)).encode(), native=native)

    def _write(self, name: str, samples: _Peekable, first: int, advance: Callable[[], object]) -> _Written:
        """One shard of the next samples, as many as belong into it, of which the first good one gets the number `first`. advance: called
        for each."""
        most = self.config.shard_images or len(self.order)
        room = float("inf") if self.config.shard_images else (self.config.shard_mb or SHARD_MB) * 1e6
        written = _Written({kind: [] for kind in self.kinds}, [], None)
        path = self.folder / name
        with runs.atomic_write(path) as temporary:
            with open(temporary, "wb") as file:
                tar = _Tar(file)
                images = 0
                while (sample := samples.next) is not None:
                    if sample.error is None and images and (images == most or tar.size + sample.size > room):
                        break
                    samples.advance()
                    advance()
                    if sample.error is not None:
                        if not self.config.skip_bad_images:
                            raise UnreadableImages([sample.error], len(self.order))
                        written.bad.append(sample)
                        continue
                    key = f"{first + images:0{index.KEY_DIGITS}d}"
                    written.rows["offsets"].append(tar.add(f"{key}.{sample.ending}", sample.content))
                    written.rows["lengths"].append(len(sample.content))
                    written.rows["places"].append(sample.place)
                    if self.raw is not None:
                        written.rows["heights"].append(sample.native[0])
                        written.rows["widths"].append(sample.native[1])
                    if sample.label:
                        tar.add(f"{key}.{sample.label_ending}", sample.label)
                    images += 1
                tar.close()
            written.shard = Shard(name=name, images=images, bytes=tar.size, sha256=tar.digest.hexdigest())
        if not images:  # all that was left is bad
            path.unlink()
            written.shard = None
        return written


class _Tar:
    """A tar file that is written, member by member (POSIX ustar), and hashed on the way. The same members give the same bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def add(self, name: str, content: bytes) -> int:
        """Where the member's content begins, bytes."""
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        start = self.size
        self._put(content)
        self._put(bytes(-len(content) % _BLOCK))
        return start

    def close(self) -> None:
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self.size % tarfile.RECORDSIZE))

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.size += len(content)


def _encoded(part: ImageSet, i: int, config: ShardConfig) -> tuple[bytes, str]:
    """The image file to store for image `i`, and its ending. ImageError if the image cannot be decoded."""
    name = part.name(i)
    if not part.store.encoded:
        pixels = part.read(i)
        if config.resize is not None and min(pixels.shape[:2]) > config.resize:
            return _shrunk(pixels, config.resize, config.quality)
        return _saved(pixels, "PNG"), "png"
    content = part.data(i)
    if config.resize is not None and min(images.size(content, name)) > config.resize:
        # JPEG may decode at a fraction of its size as long as twice the wanted one is left for the filter.
        pixels = images.decode(content, name, part.channels, at_least=(2 * config.resize, 2 * config.resize))
        return _shrunk(pixels, config.resize, config.quality)
    images.decode(content, name, part.channels)
    with Image.open(io.BytesIO(content), formats=images.formats()) as image:
        return content, _ENDINGS.get(str(image.format), str(image.format).lower())


_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "HEIF": "heic", "JPEG2000": "jp2"}
"""Of formats, where it is not their name."""


def _shrunk(pixels: images.Pixels, side: int, quality: int) -> tuple[bytes, str]:
    """The picture with its shorter side at `side` px, as a JPEG file; as a PNG file where it is longer than JPEG can say."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    small = images.resize(pixels, max(side, round(height * scale)), max(side, round(width * scale)), "bicubic")
    if max(small.shape[:2]) > _JPEG_SIDE:
        return _saved(small, "PNG"), "png"
    return _saved(small, "JPEG", quality=quality), "jpg"


def _saved(pixels: images.Pixels, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, kind, **options)
    return file.getvalue()


def _order(part: ImageSet, seed: int) -> np.ndarray:
    """The images in the order of writing, int64 (n,): at random; but of what lies together in large files, a few of these at a time."""
    generator = np.random.default_rng(seed)
    if part.runs is None:
        return generator.permutation(len(part))
    ranges = [np.arange(start, stop) for start, stop in zip(part.runs, part.runs[1:], strict=False)]
    shuffled = generator.permutation(len(ranges))
    groups = (shuffled[first : first + _MIXED_RUNS] for first in range(0, len(ranges), _MIXED_RUNS))
    return np.concatenate([generator.permutation(np.concatenate([ranges[j] for j in group])) for group in groups])


def damage_of(folder: Path, stated: Stated) -> str | None:
    """What is wrong with a file, as the rest of a sentence; None: nothing."""
    path = folder / stated.name
    try:
        size = path.stat().st_size
        if size != stated.bytes:
            return f"has {size} bytes instead of {stated.bytes}"
        return None if _sha256(path) == stated.sha256 else "has another content than it should (SHA-256)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
