"""Groups of failures, and the file that a campaign leaves behind."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import pyarrow
import safetensors
import torch

from benchmarks.cells import commit, machine

from .supervisor import Limits, Result

KINDS = (
    "traceback",
    "hang",
    "crash",
    "memory",
    "program",
    "network",
    "code",
    "write",
    "control character",
    "wrong answer",
    "noise",
)


@dataclass
class Group:
    kind: str
    where: str
    count: int = 0
    first: Result | None = None
    detail: str = ""


@dataclass
class Tally:
    """What became of the cases of a campaign."""

    cases: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    """Cases by generator of which every door gave an answer."""
    refused: Counter[str] = field(default_factory=Counter)
    """Cases by generator of which some door was refused with a BitError, and nothing was wrong."""
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Generator -> kind of fault -> cases."""
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def add(self, result: Result) -> None:
        name = result.generator
        self.cases[name] += 1
        faults = result.faults()
        outcomes = {door["outcome"] for door in result.doors}
        if not faults:
            (self.refused if "refused" in outcomes else self.opened)[name] += 1
        for kind in {kind for kind, _, _ in faults}:
            self.kinds[name][kind] += 1
        for kind, where, detail in faults:
            group = self.groups.setdefault((kind, where), Group(kind, where))
            group.count += 1
            if group.first is None:
                group.first, group.detail = result, detail
        at = f"{name} {result.seed}"
        self.slowest = max(
            self.slowest, *((door.get("seconds", 0.0), f"{at}, {door['door']}") for door in result.doors), (0.0, "")
        )
        self.largest = max(self.largest, (result.peak, at))

    def count(self, kind: str) -> int:
        return sum(kinds[kind] for kinds in self.kinds.values())

    def sorted_groups(self) -> list[Group]:
        return sorted(
            self.groups.values(),
            key=lambda group: (KINDS.index(group.kind) if group.kind in KINDS else 99, -group.count),
        )


def summary(campaign: str, tally: Tally) -> str:
    """The failures, grouped, for whoever mends them."""
    total = sum(tally.cases.values())
    lines = [f"# {campaign}: {total} cases at {commit()}", ""]
    lines += [
        ", ".join(f"{kind} {tally.count(kind)}" for kind in KINDS if tally.count(kind)) or "nothing was wrong",
        "",
    ]
    for group in tally.sorted_groups():
        assert group.first is not None
        lines.append(f"- {group.kind} x{group.count}: {group.where}\n    {group.detail[:200]}")
        lines.append(f"    {group.first.kept or '(not kept)'}")
        if group.kind == "traceback":
            tail = next((door["tail"] for door in group.first.doors if door["outcome"] == "failed"), "")
            lines += [f"    | {line}" for line in tail.strip("'\"").split("\\n")[-5:] if line]
    return "\n".join(lines) + "\n"


def markdown(campaign: str, what: str, command: str, tally: Tally, seconds: float) -> str:
    total = sum(tally.cases.values())
    wrong = ", ".join(f"{kind} **{tally.count(kind)}**" for kind in KINDS)
    rows = []
    shown = [kind for kind in KINDS if tally.count(kind)]
    for name in sorted(tally.cases):
        row = [
            name,
            tally.cases[name],
            tally.opened[name],
            tally.refused[name],
            *(tally.kinds[name][kind] for kind in shown),
        ]
        rows.append("| " + " | ".join(map(str, row)) + " |")
    head = " | ".join(["generator", "cases", "every door answered", "refused", *shown])
    groups = [
        f"| {group.kind} | {group.where} | {group.count} | `{group.first.generator} {group.first.seed}` | {_cell(group.detail)} |"
        for group in tally.sorted_groups()
        if group.first is not None
    ]
    listed = (
        "\n".join(["| kind | where | cases | the first | what |", "|---|---|---|---|---|", *groups])
        if groups
        else "None."
    )
    return f"""# Hostile {campaign}: {total:,} cases

- Command: `{command}`
- Versions: commit {commit()}, Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}, Pillow
  {PIL.__version__}, safetensors {safetensors.__version__}, pyarrow {pyarrow.__version__}
- Hardware: {machine()}; {seconds:.0f} s in all, beside other work
- Limits of a door: {Limits.cpu:.0f} s of the processor or of waiting, {Limits.wall:.0f} s in all, {Limits.memory / 2**30:.0f} GiB more
  memory than before

{what}

Cases in which something was wrong: {wrong}.

Longest door: {tally.slowest[0]:.1f} s ({tally.slowest[1]}); most memory: {tally.largest[0] / 1e9:.2f} GB ({tally.largest[1]}).

| {head} |
|{"---|" * (4 + len(shown))}
{chr(10).join(rows)}

## What was wrong, by place

{listed}

Any case again: `python -m benchmarks.hostile {campaign} --one GENERATOR SEED`.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:120]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
