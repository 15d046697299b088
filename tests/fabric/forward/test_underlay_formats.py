"""Sockets of further formats, on real devices: opened late, refused ports, other addresses. One and two workers."""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from fabric.errors import DataplaneError
from fabric.model import ForwardingState
from tests.fabric.forward.harness import address4, make_peer
from tests.fabric.forward.packets import udp4
from tests.fabric.forward.test_dataplane import PORTS, Make, PlaneNode, collect, tap_into
from tests.fabric.forward.test_dataplane import make_node as make_node
from tests.fabric.forward.test_dataplane import namespace as namespace
from tests.tun.conftest import Namespace

pytestmark = pytest.mark.root


def state(node: PlaneNode, other: int, form: str | None) -> ForwardingState:
    """`node`'s state with one peer of the type `form`."""
    own = node.plane.settings.encapsulation
    peer = make_peer(other, ip_address(f"127.0.0.{other}"), form, 1450, own or form or "")
    return replace(node.state(), peers=(peer,))


def exchange(namespace: Namespace, first: int, count: int = 16) -> None:
    """Packets both ways, every one of which has to arrive."""
    with ExitStack() as stack:
        one, two = tap_into(stack, namespace, "fab1"), tap_into(stack, namespace, "fab2")
        for near, far, source, to in ((one, two, 1, 2), (two, one, 2, 1)):
            packets = [udp4(address4(source, 5), address4(to, 6), sport=first + i) for i in range(count)]
            for packet in packets:
                near.inject(packet)
            assert sorted(collect(far, count)) == sorted(packets)


@contextmanager
def held(namespace: Namespace, address: str, port: int) -> Iterator[None]:
    with namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as holder:
        holder.bind((address, port))
        yield


@pytest.mark.parametrize("workers", [1, 2])
def test_nodes_of_different_types_talk_once_both_formats_are_open(
    namespace: Namespace, make_node: Make, workers: int
) -> None:
    """Node 1 is of type vxlan, node 2 of type udp: each is sent its own format."""
    a, b = make_node(1, workers=workers), make_node(2, workers=workers, encapsulation="udp")
    a.start()
    b.start()
    a.plane.apply(state(a, 2, "udp"))
    b.plane.apply(state(b, 1, "vxlan"))
    assert namespace.run(partial(a.plane.require, {"vxlan", "udp"})) == {}
    assert namespace.run(partial(b.plane.require, {"vxlan", "udp"})) == {}
    assert (a.plane.status()["formats"], b.plane.status()["formats"]) == (["vxlan", "udp"], ["udp", "vxlan"])
    exchange(namespace, 1000)
    counters = a.plane.counters(), b.plane.counters()
    assert not any(value for counter in counters for name, value in counter.items() if name.startswith("drop_"))
    a.plane.apply(state(a, 2, "vxlan"))  # the peer changed its type
    b.plane.apply(state(b, 1, "vxlan"))
    exchange(namespace, 2000)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_held_port_costs_the_format_and_not_the_node(
    namespace: Namespace, make_node: Make, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    a, b = make_node(1, workers=workers), make_node(2, workers=workers)
    a.start(2)
    b.start(1)
    with held(namespace, "127.0.0.1", PORTS["udp"]), caplog.at_level(logging.WARNING):
        for _ in range(3):
            (reason,) = namespace.run(partial(a.plane.require, {"vxlan", "udp"})).values()
            assert reason.startswith(f"cannot bind UDP 127.0.0.1 port 8285: held by process {os.getpid()} ")
        assert a.plane.status()["formats"] == ["vxlan"]
        exchange(namespace, 1000)
    assert len([record for record in caplog.records if "need the udp format" in record.getMessage()]) == 1
    assert namespace.run(partial(a.plane.require, {"vxlan", "udp"})) == {}
    assert a.plane.status()["formats"] == ["vxlan", "udp"]
    exchange(namespace, 2000)


def test_without_a_format_of_our_own_nothing_has_to_open(namespace: Namespace, make_node: Make) -> None:
    """A host-gw node that has to reach a vxlan peer from user space, while something else holds the udp port."""
    with held(namespace, "127.0.0.1", PORTS["udp"]):
        a, b = make_node(1, encapsulation=None), make_node(2)
        namespace.run(a.plane.open)
        assert namespace.command("ss", "-Hlun", "sport", "=", "8472").strip() == ""
        assert set(namespace.run(partial(a.plane.require, {"vxlan", "udp"}))) == {"udp"}
        namespace.run(a.plane.create_node_port)
        a.plane.apply(state(a, 2, "vxlan"))
        a.plane.start()
        b.start(1)
        exchange(namespace, 1000)
        assert a.plane.status()["formats"] == ["vxlan"]


def test_our_own_format_has_to_open(namespace: Namespace, make_node: Make) -> None:
    with held(namespace, "127.0.0.1", PORTS["vxlan"]), pytest.raises(DataplaneError, match="port 8472: held by"):
        namespace.run(make_node(1).plane.open)


def test_the_udp_format_is_for_ipv4(namespace: Namespace, make_node: Make) -> None:
    namespace.run(lambda: Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0"))
    both = make_node(1, underlay=(ip_address("127.0.0.1"), ip_address("::1")))
    both.start()
    assert namespace.run(partial(both.plane.require, {"udp"})) == {}
    assert "[::1]:8285" not in namespace.command("ss", "-Hlun")
    six = make_node(3, underlay=(ip_address("::1"),), device="fab3")
    both.plane.stop()
    namespace.run(six.plane.open)
    lost = namespace.run(partial(six.plane.require, {"udp"}))
    assert lost == {"udp": "the udp format needs an IPv4 underlay address"}


@pytest.mark.parametrize("workers", [1, 2])
def test_both_formats_go_over_to_another_address(namespace: Namespace, make_node: Make, workers: int) -> None:
    a, b = make_node(1, workers=workers), make_node(2, workers=workers, encapsulation="udp")
    for node, peer in ((a, state(a, 2, "udp")), (b, state(b, 1, "vxlan"))):
        node.start()
        node.plane.apply(peer)
        namespace.run(partial(node.plane.require, {"vxlan", "udp"}))
    exchange(namespace, 1000)
    open_before = len(os.listdir("/proc/self/fd"))
    moved = IPv4Address("127.0.0.11")
    namespace.run(partial(a.plane.rebind, (moved,), 1450, "lo"))
    old = a.state().vteps[0]
    a.plane.apply(replace(state(a, 2, "udp"), vteps=(replace(old, underlay=moved),)))
    b.plane.apply(replace(state(b, 1, "vxlan"), peers=(replace(state(b, 1, "vxlan").peers[0], underlay=moved),)))
    exchange(namespace, 2000)
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert "127.0.0.1:8" not in namespace.command("ss", "-Hlun")


def test_a_further_format_without_a_place_on_the_new_address_is_lost_alone(
    namespace: Namespace, make_node: Make
) -> None:
    a, b = make_node(1), make_node(2)
    a.start(2)
    b.start(1)
    namespace.run(partial(a.plane.require, {"udp"}))
    with held(namespace, "127.0.0.11", PORTS["udp"]):
        namespace.run(partial(a.plane.rebind, (IPv4Address("127.0.0.11"),), 1450, "lo"))
        assert a.plane.status()["formats"] == ["vxlan"]
        assert set(namespace.run(partial(a.plane.require, {"udp"}))) == {"udp"}
    assert namespace.run(partial(a.plane.require, {"udp"})) == {}


def test_stop_closes_every_format(namespace: Namespace, make_node: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for workers, encapsulation in itertools.product((1, 2), ("vxlan", "udp", None)):
        node = make_node(1, workers=workers, encapsulation=encapsulation)
        namespace.run(node.plane.open)
        namespace.run(partial(node.plane.require, {"vxlan", "udp"}))
        node.plane.stop()
    assert namespace.command("ss", "-Hlun").strip() == ""
    assert len(os.listdir("/proc/self/fd")) <= before
