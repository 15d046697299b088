"""Rare conditions that must neither stop nor burn a worker: no descriptors left, a busy TAP, a lying Ethernet type."""

from __future__ import annotations

import resource
import time

import pytest

from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import PLAIN, address4, address6, wait_for
from tests.fabric.forward.packets import superframe, udp4, udp6
from tests.fabric.forward.test_inject import Injecting, injecting, send  # noqa: F401 - fixture
from tests.tun.packets import TCP as TCP_NUMBER
from tests.tun.packets import naive_split


@pytest.mark.parametrize("family", [4, 6])
def test_ethernet_type_must_be_the_packets_own(pair: Pair, family: int) -> None:
    """Linux gives a frame to the protocol its Ethernet type names, which refuses the other version."""
    make, address = (udp4, address4) if family == 4 else (udp6, address6)
    packet = make(address(3, 5), address(2, 10))
    good = pair.raw.wrap(pair.b, packet)
    pair.raw.send(pair.b, good[:20] + (b"\x86\xdd" if family == 4 else b"\x08\0") + good[22:])
    pair.b.wait_drop("inner_version")
    pair.raw.send(pair.b, good)
    pair.pod_b.take()


def test_no_descriptor_for_a_new_port_set(pair: Pair) -> None:
    """The egress thread waits for one without using the processor, and goes on by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        pair.a.ports_version += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        pair.a.publish()
        start, wall = time.process_time(), time.monotonic()
        wait_for(lambda: time.monotonic() - wall > 0.5)
        assert time.process_time() - start < 0.25
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    packet = udp4(address4(1, 5), address4(2, 6))
    pair.a.host.peer.inject(packet)
    assert pair.b.host.take() == (PLAIN, packet)


def test_busy_tap_is_tried_again(injecting: Injecting) -> None:  # noqa: F811
    """A full queue is no reason to give up the TAP: this superframe is cut, the next one is written whole."""
    filler = 0
    try:
        while True:
            injecting.tap.send(bytes(60000))
            filler += 1
    except BlockingIOError:
        pass
    packet = superframe(4, TCP_NUMBER, 40000, (1, 5), (3, 6))
    send(injecting, packet, 1350)
    parts = naive_split(packet, 1350)
    assert [injecting.raw.receive()[22:] for _ in parts] == parts
    for _ in range(filler):
        injecting.far.recv(70000)
    send(injecting, packet, 1350)
    assert len(injecting.far.recv(70000)) > 40000
    wait_for(lambda: injecting.node.count("send_injected") == 1)
