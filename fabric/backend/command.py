"""One run of an administrator's command: no shell, a time limit, bounded output.

Source for the spelling: flannel `pkg/backend/extension/extension.go` (strings.Fields, os.Expand).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from fabric.errors import FabricError

OUTPUT_LIMIT = 16 << 10
ERROR_LIMIT = 4 << 10
# Go's unicode.IsSpace; str.split() would also cut at the separators 0x1c to 0x1f.
_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*|[*#$@!?0-9-]))")


class CommandError(FabricError):
    """A command did not do its work. One line: which, why, and the last line it said about it."""


class _TooMuchError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a command may take, in seconds, and how much it may print, in bytes."""

    seconds: float = 60.0
    output: int = OUTPUT_LIMIT


def words_of(command: str, environment: Mapping[str, str]) -> list[str]:
    """The program and its arguments: cut at white space, then `$NAME` and `${NAME}` replaced, missing ones by nothing.

    Quotes mean nothing; what a variable holds stays in the one word where it was named.
    """
    return [
        _VARIABLE.sub(lambda found: environment.get(found[1] if found[1] is not None else found[2], ""), word)
        for word in _SPACE.split(command)
        if word
    ]


async def run_command(name: str, command: str, environment: Mapping[str, str], stdin: str, bounds: Bounds) -> str:
    """Run the command that the configuration calls `name`; its standard output without white space around it.

    `stdin` and a final line feed are what it can read. Raises CommandError.
    """
    words = words_of(command, environment)
    if not words or not words[0]:
        raise CommandError(f"{name} {command[:60]!r} names no program")
    try:
        process = _start(words, environment, stdin)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"{name}: {words[0]!r} cannot be started: {reason}") from None
    with process:
        ended = False
        try:
            async with asyncio.timeout(bounds.seconds):
                output, said = await _until_end(process, bounds.output)
            ended = True
        except _TooMuchError:
            raise CommandError(f"{name}: it prints more than {bounds.output} bytes") from None
        except TimeoutError:
            raise CommandError(f"{name}: no end within {bounds.seconds:g} s; it was killed") from None
        finally:
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if code:
        how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        raise CommandError(f"{name}: {how}{_last_line(said)}")
    return output.decode(errors="replace").strip()


def _start(words: list[str], environment: Mapping[str, str], stdin: str) -> subprocess.Popen[bytes]:
    """In a session of its own, so that everything it starts can be ended with it; input is a file: nobody waits."""
    with os.fdopen(os.memfd_create("stdin"), "wb") as file:
        file.write(stdin.encode(errors="replace") + b"\n")
        file.seek(0)
        return subprocess.Popen(
            words,
            env=dict(environment),
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


async def _until_end(process: subprocess.Popen[bytes], limit: int) -> tuple[bytes, bytes]:
    """Standard output and the end of standard error, once both are closed and the process ended.

    Not asyncio's own processes: whether their `wait` also waits for pipes differs between versions and loops.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    pidfd = os.pidfd_open(process.pid)
    jobs = [
        asyncio.ensure_future(job)
        for job in (_read(process.stdout.fileno(), limit), _read(process.stderr.fileno(), None), _readable(pidfd))
    ]
    try:
        output, said, _ = await asyncio.gather(*jobs)
        return output or b"", said or b""  # _readable, of whose kind all three are for the type checker, has none
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        os.close(pidfd)


async def _read(descriptor: int, limit: int | None) -> bytes:
    """Read to the end. Raises _TooMuchError beyond `limit` bytes; without one the last few thousand are kept."""
    kept = b""
    while True:
        await _readable(descriptor)
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return kept
        kept += chunk
        if limit is None:
            kept = kept[-ERROR_LIMIT:]
        elif len(kept) > limit:
            raise _TooMuchError


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _last_line(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    shown = "".join(char if char.isprintable() else "?" for char in lines[-1].strip()[:200]) if lines else ""
    return f": {shown}" if shown else ""
