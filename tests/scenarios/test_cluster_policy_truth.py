"""ClusterNetworkPolicy's conformance sub-tests with real packets: five namespaces with one pod on each of two nodes.

The pods of the fifth are in the host's network: they are their nodes, with the nodes' namespaces and addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric.lab import Node
from fabric.policy import Pod
from tests.policy_truth import cluster as suite
from tests.policy_truth.test_cluster import NODES, PORTS, Play, pods
from tests.scenarios.policy_ground import Ground, manifest, pod_manifest, prepared
from tests.scenarios.policy_probes import Pods

pytestmark = [pytest.mark.root, pytest.mark.slow]
TABLE = pods()
TCP, UDP = (80, 8080, 36363, 36364), (53, 5353, 34346, 34347)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    # As in a cluster, a pod reaches another node by its own node's address: answers come back by the way they went.
    with prepared(tmp_path_factory.mktemp("policies"), Pods(TCP, UDP), words=("--ip-masq",)) as made:
        made.write(around(made, Play(suite.GROUPS[0], 4)))
        for name, pod in TABLE.items():
            if pod.host_network:
                made.pods.add(name, node_of(made, pod).netns, dict(zip((4, 6), addresses(made, pod), strict=True)))
            else:
                made.plug(name, "/".join(pod.key), map(str, pod.addresses))
        made.wait()
        yield made


def node_of(ground: Ground, pod: Pod) -> Node:
    """The node of the lab that is the suite's `n1` or `n2`."""
    return ground.lab.nodes[[node.name for node in NODES].index(pod.node)]


def addresses(ground: Ground, pod: Pod) -> list[str]:
    node = node_of(ground, pod)
    return [node.underlay_ip, node.underlay_ip6] if pod.host_network else [str(address) for address in pod.addresses]


def around(ground: Ground, play: Play) -> list[dict[str, Any]]:
    """Namespaces, nodes and pods."""
    found = [manifest("v1", "Namespace", item.name, labels=dict(item.labels)) for item in play.namespaces()]
    found += [manifest("v1", "Node", node.name, labels=dict(NODES[0].labels)) for node in ground.lab.nodes]
    for pod in TABLE.values():
        made = pod_manifest("/".join(pod.key), pod.labels, addresses(ground, pod), {} if pod.host_network else PORTS)
        made["spec"] |= {"hostNetwork": pod.host_network, "nodeName": node_of(ground, pod).name}
        found.append(made)
    return found


def probe(text: str) -> tuple[tuple[str, str, str, int], bool]:
    ends, traffic, verdict = text.split()
    source, _, destination = ends.partition(">")
    protocol, _, port = traffic.partition("/")
    return (source, destination, protocol.upper(), int(port)), verdict == "yes"


@pytest.mark.parametrize("group", suite.GROUPS, ids=lambda group: group.name)
def test_sub_tests(ground: Ground, group: suite.Group, subtests: Any) -> None:
    play = Play(group, 4)
    ground.write([*around(ground, play), *play.objects])
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
                ground.write([*around(ground, play), *play.objects])
            settle(ground, asked)


def settle(ground: Ground, asked: dict[tuple[str, str, str, int], bool]) -> None:
    if asked:
        ground.wait()
        ground.check(asked)
