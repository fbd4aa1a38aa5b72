"""The knobs of `bit report`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bigtransfer.config.fields import Config, Positional
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write a run's report.html anew, or compare several runs.

    For a run that was interrupted, or after an update. The pictures are read from the data set where it still is.
    Several runs that were measured on the same images are compared, the first with each of the others, image by image.
    """

    run: Positional[tuple[str, ...]]
    """Folder of the run, or of several."""
    data: str | None = None
    """Where the images are now. Default: where the run found them."""
    out: str | None = None
    """File for the comparison of several runs. Default: comparison.html in the first one's folder."""

    def check(self) -> None:
        if not self.run:
            raise ConfigError("Name the folder of a run.")
        if len(self.run) == 1 and self.out is not None:
            raise ConfigError("--out is for several runs; the report of one is in its folder.")
        if len({os.path.realpath(one) for one in self.run}) < len(self.run):
            raise ConfigError("A run is named twice; it cannot be compared with itself.")
