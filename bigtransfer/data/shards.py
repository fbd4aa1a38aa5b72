"""Data sets in archives: WebDataset shards, and folders of class folders packed as they are."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bigtransfer import files, records, terminal
from bigtransfer.data import archives, images, remote, tables
from bigtransfer.data.archives import Member
from bigtransfer.data.kinds import HEAD, Passed, is_hidden
from bigtransfer.data.layout import Found, Label, Part, from_paths, listed, split_of, split_of_file
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import Strings, TarFiles
from bigtransfer.errors import DataError

_LABELS = ("cls", "json", "txt")
"""Endings that hold a WebDataset sample's label, best first."""
_LABEL_BYTES = 1 << 16
"""Of a label that is text."""


def expand(pattern: str, remote_cache: Cache) -> list[Path | RemoteFile]:
    """The files of a pattern with `{000..009}`, `{a,b}`, `*`, `?` and `[...]`; DataError if one that is spelled out is not there.

    What exists under its very name is that, whatever signs are in it. Of a pattern of addresses, files that will be fetched into
    `remote_cache`.
    """
    paths: dict[Path | RemoteFile, None] = {}
    folder, rest = ("", pattern) if remote.is_address(pattern) else _literal(os.path.expanduser(pattern))
    for spelled in _braces(rest):
        if remote.is_address(spelled):
            paths.update((RemoteFile(address, remote_cache), None) for address in remote.expand(spelled))
            continue
        found = matches(folder + spelled)
        if not found:
            raise DataError(f"There is no file {terminal.line(folder + spelled)}.")
        paths.update(dict.fromkeys(map(Path, found)))
    return list(paths)


def matches(pattern: str) -> list[str]:
    """The paths that match a pattern with `*`, `?`, `[...]` and `**`, sorted; one that exists under its very name is that."""
    if os.path.lexists(pattern):
        return [pattern]
    folder, rest = _literal(pattern)
    found = glob.glob(glob.escape(folder) + rest, recursive=True) if folder else []
    return sorted(found or glob.glob(pattern, recursive=True))


def _literal(pattern: str) -> tuple[str, str]:
    """The longest beginning of a pattern that is the name of a folder, with its slash, and the rest."""
    places = [match.end() for match in re.finditer(r"[/\\]" if os.sep == "\\" else "/", pattern)]
    end = next((place for place in reversed(places) if os.path.isdir(pattern[:place])), 0)
    return pattern[:end], pattern[end:]


_MOST = 1_000_000
"""Names that a pattern may stand for."""


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        choices = match[3].split(",")
    else:
        first, last = match[1], match[2]
        if max(len(first), len(last)) > 15 or int(last) - int(first) >= _MOST:
            raise DataError(f"{{{first[:20]}..{last[:20]}}} stands for more than {_MOST:,} files.")
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    found: list[str] = []
    for choice in choices:
        found += _braces(before + choice + after)
        if len(found) > _MOST:
            raise DataError(f"The pattern stands for more than {_MOST:,} files.")
    return found


@dataclass
class _Shard:
    """What is in one archive."""

    tar: Path | RemoteFile
    """The plain tar file."""
    shown: str
    samples: list[_Sample] = field(default_factory=list)
    loose: list[Member] = field(default_factory=list)
    """Images without a label beside them."""
    packed: list[Member] = field(default_factory=list)
    """All members, where no image has a label: then it is a packed folder."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    key: str
    image: Member
    label: Member
    ending: str
    """Of the label."""


def tar_files(tars: Sequence[Path | RemoteFile], label_key: str | None, cache: Path) -> Found:
    """WebDataset shards if images lie beside *.cls, *.json or *.txt of the same key, else class folders packed into archives.

    Every tar file's directory is read once; after that each image is read where it lies. A compressed file is unpacked into the
    cache as a plain tar file the first time. `label_key`: the key of the label in `.json` members (None: `label`, else `cls`).
    """
    where = terminal.line(str(tars[0])) + (f" and {len(tars) - 1} more" if len(tars) > 1 else "")
    root = os.path.commonpath([os.path.dirname(str(tar)) or os.curdir for tar in tars])
    plain: list[Path | RemoteFile] = []
    runs, offset, length = array("q", [0]), array("q"), array("q")
    names: list[str] = []
    parts: dict[str, Part] = {}
    notes: list[str] = []
    unlabelled: list[_Shard] = []
    for tar in tars:
        shard = _opened(tar, cache)
        notes += shard.notes
        if not shard.samples:
            unlabelled.append(shard)
            continue
        if shard.loose:
            raise DataError(
                f"{shard.shown}: {terminal.line(shard.loose[0].name)} has no label: neither .cls nor .json nor .txt."
            )
        plain.append(shard.tar)
        stem = _stem(os.path.relpath(str(tar), root))
        part = parts.setdefault(split_of_file(Path(str(tar))), Part())
        with files.opened(_here(shard.tar)) as file:
            for sample in shard.samples:
                part.add(len(names), _label(sample, file, label_key, f"{shard.shown}: {terminal.line(sample.key)}"))
                offset.append(sample.image.offset)
                length.append(sample.image.size)
                names.append(f"{stem}/{sample.key}")
        runs.append(len(names))
    if not names:
        return _packed(unlabelled, where, root, notes)
    for shard in unlabelled:
        if any(_is_image(member) for member in shard.packed):
            raise DataError(
                f"{shard.shown}: no image has a .cls, .json or .txt beside it, so these are not WebDataset shards with labels."
            )
    store = TarFiles(plain, _array(runs), _array(offset), _array(length), Strings(names))
    return Found(store, parts, where, notes=tuple(notes))


def _array(numbers: array[int]) -> np.ndarray:
    return np.frombuffer(numbers, np.int64)


def _stem(name: str) -> str:
    """The name of an archive without what says that it is one."""
    ending = next(
        (ending for ending in sorted(archives.ENDINGS, key=len, reverse=True) if name.lower().endswith(ending)), ""
    )
    return name[: len(name) - len(ending)]


def _here(tar: Path | RemoteFile) -> Path:
    return tar.local() if isinstance(tar, RemoteFile) else tar


def _opened(tar: Path | RemoteFile, cache: Path) -> _Shard:
    """What is in an archive, which is unpacked into the cache if need be."""
    if not isinstance(tar, RemoteFile):
        return _read(_Shard(archives.plain(tar, cache), terminal.line(str(tar))))
    if not tar.address.lower().endswith(".tar") or archives.kind_of(tar.local()) != "tar":
        raise DataError(f"{tar} is compressed, or no tar file. Fetch it, and give the file on this machine.")
    return _read(_Shard(tar, str(tar)))


def _read(shard: _Shard) -> _Shard:
    """Fill in what is in the archive."""
    members, notes = archives.members(_here(shard.tar), shard.shown)
    shard.notes += notes
    shown = [member for member in members if not _is_hidden(member.name)]
    samples, loose, extra, lost = _samples(shown)
    if not samples:
        shard.packed = members
        return shard
    shard.samples, shard.loose = samples, loose
    if extra:
        shard.notes.append(
            f"{shard.shown}: of samples with several images the first one is used; {_counted(extra, 'other')} not: {listed(extra[:3])}."
        )
    if lost:
        shard.notes.append(
            f"{shard.shown}: {_counted(lost, 'label')} without an image that can be read: {listed(lost[:3])}."
        )
    kinds = Counter(_ending(member.name) or "without ending" for member in shown if not _is_image(member))
    other = {kind: count for kind, count in kinds.items() if kind.removeprefix(".") not in _LABELS}
    if other:
        shard.notes.append(f"{shard.shown}: not used: {', '.join(f'{count} {kind}' for kind, count in other.items())}.")
    return shard


def _counted(things: Sequence[object], what: str) -> str:
    return f"{len(things)} {what}{'s' if len(things) > 1 else ''} {'are' if len(things) > 1 else 'is'}"


def _is_hidden(name: str) -> bool:
    return any(map(is_hidden, name.split("/")))


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(member: Member) -> bool:
    return _ending(member.name) in images.extensions()


def _samples(members: Sequence[Member]) -> tuple[list[_Sample], list[Member], list[str], list[str]]:
    """The images with their labels; images that have none; further images of samples that have one; labels without an image.

    WebDataset's own rule is that a sample's key ends at the first dot of the file name, so that `7.jpg`, `7.seg.png` and `7.cls` are one
    sample. Names of cameras, dates and versions have dots of their own, and `a.v2.png` beside `a.v2.cls` is a pair as good as any: an image
    belongs to the label that shares all of its name up to the last dot, and to the one of its WebDataset key only where there is none.
    """
    labels: dict[str, dict[str, Member]] = {}
    classes: dict[str, list[Member]] = {}  # WebDataset key -> its labels of the form key.anything.cls
    for member in members:
        stem, _, ending = member.name.rpartition(".")
        if (ending := ending.lower()) in _LABELS:
            labels.setdefault(stem, {})[ending] = member
            if ending == "cls":
                classes.setdefault(_key(member.name), []).append(member)
    samples: list[_Sample] = []
    taken: set[str] = set()
    keys: set[str] = set()
    candidates = [member for member in members if _is_image(member)] if labels else []
    for exact in (True, False):
        rest = []
        for member in candidates:
            stem, key = member.name.rpartition(".")[0], _key(member.name)
            own = labels.get(stem if exact else key, {})
            if not exact and not own and len(classes.get(key, ())) == 1 and key not in keys:
                own = {"cls": classes[key][0]}
            ending = next((ending for ending in _LABELS if ending in own), None)
            if ending is None or own[ending].name in taken:
                rest.append(member)
                continue
            samples.append(_Sample(stem if exact else key, member, own[ending], ending))
            taken |= {label.name for label in own.values()}
            keys.add(key)
        candidates = rest
    extra = [member.name for member in candidates if _key(member.name) in keys]
    loose = [member for member in candidates if _key(member.name) not in keys]
    lost = [label.name for own in labels.values() for label in own.values() if label.name not in taken]
    return samples, loose, extra, lost


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _label(sample: _Sample, tar: BinaryIO, label_key: str | None, place: str) -> Label | list[Label]:
    where = f"{place}.{sample.ending} cannot be read as a label"
    if sample.label.size > _LABEL_BYTES and sample.ending != "json":
        raise DataError(f"{where}: it has {sample.label.size:,} bytes.")
    tar.seek(sample.label.offset)
    content = tar.read(sample.label.size)
    if sample.ending == "json":
        record = records.parse(content, where, DataError)
        value = record if not isinstance(record, dict) else record.get(label_key or "label", record.get("cls"))
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in several):
            raise DataError(
                f"{place}.json has no label under {label_key or 'label'!r}; name its key with --label-column."
            )
        return value
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: it is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    if not text:
        raise DataError(f"{where}: it is empty.")
    if text.startswith("["):
        raise DataError(
            f"{where}: {text[:40]!r} is a list; lists of labels are written as JSON, in a member that ends in .json."
        )
    return int(text) if re.fullmatch(r"0|[1-9][0-9]{0,17}", text) else text


# --- Folders of class folders, packed


def _packed(shards: Sequence[_Shard], where: str, root: str, notes: Sequence[str]) -> Found:
    """What lies in packed folders; of several archives (train.zip, test.zip) each counts as a folder of its name."""
    passed = Passed()
    rows: list[tuple[int, str, Member]] = []
    for number, shard in enumerate(shards):
        above = f"{_stem(os.path.relpath(shard.shown, root))}/" if len(shards) > 1 else ""
        with files.opened(_here(shard.tar)) as file:
            for member in shard.packed:
                if _is_hidden(member.name):
                    passed.hidden()
                elif _is_image(member) or passed.add(_ending(member.name), lambda: _head(file, member)):  # noqa: B023
                    rows.append((number, above + member.name, member))
    if len(shards) > 1 and any("/" not in member.name for _, _, member in rows):
        raise DataError(
            f"{shards[0].shown}: no image has a .cls, .json or .txt beside it, so these are not WebDataset shards with labels."
        )
    rows.sort(key=lambda row: row[:2])  # those of one archive side by side
    paths, left_out = _without_outer([path for _, path, _ in rows])
    if left_out:
        notes = (*notes, f"{where}: everything lies in the folder {left_out}, which is taken for the data set.")
    store = TarFiles(
        [shard.tar for shard in shards],
        np.searchsorted([number for number, _, _ in rows], range(len(shards) + 1)).astype(np.int64),
        np.array([member.offset for _, _, member in rows], dtype=np.int64),
        np.array([member.size for _, _, member in rows], dtype=np.int64),
        Strings(paths),
    )
    said = f"{_A_TABLE} {table}: unpack it, and give the folder." if (table := _table(shards)) else ""
    try:
        found = from_paths(store, paths, (), where, (*passed.remarks(where), *notes))
    except DataError as error:
        raise DataError(f"{error} {said}" if said else str(error)) from error
    if said and not any(part.values for part in found.parts.values()):
        found.notes = (*found.notes, f"{where} has no folders that could be classes. {said}")
    return dataclasses.replace(found, hint=said or found.hint)


_A_TABLE = "If the labels stand in its table"


def _table(shards: Sequence[_Shard]) -> str | None:
    """The first table of text that lies in the archives."""
    names = (member.name for shard in shards for member in shard.packed if not _is_hidden(member.name))
    return next((terminal.line(name) for name in names if name.lower().endswith(tables.TEXT_ENDINGS)), None)


def _head(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, HEAD))


def _without_outer(paths: Sequence[str]) -> tuple[list[str], str]:
    """The paths without the folders that hold all others, as long as class folders remain, and those folders."""
    outer = ""
    while paths:
        top = f"{paths[0].partition('/')[0]}/"
        if split_of(top[:-1]) is not None or not all(path.startswith(top) and path.count("/") > 1 for path in paths):
            break
        paths = [path.removeprefix(top) for path in paths]
        outer += top
    return list(paths), outer.removesuffix("/")
