"""From what the sections computed to one HTML page: the templates, their filters, the style and the script."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources

import jinja2
from markupsafe import Markup


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0 to 1 as "83.3%"; a dash for None."""
    return "–" if share is None else f"{share:.{digits}%}"


def thousands(number: float) -> str:
    """A whole number as "12,000"."""
    return f"{number:,}"


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
    return environment.get_template("page.html").render(
        title=title, style=_own("style.css"), script=_own("script.js"), sections=parts
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands=thousands, plain=plain)
    return environment


def _own(name: str) -> Markup:
    """A file of this package, which goes into the page as it is."""
    return Markup((resources.files(__package__ or "") / name).read_text(encoding="utf-8"))
