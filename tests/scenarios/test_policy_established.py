"""Connections of real stacks that a policy comes to refuse: kept, cut in silence, or cut with both ends told."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any

import pytest
import yaml

from fabric.lab import measure
from tests.scenarios import fabric_view, inside
from tests.scenarios.policy_lab import PolicyLab
from tests.scenarios.test_policy_enforced import (  # noqa: F401 - a fixture
    BACKENDS,
    CLIENT,
    FAMILIES,
    LOCAL,
    connected,
    dropping,
    isolate,
    peer,
    policed,
    refused,
)
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
ENDS = pytest.mark.parametrize("end", ["client", "server"])
"""Whose policy refuses."""
PROHIBITED = {4: errno.EHOSTUNREACH, 6: errno.EACCES}
"""What Linux makes of an ICMP error that says so."""


def refusing(end: str, backend: str, established: str) -> dict[str, Any]:
    """Nothing new from CLIENT to the backend."""
    found = isolate(CLIENT, egress=[]) if end == "client" else isolate(backend, ingress=[])
    return {**found, "metadata": {**found["metadata"], "annotations": {"podfabric.io/established": established}}}


def place(end: str, backend: str) -> tuple[str, str]:
    """The node that refuses, and its drop reason."""
    node = "node1" if end == "client" or backend == LOCAL else "node2"
    return node, "policy_egress" if end == "client" else "policy_ingress"


@contextmanager
def ends_of(policed: PolicyLab, backend: str, family: int) -> Iterator[Any]:  # noqa: F811
    """A TCP connection from CLIENT, both ends, and the address of the server."""
    pod = policed.lab.pod(backend)
    with ExitStack() as stack:
        stack.callback(policed.remove, "web.yaml")
        policed.write("web.yaml", isolate(backend, ingress=[{"from": peer(CLIENT)}]))
        server = stack.enter_context(inside.listen(pod.netns, measure.address(pod, family)))
        to = server.getsockname()[:2]
        out, accepted, _ = connected(stack, policed, to, server)
        yield out, accepted, to


@contextmanager
def datagrams(policed: PolicyLab, backend: str, family: int) -> Iterator[Any]:  # noqa: F811
    """The same by UDP, both ends connected."""
    client, server = policed.lab.pod(CLIENT), policed.lab.pod(backend)
    with (
        inside.open_udp(client.netns, measure.address(client, family)) as out,
        inside.open_udp(server.netns, measure.address(server, family)) as back,
    ):
        out.connect(back.getsockname()[:2])
        back.connect(out.getsockname()[:2])
        exchange(out, back)
        yield out, back


def exchange(out: socket.socket, back: socket.socket) -> None:
    for one, other in ((out, back), (back, out)):
        one.sendall(b"hello")
        assert other.recv(10) == b"hello"


def reset(sock: socket.socket) -> Callable[[], bool]:
    """Whether the socket has been reset: for `wait_for`."""
    return lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def standings(policed: PolicyLab, node: str, out: socket.socket, to: tuple[str, int]) -> set[str]:  # noqa: F811
    """Of the connection of `out` to `to`: others before it may have had the one port or the other."""
    words = ["--json", "--proto", "tcp"]
    found = json.loads(flows(policed, node, *words))["flows"]
    ports = (out.getsockname()[1], to[1])
    return {flow["standing"] for flow in found if (flow["sport"], flow["dport"]) == ports}


def flows(policed: PolicyLab, node: str, *words: str) -> str:  # noqa: F811
    from click.testing import CliRunner

    from fabric.cli.main import main

    run_dir = policed.lab.run_dir / node / "run"
    result = CliRunner().invoke(main, ["flows", *words, "--run-dir", str(run_dir)])
    assert result.exit_code == 0, result.output
    return result.stdout


@FAMILIES
@BACKENDS
@ENDS
def test_kept_connections_go_on(policed: PolicyLab, end: str, backend: str, family: int) -> None:  # noqa: F811
    node, reason = place(end, backend)
    with ends_of(policed, backend, family) as (out, accepted, to), datagrams(policed, backend, family) as udp:
        exchange(out, accepted)
        for _ in range(2):
            policed.write("web.yaml", refusing(end, backend, "keep"), isolate("nobody", ingress=[]))
            exchange(out, accepted)
            exchange(*udp)
            policed.write("web.yaml", refusing(end, backend, "keep"))
        exchange(out, accepted)
        refused(policed, node, reason, to)
        assert standings(policed, node, out, to) == {"kept"}
        out.shutdown(socket.SHUT_WR)
        assert accepted.recv(10) == b""


@FAMILIES
@BACKENDS
@ENDS
@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_reaches_both_ends(
    policed: PolicyLab,  # noqa: F811
    end: str,
    backend: str,
    family: int,
    first: str,
) -> None:
    """Whoever speaks first after the change."""
    node, _ = place(end, backend)
    with ends_of(policed, backend, family) as (out, accepted, to):
        exchange(out, accepted)
        policed.write("web.yaml", refusing(end, backend, "reset"))
        (out if first == "client" else accepted).sendall(b"too late")
        for sock in (out, accepted):
            wait_for(reset(sock), "ECONNRESET")
        assert standings(policed, node, out, to) == {"reset"}


@FAMILIES
@BACKENDS
@ENDS
def test_a_transfer_is_reset_at_both_ends(policed: PolicyLab, end: str, backend: str, family: int) -> None:  # noqa: F811
    """In the middle of it: superframes, much under way, acknowledgments that are behind."""
    with ends_of(policed, backend, family) as (out, accepted, _):
        done: dict[str, int] = {}
        taken = [0]

        def send() -> None:
            try:
                while True:
                    out.sendall(bytes(1 << 18))
            except OSError as error:
                done["out"] = error.errno or 0

        def receive() -> None:
            try:
                while data := accepted.recv(1 << 18):
                    taken[0] += len(data)
            except OSError as error:
                done["accepted"] = error.errno or 0

        threads = [Thread(target=send), Thread(target=receive)]
        for thread in threads:
            thread.start()
        wait_for(lambda: taken[0] > 10 << 20, "a transfer under way")
        policed.write("web.yaml", refusing(end, backend, "reset"))
        for thread in threads:
            thread.join(20)
        assert done == {"out": errno.ECONNRESET, "accepted": errno.ECONNRESET}


@FAMILIES
@BACKENDS
@ENDS
def test_datagrams_are_answered_by_an_error(policed: PolicyLab, end: str, backend: str, family: int) -> None:  # noqa: F811
    """Each end that sends one is told."""
    with ends_of(policed, backend, family), datagrams(policed, backend, family) as both:
        policed.write("web.yaml", refusing(end, backend, "reset"))
        for sock in both:
            sock.sendall(b"too late")
            error = wait_for(lambda sock=sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "an error")
            assert error == PROHIBITED[family]


@FAMILIES
@BACKENDS
@ENDS
def test_by_default_a_cut_is_silent(policed: PolicyLab, end: str, backend: str, family: int) -> None:  # noqa: F811
    node, reason = place(end, backend)
    with ends_of(policed, backend, family) as (out, accepted, to), datagrams(policed, backend, family) as udp:
        exchange(out, accepted)
        policed.write("web.yaml", refusing(end, backend, "re-evaluate"))
        before = fabric_view.counters(policed.lab, node)["flow_answered"]
        with dropping(policed.lab, node, reason, 4):
            for sock in (out, accepted, *udp):
                sock.sendall(b"lost")
        for sock in (out, accepted, *udp):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert fabric_view.counters(policed.lab, node)["flow_answered"] == before
        assert standings(policed, node, out, to) == {"cut"}


@BACKENDS
def test_diff_says_what_would_become_of_them(policed: PolicyLab, backend: str, tmp_path: Any) -> None:  # noqa: F811
    node, _ = place("server", backend)
    with ends_of(policed, backend, 4) as (out, accepted, to):
        exchange(out, accepted)
        for choice, fate, code in (("keep", "kept", 0), ("reset", "reset", 3), ("re-evaluate", "cut", 3)):
            (tmp_path / "next.yaml").write_text(yaml.safe_dump(refusing("server", backend, choice)))
            done = policed.ctl(node, "diff", "-f", str(tmp_path / "next.yaml"), "--json")
            found = json.loads(done.stdout)
            mine = [item["fate"] for item in found["shown"] if item["port"] == to[1]]
            assert (mine, found["cut"] > 0) == ([fate], code == 3)
            assert done.returncode == code
