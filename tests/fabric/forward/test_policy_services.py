"""Services, own node, pods that are not known yet, and what rules have done: real workers, packets on memory ports."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from encap.drops import DropReason
from fabric.forward.enforcement import Enforcement, RuleHits
from fabric.forward.flows import FlowTable
from fabric.forward.snapshot import Snapshot
from tests.fabric.forward.harness import Fabric
from tests.fabric.forward.naive_flows import NODE, UNDERLAY
from tests.fabric.forward.policed import (
    HOMES,
    PASSED,
    SERVICE,
    SERVICE_NETWORKS,
    Cluster,
    address,
    allow,
    block,
    compile_for,
    packet,
    ping,
    policy,
    probe_on,
    tcp,
    udp,
)

EGRESS, INGRESS, UNKNOWN, MISSING = "policy_egress", "policy_ingress", "policy_unknown_pod", "policy_missing"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
BACKENDS = pytest.mark.parametrize("backend", ["b", "c"], ids=["local", "remote"])
PODS = ("a", "b", "c", "bridged")


@pytest.fixture
def cluster(fabric: Fabric) -> Cluster:
    return Cluster(fabric, services=SERVICE_NETWORKS)


# --- Services ---


@FAMILIES
@BACKENDS
def test_a_service_is_judged_by_where_it_leads(cluster: Cluster, backend: str, family: int) -> None:
    """Out by the node port unjudged; the host translates; in again, judged as from the pod to the backend."""
    cluster.apply(policy("a", egress=[allow(backend, "TCP", 8080)]), policy(backend, ingress=[allow("a", "TCP", 8080)]))
    assert cluster.send("a", "service", tcp(80), family) == PASSED
    assert cluster.send("a", backend, tcp(8080), family, by="node1") == PASSED
    assert cluster.send(backend, "a", tcp(8080), family, answer=True, to="node1") == PASSED
    assert cluster.send("service", "a", tcp(80), family, answer=True) == PASSED
    assert cluster.drops() == {}


@FAMILIES
@BACKENDS
def test_a_service_is_no_way_around_either_end(cluster: Cluster, backend: str, family: int) -> None:
    for policies, wanted in (([policy("a", egress=[])], EGRESS), ([policy(backend, ingress=[])], INGRESS)):
        cluster.apply(*policies)
        assert cluster.send("a", "service", tcp(80), family) == PASSED
        assert cluster.send("a", backend, tcp(8080), family, by="node1") == wanted
        assert cluster.send("a", backend, tcp(8080), family) == wanted, "nor is the direct way"


@FAMILIES
def test_only_answers_come_from_a_service(cluster: Cluster, family: int) -> None:
    cluster.apply(policy("a", ingress=[]))
    assert cluster.send("service", "a", tcp(80), family, answer=True) == INGRESS
    assert cluster.send("a", "service", tcp(80), family) == PASSED
    assert cluster.send("service", "a", tcp(80, 4001), family, answer=True) == INGRESS
    assert cluster.send("service", "a", udp(80), family, answer=True) == INGRESS
    assert cluster.send("service", "a", tcp(80), family, answer=True) == PASSED
    cluster.apply(policy("a", ingress=[]), policy("b", ingress=[]))
    assert cluster.send("service", "a", tcp(80), family, answer=True) == PASSED, "also under the next policy"


@FAMILIES
def test_everything_else_outside_is_judged_at_once(cluster: Cluster, family: int) -> None:
    cluster.apply(policy("a", egress=[]))
    assert cluster.send("a", "outside", tcp(80), family) == EGRESS
    assert cluster.send("a", "service", tcp(80), family) == PASSED


def test_without_service_networks_no_address_is_a_service(fabric: Fabric) -> None:
    cluster = Cluster(fabric)
    cluster.apply(policy("a", egress=[]))
    assert cluster.send("a", "service", tcp(80)) == EGRESS
    cluster.apply(policy("a", egress=[allow([block(SERVICE[4] + "/32")])]))
    assert cluster.send("a", "service", tcp(80)) == PASSED


def test_a_network_that_has_a_route_is_never_a_service(fabric: Fabric) -> None:
    """A Service network that was given too large opens no way to pods."""
    cluster = Cluster(fabric, services=[IPV4_EVERYTHING])
    cluster.apply(policy("a", egress=[]))
    assert cluster.send("a", "b", tcp(80)) == EGRESS
    assert cluster.send("a", "c", tcp(80)) == EGRESS


IPV4_EVERYTHING = SERVICE_NETWORKS[0].supernet(new_prefix=0)


@pytest.mark.parametrize("entry", [NODE, UNDERLAY])
def test_only_a_pod_port_may_send_to_a_service_unjudged(entry: int) -> None:
    """From elsewhere such a packet has no route and does not come so far; if it did, it would be judged."""
    probe = probe_on(FlowTable(64), [policy("a", egress=[])], [])
    question = packet("a", "service", udp(80))
    assert probe.refused(question, entry, 100) == DropReason.POLICY_EGRESS
    assert probe.refused(question, 1, 100) == DropReason.PASS


def test_a_pod_cannot_claim_another_ones_address_at_a_service(cluster: Cluster) -> None:
    """As the translated packet is judged by its source, that has to be true from the beginning."""
    cluster.apply(policy("a", egress=[]), policy("b", ingress=[allow("c")]))
    forged = packet("c", "service", tcp(80))
    assert cluster.give(forged, "a", "node1") == "source_spoofed"


def test_later_fragments_to_a_service(cluster: Cluster) -> None:
    """The host puts them together before it translates."""
    piece = bytes(IP(src=address("a", 4), dst=SERVICE[4], proto=17, frag=100, id=5) / Raw(bytes(64)))
    cluster.apply(policy("a", egress=[]))
    assert cluster.give(piece, "a", "service") == PASSED


# --- the node itself ---


@FAMILIES
def test_a_node_reaches_its_own_pods_only(cluster: Cluster, family: int) -> None:
    cluster.apply(*(policy(name, ingress=[], egress=[]) for name in PODS))
    assert cluster.exchange("node1", "a", tcp(80), family) == (PASSED, PASSED)
    assert cluster.exchange("node1", "b", ping(9, family), family) == (PASSED, PASSED)
    assert cluster.send("node1", "c", tcp(80), family) == INGRESS
    assert cluster.send("a", "node1", udp(53), family) == EGRESS, "the other way round it is judged"
    assert cluster.send("outside", "a", tcp(80), family) == INGRESS


@pytest.mark.parametrize("entry", [2, UNDERLAY])
def test_a_node_speaks_by_its_node_port_only(entry: int) -> None:
    """Its address from elsewhere is refused before (`source_spoofed`, `source_not_leased`), and would be no pass."""
    probe = probe_on(FlowTable(64), [policy("a", ingress=[])], [])
    question = packet("node1", "a", udp(80))
    assert probe.refused(question, entry, 100) == DropReason.POLICY_INGRESS
    assert probe.refused(question, NODE, 100) == DropReason.PASS


# --- pods that are not known ---


@FAMILIES
@pytest.mark.parametrize("other", ["a", "c", "outside", "service"])
def test_an_unknown_pod_is_cut_off(cluster: Cluster, other: str, family: int) -> None:
    """b runs already, and the policy has not heard of it: it could be selected by anything."""
    cluster.apply(known=("a", "c", "bridged"))
    for make in (tcp(80), udp(53), ping(9, family), tcp(80, flags="A"), tcp(80, flags="R")):
        assert cluster.send("b", other, make, family) == UNKNOWN
        assert cluster.send(other, "b", make, family) == UNKNOWN
    assert cluster.exchange("node1", "b", tcp(80), family) == (PASSED, PASSED), "the kubelet's probes"
    cluster.apply()
    assert cluster.exchange("b", other, udp(53), family) == (PASSED, PASSED)
    cluster.apply(known=("a", "c", "bridged"))
    assert cluster.send("b", other, udp(53), family) == UNKNOWN, "it is not known any more"


@FAMILIES
def test_so_is_one_behind_the_node_port(cluster: Cluster, family: int) -> None:
    cluster.apply(known=("a", "b", "c"))
    assert cluster.send("bridged", "c", tcp(80), family) == UNKNOWN
    assert cluster.send("c", "bridged", tcp(80), family) == UNKNOWN
    assert cluster.send("a", "bridged", tcp(80), family) == UNKNOWN


@FAMILIES
@pytest.mark.parametrize("home", ["node2", ""])
def test_one_that_is_known_elsewhere_is_cut_off(cluster: Cluster, home: str, family: int) -> None:
    """b has moved here, or nobody has said yet that it lives here: no rules of its own were compiled."""
    cluster.put(compile_for("node1", [policy("b", ingress=[])], homes={**HOMES, "b": home}), None)
    for other in ("a", "c", "outside"):
        assert cluster.send(other, "b", tcp(80), family) == UNKNOWN
        assert cluster.send("b", other, tcp(80), family) == UNKNOWN
    cluster.apply(policy("b", ingress=[]))
    assert cluster.send("a", "b", tcp(80), family) == INGRESS


def test_a_port_that_comes_later_is_closed_at_once(fabric: Fabric) -> None:
    """Flows with its address from the time when it was nobody's do not count."""
    cluster = Cluster(fabric)
    cluster.apply(known=("a", "b", "c"))
    late = cluster.one.add_pod(30)
    cluster.put(cluster.snapshot, cluster.snapshot)
    raw = bytes(IP(src="10.244.1.30", dst=address("a", 4)) / UDP(sport=1, dport=2))
    late.peer.inject(raw)
    cluster.one.wait_drop(UNKNOWN)


# --- policy that has to be there and is not ---


@FAMILIES
def test_without_a_policy_that_is_required_pods_are_cut_off(fabric: Fabric, family: int) -> None:
    cluster = Cluster(fabric, required=True, services=SERVICE_NETWORKS)
    for other in ("b", "c", "bridged", "outside", "service"):
        assert cluster.send("a", other, tcp(80), family) == MISSING
        assert cluster.send(other, "a", tcp(80), family) == MISSING
    assert cluster.exchange("node1", "a", tcp(80), family) == (PASSED, PASSED)
    assert cluster.send("node1", "c", tcp(80), family) == MISSING, "node 2 has no policy either"
    cluster.apply()
    assert cluster.exchange("a", "c", udp(53), family) == (PASSED, PASSED)
    cluster.put(None, None)
    assert cluster.send("c", "a", udp(53), family, answer=True) == MISSING
    piece = bytes(IP(src=address("a", 4), dst=address("b", 4), proto=17, frag=100, id=5) / Raw(bytes(64)))
    assert cluster.give(piece, "a", "b") == MISSING


# --- what the rules have done ---


def hits(cluster: Cluster) -> dict[str, int]:
    assert cluster.snapshot is not None
    return {cluster.snapshot.describe(number): count for number, count in cluster.hits.counts().items()}


def test_hits_count_flows(cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[allow("a", "TCP", 80), allow("a", "UDP", 53)]), policy("a", egress=[allow("b")]))
    for _ in range(5):
        assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
    for port in (1, 2, 3):
        assert cluster.send("a", "b", udp(53, port)) == PASSED
    assert cluster.send("a", "b", udp(54)) == INGRESS
    found = hits(cluster)
    assert found["NetworkPolicy default/for-b spec.ingress[0]"] == 1
    assert found["NetworkPolicy default/for-b spec.ingress[1]"] == 3
    assert found["NetworkPolicy default/for-a spec.egress[0]"] == 5
    assert sum(found.values()) == 1 + 3 + 5 + 1, "and the end of the tier has denied one"


@FAMILIES
def test_denied_flows_can_be_read(cluster: Cluster, family: int) -> None:
    cluster.apply(policy("b", ingress=[]))
    assert cluster.send("a", "b", tcp(80, 4321), family) == INGRESS
    assert cluster.send("a", "b", ping(9, family), family) == INGRESS
    (reason, rule, *ends), (_, _, *echo) = cluster.one.worker.denied()
    assert cluster.snapshot is not None
    assert rule is not None
    assert (reason, "ingress" in cluster.snapshot.describe(rule)) == (DropReason.POLICY_INGRESS, True)
    source, destination = (int(ip_address(address(name, family))) for name in ("a", "b"))
    assert ends == [family, source, destination, 6, 4321, 80]
    assert echo[3:] == ([1, 8, 0] if family == 4 else [58, 128, 0])
    assert cluster.one.worker.denied() == []


def test_a_flood_of_denied_flows_is_sampled(cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[]))
    for port in range(1, 301):
        assert cluster.send("a", "b", udp(port)) == INGRESS
    seen = cluster.one.worker.denied()
    assert 32 <= len(seen) <= 128
    assert [record[7] for record in seen] == sorted({record[7] for record in seen})


# --- what cannot be compiled ---


def test_policy_needs_a_flow_table(fabric: Fabric) -> None:
    node = fabric.add_node(1)
    required = Enforcement(1, None, True, (), RuleHits())
    formats = {"vxlan": 1, "udp": 2}
    with pytest.raises(ValueError, match="policy needs a flow table"):
        Snapshot(1, node.state(), node.ports, 1, formats, True, None, required)  # type: ignore[arg-type]


def test_service_networks_are_counted() -> None:
    with pytest.raises(ValueError, match="17 Service networks, at most 16"):
        Enforcement(1, None, False, SERVICE_NETWORKS[:1] * 17, RuleHits())
