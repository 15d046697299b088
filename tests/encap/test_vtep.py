"""VTEP table against a dict."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encap.vtep import VtepTable, socket_address

Address = IPv4Address | IPv6Address
Row = tuple[str, Address, int, bytes, bytes, int, str, int, tuple[str, ...], bool, int]
MAC, OWN = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
addresses = st.ip_addresses() | st.integers(0, 300).map(IPv4Address) | st.integers(0, 300).map(IPv6Address)


def entry(name: str, address: Address, mac: bytes = MAC) -> Row:
    return name, address, 8472, mac, OWN, 1450, "vxlan", 1, ("vxlan",), False, 0


@pytest.mark.slow
@given(st.lists(addresses, unique=True, max_size=60), st.lists(addresses, max_size=20))
def test_twin(known: list[Address], others: list[Address]) -> None:
    """An IPv4 and an IPv6 address of the same number are two VTEPs."""
    twin = {address: f"peer{i}" for i, address in enumerate(known)}
    table = VtepTable(entry(name, address) for address, name in twin.items())
    assert len(table) == len(twin)
    for address in [*known, *others]:
        assert table.find(address) == twin.get(address)


@given(
    st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=80), st.integers(1, 1 << 16)
)
def test_patches(changes: list[tuple[int, bool]], step: int) -> None:
    """40 addresses in a table of 8 to 128 slots, so that probes run into each other; every table on the way stays as it
    was."""
    pool: list[Address] = [kind(number * step) for kind in (IPv4Address, IPv6Address) for number in range(20)]
    twin: dict[int, Address] = {}
    table, free, made = VtepTable(()), [], []
    for number, renew in changes:
        taken = [position for position, address in twin.items() if address == pool[number]]
        gone = taken[:1]
        come = [(gone[0] if gone else free.pop() if free else len(twin), entry(f"peer{number}", pool[number]))]
        if gone and not renew:
            come = []
            free.append(gone[0])
        table = table.patched(gone, come)
        twin = {position: address for position, address in twin.items() if position not in gone}
        twin |= {position: row[1] for position, row in come}
        made.append((table, dict(twin)))
    for each, then in made:
        assert len(each) == len(then)
        for number, address in enumerate(pool):
            assert each.find(address) == (f"peer{number}" if address in then.values() else None)
        assert {position for position in range(90) if each.at(position)} == set(then)


def test_patches_are_refused_like_entries() -> None:
    one, two = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    table = VtepTable([entry("a", one)])
    with pytest.raises(ValueError, match=r"VTEP b: underlay address 192\.0\.2\.1 is already another VTEP's"):
        table.patched([], [(1, entry("b", one))])
    with pytest.raises(ValueError, match="position 0 is taken"):
        table.patched([], [(0, entry("b", two))])
    with pytest.raises(ValueError, match="no VTEP at position 1"):
        table.patched([1], [])
    assert table.patched([0], [(0, entry("b", one))]).find(one) == "b"
    assert table.find(one) == "a"


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 1000, 5000])
def test_sizes(count: int) -> None:
    table = VtepTable(entry(str(i), IPv4Address(0x0A000000 + i)) for i in range(count))
    assert [table.find(IPv4Address(0x0A000000 + i)) for i in range(count)] == [str(i) for i in range(count)]
    assert table.find(IPv4Address(0x0A000000 + count)) is None
    assert table.find(IPv6Address("2001:db8::1")) is None


def test_second_vtep_with_an_address_is_refused() -> None:
    address = ip_address("192.0.2.1")
    with pytest.raises(ValueError, match=r"VTEP b: underlay address 192\.0\.2\.1 is already another VTEP's"):
        VtepTable([entry("a", address), entry("b", address)])


@pytest.mark.parametrize("mac", [b"", b"12345", b"1234567"])
def test_mac_has_six_bytes(mac: bytes) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        VtepTable([entry("a", ip_address("192.0.2.1"), mac)])


@pytest.mark.parametrize("slot", [-1, 8192])
def test_slot_that_there_is_not(slot: int) -> None:
    with pytest.raises(ValueError, match=f"there is no slot {slot}"):
        VtepTable([(*entry("a", ip_address("192.0.2.1"))[:-1], slot)])


def test_socket_address_is_what_the_kernel_uses() -> None:
    """Address family in the order of this machine, port and address in network order."""
    assert socket_address(ip_address("192.0.2.1"), 8472).hex() == "02002118c0000201" + "00" * 8
    six = socket_address(ip_address("2001:db8::1"), 8472)
    assert len(six) == 28
    assert struct.unpack("=H", six[:2])[0] == socket.AF_INET6
    assert six[2:4] == b"\x21\x18"
    assert six[8:24] == ip_address("2001:db8::1").packed
