"""The service manager's store of descriptors, with a socket of our own in the manager's place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from encap.sockets import is_receive_socket, open_receive_socket
from fabric.daemon import systemd
from fabric.forward import kept

LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def heard(manager: socket.socket) -> tuple[list[str], int]:
    """The next message's lines, and how many descriptors came along."""
    data, fds, _, _ = socket.recv_fds(manager, 4096, 255)
    for fd in fds:
        os.close(fd)
    return data.decode().split("\n"), len(fds)


def given(monkeypatch: pytest.MonkeyPatch, names: str, pid: int | None = None) -> list[int]:
    """Descriptors in a row, as systemd hands them over, and the variables about them."""
    count = len(names.split(":"))
    first = 900  # above what a long test run holds
    for number in range(first, first + count):
        reader, writer = os.pipe()
        os.dup2(reader, number)
        os.close(reader)
        os.close(writer)
    monkeypatch.setattr(systemd, "FIRST", first)
    monkeypatch.setenv("LISTEN_FDS", str(count))
    monkeypatch.setenv("LISTEN_FDNAMES", names)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() if pid is None else pid))
    return list(range(first, first + count))


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_what_was_kept_is_found_by_its_name_in_any_order(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = given(monkeypatch, "two:one:two")
    store = systemd.FdStore()
    assert "LISTEN_FDS" not in os.environ
    assert store.holds("two")
    assert store.take("two") == [fds[0], fds[2]]
    assert store.take("two") == []
    assert not os.get_inheritable(fds[0])
    store.drop_rest()
    assert heard(manager) == (["FDSTOREREMOVE=1", "FDNAME=one"], 0)
    assert [closed(fd) for fd in fds] == [False, True, False]
    for fd in (fds[0], fds[2]):
        os.close(fd)


@pytest.mark.parametrize("what", ["another process's", "a wrong number"])
def test_what_is_not_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    fds = given(monkeypatch, "one", pid=os.getpid() + 1 if what == "another process's" else None)
    if what == "a wrong number":
        monkeypatch.setenv("LISTEN_FDS", "7")
    store = systemd.FdStore()
    assert not store.holds("one")
    assert not closed(fds[0])
    os.close(fds[0])


def test_keeping(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never with polling: systemd would drop a socket after any ICMP error."""
    store = systemd.FdStore()
    store.keep("pod-1", [manager.fileno()] * 2)
    assert heard(manager) == (["FDSTORE=1", "FDNAME=pod-1", "FDPOLL=0"], 2)
    store.keep("many", [manager.fileno()] * (systemd.MOST + 1))
    assert [heard(manager)[1] for _ in range(2)] == [systemd.MOST, 1]
    store.drop("pod-1")
    assert heard(manager) == (["FDSTOREREMOVE=1", "FDNAME=pod-1"], 0)
    monkeypatch.delenv("NOTIFY_SOCKET")
    store.keep("pod-1", [manager.fileno()])  # nobody keeps anything


def test_the_barrier_waits_for_its_descriptor_to_be_closed(manager: socket.socket) -> None:
    from threading import Thread

    thread = Thread(target=systemd.barrier)
    thread.start()
    data, fds, _, _ = socket.recv_fds(manager, 100, 1)
    assert data == b"BARRIER=1"
    assert thread.is_alive()
    os.close(fds[0])
    thread.join(5)
    assert not thread.is_alive()


def test_names_are_what_systemd_takes() -> None:
    names = [kept.pod("cni/cbr0/a:b é\n/eth0"), kept.pod("\udce9"), kept.NODE,
             kept.receiver("vxlan", ip_address("2001:db8::1"), 8472, 1)]  # fmt: skip
    for name in names:
        assert len(name) < 256
        assert name.isascii()
        assert name.isprintable()
        assert ":" not in name
    assert kept.pod("a") != kept.pod("b")


def test_a_socket_of_an_earlier_run_is_known_again() -> None:
    with open_receive_socket(LOOPBACK, 0) as sock, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        port = sock.getsockname()[1]
        assert is_receive_socket(sock, LOOPBACK, port, shared=False)
        assert not is_receive_socket(sock, LOOPBACK, port, shared=True)
        assert not is_receive_socket(sock, LOOPBACK, port + 1, shared=False)
        assert not is_receive_socket(sock, ip_address("127.0.0.2"), port, shared=False)
        stream.bind(("127.0.0.1", 0))
        assert not is_receive_socket(stream, LOOPBACK, stream.getsockname()[1], shared=False)
