"""`bit shard`: a data set of any form as tar shards with an index, or a check of such shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bigtransfer import data, runs
from bigtransfer.bars import tqdm
from bigtransfer.catalog import InputSpec
from bigtransfer.config import ShardConfig
from bigtransfer.data import index, writer
from bigtransfer.data.index import Index, Raw
from bigtransfer.errors import ConfigError, DataError
from bigtransfer.limits import limits
from bigtransfer.machine import usable_cores


def run(config: ShardConfig) -> int:
    """Write the shards, or go on writing, or check them; 1 if the check finds damage."""
    if config.verify:
        return _verify(Path(config.source), config.threads)
    assert config.destination is not None
    raw = None if config.raw is None else _raw(config.raw)
    splits = data.open_dataset(
        config.source,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        multi_label=True,
        channels=3 if raw is None else raw.channels,
    )
    for note in splits.notes:
        print(f"note: {note}")
    folder = Path(config.destination)
    with runs.Run(folder).hold():
        made = writer.write(folder, splits, config, lambda total: _bar(total, "Sharding"), raw)
    skipped = sum(map(len, made.made["skipped"].values()))
    for split, part in made.splits.items():
        size = sum(shard.bytes for shard in part.shards)
        print(f"{folder}: {split}, {part.images:,} images in {_counted(len(part.shards), 'shard')}, {_gigabytes(size)}")
    if skipped:
        print(f"Left out: {_counted(skipped, 'unreadable image')}, listed in {folder / 'unreadable.json'}")
    if raw is None:
        print(f"Use them:  bit pretrain {config.destination}")
    else:
        print(f"Use them with models that take {raw.said()}; others are refused.")
    return 0


def _raw(asked: str) -> Raw:
    """The records that --raw asks for."""
    if asked.isdecimal():
        if not 1 <= int(asked[:9]) <= limits().input_side or len(asked) > 9:
            raise ConfigError(f"--raw {asked}: a side may have 1 to {limits().input_side:,} px.")
        return Raw(input=InputSpec(size=int(asked)), channels=3)
    from bigtransfer import weights  # loads torch

    card = weights.describe(asked)
    channels = card.architecture.in_chans
    if channels not in (1, 3):
        raise ConfigError(f"--raw {asked}: that model takes images of {channels} channels; records have 3 or 1.")
    return Raw(input=card.input, channels=channels)


def _verify(folder: Path, threads: int | None) -> int:
    """Compare every file with its checksum, and name those that differ."""
    if not index.is_indexed(folder):
        raise DataError(
            f"{folder} has no index.json as `bit shard` writes it, which comes last: is it another folder, or was the command interrupted?"
        )
    files = Index.read(folder / "index.json", str(folder / "index.json")).files()
    damaged = 0
    with ThreadPoolExecutor(threads or usable_cores()) as pool, _bar(len(files), "Verifying", "file") as bar:
        for file, damage in zip(files, pool.map(lambda file: writer.damage_of(folder, file), files), strict=True):
            bar.update()
            if damage is not None:
                damaged += 1
                bar.clear()
                print(f"{folder / file.name} {damage}", flush=True)
    if damaged:
        print(
            f"{damaged} of {len(files)} files are damaged. The `bit shard` command that wrote them, given again, repairs them."
        )
        return 1
    print(f"{folder}: all {len(files)} files are what the index says, {_gigabytes(sum(file.bytes for file in files))}")
    return 0


def _bar(total: int, title: str, unit: str = "img") -> Any:
    return tqdm(total=total, desc=title, unit=unit, dynamic_ncols=True, disable=None, leave=False)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
