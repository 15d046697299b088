"""A fabric per test: two nodes and a raw peer on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.fabric.forward.harness import Fabric, HarnessPort, Node, RawPeer
from tests.fabric.forward.managers import Manager


class Pair(NamedTuple):
    """Node 1 and node 2, a pod (host number 10) on each, raw peer 3."""

    fabric: Fabric
    a: Node
    b: Node
    pod_a: HarnessPort
    pod_b: HarnessPort
    raw: RawPeer


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    with Fabric() as made:
        yield made


@pytest.fixture
def pair(fabric: Fabric) -> Pair:
    a, b = fabric.add_node(1), fabric.add_node(2)
    made = Pair(fabric, a, b, a.add_pod(10), b.add_pod(10), fabric.add_raw_peer(3))
    fabric.publish()
    return made


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    for name in [*made.fds, *made.given]:
        made.drop(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made
