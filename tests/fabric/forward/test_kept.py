"""What a data path leaves to the next one: sockets and queues with what has arrived in them, where they fit."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fabric.errors import PortLostError
from fabric.forward import kept
from fabric.forward.dataplane import Dataplane
from fabric.model import DataplaneSettings, Endpoint
from tests.fabric.forward.harness import VNI, prefixes_of
from tests.fabric.forward.managers import Manager
from tests.fabric.forward.test_dataplane import PORTS, PlaneNode
from tests.tun.conftest import Namespace, wait_for

pytestmark = pytest.mark.root
SETTINGS = DataplaneSettings(VNI, PORTS, "vxlan", (ip_address("127.0.0.1"),), "fab1", 1450, 1, {}, "strict", 1000, "lo")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    made.command("ip", "link", "set", "lo", "up")
    yield made
    made.delete()


def started(namespace: Namespace, manager: Manager, stack: ExitStack, **changes: object) -> Dataplane:
    node = PlaneNode(namespace, 1)
    node.plane = Dataplane(replace(SETTINGS, **changes), manager)  # type: ignore[arg-type]
    stack.callback(node.plane.stop)
    node.start()
    return node.plane


def ended(plane: Dataplane, manager: Manager) -> None:
    plane.stop()
    manager.next_run()


def index(namespace: Namespace, name: str) -> int:
    return namespace.run(lambda: socket.if_nametoindex(name))


def test_the_node_port_stays_the_same_device(namespace: Namespace, manager: Manager, stack: ExitStack) -> None:
    plane = started(namespace, manager, stack)
    before = index(namespace, "fab1")
    ended(plane, manager)
    assert index(namespace, "fab1") == before, "it is open in the store"
    plane = started(namespace, manager, stack, mtu=1400)
    assert index(namespace, "fab1") == before
    assert "mtu 1400" in namespace.command("ip", "link", "show", "fab1")


@pytest.mark.parametrize("changes", [{"workers": 2}, {"device": "fab2"}], ids=str)
def test_one_that_does_not_fit_is_made_anew(
    namespace: Namespace, manager: Manager, stack: ExitStack, changes: dict[str, object]
) -> None:
    ended(started(namespace, manager, stack), manager)
    before = index(namespace, "fab1")
    plane = started(namespace, manager, stack, **changes)
    name = str(changes.get("device", "fab1"))
    assert index(namespace, name) != before
    assert len(manager.fds[kept.NODE]) == plane.settings.workers
    assert namespace.command("ip", "-br", "link").count("fab") == 1


def test_what_arrives_between_two_runs_waits(namespace: Namespace, manager: Manager, stack: ExitStack) -> None:
    """In the receive socket, counted by the next run: the sender is nobody's VTEP."""
    ended(started(namespace, manager, stack), manager)
    with namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        for _ in range(20):
            sender.sendto(bytes(50), ("127.0.0.1", PORTS["vxlan"]))
    plane = started(namespace, manager, stack)
    wait_for(lambda: plane.counters()["receive_datagrams"] >= 20)


def test_sockets_of_other_addresses_are_let_go(namespace: Namespace, manager: Manager, stack: ExitStack) -> None:
    ended(started(namespace, manager, stack), manager)
    plane = started(namespace, manager, stack, underlay=(ip_address("127.0.0.2"),))
    assert set(manager.fds) == {kept.NODE, kept.FLOWS, "vxlan-127.0.0.2-8472-0"}
    plane.rebind((ip_address("127.0.0.3"),), 1450, "lo")
    assert set(manager.fds) == {kept.NODE, kept.FLOWS, "vxlan-127.0.0.3-8472-0"}


def test_a_pods_queue_comes_back_without_entering_the_pod(
    namespace: Namespace, manager: Manager, stack: ExitStack
) -> None:
    """Of the right device only, and not when that is gone."""
    pods = Namespace()
    stack.callback(pods.delete)
    address = prefixes_of(1)[0].network_address + 9
    endpoint = Endpoint("p1", "tun", pods.path, "eth1", (address,))
    plane = started(namespace, manager, stack)
    plane.add_port(endpoint)
    before = index(pods, "eth1")
    ended(plane, manager)
    plane = started_with(namespace, manager, stack, endpoint)
    assert [port["name"] for port in plane.status()["ports"]] == ["node", "p1"]  # type: ignore[attr-defined]
    assert index(pods, "eth1") == before
    ended(plane, manager)
    pods.command("ip", "link", "delete", "eth1")
    with pytest.raises(PortLostError):
        started_with(namespace, manager, stack, endpoint)


def started_with(namespace: Namespace, manager: Manager, stack: ExitStack, endpoint: Endpoint) -> Dataplane:
    """A run that takes a port up before its threads run."""
    node = PlaneNode(namespace, 1)
    node.plane = Dataplane(SETTINGS, manager)
    stack.callback(node.plane.stop)
    namespace.run(node.plane.open)
    namespace.run(node.plane.create_node_port)
    node.plane.apply(node.state())
    node.plane.attach_port(endpoint)
    node.plane.start()
    return node.plane


def test_a_deleted_port_is_not_kept(namespace: Namespace, manager: Manager, stack: ExitStack) -> None:
    pods = Namespace()
    stack.callback(pods.delete)
    endpoint = Endpoint("p1", "tun", pods.path, "eth1", (prefixes_of(1)[0].network_address + 9,))
    plane = started(namespace, manager, stack)
    plane.add_port(endpoint)
    assert kept.pod("p1") in manager.fds
    plane.delete_port("p1")
    assert kept.pod("p1") not in manager.fds
    assert "eth1" not in pods.command("ip", "-br", "link")
