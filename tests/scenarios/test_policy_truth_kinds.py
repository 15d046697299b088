"""A choice of the truth tables with pods in bridges, on pairs and on TUN ports beside each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.policy_truth import cyclonus, e2e
from tests.policy_truth.runner import World
from tests.scenarios.policy_ground import Ground, prepared
from tests.scenarios.policy_probes import Pods
from tests.scenarios.test_policy_truth import play, show

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    policies = tmp_path_factory.mktemp("policies")
    with prepared(policies, Pods((80, 81), (80, 81)), ("bridge", "bridge", "veth", "tun")) as made:
        show(made, World(cyclonus.ADDRESSES, cyclonus.PODS, cyclonus.NAMESPACES))
        yield made


@pytest.mark.parametrize("case", e2e.CASES[::6], ids=lambda case: case[0])
def test_kubernetes_case(ground: Ground, case: e2e.Case) -> None:
    play(ground, case)
