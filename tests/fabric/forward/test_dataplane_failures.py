"""What a Dataplane leaves behind when a step fails half-way: nothing that holds a name, a port or a bad state."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from fabric.errors import DataplaneError
from tests.fabric.forward.harness import address4, address6
from tests.fabric.forward.packets import make
from tests.fabric.forward.test_dataplane import (  # noqa: F401 - fixtures
    Make,
    PlaneNode,
    collect,
    endpoint,
    make_node,
    namespace,
    tap_into,
)
from tests.tun.conftest import Namespace
from tun.device import Device
from tun.errors import DeviceError

pytestmark = pytest.mark.root


def refuse_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody takes the device down or deletes it between its making and its test."""

    def probe(device: Device) -> None:
        raise DeviceError("test superframe writes on", device.name, "the device is down")

    monkeypatch.setattr(Device, "probe", probe)


def test_refused_state_is_not_used_later(namespace: Namespace, make_node: Make) -> None:  # noqa: F811
    """After a state that cannot be compiled, ports still come and the node port is still made again."""
    pods = Namespace()
    try:
        a, b = make_node(1), make_node(2)
        a.start(2)
        b.start(1)
        state = b.state(1)
        twice = replace(state, peers=(*state.peers, replace(state.peers[0], name="twin")))
        with pytest.raises(DataplaneError, match="keeping the last ones"):
            b.plane.apply(twice)
        b.namespace.run(partial(b.plane.add_port, endpoint(pods, 10, address4(2, 10))))
        with ExitStack() as stack:
            near, pod = tap_into(stack, namespace, "fab1"), tap_into(stack, pods, "eth10")
            near.inject(make(4, (1, 5), (2, 10)))
            assert len(collect(pod, 1)) == 1
    finally:
        pods.delete()


def test_node_port_that_fails_its_test_is_removed(
    namespace: Namespace, make_node: Make, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """Otherwise its name stays taken and every later try fails."""
    a = make_node(1)
    with monkeypatch.context() as patch:
        refuse_probe(patch)
        with pytest.raises(DataplaneError, match="the device is down"):
            a.start(2)
    assert "fab1" not in namespace.command("ip", "-br", "link")
    a.namespace.run(a.plane.create_node_port)


def test_pod_port_that_fails_its_test_is_removed(
    namespace: Namespace, make_node: Make, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    pods = Namespace()
    try:
        a = make_node(1)
        a.start(2)
        add = partial(a.plane.add_port, endpoint(pods, 10, address4(1, 10)))
        with monkeypatch.context() as patch:
            refuse_probe(patch)
            with pytest.raises(DataplaneError, match=r"p10: .*the device is down"):
                a.namespace.run(add)
        assert "eth10" not in pods.command("ip", "-br", "link")
        a.namespace.run(add)
    finally:
        pods.delete()


@pytest.mark.parametrize(
    ("addresses", "why"),
    [
        ([address4(1, 10)], f"{address4(1, 10)} is port p10's"),
        ([address4(1, 11), address6(1, 10)], f"{address6(1, 10)} is port p10's"),
        ([address4(1, 11), address4(1, 12)], "at most one address of each family"),
    ],
)
def test_addresses_that_a_port_cannot_have(
    namespace: Namespace, make_node: Make, addresses: list[str], why: str  # noqa: F811
) -> None:
    """An address leads to one port, and a port's check of its sources knows one address of each family."""
    pods = Namespace()
    try:
        a = make_node(1)
        a.start(2)
        a.namespace.run(partial(a.plane.add_port, endpoint(pods, 10, address4(1, 10), address6(1, 10))))
        with pytest.raises(DataplaneError, match=why):
            a.namespace.run(partial(a.plane.add_port, endpoint(pods, 11, *addresses)))
        assert "eth11" not in pods.command("ip", "-br", "link")
    finally:
        pods.delete()


@pytest.mark.parametrize("workers", [1, 2])
def test_open_that_fails_half_way_keeps_nothing(namespace: Namespace, make_node: Make, workers: int) -> None:  # noqa: F811
    """The second underlay address is not ours: `stop` closes what the first got, while the error is still held."""
    node = make_node(1, workers=workers, underlay=(ip_address("127.0.0.1"), ip_address("2001:db8::1")))
    with pytest.raises(DataplaneError, match="the address is not on this host") as held:
        node.namespace.run(node.plane.open)
    node.plane.stop()
    assert namespace.command("ss", "-Hlun").strip() == ""
    assert held.value is not None


def test_stop_at_any_time_and_twice(namespace: Namespace) -> None:  # noqa: F811
    before = len(os.listdir("/proc/self/fd"))
    for steps in range(4):
        node = PlaneNode(namespace, 1, workers=2)
        for step in (node.plane.open, node.plane.create_node_port, node.plane.start)[:steps]:
            node.namespace.run(step)
        node.plane.stop()
        node.plane.stop()
        assert node.plane.status()["ports"] == []
        assert node.plane.counters()["node_port_overflows"] == 0
        assert "fab1" not in namespace.command("ip", "-br", "link")
        assert namespace.command("ss", "-Hlun").strip() == ""
        del node
    assert len(os.listdir("/proc/self/fd")) <= before
