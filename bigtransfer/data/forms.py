"""From what the user typed to `Splits`: recognises the form of a data set. `docs/data.md` shows every form with an example."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer import fetch, records, settings, terminal
from bigtransfer import files as door
from bigtransfer.data import archives, images, index, named, remote, shards, tables
from bigtransfer.data.kinds import HEAD, Passed, is_hidden
from bigtransfer.data.layout import Found, build, from_paths, listed
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import Files, ImageSet, Splits, together
from bigtransfer.data.tables import Columns
from bigtransfer.errors import ConfigError, DataError


def open_dataset(
    spec: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    label_separator: str | None = None,
    multi_label: bool = False,
    class_names: Sequence[str] | None = None,
    channels: int = 3,
    cache: str | os.PathLike[str] | None = None,
    shard_cache: int | None = None,
    min_classes: int = 2,
) -> Splits:
    """The data set that `spec` names, in its own splits. Nothing is decoded here, and no split is made up (see `data.splits`).

    spec: a folder (of class folders; of train/val/test folders of those; of images without classes; of Parquet files or tar
    shards; written by `bit shard`, or by `datasets`' save_to_disk), a .csv, .tsv, .jsonl or .parquet table, a .tar file or a pattern of tar
    shards such as `shards/train-{000..009}.tar`, `hf:<owner>/<name>` from the Hugging Face hub, or one of `named.NAMES`; or the address
    (http, https, or any that fsspec knows, such as s3://) of a folder written by `bit shard` or of tar shards. What exists on disk
    goes before a name. file:///folder/x is the path /folder/x.
    image_column, label_column, split_column: columns of a table; by default those with usual names (`tables.Columns`).
    label_separator: what stands between the labels of an image in a table of text whose images have several.
    multi_label: whether images may have several labels (lists, in other forms than those tables): `labels` is then (n, k).
    class_names: number the labels by this list, say a model's classes, instead of by the names found; the data may then lack
    classes, but have none that is not listed.
    channels: 3 (RGB) or 1 (grey). cache: where downloads and conversions are kept; default `cache_folder()`.
    min_classes: DataError if the data have fewer (and `class_names` is not given); 1 where nothing is trained.
    shard_cache: bytes that fetched shards may take there; default: as `$BIT_SHARD_CACHE` says, else half of the disk's free room.

    Raises DataError if there is no such data set or it is not understood.
    """
    columns = Columns(image=image_column, label=label_column, split=split_column, label_separator=label_separator)
    folder = cache_folder() if cache is None else Path(cache)
    remote_cache = Cache(folder / "shards", settings.shard_cache() if shard_cache is None else shard_cache)
    where, separated = fetch.path_of(str(spec)), False
    if not remote.is_address(where):
        _lookable(os.path.expanduser(where))
    if label_separator == "":
        raise ConfigError("--label-separator '' separates nothing. Give what stands between the labels, such as '|'.")
    if remote.is_address(where) and not where.lower().endswith(archives.ENDINGS):
        splits = index.open_address(where, folder, remote_cache, class_names, channels)
    elif index.is_indexed(Path(where).expanduser()):
        splits = index.open_folder(Path(where).expanduser(), class_names, channels)
    else:
        found = _find(where, columns, folder, remote_cache, hub_cache=cache)
        separated = found.separated
        splits = build(found, class_names, channels, min_classes)
    if label_separator is not None and not separated:
        raise ConfigError("--label-separator has no effect: only the labels of tables of text are separated by it.")
    if not multi_label and splits.train.labels is not None and splits.train.labels.ndim > 1:
        raise DataError(
            f"The images of {where} have several labels each, and one is needed here. `bit pretrain --multi-label` learns from such sets."
        )
    return splits


def open_images(sources: Sequence[str | os.PathLike[str]]) -> ImageSet:
    """Images without labels, from files (of any name), folders (all images below) and patterns, in that order; each file once.

    The names of the set are the paths as given. Raises DataError for what does not exist or has no images.
    """
    paths: dict[str, None] = {}
    for source in (os.path.expanduser(fetch.path_of(str(source))) for source in sources):
        if os.path.isdir(_lookable(source)):
            inside = _walk(Path(source))
            found = [os.path.join(source, path) for path in inside.paths]
            if not found:
                raise DataError(f"There are no images in {source}. {' '.join(inside.remarks)}".rstrip())
        elif os.path.exists(source):
            found = [source]
        else:
            found = [path for path in shards.matches(source) if os.path.isfile(path)]
            if not found:
                raise DataError(f"There is no image, folder or match for {_shown(source)}.")
        paths.update(dict.fromkeys(found))
    return ImageSet(Files(Path.cwd(), paths), np.arange(len(paths), dtype=np.int64), None, ())


def open_anything(sources: Sequence[str | os.PathLike[str]], channels: int = 3) -> ImageSet:
    """The images of data sets in any form that `open_dataset` knows, of all parts, and those that `open_images` finds; without labels.

    Of one data set the names are its own; of several each begins with the source as it was typed, "." for those of `open_images`.
    """
    plain: list[str] = []
    sets: dict[str, ImageSet] = {}
    for source in map(str, sources):
        where = os.path.expanduser(fetch.path_of(source))
        if _is_plain(where):
            plain.append(where)
            continue
        splits = open_dataset(source, channels=channels, multi_label=True, min_classes=1)
        sets[source] = _whole(list(splits.parts().values()))
    if plain:
        sets["."] = dataclasses.replace(open_images(plain), channels=channels)
    return next(iter(sets.values())) if len(sets) == 1 else together(list(sets.values()), list(sets))


def _whole(parts: Sequence[ImageSet]) -> ImageSet:
    """All parts of a data set, which share a store, as one set without labels."""
    (store,) = {id(part.store): part.store for part in parts}.values()
    rows: np.ndarray | range = np.concatenate([np.asarray(part.rows, dtype=np.int64) for part in parts])
    if len(rows) and (np.diff(rows) == 1).all():
        rows = range(int(rows[0]), int(rows[-1]) + 1)
    return ImageSet(store, rows, None, (), parts[0].channels)


def _is_plain(where: str) -> bool:
    """Whether a source stands for image files as they lie there."""
    if remote.is_address(where):
        return False
    if os.path.isdir(_lookable(where)):
        if index.is_indexed(Path(where)):
            return False
        inside = _walk(Path(where))
        return bool(inside.paths) or not inside.others
    found = [where] if os.path.exists(where) else shards.matches(where)
    if not found:
        return False  # the name of a data set, or a mistake, which `open_dataset` explains
    packed = (".tar", ".parquet", *tables.TEXT_ENDINGS)
    return not all(_ending(Path(path)) in packed for path in found)


def cache_folder() -> Path:
    """Where downloaded and converted data sets are kept: `$BIT_CACHE/data`, else ~/.cache/bigtransfer/data."""
    return settings.cache_folder() / "data"


def _find(
    spec: str, columns: Columns, cache: Path, remote_cache: Cache, hub_cache: str | os.PathLike[str] | None
) -> Found:
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, columns, cache)
    if path.is_file():
        return _files([path], columns, cache)
    if spec.startswith("hf:"):
        return tables.hub_dataset(spec.removeprefix("hf:"), columns, None if hub_cache is None else Path(hub_cache))
    if remote.is_address(spec) or any(character in spec for character in "*?[{"):
        return _files(shards.expand(spec, remote_cache), columns, cache)
    if spec in named.NAMES:
        return named.open_named(spec, cache)
    near = difflib.get_close_matches(spec, named.NAMES, n=2)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Names of data sets: {', '.join(named.NAMES)}."
    raise DataError(f"There is no file or folder {_shown(spec)}, and no data set of that name. {hint}")


def _lookable(path: str) -> str:
    """The path; DataError if the system cannot even look whether it is there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, without permission, in a circle, or with a zero byte
        raise DataError(f"Cannot look at {_shown(path)}: {getattr(error, 'strerror', None) or error}.") from error
    return path


def _shown(path: str) -> str:
    shown = terminal.line(path)
    return shown if len(shown) <= 300 else f"{shown[:300]}... ({len(shown):,} characters)"


def _files(files: Sequence[Path | RemoteFile], columns: Columns, cache: Path) -> Found:
    """A table, or archives. Where all files are named after one part, that part is what was asked for."""
    found = _of_files(files, columns, cache)
    if len(found.parts) == 1 and not isinstance(found.store, Files):
        found.parts = {"train": next(iter(found.parts.values()))}
    return found


def _of_files(files: Sequence[Path | RemoteFile], columns: Columns, cache: Path) -> Found:
    paths = [file for file in files if isinstance(file, Path)]
    if len(paths) < len(files):
        return shards.tar_files(files, columns.label, cache)
    endings = {_ending(path) for path in paths}
    if endings <= set(tables.TEXT_ENDINGS) and len(paths) == 1:
        return tables.text_table(paths[0], columns)
    if endings <= {".parquet"}:
        return tables.parquet_tables(paths, columns, cache)
    if endings <= {".tar"}:
        return shards.tar_files(paths, columns.label, cache)
    if endings & {*_WORKBOOKS}:
        raise DataError(f"{paths[0]} is a workbook, not a table of text. {tables.SAVE_AS_CSV}")
    if endings <= images.extensions():
        raise DataError(f"{paths[0]} is a single image, not a data set. To classify it: bit predict MODEL {paths[0]}")
    raise DataError(
        f"{paths[0]} is not a kind of data set known here: a folder, .csv, .tsv, .jsonl, .parquet, .tar or .zip."
    )


_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")


def _ending(path: Path) -> str:
    """What sort of file it is, as an ending; of a name that says nothing, by its first bytes."""
    ending = path.suffix.lower()
    if path.name.lower().endswith(archives.ENDINGS):
        return ".tar"
    if ending in (*tables.TEXT_ENDINGS, ".parquet", *_WORKBOOKS) or ending in images.extensions():
        return ending
    with contextlib.suppress(OSError):
        if archives.kind_of(path) is not None:
            return ".tar"
    return ending


def _folder(root: Path, columns: Columns, cache: Path) -> Found:
    if (root / "dataset_dict.json").is_file() or (
        (root / "dataset_info.json").is_file() and (root / "state.json").is_file()
    ):
        return tables.saved_dataset(root, columns)
    inside = _walk(root)
    if (found := tables.beside(root, inside.paths, columns)) is not None:
        return found
    if not inside.paths:
        for endings in ((".parquet",), archives.ENDINGS):
            packed = [root / path for path in inside.others if path.lower().endswith(endings)]
            if packed:
                return _files(sorted(packed), columns, cache)
    return from_paths(Files(root, inside.paths), inside.paths, inside.folders, terminal.line(str(root)), inside.remarks)


@dataclass
class _Inside:
    """What lies in a folder."""

    paths: list[str] = field(default_factory=list)
    """Images, relative, with forward slashes, sorted."""
    others: list[str] = field(default_factory=list)
    """Files that are no images, likewise."""
    folders: list[str] = field(default_factory=list)
    """Direct sub-folders, but for those that only hold what this program wrote."""
    remarks: tuple[str, ...] = ()


def _walk(root: Path) -> _Inside:
    """Hidden files and folders are passed over, and so are runs and shards that this program wrote; symbolic links are followed, except in
    circles."""
    endings = images.extensions()
    inside, passed = _Inside(), Passed()
    ours: list[str] = []
    circles: list[str] = []
    odd: list[str] = []

    def visit(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> bool:
        """Whether there is anything in it but what this program wrote."""
        facts = os.stat(folder)
        identity = (facts.st_dev, facts.st_ino)
        if identity in above:  # a symbolic link back up: following it would never end
            circles.append(prefix)
            return False
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        if prefix and _is_ours(folder, [entry.name for entry in entries]):
            ours.append(prefix)
            return False
        theirs = only_ours = False
        for entry in entries:
            name, ending = prefix + entry.name, os.path.splitext(entry.name)[1].lower()
            try:
                mode = entry.stat().st_mode
            except FileNotFoundError:
                mode = stat.S_IFREG  # a link to nothing: an image that is missed when it is read
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                circles.append(name)
                continue
            if is_hidden(entry.name):
                if not stat.S_ISDIR(mode):
                    passed.hidden()
            elif stat.S_ISDIR(mode):
                if not visit(entry.path, f"{name}/", (*above, identity)):
                    only_ours = True
                    continue
                theirs = True
                if not prefix:
                    inside.folders.append(entry.name)
            elif not stat.S_ISREG(mode):
                odd.append(name)
            elif ending in endings or passed.add(ending, functools.partial(_head, entry.path)):
                inside.paths.append(name)
                theirs = True
            else:
                inside.others.append(name)
                theirs = True
        return theirs or not only_ours

    try:
        visit(str(root), "", ())
    except OSError as error:
        raise DataError(f"Cannot read the folder {terminal.line(str(error.filename))}: {error.strerror}.") from error
    for names, what in (
        (circles, "links that lead in circles"),
        (odd, "pipes, sockets and devices"),
        (ours, "what `bit` wrote"),
    ):
        if names:
            inside.remarks += (
                f"Left out of {terminal.line(str(root))}: {what}: {listed(name.rstrip('/') for name in names)}.",
            )
    inside.remarks = (*passed.remarks(terminal.line(str(root))), *inside.remarks)
    return inside


def _head(path: str) -> bytes:
    try:
        with door.opened(path) as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _is_ours(folder: str, names: Sequence[str]) -> bool:
    """Whether a folder is one that this program writes: a run or an evaluation, perhaps only begun, answers, or shards."""
    if index.PLAN in names or ANSWERS in names or ("index.json" in names and index.is_indexed(Path(folder))):
        return True
    if "config.json" in names:
        with contextlib.suppress(DataError, FileNotFoundError):
            return records.read(Path(folder) / "config.json", _Ours, DataError).command in _COMMANDS
        return False
    return ".lock" in names and {*names} <= {".lock", "split.json", "unreadable.json", "evaluation.json", "report.html"}


@dataclass
class _Ours:
    """What tells the configuration of a run from that of another program."""

    command: str
    asked: dict[str, Any]


ANSWERS = ".answers.json"
"""In a folder of answers on many images: what was asked (`jobs.parts`)."""

_COMMANDS = ("finetune", "pretrain", "evaluate", "check", "detect finetune", "detect evaluate")
