"""What happens to flows that policy has judged: changes, answers that are none, errors, fragments, full tables."""

from __future__ import annotations

from itertools import permutations

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from fabric.forward.flows import FlowTable
from fabric.forward.refused import refused_packet
from tests.fabric.forward.harness import Fabric, wait_for
from tests.fabric.forward.policed import (
    PASSED,
    Cluster,
    Make,
    Object,
    address,
    allow,
    packet,
    ping,
    policy,
    tcp,
    udp,
)

EGRESS, INGRESS = "policy_egress", "policy_ingress"
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SERVERS = pytest.mark.parametrize("server", ["b", "c"], ids=["local", "remote"])


@pytest.fixture
def cluster(fabric: Fabric) -> Cluster:
    return Cluster(fabric)


def isolated(name: str) -> tuple[Object, Object]:
    """Nothing out of the pod, and nothing into it."""
    return policy(name, egress=[], name=f"no-egress-{name}"), policy(name, ingress=[], name=f"no-ingress-{name}")


def flows(cluster: Cluster) -> int:
    assert cluster.one.flows is not None
    return cluster.one.flows.counters()["flow_inserted"]


# --- changes of policy ---


@FAMILIES
@SERVERS
@pytest.mark.parametrize("make", [tcp(80, flags="A", answer_flags="A"), udp(53)], ids=["tcp", "udp"])
def test_a_change_cuts_what_it_denies_and_nothing_else(cluster: Cluster, server: str, make: Make, family: int) -> None:
    """In both directions, though the server may begin flows of its own; a further change lets it go on."""
    other = udp(99)
    cluster.apply()
    for each in (make, other):
        assert cluster.exchange("a", server, each, family) == (PASSED, PASSED)
    cluster.apply(policy(server, ingress=[allow("a", "UDP", 99)]))
    for _ in range(2):
        assert cluster.send(server, "a", make, family, answer=True) in (INGRESS, EGRESS)
        assert cluster.send("a", server, make, family) == INGRESS
        assert cluster.exchange("a", server, other, family) == (PASSED, PASSED)
    cluster.apply(policy(server, ingress=[allow("a")]))
    for _ in range(2):
        assert cluster.send(server, "a", make, family, answer=True) == PASSED
        assert cluster.send("a", server, make, family) == PASSED


def test_the_side_that_did_not_begin_is_cut_first(cluster: Cluster) -> None:
    """The server goes on sending after the change: its packet is judged as the answer that it is."""
    cluster.apply()
    assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
    cluster.apply(policy("b", ingress=[]))
    data = tcp(80, answer_flags="PA")
    assert cluster.send("b", "a", data, answer=True) == INGRESS
    assert cluster.send("b", "a", tcp(80, 4001), answer=True) == PASSED, "as a new flow it would have passed"


def test_a_new_connection_of_the_same_ends_is_judged_anew(cluster: Cluster) -> None:
    """The cut connection leaves a record, which does not hold up what is allowed."""
    cluster.apply()
    assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
    cluster.apply(policy("b", ingress=[]))
    assert cluster.send("a", "b", tcp(80, flags="A")) == INGRESS
    assert cluster.send("b", "a", lambda answer: tcp(4000, 80)(False)) == PASSED, "b begins one with the same ports"
    cluster.apply(policy("b", ingress=[allow("a")]))
    assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)


def test_the_first_policy_judges_what_was_there_before(cluster: Cluster) -> None:
    assert cluster.exchange("a", "b", udp(53)) == (PASSED, PASSED)
    cluster.apply(policy("b", ingress=[]))
    assert cluster.send("a", "b", udp(53)) == INGRESS
    cluster.put(None, None)
    assert cluster.exchange("a", "b", udp(53)) == (PASSED, PASSED)


def test_a_change_of_something_else_loses_no_packet(cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[allow("a")]))
    assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
    for port in range(20):
        cluster.apply(policy("b", ingress=[allow("a")]), policy("c", ingress=[allow("b", "TCP", 1000 + port)]))
        assert cluster.send("b", "a", tcp(80, answer_flags="PA"), answer=True) == PASSED
        assert cluster.send("a", "b", tcp(80, flags="A")) == PASSED
    assert cluster.drops() == {}


# --- what is no answer ---


def test_a_reply_does_not_open_a_connection(cluster: Cluster) -> None:
    """b has begun a connection from its port 80; a SYN from its other end is a connection to b all the same."""
    cluster.apply(policy("b", ingress=[]))
    begun = tcp(4000, 80)
    assert cluster.exchange("b", "a", begun) == (PASSED, PASSED)
    assert cluster.send("a", "b", tcp(80, 4000)) == INGRESS
    assert cluster.send("a", "b", begun, answer=True) == PASSED, "SYN and ACK together are an answer"


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA", "SA"])
def test_what_belongs_to_no_connection_is_judged(cluster: Cluster, flags: str) -> None:
    cluster.apply(policy("b", ingress=[]))
    assert cluster.send("a", "b", tcp(80, flags=flags)) == INGRESS
    assert cluster.send("c", "b", tcp(80, flags=flags)) == INGRESS


# --- denied flows cost nothing ---


def test_a_denied_flow_leaves_no_record(cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[]))
    before = flows(cluster)
    for port in range(1, 101):
        assert cluster.send("a", "b", tcp(port)) == INGRESS
        assert cluster.send("a", "b", udp(port)) == INGRESS
    assert flows(cluster) == before
    assert cluster.one.drops() == {"policy_ingress": 200}


def test_a_full_table_opens_nothing(fabric: Fabric) -> None:
    """Flows that find no room are judged packet by packet: questions pass, answers are new flows."""
    cluster = Cluster(fabric, flows={"flows": FlowTable(8, 1)})
    cluster.apply(policy("b", ingress=[allow("a", "TCP")]), policy("a", ingress=[]))
    for _ in range(2):
        assert cluster.exchange("a", "b", udp(53)) != (PASSED, PASSED)
        assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
        assert cluster.send("a", "b", tcp(80, flags="A")) == PASSED
    assert cluster.send("a", "b", tcp(81)) == PASSED
    assert cluster.send("b", "a", tcp(81), answer=True) == INGRESS
    assert cluster.exchange("a", "b", tcp(80, flags="A", answer_flags="A")) == (PASSED, PASSED)
    assert cluster.one.flows is not None
    assert cluster.one.flows.counters()["flow_refused_quota"] > 0


def test_a_flood_does_not_make_room_for_a_cut_connection(fabric: Fabric) -> None:
    """a has lost its connection to b, and would have it back by pushing the record out before b sends again."""
    cluster = Cluster(fabric, flows={"flows": FlowTable(8, 4)})
    cluster.apply()
    assert cluster.exchange("a", "b", tcp(80)) == (PASSED, PASSED)
    assert cluster.send("a", "b", tcp(80, flags="A")) == PASSED
    cluster.apply(policy("b", ingress=[allow("a", "UDP")]))
    assert cluster.send("a", "b", tcp(80, flags="A")) == INGRESS
    for port in range(1, 50):
        assert cluster.send("a", "b", udp(port)) == PASSED
    assert cluster.send("b", "a", tcp(80, answer_flags="PA"), answer=True) == INGRESS
    assert cluster.send("a", "b", tcp(80, flags="A")) == INGRESS


# --- ICMP errors ---


def unreachable(family: int, source: str, destination: str, quoted: bytes) -> bytes:
    head: Scapy = IP if family == 4 else IPv6
    error: Scapy = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    return bytes(head(src=address(source, family), dst=address(destination, family)) / error / Raw(quoted))


@FAMILIES
@SERVERS
def test_an_error_passes_for_the_flow_that_it_quotes(cluster: Cluster, server: str, family: int) -> None:
    dns = policy(server, ingress=[allow("a", "UDP", 53)], name="dns")
    cluster.apply(*isolated(server), dns, policy("a", ingress=[]))
    live, dead = (packet("a", server, udp(port), family) for port in (53, 54))
    assert cluster.send("a", server, udp(53), family) == PASSED
    assert cluster.give(unreachable(family, server, "a", live), server, "a") == PASSED
    assert cluster.give(unreachable(family, server, "a", dead), server, "a") == EGRESS, "no such flow"
    back = packet(server, "a", udp(53), family, answer=True)
    assert cluster.give(unreachable(family, server, "a", back), server, "a") == EGRESS, "not sent by a"
    assert cluster.give(unreachable(family, "outside", "a", live), "outside", "a") == PASSED, "a router on the way"
    third = "c" if server == "b" else "b"
    assert cluster.give(unreachable(family, third, "a", live), third, "a") == INGRESS, "a pod is no router"
    cluster.apply(*isolated(server), policy("a", ingress=[]))
    assert cluster.give(unreachable(family, server, "a", live), server, "a") == EGRESS, "the flow is cut"
    assert cluster.send("a", server, udp(53), family) == INGRESS
    assert cluster.give(unreachable(family, server, "a", live), server, "a") == EGRESS, "and its record says so"


def test_errors_between_pods_that_nothing_isolates(cluster: Cluster) -> None:
    cluster.apply(policy("c", ingress=[]))
    assert cluster.give(unreachable(4, "a", "b", packet("b", "a", udp(9))), "a", "b") == PASSED


def test_other_icmp_is_judged_each_time(cluster: Cluster) -> None:
    """No flow speaks for a timestamp request: not even one in the other direction."""
    cluster.apply(policy("b", ingress=[]))
    ask = ICMP(type=13, id=9)
    assert cluster.send("b", "a", lambda answer: ask) == PASSED
    assert cluster.send("a", "b", lambda answer: ask) == INGRESS
    assert cluster.send("a", "b", ping()) == INGRESS


# --- fragments ---


def cut(family: int, source: str, destination: str, port: int, number: int) -> list[bytes]:
    """A datagram in three fragments."""
    body = UDP(sport=4000, dport=port) / Raw(bytes(3000))
    if family == 4:
        head = IP(src=address(source, 4), dst=address(destination, 4), id=number)
        return [bytes(piece) for piece in fragment(head / body, 1400)]
    head = IPv6(src=address(source, 6), dst=address(destination, 6)) / IPv6ExtHdrFragment(id=number)
    return [bytes(piece) for piece in fragment6(head / body, 1400)]


@FAMILIES
@SERVERS
def test_fragments_share_the_lot_of_the_first(cluster: Cluster, server: str, family: int) -> None:
    cluster.apply(policy(server, ingress=[allow("a", "UDP", 53)]))
    for number, (port, wanted) in enumerate([(53, PASSED), (54, INGRESS), (53, PASSED)], 1):
        found = [cluster.give(piece, "a", server) for piece in cut(family, "a", server, port, number)]
        assert found == [wanted] * 3


@FAMILIES
@SERVERS
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_no_order_of_fragments_gets_past(cluster: Cluster, order: tuple[int, ...], server: str, family: int) -> None:
    """Of a denied datagram nothing arrives, of an allowed one all: what overtakes the first fragment waits for it."""
    cluster.apply(policy(server, ingress=[allow("a", "UDP", 53)]))
    denied, allowed = (cut(family, "a", server, port, port) for port in (54, 53))
    arrived: list[bytes] = []
    for number, pieces in enumerate([denied, denied, allowed]):
        for i in order:
            cluster.port("a").peer.inject(pieces[i])
        refused = 3 * min(number + 1, 2)

        def settled(all_of: int = 3 * (number + 1)) -> bool:
            arrived.extend(frame for _, frame in cluster.port(server).take_all())
            return len(arrived) + sum(cluster.drops().values()) == all_of

        wait_for(settled)
        assert cluster.drops() == {INGRESS: refused}
    found, wanted = ([body_of(piece, family) for piece in pieces] for pieces in (arrived, allowed))
    assert found[0] == wanted[0]
    assert sorted(found) == sorted(wanted)


def body_of(piece: bytes, family: int) -> bytes:
    """What no router changes: all behind the IP header."""
    return piece[20 if family == 4 else 40 :]


@pytest.mark.slow
def test_threads_that_sleep_lose_what_waits_too_long(cluster: Cluster) -> None:
    """Counted within seconds though nothing else happens, whether a port's or the underlay's thread has them."""
    cluster.apply(*(policy(name, ingress=[]) for name in "abc"))
    nodes = (cluster.one, cluster.two)
    for node in nodes:
        node.worker.record_drops(True)
    pieces = [cut(4, by, to, 53, 7)[1] for by, to in (("a", "b"), ("a", "c"), ("outside", "a"))]
    for by, piece in zip(("a", "a", "node1"), pieces, strict=True):
        cluster.port(by).peer.inject(piece)
    wait_for(lambda: cluster.drops() == {"policy_fragment": 3})
    assert [node.worker.port_counts(0)[4] for node in nodes] == [2, 1]
    records = [refused_packet(each, ["node", "a", "b"]) for node in nodes for each in node.worker.recorded_drops()[0]]
    shown = {(each.reason, each.port or each.source) for each in records}
    assert shown == {("policy_fragment", by) for by in ("a", "node", cluster.one.address)}


def test_threads_that_end_lose_what_waits(fabric: Fabric, cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[]), policy("c", ingress=[]))
    for to in "bc":
        cluster.port("a").peer.inject(cut(4, "a", to, 53, 7)[1])
    wait_for(lambda: sum(node.count("flow_fragments_held") for node in fabric.nodes) == 2)
    for node in fabric.nodes:
        node.worker.stop()
        for thread in node.threads:
            thread.join()
    assert cluster.drops() == {"policy_fragment": 2}


def test_a_second_first_fragment_changes_no_ports(cluster: Cluster) -> None:
    cluster.apply(policy("b", ingress=[allow("a", "UDP", 53)]))
    good, bad = cut(4, "a", "b", 53, 5), cut(4, "a", "b", 54, 5)
    assert cluster.give(good[0], "a", "b") == PASSED
    assert cluster.give(bad[0], "a", "b") == INGRESS
    assert cluster.give(good[1], "a", "b") == INGRESS, "what comes after it belongs to nobody knows which"
