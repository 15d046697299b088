"""`/metrics` for Prometheus. Imported only with `--metrics-port`: prometheus_client takes its time and memory.

The event loop's time is worth more than freshness: a page is computed at most once in `FRESH_SECONDS` however many ask
for it, and only the reading is done in the loop; it becomes text in a thread. A page that cannot be computed is
answered with 500, counted, and said once per kind of failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

from fabric.daemon import report
from fabric.daemon.http import NOT_FOUND, HttpServer, Reply
from fabric.metrics import readings
from fabric.metrics.collector import CONTENT_TYPE, Renderer
from fabric.metrics.families import Reading
from fabric.metrics.readings import Reports

if TYPE_CHECKING:
    from fabric.daemon.node import Node

log = logging.getLogger("fabric.metrics")
FRESH_SECONDS = 1.0


class MetricsServer(HttpServer):
    """Listens on `ip` and `port`; `reports` gives None while there is nothing to say yet."""

    def __init__(self, ip: str, port: int, reports: Callable[[], Reports | None]) -> None:
        super().__init__("--metrics", ip, port, self._metrics)
        self._reports = reports
        self._renderer = Renderer()
        self._running: asyncio.Task[Reply] | None = None
        self._page = b""
        self._made = -FRESH_SECONDS
        self._scrapes = self._errors = 0
        self._took = 0.0
        self._said = ""

    async def _metrics(self, path: str) -> Reply:
        if path != "/metrics":
            return NOT_FOUND
        if monotonic() - self._made < FRESH_SECONDS:
            return Reply(HTTPStatus.OK, self._page, CONTENT_TYPE)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._compute(), name="metrics")
        return await asyncio.shield(self._running)  # a client that goes does not take it from the others

    async def _compute(self) -> Reply:
        start = monotonic()
        reports = self._reports()
        if reports is None:
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready yet\n")
        try:
            found = list(self._read(reports))
            took = monotonic() - start
            self._page = await asyncio.to_thread(self._renderer, found)
        except Exception as error:
            return self._failed(error)
        self._scrapes += 1
        self._made, self._took = start, took
        return Reply(HTTPStatus.OK, self._page, CONTENT_TYPE)

    def _failed(self, error: Exception) -> Reply:
        self._errors += 1
        if repr(error) != self._said:
            self._said = repr(error)
            log.exception("metrics cannot be computed")
        return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"metrics cannot be computed: see the daemon's log\n")

    def _read(self, reports: Reports) -> Iterator[Reading]:
        yield from readings.read(reports)
        yield Reading("metrics_scrapes", (), self._scrapes)
        yield Reading("metrics_scrape_errors", (), self._errors)
        yield Reading("metrics_scrape_duration_seconds", (), round(self._took, 6))


def serve(node: Node) -> MetricsServer:
    """The server for this node, not open yet."""

    def reports() -> Reports | None:
        if not node.ready:
            return None
        return Reports(
            report.status(node), report.peers(node), node.pods.endpoints(), report.counters(node), node.policy_report,
            node.clock(),
        )

    return MetricsServer(node.options.metrics_ip, node.options.metrics_port, reports)
