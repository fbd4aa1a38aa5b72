"""Everything a resume needs: weights, momentum, moving averages, the step, and what they belong to.

RUN/checkpoints/step-00001234/
  checkpoint.json       format, step, micro_batch, facts, and the bytes and CRC-32C of every other file
  shard-*.safetensors   the tensors model.NAME, momentum.NAME, ema.NAME, or the parts of them that one process wrote

The processes of a run write it together, and any other number of them can read it (docs/decisions/checkpoints.md). A folder gets
its name only when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import google_crc32c
import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from bigtransfer import records, runs
from bigtransfer.dist import World
from bigtransfer.errors import RunError
from bigtransfer.train import parallel
from bigtransfer.train.loop import State

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
MANIFEST = "checkpoint.json"
FORMAT = 1

_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RunError)
"""What reading a damaged checkpoint can raise: the system, safetensors and torch's reader, and `records` of checkpoint.json."""


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """The form of checkpoint.json."""

    format: int
    step: int
    micro_batch: Annotated[int, msgspec.Meta(ge=1)]
    facts: dict[str, Any]
    files: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    """Name of every other file -> its bytes."""
    checksums: dict[str, str] | None = None
    """Name of every other file -> the CRC-32C of its bytes, 8 hexadecimal digits; None in those of earlier versions."""
    checksum: str | None = None
    """Of all the rest, as `_own_checksum` writes it down."""


def save(folder: Path, state: State, facts: Mapping[str, Any], *, world: World | None = None, keep: int = 2) -> Path:
    """Write `state` and `facts` (JSON: what must be equal for a resume to make sense, e.g. seed and recipe) into the run `folder`,
    then remove all but the last `keep` checkpoints. All processes of `world` must call it, and see the same folder.

    RunError in all of them if it fails in one, for want of space say; the earlier checkpoints are then still there.
    """
    from bigtransfer.train import storage

    world = World() if world is None else world
    path = _path(folder, state.step)

    def begin() -> str:
        with _told(path):
            for leftover in path.parent.glob(".*.tmp"):  # of processes that were killed
                shutil.rmtree(leftover, ignore_errors=True)
            temporary = _temporary(path)
            temporary.mkdir(parents=True)
            return temporary.name

    def finish() -> None:
        with _told(path):
            manifest = {
                "format": FORMAT,
                "step": state.step,
                "micro_batch": state.micro_batch,
                "facts": dict(facts),
                "files": {name: (temporary / name).stat().st_size for name in sorted(checksums)},
                "checksums": checksums,
            }
            runs.write_json(temporary / MANIFEST, {**manifest, "checksum": _own_checksum(manifest)})
            if path.exists():  # and is damaged, or the run would have gone on from it
                _discard(path)
            os.replace(temporary, path)
            runs.sync_folder(path.parent)
            runs.sync_folder(folder)
            found = steps(folder)
            # Later ones go too: the run went on from before them, so they are damaged.
            for step in set(found) - set([step for step in found if step <= state.step][-keep:]):
                _discard(_path(folder, step))

    temporary = path.with_name(_by_main(world, begin))
    try:
        seen = world.collect(temporary.is_dir())
        if not all(seen):
            raise RunError(
                f"Process {seen.index(False)} does not see {temporary}: --out must be in a file system that all machines share."
            )
        with _told(path):
            checksums = storage.write(temporary, _tensors(state), world)
        _by_main(world, finish)
    except BaseException:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def restore(folder: Path, state: State, facts: Mapping[str, Any], *, world: World | None = None) -> bool:
    """Load the newest undamaged checkpoint of the run `folder` into `state`, bit for bit; False if there is none at all. All processes
    of `world`, whose number may be another than when it was saved, must call it.

    RunError if all are damaged or the newest belongs to other `facts` or another network; `state` is then unchanged.
    """
    from bigtransfer.train import storage

    world = World() if world is None else world
    trained = _trained(state)

    def wanted(step: int) -> dict[str, Tensor]:
        """What a checkpoint after `step` steps must hold, and where it goes; there is no momentum yet to take its place."""
        momentum = {f"momentum.{name}": parameter for name, parameter in trained.items() if step > 0}
        return _tensors(state) | momentum

    def choose() -> tuple[int, int] | None:
        found = latest(folder)
        if found is None:
            return None
        manifest = _manifest(found)
        saved, now = manifest.facts, json.loads(json.dumps(dict(facts)))
        different = [key for key in sorted(saved.keys() | now.keys()) if saved.get(key) != now.get(key)]
        if different:
            changes = "; ".join(f"{key} was {saved.get(key)!r}, is now {now.get(key)!r}" for key in different)
            raise RunError(
                f"{found} belongs to another run: {changes}. Choose another --out, or remove the folder to start anew."
            )
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in wanted(manifest.step).items()}
        if storage.contents(found) != expected:
            raise RunError(
                f"{found} is the checkpoint of another network. Remove {found.parent} to start from the beginning."
            )
        return manifest.step, manifest.micro_batch

    chosen = _by_main(world, choose)
    if chosen is None:
        return False
    step, micro_batch = chosen
    path = _path(folder, step)
    targets = wanted(step)
    # Apart from the state, which must not be left half loaded; on each tensor's device and in its memory format, which decides no
    # sums but would cost a copy of the momentum at every step.
    loaded = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in targets.items()}

    def read(together: World) -> None:
        try:
            storage.read(path, loaded, together)
        except _DAMAGE as error:
            raise RunError(f"The checkpoint {path} cannot be read ({error}). Give the same command again.") from error

    if parallel.divided(loaded.values()):
        read(world)
    else:
        # Once from the disk, which hundreds of processes would keep busy for minutes (docs/scale.md).
        _by_main(world, lambda: read(World()))
        world.spread(loaded.values())
    with torch.no_grad():
        for name, tensor in targets.items():
            kind, _, parameter = name.partition(".")
            if kind == "momentum":
                state.optimizer.state[trained[parameter]]["momentum_buffer"] = loaded[name]
            else:
                tensor.copy_(loaded[name])
    state.step, state.micro_batch = step, micro_batch
    return True


def latest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of the run `folder`, with a warning for each damaged one after it; None if there is none at all.

    RunError if all are damaged.
    """
    from bigtransfer.train import storage

    damaged: list[str] = []
    for step in reversed(steps(folder)):
        path = _path(folder, step)
        try:
            manifest = _manifest(path)
            storage.contents(path)
            _verify(path, manifest)
        except _DAMAGE as error:
            damaged.append(f"The checkpoint {path} cannot be read ({error})")
        else:
            for each in damaged:
                log.warning("%s: going on from %s.", each, path.name)
            return path
    if damaged:
        raise RunError(
            f"{damaged[0]}, and no earlier one either. Remove {folder / FOLDER} to start from the beginning."
        )
    return None


def steps(folder: Path) -> list[int]:
    """The numbers of steps after which the checkpoints of the run `folder` were made, ascending."""
    names = [path.name for path in (folder / FOLDER).glob("step-*")]
    return sorted(int(match[1]) for match in map(re.compile(r"step-(\d+)").fullmatch, names) if match)


def exists(folder: Path) -> bool:
    """Whether the run `folder` has a checkpoint."""
    return bool(steps(folder))


def remove(folder: Path) -> None:
    """Remove all checkpoints of the run `folder`: it is finished."""
    if (folder / FOLDER).exists():
        _discard(folder / FOLDER)


def _path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"step-{step:08d}"


def _temporary(path: Path) -> Path:
    """A new name beside `path`, of the kind that is cleared away."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _discard(path: Path) -> None:
    """Remove a folder in such a way that a process that dies meanwhile leaves nothing that looks whole."""
    doomed = _temporary(path)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _manifest(path: Path) -> _Manifest:
    """checkpoint.json of a checkpoint whose files are all there, no others, and of the right size; one of `_DAMAGE` otherwise."""
    stored = records.read(path / MANIFEST, dict[str, Any], RunError)
    if stored.get("format") != FORMAT:
        raise ValueError(f"its format is {stored.get('format')}, this version reads {FORMAT}")
    manifest = records.convert(stored, _Manifest, MANIFEST, RunError)
    if manifest.checksum is not None and stored.pop("checksum") != _own_checksum(stored):
        raise ValueError(f"{MANIFEST} has other contents than were written")
    if manifest.step != int(path.name.removeprefix("step-")):
        raise ValueError(f"{MANIFEST} says step {manifest.step}")
    there = {each.name for each in path.glob("*.safetensors")}
    if there != manifest.files.keys():
        raise ValueError(f"{', '.join(sorted(there ^ manifest.files.keys()))} is missing, or not a part of it")
    for name, size in manifest.files.items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
    return manifest


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    """CRC-32C of checkpoint.json without this checksum, whatever the order of its keys: 8 hexadecimal digits."""
    return f"{google_crc32c.value(json.dumps(manifest, sort_keys=True).encode()):08x}"


def _verify(path: Path, manifest: _Manifest) -> None:
    """ValueError if a file has other contents than were written; reads all of them."""
    from bigtransfer.train import storage

    if manifest.checksums is None:
        log.warning(
            "The checkpoint %s is of an earlier version without checksums: its contents cannot be verified.", path
        )
        return
    for name in manifest.files:
        if storage.checksum(path / name) != manifest.checksums.get(name):
            raise ValueError(f"{name} has other contents than were written")


def _tensors(state: State) -> dict[str, Tensor]:
    """What is saved of `state`, by name in the checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in (state.ema or {}).items()}
    for name, parameter in _trained(state).items():
        momentum = state.optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    return tensors


def _trained(state: State) -> dict[str, torch.nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    chosen = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in state.model.named_parameters() if id(parameter) in chosen}


def _by_main(world: World, action: Callable[[], Any]) -> Any:
    """What `action` (result: JSON) gives in the main process, in every process; or its RunError in every process."""
    value, error = None, None
    if world.is_main:
        try:
            value = action()
        except RunError as raised:
            error = str(raised)
    value, error = world.collect((value, error))[0]
    if error is not None:
        raise RunError(error)
    return value


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the errors of writing into one that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"The checkpoint {path} cannot be written ({error}). Make room, then the same command goes on from the checkpoint before."
        ) from error
