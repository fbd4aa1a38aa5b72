"""BiT-L on N nodes: the tables that docs/scale.md quotes.

python -m simulation.report
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from simulation.assumptions import POOR, RICH, STORED, Disk, Failures, Gpu, Store
from simulation.report import decoding, elastic, failures, own, reading, storage, work

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def assumptions() -> str:
    def short(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = []
    for value in (Gpu(), RICH, POOR, Store(), Disk(), Failures(), *STORED):
        fields = ", ".join(f"{key} {short(one)}" for key, one in dataclasses.asdict(value).items())
        lines.append(f"- `{type(value).__name__}`: {fields}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="simulated trainings per row of section 6 (default 20)")
    parser.add_argument(
        "--photographs", type=Path, default=Path("../shared/data/flowers12.tar"), help="JPEGs to time decoding with"
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC)
    sections = []
    for section in (
        work.section,
        storage.section,
        reading.section,
        decoding.section,
        failures.section,
        functools.partial(elastic.section, options.runs),
        functools.partial(own.section, options.photographs),
    ):
        sections.append(section())
        print(f"section {len(sections)} after {time.process_time():.0f} processor seconds", flush=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    text = f"""# BiT-L on N nodes: arithmetic and simulations, {date:%Y-%m-%d}

- Command: `python -m simulation.report --runs {options.runs}`; {time.process_time():.0f} processor seconds on one core
- Versions: commit {git.stdout.strip() or "unknown"} and what was being written then,
  Python {platform.python_version()}, NumPy {np.__version__}
- **No GPU, network or object store was measured.** Sections 1 to 6 are computed or simulated from the assumptions below, whose
  sources stand beside them in `simulation/assumptions.py`; section 7 is our own code, run. All times of GPUs are estimates.

{assumptions()}

{(chr(10) * 2).join(sections)}
"""
    out = options.out or RESULTS / f"scale_simulation_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
