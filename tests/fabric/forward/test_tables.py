"""Tables that are patched from state to state against tables that are compiled from nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encap.vtep import VtepTable
from fabric.forward.snapshot import compile_tables, to_host, to_port, to_vtep
from fabric.forward.tables import Tables
from fabric.model import Address, ForwardingState, LocalVtep, Network, Peer
from routes.fib import Fib

PORTS = {"vxlan": 8472, "udp": 8285}
OWN = LocalVtep(IPv4Address("192.0.2.254"), b"\x02\0\0\0\0\xfe", (IPv4Network("10.244.0.0/24"),))
OWN6 = LocalVtep(IPv6Address("2001:db8::fe"), b"\x02\0\0\0\0\xfd", (IPv6Network("2001:db8:f0::/64"),))


@dataclass(frozen=True)
class Port:
    """What the tables look at in a port."""

    addresses: tuple[Address, ...] = ()
    bridged: bool = False


def peer_of(number: int, variant: int = 0, version: int = 4) -> Peer:
    """Peer `number`, of which `variant` changes what the tables hold."""
    underlay: Address = IPv4Address(0xC0000200 + number) if version == 4 else IPv6Address(0x20010DB8 << 96 | number)
    prefix: Network = IPv4Network((0x0AF40000 + (number << 8), 24))
    if version == 6:
        prefix = IPv6Network(((0x20010DB8 << 96) + (number << 64), 64))
    peer = Peer(str(prefix), underlay, (prefix,), "vxlan", b"\x02\0\0\0\1" + bytes([number]), 1450)
    if variant == 3:
        return replace(peer, encapsulation=None)
    return replace(peer, direct=variant == 1, mtu=1450 - (variant == 2))


SLOTS = {peer_of(number, 0, version).name: number + version * 100 for number in range(41) for version in (4, 6)}
peers = st.builds(peer_of, st.integers(1, 40), st.integers(0, 3), st.sampled_from([4, 6]))
world = st.lists(peers, max_size=24, unique_by=lambda peer: peer.name)
pods = st.lists(st.sampled_from([f"10.244.{subnet}.{host}" for subnet in (0, 3) for host in range(4)]), unique=True)
states = st.tuples(world, pods, st.sampled_from([(OWN,), (OWN, OWN6), (OWN,), (OWN, OWN6)]))


def content(vteps: VtepTable) -> dict[str, bytes]:
    """All VTEPs by name, as the workers see them."""
    return dict(found for position in range(200) if (found := vteps.at(position)))


def meaning(vteps: VtepTable, fib: Fib, address: Address) -> object:
    """Where the address leads, whatever the number of the VTEP."""
    value = fib.lookup(address)
    if value is None or value >> 24 == to_port(0) >> 24:
        return value
    assert value >> 24 in (to_vtep(0) >> 24, to_host(0) >> 24)
    return value >> 24, vteps.at(value & 0xFFFFFF)


def interesting(state: ForwardingState, ports: list[Port]) -> set[Address]:
    """The edges of all prefixes, inside and outside."""
    prefixes = {prefix for peer in state.peers for prefix in peer.prefixes}
    prefixes |= {prefix for vtep in (OWN, OWN6) for prefix in vtep.prefixes}
    prefixes |= {ip_network(address) for port in ports for address in port.addresses}
    found = {edge for prefix in prefixes for edge in (prefix.network_address, prefix.broadcast_address)}
    return found | {address + 1 for address in found} | {address - 1 for address in found}


@pytest.mark.slow
@given(st.lists(states, min_size=1, max_size=8))
def test_any_path_leads_to_the_same_tables(path: list[tuple[list[Peer], list[str], tuple[LocalVtep, ...]]]) -> None:
    tables = Tables()
    known: dict[Peer, Peer] = {}
    for found, addresses, own in path:
        state = ForwardingState(1, own, tuple(known.setdefault(peer, peer) for peer in found))  # unchanged: the same
        ports = [Port(), *(Port((IPv4Address(address),)) for address in addresses)]
        patched, fib = tables.compile(state, PORTS, ports, SLOTS)  # type: ignore[arg-type]
        whole, whole_fib = compile_tables(state, PORTS, ports, SLOTS)  # type: ignore[arg-type]
        assert content(patched) == content(whole)
        assert len(patched) == len(whole)
        assert len(fib) == len(whole_fib)
        for peer in found:
            assert patched.find(peer.underlay) == whole.find(peer.underlay)
        for address in interesting(state, ports):
            assert meaning(patched, fib, address) == meaning(whole, whole_fib, address), address


def test_a_state_that_cannot_be_compiled_is_forgotten() -> None:
    tables, node = Tables(), [Port()]
    one, two = peer_of(1), peer_of(2)
    good = ForwardingState(1, (OWN,), (one, two))
    tables.compile(good, PORTS, node)  # type: ignore[arg-type]
    twin = replace(peer_of(3), underlay=one.underlay)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"192\.0\.2\.1 is already another VTEP's"):
            tables.compile(replace(good, peers=(one, two, twin)), PORTS, node)  # type: ignore[arg-type]
    vteps, fib = tables.compile(good, PORTS, node)  # type: ignore[arg-type]
    assert set(content(vteps)) == {one.name, two.name}
    assert fib.lookup("10.244.3.1") is None


def test_of_two_peers_with_one_prefix_the_later_has_it_while_it_is_there() -> None:
    """The calculation graph lets no such state pass; the tables stay what a compile makes of it."""
    tables, node = Tables(), [Port()]
    one = peer_of(1)
    two = replace(peer_of(2), prefixes=one.prefixes)
    for present, leads_to in (((one,), one), ((one, two), two), ((one,), one), ((two, one), one)):
        vteps, fib = tables.compile(ForwardingState(1, (OWN,), present), PORTS, node)  # type: ignore[arg-type]
        assert meaning(vteps, fib, IPv4Address("10.244.1.1")) == (to_vtep(0) >> 24, next(
            found for position in range(2) if (found := vteps.at(position)) and found[0] == leads_to.name
        ))  # fmt: skip


def test_many_changes_leave_no_gaps() -> None:
    """A thousand peers that come and go one by one, each under a new address, need no more room than those at once."""
    tables, node = Tables(), [Port()]
    for number in range(1000):
        present = tuple(peer_of(each % 250 + 1) for each in range(number, number + 3))
        vteps, _ = tables.compile(ForwardingState(1, (OWN,), present), PORTS, node)  # type: ignore[arg-type]
        assert len(vteps) == 3
        assert not any(vteps.at(position) for position in range(70, 200))
