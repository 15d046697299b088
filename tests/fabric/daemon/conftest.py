"""What more than one module needs: the API server, and two nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver.fixtures import api, cluster_etcd, make_api  # noqa: F401
from tests.fabric.daemon.nodes import TestNode, connect


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[TestNode, TestNode]]:
    made: list[TestNode] = []
    try:
        made = [TestNode(tmp_path, 1)]
        made.append(TestNode(tmp_path, 2))
        connect(*made)
        yield made[0], made[1]
    finally:
        for node in made:
            node.remove()
