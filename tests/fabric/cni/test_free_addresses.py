"""What is sent to an address of the node's subnet that no pod has any more: the sender is told, nobody else gets it."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from tests.fabric.cni.host import DaemonHost, add
from tests.fabric.daemon.nodes import ip
from tests.scenarios import inside
from tests.scenarios.waiting import wait_for

pytestmark = pytest.mark.root
PORT = 9000
CODES = {4: (3, 1), 6: (1, 0)}
"""ICMP type and code: host unreachable, no route."""


@pytest.fixture(scope="module", autouse=True)
def _default_route(daemon_host: DaemonHost) -> Iterator[None]:
    """By which such packets would leave."""
    ip("-n", daemon_host.netns, "route", "add", "default", "via", "192.0.2.2")
    ip("-n", daemon_host.netns, "-6", "route", "add", "default", "via", "2001:db8::2")
    yield
    ip("-n", daemon_host.netns, "route", "del", "default")
    ip("-n", daemon_host.netns, "-6", "route", "del", "default")


def addresses(result: dict[str, object]) -> dict[int, str]:
    found = [ip_interface(item["address"]) for item in result["ips"]]  # type: ignore[attr-defined]
    return {item.version: str(item.ip) for item in found}


def refused_at_once(netns: str, address: str) -> bool:
    """Whether the kernel of a namespace refuses to send there."""
    with inside.open_socket(netns, inside.family_of(address), socket.SOCK_DGRAM) as out:
        return out.connect_ex((address, PORT)) in (errno.EHOSTUNREACH, errno.ENETUNREACH)


@pytest.mark.parametrize("version", [4, 6])
def test_after_its_del_a_pods_address_leaks_nowhere(daemon_host: DaemonHost, version: int) -> None:
    host, conf = daemon_host, daemon_host.conf("tun")
    gone, sender = host.pod(), host.pod()
    target, source = (addresses(add(host, pod, "tun"))[version] for pod in (gone, sender))
    assert host.pings(target)
    host.call("DEL", conf, gone).must()
    ip("-n", host.outside, "address", "add", target, "dev", "lo")  # where a leak would arrive
    with inside.open_udp(host.outside, target, PORT) as leak, inside.open_udp(sender.netns, source) as out:
        leak.setblocking(False)
        assert refused_at_once(host.netns, target)
        inside.watch_errors(out)
        out.sendto(b"anybody there?", (target, PORT))
        error = wait_for(lambda: inside.error_of(out), "an ICMP error")
        assert error is not None
        assert error[:2] == CODES[version]
        with pytest.raises(BlockingIOError):
            leak.recv(100)
    ip("-n", host.outside, "address", "del", target, "dev", "lo")
    host.call("DEL", conf, sender).must()


def test_a_bridge_with_the_subnet_and_pods_of_both_kinds_work_beside_it(daemon_host: DaemonHost) -> None:
    host = daemon_host
    tun, bridged, later = host.pod(), host.pod(), host.pod()
    found = {pod: addresses(add(host, pod, kind)) for pod, kind in ((tun, "tun"), (bridged, "bridge"), (later, "tun"))}
    for version in (4, 6):
        for one, other in ((tun, bridged), (bridged, tun), (bridged, later), (later, bridged)):
            assert one.pings(found[other][version]), (one, other, version)
        assert all(host.pings(found[pod][version]) for pod in found)
    assert host.node.ask("status")["kernel"]["problems"] == []
    for pod, kind in ((tun, "tun"), (bridged, "bridge"), (later, "tun")):
        host.call("DEL", host.conf(kind), pod).must()
    ip("-n", host.netns, "link", "del", "cni0")
    wait_for(lambda: refused_at_once(host.netns, found[bridged][4]), "the subnet to be unreachable without the bridge")


def unreachable(host: DaemonHost) -> list[str]:
    routes = [json.loads(ip("-j", "-n", host.netns, f"-{f}", "route", "show", "type", "unreachable")) for f in (4, 6)]
    return [route["dst"] for family in routes for route in family if route["dst"] != "default"]


def test_it_is_restored_and_outlives_the_daemon(daemon_host: DaemonHost) -> None:
    host = daemon_host
    subnets = list(map(str, host.node.ask("status")["subnets"]))
    assert unreachable(host) == subnets
    ip("-n", host.netns, "route", "del", "unreachable", subnets[0])
    wait_for(lambda: unreachable(host) == subnets, "the route again")
    host.stop()
    assert unreachable(host) == subnets
    host.start()
    assert unreachable(host) == subnets
