"""The metrics of real daemons, as a Prometheus would get and read them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fabric.lab import Lab, measure
from fabric.metrics.families import FAMILIES
from tests.scenarios import flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
PORT = 9273
Series = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2, pods=2, pod_kind="mixed", daemon_args=(f"--metrics-port={PORT}",)) as made:
        yield made


def scrape(lab: Lab, node: str) -> Series:
    """Values by name and label values, the latter in the order of the labels' names."""
    with inside.open_socket(lab.netns(node), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", PORT))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        with sock.makefile("rb") as stream:
            head, _, page = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert f"Content-Length: {len(page)}".encode() in head
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_a_scrape_says_what_the_control_socket_says(lab: Lab) -> None:
    before = scrape(lab, "node1")
    measure.ping_pairs(lab)
    now = wait_for(
        lambda: found if (found := scrape(lab, "node1")) != before else None, "a page after the ping"
    )
    assert now[("podfabric_ready",)] == 1
    assert now[("podfabric_peers", "used")] == 1
    assert now[("podfabric_store_available", "sqlite")] == 1
    assert {kind: now[("podfabric_pods", kind)] for kind in ("tun", "bridge")} == {"tun": 1, "bridge": 1}
    assert now[("podfabric_packets_total", "egress")] > before[("podfabric_packets_total", "egress")]
    assert now[("podfabric_flows",)] > 0
    status = lab.control("node1", "status")
    for name, used in status["dataplane"]["offloads"].items():
        assert now[("podfabric_offload", name)] == used
    known = {family.shown for family in FAMILIES}
    assert {name[0] for name in now if name[0].startswith("podfabric_")} <= known
    # A counter that nobody has given a metric of its own is a gap in fabric/metrics/counters.py.
    assert [name for name in now if name[0] == "podfabric_counter_total"] == []


def test_drops_have_their_reason(lab: Lab) -> None:
    pod = lab.nodes[0].pods[-1]
    with inside.open_udp(pod.netns, measure.address(pod, 4)) as sock:
        sock.sendto(b"x", (str(lab.nodes[1].underlay_ip), 8472))
    wait_for(lambda: scrape(lab, "node1")[("podfabric_drops_total", "pod_to_vtep")], "the drop")


def test_what_goes_to_and_comes_from_all_peers_is_what_the_node_carries(lab: Lab) -> None:
    """Superframes too: what one node counts as sent the other counts as received."""
    one, other = (node.pods[0] for node in lab.nodes)
    before = {node.name: scrape(lab, node.name) for node in lab.nodes}
    assert flows.send_tcp(one.netns, other.netns, other.ip, 1 << 20).intact

    def carried(node: str) -> dict[str, float]:
        """By unit and direction: to and from all peers, out and in of the node."""
        now = scrape(lab, node)
        found: dict[str, float] = {}
        for (name, *labels), value in now.items():
            unit = name.removeprefix("podfabric_peer_").removeprefix("podfabric_").removesuffix("_total")
            if unit in ("packets", "bytes"):
                key = f"{unit} {labels[0]}"
                found[key] = found.get(key, 0) + value - before[node].get((name, *labels), 0)
        return found

    def balanced() -> bool:
        near, far = (carried(node.name) for node in lab.nodes)
        pairs = (("to", "egress"), ("from", "ingress"))
        return near["bytes to"] > 1 << 20 and all(
            found[f"{unit} {peers}"] == found[f"{unit} {node}"] and near[f"{unit} to"] == far[f"{unit} from"]
            for found in (near, far) for unit in ("packets", "bytes") for peers, node in pairs
        )  # fmt: skip

    wait_for(balanced, "the sums to agree")
