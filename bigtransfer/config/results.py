"""The knobs of `bit results`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, Positional


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(Config):
    """Show what `bit evaluate --suite` measured beside what was published.

    Every number by which BiT is known has a row: ours for the same weights and protocol with the difference and whether it is within
    tolerance, or what to get and to do where there is none yet. Numbers of other protocols are never compared.
    """

    files: Positional[tuple[str, ...]] = ()
    """Files of results. Default: results.jsonl, where there is one."""
    suite: tuple[str, ...] = ()
    """Only what belongs to these suites; their tasks are listed with what they need."""
    all: bool = False
    """Every published number that is known here, not only the best known."""
    root: str | None = None
    """Folder that holds the benchmarks' images. Default: $BIT_BENCHMARKS, else a folder of the cache."""
    csv: str | None = None
    """File for the same rows as a table for spreadsheets."""
    out: str | None = None
    """File for the same as a page to look at (HTML), with figures."""
