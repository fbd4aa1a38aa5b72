"""Small wrong changes to the package, one at a time: which share of them does the fast suite notice?

    python -m benchmarks.mutants map                    which tests run which lines: the suite under coverage, once
    python -m benchmarks.mutants run --count 100        so many changes, drawn by --seed; the survivors are listed
    python -m benchmarks.mutants run --only 3 17        some of them again

A change is of one of the kinds of `KINDS`, at a place drawn at random, every kind as likely; what only a message, a log line or an
annotation would show is left alone. It is tried on a copy of the repository, with those tests that run the changed line, quickest first
(where none does, with those that run the file, first those that run little else); the first that fails ends it. A change that no test of
these notices is a survivor.

The names of changes that make no difference, or only one of speed, are in `HARMLESS` with the reason; they are counted apart.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cells import commit, machine

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".mutants"
"""What `map` leaves for `run`; not part of the repository."""

MOST_TESTS, MOST_SECONDS = 1_000, 240.0
"""Of the tests that run a line: how many, and how long all together by the times of `map`."""

PYTEST = [
    *("-q", "-p", "no:cacheprovider", "--no-header", "-rfE", "--tb=no"),
    *("-o", "faulthandler_timeout=300", "-o", "faulthandler_exit_on_timeout=true"),
]
_FAILED = re.compile("(FAILED|ERROR) tests/")

HARMLESS: dict[str, str] = {
    "bigtransfer/feed/loader.py:144 zip(indices.tolist(), rows, strict=True) -> zip(indices.tolist(), rows)": "of one length",
    "bigtransfer/data/containers.py:544 256 -> 257": "an icon's unstated width or depth is the largest either way",
    "bigtransfer/train/loop.py:237 keep_freed_memory() -> pass": "of speed only: freed memory goes back to the kernel",
    "bigtransfer/suites/vtab/sources.py:372 4096 -> 4097": "how many images are unpacked at a time, which shows nowhere",
    "bigtransfer/feed/background.py:68 process.join(timeout=2) -> pass": "workers that wait are killed too, with nothing to tidy up",
    "bigtransfer/jobs/pretrain.py:107 zip(titles, opened, strict=True) -> zip(titles, opened)": "of one length",
    'bigtransfer/weights/formats.py:304 zipfile.ZipFile(temporary, "w", allowZip64=True) -> '
    'zipfile.ZipFile(temporary, "w")': "what is left out is the default",
}
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
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            value = node.value
            other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 or 1.0
            yield replaced(node, str(other), "constant")
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


def map_tests(workers: int) -> None:
    """Run the fast suite under coverage in a copy, and keep which tests run which lines, and how long each takes.

    Processes that the tests start are followed. What fails in the copy without any change is never asked again.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copy = Path(folder) / "copy"
        _copy(copy)
        config, child = FOLDER / "settings.rc", FOLDER / "child.rc"
        settings = f"[run]\ndata_file = {FOLDER / 'coverage'}\nparallel = true\nsource = bigtransfer\n"
        config.write_text(settings)
        child.write_text(settings + "context = ${PYTEST_CURRENT_TEST}\n")
        (copy / "sitecustomize.py").write_text(
            "import os\nif 'PYTEST_CURRENT_TEST' in os.environ:\n    import coverage\n    coverage.process_startup()\n"
        )
        groups: list[list[Path]] = [[] for _ in range(workers)]
        for path in sorted((copy / "tests").glob("test_*.py"), key=lambda path: -path.stat().st_size):
            min(groups, key=lambda group: sum(one.stat().st_size for one in group)).append(path)

        def part(number: int) -> None:
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", "-q", "--tb=line"]
            command += ["-m", "not slow", "-p", "benchmarks.mutants_contexts", "-p", "no:cacheprovider"]
            command += [f"--junitxml={FOLDER / f'times-{number}.xml'}", *map(str, groups[number])]
            environment = _environment(copy) | {"COVERAGE_PROCESS_START": str(child), "MUTANTS_FOLDER": str(FOLDER)}
            subprocess.run(command, cwd=copy, env=environment, check=False)

        list(pool.map(part, range(workers)))
        combine = [sys.executable, "-m", "coverage", "combine", f"--rcfile={config}"]
        subprocess.run(combine, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        # What fails under coverage may pass without.
        (copy / "sitecustomize.py").unlink()
        cases = _cases()
        failing = [name for name, (_, passed) in cases.items() if not passed]
        if failing:
            server = Server(copy)
            failing = _named(server.run(failing, 60 * MOST_SECONDS))
            server.end()
        (FOLDER / "copy.json").write_text(json.dumps({"root": os.path.realpath(copy), "failing": failing}))
    print(f"{len(cases)} tests; they fail in a copy without any change: {', '.join(failing) or 'none'}")


def _cases() -> dict[str, tuple[float, bool]]:
    """Test -> seconds, and whether it passed, of the last `map`."""
    found = {}
    for path in FOLDER.glob("times-*.xml"):
        for case in ElementTree.parse(path).iter("testcase"):
            name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            if case.find("skipped") is None:
                passed = case.find("failure") is None and case.find("error") is None
                found[name] = (float(case.attrib["time"]), passed)
    return found


def _named(printed: str) -> list[str]:
    """The tests that pytest's summary names as failed."""
    rows = (row.removeprefix("FAILED ").removeprefix("ERROR ") for row in printed.splitlines() if _FAILED.match(row))
    return [row.partition(" - ")[0] for row in rows]


def _environment(copy: Path) -> dict[str, str]:
    # Triton reads its variable when it is first imported: before the tests' conftest could set it.
    settings = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    return {**os.environ, "PYTHONPATH": str(copy), **settings}


class Tests:
    """What `map_tests` found."""

    def __init__(self) -> None:
        facts = json.loads((FOLDER / "copy.json").read_text())
        self.seconds = {name: time for name, (time, _) in _cases().items() if name not in facts["failing"]}
        self._users = [json.loads(path.read_text()) for path in FOLDER.glob("fixtures-*.json")]
        self._rows: dict[str, list[tuple[str, bytes]]] = {}
        with sqlite3.connect(FOLDER / "coverage") as data:
            rows = data.execute(
                "select file.path, context.context, numbits from line_bits join file on file.id = file_id "
                "join context on context.id = context_id"
            )
            for path, context, numbits in rows:
                self._rows.setdefault(os.path.relpath(path, facts["root"]), []).append((context, numbits))

    def of(self, change: Change, most_seconds: float) -> list[str]:
        """The tests to try on a change: those that run it, quickest first, then those of which most is of its file."""
        last = change.line + change.old.count("\n")
        text = (ROOT / change.file).read_text(encoding="utf-8")
        first, names = _loaded(text, change.line)
        if first is None and change.line in self._lines(change.file):
            first = [change.line]
        lines = range(change.line, last + 1) if first is None else first
        tests = dict.fromkeys(self._running(change.file, lines), 0)
        stem = Path(change.file).stem
        # What is computed once, and kept, is seen to be run by the first that asks alone.
        tests |= dict.fromkeys(self._of_files(rf"test_{stem}\.py", ""), 0)
        if first is not None:
            # Run when the module is loaded, by no test: those that run lines of the same name, before the rest of the file's and those
            # of the files of tests that speak of the module.
            for name in names:
                for path in (ROOT / "bigtransfer").rglob("*.py"):
                    rows = path.read_text(encoding="utf-8").splitlines()
                    lines = [i for i, row in enumerate(rows, 1) if re.search(rf"\b{name}\b", row)]
                    tests |= dict.fromkeys(self._running(str(path.relative_to(ROOT)), lines), 0)
                tests |= dict.fromkeys(self._of_files("", rf"\b{name}\b"), 0)
            tests = dict.fromkeys(self._of_files("", rf"\b{stem}\b"), 1) | tests
            tests = dict.fromkeys(self._running(change.file, None), 1) | tests
        chosen, total = [], 0.0
        shares = self._shares(change.file) if any(tests.values()) else {}
        for test in sorted(
            tests, key=lambda test: (tests[test], -tests[test] * shares.get(test, 0.0), self.seconds[test])
        ):
            if (not chosen or total + self.seconds[test] <= most_seconds) and len(chosen) < MOST_TESTS:
                total += self.seconds[test]
                chosen.append(test)
        return chosen

    def _of_files(self, name: str, content: str) -> list[str]:
        """All tests of the files of tests whose name and text match."""
        files = [path for path in (ROOT / "tests").glob("test_*.py") if re.match(name, path.name)]
        names = {path.name for path in files if re.search(content, path.read_text(encoding="utf-8"))}
        return [test for test in self.seconds if test.partition("::")[0].removeprefix("tests/") in names]

    def _lines(self, file: str) -> set[int]:
        """What is run while modules are loaded, functions that are called then too."""
        found = (numbits for context, numbits in self._rows.get(file, []) if not context)
        return {
            8 * i + bit for numbits in found for i, byte in enumerate(numbits) for bit in range(8) if byte & 1 << bit
        }

    def _running(self, file: str, lines: Iterable[int] | None) -> set[str]:
        """The tests that run one of the lines of a file, or any."""
        found = set()
        for context, numbits in self._rows.get(file, []):
            if lines is None or any(line // 8 < len(numbits) and numbits[line // 8] & 1 << line % 8 for line in lines):
                found.update(self._tests(context))
        return found & self.seconds.keys()

    def _tests(self, context: str) -> list[str]:
        """Those of which coverage speaks by this name."""
        if context.startswith("fixture "):
            return [test for users in self._users for test in users.get(context, ())]
        return [re.sub(r" \((setup|call|teardown)\)$", "", context)]

    def _shares(self, file: str) -> dict[str, float]:
        """Of the lines that a test runs, how many are of this file, for those that run any."""
        own = self._counts([file])
        return {test: count / self._of_all[test] for test, count in own.items()}

    @functools.cached_property
    def _of_all(self) -> Counter[str]:
        return self._counts(self._rows)

    def _counts(self, files: Iterable[str]) -> Counter[str]:
        """How many lines of these each test runs."""
        found: Counter[str] = Counter()
        for file in files:
            for context, numbits in self._rows.get(file, []):
                for test in self._tests(context):
                    found[test] += int.from_bytes(numbits).bit_count()
        return found


def _loaded(text: str, line: int) -> tuple[list[int] | None, list[str]]:
    """Of a line that is run when its module is loaded: the lines of the function that it is a default of, and the names that it
    gives a value to; of another None."""
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node.lineno <= line <= (node.end_lineno or 0):
            body = node.body[0].lineno if isinstance(node, ast.FunctionDef) else node.body.lineno
            return (None, []) if line >= body else (list(range(body, (node.end_lineno or 0) + 1)), [])
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.lineno <= line <= (node.end_lineno or 0):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return [], names


# --- Trying them


@dataclass(frozen=True)
class Outcome:
    number: int
    change: Change
    noticed_by: str
    """A test, or how else, or "" for nobody."""
    tests: int
    seconds: float


HANG = "tests that hang"


class Server:
    """Runs pytest in a copy of the repository (see `mutants_server`)."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        command = [sys.executable, str(copy / "benchmarks" / "mutants_server.py"), str(copy)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(copy)
        )

    def run(self, arguments: list[str], seconds: float = 4 * MOST_SECONDS) -> str:
        """What pytest printed; "" where all tests passed, `HANG` if it did not end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([seconds, *PYTEST, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return {None: HANG, 0: ""}.get(answer["status"], answer["printed"] or "nothing")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def attempt(number: int, change: Change, tests: list[str], server: Server, seconds: float) -> Outcome:
    """Make the change in a copy of the repository and run the tests, which hang if they take longer than that."""
    path = server.copy / change.file
    before = path.read_bytes()
    path.write_bytes(_changed(before, change))
    started = time.monotonic()
    try:
        printed = server.run(["-x", *tests], seconds)
        # The names of some cases are made from the package's values; where these changed there is no such case.
        if missing := {test for test in tests if f"/{test}\n" in printed and "not found: " in printed}:
            printed = server.run(["-x", *(test for test in tests if test not in missing)], seconds)
    finally:
        path.write_bytes(before)
    noticed = (_named(printed) or [HANG if printed == HANG or "Timeout" in printed else "no test: it cannot be run"])[0]
    return Outcome(number, change, noticed if printed else "", len(tests), time.monotonic() - started)


def run(count: int, seed: int, only: list[int], workers: int, seconds: float, out: Path | None) -> None:
    """Try the drawn changes, or some of them again, and report of all that were tried."""
    chosen, tests = drawn(count, seed), Tests()
    kept = FOLDER / f"outcomes-{seed}.json"
    outcomes = {}
    for number, noticed_by, tried, took in json.loads(kept.read_text()) if kept.exists() else []:
        outcomes[number] = Outcome(number, chosen[number], noticed_by, tried, took)
    waiting = [
        (number, change, tests.of(change, seconds))
        for number, change in enumerate(chosen)
        if (number in only if only else number not in outcomes)
    ]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        free = []
        for number in range(workers):
            _copy(Path(folder) / str(number))
            free.append(Server(Path(folder) / str(number)))

        def one(asked: tuple[int, Change, list[str]]) -> Outcome:
            server = free.pop()
            try:
                outcome = attempt(*asked, server, 60 + 6 * sum(tests.seconds[test] for test in asked[2]))
            finally:
                free.append(server)
            how = f"noticed by {outcome.noticed_by}" if outcome.noticed_by else f"SURVIVED {outcome.tests} tests"
            print(f"{outcome.number:3} {outcome.seconds:4.0f} s  {outcome.change.name}: {how}", flush=True)
            outcomes[outcome.number] = outcome
            rows = [(one.number, one.noticed_by, one.tests, one.seconds) for one in list(outcomes.values())]
            kept.write_text(json.dumps(rows))  # a later call goes on from here
            return outcome

        list(pool.map(one, waiting))
        # A test that fails now and then, or in a copy, has noticed nothing.
        blamed = {outcomes[number].noticed_by for number, _, _ in waiting} & tests.seconds.keys()
        while blamed and (failing := set(_named(free[0].run(sorted(blamed), 60 * MOST_SECONDS)))):
            print(f"They fail without a change: {', '.join(sorted(failing))}", flush=True)
            again = [
                (number, change, [test for test in asked if test not in failing])
                for number, change, asked in waiting
                if outcomes[number].noticed_by in failing
            ]
            list(pool.map(one, again))
            blamed = {outcomes[number].noticed_by for number, _, _ in again} & tests.seconds.keys()
        for server in free:
            server.end()
    text = report([outcomes[number] for number in sorted(outcomes)], count, seed)
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
        lines.append(f"- {one.number}. `{one.change.name}` ({one.change.kind}, {one.tests} tests){why}")
    lines += ["", "## Noticed", ""]
    lines += [f"- {one.number}. `{one.change.name}` ({one.change.kind}) by {one.noticed_by}" for one in noticed]
    return "\n".join([*lines, "", f"{machine()}; {commit()}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    mapping = commands.add_parser("map", help="which tests run which lines")
    mapping.add_argument("--workers", type=int, default=2)
    running = commands.add_parser("run", help="try the changes")
    running.add_argument("--count", type=int, default=100)
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--only", type=int, nargs="*", default=[], help="numbers of some of them")
    running.add_argument("--workers", type=int, default=2)
    running.add_argument("--seconds", type=float, default=MOST_SECONDS, help="of tests for a change")
    running.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.command == "map":
        map_tests(asked.workers)
    else:
        run(asked.count, asked.seed, asked.only, asked.workers, asked.seconds, asked.out)


if __name__ == "__main__":
    main()
