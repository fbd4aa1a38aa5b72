"""The page: one HTML file with its style and script in it, which asks nobody but this server."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources


@functools.cache
def html() -> str:
    """The whole page."""
    return _own("page.html").replace("/*style*/", _own("page.css")).replace("/*script*/", _own("page.js"))


@functools.cache
def policy() -> str:
    """The Content-Security-Policy under which a browser runs it: its own style and script, its own server, and pictures that it makes."""
    script, style = (_hash(_own(name)) for name in ("page.js", "page.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _own(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
