"""Every suite by its name."""

from __future__ import annotations

import difflib

from bigtransfer.errors import ConfigError
from bigtransfer.suites import imagenet, objectnet, omnibenchmark, transfer, vtab
from bigtransfer.suites.suite import Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (imagenet.SUITE, objectnet.SUITE, *transfer.SUITES, *omnibenchmark.SUITES, *vtab.SUITES)
}


def find(name: str) -> Suite:
    """The suite of that name; ConfigError listing those there are."""
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"There is no suite {name!r}.{hint} Suites: {', '.join(SUITES)}.")
    return SUITES[name]
