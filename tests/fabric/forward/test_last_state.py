"""What the data path was told comes back as it was, or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fabric.forward import kept, last_state
from fabric.forward.last_state import PLACE, LastState, Told
from fabric.model import DataplaneSettings, Endpoint, ForwardingState, LocalVtep, Peer
from tests.fabric.forward.managers import Manager

MAC = bytes.fromhex("02aabbccddee")
SETTINGS = DataplaneSettings(
    1, {"vxlan": 8472, "udp": 8285}, "vxlan", (ip_address("192.0.2.1"), ip_address("2001:db8::1")), "flannel.1", 1450,
    2, {"udp-gso": False}, "strict", 5000, "eth0", 1024, (ip_network("10.96.0.0/12"),),
)  # fmt: skip
STATE = ForwardingState(
    1,
    (LocalVtep(ip_address("192.0.2.1"), MAC, (ip_network("10.244.1.0/24"),)),),
    (
        Peer("a", ip_address("192.0.2.2"), (ip_network("10.244.2.0/24"),), "vxlan", MAC, 1450),
        Peer("b", ip_address("2001:db8::2"), (ip_network("2001:db8:2::/64"),), None, b"", 1400,
             frozenset({"vxlan", "udp"}), True, True),
    ),
)  # fmt: skip
PORTS = (Endpoint("p1", "tap", "/run/netns/p1", "eth0", (ip_address("10.244.1.9"),), 1450, "02:00:00:00:00:01"),)
TOLD = Told(["--iface=eth0"], SETTINGS, STATE, PORTS, b"verdicts")


def written(manager: Manager, *told: Told | None) -> None:
    """By one run; then the next one begins."""
    state = LastState(manager)
    for one in told:
        state.write(one)
    state.close()
    manager.next_run()


def test_it_comes_back_as_it_was(manager: Manager) -> None:
    written(manager, TOLD)
    assert last_state.read(manager) == TOLD
    assert last_state.read(manager) == TOLD, "reading leaves it there"


def test_the_last_one_counts_over_any_number_of_runs(manager: Manager) -> None:
    for mtu in range(1400, 1405):
        written(manager, TOLD, replace_mtu(mtu))
        assert last_state.read(manager) == replace_mtu(mtu)


def replace_mtu(mtu: int) -> Told:
    return TOLD._replace(settings=replace(SETTINGS, mtu=mtu))


def test_nothing_is_a_state_too(manager: Manager) -> None:
    written(manager, TOLD, None)
    assert last_state.read(manager) is None


def test_nothing_is_a_state_whoever_wrote_last(manager: Manager) -> None:
    """Two runs at a time, a predecessor and its successor: what each has written itself says nothing."""
    predecessor = LastState(manager)
    manager.next_run()
    successor = LastState(manager)
    manager.next_run()
    successor.write(None)
    predecessor.write(TOLD)
    successor.write(None)
    assert last_state.read(manager) is None
    successor.write(TOLD)
    assert last_state.read(manager) == TOLD
    predecessor.close()
    successor.close()


def test_a_torn_place_is_the_next_one_that_is_written(manager: Manager) -> None:
    """Torn again, the one before counts still."""
    written(manager, TOLD, replace_mtu(1300))
    for mtu in (1301, 1302):
        os.pwrite(manager.fds[kept.STATE][0], b"torn", 100)
        written(manager, replace_mtu(mtu))
        assert last_state.read(manager) == replace_mtu(mtu)
    os.pwrite(manager.fds[kept.STATE][0], b"torn", 100)
    assert last_state.read(manager) == TOLD


@pytest.mark.parametrize("at", [0, 10, 30, 200, -1], ids=str)
def test_the_one_before_counts_where_the_last_is_torn(manager: Manager, at: int) -> None:
    """A process that was killed while it wrote: of the second one, in place 0, some bytes are wrong."""
    written(manager, TOLD, replace_mtu(1300))
    fd = manager.fds[kept.STATE][0]
    at = at if at >= 0 else os.pread(fd, 10_000, 0).index(TOLD.verdicts)
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 0xFF]), at)
    assert last_state.read(manager) == TOLD


@pytest.mark.parametrize("size", [0, PLACE, 3 * PLACE], ids=str)
def test_a_file_of_another_size_is_replaced(manager: Manager, size: int) -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, size)
    manager.put(kept.STATE, fd)
    assert last_state.read(manager) is None
    written(manager, TOLD)
    assert last_state.read(manager) == TOLD


@pytest.mark.parametrize(
    "change", [b'"layout":1', b'"layout":"2"', b'"layout":[]', b'"leyout":2'], ids=lambda change: change.decode()
)
def test_another_layout_is_nothing(manager: Manager, change: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = last_state.json.dumps
    with monkeypatch.context() as patch:
        patch.setattr(
            last_state.json, "dumps", lambda *what, **how: dumps(*what, **how).replace('"layout":2', change.decode())
        )
        written(manager, TOLD)
    assert last_state.read(manager) is None
