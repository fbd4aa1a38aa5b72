"""Data sets that are tables: CSV, TSV, JSON lines and Parquet files, alone or beside their images, and Hugging Face `datasets`.

text            a file of text as a `Table`
arrow           a Parquet file as a `Table`, or, if it holds images, as a `Found`; `hugging_face`: folders and names of such
columns         which column holds what
labels          what the values of a label column mean
paths           which files the image column means; `embedded`: images in that column itself
listing         a `Table` of paths and labels as a `Found`
beside          which tables of a folder describe its images
"""

from __future__ import annotations

from pathlib import Path

from bigtransfer.data.layout import Found
from bigtransfer.data.tables import listing, text
from bigtransfer.data.tables.arrow import fingerprint, parquet_tables
from bigtransfer.data.tables.beside import beside
from bigtransfer.data.tables.columns import Columns
from bigtransfer.data.tables.hugging_face import hub_dataset, saved_dataset
from bigtransfer.data.tables.text import SAVE_AS_CSV

TEXT_ENDINGS = text.ENDINGS
"""Of the tables that `text_table` reads."""

__all__ = [
    "SAVE_AS_CSV",
    "TEXT_ENDINGS",
    "Columns",
    "beside",
    "fingerprint",
    "hub_dataset",
    "parquet_tables",
    "saved_dataset",
    "text_table",
]


def text_table(path: Path, columns: Columns) -> Found:
    """A CSV, TSV or JSON lines file of paths, or of images as Base64."""
    return listing.found([text.read(path)], columns, str(path))
