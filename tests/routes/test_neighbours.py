"""Neighbours and forwarding entries of a peer: programmed, swept, changed, in order. iproute2 and the kernel's own
announcements say what was done."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from routes.namespace import NamespaceReconciler
from routes.netlink import RTM_NEWNEIGH, RTM_NEWROUTE
from routes.observe import AF_BRIDGE
from routes.state import DesiredState, DeviceState, FdbEntry, Neighbour
from routes.wire import HEADER
from tests.routes.conftest import ip, ip_json, kernel_fdb, kernel_neighbours, kernel_routes, only
from tests.routes.overlay import Peer, is_programmed, overlay

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("underlay")]

RTPROT_KERNEL, NUD_NOARP = 2, 0x40
GROUPS = 0x4 | 0x40 | 0x400
"""Neighbours, IPv4 and IPv6 routes (linux/rtnetlink.h)."""


@contextmanager
def announcements() -> Iterator[list[str]]:
    """What the kernel announces inside, in its order: "+neighbour", "+fdb", "+route", "-route" and so on.

    Without what it makes by itself when a device has come up: its own routes, and neighbours that need no ARP.
    """
    seen: list[str] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as listener:
        listener.bind((0, GROUPS))
        yield seen
        while True:
            try:
                data = listener.recv(4096)
            except BlockingIOError:
                return
            _, kind, _, _, _ = HEADER.unpack_from(data)
            family = data[HEADER.size]
            if is_kernels(kind, data[HEADER.size :]):
                continue
            added = kind in (RTM_NEWNEIGH, RTM_NEWROUTE)
            noun = (
                "route" if kind in (RTM_NEWROUTE, RTM_NEWROUTE + 1) else "fdb" if family == AF_BRIDGE else "neighbour"
            )
            seen.append(f"{'+' if added else '-'}{noun}")


def is_kernels(kind: int, body: bytes) -> bool:
    """`body` is a struct rtmsg or ndmsg."""
    if kind in (RTM_NEWROUTE, RTM_NEWROUTE + 1):
        return body[5] == RTPROT_KERNEL
    return bool(int.from_bytes(body[8:10], sys.byteorder) & NUD_NOARP)


def bridge_fdb(command: str) -> None:
    subprocess.run(["bridge", "fdb", *command.split()], check=True)


@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_is_added_and_removed_in_flannels_order(version: int) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2], version)))

    with announcements() as adding:
        added = reconciler.flush(only(overlay([2, 3], version)))
    with announcements() as removing:
        removed = reconciler.flush(only(overlay([2], version)))

    assert adding == ["+neighbour", "+fdb", "+route"]
    assert removing[:2] == ["-route", "-fdb"]
    assert "neighbour" in removing[2]  # the kernel announces its last state before it is gone
    assert [change.split()[0] for change in added.changes] == ["neighbour", "fdb", "route"]
    assert [change.split()[0] for change in removed.changes] == ["route", "fdb", "neighbour"]
    assert is_programmed(overlay([2], version))


def test_a_full_look_keeps_the_order_among_peers_that_come_and_go() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2, 3, 4])))

    with announcements() as seen:
        reconciler.reconcile(only(overlay([4, 5, 6])))

    kinds = [each for each in seen if not each.endswith("-neighbour")]
    assert kinds[:8] == ["-route"] * 2 + ["+neighbour"] * 2 + ["+fdb"] * 2 + ["+route"] * 2
    assert kinds[8:10] == ["-fdb"] * 2


@pytest.mark.parametrize("look", ["flush", "reconcile"])
def test_a_new_mac_leaves_no_entry_of_the_old_one(look: str) -> None:
    """flannel leaves the forwarding entry of the old MAC behind; here the new path is complete before the old goes."""
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2, 3])))
    changed = overlay([2, Peer(3, generation=1)])

    with announcements() as seen:
        result = getattr(reconciler, look)(only(changed))

    assert result.errors == ()
    assert seen == ["+neighbour", "+fdb", "-fdb"]
    assert is_programmed(changed)


def test_a_new_underlay_address_is_one_replacement() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2, 3])))
    moved = overlay([2, Peer(3, host=33)])

    with announcements() as seen:
        reconciler.flush(only(moved))

    assert seen == ["+fdb"]
    assert is_programmed(moved)


def test_a_process_without_memory_sweeps_what_is_stale() -> None:
    NamespaceReconciler().reconcile(DesiredState((overlay([2, 3, 9], 4), overlay([2, 9], 6))))
    wanted = DesiredState((overlay([2, 3], 4), overlay([2], 6)))

    result = NamespaceReconciler().reconcile(wanted)

    assert set(result.changes) == {
        "route 10.244.9.0/24 removed",
        "route 2001:db8:42:9::/64 removed",
        "neighbour 10.244.9.0 dev flannel.1 removed",
        "neighbour 2001:db8:42:9:: dev flannel-v6.1 removed",
        "fdb 02:00:00:00:00:09 dev flannel.1 removed",
        "fdb 02:00:00:00:00:09 dev flannel-v6.1 removed",
    }
    assert all(map(is_programmed, wanted.devices))


DAMAGE = [
    "ip neigh del 10.244.2.0 dev flannel.1",
    "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
    "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud reachable",
    "ip neigh add 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
    "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.77",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 port 4789",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 vni 7",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 via eth0",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 dynamic",
    "bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 192.0.2.77",
    "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.77",
    "ip link set flannel.1 down",
    "ip link set flannel.1 mtu 1400",
    "ip link del flannel.1",
]


@pytest.mark.parametrize("command", DAMAGE)
def test_a_look_repairs(command: str) -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2, 3])))
    subprocess.run(command.split(), check=True)

    repair, after = (reconciler.reconcile(only(overlay([2, 3]))) for _ in range(2))

    assert repair.changes
    assert (after.changes, after.errors) == ((), ())
    assert is_programmed(overlay([2, 3]))
    assert not any(option in subprocess.check_output(["bridge", "fdb", "show", "dev", "flannel.1"], text=True)
                   for option in ("port", "vni", "via"))  # fmt: skip


def test_flooding_entries_with_several_destinations_are_swept_at_once() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    for host in (70, 71, 72):
        bridge_fdb(f"append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.{host}")

    result = reconciler.reconcile(only(overlay([2])))

    assert result.changes == ("fdb 00:00:00:00:00:00 dev flannel.1 removed",)
    assert is_programmed(overlay([2]))


def test_entries_that_are_not_permanent_are_the_kernels_own() -> None:
    reconciler = NamespaceReconciler()
    reconciler.reconcile(only(overlay([2])))
    ip("neigh add 10.244.88.0 lladdr 02:00:00:00:00:88 dev flannel.1 nud stale")
    bridge_fdb("add 02:00:00:00:00:88 dev flannel.1 dst 192.0.2.88 dynamic")

    result = reconciler.reconcile(only(overlay([2])))

    assert result.changes == ()
    assert [each["lladdr"] for each in ip_json("neigh show 10.244.88.0 dev flannel.1")] == ["02:00:00:00:00:88"]


def test_other_devices_entries_are_untouched() -> None:
    ip("neigh add 192.0.2.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent")
    ip("link add other type vxlan id 9 dev eth0 dstport 4789")
    ip("link set other up")
    ip("neigh add 10.244.50.0 lladdr 02:00:00:00:00:50 dev other nud permanent")
    bridge_fdb("add 02:00:00:00:00:50 dev other dst 192.0.2.50")

    result = NamespaceReconciler().reconcile(DesiredState((overlay([2]), DeviceState("eth0", up=None))))

    assert result.errors == ()
    assert kernel_neighbours("eth0") == {("192.0.2.50", "02:00:00:00:00:50")}
    assert kernel_neighbours("other") == {("10.244.50.0", "02:00:00:00:00:50")}
    assert kernel_fdb("other") == {("02:00:00:00:00:50", "192.0.2.50")}


def test_flush_writes_only_the_difference() -> None:
    reconciler = NamespaceReconciler()
    state = overlay([2, 3])
    reconciler.reconcile(only(state))
    ip("neigh del 10.244.2.0 dev flannel.1")  # behind its back: a flush does not look
    more = overlay([2, 4])

    result = reconciler.flush(only(more))

    assert set(result.changes) == {
        "route 10.244.3.0/24 removed",
        "neighbour 10.244.4.0 dev flannel.1 set to 02:00:00:00:00:04",
        "fdb 02:00:00:00:00:04 dev flannel.1 set to 198.51.100.4",
        "route 10.244.4.0/24 via 10.244.4.0 added",
        "fdb 02:00:00:00:00:03 dev flannel.1 removed",
        "neighbour 10.244.3.0 dev flannel.1 removed",
    }
    assert "10.244.2.0" not in dict(kernel_neighbours("flannel.1"))


def test_a_refused_entry_disturbs_no_other_and_is_tried_again() -> None:
    """The kernel takes no forwarding entry to IPv6 on an IPv4 tunnel."""
    good, bad = overlay([2, 3]), FdbEntry(Peer(4).mac, ip_address("2001:db8::4"))
    neighbour, entry = Peer(4).entries(4)
    state = replace(good, neighbours=good.neighbours | {neighbour}, fdb=good.fdb | {bad})
    reconciler = NamespaceReconciler()

    results = [reconciler.reconcile(only(state)) for _ in range(2)]
    mended = reconciler.flush(only(replace(state, fdb=good.fdb | {entry})))

    for result in results:
        (error,) = result.errors
        assert (error.object, error.is_of_a_peer) == ("fdb 02:00:00:00:00:04 dev flannel.1", True)
    assert results[1].changes == ()
    assert kernel_routes("flannel.1") == {(str(route.prefix), str(route.via)) for route in good.routes}
    assert mended.changes == ("fdb 02:00:00:00:00:04 dev flannel.1 set to 198.51.100.4",)
    assert mended.errors == ()


def test_entries_that_cannot_be_are_refused_by_the_words_themselves() -> None:
    address, mac, other = ip_address("10.244.2.0"), Peer(2).mac, Peer(3).mac

    with pytest.raises(ValueError, match=r"device flannel\.1: two neighbours 10\.244\.2\.0; an address has one MAC"):
        overlay([], neighbours=frozenset({Neighbour(address, mac), Neighbour(address, other)}))
    with pytest.raises(ValueError, match="two forwarding entries for 02:00:00:00:00:02; a MAC has one VTEP"):
        overlay([], fdb=frozenset({FdbEntry(mac, address), FdbEntry(mac, ip_address("192.0.2.9"))}))
    with pytest.raises(ValueError, match="neighbours and forwarding entries are for a VXLAN device of our own"):
        DeviceState("eth0", neighbours=frozenset({Neighbour(address, mac)}))
    with pytest.raises(ValueError, match=r"two routes for 10\.244\.2\.0/24; a prefix has one next hop"):
        DesiredState((overlay([2]), DeviceState("eth0", routes=frozenset({Peer(2).route(4)}))))
    with pytest.raises(ValueError, match=r"two routes for 10\.244\.2\.0/24"):
        DesiredState((overlay([2]),), frozenset({Peer(2).route(4).prefix}))
    with pytest.raises(ValueError, match="two states of device eth0; give one"):
        DesiredState((DeviceState("eth0"), DeviceState("eth0", addresses=frozenset({ip_interface("192.0.2.1/24")}))))
