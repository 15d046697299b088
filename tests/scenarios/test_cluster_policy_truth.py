"""ClusterNetworkPolicy's conformance sub-tests with real packets: four namespaces with one pod on each of two nodes.

Not the five about nodes: pods in the host's network are not the lab's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.policy_truth import cluster as suite
from tests.policy_truth.test_cluster import PORTS, Play, pods
from tests.scenarios.policy_ground import Ground, manifest, pod_manifest, prepared
from tests.scenarios.policy_probes import Pods

pytestmark = [pytest.mark.root, pytest.mark.slow]
TABLE = {name: pod for name, pod in pods().items() if not pod.host_network}
GROUPS = [group for group in suite.GROUPS if not group.name.endswith("nodes")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prepared(tmp_path_factory.mktemp("policies"), Pods((80, 8080), (53, 5353))) as made:
        made.write(around(Play(suite.GROUPS[0], 4)))
        for name, pod in TABLE.items():
            made.plug(name, "/".join(pod.key), map(str, pod.addresses))
        made.wait()
        yield made


def around(play: Play) -> list[dict[str, Any]]:
    """Namespaces and pods."""
    spaces = [manifest("v1", "Namespace", item.name, labels=dict(item.labels)) for item in play.namespaces()]
    return spaces + [
        pod_manifest("/".join(pod.key), pod.labels, map(str, pod.addresses), PORTS) for pod in TABLE.values()
    ]


def probe(text: str) -> tuple[tuple[str, str, str, int], bool]:
    ends, traffic, verdict = text.split()
    source, _, destination = ends.partition(">")
    protocol, _, port = traffic.partition("/")
    return (source, destination, protocol.upper(), int(port)), verdict == "yes"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_sub_tests(ground: Ground, group: suite.Group, subtests: Any) -> None:
    play = Play(group, 4)
    ground.write([*around(play), *play.objects])
    for name, line in group.lines:
        with subtests.test(name):
            asked: dict[tuple[str, str, str, int], bool] = {}
            for step in line.split("; "):
                if ">" in step:
                    cell, passes = probe(step)
                    asked[cell] = passes
                    continue
                settle(ground, asked)
                asked = {}
                play.change(*step.split())
                ground.write([*around(play), *play.objects])
            settle(ground, asked)


def settle(ground: Ground, asked: dict[tuple[str, str, str, int], bool]) -> None:
    if asked:
        ground.wait()
        ground.check(asked)
