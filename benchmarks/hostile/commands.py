"""Commands that write, and what they write when nothing disturbs them: for full disks and kills."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigtransfer import cli, weights
from bigtransfer.jobs.training import CLOCK

from .cases import Wrong
from .datasets import bases
from .models import tiny

_SMALL = "--batch-size 4 --crop 16 --workers 0 --device cpu --precision fp32 --checkpoint-every 0s"

COMMANDS: Mapping[str, str] = {
    "finetune": f"finetune PHOTOS --model MODEL --out OUT --steps 3 {_SMALL}",
    "finetune linear": "finetune PHOTOS --model MODEL --out OUT --linear closed --crop 16 --device cpu --precision fp32",
    "shard": "shard PHOTOS OUT --threads 1 --shard-images 4",
    "convert to npz": "convert MODEL OUT/model.npz --to npz",
    "convert to torch": "convert MODEL OUT/model.pth.tar --to torch",
    "convert to transformers": "convert MODEL OUT --to transformers",
    "convert to bit": "convert MODEL OUT/model.safetensors --to bit --dtype bfloat16",
    "predict csv": "predict MODEL PHOTOS --out OUT/answers.csv --format csv --device cpu --probabilities",
    "predict jsonl": "predict MODEL PHOTOS --out OUT/answers.jsonl --format jsonl --device cpu",
    "predict features": "predict MODEL PHOTOS --out OUT/answers.csv --features OUT/features.npz --device cpu",
    "evaluate": "evaluate MODEL PHOTOS --split test --out OUT --json OUT/result.json --device cpu",
    "report": "report RUN",
}
"""OUT is where it writes; what else is in capitals was there before."""

STAYS = frozenset((".lock",))
"""Files that may be in the folder of a command that was disturbed, though not in the other."""


@dataclass(frozen=True)
class Inputs:
    photos: Path
    model: Path
    run: Path


def inputs(scratch: Path) -> Inputs:
    """What the commands start from, made once."""
    found = Inputs(scratch / "photos", tiny(scratch / "models" / "square.safetensors"), scratch / "finished")
    if not found.photos.exists():
        for k, split in enumerate(("train", "test")):
            bases.folders(found.photos / split, first=9 * k)
    if not (found.run / "report.html").exists():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            arguments = COMMANDS["finetune"].replace("OUT", "RUN")
            assert cli.main(_filled(arguments, found, found.run)) == 0
    return found


def _filled(command: str, given: Inputs, out: Path) -> list[str]:
    places = {"PHOTOS": given.photos, "MODEL": given.model, "RUN": given.run, "OUT": out}
    words = command.split()
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    return words


def arguments(name: str, scratch: Path, out: Path) -> list[str]:
    """The command line; `report` works in a copy of the finished run at `out`."""
    given = inputs(scratch)
    if name == "report":
        given = Inputs(given.photos, given.model, out)
        if not out.exists():
            shutil.copytree(inputs(scratch).run, out, ignore=shutil.ignore_patterns("report.html"))
    return _filled(COMMANDS[name], given, out)


def again(name: str, out: Path) -> list[str]:
    """The flag with which the command does not mind what it, or an earlier one, left."""
    return ["--overwrite"] if name.startswith("convert") and out.exists() and any(out.iterdir()) else []


def print_of(out: Path) -> dict[str, str]:
    """File below `out` -> a digest of what is in it that must be the same in every repetition of the command."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or path.name in STAYS:
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps([{key: one for key, one in line.items() if key not in CLOCK} for line in lines]).encode()
        elif path.suffix == ".safetensors":
            state = weights.load(path).state_dict() if path.name == "model.safetensors" else {}
            data = b"".join(tensor.numpy().tobytes() for tensor in state.values())
        elif path.name in (
            "config.json",
            "report.html",
            "index.json",
            "evaluation.json",
            "result.json",
        ) or path.suffix in (".npz", ".tar"):
            data = b""  # times and places stand in them; that they are there is what counts
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def expected(name: str, scratch: Path) -> dict[str, str]:
    """`print_of` what the command leaves when nothing disturbs it; worked out once."""
    kept = scratch / "expected" / f"{name}.json"
    if not kept.exists():
        out = scratch / "undisturbed"
        shutil.rmtree(out, ignore_errors=True)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = cli.main(arguments(name, scratch, out))
        assert status == 0, (name, status, said.getvalue()[-500:])
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(print_of(out)))
    return json.loads(kept.read_text())


def compare(name: str, scratch: Path, out: Path) -> None:
    """Wrong if the command, given again until it was through, left anything else than it leaves undisturbed."""
    wanted, found = expected(name, scratch), print_of(out)
    if found != wanted:
        more, less = sorted(found.keys() - wanted.keys()), sorted(wanted.keys() - found.keys())
        other = sorted(key for key in found.keys() & wanted.keys() if found[key] != wanted[key])
        raise Wrong(f"{name}: left over {more}, missing {less}, otherwise {other}")


def size_of(out: Path) -> int:
    """Bytes of what is there."""
    return sum(os.path.getsize(path) for path in out.rglob("*") if path.is_file())
