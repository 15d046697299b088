"""Fragments and headers that hide what they are: nothing forbidden arrives (R18), and what may arrive does, whole.

The victim is closed but for one port. It has no server: raw sockets get whatever its kernel makes of what came in, and
a packet socket every single packet. The last datagram of a case goes to the open port: when it is there, all that was
sent before it has been decided about.

By default between nodes; with EVASION=all on one node as well (about four minutes in all).
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from fabric.lab import Lab, Pod, measure
from tests.scenarios import evasions, evasions_both, inside
from tests.scenarios.evasions_both import Try
from tests.scenarios.policy_lab import PolicyLab, pod_object
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
ATTACKER = "node1-pod1"
PLACES = {"across": "node2-pod1"} | ({"same-node": "node1-pod2"} if os.environ.get("EVASION") == "all" else {})
VICTIMS = pytest.mark.parametrize("victim", list(PLACES.values()), ids=list(PLACES))
OPEN, CLOSED = 7000, 7001
PROTOCOLS = (1, 6, 17, 33, 50, 132, 136, 253)
END = b"the-end-of-the-case"
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
PACKET_OUTGOING = 4
SIZES = (1473, 4000, 20_000, 65_000)
# The lot of a first fragment is remembered for 30 s by its identification: no two tries may share one.
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def policed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyLab]:
    policies = tmp_path_factory.mktemp("policies")
    lab = Lab(nodes=2, pods=2, pod_kind="tun", ipv6=True, mode="veth", daemon_args=(f"--policy-dir={policies}",))
    with lab:
        made = PolicyLab(lab, policies)
        made.write("pods.yaml", *(pod_object(pod, (4, 6)) for pod in lab.pods))
        yield made
        assert lab.dead_daemons() == []


def only_open() -> dict[str, Any]:
    """Every pod takes one port of UDP and TCP only; nothing is said about what it sends."""
    ports = [{"port": OPEN, "protocol": protocol} for protocol in ("UDP", "TCP")]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "one"}, "spec": spec}


def open_all(policed: PolicyLab) -> None:
    if (policed.policies / "one.yaml").exists():
        policed.remove("one.yaml")


@pytest.fixture
def closed(policed: PolicyLab) -> PolicyLab:
    if not (policed.policies / "one.yaml").exists():
        policed.write("one.yaml", only_open())
    return policed


class Watch:
    """What comes into a pod: packets as they are, and what its kernel makes of them for its sockets."""

    def __init__(self, pod: Pod) -> None:
        self._stack = ExitStack()
        self._packets = self._open(pod, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        inside.call(pod.netns, lambda: self._packets.bind(("eth0", 3)))
        self._raw = {
            (family, protocol): self._open(pod, domain, socket.SOCK_RAW, protocol)
            for family, domain in ((4, socket.AF_INET), (6, socket.AF_INET6))
            for protocol in (*PROTOCOLS, 58)
        }
        self.packets: list[bytes] = []
        self.messages: list[tuple[int, int, bytes]] = []

    def _open(self, pod: Pod, family: int, kind: int, protocol: int) -> socket.socket:
        made = self._stack.enter_context(inside.open_socket(pod.netns, family, kind, protocol))
        made.setsockopt(socket.SOL_SOCKET, inside.SO_RCVBUFFORCE, 8 << 20)
        made.setblocking(False)
        return made

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ended(self) -> bool:
        """Take what there is; whether the last datagram was there."""
        for (family, protocol), sock in self._raw.items():
            for message, _ in each(sock):
                body = message[(message[0] & 15) * 4 :] if family == 4 else message
                self.messages.append((family, protocol, body))
        for packet, (_, _, kind, *_rest) in each(self._packets):
            if kind != PACKET_OUTGOING:
                self.packets.append(packet)
        return any(END in body for _, _, body in self.messages)

    def forbidden(self) -> list[str]:
        """What a socket got and should not have."""
        return [
            f"IPv{family} protocol {protocol}: {body[:16].hex()}"
            for family, protocol, body in self.messages
            if protocol not in (6, 17) or int.from_bytes(body[2:4]) != OPEN
        ]


def each(sock: socket.socket) -> Iterator[tuple[bytes, Any]]:
    while True:
        try:
            yield sock.recvfrom(70_000)
        except BlockingIOError:
            return


class Attacker:
    """Sends packets as they are from a pod."""

    def __init__(self, pod: Pod, victim: Pod) -> None:
        self.pod, self.victim = pod, victim
        self._sock = inside.open_socket(pod.netns, socket.AF_PACKET, socket.SOCK_DGRAM)

    def close(self) -> None:
        self._sock.close()

    def ends(self, family: int) -> Try:
        """A new try, unlike the last one in its ports and identification."""
        source, target = (measure.address(pod, family) for pod in (self.pod, self.victim))
        return Try(source, target, OPEN, CLOSED, next(NUMBERS))

    def run(self, family: int, packets: list[bytes]) -> Watch:
        with Watch(self.victim) as watch:
            for packet in packets:
                self._send(family, packet)
            # By the same way as fragments, which has no ports.
            t = self.ends(family)
            for packet in t.pieces(t.datagram(OPEN, 48, END + bytes(64)), 32):
                self._send(family, packet)
            wait_for(watch.ended, "the last datagram of the case", 2)
        return watch

    def _send(self, family: int, packet: bytes) -> None:
        self._sock.sendto(packet, ("eth0", ETHERTYPES[family]))


@pytest.fixture
def attacker(closed: PolicyLab, victim: str) -> Iterator[Attacker]:
    made = Attacker(closed.lab.pod(ATTACKER), closed.lab.pod(victim))
    yield made
    made.close()


def assert_nothing(watch: Watch) -> None:
    assert watch.forbidden() == []
    assert [packet.hex() for packet in watch.packets if b"LEAK" in packet] == []
    assert len(watch.packets) == 2, "more than the last datagram"


@VICTIMS
@pytest.mark.parametrize("kind", ["icmp", "udp"])
@pytest.mark.parametrize("name", evasions.CAPTURES)
def test_capture(attacker: Attacker, name: str, kind: str) -> None:
    t = attacker.ends(6)
    attack = evasions.Attack(t.source, t.target, kind, CLOSED, t.number)
    assert_nothing(attacker.run(6, evasions.CAPTURES[name](attack)))


CASES = {
    4: evasions_both.BOTH | evasions_both.FOUR,
    6: evasions_both.BOTH | evasions_both.SIX,
}


@VICTIMS
@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in CASES.items() for name in cases])
def test_case(attacker: Attacker, family: int, name: str) -> None:
    assert_nothing(attacker.run(family, CASES[family][name](attacker.ends(family))))


SMUGGLED = {4: evasions_both.SMUGGLED, 6: evasions_both.SMUGGLED | evasions_both.SMUGGLED_SIX}


@VICTIMS
@pytest.mark.parametrize(("family", "name"), [(family, name) for family, cases in SMUGGLED.items() for name in cases])
def test_smuggled(attacker: Attacker, family: int, name: str) -> None:
    """What begins with something allowed: packets arrive, but no socket of another port gets anything."""
    watch = attacker.run(family, SMUGGLED[family][name](attacker.ends(family)))
    assert watch.forbidden() == []


def honest(t: Attacker, family: int, size: int, count: int = 1) -> tuple[list[bytes], list[list[bytes]]]:
    """Datagrams to the open port, and the fragments of each."""
    rng = random.Random(size)
    made = [t.ends(family) for _ in range(count)]
    messages = [each.datagram(OPEN, size, rng.randbytes(1000)) for each in made]
    return messages, [each.pieces(message, 1360) for each, message in zip(made, messages, strict=True)]


def assert_whole(watch: Watch, family: int, messages: list[bytes]) -> None:
    arrived = {body for at, protocol, body in watch.messages if (at, protocol) == (family, 17)}
    lost = [message for message in messages if message not in arrived]
    assert lost == [], f"{len(lost)} of {len(messages)} datagrams of {len(messages[0])} bytes"


@VICTIMS
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["in order", "interleaved", "first one first", "backwards", "shuffled"])
def test_honest_fragments_reach_a_closed_pod(attacker: Attacker, order: str, family: int, size: int) -> None:
    """All of them and every byte: those that overtake the first one wait for it."""
    messages, pieces = honest(attacker, family, size, 4 if order == "interleaved" else 1)
    packets = [piece for turn in zip(*pieces, strict=True) for piece in turn]
    if order == "first one first":
        packets[1:] = packets[:0:-1]
    assert_whole(attacker.run(family, in_this(order, size, packets)), family, messages)


def in_this(order: str, seed: int, packets: list[bytes]) -> list[bytes]:
    if order == "backwards":
        return packets[::-1]
    return random.Random(seed).sample(packets, len(packets)) if order == "shuffled" else packets


@VICTIMS
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("order", ["backwards", "shuffled"])
def test_a_large_datagram_to_a_closed_port(attacker: Attacker, order: str, family: int) -> None:
    t = attacker.ends(family)
    assert_nothing(attacker.run(family, in_this(order, 1, t.pieces(t.bad(SIZES[-1]), 1360))))


@VICTIMS
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["backwards", "shuffled"])
def test_honest_fragments_in_any_order(policed: PolicyLab, victim: str, order: str, family: int, size: int) -> None:
    """Where no policy has to know ports, none has to wait for another."""
    open_all(policed)
    with closing(Attacker(policed.lab.pod(ATTACKER), policed.lab.pod(victim))) as sender:
        messages, pieces = honest(sender, family, size)
        assert_whole(sender.run(family, in_this(order, size, pieces[0])), family, messages)


# Of the captures, whichever protocol they carry. From most of the others Linux puts nothing together.
REACHING = {"atomic-fragments-toobig", *(f"malformed-fragments-{number}" for number in (1, 2, 3, 9, 18))}


@VICTIMS
@pytest.mark.parametrize("kind", ["icmp", "udp"])
def test_what_is_attacked_with_would_arrive(policed: PolicyLab, victim: str, kind: str) -> None:
    """Without a policy: the attacks are well made, and `Watch` sees what they deliver."""
    open_all(policed)
    with closing(Attacker(policed.lab.pod(ATTACKER), policed.lab.pod(victim))) as sender:
        reached = set()
        for name, case in evasions.CAPTURES.items():
            t = sender.ends(6)
            watch = sender.run(6, case(evasions.Attack(t.source, t.target, kind, CLOSED, t.number)))
            if any(b"LEAK" in body for _, _, body in watch.messages):
                reached.add(name)
        assert reached >= REACHING
