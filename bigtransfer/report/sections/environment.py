"""Versions and hardware of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Environment:
    facts: Mapping[str, str]


def compute(run: Contents) -> Environment | None:
    if run.config is None:
        return None
    facts = {key: str(value) for key, value in run.config.environment.items() if key != "argv"}
    return Environment(facts=facts) if facts else None
