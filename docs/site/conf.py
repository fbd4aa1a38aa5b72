"""The documents as a site: `make docs`, by Sphinx with furo. The pages are the Markdown files of the repository where they are, so that
their links lead to the same places here and there.

Made on the way are the commands' help (`made/commands.md`), and the list of what is not a page of its own in the README's contents.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import bigtransfer
from bigtransfer import cli

REPOSITORY = Path(__file__).resolve().parents[2]

project = "bigtransfer"
author = "the authors of bigtransfer"
version = release = bigtransfer.__version__
html_title = f"bigtransfer {version}"
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_static_path: list[str] = []

extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**",
    "benchmarks/results/*.md",
    "bigtransfer/**/*.md",
    "recipes/**/*.md",
]
exclude_patterns = [".*", "build", "runs", "demo"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "none"  # the signatures are long enough
autodoc_member_order = "bysource"

FOLDERS = {
    "docs/decisions": "docs/site/decisions.md",
    "benchmarks/results": "docs/site/results.md",
}
"""Pages for the folders that documents point to."""

CONTENTS = """

```{toctree}
:hidden:
:caption: Begin
docs/tutorial
docs/data
docs/report
docs/notebook
docs/site/gallery
docs/coming-from
```

```{toctree}
:hidden:
:caption: Use
docs/serving
docs/detection
docs/many-images
docs/weights
docs/benchmark-command
docs/benchmarks
docs/limits
docs/site/made/commands
docs/site/python
```

```{toctree}
:hidden:
:caption: Upstream
docs/pretraining
docs/scale
recipes/bit-t/README
bigtransfer/pretrained/bit-t-r26x1
docs/claims
```

```{toctree}
:hidden:
:caption: The project
docs/index
docs/architecture
docs/site/decisions
docs/site/results
docs/lab-notes
CONTRIBUTING
CHANGELOG
bigtransfer/classes/SOURCES
bigtransfer/suites/files/SOURCES
```
"""


def made_commands(app: Any) -> None:
    """Every command's help as the command prints it."""
    os.environ["COLUMNS"] = "96"
    lines = ["# Commands", "", "`bit COMMAND --help` prints the same."]
    for command in cli.commands():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = cli.main([*command.split(), "--help"])
        assert status == 0 and said.getvalue().startswith("usage: bit"), command
        lines += ["", f"## bit {command}", "", "```text", said.getvalue().rstrip(), "```"]
    page = Path(__file__).with_name("made") / "commands.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepared(app: Any, name: str, source: list[str]) -> None:
    """A page's text with the site's contents (the README), and with pages where it points to folders."""
    folder = (REPOSITORY / name).parent

    def linked(found: re.Match[str]) -> str:
        title, target = found.groups()
        place = (folder / target).resolve()
        if "://" in target or not place.is_dir():
            return found[0]
        page = FOLDERS.get(str(place.relative_to(REPOSITORY)))
        return f"[{title}]({os.path.relpath(REPOSITORY / page, folder)})" if page else title

    if name.endswith("notebook"):
        return
    source[0] = re.sub(r"\[([^\]]*)\]\(([^)#\s]+)\)", linked, source[0])
    if name == root_doc:
        source[0] += CONTENTS


def described(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A docstring as reStructuredText: ours are plain text, with a paragraph or a line `name: what it is` for each argument."""
    pieces = "\n".join(lines).split("`")
    for i, piece in enumerate(pieces):
        plain = i % 2 == 0 or i == len(pieces) - 1
        pieces[i] = re.sub(r"([*|\\_])", r"\\\1", piece) if plain else f"``{' '.join(piece.split())}``"
    text: list[str] = []
    for line in "".join(pieces).split("\n"):
        listed = re.match(r" *((?:[a-z0-9]+(?:\\_[a-z0-9]+)*(?:, )?)+): (.*)", line)
        if listed and what in ("function", "class", "method"):
            text += ["", f"- **{listed[1]}**: {listed[2]}"]
        elif text and text[-1].startswith(("- ", "  ")) and line.strip():
            text.append(f"  {line.strip()}")
        else:
            text.append(line)
    lines[:] = text


def opened(app: Any, error: Exception | None) -> None:
    """The site's own front page is the README's."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", made_commands)
    app.connect("source-read", prepared)
    app.connect("autodoc-process-docstring", described)
    app.connect("build-finished", opened)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
