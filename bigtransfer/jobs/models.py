"""`bit models`: the table of models that can be used by name."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from bigtransfer import catalog, fetch, settings
from bigtransfer.catalog import Published
from bigtransfer.config import ModelsConfig
from bigtransfer.errors import UnknownModel
from bigtransfer.terminal import json_line

_TITLES = ("name", "parameters", "classes", "input", "trained on", "weights")
_RIGHT = ("parameters", "classes", "input")


def run(config: ModelsConfig) -> None:
    records = [catalog.get(name) for name in catalog.list_models(config.pattern or "*")]
    if not records:
        raise UnknownModel(config.pattern, catalog.published())
    if config.json:
        print(json_line([_plain(record) for record in records], sys.stdout, indent=1))
        return
    rows = [_row([record]) for record in records] if config.pattern else list(_folded(records))
    for line in _table(_TITLES, rows):
        print(line)
    licences = ", ".join(sorted({record.card.licence for record in records}))
    print(
        f"\n{len(records)} model{'' if len(records) == 1 else 's'}, licence {licences}. Downloads go to {settings.cache_folder()}."
    )
    print("`bit info NAME` tells more about one; `bit finetune IMAGES --model NAME` starts from it.")
    if len(rows) < len(records):
        print("`bit models vtab` lists those fine-tuned on the 19 tasks of VTAB-1k one by one.")


def _folded(records: Iterable[Published]) -> Iterable[tuple[str, ...]]:
    """A row for each model, but one for all those of an architecture that were fine-tuned on VTAB-1k."""
    families: dict[str, list[Published]] = {}
    for record in records:
        families.setdefault(re.sub(r"-vtab-.*", "-vtab-TASK-runN", record.card.name), []).append(record)
    for name, members in families.items():
        yield (name, *_row(members)[1:])


def _row(records: Sequence[Published]) -> tuple[str, ...]:
    cards = [record.card for record in records]
    trained = {card.upstream for card in cards}
    where = [fetch.location(record) for record in records]
    counts = [f"{where.count(place)} {place}" for place in dict.fromkeys(where)]
    return (
        cards[0].name,
        f"{cards[0].num_parameters / 1e6:,.1f} M",
        _range([card.num_classes for card in cards]),
        f"{_range([card.input.size for card in cards])} px",
        trained.pop() if len(trained) == 1 else f"{trained.pop().partition(', then')[0]}, then a VTAB-1k task",
        where[0] if len(records) == 1 else ", ".join(counts),
    )


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    for row in (titles, *rows):
        cells = (
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _plain(record: Published) -> dict[str, Any]:
    card = dataclasses.asdict(record.card)
    return card | {
        "num_parameters": record.card.num_parameters,
        "addresses": record.addresses,
        "aliases": record.aliases,
        "weights": fetch.location(record),
    }
