"""Weight files of every kind as one thing: the shapes of their tensors, read first, and a way to read each.

A kind is recognised by the first bytes, not by the file's name. Nothing is ever unpickled beyond tensors
(`torch.load(weights_only=True)`, `allow_pickle=False`), and tensors are read one by one: a network of 4 GB needs no 8.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bigtransfer import files, runs
from bigtransfer.catalog import EXPORTED, ModelCard
from bigtransfer.config.convert import ENDINGS
from bigtransfer.errors import BitError, WeightsError
from bigtransfer.limits import limits
from bigtransfer.weights import configs

HEADER_KEY = "bigtransfer"
"""Key of the model card in a safetensors header."""

IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = frozenset(ending for form, endings in ENDINGS.items() if form not in ("onnx", "web") for ending in endings)
"""Of files of weights."""


@dataclass(frozen=True)
class Contents:
    """An opened weight file."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name, as stored -> shape."""
    read: Callable[[str], Tensor]
    """One tensor as stored, on the CPU, never a view of the file; WeightsError if the file is damaged there."""
    card: ModelCard | None = None
    """The card in its header, if it is a model file of ours."""
    described: configs.Description = configs.Description()  # noqa: RUF009 - frozen
    """What JSON files beside it say."""


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[Contents]:
    """Open a weight file, or the one in a folder (a run, a transformers or timm folder). WeightsError if it is none."""
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    described = configs.read(path.parent) if path.name in IN_FOLDERS else configs.Description()
    with contextlib.ExitStack() as stack:
        with _reading(path):
            shapes, read, card = _kind(path)(path, stack)
            _check_names(path, shapes)
            _check_extent(path, 4 * sum(math.prod(shape) for shape in shapes.values()))
        yield Contents(path, shapes, _guarded(path, read), card, described)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The one place where what goes wrong in a file that somebody else may have written becomes a WeightsError: the libraries that
    read it raise anything from struct.error to AssertionError."""
    try:
        yield
    except (BitError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {path}.") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise _damaged(path, error) from error


def _check_names(path: Path, shapes: Mapping[Any, tuple[int, ...]]) -> None:
    for name in shapes:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise WeightsError(
                f"{path}: a tensor's name is {_cut(repr(name))}, of type {kind}; a network's are text such as 'head.weight'."
            )


def _check_extent(path: Path, claimed: int) -> None:
    """Few bytes may claim to be a great network: a compressed archive, or a tensor that repeats one number."""
    size = path.stat().st_size
    if claimed > max(2**30, limits().archive_ratio * size):
        raise WeightsError(
            f"{path} has {size:,} bytes but claims to hold tensors of {claimed:,}. If it is meant, raise the limit: "
            f"--limits archive_ratio={claimed // max(size, 1) + 1}."
        )


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if list(folder.glob("*.index.json")):
        raise WeightsError(f"{folder}: weights split over several files are not supported; save them as one file.")
    found = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(f"{folder} holds {len(found)} weight files; name the one you mean, such as {found[0]}.")
    if (folder / "metrics.jsonl").exists():
        raise WeightsError(f"The run {folder} has no model.safetensors yet: it has not finished. Resume it first.")
    raise WeightsError(f"The folder {folder} holds no model (no {IN_FOLDERS[0]}).")


_COUNTED = ("num_batches_tracked", "relative_position_index", "attention_bias_idxs")
"""Ends of the names of tensors that hold whole numbers."""

_Opened = tuple[Mapping[str, tuple[int, ...]], Callable[[str], Tensor], "ModelCard | None"]


def _kind(path: Path) -> Callable[[Path, contextlib.ExitStack], _Opened]:
    with files.opened(path) as file:  # a pipe would be waited for
        start = file.read(256)
    if path.suffix.lower() in EXPORTED:
        raise WeightsError(
            f"{path} is an exported network: `bit predict`, `evaluate` and `info` take it, but it cannot be trained or converted. Give the "
            "model file that it was made from."
        )
    if not start:
        raise WeightsError(f"{path} is empty. Download or save it again.")
    if start.startswith(b"version https://git-lfs.github.com"):
        raise WeightsError(f"{path} is only a Git LFS pointer; `git lfs pull` in its repository gets the weights.")
    # safetensors begins with the length of its header, any bytes.
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length < 100_000_000:
        return _open_safetensors
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: its download went wrong. Download it again.")
    if start.startswith(b"\x89HDF"):
        raise WeightsError(f"{path} is a TensorFlow .h5 file. Use the .npz file of the same model instead.")
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
            _check_extent(path, sum(entry.file_size for entry in archive.infolist()))
        return _open_torch if any(entry.endswith("data.pkl") for entry in entries) else _open_npz
    if start[:1] == b"\x80":  # a bare pickle: torch.save before version 1.6
        return _open_torch
    raise WeightsError(f"{path} is no weight file that is known here (safetensors, .npz, PyTorch).")


def _damaged(path: Path, error: BaseException) -> WeightsError:
    detail = str(error).strip().splitlines()
    return WeightsError(
        f"{path} is damaged or incomplete ({detail[0] if detail else type(error).__name__}). Download or save it again."
    )


def _guarded(path: Path, read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    def guarded(name: str) -> Tensor:
        with _reading(path):
            tensor = read(name)
        kind = f"{tensor.layout}".removeprefix("torch.")
        if kind != "strided" or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else kind if kind != "strided" else tensor.device.type
            raise WeightsError(
                f"{path}: {name} is a {kind} tensor, without the plain numbers that a network is made of."
            )
        if not tensor.is_floating_point() and not name.endswith(_COUNTED):
            raise WeightsError(f"{path}: {name} holds {tensor.dtype}, not floating-point numbers.")
        return tensor

    return guarded


def _open_safetensors(path: Path, stack: contextlib.ExitStack) -> _Opened:
    file = stack.enter_context(safetensors.safe_open(path, "pt"))
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    header = (file.metadata() or {}).get(HEADER_KEY)
    # clone: what safetensors gives is a view of the memory-mapped file.
    return (
        shapes,
        lambda name: file.get_tensor(name).clone(),
        None if header is None else ModelCard.from_json(header, f"{path}: its card"),
    )


def _open_npz(path: Path, stack: contextlib.ExitStack) -> _Opened:
    archive = stack.enter_context(zipfile.ZipFile(path))
    entries: dict[str, zipfile.ZipInfo] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of headers that Python 2 wrote
                shape, _, dtype = read_header(file)
            start = file.tell()
        if dtype.hasobject:
            raise WeightsError(
                f"{path}: {name} holds pickled objects, which are never loaded because they can run code."
            )
        if start + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise _damaged(
                path, ValueError(f"{name} has {entry.file_size} bytes, which its shape {shape} does not need")
            )
        entries[name], shapes[name] = entry, tuple(shape)

    def read(name: str) -> Tensor:
        with archive.open(entries[name]) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.lib.format.read_array(file, allow_pickle=False)
        if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how NumPy stores JAX's bfloat16
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))

    return shapes, read, None


_HOLDERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "backbone",
    "module",
)
"""What checkpoints keep a network under, in each other too: those of timm, the authors, Lightning, and people's own."""

_PLAIN = [
    argparse.Namespace,  # timm's checkpoints keep their command line in one: only attributes
    # A metric among the values is often NumPy's number: bytes and their dtype.
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDG"},
]
"""What may be in a checkpoint beside tensors without being able to run code."""


def _open_torch(path: Path, stack: contextlib.ExitStack) -> _Opened:
    # Memory-mapping needs a path, but for a path torch.load trusts the name: x.safetensors would not be read as what it is.
    mmap = zipfile.is_zipfile(path) and path.suffix != ".safetensors"
    if mmap:
        with zipfile.ZipFile(path) as archive:
            mmap = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    try:
        with open(path, "rb") as file, torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols and the like, which say nothing to who loads a model
            loaded = torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise WeightsError(
                f"{path} holds Python objects besides tensors. It is not loaded, because unpickling them could run any code. "
                "Save the state_dict alone, or as safetensors."
            ) from error
        raise _damaged(path, error) from error
    state = _state_dict(loaded)
    if state is None:
        raise WeightsError(
            f"{path} holds no state dict: a mapping of names to tensors, or one under 'model' or 'state_dict'."
        )
    # clone: the tensors lie in the memory-mapped file, which somebody may replace.
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, lambda name: state[name].clone(), None


def _state_dict(loaded: Any, depth: int = 4) -> Mapping[str, Tensor] | None:
    """The mapping of names to tensors in a checkpoint, wherever it is kept; None if there is none."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if all(isinstance(value, Tensor) for value in loaded.values()):
        return loaded
    held = (_state_dict(loaded.get(key), depth - 1) for key in _HOLDERS) if depth else ()
    return next((state for state in held if state is not None), None)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."


# --- Writing


@contextlib.contextmanager
def _writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`runs.atomic_write`, with the many ways in which libraries say that the disk is full as WeightsError."""
    try:
        with runs.atomic_write(path) as temporary:
            yield temporary
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be written ({error}). Is there room on the disk?") from error


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors atomically; `metadata` becomes the header's."""
    with _writing(path) as temporary:
        safetensors.torch.save_file(dict(tensors), temporary, metadata=dict(metadata))


def write_npz(path: str | os.PathLike[str], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write an uncompressed .npz atomically, holding one tensor at a time."""
    with _writing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, tensor in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which NumPy has not
                np.lib.format.write_array(file, tensor.contiguous().numpy(), allow_pickle=False)


def write_torch(path: str | os.PathLike[str], value: Any) -> None:
    """`torch.save`, atomically."""
    with _writing(path) as temporary:
        torch.save(value, temporary)
