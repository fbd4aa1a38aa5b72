"""Hugging Face `datasets`, saved in a folder or from the hub."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from bigtransfer import records
from bigtransfer.data.layout import Found, listed, quoted, split_of
from bigtransfer.data.tables.arrow import of_images, reading, require
from bigtransfer.data.tables.columns import Columns
from bigtransfer.errors import DataError


class _Split(msgspec.Struct):
    splits: list[str]


class _Description(msgspec.Struct):
    features: dict[str, Any]


class _File(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    data_files: Annotated[list[_File], msgspec.Meta(min_length=1)] = msgspec.field(name="_data_files")


def saved_dataset(folder: Path, columns: Columns) -> Found:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    require("pyarrow", "pyarrow", "bigtransfer[parquet]")
    try:
        if (folder / "dataset_dict.json").is_file():
            names = records.read(folder / "dataset_dict.json", _Split, DataError).splits
            parts = {name: folder / _plain(name, folder / "dataset_dict.json") for name in names}
        else:
            parts = {"train": folder}
        files, splits, features = [], [], {}
        for name, part in parts.items():
            features = records.read(part / "dataset_info.json", _Description, DataError).features
            shards = records.read(part / "state.json", _State, DataError).data_files
            files += [part / _plain(shard.filename, part / "state.json") for shard in shards]
            splits += [_known_split(name, str(folder))] * len(shards)
        if not files:
            raise DataError(f"{folder / 'dataset_dict.json'} names no split.")
        with reading(str(folder), "as a saved data set"):
            return of_images(files, splits, features, columns, str(folder), folder)
    except (OSError, DataError) as error:
        reason = f"there is no {error.filename}" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"{folder} looks like a saved Hugging Face data set but cannot be read: {reason}") from error


def _plain(name: str, where: Path) -> str:
    """A name of a file or folder beside the file that names it."""
    if "\0" in name or name in ("", ".", "..") or PurePosixPath(name.replace("\\", "/")).name != name:
        raise DataError(f"{where}: {quoted(name)} is not the name of a file beside it.")
    return name


def hub_dataset(name: str, columns: Columns, cache: Path | None) -> Found:
    """`<owner>/<name>[:<configuration>][@<revision>]` from the Hugging Face hub, or a local folder `datasets` understands."""
    datasets = require("datasets", "datasets", "bigtransfer[datasets]")
    match = re.fullmatch(r"(?P<path>[^@:]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?", name)
    if match is None:
        raise DataError(f"hf:{name} is not of the form hf:<owner>/<name>[:<configuration>][@<revision>].")
    if not os.path.exists(match["path"]):
        _ask_for(match["path"])
    try:
        loaded = datasets.load_dataset(
            match["path"], match["config"], revision=match["revision"], cache_dir=None if cache is None else str(cache)
        )
    except Exception as error:  # The library raises dozens of kinds, from the network's to the parsers'.
        raise DataError(f"The Hugging Face data set {name!r} cannot be loaded: {error}") from error
    files, splits = [], []
    for split, part in loaded.items():
        if split_of(str(split)) is None:
            continue  # e.g. "unsupervised"
        shards = [Path(file["filename"]) for file in part.cache_files]
        files += shards
        splits += [split_of(str(split))] * len(shards)
    if not files:
        raise DataError(f"hf:{name} has no train, validation or test split; it has {listed(map(str, loaded))}.")
    features = next(iter(loaded.values())).features.to_dict()
    with reading(f"hf:{name}", "as a data set"):
        return of_images(files, splits, features, columns, f"hf:{name}", files[0].parent)


def _ask_for(path: str) -> None:
    """DataError if the hub can have no data set of that name, or cannot be found: `datasets` would try for minutes."""
    from huggingface_hub import constants

    if re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", path) is None:
        raise DataError(
            f"The Hugging Face data set {quoted(path)} cannot be loaded: that is no folder here, nor owner/name as on the hub."
        )
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise DataError(
            f"The Hugging Face data set {path!r} cannot be loaded: {host} cannot be found ({error.strerror}). With HF_HUB_OFFLINE=1 what "
            "was loaded before is taken."
        ) from error


def _known_split(name: str, where: str) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(f"{where} has a split called {name!r}; only train, validation and test are known.")
    return split
