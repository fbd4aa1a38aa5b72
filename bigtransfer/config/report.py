"""The knobs of `bit report`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, Positional


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write a run's report.html anew.

    For a run that was interrupted, or after an update. The pictures are read from the data set where it still is.
    `bit compare RUN RUN` compares several.
    """

    run: Positional[str]
    """Folder of the run."""
    data: str | None = None
    """Where the images are now. Default: where the run found them."""
