"""Every node is a router as the kernel would be: hop counts, Time Exceeded, path MTU, fragments."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from fabric.lab import Lab, Pod, measure
from tests.scenarios import fabric_view, flows, inside
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

OVERLAY_MTU = 1430  # dual stack: the smaller of 1500 - 50 and 1500 - 70
IPV4_PATH_MTU = 1450
POD_MTU = 1500
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
TOO_BIG = {4: (3, 4), 6: (2, 0)}
MAX_HOPS = 8
IP_RECVTTL = 12

# Pods number 1 of node1 and node2 sit on a bridge, pods number 2 on TUN ports; node3 is the kernel.
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, pods=2, kernel_peer=True, pod_kind="mixed", ipv6=True) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    yield
    assert fabric_view.all_checksum_errors(lab) == {}
    assert lab.dead_daemons() == []


def icmp_error(sock: socket.socket) -> tuple[int, int, int, str]:
    """The next ICMP error about this socket's packets."""
    found = wait_for(lambda: inside.error_of(sock), "an ICMP error")
    assert found is not None
    return found


def trace(lab: Lab, source: Pod, target: Pod, family: int) -> list[str]:
    """Who answers a datagram with TTL 1, 2, 3 … until the target says that nobody listens there."""
    to = measure.address(target, family)
    hops: list[str] = []
    for ttl in range(1, MAX_HOPS + 1):
        with inside.open_udp(source.netns, measure.address(source, family)) as probe:
            inside.watch_errors(probe)
            if family == 4:
                probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            else:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            probe.sendto(b"trace", (to, 33434))
            kind, code, _, sender = icmp_error(probe)
        hops.append(sender)
        if (kind, code) == PORT_UNREACHABLE[family]:
            assert sender == to
            return hops
        assert (kind, code) == TIME_EXCEEDED[family]
    raise AssertionError(f"{to} not reached within {MAX_HOPS} hops: {hops}")


@FAMILIES
def test_bridged_pods_are_as_many_hops_apart_as_with_kernel_vxlan(lab: Lab, family: int) -> None:
    source, target = lab.pod("node1-pod1"), lab.pod("node2-pod1")
    ours = trace(lab, source, target, family)
    with lab.kernel_overlay().active():
        kernel = trace(lab, source, target, family)
    lab.remove_kernel_overlay()
    assert len(ours) == len(kernel) == 3
    assert ours[0] == kernel[0], "the gateway on the bridge"
    node = lab.node("node2")
    assert ours[1] == (node.subnet if family == 4 else node.subnet6).partition("/")[0], "the other node, on the overlay"


@FAMILIES
@pytest.mark.parametrize(
    ("source", "target", "hops"),
    [
        ("node1-pod1", "node3-pod1", 3),  # to and from a kernel node
        ("node3-pod1", "node1-pod1", 3),
        ("node1-pod2", "node2-pod2", 3),  # both on pod ports: the daemons are the two routers
        ("node1-pod2", "node2-pod1", 3),
        ("node1-pod1", "node2-pod2", 3),
        ("node1-pod2", "node3-pod1", 3),
        ("node3-pod1", "node1-pod2", 3),
    ],
)
def test_every_kind_of_port_is_as_many_hops_away(lab: Lab, family: int, source: str, target: str, hops: int) -> None:
    found = trace(lab, lab.pod(source), lab.pod(target), family)
    assert len(found) == hops, found
    assert len(set(found)) == hops, f"every hop answers for itself: {found}"


@FAMILIES
def test_a_ping_says_how_many_routers_it_passed(lab: Lab, family: int) -> None:
    """TTL 64 is 62 at the receiver over two nodes, whatever carries it."""
    for source, target in (("node1-pod1", "node2-pod1"), ("node1-pod2", "node2-pod2"), ("node3-pod1", "node1-pod2")):
        one, other = lab.pod(source), lab.pod(target)
        with inside.open_udp(other.netns, measure.address(other, family)) as sink:
            level, option, kind = (
                (socket.IPPROTO_IP, IP_RECVTTL, socket.IP_TTL)
                if family == 4
                else (socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT)
            )
            sink.setsockopt(level, option, 1)
            with inside.open_udp(one.netns, measure.address(one, family)) as out:
                out.sendto(b"ttl", sink.getsockname())
            _, control, _, _ = sink.recvmsg(100, 100)
        ttl = {(lev, typ): int.from_bytes(value[:4], "little") for lev, typ, value in control}
        assert ttl[level, kind] == 62, f"{source} to {target}"


def test_an_expired_packet_is_counted_and_answers_are_limited(lab: Lab) -> None:
    source, target = lab.pod("node1-pod2"), lab.pod("node2-pod1")
    with inside.open_udp(source.netns, source.ip) as probe:
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        with fabric_view.counting_drops(lab, "node1") as found:
            before = fabric_view.counters(lab, "node1")
            for sent in range(100, 3001, 100):  # in pieces that the port's queue holds
                for _ in range(100):
                    probe.sendto(b"trace", (target.ip, 33434))
                wanted = before["drop_ttl_expired"] + sent
                wait_for(
                    lambda wanted=wanted: fabric_view.counters(lab, "node1")["drop_ttl_expired"] >= wanted,  # type: ignore[misc]
                    "all packets to be counted",
                )
        after = fabric_view.counters(lab, "node1")
    assert found == {"ttl_expired": 3000}
    sent = after["egress_icmp_sent"] - before["egress_icmp_sent"]
    limited = after["egress_icmp_limited"] - before["egress_icmp_limited"]
    assert sent + limited == 3000
    assert 0 < sent < 1500, "a flood does not draw as many answers"


# Path MTU


@pytest.fixture(scope="module")
def big(lab: Lab) -> Lab:
    """All pods believe in an MTU of 1500, up to the node's door."""
    for pod in lab.pods:
        inside.ip(pod.netns, "link", "set", "eth0", "mtu", str(POD_MTU))
    for node in lab.nodes:
        for port in inside.ip_json(node.netns, "link", "show", "master", "cni0"):
            inside.ip(node.netns, "link", "set", port["ifname"], "mtu", str(POD_MTU))
        inside.ip(node.netns, "link", "set", "cni0", "mtu", str(POD_MTU))
    return lab


def forget_routes(lab: Lab) -> None:
    """Path MTUs learned before are forgotten."""
    for pod in lab.pods:
        for family in ("-4", "-6"):
            inside.ip(pod.netns, family, "route", "flush", "cache")


LARGE = [
    ("node1-pod1", "node2-pod1"),
    ("node1-pod2", "node2-pod2"),
    ("node1-pod2", "node3-pod1"),
    ("node3-pod1", "node1-pod2"),
    ("node1-pod1", "node2-pod2"),
]
ROUTES = pytest.mark.parametrize(("source", "target"), LARGE)


def path_mtu(lab: Lab, source: Pod, family: int) -> int:
    """What the pod has to be told: of its daemon the path's MTU, of the node's kernel that of the overlay device."""
    if source.kind == "tun":
        return IPV4_PATH_MTU if family == 4 else OVERLAY_MTU
    if lab.node(source.node).kind == "kernel":
        return IPV4_PATH_MTU if family == 4 else OVERLAY_MTU
    return OVERLAY_MTU


@FAMILIES
@ROUTES
def test_too_large_with_df_is_answered_with_the_mtu(big: Lab, source: str, target: str, family: int) -> None:
    one, other = big.pod(source), big.pod(target)
    forget_routes(big)
    header = 28 if family == 4 else 48
    expected = path_mtu(big, one, family)
    with (
        inside.open_udp(one.netns, measure.address(one, family), fragment=False) as out,
        inside.open_udp(other.netns, measure.address(other, family)) as sink,
    ):
        inside.watch_errors(out)
        out.sendto(flows.data(POD_MTU - header), sink.getsockname())
        kind, code, mtu, _ = icmp_error(out)
        assert (kind, code, mtu) == (*TOO_BIG[family], expected)
        out.sendto(flows.data(OVERLAY_MTU - header), sink.getsockname())
        assert sink.recv(2000) == flows.data(OVERLAY_MTU - header), "what was announced fits"


@FAMILIES
@ROUTES
def test_tcp_recovers_from_too_large_segments(big: Lab, source: str, target: str, family: int) -> None:
    one, other = big.pod(source), big.pod(target)
    forget_routes(big)
    done = flows.send_tcp(one.netns, other.netns, measure.address(other, family), 8 << 20)
    assert done.intact, f"{done.received} bytes arrived"
    assert done.seconds < 3


@FAMILIES
@ROUTES
def test_too_large_without_df_arrives_in_fragments(big: Lab, source: str, target: str, family: int) -> None:
    one, other = big.pod(source), big.pod(target)
    forget_routes(big)
    header = 28 if family == 4 else 48
    # Fragments know no ports, so they may take another way than whole datagrams of their flow, and overtake them.
    whole, cut = [POD_MTU - header, POD_MTU - header - 1, OVERLAY_MTU - header + 1], [4000, 65_000, 4000]
    ends = (one.netns, measure.address(one, family), other.netns, measure.address(other, family))
    if family == 6:
        # Routers do not fragment IPv6: the first one is answered, the sender cuts what follows itself.
        with inside.open_udp(*ends[:2]) as out:
            inside.watch_errors(out)
            out.sendto(flows.data(POD_MTU - header), (ends[3], 9))
            assert icmp_error(out)[:2] == TOO_BIG[6]
        with inside.open_udp(*ends[2:]) as out:
            inside.watch_errors(out)
            out.sendto(flows.data(POD_MTU - header), (ends[1], 9))
            assert icmp_error(out)[:2] == TOO_BIG[6]
        assert flows.exchange_datagrams(*ends, whole) == []
        assert flows.exchange_datagrams(*ends, cut) == []
    else:
        assert flows.exchange_datagrams(*ends, whole, fragment=True) == []
        assert flows.exchange_datagrams(*ends, cut, fragment=True) == []
