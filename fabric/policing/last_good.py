"""The objects that were in force, on disk, for a start whose source does not answer or has a broken file.

`<state-dir>/policy.json`, mode 0600, replaced atomically:
`{"version": 1, "sources": {TITLE: [{"key", "file", "line", "object"}…]}}`, by the title of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fabric import jsonsafe
from fabric.files import read_private, write_atomic
from fabric.policing.documents import Given

NAME = "policy.json"
VERSION = 1
MAX_BYTES = 256 << 20
Remembered = Mapping[str, Mapping[str, Given]]
"""By title of the source, then by key."""


def render(sources: Remembered) -> bytes:
    """The file's bytes."""
    items = {
        title: [
            {"key": key, "file": given.file, "line": given.line, "object": given.value}
            for key, given in sorted(found.items())
        ]
        for title, found in sources.items()
    }
    return jsonsafe.dumps({"version": VERSION, "sources": items}).encode("utf-8", "surrogatepass")


def save(directory: Path, data: bytes) -> None:
    """Replace the file. Raises OSError."""
    write_atomic(directory / NAME, data, 0o600, 0o700)


def load(directory: Path) -> Remembered:
    """Read it back; anything unreadable counts as absent. Never raises."""
    try:
        # Whoever else could write it could let traffic pass.
        document = jsonsafe.loads(read_private(directory / NAME, MAX_BYTES), max_bytes=MAX_BYTES)
    except (OSError, jsonsafe.JsonError):
        return {}
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return {}
    sources = document.get("sources")
    if not isinstance(sources, dict):
        return {}
    return {title: _givens(items) for title, items in sources.items() if isinstance(items, list)}


def _givens(items: list[Any]) -> dict[str, Given]:
    found = {}
    for item in items:
        if not isinstance(item, dict):
            continue
        key, value, file, line = item.get("key"), item.get("object"), item.get("file"), item.get("line")
        if isinstance(key, str) and isinstance(value, dict) and isinstance(file, str) and type(line) is int:
            found[key] = Given(value, file, line)
    return found
