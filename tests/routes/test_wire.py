"""Messages packed and read field by field, against pyroute2's encoder and decoder."""

import errno
import gc
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routes.codec import bare_package, rtmsg
from routes.netlink import ERROR_CODE, NLMSG_ERROR, Netlink, raise_error
from routes.observe import read_addresses, read_links
from routes.wire import HEADER, NEIGHBOUR, NUMBER, ROUTE, address, attribute, attributes, network, number

with bare_package("pyroute2"):
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

INDEX = st.integers(1, 2**31 - 1)
MACS = st.binary(min_size=6, max_size=6)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def by_pyroute2(message: object) -> bytes:
    message.encode()  # type: ignore[attr-defined]
    return bytes(message.data)[HEADER.size :]  # type: ignore[attr-defined]


@given(INDEX, MACS, ADDRESSES, st.integers(0, 0xFFFF), st.integers(0, 0xFF))
def test_a_neighbour_is_packed_as_pyroute2_packs_it(
    index: int, mac: bytes, destination: IPv4Address | IPv6Address, state: int, flags: int
) -> None:
    family = 2 if destination.version == 4 else 10
    message = ndmsg()
    message["family"], message["ifindex"], message["state"], message["flags"] = family, index, state, flags
    message["attrs"] = [("NDA_DST", str(destination)), ("NDA_LLADDR", mac.hex(":"))]

    ours = NEIGHBOUR.pack(family, index, state, flags, 0) + attribute(1, destination.packed) + attribute(2, mac)

    assert ours == by_pyroute2(message)
    assert attributes(ours, NEIGHBOUR.size) == {1: destination.packed, 2: mac}
    assert address(attributes(ours, NEIGHBOUR.size)[1]) == destination


@given(INDEX, ADDRESSES, st.integers(0, 32), st.integers(1, 2**32 - 1))
def test_a_route_is_packed_as_pyroute2_packs_it(
    index: int, gateway: IPv4Address | IPv6Address, length: int, metric: int
) -> None:
    family = 2 if gateway.version == 4 else 10
    message = rtmsg()
    message["family"], message["dst_len"], message["table"], message["proto"] = family, length, 254, 112
    message["scope"], message["type"], message["flags"] = 255, 6, 4
    message["attrs"] = [("RTA_OIF", index), ("RTA_PRIORITY", metric), ("RTA_GATEWAY", str(gateway))]

    ours = ROUTE.pack(family, length, 0, 0, 254, 112, 255, 6, 4)
    ours += attribute(4, NUMBER.pack(index)) + attribute(6, NUMBER.pack(metric)) + attribute(5, gateway.packed)

    assert ours == by_pyroute2(message)
    found = attributes(ours, ROUTE.size)
    assert (number(found[4]), number(found[6]), number(found.get(1)), address(found[5])) == (index, metric, 0, gateway)


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=30), max_size=8), st.binary(max_size=3))
def test_attributes_are_read_back(wanted: dict[int, bytes], tail: bytes) -> None:
    data = b"head" + b"".join(attribute(kind, value) for kind, value in wanted.items())

    assert attributes(data + tail, 4) == wanted


@given(st.binary(max_size=64))
def test_no_bytes_are_a_surprise(data: bytes) -> None:
    """Truncated or absurd lengths end the reading; they never loop or raise."""
    assert sum(len(value) for value in attributes(data, 0).values()) <= len(data)


@pytest.mark.parametrize(
    ("packed", "length", "prefix"),
    [
        (bytes([10, 244, 2, 0]), 24, IPv4Network("10.244.2.0/24")),
        (bytes(4), 0, IPv4Network("0.0.0.0/0")),
        (bytes.fromhex("20010db8") + bytes(12), 32, IPv6Network("2001:db8::/32")),
    ],
)
def test_networks(packed: bytes, length: int, prefix: IPv4Network | IPv6Network) -> None:
    assert network(packed, length) == prefix


@pytest.mark.slow
def test_looks_leave_nothing_for_the_collector() -> None:
    """There is one every few seconds, and a table that is empty is refused each time: cycles had grown the daemon."""
    refusal = HEADER.pack(HEADER.size + ERROR_CODE.size, NLMSG_ERROR, 0, 1, 0) + ERROR_CODE.pack(-errno.ENOENT)
    with Netlink() as netlink:
        gc.collect()
        gc.disable()
        try:
            with suppress(FileNotFoundError):
                raise_error(refusal)
            found = [*read_links(netlink), *read_addresses(netlink)]
            assert gc.collect() == 0
        finally:
            gc.enable()
    assert found
