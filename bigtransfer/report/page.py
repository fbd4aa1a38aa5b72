"""From what the sections computed to one HTML page: the templates, their filters, the style and the script."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from bigtransfer import terminal


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 as "83.3%"; a dash for None."""
    return "–" if share is None else f"{share:.{digits}%}"


def decimals(number: float | None, digits: int) -> str:
    """A number to so many significant digits; a dash for None."""
    return "–" if number is None else f"{number:.{digits}g}"


def rounded(number: float) -> str:
    """A measured number above 0 to three digits: "0.0123", "1.2", "12,345"."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def thousands(number: float) -> str:
    """A whole number as "12,000"."""
    return f"{number:,}"


def counted(number: int, one: str, several: str) -> str:
    """ "1 class", "12,000 classes"."""
    return f"{number:,} {one if number == 1 else several}"


def plain(value: object) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return str(value)


def render(title: str, sections: Mapping[str, object]) -> str:
    """The whole page. sections: name of a template -> what it shows, whose attributes are the template's variables.

    Everything is escaped on its way into the HTML; only what the templates themselves make is not.
    """
    environment = _environment()
    parts = [Markup(environment.get_template(f"{name}.html").render(vars(shown))) for name, shown in sections.items()]
    script = _own("script.js")
    # A browser runs this script and no other, whatever else might stand in the page.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html").render(
        title=title, style=_own("style.css"), script=script, script_hash=script_hash, sections=parts
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters.update(
        percent=percent, decimals=decimals, thousands=thousands, rounded=rounded, plain=plain, counted=counted
    )
    return environment


def _visible(value: Any) -> Any:
    """Text that others chose, without characters that cannot be seen or change how its surroundings are read."""
    return terminal.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _own(name: str) -> Markup:
    """A file of this package, which goes into the page as it is."""
    return Markup((resources.files(__package__ or "") / name).read_text(encoding="utf-8"))
