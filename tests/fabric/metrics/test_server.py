"""The endpoint over real sockets: a fresh page at most once a second, failures said once, a port that is taken."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fabric.daemon import metrics
from fabric.daemon.metrics import MetricsServer
from fabric.errors import StartError
from fabric.metrics import policy
from fabric.metrics.families import FAMILIES
from fabric.metrics.policy import PolicyReport
from fabric.metrics.readings import Reports
from tests.fabric.cli.test_main import ANSWERS
from tests.fabric.daemon.test_health import ask, free_port

ROOT = Path(__file__).resolve().parents[3]
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


STATUS = {
    "sources": ["directory /etc/x"], "snapshot": 4, "objects": 2, "refused": 1, "staged": 5,
    "problems": ["policy shop/x: no"],
    "latency": {"buckets": {"0.001": 0, "0.5": 2}, "count": 3, "sum": 4.5},
}  # fmt: skip


def policy_report(rules: int = 2) -> PolicyReport:
    """As the daemon's answers have it."""
    hits: list[dict[str, Any]] = [
        {"rule": f"NetworkPolicy shop/web ingress[{number}]", "hits": number} for number in range(rules)
    ]
    end = {"rule": "end of tier default", "hits": 7, "staged": True, "action": "deny", "changes": 3}
    return policy.read(STATUS, [end, *reversed(hits)])


def reports(policy: PolicyReport | None = None) -> Reports:
    answers: Any = ANSWERS
    dataplane = {"offloads": {"udp-gso": True}, "threads": {"t": True}, "generation": 3}
    status = {**answers["status"], "dataplane": dataplane}
    counters = {**answers["counters"], "kernel_changes": 1, "firewall_looks": 2, "something_new": 4, "pods_ports": 1}
    traffic = {"frames_from": 3, "bytes_from": 5, "frames_to": 7, "bytes_to": 9, "drops": 1}
    pods = [{**answers["endpoint.list"][0], "traffic": traffic}, answers["endpoint.list"][1]]
    return Reports(status, answers["peers"], pods, counters, policy, 1000.0)


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
            ("podfabric_policy_rule_hits_total", "NetworkPolicy shop/web ingress[1]"): 1,
            ("podfabric_policy_objects", "refused"): 1, ("podfabric_policy_snapshot",): 4,
            ("podfabric_policy_objects", "staged"): 5,
            ("podfabric_policy_staged_hits_total", "deny", "end of tier default"): 7,
            ("podfabric_policy_staged_changes_total", "deny", "end of tier default"): 3,
            ("podfabric_programming_duration_seconds_bucket", "0.5", "policy"): 2,
            ("podfabric_programming_duration_seconds_bucket", "+Inf", "policy"): 3,
            ("podfabric_pod_frames_total", "from", "cni/podnet/c1/eth0"): 3,
            ("podfabric_pod_bytes_total", "to", "cni/podnet/c1/eth0"): 9,
            ("podfabric_pod_drops_total", "cni/podnet/c1/eth0"): 1,
            ("podfabric_peer_packets_total", "to", "10.244.2.0-24"): 54321,
            ("podfabric_peer_bytes_total", "from", "10.244.2.0-24"): 800,
            ("podfabric_store_available", "sqlite"): 0, ("podfabric_task_alive", "lease"): 0,
            ("podfabric_metrics_scrapes_total",): 0,
        }  # fmt: skip
        assert {name: found.get(name) for name in expected} == expected
        assert ("process_resident_memory_bytes",) in found
        known = {family.shown for family in FAMILIES}
        ours = {name[0] for name in found if name[0].startswith("podfabric_")}
        assert {name for name in ours if not name.startswith("podfabric_programming")} <= known
        assert b" 404 " in await ask(port, b"GET / HTTP/1.1\r\n\r\n")

    with_server(body, lambda: reports(policy_report()))


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

    def source() -> Reports:
        found = reports()
        return replace(found, counters={"egress_packets": "many"}) if broken[0] else found  # type: ignore[dict-item]

    async def body(port: int, server: MetricsServer) -> None:
        with caplog.at_level(logging.ERROR, "fabric.metrics"):
            for _ in range(3):
                assert b" 500 " in await ask(port, REQUEST)
        assert [record.message for record in caplog.records] == ["metrics cannot be computed"]
        broken[0] = False
        assert samples(await ask(port, REQUEST))[("podfabric_metrics_scrape_errors_total",)] == 3

    with_server(body, source)


def test_a_port_that_is_held_refuses_the_start() -> None:
    async def body(port: int, server: MetricsServer) -> None:
        with pytest.raises(StartError, match=rf"^--metrics-port {port} cannot be listened on at 127.0.0.1: Address"):
            await MetricsServer("127.0.0.1", port, reports).open()

    with_server(body, reports)


def test_nobody_pays_for_it_without_the_flag() -> None:
    code = "import sys, fabric.daemon.main, fabric.daemon.node; print('prometheus_client' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == "False\n"
