"""Logging on stderr: `text` for people, `json` (one object per line) for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

_LETTERS = {"DEBUG": "D", "INFO": "I", "WARNING": "W", "ERROR": "E", "CRITICAL": "F"}


class TextFormatter(logging.Formatter):
    """`I 12:34:56.789 message`; line breaks inside a message are escaped so that a message is always one line."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__(datefmt=None)
        self.default_time_format = "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_LETTERS.get(record.levelname, '?')} {self.formatTime(record)} {_one_line(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"time": <Unix seconds>, "level": "info", "message": "…"}`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(log_format: Literal["text", "json"], verbosity: int = 0) -> logging.Logger:
    """Send the `fabric` logger to stderr and return it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter())
    logger = logging.getLogger("fabric")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # a closed stderr must not stop the daemon
    return logger


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")
