"""The egress thread serves both directions while traffic is sparse, and hands the sockets back under load."""

from __future__ import annotations

import socket
import struct

import pytest

from encap.sockets import open_receive_socket
from tests.fabric.forward.conftest import Pair
from tests.fabric.forward.harness import Node, RawPeer, wait_for
from tests.fabric.forward.packets import make

ROUNDS = 40  # more than the calm turns that it takes
TRAIN = 32
UDP_SEGMENT = 103


def ping_pong(pair: Pair, rounds: int = ROUNDS) -> None:
    """One packet in flight, pod to pod and back; every one arrives."""
    for number in range(rounds):
        pair.pod_a.peer.inject(make(4, (1, 10), (2, 10), number.to_bytes(2, "big")))
        assert pair.pod_b.take()[1][-2:] == number.to_bytes(2, "big")
        pair.pod_b.peer.inject(make(4, (2, 10), (1, 10), number.to_bytes(2, "big")))
        assert pair.pod_a.take()[1][-2:] == number.to_bytes(2, "big")


def is_joint(node: Node, raw: RawPeer) -> bool:
    """Whether the next datagram is received by the egress thread."""
    before = node.count("joint_turns")
    received = node.count("receive_datagrams")
    raw.send_inner(node, make(4, (3, 9), (node.number, 10), b"probe"))
    wait_for(lambda: node.count("receive_datagrams") > received)
    return node.count("joint_turns") > before


def train(pair: Pair) -> None:
    """Many datagrams at once, which reach node 2 in one turn."""
    packet = pair.raw.wrap(pair.b, make(4, (3, 9), (2, 10), b"train"))
    received = pair.b.count("receive_datagrams")
    segment_size = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(packet)))]
    pair.raw.socket.sendmsg([packet * TRAIN], segment_size, 0, (str(pair.b.address), pair.raw.port))
    wait_for(lambda: pair.b.count("receive_datagrams") == received + TRAIN)
    pair.pod_b.take_all()


def test_sparse_traffic_is_one_threads_and_load_is_not(pair: Pair) -> None:
    ping_pong(pair)
    assert is_joint(pair.b, pair.raw)
    for _ in range(5):
        train(pair)
    assert not is_joint(pair.b, pair.raw)
    pair.pod_b.take_all()
    ping_pong(pair)
    assert is_joint(pair.b, pair.raw)


def test_a_socket_added_meanwhile_is_read(pair: Pair) -> None:
    ping_pong(pair)
    sock = open_receive_socket(pair.b.address, 0)
    pair.b.transmit_sockets.append(sock)  # closed with the node
    pair.b.worker.add_socket(sock.fileno(), "vxlan")
    payload = pair.raw.wrap(pair.b, make(4, (3, 9), (2, 10), b"other socket"))
    pair.raw.socket.sendto(payload, sock.getsockname()[:2])
    assert pair.pod_b.take()[1].endswith(b"other socket")
    ping_pong(pair)


@pytest.mark.parametrize("change", ["publish", "new port"])
def test_a_new_generation_takes_effect(pair: Pair, change: str) -> None:
    ping_pong(pair)
    late = pair.b.add_pod(11) if change == "new port" else None
    pair.fabric.publish()
    if late is not None:
        pair.pod_a.peer.inject(make(4, (1, 10), (2, 11), b"to the new port"))
        assert late.take()[1].endswith(b"to the new port")
    ping_pong(pair)
    assert is_joint(pair.b, pair.raw)
    wait_for(lambda: pair.b.worker.reap() == 0)
