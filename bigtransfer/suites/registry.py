"""Every suite by its name."""

from __future__ import annotations

import difflib

from bigtransfer.errors import ConfigError
from bigtransfer.suites import imagenet, objectnet, omnibenchmark, own, transfer, vtab
from bigtransfer.suites.suite import Suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (imagenet.SUITE, objectnet.SUITE, *transfer.SUITES, *omnibenchmark.SUITES, *vtab.SUITES)
}


def find(name: str) -> Suite:
    """The suite of that name, or in that TOML file; ConfigError listing those there are."""
    if name.endswith(".toml"):
        suite = own.read(name)
        if suite.name in SUITES:
            raise ConfigError(f"{name}: name: {suite.name!r} is a published suite; take another name.")
        taken = {task.benchmark.name for known in SUITES.values() for task in (*known.tasks, *known.extra)}
        if suite.name in taken:
            # Its results could stand beside what others published of that one.
            raise ConfigError(f"{name}: name: {suite.name!r} is a published benchmark; take another name.")
        return suite
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"There is no suite {name!r}.{hint} Suites: {', '.join(SUITES)}.")
    return SUITES[name]
