"""Two nodes with one --policy-dir, pods with the namespaces and addresses of a truth table, and probes between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from ipaddress import ip_address
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from fabric.lab import Lab
from fabric.lab.plan import PodKind
from tests.scenarios import fabric_view
from tests.scenarios.policy_probes import Cell, Pods
from tests.scenarios.waiting import wait_for

NODES = ("node1", "node2")
POLICY_DROPS = ("drop_policy_egress", "drop_policy_ingress")
OTHER_DROPS = ("drop_policy_unknown_pod", "drop_policy_missing", "drop_policy_fragment")


class Ground:
    """Pods are called by the names of their table; each is on the node in whose subnet its address lies. Their kinds
    are `kinds` in turn."""

    def __init__(self, lab: Lab, policies: Path, pods: Pods, kinds: Sequence[PodKind] = ("tun",)) -> None:
        self._kinds = cycle(kinds)
        self.lab = lab
        self.policies = policies
        self.pods = pods
        self.plugged: dict[str, str] = {}
        self.written = 0

    def plug(self, name: str, identity: str, addresses: Iterable[str]) -> None:
        """`identity` is `namespace/name`."""
        given = {ip_address(address).version: address for address in addresses}
        node = f"node{given[4].split('.')[2]}"
        pod = self.lab.add_pod(node, next(self._kinds), ips=list(given.values()), identity=identity)
        self.plugged[name] = pod.name
        self.pods.add(name, pod.netns, given)

    def unplug(self, name: str) -> None:
        self.pods.remove(name)
        self.lab.remove_pod(self.plugged.pop(name))

    def write(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """All objects in one file, by rename. The last one, about nobody, shows that it was taken over."""
        self.written += 1
        spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
        marker = manifest("networking.k8s.io/v1", "NetworkPolicy", self._marker(), "marker", spec=spec)
        temporary = self.policies / ".new"
        temporary.write_text(yaml.safe_dump_all([*objects, marker]))
        temporary.rename(self.policies / "world.yaml")

    def wait(self) -> None:
        """Until both nodes judge by what was written last."""
        wait_for(lambda: all(self._in_force(node) for node in NODES), "judged by both nodes")

    def _marker(self) -> str:
        return f"written-{self.written}"

    def _in_force(self, node: str) -> bool:
        found = self.lab.control(node, "policy.list")
        assert found["problems"] == []
        return any(item["name"] == self._marker() and item["state"] == "in force" for item in found["objects"])

    def denied(self) -> int:
        """Packets that policy has dropped on both nodes."""
        counters = [fabric_view.counters(self.lab, node) for node in NODES]
        return sum(found[name] for found in counters for name in POLICY_DROPS)

    def check(self, cells: Mapping[tuple[str, str, str, int], bool]) -> None:
        """Probe every (source, destination, protocol, port) over both families."""
        wanted: dict[Cell, bool] = {(family, *cell): want for cell, want in cells.items() for family in (4, 6)}
        assert self.pods.probe(wanted, self.denied) == []

    def check_clean(self) -> None:
        """No daemon has died, no checksum was wrong, nothing was dropped for want of policy."""
        assert self.lab.dead_daemons() == []
        assert fabric_view.all_checksum_errors(self.lab) == {}
        for node in NODES:
            assert [name for name in OTHER_DROPS if fabric_view.counters(self.lab, node)[name]] == []


@contextmanager
def prepared(
    policies: Path, pods: Pods, kinds: Sequence[PodKind] = ("tun",), words: Sequence[str] = ()
) -> Iterator[Ground]:
    """Without pods and policies, daemons with the flags `words`; `check_clean` at the end."""
    arguments = (f"--policy-dir={policies}", *words)
    with Lab(nodes=2, pods=0, ipv6=True, mode="veth", daemon_args=arguments) as lab, closing(pods):
        ground = Ground(lab, policies, pods, kinds)
        yield ground
        ground.check_clean()


def manifest(version: str, kind: str, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    """An object; `labels` go into its metadata, the rest beside it."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    metadata |= {"labels": more.pop("labels")} if "labels" in more else {}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def pod_manifest(
    identity: str, labels: Mapping[str, str], addresses: Iterable[str], ports: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """A Pod with named ports {name: (protocol, number)}."""
    listed = [{"name": name, "protocol": by, "containerPort": number} for name, (by, number) in ports.items()]
    namespace, _, name = identity.partition("/")
    spec = {"containers": [{"name": "c", "ports": listed}]}
    status = {"podIPs": [{"ip": address} for address in addresses]}
    return manifest("v1", "Pod", name, namespace, labels=dict(labels), spec=spec, status=status)
