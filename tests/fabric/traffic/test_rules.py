"""The rules as a function: which there are, and what they say about any packet, against flannel's list in prose."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fabric.model import Network
from fabric.traffic.rules import AFTER_SRCNAT, TrafficState, chains
from tests.fabric.traffic.machine import Packet, verdict

NET4, POD4 = ip_network("10.244.0.0/16"), ip_network("10.244.1.0/24")
NET6, POD6 = ip_network("2001:db8:f4::/48"), ip_network("2001:db8:f4:1::/64")
DUAL = TrafficState((NET4, NET6), (POD4, POD6), ip_masq=True, forward=True)
OURS, OURS6 = "10.244.1.5", "2001:db8:f4:1::5"
THERE, THERE6 = "10.244.2.7", "2001:db8:f4:2::7"
OUTSIDE, OUTSIDE6 = "198.51.100.9", "2001:db8:1::9"

FLOWS = [
    ("a pod here to a pod here", OURS, "10.244.1.6", 0, "return"),
    ("a pod here to a pod there", OURS, THERE, 0, "return"),
    ("a pod there to a pod here", THERE, OURS, 0, "return"),
    ("outside to a pod here", OUTSIDE, OURS, 0, "return"),
    ("a pod here to outside", OURS, OUTSIDE, 0, "masquerade"),
    ("a pod there to outside", THERE, OUTSIDE, 0, "masquerade"),
    ("outside to a pod there", OUTSIDE, THERE, 0, "masquerade"),
    ("a pod there to another there", THERE, "10.244.3.1", 0, "masquerade"),
    ("a pod here to multicast", OURS, "239.1.1.1", 0, "policy"),
    ("just before and after multicast", OURS, "223.255.255.255", 0, "masquerade"),
    ("", OURS, "240.0.0.1", 0, "masquerade"),
    ("outside to outside", OUTSIDE, "192.0.2.1", 0, "policy"),
    ("just outside the network", "10.243.255.255", "10.245.0.0", 0, "policy"),
    ("marked by kube-proxy", OURS, OUTSIDE, 0x4000, "return"),
    ("marked by it and by others", OUTSIDE, THERE, 0xC001, "return"),
    ("marked by others only", OURS, OUTSIDE, 0x8000, "masquerade"),
    ("IPv6: a pod here to a pod there", OURS6, THERE6, 0, "return"),
    ("IPv6: a pod there to a pod here", THERE6, OURS6, 0, "return"),
    ("IPv6: outside to a pod here", OUTSIDE6, OURS6, 0, "return"),
    ("IPv6: a pod here to outside", OURS6, OUTSIDE6, 0, "masquerade"),
    ("IPv6: outside to a pod there", OUTSIDE6, THERE6, 0, "masquerade"),
    ("IPv6: a pod here to multicast", OURS6, "ff05::1:3", 0, "policy"),
    ("IPv6: just before multicast", OURS6, "fe00::1", 0, "masquerade"),
    ("IPv6: marked by kube-proxy", OURS6, OUTSIDE6, 0x4000, "return"),
]


def postrouting(state: TrafficState, packet: Packet) -> str:
    (chain,) = [each for each in chains(state) if each.name == "postrouting"]
    return verdict(chain.rules, packet)


@pytest.mark.parametrize(("what", "source", "destination", "mark", "expected"), FLOWS)
def test_each_kind_of_flow(what: str, source: str, destination: str, mark: int, expected: str) -> None:
    random = "masquerade fully-random" if expected == "masquerade" else expected

    assert postrouting(DUAL, Packet(source, destination, mark)) == random
    plain = TrafficState(DUAL.networks, DUAL.subnets, ip_masq=True, random_fully=False)
    assert postrouting(plain, Packet(source, destination, mark)) == expected


def flannels_list(net: Network, pod: Network, packet: Packet) -> str:
    """The six rules of flannel's iptables mode, as its documentation and source say them."""
    source, destination = ip_address(packet.source), ip_address(packet.destination)
    if packet.mark & 0x4000 == 0x4000:
        return "return"
    if source in pod and destination in net:
        return "return"
    if source in net and destination in pod:
        return "return"
    if source not in net and destination in pod:
        return "return"
    if source in net and not destination.is_multicast:
        return "masquerade fully-random"
    if source not in net and destination in net:
        return "masquerade fully-random"
    return "policy"


@st.composite
def networks(draw: st.DrawFn, bits: int) -> tuple[Network, Network]:
    """A pod network and a subnet of it, of any length, outside the multicast range."""
    prefix = draw(st.integers(1, bits - 1))
    subnet = draw(st.integers(prefix, bits))
    start = draw(st.integers(0, (1 << bits) - 1))
    make = IPv4Network if bits == 32 else IPv6Network
    return make((start, prefix), strict=False), make((start, subnet), strict=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Network, Network, Packet]:
    """Networks and a packet whose addresses lie in, at the edges of, or outside them."""
    bits = draw(st.sampled_from([32, 128]))
    net, pod = draw(networks(bits))
    edges = [int(each[0]) + step for each in (net, pod) for step in (-1, 0)]
    edges += [int(each[-1]) + step for each in (net, pod) for step in (0, 1)]
    inside = st.one_of(
        st.integers(int(pod[0]), int(pod[-1])), st.integers(int(net[0]), int(net[-1])), st.integers(0, (1 << bits) - 1)
    )
    multicast = st.integers(0xE0 << 24, (0xF0 << 24) - 1) if bits == 32 else st.integers(0xFF << 120, (1 << 128) - 1)
    number = st.one_of(st.sampled_from(edges), inside, multicast).map(lambda value: value % (1 << bits))
    family = IPv4Network if bits == 32 else IPv6Network
    source, destination = (str(family((draw(number), bits))[0]) for _ in range(2))
    mark = draw(st.sampled_from([0, 0x4000, 0x8000, 0xC000, 0xFFFFFFFF, 0xFFFFBFFF]))
    return net, pod, Packet(source, destination, mark)


@pytest.mark.slow
@settings(deadline=None)
@given(cases())
def test_any_packet_in_any_network(case: tuple[Network, Network, Packet]) -> None:
    net, pod, packet = case

    found = postrouting(TrafficState((net,), (pod,), ip_masq=True), packet)

    assert found == flannels_list(net, pod, packet)


@pytest.mark.slow
@settings(deadline=None)
@given(cases())
def test_forwarding_accepts_what_comes_from_or_goes_to_the_network(case: tuple[Network, Network, Packet]) -> None:
    net, pod, packet = case
    (chain,) = chains(TrafficState((net,), (pod,), forward=True))

    touches = any(ip_address(end) in net for end in (packet.source, packet.destination))

    assert verdict(chain.rules, packet) == ("accept" if touches else "policy")


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(cases(), cases())
def test_two_families_do_not_meet(one: tuple[Network, Network, Packet], other: tuple[Network, Network, Packet]) -> None:
    (net, pod, packet), (net2, pod2, _) = one, other
    assume(net.version != net2.version)
    alone = TrafficState((net,), (pod,), ip_masq=True)
    both = TrafficState((net, net2), (pod, pod2), ip_masq=True)

    assert postrouting(both, packet) == postrouting(alone, packet)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TrafficState(), []),
        (TrafficState((NET4,), (POD4,)), []),
        (TrafficState((NET4,), (POD4,), ip_masq=True), [("postrouting", 6)]),
        (TrafficState((NET4,), (POD4,), forward=True), [("forward", 2)]),
        (DUAL, [("postrouting", 11), ("forward", 4)]),
        (TrafficState((NET4, NET6), (POD4,), ip_masq=True, forward=True), [("postrouting", 6), ("forward", 4)]),
        (TrafficState((NET6,), (POD4,), ip_masq=True), []),
        (TrafficState((), (), ip_masq=True, forward=True), []),
    ],
)
def test_which_chains_there_are(state: TrafficState, expected: list[tuple[str, int]]) -> None:
    assert [(chain.name, len(chain.rules)) for chain in chains(state)] == expected


def test_our_translation_is_asked_after_everybody_elses() -> None:
    postrouting_chain, forward_chain = chains(DUAL)

    assert (postrouting_chain.type, postrouting_chain.hook, postrouting_chain.priority) == (
        "nat",
        "postrouting",
        AFTER_SRCNAT,
    )
    assert (forward_chain.type, forward_chain.hook, forward_chain.priority) == ("filter", "forward", 0)
