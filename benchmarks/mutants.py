"""Small wrong changes to the package, one at a time: which share of them does the fast suite notice?

    python -m benchmarks.mutants map                    which tests run which lines: the suite under coverage, once
    python -m benchmarks.mutants run --count 100        so many changes, drawn by --seed; the survivors are listed
    python -m benchmarks.mutants run --only 3 17        some of them again

A change is of one of the kinds of `KINDS`, at a place drawn at random, every kind as likely; what only a message, a log line or an
annotation would show is left alone. It is tried on a copy of the repository, with those tests that run the changed line, quickest first
(where none does, with those that run the file); the first that fails ends it. A change that no test of these notices is a survivor.

The names of changes that make no difference, or only one of speed, are in `HARMLESS` with the reason; they are counted apart.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cells import commit, machine

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".mutants"
"""What `map` leaves for `run`; not part of the repository."""

MOST_TESTS, MOST_SECONDS = 150, 180.0
"""Of the tests that run a line: how many, and how long all together by the times of `map`."""

HARMLESS: dict[str, str] = {}
"""Change, as the results name it -> why it is none."""


@dataclass(frozen=True)
class Change:
    """`old`, which stands at `start` in the text of `file`, becomes `new`."""

    file: str
    line: int
    start: int
    old: str
    new: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {' '.join(self.old.split())[:60]} -> {' '.join(self.new.split())[:60]}"


# --- The changes

_COMPARED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
             ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}  # fmt: skip
_COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*"}
_SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "sorted": "list"}


def changes(file: str, text: str) -> Iterator[Change]:
    """Every change that can be made to a file, in the order of its lines."""
    tree = ast.parse(text)
    starts = [0]
    for row in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(row.encode()))
    content = text.encode()

    def place(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def source(node: ast.expr | ast.stmt) -> str:
        begin, end = place(node)
        return content[begin:end].decode()

    def replaced(node: ast.expr | ast.stmt, new: str, kind: str) -> Change:
        return Change(file, node.lineno, place(node)[0], source(node), new, kind)

    for node in _judged(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            operator = _COMPARED[type(node.ops[0])]
            yield replaced(node, f"{source(node.left)} {operator} {source(node.comparators[0])}", "comparison")
        elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED and not _is_text(node):
            new = f"({source(node.left)}) {_COMPUTED[type(node.op)]} ({source(node.right)})"
            yield replaced(node, new, "arithmetic")
        elif isinstance(node, ast.BoolOp):
            joint = " or " if isinstance(node.op, ast.And) else " and "
            yield replaced(node, joint.join(f"({source(value)})" for value in node.values), "and, or")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield replaced(node, f"({source(node.operand)})", "sign, not")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            value = node.value
            new = (
                str(not value)
                if isinstance(value, bool)
                else str(value + 1 if isinstance(value, int) else value * 2 or 1.0)
            )
            yield replaced(node, new, "constant")
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _SWAPPED and not node.keywords:
                yield replaced(node.func, source(node.func)[: -len(name)] + _SWAPPED[name], "function")
            for keyword in node.keywords:
                rest = [source(one) for one in node.args]
                rest += [
                    f"{k.arg}={source(k.value)}" if k.arg else f"**{source(k.value)}"
                    for k in node.keywords
                    if k is not keyword
                ]
                if keyword.arg is not None:
                    yield replaced(node, f"{source(node.func)}({', '.join(rest)})", "argument not passed")
        elif isinstance(node, ast.If | ast.While | ast.IfExp):
            yield replaced(node.test, f"not ({source(node.test)})", "condition")
        elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) or isinstance(node, ast.AugAssign):
            yield replaced(node, "pass", "statement left out")
        elif isinstance(node, ast.FunctionDef):
            defaults = [*zip(node.args.args[::-1], node.args.defaults[::-1], strict=False)]
            defaults += [
                (a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None
            ]
            body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
            for argument, default in defaults if body else ():
                first = body[0]
                ignored = f"{argument.arg} = {source(default)}\n{' ' * first.col_offset}{source(first)}"
                yield replaced(first, ignored, "argument ignored")


def _judged(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes whose change somebody should notice: not those of messages, annotations, and what only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list") or isinstance(value, ast.JoinedStr):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or isinstance(
                    child, ast.JoinedStr | ast.Raise | ast.Assert | ast.Import
                ):
                    continue
                if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                    continue
                if isinstance(child, ast.Call) and ast.unparse(child.func).startswith(
                    ("log.", "Annotated", "TypeVar", "msgspec.Meta")
                ):
                    continue
                if isinstance(child, ast.Subscript) and ast.unparse(child.value) in ("Annotated", "Literal", "cast"):
                    continue
                waiting.append(child)


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )


def drawn(count: int, seed: int) -> list[Change]:
    """So many changes of the whole package: first the kind, then the place at random, no line twice."""
    by_kind: dict[str, list[Change]] = {}
    for path in sorted((ROOT / "bigtransfer").rglob("*.py")):
        file = str(path.relative_to(ROOT))
        for change in changes(file, path.read_text(encoding="utf-8")):
            by_kind.setdefault(change.kind, []).append(change)
    generator = random.Random(seed)
    kinds, chosen, lines = sorted(by_kind), [], set()
    while len(chosen) < count:
        change = generator.choice(by_kind[generator.choice(kinds)])
        # A walrus may have lost its brackets.
        if (change.file, change.line) not in lines and _is_python((ROOT / change.file).read_bytes(), change):
            lines.add((change.file, change.line))
            chosen.append(change)
    return chosen


def _is_python(text: bytes, change: Change) -> bool:
    try:
        ast.parse(_changed(text, change))
    except SyntaxError:
        return False
    return True


def _changed(text: bytes, change: Change) -> bytes:
    end = change.start + len(change.old.encode())
    assert text[change.start : end] == change.old.encode()
    return text[: change.start] + change.new.encode() + text[end:]


# --- The tests


def map_tests(arguments: list[str]) -> None:
    """Run the fast suite under coverage, and keep which tests run which lines, and how long each takes."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    data, times = FOLDER / "coverage", FOLDER / "times.xml"
    config = FOLDER / "coveragerc"
    config.write_text(f"[run]\ndata_file = {data}\nsource = bigtransfer\ndynamic_context = test_function\n")
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", "-q", "-m", "not slow"]
    subprocess.run([*command, f"--junitxml={times}", *arguments], cwd=ROOT, check=False)


class Tests:
    """What `map_tests` found."""

    def __init__(self) -> None:
        import xml.etree.ElementTree as ElementTree

        from coverage.numbits import numbits_to_nums

        self.seconds: dict[str, float] = {}
        for case in ElementTree.parse(FOLDER / "times.xml").iter("testcase"):
            file = case.attrib["classname"].replace(".", "/") + ".py"
            self.seconds[f"{file}::{case.attrib['name']}"] = float(case.attrib["time"])
        self._lines: dict[str, dict[int, set[str]]] = {}
        with sqlite3.connect(FOLDER / "coverage") as data:
            rows = data.execute(
                "select file.path, context.context, numbits from line_bits join file on file.id = file_id "
                "join context on context.id = context_id where context.context != ''"
            )
            for path, context, numbits in rows:
                lines = self._lines.setdefault(str(Path(path).relative_to(ROOT)), {})
                for line in numbits_to_nums(numbits):
                    lines.setdefault(line, set()).add(context)

    def of(self, change: Change) -> list[str]:
        """The tests to try on a change, quickest first."""
        lines = self._lines.get(change.file, {})
        last = change.line + change.old.count("\n")
        contexts = set().union(*(lines.get(line, set()) for line in range(change.line, last + 1)))
        contexts = contexts or set().union(*lines.values())
        # "tests.test_x.test_y" is the function; its cases are "tests/test_x.py::test_y[case]".
        known = {
            context.replace(".", "/").rpartition("/")[0] + ".py::" + context.rpartition(".")[2] for context in contexts
        }
        cases = sorted((s, name) for name, s in self.seconds.items() if name.partition("[")[0] in known)
        chosen, total = [], 0.0
        for seconds, name in cases[:MOST_TESTS]:
            total += seconds
            if chosen and total > MOST_SECONDS:
                break
            chosen.append(name)
        return chosen


# --- Trying them


@dataclass(frozen=True)
class Outcome:
    change: Change
    noticed_by: str
    """A test, "timeout", or "" for nobody."""
    tests: int
    seconds: float


def attempt(change: Change, tests: list[str], copy: Path) -> Outcome:
    """Make the change in a copy of the repository and run the tests."""
    path = copy / change.file
    before = path.read_bytes()
    path.write_bytes(_changed(before, change))
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rfE", "--tb=no"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=copy, env=environment, capture_output=True, text=True, timeout=3 * MOST_SECONDS
        )
        failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        noticed = "" if done.returncode == 0 else (failed or ["the tests cannot be loaded"])[0]
    except subprocess.TimeoutExpired:
        noticed = "timeout"
    finally:
        path.write_bytes(before)
    return Outcome(change, noticed, len(tests), time.monotonic() - started)


def run(count: int, seed: int, only: list[int], workers: int, out: Path | None) -> None:
    """Try the drawn changes and report."""
    chosen, tests = drawn(count, seed), Tests()
    numbered = [(i, change) for i, change in enumerate(chosen) if not only or i in only]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copies = [Path(folder) / str(i) for i in range(workers)]
        for copy in copies:
            _copy(copy)
        free = list(copies)

        def one(numbered: tuple[int, Change]) -> Outcome:
            number, change = numbered
            copy = free.pop()
            try:
                outcome = attempt(change, tests.of(change), copy)
            finally:
                free.append(copy)
            print(
                f"{number:3} {'noticed ' if outcome.noticed_by else 'SURVIVED'} {outcome.seconds:5.0f} s  {change.name}",
                flush=True,
            )
            return outcome

        outcomes = list(pool.map(one, numbered))
    text = report(outcomes, count, seed)
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


def _copy(destination: Path) -> None:
    """The repository's own files."""
    names = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    )
    for name in filter(None, names):
        target = destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def report(outcomes: list[Outcome], count: int, seed: int) -> str:
    """The results as Markdown."""
    noticed = [one for one in outcomes if one.noticed_by]
    survivors = [one for one in outcomes if not one.noticed_by]
    harmless = [one for one in survivors if one.change.name in HARMLESS]
    real = len(outcomes) - len(harmless)

    def share(total: int) -> str:
        return f"{len(noticed)} of {total} ({len(noticed) / max(1, total):.0%})"

    lines = [
        "# Wrong changes that the fast suite notices",
        "",
        f"    python -m benchmarks.mutants map; python -m benchmarks.mutants run --count {count} --seed {seed}",
        "",
        f"Noticed: {share(len(outcomes))}; without the {len(harmless)} that make no difference, or one of speed only, {share(real)}.",
        "",
        "| kind | changes | noticed |",
        "|---|---|---|",
    ]
    for kind in sorted({one.change.kind for one in outcomes}):
        of_kind = [one for one in outcomes if one.change.kind == kind]
        lines.append(f"| {kind} | {len(of_kind)} | {sum(bool(one.noticed_by) for one in of_kind)} |")
    lines += ["", "## Not noticed", ""]
    for one in survivors:
        why = f": harmless, {HARMLESS[one.change.name]}" if one.change.name in HARMLESS else ""
        lines.append(f"- `{one.change.name}` ({one.change.kind}, {one.tests} tests){why}")
    lines += ["", "## Noticed", ""]
    lines += [f"- `{one.change.name}` ({one.change.kind}) by {one.noticed_by}" for one in noticed]
    return "\n".join([*lines, "", f"{machine()}; {commit()}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("map", help="which tests run which lines")
    running = commands.add_parser("run", help="try the changes")
    running.add_argument("--count", type=int, default=100)
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--only", type=int, nargs="*", default=[], help="numbers of some of them")
    running.add_argument("--workers", type=int, default=2)
    running.add_argument("--out", type=Path)
    asked, more = parser.parse_known_args()
    if asked.command == "map":
        map_tests(more)
    else:
        run(asked.count, asked.seed, asked.only, asked.workers, asked.out)


if __name__ == "__main__":
    main()
