"""The plugin's own rtnetlink messages, against pyroute2's decoder and the kernel's words; no part of pyroute2 is loaded
by the plugin (ADR 16)."""

from __future__ import annotations

from ipaddress import IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any, cast

import pytest

from fabric.cni import addressing, links
from fabric.cni.errors import CniError
from fabric.cni.result import Route
from routes.codec import bare_package, ifaddrmsg, ifinfmsg, nlmsg, rtmsg
from routes.netlink import RTM_NEWLINK, Netlink, encoded
from routes.wire import HEADER, NLM_F_CAPPED, NUMBER, attribute, explanation, text

with bare_package("pyroute2"):
    from pyroute2.netlink.rtnl.ndmsg import ndmsg


class Recorder:
    """A conversation that keeps what is sent, and answers that it was done."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def perform(self, requests: list[tuple[int, int, bytes]]) -> list[None]:
        self.sent += [encoded(kind, flags, 1, message) for kind, flags, message in requests]
        return [None for _ in requests]


def read(decoder: type[nlmsg], data: bytes) -> Any:
    """One message, decoded by pyroute2."""
    message = decoder(data)
    message.decode()
    return message


def sent(send: Any, decoder: type[nlmsg]) -> Any:
    """What `send` sends, decoded by pyroute2."""
    recorder = Recorder()
    send(cast(Netlink, recorder))
    assert len(recorder.sent) == 1
    return read(decoder, recorder.sent[0])


LINK = links.Link(7, "eth0", "veth", "", 1450, True, True, False, 0, 0, "")


def test_a_pair_of_links() -> None:
    host = links.VethEnd("vethx", "ee:ee:ee:ee:ee:ee", 1450)
    found = sent(lambda n: links.create_veth(n, host, links.VethEnd("eth0", "", 9000), 11, 5), ifinfmsg)
    info = found.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert [found.get_attr(f"IFLA_{name}") for name in ("IFNAME", "ADDRESS", "MTU", "MASTER")] == [*host, 5]
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    assert [peer.get_attr(f"IFLA_{name}") for name in ("IFNAME", "MTU", "NET_NS_FD")] == ["eth0", 9000, 11]


def test_settings_of_links() -> None:
    found = sent(lambda n: links.set_up(n, LINK, "whose", promiscuous=True), ifinfmsg)
    assert (found["index"], found["flags"], found["change"]) == (7, 0x101, 0x101)
    assert found.get_attr("IFLA_IFALIAS") == "whose"
    found = sent(lambda n: links.name_it(n, LINK, "w" * 300, "02:00:00:00:00:01"), ifinfmsg)
    assert (found["change"], len(found.get_attr("IFLA_IFALIAS"))) == (0, links.MAX_ALIAS)
    assert found.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:01"
    info = sent(lambda n: links.set_hairpin(n, LINK), ifinfmsg).get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    assert info.get_attr("IFLA_INFO_SLAVE_DATA").get_attr("IFLA_BRPORT_MODE") == 1
    with pytest.raises(CniError, match="is no MAC"):
        links.hardware("02:zz")


@pytest.mark.parametrize(
    ("address", "broadcast"), [("10.244.1.2/24", "10.244.1.255"), ("10.244.1.2/32", None), ("2001:db8::2/64", None)]
)
def test_addresses(address: str, broadcast: str | None) -> None:
    wanted = ip_interface(address)
    found = sent(lambda n: addressing.add_address(n, LINK, wanted), ifaddrmsg)
    assert (found["index"], found["prefixlen"], found.get_attr("IFA_LOCAL")) == (
        7, wanted.network.prefixlen, str(wanted.ip),
    )  # fmt: skip
    assert found.get_attr("IFA_BROADCAST") == broadcast
    assert (found["flags"], found.get_attr("IFA_FLAGS")) == ((2, 2) if isinstance(wanted, IPv6Interface) else (0, None))


def test_routes() -> None:
    numbers = (("mtu", 1400), ("advmss", 1360), ("priority", 50), ("table", 1000), ("scope", 200))
    route = Route(ip_network("198.51.100.0/24"), ip_address("192.0.2.1"), numbers)
    found = sent(lambda n: addressing.add_route(n, LINK, route), rtmsg)
    assert [found[name] for name in ("family", "dst_len", "table", "proto", "scope", "type")] == [2, 24, 0, 4, 200, 1]
    texts = [found.get_attr(f"RTA_{name}") for name in ("DST", "GATEWAY", "OIF", "PRIORITY", "TABLE")]
    assert texts == ["198.51.100.0", "192.0.2.1", 7, 50, 1000]
    metrics = found.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU"), metrics.get_attr("RTAX_ADVMSS")) == (1400, 1360)
    found = sent(lambda n: addressing.delete_host_route(n, ip_address("2001:db8::5")), rtmsg)
    assert [found[name] for name in ("family", "dst_len", "proto", "scope", "type")] == [10, 128, 113, 255, 0]


def test_neighbours() -> None:
    found = sent(lambda n: addressing.add_neighbour(n, LINK, ip_address("192.0.2.9"), "02:00:00:00:00:02"), ndmsg)
    assert (found["ifindex"], found["state"], found["flags"]) == (7, 0x80, 0)
    assert (found.get_attr("NDA_DST"), found.get_attr("NDA_LLADDR")) == ("192.0.2.9", "02:00:00:00:00:02")
    found = sent(lambda n: addressing.add_proxy(n, 3, ip_address("2001:db8::9")), ndmsg)
    assert (found["ifindex"], found["state"], found["flags"], found.get_attr("NDA_DST")) == (3, 0, 8, "2001:db8::9")


def test_a_link_is_read_as_pyroute2_writes_it() -> None:
    message = ifinfmsg()
    message["index"], message["flags"] = 4, 0x101
    message["attrs"] = [
        ("IFLA_IFNAME", "eth0"), ("IFLA_ADDRESS", "02:00:00:00:00:03"), ("IFLA_MTU", 1450), ("IFLA_LINK", 9),
        ("IFLA_MASTER", 2), ("IFLA_OPERSTATE", "UP"), ("IFLA_IFALIAS", "whose"), ("IFLA_PROMISCUITY", 1),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
    ]  # fmt: skip
    data = encoded(RTM_NEWLINK, 0, 1, message)
    expected = links.Link(4, "eth0", "veth", "02:00:00:00:00:03", 1450, True, True, True, 2, 9, "whose")
    assert links.parse(data) == expected
    bare = ifinfmsg()
    bare["attrs"] = [("IFLA_IFNAME", "tun0")]
    assert links.parse(encoded(RTM_NEWLINK, 0, 1, bare)) == links.Link(0, "tun0", "", "", 0, *[False] * 3, 0, 0, "")


@pytest.mark.parametrize("capped", [False, True])
def test_the_kernels_words(capped: bool) -> None:
    """linux/netlink.h: the refused request, or its header alone, then attributes (pyroute2 0.9.7 misses the latter)."""
    request = encoded(RTM_NEWLINK, 0, 1, b"x" * 13)
    about = request[: HEADER.size] if capped else request + b"\0" * (-len(request) % 4)
    body = NUMBER.pack(2**32 - 17) + about + attribute(2, NUMBER.pack(5)) + text(1, "not like this")
    flags = 0x200 | (NLM_F_CAPPED if capped else 0)
    data = HEADER.pack(HEADER.size + len(body), 2, flags, 1, 0) + body
    assert explanation(data) == "not like this"
    for length in range(HEADER.size, len(data)):
        explanation(data[:length])  # cut anywhere: no words, no error
