"""Packets and what is said of them, against real tables, and against what the worker then does with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from encap.vxlan import encapsulate
from fabric.explain.packets import Tuple5, build
from fabric.forward.rehearse import LiveTables
from tests.fabric.explain.tables import live, step, tell
from tests.fabric.forward.harness import Fabric, node_mac, wait_for
from tests.fabric.forward.packets import udp4
from tests.fabric.forward.policed import PASSED, Cluster, address, allow, packet, ping, policy, tcp, udp

RULE = "NetworkPolicy default/for-b spec.ingress[0]"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Pod b takes TCP 80 from a and UDP from everybody."""
    with Fabric() as fabric:
        made = Cluster(fabric)
        made.apply(policy("b", ingress=[allow("a c", "TCP", 80), allow((), "UDP")]))
        yield made


@pytest.fixture
def tables(cluster: Cluster) -> LiveTables:
    return live(cluster.one, cluster.snapshot, services=True)


def wrapped(inner: bytes, **fields: object) -> bytes:
    """Node 2's datagram, as the underlay carries it."""
    around = {"vni": 1, "destination": node_mac(1), "source": node_mac(2), **fields}
    return encapsulate(inner, **around)  # type: ignore[arg-type]


def outer(tables: LiveTables, payload: bytes, source: str = "127.0.0.2") -> bytes:
    ports = tables.settings.ports
    return udp4(source, "127.0.0.1", payload, sport=5555, dport=ports["vxlan"])


CASES = {
    "a rule allows": (packet("a", "b", tcp(80)), "", "delivered", "", {
        "comes in by": "port pod1-10 (pod default/a): 10.244.1.10 is its address",
        "checks": "packet, source, tunnel port: passed",
        "route": "10.244.1.11 leads to port pod1-11 (pod default/b)", "flow": "new: it would begin in state syn-sent",
        "policy": f"allowed by {RULE} (policies.yaml:7)", "size": "40 bytes fit the way's MTU 1450"}),
    "no rule allows": (packet("a", "b", tcp(81)), "", "dropped", "policy_ingress", {
        "flow": "none is found, and none is made", "policy": "no rule matched", "size": ""}),
    "IPv6": (packet("a", "b", tcp(80), 6), "", "delivered", "", {"route": "pod1-11", "policy": RULE}),
    "to a peer": (packet("a", "c", udp(53)), "", "sent", "", {
        "route": "10.244.2.10 leads to peer node2 (127.0.0.2) by vxlan", "policy": "no policy decides on this flow",
        "size": "60 bytes fit the way's MTU 1450"}),
    "cut": (udp4(address("a", 4), address("c", 4), bytes(3000)), "", "sent", "", {"size": "MTU 1450: cut into 3"}),
    "too big": (udp4(address("a", 4), address("c", 4), bytes(3000), flags="DF"), "", "dropped", "too_big", {
        "size": "3028 bytes do not fit the way's MTU 1450: dropped, too_big"}),
    "TTL": (udp4(address("a", 4), address("c", 4), ttl=1), "", "dropped", "ttl_expired", {"way": "ttl_expired"}),
    "spoofed": (packet("b", "c", udp(53)), "pod1-10", "dropped", "source_spoofed", {
        "checks": "packet: passed; source: dropped, source_spoofed", "route": ""}),
    "to a node's tunnel port": (b"tunnel port", "", "dropped", "pod_to_vtep", {"checks": "tunnel port: dropped"}),
    "from the host": (packet("node1", "b", tcp(81)), "", "delivered", "", {
        "comes in by": "the node port (the host): 10.244.1.0 is behind it", "checks": "packet: passed"}),
    "to a Service": (packet("a", "service", tcp(81)), "", "delivered", "", {
        "route": "none to 10.96.0.1 in the fabric", "policy": "a Service's address", "size": "for the host"}),
    "from nowhere": (packet("outside", "a", tcp(81)), "", "delivered", "", {
        "comes in by": "the node port (the host): nothing is routed to its source"}),
    "multicast": (udp4(address("a", 4), "224.0.0.1"), "", "dropped", "not_unicast", {"route": "dropped, not_unicast"}),
    "from a peer": (packet("c", "b", tcp(80)), "", "delivered", "", {
        "comes in by": "the underlay from peer node2 (127.0.0.2): 10.244.2.10 is in that peer's lease",
        "checks": "length, peer, format, VXLAN header, MAC addresses, Ethernet type, packet, source, destination",
        "policy": f"allowed by {RULE}"}),
    "of a peer from a stranger": (packet("c", "b", tcp(80)), "192.0.2.77", "dropped", "unknown_vtep", {
        "comes in by": "192.0.2.77, which is no peer", "checks": "length: passed; peer: dropped, unknown_vtep"}),
    "not a peer's": (packet("a", "b", tcp(80)), "127.0.0.2", "dropped", "source_not_leased", {
        "checks": "source: dropped"}),
    "empty": (b"", "", "dropped", "inner_short", {"checks": "packet: dropped, inner_short"}),
    "empty from a peer": (b"", "127.0.0.2", "dropped", "inner_short", {"checks": "packet: dropped, inner_short"}),
    "garbage": (b"\x99" * 60, "", "dropped", "inner_version", {"comes in by": "the node port"}),
    "half a packet": (packet("a", "b", tcp(80))[:30], "", "dropped", "inner_length", {"comes in by": "pod1-10"}),
    "later fragment": (udp4(address("a", 4), address("b", 4), frag=4), "", "dropped", "policy_fragment", {
        "flow": "none is found", "policy": "dropped, policy_fragment"}),
}  # fmt: skip


NOT_OF_A_PORT = ("empty", "empty from a peer", "to a node's tunnel port", "from a peer", "of a peer from a stranger",
                 "not a peer's")  # fmt: skip
"""Cases that no frame of a port makes, or (the tunnel port's) that are made in the test."""


@pytest.mark.parametrize("name", CASES)
def test_words(cluster: Cluster, tables: LiveTables, name: str) -> None:
    data, by, verdict, reason, words = CASES[name]
    if data == b"tunnel port":
        data = udp4(address("a", 4), "127.0.0.2", dport=cluster.one.tunnel_ports["vxlan"])
    told = tell(tables, data, by=by)
    assert (told["verdict"], told["reason"]) == (verdict, reason), told
    for which, text in words.items():
        assert text in step(told, which) if text else not step(told, which), told["steps"]


@pytest.mark.parametrize("name", [name for name in CASES if name not in (*NOT_OF_A_PORT, "later fragment")])
def test_it_comes_true(cluster: Cluster, tables: LiveTables, name: str) -> None:
    """The worker then does the same with the same bytes: delivers these, or counts this reason."""
    data, by, verdict, reason, _ = CASES[name]
    told = tell(tables, data, by=by)
    port = next(each for each in cluster.one.ports if each.name == told["from"]["port"])
    before = cluster.one.drops()
    port.peer.inject(data)
    if verdict == "dropped":
        wait_for(lambda: cluster.one.drops() != before)
        assert {key for key, count in cluster.one.drops().items() if count != before.get(key)} == {reason}
        return
    if verdict == "delivered":
        target = next(each for each in cluster.one.ports if each.name == told["results"][0]["to"])
        assert target.take()[1].hex() == told["results"][0]["hex"]
        return
    received = [cluster.two.ports[1].take()[1].hex() for _ in told["results"]]
    # One hop more: the far node lowers the TTL of what it hands to its pod.
    assert [each[48 * 2 :] for each in received] == [item["hex"][(22 + 48) * 2 :] for item in told["results"]]


def test_a_datagram_comes_true(cluster: Cluster, tables: LiveTables) -> None:
    """Node 2 sends it; what node 1 hands to its pod is what was told, but for the TTL that node 2 has lowered."""
    inner = packet("c", "b", tcp(80))
    told = tell(tables, inner)
    cluster.two.ports[1].peer.inject(inner)
    got = cluster.ports["b"].take()[1]
    assert (got[:8] + got[12:]).hex() == told["results"][0]["hex"][:16] + told["results"][0]["hex"][24:]


def test_the_outer_packet_of_a_capture(cluster: Cluster, tables: LiveTables) -> None:
    told = tell(tables, outer(tables, wrapped(packet("c", "b", tcp(80)))))
    assert (told["verdict"], told["from"]["source"]) == ("delivered", "127.0.0.2")
    assert "it is a datagram to the vxlan port" in step(told, "comes in by")
    frame = bytes(Ether(src="02:00:00:00:00:07", dst="02:00:00:00:00:08")) + outer(tables, wrapped(b"\x45" * 40))
    assert tell(tables, frame, ethernet=True)["reason"] == "inner_length"
    tagged = frame[:12] + b"\x81\x00\x00\x05" + b"\x08\x00" + frame[14:]
    assert tell(tables, tagged, ethernet=True)["reason"] == "inner_length"


@pytest.mark.parametrize(("fields", "reason", "text"), [
    ({"vni": 7}, "vxlan_vni", "length, peer, format: passed; VXLAN header: dropped"),
    ({"source": node_mac(9)}, "inner_mac", "VXLAN header: passed; MAC addresses: dropped"),
    ({"destination": node_mac(9)}, "inner_mac", "MAC addresses: dropped"),
])  # fmt: skip
def test_a_datagram_is_checked(tables: LiveTables, fields: dict[str, object], reason: str, text: str) -> None:
    told = tell(tables, outer(tables, wrapped(packet("c", "b", tcp(80)), **fields)))
    assert told["reason"] == reason
    assert text in step(told, "checks")


def test_a_datagram_of_our_own(tables: LiveTables) -> None:
    """The packet in it is what the question is about."""
    told = tell(tables, outer(tables, wrapped(packet("a", "c", udp(53))), source="127.0.0.1"))
    assert (told["verdict"], told["from"]["port"]) == ("sent", "pod1-10")
    assert "this node's own" in told["notes"][0]


def test_answers_are_shown(tables: LiveTables) -> None:
    told = tell(tables, udp4(address("a", 4), address("c", 4), bytes(3000), flags="DF"))
    answer = told["results"][0]
    assert (answer["kind"], answer["to"]) == ("answer", "pod1-10")
    assert "ICMP unreachable code 4, fragmentation needed, MTU 1450" in answer["headers"]
    told = tell(tables, bytes(IP(src=address("c", 4), dst=address("b", 4), ttl=1) / TCP(dport=80)))
    assert (told["reason"], told["results"][0]["kind"], told["results"][0]["to"]) == (
        "ttl_expired",
        "answer",
        "127.0.0.2",
    )
    assert "ICMP time exceeded" in told["results"][0]["headers"]


def test_the_headers_of_a_datagram(cluster: Cluster, tables: LiveTables) -> None:
    result = tell(tables, packet("a", "c", udp(53)))["results"][0]
    ports = [sock.getsockname()[1] for sock in cluster.one.transmit_sockets]
    assert result["source_port"] in ports
    assert result["headers"][0].startswith("outer IPv4 from 127.0.0.1 to 127.0.0.2, ECN 0; UDP")
    assert result["headers"][1:3] == [
        "VXLAN flags 0x08, VNI 1", "Ethernet from 02:00:00:00:00:01 to 02:00:00:00:00:02, type 0x0800"
    ]  # fmt: skip
    assert result["headers"][4] == "UDP 4000 to 53, 40 bytes"
    assert result["headers_length"] == 22 + 28


def test_a_flow_is_found(cluster: Cluster, tables: LiveTables) -> None:
    answer = packet("a", "b", tcp(80, answer_flags="SA"), answer=True)
    unasked = bytes(IP(src=address("b", 4), dst=address("a", 4)) / TCP(sport=80, dport=4000, flags="SA"))
    assert answer != unasked
    assert "new" in step(tell(tables, packet("b", "a", tcp(4000, 80))), "flow")
    assert cluster.send("a", "b", tcp(80)) == PASSED
    told = tell(tables, unasked)
    assert "found: 10.244.1.10:4000 to 10.244.1.11:80, state syn-sent, then syn-received" in step(told, "flow")
    assert f"allowed when it began, by {RULE}" in step(told, "policy")
    assert told["verdict"] == "delivered"


def test_a_flow_that_policy_has_cut(cluster: Cluster) -> None:
    assert cluster.send("a", "b", tcp(80)) == PASSED
    cluster.apply(policy("b", ingress=[]))
    told = tell(live(cluster.one, cluster.snapshot), packet("a", "b", tcp(80, flags="A")))
    assert (told["verdict"], told["reason"], told["flow"]["before"]["allowed"]) == ("dropped", "policy_ingress", True)
    assert told["flow"]["after"]["allowed"] is False


def test_a_reply_leaves_by_the_node_port(cluster: Cluster, tables: LiveTables) -> None:
    """The flow came in by the node port, so the host has to see its replies."""
    assert cluster.send("a", "b", tcp(80), by="node1") == PASSED
    reply = bytes(IP(src=address("b", 4), dst=address("a", 4)) / TCP(sport=80, dport=4000, flags="SA"))
    told = tell(tables, reply)
    assert "leaves by that" in step(told, "route")
    assert told["results"][0]["to"] == "node1"


def test_an_error_belongs_to_the_flow_that_it_quotes(cluster: Cluster, tables: LiveTables) -> None:
    sent = packet("a", "b", tcp(80))
    error = bytes(IP(src=address("b", 4), dst=address("a", 4)) / ICMP(type=3, code=3) / Raw(sent))
    assert "none is found" in step(tell(tables, error), "flow")
    assert cluster.send("a", "b", tcp(80)) == PASSED
    assert "found: 10.244.1.10:4000" in step(tell(tables, error), "flow")


@pytest.mark.slow
def test_nothing_is_touched(cluster: Cluster, tables: LiveTables) -> None:
    """Neither flows nor hits nor counters nor ports: a thousand questions leave no trace."""
    assert cluster.send("a", "b", tcp(80)) == PASSED
    assert cluster.one.flows is not None
    flows, hits, counters = cluster.one.flows.counters(), cluster.hits.counts(), cluster.one.worker.counters()
    for number in range(1000):
        for made in (tcp(80, number), tcp(81, number), ping(number)):
            tell(tables, packet("a", "b", made))
        tell(tables, packet("c", "b", tcp(80, number)))
    assert (cluster.one.flows.counters(), cluster.hits.counts()) == (flows, hits)
    after = cluster.one.worker.counters()
    assert {name: count for name, count in after.items() if count != counters[name] and "wakeups" not in name} == {}
    assert all(port.peer.take() is None for port in cluster.one.ports)


@pytest.mark.slow
def test_a_pod_at_its_quota(cluster: Cluster, tables: LiveTables) -> None:
    """What is half open makes room, until all is established: from then on it is told that there is none."""
    assert cluster.one.flows is not None
    seen = set()
    for number in range(1, 500):
        made = tcp(80, number)
        told = tell(tables, packet("a", "b", made))
        before = cluster.one.flows.counters()["flow_refused_quota"]
        assert cluster.send("a", "b", made) == PASSED
        refused = cluster.one.flows.counters()["flow_refused_quota"] > before
        assert (told["verdict"], told["flow"]["after"] is None) == ("delivered", refused)
        seen.add(refused)
        if refused:
            break
        if number % 3:  # two of three are established
            assert cluster.send("b", "a", made, answer=True) == PASSED
            assert cluster.send("a", "b", tcp(80, number, flags="A")) == PASSED
    assert seen == {True, False}


def test_a_tap_port(cluster: Cluster) -> None:
    port = cluster.ports["b"]
    port.ethernet = (b"\x02\0\0\0\0\x0b", b"\x02\0\0\0\0\xfe")
    tables = live(cluster.one, cluster.snapshot)
    sent = packet("b", "c", udp(53))
    assert "taken for right" in tell(tables, sent)["notes"][0]
    frame = b"\x02\0\0\0\0\xfe" + b"\x02\0\0\0\0\x0b" + b"\x08\x00" + sent
    assert tell(tables, frame, ethernet=True)["verdict"] == "sent"
    stray = b"\x02\0\0\0\0\x77" + frame[6:]
    told = tell(tables, stray, ethernet=True)
    assert told["reason"] == "port_ethernet"
    assert "Ethernet header: dropped" in step(told, "checks")
    got = tell(tables, packet("a", "b", tcp(80)))["results"][0]
    assert got["headers"][0] == "Ethernet from 02:00:00:00:00:fe to 02:00:00:00:00:0b, type 0x0800"


@pytest.mark.parametrize("protocol", [1, 6, 17, 47, 132])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [0, 61, 1450])
def test_a_packet_out_of_a_tuple(cluster: Cluster, protocol: int, family: int, size: int) -> None:
    """It is as a pod would send it: the far pod gets it, and its checksums are right."""
    source, target = (ip_address(address(name, family)) for name in ("a", "c"))
    kind = 58 if (protocol, family) == (1, 6) else protocol
    made = build(Tuple5(source, target, kind, {1: 8, 58: 128}.get(kind, 53), size=size))
    assert not size or len(made) == size
    again = (IP if family == 4 else IPv6)(made)
    for layer in (again, again.payload):
        for field in ("chksum", "cksum"):
            if field in layer.fields and kind != 132:
                delattr(layer, field)
    assert bytes(again) == made
    told = tell(live(cluster.one, cluster.snapshot), made)
    assert told["verdict"] == "sent", told
