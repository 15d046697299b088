"""The health endpoint: `/healthz` (the process runs) and `/readyz` (the node forwards), as flanneld answers them.

Source: flannel `main.go` mustRunHealthz. The HTTP is `fabric.daemon.http`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from fabric.daemon.http import NOT_FOUND, HttpServer, Reply


class HealthServer(HttpServer):
    """Listens on `ip` (empty: every address) and `port` from `open` to `close`; `ready` is asked at each request."""

    def __init__(self, ip: str, port: int, ready: Callable[[], bool]) -> None:
        super().__init__("--healthz", ip, port, self._health)
        self._ready = ready

    def _health(self, path: str) -> Reply:
        if path == "/healthz":
            return Reply(HTTPStatus.OK, b"flanneld is running")
        if path != "/readyz":
            return NOT_FOUND
        if self._ready():
            return Reply(HTTPStatus.OK, b"flanneld is ready")
        return Reply(HTTPStatus.SERVICE_UNAVAILABLE, b"flanneld is not ready yet")
