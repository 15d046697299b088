"""While the table is replaced under traffic no packet meets half of it: each new connection is masqueraded.

Every datagram is a connection of its own, because a translation once chosen stays with its connection.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from fabric.traffic import leftovers
from fabric.traffic.reconcile import Reconciler
from fabric.traffic.rules import TrafficState
from tests.fabric.traffic import flannel
from tests.fabric.traffic.flannel import NET4, POD4
from tests.fabric.traffic.sites import NODE, OUTSIDE, PODS, Site, site
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]

STATE = TrafficState((NET4,), (POD4,), ip_masq=True, forward=True)
PORT = 5000
REPLACEMENTS = 50
PERIOD_MS = 1


class Probes:
    """A pod that sends a datagram of a new connection every millisecond, and who arrives outside."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.sent = 0
        self.seen: list[str] = []
        self._stop = threading.Event()
        self._receiver = place.socket("outside", OUTSIDE[0])
        self._receiver.settimeout(0.05)
        self._target = self._receiver.getsockname()
        self._threads = [threading.Thread(target=each) for each in (self._receive, self._send_all)]

    def __enter__(self) -> Probes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._receiver.close()

    def _send_all(self) -> None:
        self.place.call("pod1", self._send)

    def _send(self) -> None:
        pause = select.poll()
        while not self._stop.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((PODS["pod1"][0], 0))
                sender.sendto(b"probe", self._target)
            self.sent += 1
            pause.poll(PERIOD_MS)

    def _receive(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self.seen.append(self._receiver.recvfrom(64)[1][0])


def test_from_flannel_to_us_and_back_under_traffic() -> None:
    with site() as place:
        node = place.names["node"]
        reconciler = Reconciler()

        def step(probes: Probes, change: Callable[[], object]) -> None:
            change()
            before = len(probes.seen)
            wait_for(lambda: len(probes.seen) > before + 10, "probes after the step")

        def ours(state: TrafficState) -> Callable[[], object]:
            return lambda: place.call("node", lambda: reconciler.look(state, 0.0, full=True))

        def remove_flannels() -> None:
            assert place.call("node", lambda: leftovers.remove(leftovers.find())) == []

        flannel.install(node, NET4, POD4)
        with Probes(place) as probes:
            step(probes, lambda: None)
            step(probes, ours(STATE))
            step(probes, remove_flannels)
            assert "FLANNEL" not in place.command("node", "iptables-save")
            step(probes, lambda: flannel.install(node, NET4, POD4))
            step(probes, ours(TrafficState()))
            assert "podfabric" not in place.command("node", "nft", "list", "ruleset")

        assert set(probes.seen) == {NODE[0]}


def test_fifty_replacements_under_traffic() -> None:
    with site() as place:
        reconciler = Reconciler()

        def apply(state: TrafficState) -> int:
            return len(place.call("node", lambda: reconciler.look(state, 0.0, full=False)).changes)

        assert apply(STATE)
        with Probes(place) as probes:
            wait_for(lambda: len(probes.seen) > 10, "the first probes")
            for number in range(REPLACEMENTS):
                before = len(probes.seen)
                assert apply(replace(STATE, random_fully=bool(number % 2)))
                wait_for(lambda before=before: len(probes.seen) > before, "a probe after the replacement")
            sent = probes.sent
            wait_for(lambda: len(probes.seen) >= sent, "every probe")

        assert set(probes.seen) == {NODE[0]}
        assert len(probes.seen) >= REPLACEMENTS
        print(f"{len(probes.seen)} connections during {REPLACEMENTS} replacements")
