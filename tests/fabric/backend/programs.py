"""Programs that an administrator could have configured, as files: they record what they are given."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

RECORD = """\
import json, os, sys
record = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "stdin": sys.stdin.buffer.read().decode()}}
log = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, json.dumps(record).encode() + b"\\n")  # in one piece: several programs write at once
"""


class Recorder:
    """A program that writes its arguments, environment and standard input as one line of JSON, then does `more`."""

    def __init__(self, directory: Path, name: str = "record", more: str = "") -> None:
        self.log = directory / f"{name}.log"
        self.path = directory / name
        body = RECORD.format(path=str(self.log)) + more
        self.path.write_text(f"#!{sys.executable} -IS\n{body}")
        self.path.chmod(0o755)

    @property
    def command(self) -> str:
        return str(self.path)

    def runs(self) -> list[dict[str, Any]]:
        """What each run that is recorded whole was given."""
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def program(directory: Path, name: str, text: str) -> str:
    """A `sh` script as a file; its path."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def run(body: Awaitable[None]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60):
            await body

    asyncio.run(whole())
