"""Tables of text: CSV and TSV as spreadsheets and programs write them, and JSON lines."""

from __future__ import annotations

import codecs
import csv
import io
import re
import threading
from pathlib import Path
from typing import Any

from bigtransfer import files, records
from bigtransfer.data.layout import listed, quoted
from bigtransfer.data.tables.columns import IMAGE, Table, usual
from bigtransfer.data.tables.labels import bare
from bigtransfer.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Of the files that `read` understands."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_END = "the end of the table"


def read(path: Path, split: str | None = None) -> Table:
    """The table in a file, all of its rows of one length; DataError, which names file and line, if it is none."""
    text = _text(path)
    table = _json_lines(path, text, split) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv(path, text, split)
    if not len(table) and table.header is None:
        raise DataError(f"{path} has no rows.")
    return table


def _text(path: Path) -> str:
    """The file's text, which is UTF-8, or UTF-16 with its mark at the beginning."""
    try:
        content = files.read(path, "table_bytes")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    if content[:4] == b"PK\x03\x04":
        raise DataError(f"{path} is an Excel workbook or a ZIP file under another name. {SAVE_AS_CSV}")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}, line {line}). Save it as UTF-8; "
            "in Excel: CSV UTF-8 (Comma delimited)."
        ) from error
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise DataError(f"{path}, line {line}: a NUL character. The file is damaged, or not UTF-8; save it as UTF-8.")
    return text


SAVE_AS_CSV = "In the spreadsheet program choose File, Save as, CSV UTF-8, beside the images, and give that file."


def _csv(path: Path, text: str, split: str | None) -> Table:
    """A header line and rows; the separator is a comma, semicolon or tab, whichever the header has most of, else |."""
    text, first, separator, comment = _without_preamble(text)
    header_text = re.sub(r'"[^"]*"', "", _LINE.match(text)[0])  # pyright: ignore[reportOptionalSubscript]
    if separator is None:
        separator = max(",;\t", key=header_text.count)
        if separator not in header_text and "|" in header_text:
            separator = "|"
    lines, rows = _rows(path, text, separator, first)
    commented = [bare(cell) for cell in comment.split(separator)]
    if rows and len(commented) == len(rows[0]) and usual(IMAGE.usual, commented) and not usual(IMAGE.usual, rows[0]):
        rows.insert(0, commented)  # "# image,label"
        lines.insert(0, first - 1)
    if not rows:
        raise DataError(f"{path} has no rows: it is empty.")
    names = [bare(name) for name in rows[0]]
    while len(names) > 1 and not names[-1] and not any("".join(row[len(names) - 1 :]).strip() for row in rows[1:]):
        names.pop()
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):
                shown = listed(quoted(name, 30) for name in names)
                raise DataError(f"{path}, line {line}: {len(row)} values for {len(names)} columns ({shown}).")
            del row[len(names) :]  # separators at the end of the line
    columns = list(zip(*rows[1:], strict=True)) or [()] * len(names)
    return Table(path=path, names=tuple(names), columns=columns, lines=lines[1:], header=lines[0], split=split)


def _without_preamble(text: str) -> tuple[str, int, str | None, str]:
    """The text from its header on, the line that this is, the separator that Excel's `sep=;` states, and the last comment's text."""
    at, line, separator, comment = 0, 1, None, ""
    while at < len(text):
        found = _LINE.match(text, at)
        assert found is not None
        content = found[0].strip()
        stated = re.fullmatch(r'"?sep=([^"\r\n])"?', found[0].rstrip("\r\n"), re.IGNORECASE)
        if stated is not None and separator is None:
            separator = stated[1]
        elif content.startswith("#"):
            comment = content.lstrip("# \t")
        elif content:
            break
        at, line = found.end(), line + 1
    return text[at:], line, separator, comment


_fields = threading.Lock()


def _rows(path: Path, text: str, separator: str, first: int) -> tuple[list[int], list[list[str]]]:
    """The rows that are not empty, and the line where each begins, the first of `text` being `first`."""
    if text and not text.endswith(("\n", "\r")):
        text += "\n"
    # A quotation mark without its partner swallows the rest of the file, and with it this last row.
    source = io.StringIO(f"{text}{_END}\n", newline="")
    lines, rows = [], []
    line = first
    with _fields:
        allowed = csv.field_size_limit(max(131_072, len(text) + len(_END)))  # it is the whole process's
        try:
            reader = csv.reader(source, delimiter=separator, skipinitialspace=not separator.isspace())
            for row in reader:
                if row and (len(row) > 1 or row[0].strip()):
                    lines.append(line)
                    rows.append(row)
                line = first + reader.line_num
        except (csv.Error, ValueError, TypeError) as error:
            raise DataError(f"{path}, line {line}: {error}.") from error
        finally:
            csv.field_size_limit(allowed)
    if rows.pop() != [_END]:
        raise DataError(
            f"{path}, line {lines[-1]}: a quotation mark opens there and has no partner up to the end of the file."
        )
    lines.pop()
    return lines, rows


def _json_lines(path: Path, text: str, split: str | None) -> Table:
    """One object a line; a row that lacks a key has None there."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            row = records.parse(content, f"{path}, line {line}", DataError)
            if not isinstance(row, dict):
                raise DataError(
                    f'{path}, line {line}: {quoted(row)} where an object is needed: {{"image": ..., "label": ...}}.'
                )
            rows.append(row)
            lines.append(line)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [[row.get(name) for row in rows] for name in names]
    return Table(path=path, names=tuple(map(bare, names)), columns=columns, lines=lines, split=split)
