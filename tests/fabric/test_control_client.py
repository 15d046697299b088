"""The asking side of the control socket: several answers on one connection, and one line for everything that fails."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric.control_client import ControlClient, DaemonGoneError, DaemonRefusedError, DaemonUnavailableError


@contextmanager
def serving(directory: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """A socket that gives these answers, one to each request of one connection; the requests."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "fabricd.sock"))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, client.makefile("rb") as lines:
                for answer in answers:
                    asked.append(lines.readline())
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


def test_several_questions_on_one_connection(tmp_path: Path) -> None:
    long = b'{"result":"' + b"x" * 200_000 + b'"}\n'
    answers = b'{"result":1}\n', b'{"error":"no port x"}\n', long
    with serving(tmp_path, *answers) as asked, ControlClient(str(tmp_path)) as client:
        assert client.ask("status") == 1
        with pytest.raises(DaemonRefusedError, match=r"^no port x$"):
            client.ask("port.delete", {"name": "x"})
        assert client.ask("status") == "x" * 200_000
    assert asked[1] == b'{"method": "port.delete", "params": {"name": "x"}}\n'


@pytest.mark.parametrize("answer", [b"rubbish\n", b"[]\n", b"{}\n", b"3\n", b"", b'{"result"'])
def test_no_proper_answer(tmp_path: Path, answer: bytes) -> None:
    with serving(tmp_path, answer), ControlClient(str(tmp_path)) as client:
        with pytest.raises(DaemonUnavailableError, match=r"another version|without an answer") as caught:
            client.ask("status")
        assert "\n" not in str(caught.value)


def test_nobody_there(tmp_path: Path) -> None:
    with ControlClient(str(tmp_path)) as client, pytest.raises(DaemonGoneError, match="does not exist"):
        client.ask("status")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fabricd.sock"))
    with ControlClient(str(tmp_path)) as client, pytest.raises(DaemonGoneError, match="nobody answers"):
        client.ask("status")


def test_somebody_who_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fabricd.sock"))
        listener.listen()
        with (
            ControlClient(str(tmp_path), timeout=0.05) as client,
            pytest.raises(DaemonUnavailableError, match=r"within 0\.05 s") as caught,
        ):
            client.ask("status")
        assert not isinstance(caught.value, DaemonGoneError)
