"""The documents: every link inside the repository leads somewhere, every command they show exists with its flags."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bigtransfer import cli, config
from tests.conftest import REPOSITORY

DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "bigtransfer").rglob("*.md")]
)


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
