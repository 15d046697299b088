"""The asking side of the daemon's control socket (`fabric.daemon.control` is the answering one). Synchronous.

Kept to few imports: the CNI plugin starts once for every pod.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from fabric.errors import FabricError

SOCKET_NAME = "fabricd.sock"
DEFAULT_RUN_DIR = "/run/fabric"
TIMEOUT = 5.0
"""Seconds for one answer."""


class DaemonUnavailableError(FabricError):
    """Nobody answers: no daemon, or one that is stuck."""


class DaemonGoneError(DaemonUnavailableError):
    """No daemon runs here."""


class DaemonRefusedError(FabricError):
    """The daemon answers that it cannot do what was asked; the text is the daemon's."""


class ControlClient:
    """One connection to the daemon of `run_dir`, opened with the first question; a context manager."""

    def __init__(self, run_dir: str = DEFAULT_RUN_DIR, timeout: float = TIMEOUT) -> None:
        self.path = os.path.join(run_dir, SOCKET_NAME)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, method: str, params: dict[str, Any] | None = None, fds: Sequence[int] = ()) -> Any:
        """The result of one method. Raises DaemonUnavailableError or DaemonRefusedError, each with one line.

        `fds` go along with the request (SCM_RIGHTS); they stay the caller's to close.
        """
        request = json.dumps({"method": method, "params": params or {}}).encode() + b"\n"
        try:
            line = self._exchange(request, fds)
        except FileNotFoundError:
            text = f"no fabricd runs here ({self.path} does not exist): start it, or give its --run-dir"
            raise DaemonGoneError(text) from None
        except ConnectionRefusedError:
            text = f"fabricd is gone (nobody answers at {self.path}): start it again"
            raise DaemonGoneError(text) from None
        except PermissionError:
            text = f"no permission to open {self.path}: ask as root or as the daemon's user"
            raise DaemonUnavailableError(text) from None
        except TimeoutError:
            text = f"fabricd does not answer at {self.path} within {self._timeout:g} s"
            raise DaemonUnavailableError(text) from None
        except OSError as error:
            raise DaemonUnavailableError(f"fabricd does not answer at {self.path}: {error}") from None
        return _result(line, self.path)

    def _exchange(self, request: bytes, fds: Sequence[int]) -> bytes:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(self._timeout)
            self._socket.connect(self.path)
        sent = socket.send_fds(self._socket, [request], fds) if fds else 0
        self._socket.sendall(request[sent:])
        while b"\n" not in self._received:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the connection was closed without an answer")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line


def _result(line: bytes, path: str) -> Any:
    try:
        answer = json.loads(line)
        if "error" in answer:
            raise DaemonRefusedError(str(answer["error"]))
        return answer["result"]
    except (ValueError, KeyError, TypeError):
        raise DaemonUnavailableError(f"fabricd at {path} gave no proper answer: is it another version?") from None
