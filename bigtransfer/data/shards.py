"""Data sets in tar files: WebDataset shards, and a folder of class folders packed as it is."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from bigtransfer.data import images
from bigtransfer.data.layout import Found, Label, Part, from_paths, split_of, split_of_file
from bigtransfer.data.sources import TarFiles
from bigtransfer.data.tables import fingerprint
from bigtransfer.errors import DataError
from bigtransfer.runs import atomic_write

_COMPRESSED = {(".tar.gz", ".tgz"): gzip.open, (".tar.xz", ".txz"): lzma.open, (".tar.bz2", ".tbz2"): bz2.open}
TAR_ENDINGS = (".tar", *(ending for endings in _COMPRESSED for ending in endings))
_LABELS = ("cls", "json", "txt")
"""Endings that hold a WebDataset sample's label, best first."""


def expand(pattern: str) -> list[Path]:
    """The files of a pattern with `{000..009}`, `{a,b}`, `*`, `?` and `[...]`; DataError if one that is spelled out is not there."""
    paths: dict[Path, None] = {}
    for spelled in _braces(pattern):
        found = sorted(glob.glob(os.path.expanduser(spelled)))
        if not found:
            raise DataError(f"There is no file {spelled}.")
        paths.update(dict.fromkeys(map(Path, found)))
    return list(paths)


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        choices = match[3].split(",")
    else:
        first, last = match[1], match[2]
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [spelled for choice in choices for spelled in _braces(before + choice + after)]


def tar_files(paths: Sequence[Path], label_key: str | None, cache: Path) -> Found:
    """WebDataset shards if images lie beside *.cls, *.json or *.txt of the same key, else class folders packed into one tar file.

    Every tar file's directory is read once; after that each image is read where it lies. A compressed file is unpacked into the
    cache as a plain tar file the first time. `label_key`: the key of the label in `.json` members (None: `label`, else `cls`).
    """
    members: list[tuple[int, tarfile.TarInfo]] = []
    plain = [_uncompressed(path, cache) for path in paths]
    for number, path in enumerate(plain):
        try:
            with tarfile.open(path, "r:") as tar:
                members += ((number, member) for member in tar if member.isfile())
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{paths[number]} cannot be read as a tar file: {error}") from error
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    samples = _by_key(members)
    if any(_image_of(sample) and not sample.keys().isdisjoint(_LABELS) for sample in samples.values()):
        return _samples(paths, plain, samples, label_key, where)
    if len(paths) > 1:
        raise DataError(
            f"{where}: no image has a .cls, .json or .txt beside it, so these are not WebDataset shards with labels."
        )
    return _class_folders(plain[0], [member for _, member in members], where)


def _uncompressed(path: Path, cache: Path) -> Path:
    if not path.name.lower().endswith(TAR_ENDINGS[1:]):
        return path
    file = cache / "tar" / f"{fingerprint(path)}.tar"
    if not file.exists():
        unpack = next(unpack for endings, unpack in _COMPRESSED.items() if path.name.lower().endswith(endings))
        try:
            with atomic_write(file) as temporary, unpack(path) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
    return file


def _class_folders(tar: Path, members: Sequence[tarfile.TarInfo], where: str) -> Found:
    ignored: Counter[str] = Counter()
    kept = []
    for member in members:
        name = member.name.removeprefix("./")
        ending = os.path.splitext(name)[1].lower()
        if any(part.startswith(".") for part in name.split("/")) or "__MACOSX/" in name:
            ignored["hidden"] += 1
        elif ending in images.extensions():
            kept.append((name, member))
        else:
            ignored[ending or "no ending"] += 1
    kept.sort(key=lambda pair: pair[0])
    paths = [name for name, _ in kept]
    top = f"{paths[0].partition('/')[0]}/" if paths else "/"
    if split_of(top[:-1]) is None and all(path.startswith(top) and path.count("/") > 1 for path in paths):
        paths = [path.removeprefix(top) for path in paths]  # the folder that was packed
    store = TarFiles([tar], (0 for _ in kept), (m.offset_data for _, m in kept), (m.size for _, m in kept), paths)
    return from_paths(store, paths, (), ignored, where)


_Samples = dict[tuple[int, str], dict[str, tarfile.TarInfo]]
"""(number of the tar file, key) -> ending -> member."""


def _by_key(members: Sequence[tuple[int, tarfile.TarInfo]]) -> _Samples:
    """WebDataset's rule: members that share a key (the path up to the first dot of the file name) make one sample."""
    samples: _Samples = {}
    for number, member in members:
        folder, _, file = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = file.partition(".")
        if stem:
            samples.setdefault((number, f"{folder}/{stem}".lstrip("/")), {})[ending.lower()] = member
    return samples


def _image_of(sample: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    return next((member for ending, member in sample.items() if f".{ending}" in images.extensions()), None)


def _samples(
    paths: Sequence[Path], plain: Sequence[Path], samples: _Samples, label_key: str | None, where: str
) -> Found:
    """The samples of shards; shards called train-*, val-*, test-*, or in folders of those names, are those splits."""
    root = os.path.commonpath([path.parent for path in paths])
    shard_names = [os.path.relpath(path, root).removesuffix(".tar") for path in paths]
    shard_splits = [split_of_file(path) for path in paths]
    found, names = [], []
    parts: dict[str, Part] = {}
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(open(path, "rb")) for path in plain]
        for (number, key), sample in samples.items():
            image = _image_of(sample)
            if image is None:
                continue
            label = _label(sample, handles[number], label_key, f"{paths[number]}: {key}")
            parts.setdefault(shard_splits[number], Part()).add(len(found), label)
            found.append((number, image))
            names.append(f"{shard_names[number]}/{key}")
    store = TarFiles(plain, (n for n, _ in found), (m.offset_data for _, m in found), (m.size for _, m in found), names)
    return Found(store, parts, where)


def _label(sample: dict[str, tarfile.TarInfo], tar: BinaryIO, label_key: str | None, place: str) -> Label:
    ending = next((ending for ending in _LABELS if ending in sample), None)
    if ending is None:
        raise DataError(f"{place} has no label: neither .cls nor .json nor .txt.")
    member = sample[ending]
    tar.seek(member.offset_data)
    try:
        text = tar.read(member.size).decode("utf-8").strip()
        if ending == "json":
            record = json.loads(text)
            value = record if not isinstance(record, dict) else record.get(label_key or "label", record.get("cls"))
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                raise DataError(
                    f"{place}.json has no label under {label_key or 'label'!r}; name its key with --label-column."
                )
            return value
    except ValueError as error:
        raise DataError(f"{place}.{ending} cannot be read as a label: {error}") from error
    return int(text) if re.fullmatch(r"0|[1-9]\d*", text) else text
