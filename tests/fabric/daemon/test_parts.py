"""The small parts of the daemon: supervisor, run directory, control socket, logging, sd_notify, prerequisites."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fabric.daemon import logs, prerequisites, systemd
from fabric.daemon.control import MAX_FDS, MAX_LINE, ControlServer, Descriptors
from fabric.daemon.main import main
from fabric.daemon.run_dir import RunDir
from fabric.daemon.supervisor import Supervisor
from fabric.errors import FabricError, StartError
from tests.fabric.clock import eventually


def test_a_task_that_dies_is_started_again() -> None:
    async def body() -> None:
        runs = 0

        async def flaky() -> None:
            nonlocal runs
            runs += 1
            if runs < 3:
                raise RuntimeError("injected")
            await asyncio.Event().wait()

        supervisor = Supervisor()
        supervisor.start("flaky", flaky)
        await eventually(lambda: runs == 3, 1.0)
        assert supervisor.names() == {"flaky": True}
        await supervisor.stop()

    asyncio.run(body())


def test_a_crash_loop_gives_up() -> None:
    async def body() -> None:
        async def broken() -> None:
            raise RuntimeError("injected")

        supervisor = Supervisor(budget=2)
        supervisor.start("broken", broken)
        assert (await asyncio.wait_for(supervisor.failed(), 5)).startswith("task broken")
        await supervisor.stop()

    asyncio.run(body())


def test_a_task_that_swallows_a_cancel_does_not_hold_up_the_stop() -> None:
    async def body() -> None:
        swallowed = []

        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(True)
            await asyncio.Event().wait()

        supervisor = Supervisor()
        supervisor.start("stubborn", stubborn)
        await asyncio.sleep(0)
        await asyncio.wait_for(supervisor.stop(), 5)
        assert swallowed == [True]

    asyncio.run(body())


def test_one_daemon_per_run_directory(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "a" / "run"), RunDir(tmp_path / "a" / "run")
    first.acquire()
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o700
    with pytest.raises(StartError, match=rf"another fabricd \(pid {os.getpid()}\) runs with --run-dir"):
        second.acquire()
    second.release()
    assert (tmp_path / "a" / "run" / "fabricd.lock").exists()
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.acquire()
    second.release()


def test_a_stale_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "fabricd.lock").write_text("99999999\n")
    (tmp_path / "other").write_text("")
    directory = RunDir(tmp_path)
    directory.acquire()
    directory.release()
    directory.release()
    assert [item.name for item in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["x" * 120, "file/below"])
def test_a_run_directory_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="--run-dir") as error:
        RunDir(tmp_path / name).acquire()
    assert "\n" not in str(error.value)


Ask = Callable[[bytes], Awaitable[dict[str, object]]]


def with_server(path: Path, body: Callable[[Ask], Awaitable[None]]) -> None:
    async def later(params: dict[str, object], passed: Descriptors) -> object:
        await asyncio.sleep(0)
        return {"echo": params}

    def refuse(params: dict[str, object], passed: Descriptors) -> object:
        raise FabricError("not today")

    def crash(params: dict[str, object], passed: Descriptors) -> object:
        raise RuntimeError("secret detail")

    def one(params: dict[str, object], passed: Descriptors) -> object:
        return 1

    async def whole() -> None:
        server = ControlServer(path, {"echo": later, "refuse": refuse, "crash": crash, "one": one})
        await server.open()
        reader, writer = await asyncio.open_unix_connection(path)

        async def ask(line: bytes) -> dict[str, object]:
            writer.write(line + b"\n")
            answer: dict[str, object] = json.loads(await asyncio.wait_for(reader.readline(), 5) or b"{}")
            return answer

        try:
            await body(ask)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await server.close()
            await server.close()

    asyncio.run(whole())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"method":"one"}', {"result": 1}),
        (b'{"method":"echo","params":{"a":[1]}}', {"result": {"echo": {"a": [1]}}}),
        (b'{"method":"refuse"}', {"error": "not today"}),
        (b'{"method":"crash"}', {"error": "crash failed inside the daemon: see its log"}),
        (b'{"method":"none"}', {"error": "unknown method 'none': one of crash, echo, one, refuse"}),
        (b"rubbish", {"error": "the request is not valid JSON: Expecting value (line 1, column 1)"}),
        (b"[1]", {"error": 'a request is {"method": "NAME", "params": {…}}'}),
        (b'{"method":"one","params":[1]}', {"error": 'a request is {"method": "NAME", "params": {…}}'}),
        (b"[" * 5000, {"error": "the request is not valid JSON: nested deeper than 32"}),
    ],
)
def test_control_socket_answers(tmp_path: Path, line: bytes, answer: dict[str, object]) -> None:
    async def body(ask: Ask) -> None:
        assert await ask(line) == answer
        assert await ask(b'{"method":"one"}') == {"result": 1}

    with_server(tmp_path / "s.sock", body)


def test_control_socket_is_private_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("stale")

    async def body(ask: Ask) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    with_server(path, body)
    assert not path.exists()


def test_a_line_without_end_is_cut_off(tmp_path: Path) -> None:
    async def body(ask: Ask) -> None:
        with contextlib.suppress(ConnectionError):
            assert await ask(b"x" * (2 * MAX_LINE)) == {}

    with_server(tmp_path / "s.sock", body)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("method", ["keep", "leave", "unknown"])
def test_descriptors_belong_to_their_request_and_what_nobody_takes_is_closed(tmp_path: Path, method: str) -> None:
    got: list[int] = []

    def keep(params: dict[str, object], passed: Descriptors) -> object:
        got.extend(passed.take())
        return len(got)

    async def whole() -> None:
        server = ControlServer(tmp_path / "s.sock", {"keep": keep, "leave": lambda params, passed: len(passed)})
        await server.open()
        with socket.socket(socket.AF_UNIX) as client, socket.socket() as file:
            client.connect(str(tmp_path / "s.sock"))
            client.settimeout(5)
            before = open_files()
            text = json.dumps({"method": method}).encode() + b"\n"
            for part in (text[:3], text[3:]):  # those of a request that comes in two pieces add up
                socket.send_fds(client, [part], [file.fileno()])
                await asyncio.sleep(0)
            answer = json.loads(await asyncio.to_thread(client.recv, 1000))
            assert "error" in answer if method == "unknown" else answer == {"result": 2}
            assert all(os.get_inheritable(fd) is False for fd in got)
            await eventually(lambda: open_files() == before + 1 + len(got))  # and the server's end of the connection
            socket.send_fds(client, [b"no end"], [file.fileno()] * MAX_FDS)
            socket.send_fds(client, [b"no end"], [file.fileno()] * MAX_FDS)
            assert await asyncio.to_thread(client.recv, 1000) == b"", "the connection is cut"
            await eventually(lambda: open_files() == before + len(got))
        await server.close()
        for fd in got:
            os.close(fd)

    asyncio.run(whole())


@pytest.fixture
def record() -> logging.LogRecord:
    return logging.LogRecord("fabric", logging.WARNING, "", 0, "two\nlines of %s", ("text",), None)


def test_a_message_is_one_line(record: logging.LogRecord) -> None:
    text = logs.TextFormatter().format(record)
    assert text.startswith("W ")
    assert text.endswith(" two\\nlines of text")
    found = json.loads(logs.JsonFormatter().format(record))
    assert (found["level"], found["message"]) == ("warning", "two\nlines of text")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_notify(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    systemd.notify("READY=1")
    assert listener.recv(100) == b"READY=1"
    for bad in ("", "relative", str(tmp_path / "nobody")):
        monkeypatch.setenv("NOTIFY_SOCKET", bad)
        systemd.notify("READY=1")


def test_a_refused_start_is_held_back_under_a_service_manager_only(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(systemd, "sleep", slept.append)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert main(["--run-dir"]) == 2
    monkeypatch.setenv("NOTIFY_SOCKET", "/nobody")
    assert main(["--run-dir"]) == 2
    assert main(["--version"]) == 0
    assert slept == [systemd.HOLD_BACK]


def test_privilege(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t0000000000001000\n")
    prerequisites.check_privilege(status)
    status.write_text("Name:\tx\nCapEff:\t0000000000000fff\n")
    with pytest.raises(StartError, match=r"no privilege to make network devices \(CAP_NET_ADMIN\)"):
        prerequisites.check_privilege(status)


def test_missing_tun(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="tun does not exist: load the module"):
        prerequisites.check_tun(tmp_path / "tun")
    with pytest.raises(StartError, match="cannot be opened: Is a directory"):
        prerequisites.check_tun(tmp_path)


@pytest.mark.parametrize("name", ["", "flannel.16777215", "a/b", "a b", ".", "ééééééééé", "a\n", "lo"])
def test_device_names(name: str) -> None:
    with pytest.raises(StartError, match="device"):
        prerequisites.check_device_name(name)
