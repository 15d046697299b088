"""Hosts of the plugin's tests: one for each module and kind of host, since making one takes a moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fabric.cni.host import GC_KEY, DaemonHost, Host, a_daemon_host, a_host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host without a daemon: kinds `veth` and `bridge` need none."""
    with a_host(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture(scope="module")
def daemon_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHost]:
    """A host with the real daemon."""
    with a_daemon_host(tmp_path_factory.mktemp("node")) as made:
        yield made


@pytest.fixture
def nothing_left(host: Host) -> Iterator[None]:
    """Each test ends with every pod deleted; then nothing of them may be left on the host."""
    yield
    assert (host.records(), host.reserved(), host.routes(), host.routes(6)) == (set(), set(), set(), set())
    assert {name for name in host.links() if name.startswith("veth")} == set()
    assert host.call("GC", host.conf("veth", **{GC_KEY: []})) == (0, None, "")
