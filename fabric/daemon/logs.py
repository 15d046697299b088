"""Logging on stderr: `text` for people, `json` (one object per line) for machines; bounded, and without secrets.

Nothing that happens to the daemon may fill a disk: one line of the code writes at most `LINES` lines a minute, each of
at most `LENGTH` characters, all together at most `BYTES`. What is left out is told at the end of its minute, by place
and number. With `--v` (debugging) no line is left out.

What `hide` was told, passwords in URLs and bearer tokens are never written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Literal, TextIO

LINES = 30
"""Of one place in the code, a minute."""
LENGTH = 2000
"""Of a message, and of a traceback; objects that others write are quoted in some."""
BYTES = 900_000
"""Of all places, a minute."""
WINDOW = 60.0
HIDDEN = "***"
_SHORTEST_SECRET = 4
_PATTERNS = (
    # Nothing here may match in more than one way: others choose the text, and its length.
    (re.compile(r"(://)[^/\s@:]*:[^/\s@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)\b(bearer|basic) [\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
)
_secrets: set[str] = set()
_LETTERS = {"DEBUG": "D", "INFO": "I", "WARNING": "W", "ERROR": "E", "CRITICAL": "F"}


def hide(secret: str) -> None:
    """Never write this text. Very short ones are not looked for: every line would have them."""
    if len(secret) >= _SHORTEST_SECRET:
        _secrets.add(secret)


def without_secrets(text: str) -> str:
    """The text as it may be written."""
    for secret in _secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes at most `lines` of one place and `size` bytes in a window of WINDOW seconds of `clock`."""

    def __init__(
        self, stream: TextIO, *, lines: int = LINES, size: int = BYTES, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__(stream)
        self._lines = lines
        self._size = size
        self._clock = clock
        self._began = clock()
        self._written: Counter[tuple[str, int]] = Counter()
        self._left_out: Counter[tuple[str, int]] = Counter()
        self._bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it. Called with the handler's lock held."""
        if self._clock() - self._began >= WINDOW:
            self._tell()
        site = record.pathname, record.lineno
        self._written[site] += 1
        if self._written[site] > self._lines or self._bytes > self._size:
            self._left_out[site] += 1
            return
        self._bytes += len(self.format(record))
        super().emit(record)

    def _tell(self) -> None:
        """Begin a new window with what the last one has left out."""
        left_out, self._left_out = self._left_out, Counter()
        self._written.clear()
        self._began, self._bytes = self._clock(), 0
        for (path, line), count in left_out.most_common(10):
            place = "/".join(Path(path).parts[-2:])
            text = f"{count} more lines of {place}:{line} were left out"
            super().emit(logging.LogRecord("fabric", logging.WARNING, path, line, text, None, None))


class TextFormatter(logging.Formatter):
    """`I 12:34:56.789 message`; line breaks inside a message are escaped so that a message is always one line."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__(datefmt=None)
        self.default_time_format = "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        message = _presentable(_one_line(record.getMessage()))
        line = f"{_LETTERS.get(record.levelname, '?')} {self.formatTime(record)} {message}"
        return f"{line}\n{_presentable(self.formatException(record.exc_info))}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """`{"time": <Unix seconds>, "level": "info", "message": "…"}`."""

    def format(self, record: logging.LogRecord) -> str:
        message = _presentable(record.getMessage())
        fields = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": message}
        if record.exc_info:
            fields["traceback"] = _presentable(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def configure(log_format: Literal["text", "json"], verbosity: int = 0) -> logging.Logger:
    """Send the `fabric` logger to stderr and return it."""
    handler = logging.StreamHandler(sys.stderr) if verbosity > 0 else BoundedHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter())
    logger = logging.getLogger("fabric")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbosity > 0 else logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # a closed stderr must not stop the daemon
    return logger


def _presentable(text: str) -> str:
    """Without secrets, and not longer than it may be; the end of a traceback says most."""
    text = without_secrets(text)
    if len(text) <= LENGTH:
        return text
    return f"{text[: LENGTH // 2]} … {len(text) - LENGTH} characters left out … {text[-LENGTH // 2 :]}"


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")
