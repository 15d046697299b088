"""Flows under way that a policy comes to refuse: kept, cut, or cut with their ends told. Bytes are held to scapy's."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Packet as Scapy
from scapy.packet import Raw

from fabric.forward.flow_probe import FlowProbe
from fabric.forward.flows import FlowTable
from tests.fabric.forward.harness import Fabric, address4, address6, wait_for
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
    probe_on,
    sctp,
    tcp,
    udp,
)
from tests.fabric.forward.test_policy_flows import EGRESS, FAMILIES, INGRESS, SERVERS, unreachable

SEQ, ACK = 0xFFFF_FFFE, 0x1234_5678
"""The former wraps round within a segment."""
SECONDS = 3
"""In how many a side is answered, at most."""


@pytest.fixture
def cluster(fabric: Fabric) -> Cluster:
    return Cluster(fabric)


def segment(flags: str, size: int = 0, sport: int = 4000) -> Make:
    def make(answer: bool) -> Scapy:
        ports = (80, sport) if answer else (sport, 80)
        return TCP(sport=ports[0], dport=ports[1], flags=flags, seq=SEQ, ack=ACK) / Raw(bytes(size))

    return make


def rst(source: str, destination: str, family: int, flags: str, *, hops: int = 0, **fields: int) -> bytes:
    """What an end is to get of such a connection."""
    ends = {"src": address(source, family), "dst": address(destination, family)}
    head = IP(**ends, id=0, flags="DF", ttl=64 - hops) if family == 4 else IPv6(**ends, hlim=64 - hops)
    return bytes(head / TCP(flags=flags, window=0, **fields))


def opened(cluster: Cluster, source: str, server: str, family: int, sport: int = 4000) -> None:
    """A TCP connection."""
    for flags, answer in (("S", False), ("SA", True), ("A", False)):
        ends = (server, source) if answer else (source, server)
        assert cluster.send(*ends, segment(flags, sport=sport), family, answer=answer) == PASSED


def give(cluster: Cluster, raw: bytes, by: str) -> str:
    """One packet that is dropped; the reason."""
    before = cluster.drops()
    cluster.port(by).peer.inject(raw)
    return wait_for(
        lambda: next((name for name, count in cluster.drops().items() if count != before.get(name, 0)), None)
    )


def answered(cluster: Cluster) -> int:
    return sum(node.count("flow_answered") for node in (cluster.one, cluster.two))


# --- reset ---

# Flags and bytes of the refused packet; flags, seq, ack of the RST to its sender and to its receiver.
SEGMENTS = [
    ("A", 0, ("R", ACK, 0), ("RA", SEQ, ACK)),
    ("PA", 100, ("R", ACK, 0), ("RA", SEQ, ACK)),
    ("FA", 7, ("R", ACK, 0), ("RA", SEQ, ACK)),
    ("SA", 0, ("R", ACK, 0), ("RA", SEQ + 1, ACK)),
    ("P", 5, ("RA", 0, 3), ("R", SEQ, 0)),
    ("FP", 5, ("RA", 0, 4), ("R", SEQ, 0)),
    ("R", 0, None, ("R", SEQ, 0)),
    ("RA", 0, None, ("RA", SEQ, ACK)),
]
ENDS = pytest.mark.parametrize(
    ("server", "subject"),
    [("b", "b"), ("b", "a"), ("c", "c"), ("c", "a")],
    ids=["local", "local-out", "far", "far-out"],
)
"""Who answers, and whose policy refuses."""


def refusing(subject: str, client: str, established: str, *rules: Object) -> Object:
    """A policy of one end that lets nothing but `rules` begin."""
    if subject == client:
        return policy(subject, egress=rules, established=established)
    return policy(subject, ingress=rules, established=established)


@FAMILIES
@ENDS
def test_both_ends_of_a_connection_get_an_rst(cluster: Cluster, server: str, subject: str, family: int) -> None:
    """To the sender by the way back, to the receiver by the way on, with the numbers that they expect."""
    cluster.apply()
    for i in range(len(SEGMENTS)):
        opened(cluster, "a", server, family, 4000 + i)
    cluster.apply(refusing(subject, "a", "reset"))
    here = subject in ("a", "b")
    for i, (flags, size, back, on) in enumerate(SEGMENTS):
        reason = give(cluster, packet("a", server, segment(flags, size, 4000 + i), family), "a")
        assert reason == (EGRESS if subject == "a" else INGRESS)
        hops = {"a": 0 if here else 1, server: 0 if subject == server or server == "b" else 1}
        if back is not None:
            wanted = dict(zip(("flags", "seq", "ack"), back, strict=True))
            ports = {"sport": 80, "dport": 4000 + i}
            _, frame = cluster.port("a").take()
            assert frame == rst(server, "a", family, hops=hops["a"], **wanted, **ports), flags
        wanted = dict(zip(("flags", "seq", "ack"), on, strict=True)) | {"seq": on[1] % 2**32}
        _, frame = cluster.port(server).take()
        assert frame == rst("a", server, family, hops=hops[server], **wanted, sport=4000 + i, dport=80), flags
    assert answered(cluster) == len(SEGMENTS)


@FAMILIES
@SERVERS
def test_the_side_that_answers_is_told_as_well(cluster: Cluster, server: str, family: int) -> None:
    """Its packet is the first after the change."""
    cluster.apply()
    opened(cluster, "a", server, family)
    cluster.apply(refusing(server, "a", "reset"))
    assert give(cluster, packet(server, "a", segment("PA", 9), family, answer=True), server) == INGRESS
    ports = {"sport": 4000, "dport": 80}
    assert cluster.port(server).take()[1] == rst("a", server, family, "R", seq=ACK, **ports)
    back = {"sport": 80, "dport": 4000, "hops": 0 if server == "b" else 1}
    assert cluster.port("a").take()[1] == rst(server, "a", family, "RA", seq=SEQ, ack=ACK, **back)


@FAMILIES
def test_a_connection_that_is_being_opened_is_refused(cluster: Cluster, family: int) -> None:
    """SYN-SENT takes an RST that acknowledges its SYN only."""
    cluster.apply()
    assert cluster.send("a", "b", segment("S"), family) == PASSED
    cluster.apply(refusing("b", "a", "reset"))
    assert give(cluster, packet("a", "b", segment("S"), family), "a") == INGRESS
    wanted = {"sport": 80, "dport": 4000, "seq": 0, "ack": SEQ + 1}
    assert cluster.port("a").take()[1] == rst("b", "a", family, "RA", **wanted)
    assert cluster.port("b").take()[1] == rst("a", "b", family, "R", sport=4000, dport=80, seq=SEQ + 1)


def test_a_new_connection_is_not_told(cluster: Cluster) -> None:
    cluster.apply()
    opened(cluster, "a", "b", 4)
    cluster.apply(refusing("b", "a", "reset"))
    give(cluster, packet("a", "b", segment("A")), "a")
    assert answered(cluster) == 1
    assert give(cluster, packet("a", "b", segment("S")), "a") == INGRESS
    assert give(cluster, packet("a", "b", segment("S", sport=4001)), "a") == INGRESS
    assert answered(cluster) == 1


@FAMILIES
@SERVERS
@pytest.mark.parametrize("make", [udp(53), sctp(53)], ids=["udp", "sctp"])
def test_the_sender_of_other_protocols_gets_an_icmp_error(
    cluster: Cluster, server: str, make: Make, family: int
) -> None:
    cluster.apply()
    assert cluster.exchange("a", server, make, family) == (PASSED, PASSED)
    cluster.apply(refusing(server, "a", "reset"))
    here = 1 if server == "b" else 2
    sent = packet("a", server, make, family)
    assert give(cluster, sent, "a") == INGRESS
    _, frame = cluster.port("a").take()
    quoted = IP(sent) if family == 4 else IPv6(sent)
    if here == 2:
        if family == 4:
            quoted.ttl -= 1
            del quoted.chksum
        else:
            quoted.hlim -= 1
    if family == 4:
        head = IP(src=address4(here, 0), dst=address("a", 4), tos=0xC0, id=0, ttl=65 - here)
        assert frame == bytes(head / ICMP(type=3, code=13) / Raw(bytes(quoted)))
    else:
        head = IPv6(src=address6(here, 0), dst=address("a", 6), hlim=65 - here)
        assert frame == bytes(head / ICMPv6DestUnreach(code=1) / Raw(bytes(quoted)))
    assert cluster.port(server).take_all() == []


def test_pings_get_an_error_and_their_answers_none(cluster: Cluster) -> None:
    """An error about an echo reply would be one about nothing that b has asked for, but allowed; an error never is."""
    cluster.apply()
    assert cluster.exchange("a", "b", ping()) == (PASSED, PASSED)
    cluster.apply(refusing("b", "a", "reset"))
    assert give(cluster, packet("a", "b", ping()), "a") == INGRESS
    error = IP(cluster.port("a").take()[1])
    assert (error[ICMP].type, error[ICMP].code) == (3, 13)


def test_only_the_first_fragment_is_answered(cluster: Cluster) -> None:
    cluster.apply()
    assert cluster.send("a", "b", udp(53)) == PASSED
    cluster.apply(refusing("b", "a", "reset"))
    body = UDP(sport=4000, dport=53) / Raw(bytes(3000))
    for piece in fragment(IP(src=address("a", 4), dst=address("b", 4), id=7) / body, 1400):
        assert give(cluster, bytes(piece), "a") == INGRESS
    assert answered(cluster) == 1
    assert len(cluster.ports["a"].take_all()) == 1


def test_the_host_translates_what_it_has_translated_before(cluster: Cluster) -> None:
    """a's packet came by the node port, as after a Service: what ends the flow for a leaves by it, too."""
    cluster.apply()
    for flags, answer in (("S", False), ("SA", True), ("A", False)):
        ends = ("c", "a") if answer else ("a", "c")
        by, to = ("", "node1") if answer else ("node1", "")
        assert cluster.send(*ends, segment(flags), answer=answer, by=by, to=to) == PASSED
    cluster.apply(refusing("a", "a", "reset"))
    assert give(cluster, packet("c", "a", segment("PA", 5), answer=True), "c") == EGRESS
    ports = {"sport": 80, "dport": 4000}
    assert cluster.one.host.take()[1] == rst("c", "a", 4, "RA", seq=SEQ, ack=ACK, **ports)
    assert cluster.port("c").take()[1] == rst("a", "c", 4, "R", hops=1, seq=ACK, sport=4000, dport=80)
    assert cluster.port("a").take_all() == []


def test_a_pod_that_talks_to_outside_is_told(cluster: Cluster) -> None:
    cluster.apply()
    assert cluster.send("a", "outside", segment("S")) == PASSED
    cluster.apply(refusing("a", "a", "reset"))
    assert give(cluster, packet("a", "outside", segment("S")), "a") == EGRESS
    assert cluster.port("a").take()[1] == rst("outside", "a", 4, "RA", sport=80, dport=4000, ack=SEQ + 1, seq=0)
    assert cluster.one.host.take()[1] == rst("a", "outside", 4, "R", sport=4000, dport=80, seq=SEQ + 1)


def test_what_was_cut_in_silence_may_be_reset_later(cluster: Cluster) -> None:
    cluster.apply()
    opened(cluster, "a", "b", 4)
    cluster.apply(refusing("b", "a", ""))
    assert give(cluster, packet("a", "b", segment("A")), "a") == INGRESS
    assert answered(cluster) == 0
    cluster.apply(refusing("b", "a", "reset"))
    assert give(cluster, packet("a", "b", segment("A")), "a") == INGRESS
    assert answered(cluster) == 1


# --- keep ---


@FAMILIES
@ENDS
@pytest.mark.parametrize("make", [tcp(80, flags="A", answer_flags="A"), udp(53), ping()], ids=["tcp", "udp", "ping"])
def test_what_is_kept_goes_on_under_further_rules(
    cluster: Cluster, server: str, subject: str, make: Make, family: int
) -> None:
    make = ping(family=family) if "ping" in make.__qualname__ else make
    cluster.apply()
    assert cluster.exchange("a", server, make, family) == (PASSED, PASSED)
    reason = EGRESS if subject == "a" else INGRESS
    for change in range(3):
        cluster.apply(refusing(subject, "a", "keep", allow("b", "TCP", 1000 + change)))
        for _ in range(2):
            assert cluster.exchange("a", server, make, family) == (PASSED, PASSED)
        assert cluster.send("a", server, udp(54 + change), family) == reason, "new ones may not begin"
    cluster.apply(refusing(subject, "a", ""))
    assert cluster.send("a", server, make, family) == reason
    cluster.apply(refusing(subject, "a", "keep"))
    assert cluster.send("a", server, make, family) == reason, "it is established no more"
    cluster.apply()
    assert cluster.exchange("a", server, make, family) == (PASSED, PASSED)
    cluster.apply(refusing(subject, "a", "keep"))
    assert cluster.exchange("a", server, make, family) == (PASSED, PASSED), "now it is again"
    assert answered(cluster) == 0


@SERVERS
def test_a_kept_connection_carries_no_new_one(cluster: Cluster, server: str) -> None:
    """Of the same ends: at once, and once it is closed."""
    cluster.apply()
    opened(cluster, "a", server, 4)
    cluster.apply(refusing(server, "a", "keep"))
    assert cluster.send("a", server, segment("S")) == INGRESS, "the first packet after the change"
    assert cluster.send("a", server, segment("PA", 5)) == PASSED
    assert cluster.send("a", server, segment("S")) == INGRESS
    assert cluster.send(server, "a", segment("SA"), answer=True) == PASSED
    for _ in range(2):
        assert cluster.send("a", server, segment("R")) == PASSED, "it may end"
    assert cluster.send("a", server, segment("S")) == INGRESS


def test_a_half_open_connection_is_not_established(cluster: Cluster) -> None:
    """Its SYN is not let pass again; the answer to the one that has passed is."""
    cluster.apply()
    assert cluster.send("a", "b", segment("S")) == PASSED
    cluster.apply(refusing("b", "a", "keep"))
    assert cluster.send("a", "b", segment("S")) == INGRESS
    assert cluster.send("b", "a", segment("SA"), answer=True) == PASSED


def test_each_end_has_its_own_choice(cluster: Cluster) -> None:
    cluster.apply()
    for server in ("b", "c"):
        assert cluster.exchange("a", server, udp(53)) == (PASSED, PASSED)
    out = policy("a", egress=[], established="keep", name="out")
    cluster.apply(out, refusing("b", "a", "keep"), refusing("c", "a", "keep"))
    for server in ("b", "c"):
        assert cluster.exchange("a", server, udp(53)) == (PASSED, PASSED)
    cluster.apply(out, refusing("b", "a", "reset"), refusing("c", "a", ""))
    for server in ("b", "c"):
        assert give(cluster, packet("a", server, udp(53)), "a") == INGRESS
    assert answered(cluster) == 1


def test_errors_about_a_kept_flow_pass(cluster: Cluster) -> None:
    """Also before its next packet, and none about one that is cut."""
    live = packet("a", "c", udp(53))
    cluster.apply()
    assert cluster.send("a", "c", udp(53)) == PASSED
    out = policy("c", egress=[], name="out")
    cluster.apply(out, refusing("c", "a", "keep"))
    for _ in range(2):
        assert cluster.give(unreachable(4, "c", "a", live), "c", "a") == PASSED
        assert cluster.send("a", "c", udp(53)) == PASSED
    cluster.apply(out, refusing("c", "a", ""))
    assert cluster.give(unreachable(4, "c", "a", live), "c", "a") == EGRESS


def test_a_pod_that_is_not_known_for_a_while_loses_nothing_that_is_kept(cluster: Cluster) -> None:
    cluster.apply()
    assert cluster.exchange("a", "b", udp(53)) == (PASSED, PASSED)
    keeping = refusing("b", "a", "keep")
    cluster.apply(keeping, known=("a", "c"))
    assert cluster.send("a", "b", udp(53)) == "policy_unknown_pod"
    cluster.apply(keeping)
    assert cluster.exchange("a", "b", udp(53)) == (PASSED, PASSED)
    cluster.apply(refusing("b", "a", ""))
    assert cluster.send("a", "b", udp(53)) == INGRESS
    cluster.apply(keeping, known=("a", "c"))
    assert cluster.send("a", "b", udp(53)) == "policy_unknown_pod"
    cluster.apply(keeping)
    assert cluster.send("a", "b", udp(53)) == INGRESS, "but what was cut stays so"


# --- the table ---


def test_the_table_says_what_became_of_a_flow() -> None:
    table = FlowTable(64)
    sent = {name: packet("a", "b", udp(port)) for port, name in enumerate(("kept", "cut", "reset", ""), 53)}
    before = probe_on(table, [], [])
    for raw in sent.values():
        assert before.refused(raw, 1, 1000) == 0
    rules = [(53, "keep"), (54, ""), (55, "reset")]
    for port, choice in rules:
        rest = [allow("a", "UDP", other) for other in range(53, 57) if other != port]
        after = probe_on(table, [policy("b", ingress=rest, established=choice)], [], number=port)
        for raw in sent.values():
            after.refused(raw, 1, 1000)
        found = {flow["dport"]: flow["standing"] for flow in table.dump(10, 1000)}
        assert found == {**dict.fromkeys(range(53, 57), ""), port: {"keep": "kept", "": "cut"}.get(choice, choice)}


def resetting(table: FlowTable, number: int = 2) -> FlowProbe:
    return probe_on(table, [policy("b", ingress=[], established="reset")], [], number=number)


@pytest.mark.parametrize("first", [1000, 1001], ids=["at-once", "later"])
def test_packets_of_each_side_are_answered_for_some_seconds(first: int) -> None:
    """Those in which it sends: a side that is silent meanwhile loses none, and other rules begin nothing anew."""
    table = FlowTable(64)
    there, back = packet("a", "b", udp(53)), packet("b", "a", udp(53), answer=True)
    before = probe_on(table, [], [])
    for raw, entry in ((there, 1), (back, 2)):
        assert before.refused(raw, entry, 1000) == 0
    after = resetting(table)
    told = [after.answered(there, 1, now) for now in range(first, 1010) for _ in range(5)]
    seconds = SECONDS if first == 1000 else SECONDS - 1
    assert told == [True] * 5 * seconds + [False] * (len(told) - 5 * seconds)
    assert [after.answered(back, 2, now) for now in range(1010, 1014)] == [True] * 2 + [False] * 2
    again = resetting(table, 3)
    assert not any(again.answered(raw, entry, 1014) for raw, entry in ((there, 1), (back, 2)))
    assert again.refused(there, 1, 1014) != 0


def test_answers_are_limited() -> None:
    """A hundred at once for the flows of one pod; the others have their turn when the rate allows it."""
    table = FlowTable(1024, 1024)
    sent = [packet("a", "b", udp(53, sport)) for sport in range(1, 301)]
    before = probe_on(table, [], [])
    for raw in sent:
        assert before.refused(raw, 1, 1000) == 0
    after = resetting(table)
    told = [raw for raw in sent if after.answered(raw, 1, 1000)]
    assert 100 <= len(told) < 300
    waiting = next(raw for raw in sent if raw not in told)
    wait_for(lambda: after.answered(waiting, 1, 1000))
