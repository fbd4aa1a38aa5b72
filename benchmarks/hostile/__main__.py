"""`python -m benchmarks.hostile CAMPAIGN`: run a campaign and write its results file."""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import results
from .cases import chosen as pairs
from .supervisor import Broken, Worker
from .worker import CAMPAIGNS, campaign

CASES = {"images": 10_000, "weights": 4000, "datasets": 4000, "runs": 1000, "server": 1000, "disk": 200, "kills": 150}
RESULTS = Path(__file__).parents[1] / "results"


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
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--out", type=Path, help="results file (default: in benchmarks/results)")
    parser.add_argument("--summary", type=Path, help="failures only, grouped, to this file; no results file then")
    options = parser.parse_args()
    name = options.campaign
    chosen = campaign(name)
    cases = options.cases or CASES[name]
    work = Path(tempfile.mkdtemp(prefix="hostile-"))
    started, tally = time.monotonic(), results.Tally()
    try:
        with Worker(work, options.keep.resolve()) as worker:
            if options.one:
                result = worker.run(name, options.one[0], int(options.one[1]))
                for door in result.doors:
                    print(*(f"{key}: {value}" for key, value in door.items()), sep="\n  ")
                print(result.faults(), f"{result.peak / 1e6:.0f} MB", result.kept, sep="\n")
                return int(bool(result.faults()))
            for generator, seed in pairs(chosen, cases, options.seed, options.only):
                try:
                    result = worker.run(name, generator, seed)
                except Broken as error:
                    print(f"a fault of the campaign's own: {error}", flush=True)
                    continue
                tally.add(result)
                for kind, where, _ in result.faults():
                    if tally.groups[kind, where].count == 1:
                        print(f"{kind}: {where}  [{generator} {seed}]", flush=True)
                if time.monotonic() - started > 60 * options.minutes:
                    break
                if options.summary and sum(tally.cases.values()) % 100 == 0:
                    results.write(options.summary, results.summary(name, tally))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if options.summary:
        results.write(options.summary, results.summary(name, tally))
        return 0
    command = f"python -m benchmarks.hostile {name} --cases {sum(tally.cases.values())} --seed {options.seed}"
    what = " ".join((sys.modules[f"benchmarks.hostile.{name}"].__doc__ or "").split())
    out = options.out or RESULTS / f"hostile-{name}_cpu_{datetime.date.today()}.md"
    results.write(out, results.markdown(name, what, command, tally, time.monotonic() - started))
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
