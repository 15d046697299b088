"""Fixtures for tests that need a Kubernetes API: imported by the conftest of their directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver.process import ApiServer, running
from tests.fabric.store import etcd_server
from tests.fabric.store.etcd_server import EtcdServer

MakeServer = Callable[..., ApiServer]


@pytest.fixture(scope="module")
def cluster_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """The etcd behind the API servers of one test module."""
    with etcd_server.running(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def make_api(cluster_etcd: EtcdServer, tmp_path: Path) -> Iterator[MakeServer]:
    """API servers with flags of the test's choice, over an empty etcd."""
    cluster_etcd.ctl("del", "/registry/", "--prefix")
    with ExitStack() as stack:
        number = iter(range(100))

        def make(*flags: str, **options: Any) -> ApiServer:
            directory = tmp_path / f"api{next(number)}"
            return stack.enter_context(running(directory, cluster_etcd, *flags, **options))

        yield make


@pytest.fixture
def api(make_api: MakeServer) -> ApiServer:
    """One API server without flags."""
    return make_api()
