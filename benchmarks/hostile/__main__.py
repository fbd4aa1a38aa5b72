"""`python -m benchmarks.hostile CAMPAIGN`: run a campaign and write its results file. Exit status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import results
from .cases import chosen as pairs
from .supervisor import Broken, Result, Worker
from .worker import CAMPAIGNS, campaign

CASES = {"images": 10_000, "weights": 4000, "datasets": 4000, "runs": 1000, "server": 1000, "disk": 200, "kills": 150}
RESULTS = Path(__file__).parents[1] / "results"


def _show(result: Result) -> int:
    """All that is known of one case."""
    for door in result.doors:
        print(*(f"{key}: {value}" for key, value in door.items()), sep="\n  ")
    print(result.faults(), f"{result.peak / 1e6:.0f} MB", result.kept, sep="\n")
    return int(bool(result.faults()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--cases", type=int, help=f"how many (default {CASES})")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each generator (default 0)")
    parser.add_argument("--only", default="", help="generators whose names begin so")
    parser.add_argument(
        "--one", nargs=2, metavar=("GENERATOR", "SEED"), help="one case, with all that is known about it"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("hostile"), help="where failing cases are kept (default hostile/)"
    )
    parser.add_argument("--processes", type=int, default=1, help="in which cases run beside each other (default 1)")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--out", type=Path, help="results file (default: in benchmarks/results)")
    parser.add_argument("--summary", type=Path, help="failures only, grouped, to this file; no results file then")
    options = parser.parse_args()
    name = options.campaign
    chosen = campaign(name)
    cases = options.cases or CASES[name]
    work = Path(tempfile.mkdtemp(prefix="hostile-"))
    keep, started, tally = options.keep.resolve(), time.monotonic(), results.Tally()
    try:
        if options.one:
            with Worker(work, keep) as worker:
                return _show(worker.run(name, options.one[0], int(options.one[1])))
        waiting, one_at_a_time = pairs(chosen, cases, options.seed, options.only), threading.Lock()

        def work_on(number: int) -> None:
            with Worker(work / str(number), keep) as worker:
                while time.monotonic() - started < 60 * options.minutes:
                    with one_at_a_time:
                        pair = next(waiting, None)
                    if pair is None:
                        return
                    try:
                        result = worker.run(name, *pair)
                    except Broken as error:
                        print(f"a fault of the campaign's own: {error}", flush=True)
                        continue
                    with one_at_a_time:
                        tally.add(result)
                        for kind, where, _ in result.faults():
                            if tally.groups[kind, where].count == 1:
                                print(f"{kind}: {where}  [{pair[0]} {pair[1]}]", flush=True)
                        if options.summary and sum(tally.cases.values()) % 100 == 0:
                            results.write(options.summary, results.summary(name, tally))

        with ThreadPoolExecutor(options.processes) as pool:
            list(pool.map(work_on, range(options.processes)))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.summary:
        results.write(options.summary, results.summary(name, tally))
        return int(bool(tally.groups))
    command = f"python -m benchmarks.hostile {name} --cases {sum(tally.cases.values())} --seed {options.seed}"
    what = " ".join((sys.modules[f"benchmarks.hostile.{name}"].__doc__ or "").split())
    out = options.out or RESULTS / f"hostile-{name}_cpu_{datetime.date.today()}.md"
    results.write(out, results.markdown(name, what, command, tally, time.monotonic() - started))
    print(f"written to {out}")
    return int(bool(tally.groups))


if __name__ == "__main__":
    sys.exit(main())
