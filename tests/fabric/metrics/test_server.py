"""The endpoint over real sockets: a fresh page at most once a second, failures said once, a port that is taken."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fabric.daemon import metrics
from fabric.daemon.metrics import MetricsServer
from fabric.errors import StartError
from fabric.metrics.families import FAMILIES
from fabric.metrics.latency import Latency
from fabric.metrics.policy import RuleHits
from fabric.metrics.readings import Reports
from tests.fabric.cli.test_main import ANSWERS
from tests.fabric.daemon.test_health import ask, free_port

ROOT = Path(__file__).resolve().parents[3]
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Policy:
    """A policy engine's report of `rules` rules."""

    def __init__(self, rules: int = 2) -> None:
        self.rules = rules

    def rule_hits(self) -> list[RuleHits]:
        return [RuleHits("shop/web", str(number), "ingress", "allow", number) for number in range(self.rules)]

    def problems(self) -> tuple[str, ...]:
        return ("policy shop/x: no",)

    def programming(self) -> Any:
        return Latency().distribution()


def reports(policy: Policy | None = None) -> Reports:
    answers: Any = ANSWERS
    dataplane = {"offloads": {"udp-gso": True}, "threads": {"t": True}, "generation": 3}
    status = {**answers["status"], "dataplane": dataplane}
    counters = {**answers["counters"], "kernel_changes": 1, "firewall_looks": 2, "something_new": 4, "pods_ports": 1}
    return Reports(status, answers["peers"], answers["endpoint.list"], counters, policy, 1000.0)


def with_server(body: Callable[[int, MetricsServer], Awaitable[None]], source: Callable[[], Reports | None]) -> None:
    async def whole() -> None:
        port = free_port()
        server = MetricsServer("127.0.0.1", port, source)
        await server.open()
        try:
            await asyncio.wait_for(body(port, server), 20)
        finally:
            await server.close()

    asyncio.run(whole())


def samples(answer: bytes) -> dict[tuple[str, ...], float]:
    """Values by name and label values (in the order of the labels' names)."""
    page = answer.partition(b"\r\n\r\n")[2].decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_page() -> None:
    async def body(port: int, server: MetricsServer) -> None:
        answer = await ask(port, REQUEST)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        found = samples(answer)
        expected = {
            ("podfabric_ready",): 1, ("podfabric_start_time_seconds",): 938.5, ("podfabric_mtu_bytes",): 1450,
            ("podfabric_packets_total", "egress"): 1234567, ("podfabric_drops_total", "no_route"): 0,
            ("podfabric_kernel_operations_total", "changes"): 1, ("podfabric_firewall_operations_total", "looks"): 2,
            ("podfabric_counter_total", "something_new"): 4, ("podfabric_offload", "udp-gso"): 1,
            ("podfabric_peers", "quarantined"): 1, ("podfabric_peers", "malformed"): 1, ("podfabric_pods", "tun"): 2,
            ("podfabric_problems", "pods"): 1, ("podfabric_problems", "policy"): 1, ("podfabric_policy_rules",): 2,
            ("podfabric_policy_rule_hits_total", "allow", "ingress", "shop/web", "1"): 1,
            ("podfabric_store_available", "sqlite"): 0, ("podfabric_task_alive", "lease"): 0,
            ("podfabric_metrics_scrapes_total",): 0,
        }  # fmt: skip
        assert {name: found.get(name) for name in expected} == expected
        assert ("process_resident_memory_bytes",) in found
        known = {family.shown for family in FAMILIES}
        ours = {name[0] for name in found if name[0].startswith("podfabric_")}
        assert {name for name in ours if not name.startswith("podfabric_programming")} <= known
        assert b" 404 " in await ask(port, b"GET / HTTP/1.1\r\n\r\n")

    with_server(body, lambda: reports(Policy()))


def test_not_ready_is_said() -> None:
    async def body(port: int, server: MetricsServer) -> None:
        assert b" 503 " in await ask(port, REQUEST)

    with_server(body, lambda: None)


def test_it_is_computed_at_most_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(metrics, "monotonic", lambda: clock[0])

    async def body(port: int, server: MetricsServer) -> None:
        answers = await asyncio.gather(*(ask(port, REQUEST) for _ in range(20)))
        assert {samples(answer)[("podfabric_metrics_scrapes_total",)] for answer in answers} == {0}
        clock[0] += 1
        assert samples(await ask(port, REQUEST))[("podfabric_metrics_scrapes_total",)] == 1

    with_server(body, reports)


def test_a_failure_is_said_once_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    broken = [True]

    class Broken(Policy):
        def problems(self) -> tuple[str, ...]:
            if broken[0]:
                raise RuntimeError("not today")
            return ()

    async def body(port: int, server: MetricsServer) -> None:
        with caplog.at_level(logging.ERROR, "fabric.metrics"):
            for _ in range(3):
                assert b" 500 " in await ask(port, REQUEST)
        assert [record.message for record in caplog.records] == ["metrics cannot be computed"]
        broken[0] = False
        assert samples(await ask(port, REQUEST))[("podfabric_metrics_scrape_errors_total",)] == 3

    with_server(body, lambda: reports(Broken()))


def test_a_port_that_is_held_refuses_the_start() -> None:
    async def body(port: int, server: MetricsServer) -> None:
        with pytest.raises(StartError, match=rf"^--metrics-port {port} cannot be listened on at 127.0.0.1: Address"):
            await MetricsServer("127.0.0.1", port, reports).open()

    with_server(body, reports)


def test_nobody_pays_for_it_without_the_flag() -> None:
    code = "import sys, fabric.daemon.main, fabric.daemon.node; print('prometheus_client' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == "False\n"
