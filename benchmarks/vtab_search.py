"""The search for one of VTAB-1k's tasks with few and small trials, to see the whole way from the first draw to the test.

    python -m benchmarks.vtab_search caltech101 --root DATA --trials 2 --steps 10 20

What comes out is added to a file of results as `bit evaluate` would; its parameters say that it is not the paper's search.
"""

from __future__ import annotations

import argparse
import dataclasses

from bigtransfer.config import EvaluateConfig
from bigtransfer.jobs.suite import described, measured
from bigtransfer.suites import registry
from bigtransfer.suites.suite import Suite, Task
from bigtransfer.suites.vtab.search import Search, Space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--model", default="bit-t-r26x1")
    parser.add_argument("--root", required=True)
    parser.add_argument("--results", default="results.jsonl")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--size", type=int, nargs="+", default=[64])
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    task = registry.find("vtab-1k-search").task(given.task)
    assert isinstance(task.protocol, Search)
    protocol = dataclasses.replace(
        task.protocol,
        trials=given.trials,
        space=Space(steps=tuple(given.steps), size=tuple(given.size)),
        batch_size=given.batch_size,
    )
    suite = Suite(
        name="vtab-search-few",
        title="A search with few and small trials (not the paper's)",
        tasks=(Task(name=task.name, benchmark=task.benchmark, protocol=protocol),),
    )
    registry.SUITES[suite.name] = suite
    config = EvaluateConfig(model=given.model, suite=(suite.name,), root=given.root, results=given.results)
    for outcome in measured(config):
        print(outcome, *(described(number) for number in outcome.results), outcome.error or "")


if __name__ == "__main__":
    main()
