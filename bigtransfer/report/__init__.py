"""A run folder -> `report.html`: one file that opens offline, with its pictures, curves and styles inside.

Reads what is there of config.json, metrics.jsonl, evaluation.json (`evals.write_record`), unreadable.json and copies.json, and
leaves out the sections of what is not. `docs/report.md` says what each section means.

A section is a module of `sections/` that computes, a template of the same name in `templates/` that says how it looks, and an entry
in `sections.SECTIONS`; `contents.py` reads the folder, `pictures.py` and `charts.py` are what several sections share, `page.py`
puts templates, `style.css` and `script.js` together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bigtransfer.data import ImageSet
from bigtransfer.predictor import Predictor
from bigtransfer.report import page
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Pictures
from bigtransfer.report.sections import SECTIONS
from bigtransfer.runs import atomic_write

__all__ = ["write"]


def write(
    run_folder: str | os.PathLike[str],
    images: ImageSet | Sequence[ImageSet] | None = None,
    predictor: Predictor | None = None,
    late: Callable[[], bool] = lambda: False,
) -> Path:
    """Write `report.html` into a run's folder and return its path.

    images: where the evaluated images can be read again, for the pictures; matched by name. None: no pictures.
    predictor: the model, whose mistakes are explained then. late: asked now and then; where there is no more time, explanations and further
    pictures are left out.
    Raises RunError if there is no such folder, or one of its files, which it names with the field, has not the form it should.
    """
    sets = [] if images is None else [images] if isinstance(images, ImageSet) else images
    run = Contents.read(run_folder, Pictures(sets, predictor, late))
    computed = {name: compute(run) for name, compute in SECTIONS.items()}
    title = f"{run.model or run.folder.name}: report"
    text = page.render(title, {name: found for name, found in computed.items() if found is not None})
    path = run.folder / "report.html"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
