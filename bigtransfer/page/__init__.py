"""The page that classifies images in a browser: one HTML file, and two ways to answer. `bit serve` sends it, and it asks that server;
`bit convert --to web` writes it with the network inside, and it asks nobody.

    page.html, page.css, page.js   the page
    by_server.js, by_itself.js     who answers it: each has `opened`, `answered` and `explained`
    worker.js                      what computes the network in the browser
    onnxruntime_web.py             where that gets its runtime from
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from importlib import resources
from typing import Any

import jinja2

from bigtransfer.catalog import DEFAULT_THRESHOLD, ModelCard
from bigtransfer.errors import ConfigError
from bigtransfer.page.onnxruntime_web import VERSION, Runtime, runtime

__all__ = ["VERSION", "Runtime", "alone", "check", "html", "policy", "runtime"]


@functools.cache
def html() -> str:
    """The page that asks its server."""
    return _filled(_script("by_server.js"), alone=False)


@functools.cache
def policy() -> str:
    """The Content-Security-Policy under which a browser runs that: its own style and script, its own server, and pictures that it makes."""
    return (
        f"default-src 'none'; script-src '{_hash(_script('by_server.js'))}'; style-src '{_hash(_own('page.css'))}'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def check(card: ModelCard) -> None:
    """ConfigError for a model that no page can answer for."""
    if not card.num_classes:
        raise ConfigError(
            f"{card.name} has no classes, and the page shows nothing else. Give it some: bit finetune DATA --model FILE"
        )
    if card.architecture.in_chans not in (1, 3):
        raise ConfigError(
            f"{card.name} takes images of {card.architecture.in_chans} channels, and browsers decode 1 or 3."
        )


def alone(network: bytes, card: ModelCard, runtime: Runtime) -> str:
    """The page that has all that it needs. network: an ONNX file that takes uint8 pixels (`backends.graph`), of a model with classes
    that takes images of 1 or 3 channels.

    Its own policy lets it ask nobody, whatever is in it: what is dropped on it stays there.
    """
    script = _script("by_itself.js")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' blob: 'wasm-unsafe-eval'; worker-src blob:; "
        f"style-src '{_hash(_own('page.css'))}'; img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'"
    )
    contents = {
        "card": json.dumps(_told(card)).replace("<", "\\u003c"),
        "worker": _own("worker.js"),
        "library": _packed(runtime.library),
        "binary": _packed(runtime.binary),
        "network": _packed(network),
    }
    return _filled(script, alone=True, policy=policy, contents=contents)


def _told(card: ModelCard) -> dict[str, Any]:
    """What the worker has to know of a model."""
    thresholds = None
    if card.multi_label:
        thresholds = card.thresholds or (DEFAULT_THRESHOLD,) * card.num_classes
    spec = card.input
    return {
        "name": card.name,
        "classes": card.class_names or [*map(str, range(card.num_classes))],
        "thresholds": thresholds,
        "input": {
            "size": spec.size,
            "resized": spec.resized,
            "mode": spec.mode,
            "interpolation": spec.interpolation,
            "antialias": spec.antialias,
            "decoder": spec.decoder,
            "channels": card.architecture.in_chans,
        },
    }


def _filled(script: str, **values: Any) -> str:
    template = jinja2.Template(
        _own("page.html"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return template.render(script=script, style=_own("page.css"), **({"contents": {}} | values))


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def _script(by: str) -> str:
    return _own(by) + _own("page.js")


def _own(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
