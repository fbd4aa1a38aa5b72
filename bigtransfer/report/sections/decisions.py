"""What was asked, and what the rule made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtransfer import config as configs
from bigtransfer import hyperrule
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Decisions:
    command: str
    """What to type for the same run; empty if unknown."""
    notes: Sequence[str]
    """The rule's reasons."""
    columns: Mapping[str, Mapping[str, Any]]
    """Title -> name -> value."""


_HIDDEN = {"fingerprint", "found", "images", "given_away", "tail", "again", "choose"}
"""What tells a reader nothing, or the same again; the last are a plan's estimates and a switch within a budget, which the notes tell of."""

_OF_STEPS = {"eval_every", "loss"}
"""What is without effect where no steps are taken."""


_OF_CLASSIFIERS = {"loss", "mixup_alpha", "crop"}
"""What a detector's training does not have."""


def compute(run: Contents) -> Decisions | None:
    config = run.config
    if config is None:
        return None
    hidden = _HIDDEN if config.recipe is None or config.recipe.steps else _HIDDEN | _OF_STEPS
    recipe = config.recipe.to_dict() if config.recipe else {}
    decided = hyperrule.in_effect(recipe)
    if config.detects:
        hidden = hidden | _OF_CLASSIFIERS
        around = config.resolved.get("detector")
        decided |= around if isinstance(around, dict) else {}
    columns = {
        title: _scalars({key: value for key, value in rows.items() if key not in hidden})
        for title, rows in (("Decided", decided), ("Data and machine", {**config.data, **config.resolved}))
    }
    return Decisions(
        command=configs.command_line(config.command, config.asked) if config.asked else "",
        notes=recipe.get("notes", ()),
        columns={title: rows for title, rows in columns.items() if rows},
    )


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """What can be shown on a line, by its name for people."""
    return {
        key.replace("_", " "): value
        for key, value in values.items()
        if value not in (None, "", [], ())
        and value is not False  # what was not asked for
        and not any(isinstance(one, (dict, list)) for one in (value if isinstance(value, (list, tuple)) else [value]))
    }
