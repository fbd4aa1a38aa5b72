"""What was asked, and what the rule made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtransfer import config as configs
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Decisions:
    command: str
    """What to type for the same run; empty if unknown."""
    notes: Sequence[str]
    """The rule's reasons."""
    columns: Mapping[str, Mapping[str, Any]]
    """Title -> name -> value."""


def compute(run: Contents) -> Decisions | None:
    config = run.config
    if not config:
        return None
    command, asked = config.get("command", ""), config.get("asked", {})
    recipe = config.get("recipe", {})
    columns = {
        "Decided": _scalars({key: value for key, value in recipe.items() if key != "notes"}),
        "Data and machine": _scalars({**config.get("data", {}), **config.get("resolved", {})}),
    }
    return Decisions(
        command=configs.command_line(command, asked) if command and asked else "",
        notes=recipe.get("notes", ()),
        columns={title: rows for title, rows in columns.items() if rows},
    )


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """What can be shown on a line, by its name for people."""
    return {
        key.replace("_", " "): value
        for key, value in values.items()
        if value not in (None, "", [], ()) and not isinstance(value, dict)
    }
