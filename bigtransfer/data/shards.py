"""Data sets in tar files: WebDataset shards, and a folder of class folders packed as it is."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bigtransfer.data import images, remote
from bigtransfer.data.layout import Found, Label, Part, from_paths, split_of, split_of_file
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import Strings, TarFiles
from bigtransfer.data.tables import fingerprint
from bigtransfer.errors import DataError
from bigtransfer.runs import atomic_write

_COMPRESSED = {(".tar.gz", ".tgz"): gzip.open, (".tar.xz", ".txz"): lzma.open, (".tar.bz2", ".tbz2"): bz2.open}
TAR_ENDINGS = (".tar", *(ending for endings in _COMPRESSED for ending in endings))
_LABELS = ("cls", "json", "txt")
"""Endings that hold a WebDataset sample's label, best first."""


def expand(pattern: str, remote_cache: Cache) -> list[Path | RemoteFile]:
    """The files of a pattern with `{000..009}`, `{a,b}`, `*`, `?` and `[...]`; DataError if one that is spelled out is not there.

    Of a pattern of addresses, files that will be fetched into `remote_cache`.
    """
    paths: dict[Path | RemoteFile, None] = {}
    for spelled in _braces(pattern):
        if remote.is_address(spelled):
            paths.update((RemoteFile(address, remote_cache), None) for address in remote.expand(spelled))
            continue
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


def tar_files(tars: Sequence[Path | RemoteFile], label_key: str | None, cache: Path) -> Found:
    """WebDataset shards if images lie beside *.cls, *.json or *.txt of the same key, else class folders packed into one tar file.

    Every tar file's directory is read once; after that each image is read where it lies. A compressed file is unpacked into the
    cache as a plain tar file the first time. `label_key`: the key of the label in `.json` members (None: `label`, else `cls`).
    """
    where = str(tars[0]) if len(tars) == 1 else f"{tars[0]} and {len(tars) - 1} more"
    root = os.path.commonpath([os.path.dirname(str(tar)) or os.curdir for tar in tars])
    plain: list[Path | RemoteFile] = []
    runs, offset, length = array("q", [0]), array("q"), array("q")
    names: list[str] = []
    parts: dict[str, Part] = {}
    for tar in tars:
        # Shard by shard, so that what tarfile knows of a member, a kilobyte, is not kept for all of them.
        if isinstance(tar, RemoteFile):
            if not tar.address.lower().endswith(".tar"):
                raise DataError(f"{tar} is compressed. Fetch it, and give the file on this machine.")
            path = tar.local()
            plain.append(tar)
        else:
            path = _uncompressed(tar, cache)
            plain.append(path)
        members = _members(path, str(tar))
        samples = _by_key(members)
        images_of = {key: image for key, sample in samples.items() if (image := _image_of(sample)) is not None}
        if all(samples[key].keys().isdisjoint(_LABELS) for key in images_of):
            if len(tars) == 1:
                return _class_folders(plain[0], members, where)
            if images_of:
                raise DataError(
                    f"{tar}: no image has a .cls, .json or .txt beside it, so these are not WebDataset shards with labels."
                )
        shard = os.path.relpath(str(tar), root).removesuffix(".tar")
        part = parts.setdefault(split_of_file(Path(str(tar))), Part())
        with open(path, "rb") as file:
            for key, image in images_of.items():
                part.add(len(names), _label(samples[key], file, label_key, f"{tar}: {key}"))
                offset.append(image.offset_data)
                length.append(image.size)
                names.append(f"{shard}/{key}")
        runs.append(len(names))
    if not names:
        raise DataError(f"There are no images in {where}.")
    return Found(TarFiles(plain, _array(runs), _array(offset), _array(length), Strings(names)), parts, where)


def _array(numbers: array[int]) -> np.ndarray:
    return np.frombuffer(numbers, np.int64)


def _members(path: Path, shown: str) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            return [member for member in tar if member.isfile()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shown} cannot be read as a tar file: {error}") from error


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


def _class_folders(tar: Path | RemoteFile, members: Sequence[tarfile.TarInfo], where: str) -> Found:
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
    offset, length = (
        array("q", (m.offset_data for _, m in kept)),
        array("q", (m.size for _, m in kept)),
    )
    store = TarFiles([tar], np.array([0, len(paths)]), _array(offset), _array(length), Strings(paths))
    return from_paths(store, paths, (), ignored, where)


_Samples = dict[str, dict[str, tarfile.TarInfo]]
"""Key -> ending -> member."""


def _by_key(members: Sequence[tarfile.TarInfo]) -> _Samples:
    """WebDataset's rule: members that share a key (the path up to the first dot of the file name) make one sample."""
    samples: _Samples = {}
    for member in members:
        folder, _, file = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = file.partition(".")
        if stem:
            samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})[ending.lower()] = member
    return samples


def _image_of(sample: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    return next((member for ending, member in sample.items() if f".{ending}" in images.extensions()), None)


def _label(sample: dict[str, tarfile.TarInfo], tar: BinaryIO, label_key: str | None, place: str) -> Label | list[Label]:
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
            several = value if isinstance(value, list) else [value]
            if not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in several):
                raise DataError(
                    f"{place}.json has no label under {label_key or 'label'!r}; name its key with --label-column."
                )
            return value
    except ValueError as error:
        raise DataError(f"{place}.{ending} cannot be read as a label: {error}") from error
    return int(text) if re.fullmatch(r"0|[1-9]\d*", text) else text
