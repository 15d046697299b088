"""`fabric-cni`: what a container runtime executes. Reads one request, answers with one JSON object, ends.

What is printed on stdout is a result, an error object or nothing (SPEC section 5); everything else goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, BinaryIO

from fabric.cni.config import MAX_BYTES, load, parse
from fabric.cni.errors import INTERNAL, INTERRUPTED, IO_FAILURE, CniError
from fabric.cni.logs import log
from fabric.cni.protocol import Request, check_version, error_answer, parse_environment, version_answer
from fabric.cni.result import emit


def main() -> int:
    """Serve the request of this process; the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupted)
    return serve(os.environ, sys.stdin.buffer)


def serve(environ: Mapping[str, str], stdin: BinaryIO) -> int:
    """Answer one request on stdout; the exit code."""
    version: object = None
    try:
        request = parse_environment(environ)
        document, version = _read_document(request, stdin)
        _dispatch(request, document, version)
    except CniError as error:
        return _fail(error, version)
    except Exception as error:
        import traceback

        log("internal error\n" + traceback.format_exc())
        return _fail(CniError(INTERNAL, f"internal error: {type(error).__name__}", "see the plugin's stderr"), version)
    return 0


def _dispatch(request: Request, document: dict[str, Any], version: object) -> None:
    if request.command == "VERSION":
        _write(version_answer(version))
        return
    conf = load(document)
    check_version(request.command, conf.version)
    if conf.type == "flannel":
        from fabric.cni import flannel as verbs
    else:
        from fabric.cni import native as verbs  # type: ignore[no-redef]
    if request.command == "ADD":
        verbs.add(request, conf, lambda result: _write(emit(result, conf.version)))
    elif request.command == "DEL":
        verbs.delete(request, conf)
    elif request.command == "CHECK":
        verbs.check(request, conf)
    elif request.command == "GC":
        verbs.collect(request, conf)
    else:
        verbs.status(request, conf)


def _read_document(request: Request, stdin: BinaryIO) -> tuple[dict[str, Any], object]:
    try:
        data = stdin.read(MAX_BYTES + 1)
    except OSError as error:
        raise CniError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
    try:
        return parse(data)
    except CniError:
        if request.command == "VERSION":  # answered whatever comes
            return {}, None
        raise


def _write(answer: Mapping[str, Any]) -> None:
    """One object on stdout. Raises CniError (5): nobody has read it."""
    try:
        sys.stdout.write(json.dumps(answer, indent=4) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise CniError(IO_FAILURE, f"cannot write the result to stdout: {error}") from None


def _fail(error: CniError, version: object) -> int:
    log(f"{error} (code {error.code})")
    try:
        _write(error_answer(error, version))
    except CniError as failure:
        log(str(failure))
        sys.stdout = None  # or the interpreter complains once more at its end
    return 1


def _interrupted(number: int, _frame: FrameType | None) -> None:
    raise CniError(INTERRUPTED, f"interrupted by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
