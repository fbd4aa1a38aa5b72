"""The log: a JSON object a line on standard error, about requests but never about what is on their images or how those are called."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from bigtransfer.terminal import json_line

_LOGGER = logging.getLogger("bigtransfer.serve")


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """A line: "time", "level", "event", and the fields that are not None."""
    _LOGGER.log(level, name, extra={"fields": {key: value for key, value in fields.items() if value is not None}})


def error(name: str, error: BaseException, **fields: Any) -> None:
    """A line about an error, with its traceback."""
    _LOGGER.error(name, exc_info=error, extra={"fields": fields})


@contextlib.contextmanager
def on_standard_error() -> Iterator[None]:
    """Within, the lines, and the web server's warnings, are written to standard error; not what the reader of forms says of broken ones,
    whose senders are answered."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    loggers = [_LOGGER, logging.getLogger("uvicorn"), logging.getLogger("python_multipart")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    for logger, level in zip(loggers, (logging.INFO, logging.WARNING, logging.CRITICAL), strict=True):
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = getattr(record, "fields", None)
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower()}
        line |= (
            {"event": record.getMessage(), **fields}
            if fields is not None
            else {"event": "server", "message": record.getMessage()}
        )
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_line(line)
