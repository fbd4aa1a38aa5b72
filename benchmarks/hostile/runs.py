"""Run folders, finished and interrupted, whose files hold other values, types, lines and bytes: through `bit report`, `bit info` and the
command that made them, given again."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

from bigtransfer import cli, weights

from . import jsons
from .cases import Campaign, Case, Door
from .datasets import bases
from .models import tiny
from .mutate import blind, cut


def _command(scratch: Path, run: Path) -> list[str]:
    small = [
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--crop",
        "16",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    model = str(tiny(scratch / "models" / "square.safetensors"))
    return [
        "finetune",
        str(scratch / "photos"),
        "--model",
        model,
        "--out",
        str(run),
        "--checkpoint-every",
        "0s",
        *small,
    ]


def prepare(scratch: Path) -> None:
    """A finished run, and one that was interrupted before its model was saved."""
    model, picture = tiny(scratch / "models" / "square.safetensors"), scratch / "picture.png"
    picture.write_bytes(bases.png(0))
    cli.main(["predict", str(model), str(picture), "--device", "cpu"])  # what is compiled at first use
    if (scratch / "interrupted" / "config.json").exists() and (scratch / "finished" / "report.html").exists():
        return
    for k, split in enumerate(("train", "test")):
        bases.folders(scratch / "photos" / split, first=9 * k)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(_command(scratch, scratch / "finished")) == 0
        with mock.patch.object(weights, "save", side_effect=KeyboardInterrupt):
            assert cli.main(_command(scratch, scratch / "interrupted")) == 130
        assert list((scratch / "interrupted" / "checkpoints").glob("step-*"))
        assert cli.main(["report", str(scratch / "finished")]) == 0


def _copy(kind: str, folder: Path) -> Path:
    """The run, its large files shared with the one it comes from."""

    def place(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(folder.parent / kind, folder / "run", copy_function=place))


def _written(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be shared
    path.write_bytes(data)


def _records(rng: Random, folder: Path, kind: str, name: str) -> Case:
    """A JSON file of the run with other values."""
    run = _copy(kind, folder)
    path = next(iter(sorted(run.rglob(name))), None)
    if path is None:
        path, record = run / name, {"step": 1, "x": "y"}
    else:
        record = json.loads(path.read_text())
    changed = jsons.spoiled(rng, record, most=3)
    _written(
        path, jsons.text(rng, changed) if rng.random() < 0.15 else json.dumps(changed).encode("utf-8", "surrogatepass")
    )
    return Case(run, {"kind": kind})


def metrics(rng: Random, folder: Path) -> Case:
    """Lines of metrics.jsonl that are cut, of other types, other steps, millions."""
    kind = rng.choice(("finished", "interrupted"))
    run = _copy(kind, folder)
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    for _ in range(rng.randint(1, 3)):
        line = rng.choice(
            (
                b"{}",
                b"[1, 2]",
                b"null",
                b"",
                b"\0" * 50,
                b"\xff\xfe",
                b'{"step": "1"}',
                b'{"step": -5, "loss": 1}',
                b'{"step": 1e400, "loss": NaN, "lr": Infinity}',
                b'{"step": 99999999999999999999, "loss": null}',
                b'{"step": 1, "loss": "high", "val/top1": [1]}',
                b'{"step": 2, "loss": 1e308}',
                b'{"step": true}',
                jsons.text(
                    rng,
                    jsons.spoiled(rng, {"step": 1, "loss": 0.5, "lr": 0.1, "val/top1": 0.5, "images_per_second": 3.0}),
                ),
            )
        )
        lines.insert(rng.randint(0, len(lines)), line)
    data = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines) + rng.choice((b"\n", b"", b'{"step": 3, "lo'))
    if rng.random() < 0.1:
        data = rng.choice((blind, cut))(rng, data)
    if rng.random() < 0.05:
        data *= 3000
    _written(run / "metrics.jsonl", data)
    return Case(run, {"kind": kind})


def checkpoint(rng: Random, folder: Path) -> Case:
    """A checkpoint with other bytes: in its tensors, in its manifest, cut, missing, of another name."""
    run = _copy("interrupted", folder)
    path = rng.choice([path for path in sorted((run / "checkpoints").rglob("*")) if path.is_file()])
    data = path.read_bytes()
    match rng.randrange(6):
        case 0:
            _written(path, blind(rng, data))
        case 1:
            _written(path, cut(rng, data))
        case 2:
            path.unlink()
        case 3:
            at = rng.randrange(len(data))
            _written(path, data[:at] + rng.randbytes(64) + data[at + 64 :])
        case 4:
            path.parent.rename(
                path.parent.with_name(
                    rng.choice(("step-99999999", "step-x", "step-00000000", "step-", "x", "step-00000003.tmp"))
                )
            )
        case _:
            (run / "checkpoints" / rng.choice(("step-99999999", "step-00000099", ".x.tmp", "step-00000003x"))).mkdir()
    return Case(run, {"kind": "interrupted"})


def files(rng: Random, folder: Path) -> Case:
    """Files that are missing, pipes, devices, folders, loops."""
    kind = rng.choice(("finished", "interrupted"))
    run = _copy(kind, folder)
    path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    if rng.random() < 0.1:
        path = rng.choice([path for path in sorted(run.rglob("*")) if path.is_dir()] or [path])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    match rng.randrange(7):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice((path, "/dev/zero", "/dev/null", "/dev/full", "nothing")))
        case 2:
            path.mkdir()
        case 3:
            path.touch()
        case 4:
            path.write_bytes(rng.randbytes(200))
        case 5:
            with open(path, "wb") as file:
                file.truncate(5 << 30)
    return Case(run, {"kind": kind})


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    run, command = str(case.path), _command(scratch, Path(case.path))
    if rng.random() < 0.5 or case.options["kind"] == "finished":
        yield "bit report", lambda: cli.main(["report", run])
    if rng.random() < 0.5:
        yield "bit info", lambda: cli.main(["info", run])
    yield "the same command", lambda: cli.main(command)


_FILES = {
    "finished": ("config.json", "evaluation.json", "unreadable.json", "split.json", "copies.json"),
    "interrupted": ("config.json", "checkpoint.json", "split.json"),
}

CAMPAIGN = Campaign(
    "runs",
    {
        **{
            f"{kind}.{name.partition('.')[0]}": functools.partial(_records, kind=kind, name=name)
            for kind, names in _FILES.items()
            for name in names
        },
        **{f"run.{one.__name__}": one for one in (metrics, checkpoint, files)},
    },
    doors,
    prepare,
)
