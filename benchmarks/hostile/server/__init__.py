"""A lying web server: downloads, images, models and data sets from addresses whose answers break off, crawl, contradict each other,
name another version, redirect anywhere. What is downloaded in the end is one version, whole, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer import cli, data, fetch, weights

from ..cases import Campaign, Case, Door, Wrong
from ..datasets import indexed
from ..images.bases import encoded
from ..models import tiny
from .lies import VERSIONS, Answer, lie, server


def prepare(scratch: Path) -> None:
    os.environ["BIT_LIMITS"] = "stall_seconds=1,download_attempts=3,shard_attempts=3,download_bytes=100M"
    os.environ["BIT_OFFLINE"] = "0"
    fetch.BACKOFF = 0.01
    model = tiny(scratch / "models" / "square.safetensors")
    (scratch / "picture.png").write_bytes(encoded("PNG", "RGB", 33, 20))
    cli.main(["predict", str(model), str(scratch / "picture.png"), "--device", "cpu"])
    one = server()
    one.files = {f"/set/{path.name}": path.read_bytes() for path in indexed._base(scratch).iterdir()}
    one.files |= {"/image.png": encoded("PNG", "RGB", 33, 20), "/model.safetensors": model.read_bytes()}


def _script(rng: Random, *, lying: str = "") -> dict[str, Any]:
    script = [lie(rng) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.6:
        script.append(Answer(version=rng.choice((0, 0, 1))))  # the truth in the end
    return {"script": script, "lying": lying}


def _set(case: Case) -> None:
    one = server()
    one.script, one.lying, one.asked = case.options["script"], case.options["lying"], 0


def file(rng: Random, folder: Path) -> Case:
    """A file of three versions; now and then with the length and sum that it should have, or with a part from before."""
    options = _script(rng)
    if rng.random() < 0.4:
        options["wanted"] = {"size": len(VERSIONS[0]), "sha256": hashlib.sha256(VERSIONS[0]).hexdigest()}
    if rng.random() < 0.3:
        have = rng.choice((1, 100, 30_000, 60_000, 70_000))
        (folder / ".file.part").write_bytes(VERSIONS[rng.choice((0, 0, 1))][:have])
        state: Any = {"validator": '"v0"', "etag": '"v0"', "size": rng.choice((60_000, None, 5))}
        if rng.random() < 0.3:
            state = rng.choice((None, [], {}, {"validator": 5}, "x", {"validator": "\n", "size": -1}))
        (folder / ".file.part.json").write_text(json.dumps(state))
    return Case("/file", options)


def image(rng: Random, folder: Path) -> Case:
    return Case("/image.png", _script(rng))


def model(rng: Random, folder: Path) -> Case:
    return Case("/model.safetensors", _script(rng))


def shards(rng: Random, folder: Path) -> Case:
    """The folder that `bit shard` wrote; lies about one of its files, or all."""
    return Case("/set", _script(rng, lying=rng.choice(("", "index.json", ".tar", "offsets", "labels"))))


def tars(rng: Random, folder: Path) -> Case:
    return Case("/set/train-000000.tar", _script(rng))


def _download(case: Case, scratch: Path, address: str) -> None:
    """One version, whole, or an error; never a mixture, and never what is not what was wanted."""
    target = scratch / "case" / "file"
    wanted = case.options.get("wanted", {})
    fetch.download(address, target, **wanted)
    found = target.read_bytes()
    if wanted and found != VERSIONS[0]:
        raise Wrong("another file than the one that was wanted counts as downloaded")
    if all(answer.honest for answer in case.options["script"]) and found not in VERSIONS and not _short(case, found):
        raise Wrong(f"{len(found)} bytes that are no version of the file count as downloaded")


def _short(case: Case, found: bytes) -> bool:
    """Whether a server said that this is all, so that nobody could know better."""
    stated = {
        value.strip() for answer in case.options["script"] for name, value in answer.headers if name == "Content-Length"
    }
    odd = {name for answer in case.options["script"] for name, _ in answer.headers} - {
        "Connection",
        "Accept-Ranges",
        "Date",
    }
    raw = any(answer.raw is not None for answer in case.options["script"])
    return str(len(found)) in stated or bool(odd) or raw


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    address = f"http://127.0.0.1:{server().port}{case.path}"
    _set(case)
    cache = scratch / "case" / "cache"
    if case.path == "/model.safetensors":  # not for the others: compiled code lies there too
        os.environ["BIT_CACHE"] = str(cache)
    if case.path == "/file":
        yield "download", lambda: _download(case, scratch, address)
    elif case.path == "/image.png":
        chosen = str(scratch / "models" / "square.safetensors")
        yield "bit predict", lambda: cli.main(["predict", chosen, address, "--device", "cpu"])
    elif case.path == "/model.safetensors":
        yield "load", lambda: weights.load(address)
        os.environ["BIT_CACHE"] = str(scratch / "bit_cache")
    else:
        opened: list[Any] = []
        yield "open", lambda: opened.append(data.open_dataset(address, cache=cache))
        for splits in opened:
            yield "read", lambda splits=splits: splits.train.read(0)


CAMPAIGN = Campaign(
    "server",
    {f"server.{one.__name__}": one for one in (file, image, model, shards, tars)},
    doors,
    prepare,
)
