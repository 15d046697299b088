"""What the service manager is told, by a watchdog whose data path and clock are given."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from fabric.daemon.watchdog import LATE_SECONDS, Watchdog
from fabric.model import DataplaneSettings
from tests.fabric.fakes import FakeDataplane, Journal


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        yield sock


class Watched:
    """A watchdog with its surroundings: `late` seconds, and what the service manager was told."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.late = 0.0
        self.gave_up: list[str] = []
        self.dataplane = FakeDataplane(Journal(), cast(DataplaneSettings, None))
        self.watchdog = Watchdog(self.dataplane, lambda: self.late, self.gave_up.append)

    def told(self) -> bool:
        self.watchdog.look()
        try:
            return self.listener.recv(100, socket.MSG_DONTWAIT) == b"WATCHDOG=1"
        except BlockingIOError:
            return False


@pytest.fixture
def watched(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    return Watched(listener)


def test_the_service_manager_is_told_only_while_everything_gets_ahead(watched: Watched) -> None:
    assert [watched.told() for _ in range(3)] == [True] * 3
    watched.dataplane.hanging = {"egress"}
    assert [watched.told() for _ in range(2)] == [True, False], "the second beat is the same"
    watched.dataplane.hanging = set()
    assert watched.told()
    watched.late = LATE_SECONDS + 1
    assert not watched.told()
    watched.late = 1.0
    assert watched.told()
    assert watched.gave_up == []


def test_a_dead_thread_is_given_up(watched: Watched) -> None:
    watched.dataplane.threads["ingress"] = False
    assert not watched.told()
    assert watched.gave_up == ["data-path thread ingress"]


def test_nobody_is_woken_without_a_service_manager(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    alone = Watched(listener)
    assert not alone.told()
    assert alone.dataplane.beaten == 0
