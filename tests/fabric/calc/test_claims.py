"""Which leases are valid, and who has what two of them claim: rules as tables, and the same winners on every node."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import calc, leases
from fabric.model import Lease
from tests.fabric.calc.worlds import NODES, NODES6, dual, lease, node, value

NODE = NODES["vxlan"]


@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("10.99.2.0-24", value("192.0.2.2"), "10.99.2.0/24 is outside the network 10.244.0.0/16"),
        ("10.0.0.0-8", value("192.0.2.2"), "10.0.0.0/8 is outside the network 10.244.0.0/16"),
        ("10.244.0.0-16", value("192.0.2.2"), "10.244.0.0/16 is the whole network"),
        ("10.244.1.0-25", value("192.0.2.2"), "10.244.1.0/25 overlaps our own lease"),
        ("10.244.0.0-23", value("192.0.2.2"), "10.244.0.0/23 overlaps our own lease"),
        ("10.244.2.0-24", value("192.0.2.2", "01:00:5e:00:00:01"), "BackendData has no valid unicast VtepMAC"),
        ("10.244.2.0-24", value("192.0.2.2", "02:00:00:00:00:01"), "MAC 02:00:00:00:00:01 is taken by our own lease"),
        ("10.244.2.0-24", value("127.0.0.1"), "PublicIP 127.0.0.1 is no unicast address of a node"),
        ("10.244.2.0-24", value("224.0.0.5", kind=""), "PublicIP 224.0.0.5 is no unicast address of a node"),
        ("10.244.2.0-24", value("255.255.255.255"), "PublicIP 255.255.255.255 is no unicast address of a node"),
        ("10.244.2.0-24", value("0.0.0.0"), "PublicIP is missing"),
        ("10.244.2.0-24", value("10.244.9.9", kind="host-gw"), "PublicIP 10.244.9.9 lies inside the pod network"),
        ("10.244.2.0-24", value("192.0.2.2", BackendData=None), "BackendData is missing"),
        ("10.244.2.0-24", value("192.0.2.2", BackendData="x"), "BackendData is missing"),
        ("10.244.2.0-24", value("192.0.2.2", kind="extension", BackendData=[]), "BackendData is not a string"),
        ("0.0.0.0-0&fd00::-64", value("192.0.2.2"), "no subnet of a family that is enabled here"),
    ],
)
def test_a_bad_lease_is_quarantined_with_its_reason(key: str, data: bytes, reason: str) -> None:
    good = lease("10.244.7.0-24", value("192.0.2.7"))
    outcome = calc.calculate(NODE, [lease(key, data), good])
    assert {verdict.lease.key: verdict.reason for verdict in outcome.verdicts} == {key: reason, good.key: ""}
    assert [str(peer.underlay) for peer in outcome.forwarding.peers] == ["192.0.2.7"]


def test_ipv6_subnets_are_checked_too() -> None:
    data = value("192.0.2.2", PublicIPv6="fe80::2", BackendV6Data={"VNI": 1, "VtepMAC": "02:00:00:00:06:02"})
    found = lease(leases.key_of(IPv4Network("10.244.2.0/24"), IPv6Network("fd01::/64")), data)
    (verdict,) = calc.calculate(NODES6["vxlan"], [found]).verdicts
    assert verdict.reason == "fd01::/64 is outside the network fd00::/56"


def test_a_lease_with_our_public_ip_is_ours_and_no_peer() -> None:
    outcome = calc.calculate(NODE, [lease("10.244.9.0-24", value("192.0.2.1"))])
    assert (outcome.verdicts, outcome.forwarding.peers) == ((), ())


# --- reservations ---


def test_a_reservation_is_no_peer_and_claims_nothing() -> None:
    """An administrator's key for a node that has not joined: neither a type nor an end."""
    reserved = lease("10.244.2.0-24", value("192.0.2.2", kind=""), 1, expires=None)
    joined = lease("10.244.3.0-24", value("192.0.2.2"), 2)
    verdicts = {v.lease.key: (v.way, v.reason) for v in calc.calculate(NODE, [reserved, joined]).verdicts}
    assert verdicts == {
        "10.244.2.0-24": ("", "reserved, its node has not joined"),
        "10.244.3.0-24": ("vxlan", ""),
    }


@pytest.mark.parametrize("kind", ["vxlan", "host-gw"])
def test_a_reservation_that_was_taken_names_a_type(kind: str) -> None:
    taken = lease("10.244.2.0-24", value("192.0.2.2", kind=kind), expires=None)
    (verdict,) = calc.calculate(NODE, [taken], None, {ip_address("192.0.2.2"): "eth0"}).verdicts
    assert verdict.way == kind


def test_a_node_that_kubernetes_knows_has_joined() -> None:
    """There are no ends of leases there, and udp nodes publish an empty type."""
    known = replace(lease("10.244.2.0-24", value("192.0.2.2", kind=""), expires=None), node="worker-2")
    (verdict,) = calc.calculate(NODE, [known]).verdicts
    assert (verdict.way, verdict.reason) == ("udp", "")


# --- clashes ---


@pytest.mark.parametrize("kinds", [("vxlan", "vxlan"), ("vxlan", "host-gw"), ("host-gw", ""), ("wireguard", "vxlan")])
@pytest.mark.parametrize(
    ("younger", "address", "reason"),
    [
        ("10.244.2.0-25", "192.0.2.3", "10.244.2.0/25 overlaps lease 10.244.2.0-24"),
        ("10.244.2.0-23", "192.0.2.3", "10.244.2.0/23 overlaps lease 10.244.2.0-24"),
        ("10.244.3.0-24", "192.0.2.2", "public address 192.0.2.2 is taken by lease 10.244.2.0-24"),
    ],
)
def test_of_two_that_clash_the_older_wins_whatever_their_types(
    kinds: tuple[str, str], younger: str, address: str, reason: str
) -> None:
    links = {ip_address(text): "eth0" for text in ("192.0.2.2", "192.0.2.3")}
    old = lease("10.244.2.0-24", value("192.0.2.2", kind=kinds[0]), 3)
    new = lease(younger, value(address, "02:00:00:00:00:77", kind=kinds[1]), 8)
    for found in ([old, new], [new, old]):
        verdicts = {verdict.lease.key: verdict for verdict in calc.calculate(NODE, found, None, links).verdicts}
        assert verdicts[younger].reason == reason
        assert verdicts[old.key].used is (kinds[0] != "wireguard")


def test_two_with_one_mac_in_one_vni_clash() -> None:
    old = lease("10.244.2.0-24", value("192.0.2.2", "02:00:00:00:00:77"), 3)
    new = lease("10.244.3.0-24", value("192.0.2.3", "02:00:00:00:00:77"), 8)
    elsewhere = lease("10.244.4.0-24", value("192.0.2.4", "02:00:00:00:00:77", vni=2), 1)
    verdicts = calc.calculate(NODE, [elsewhere, new, old]).verdicts
    assert [verdict.reason for verdict in verdicts] == [
        "", "MAC 02:00:00:00:00:77 is taken by lease 10.244.2.0-24", "VNI is 2, ours is 1",
    ]  # fmt: skip


def test_equal_age_is_decided_by_the_key() -> None:
    found = [lease("10.244.3.0-24", value("192.0.2.2")), lease("10.244.2.0-24", value("192.0.2.2"))]
    assert [bool(verdict.reason) for verdict in calc.calculate(NODE, found).verdicts] == [False, True]


def test_we_know_when_others_prefer_a_clashing_lease_to_ours() -> None:
    for revision, expected in ((2, True), (9, False)):
        (verdict,) = calc.calculate(NODE, [lease("10.244.0.0-23", value("192.0.2.2"), revision)]).verdicts
        assert calc.beats_ours(verdict, NODE.lease) is expected
    (verdict,) = calc.calculate(NODE, [lease("10.99.0.0-24", value("192.0.2.2"), 1)]).verdicts
    assert not calc.beats_ours(verdict, NODE.lease)


def test_a_lease_that_others_prefer_to_ours_holds_the_rest_here_too() -> None:
    """Elsewhere the older /23 wins over ours and over a third one; here it is refused, and the third one as well."""
    older = lease("10.244.0.0-23", value("192.0.2.2"), 1)
    third = lease("10.244.0.0-24", value("192.0.2.3"), 9)
    verdicts = calc.calculate(NODE, [older, third]).verdicts
    assert [verdict.reason for verdict in verdicts] == [
        "10.244.0.0/23 overlaps our own lease", "10.244.0.0/24 overlaps lease 10.244.0.0-23",
    ]  # fmt: skip


def numbered(subnet: IPv4Network, number: int) -> Lease:
    high, low = number >> 8, number & 255
    return lease(leases.key_of(subnet, None), value(f"198.51.{high}.{low}", f"02:00:00:00:{high:02x}:{low:02x}"))


def test_one_poisoned_lease_among_a_thousand_harms_nobody() -> None:
    network = IPv4Network("10.244.0.0/16").subnets(new_prefix=26)
    subnets = [subnet for subnet in network if not subnet.overlaps(IPv4Network("10.244.1.0/24"))][:1000]
    found = [numbered(subnet, number) for number, subnet in enumerate(subnets, 256)]
    poison = lease("10.244.0.0-16", value("198.51.100.1"), revision=1)
    outcome = calc.calculate(NODE, [poison, *found])
    assert len(outcome.forwarding.peers) == 1000


# --- the same on every node ---

KEYS = st.sampled_from(["10.244.2.0-24", "10.244.3.0-24", "10.244.2.0-23", "10.244.2.128-25", "10.244.0.0-22",
                        "10.244.1.0-24", "10.244.8.0-24", "10.244.8.0-21", "10.244.9.0-24"])  # fmt: skip
KINDS = st.sampled_from(["vxlan", "vxlan", "", "host-gw", "extension", "wireguard"])
LEASES = st.builds(
    lambda key, host, mac, revision, kind, vni: lease(
        key, value(f"192.0.2.{host}", f"02:00:00:00:00:{mac:02x}", kind=kind, vni=vni), revision
    ),
    KEYS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), KINDS, st.sampled_from([1, 1, 2]),
)  # fmt: skip
SETS = st.lists(LEASES, min_size=2, max_size=9, unique_by=lambda item: item.key)
OURS = "our own lease"


def seen_by(own: Lease, found: list[Lease], kind: str, links: calc.OnLink) -> dict[str, str]:
    """Why each lease loses what it claims, as the node of `own` sees it; empty for a winner, "local" where it cannot
    tell: what clashes with its own, and what carries its address."""
    at = own.public_ip
    assert at is not None
    here = replace(NODES[kind], lease=own, underlay=(at,), public=(at,))
    outcome = calc.calculate(here, found, None, links)
    answers = {v.lease.key: v.reason.replace(f"lease {own.key}", "lease X") for v in outcome.verdicts}
    lost = ("overlaps", "taken by", "outside", "valid", "inside", "missing", "reserved", "whole")
    return {
        item.key: "local"
        if item.key not in answers or OURS in answers[item.key]
        else answers[item.key]
        if any(word in answers[item.key] for word in lost)
        else ""
        for item in found
    }


@pytest.mark.slow
@settings(max_examples=40)
@given(SETS, st.randoms(use_true_random=False), st.data())
def test_every_node_picks_the_same_winners(found: list[Lease], rng: random.Random, data: st.DataObject) -> None:
    """Nodes of different types, with different neighbours on link, about the same leases in different orders."""
    views = []
    for own in data.draw(st.lists(st.sampled_from(found), min_size=2, max_size=3, unique_by=lambda item: item.key)):
        shuffled = list(found)
        rng.shuffle(shuffled)
        kind = data.draw(st.sampled_from(sorted(set(NODES) - {"alloc"})))
        links = {item.public_ip: data.draw(st.sampled_from(["eth0", None])) for item in found if item.public_ip}
        views.append(seen_by(own, shuffled, kind, links))
    for key in (item.key for item in found):
        won = {view[key] == "" for view in views if view[key] != "local"}
        assert len(won) <= 1, f"{key}: {[view[key] for view in views]}"


@settings(max_examples=50)
@given(SETS, st.randoms(use_true_random=False), st.sampled_from(sorted(NODES)))
def test_neither_order_nor_repetition_matters(found: list[Lease], rng: random.Random, own: str) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)
    links = {ip_address(f"192.0.2.{host}"): "eth0" for host in range(1, 6)}
    outcome = calc.calculate(NODES[own], found, None, links)
    assert calc.calculate(NODES[own], shuffled, None, links) == outcome
    assert calc.calculate(NODES[own], found + found, None, links) == outcome


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 8), max_size=9, unique=True), min_size=2, max_size=6), SETS)
def test_who_holds_what_is_kept_between_calls_without_a_difference(
    rounds: list[list[int]], found: list[Lease]
) -> None:
    """Leases come and go, with clashes and without: what a memo kept of earlier rounds changes no answer."""
    memo = calc.Memo()
    for chosen in rounds:
        now = [found[number] for number in chosen if number < len(found)]
        assert calc.calculate(NODE, now, memo) == calc.calculate(NODE, now)


def test_a_lease_of_two_families_claims_both() -> None:
    old = lease(*dual(2), revision=3)
    key = leases.key_of(IPv4Network("10.244.9.0/24"), IPv6Network("fd00:0:0:2::/64"))
    new = lease(key, dual(9)[1], revision=8)
    verdicts = {verdict.lease.key: verdict.reason for verdict in calc.calculate(NODES6["vxlan"], [new, old]).verdicts}
    assert verdicts == {old.key: "", key: f"fd00:0:0:2::/64 overlaps lease {old.key}"}


def test_our_own_lease_is_known_by_its_key_also_with_another_address() -> None:
    """Before the store has our new public address, the old one lies there under our key."""
    stale = lease("10.244.1.0-24", value("192.0.2.99"))
    assert calc.calculate(node(NODE.conf), [stale]).verdicts == ()


# --- hostile values (R33) ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["VNI", "vni", "VtepMAC", "vtepmac", "x"]), inner, max_size=3),
    max_leaves=6,
)
ATTRS = st.fixed_dictionaries(
    {"PublicIP": st.sampled_from(["192.0.2.66", "192.0.2.2", "0.0.0.0", "224.0.0.1", "10.244.2.1", ""]) | JSON},
    optional={
        "BackendType": st.sampled_from(["vxlan", "host-gw", "extension", "", "alloc"]) | JSON,
        "BackendData": JSON | st.just({"VNI": 1, "VtepMAC": "02:00:00:00:00:66"}),
        "BackendV6Data": JSON,
        "PublicIPv6": st.sampled_from(["2001:db8::66", "::1"]) | JSON,
        "publicip": JSON,
    },
)
STRANGE = st.sampled_from(["10.244.66.0-24", "10.244.2.0-25", "10.244.0.0-17", "10.244.66.0-24&fd00:0:0:42::-64"])


@pytest.mark.slow
@settings(max_examples=40)
@given(STRANGE, ATTRS, st.sampled_from(sorted(NODES)), st.sampled_from(["eth0", None]))
def test_whatever_a_younger_lease_says_it_changes_nobody_elses(
    key: str, attributes: dict[str, object], own: str, link: str | None
) -> None:
    good = [lease("10.244.2.0-24", value("192.0.2.2"), 5), lease("10.244.3.0-24", value("192.0.2.3", kind=""), 6)]
    try:
        strange = lease(key, json.dumps(attributes).encode(), 99)
    except leases.LeaseFormatError:
        return
    links = {ip_address("192.0.2.66"): link}
    before = calc.calculate(NODES[own], good, None, links)
    after = calc.calculate(NODES[own], [strange, *good], None, links)
    assert [verdict for verdict in after.verdicts if verdict.lease in good] == list(before.verdicts)
    assert set(before.forwarding.peers) <= set(after.forwarding.peers)
    assert set(before.extension) <= set(after.extension)
    assert all("\n" not in verdict.reason for verdict in after.verdicts)
