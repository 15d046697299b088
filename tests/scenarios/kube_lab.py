"""Two nodes of a Kubernetes cluster, with the role of docs/kubernetes: what is in the API decides what passes.

The nodes reach an API server of their own through a relay; `admin` is another one over the same etcd, always there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.lab import Lab
from tests.apiserver import process as apiserver
from tests.apiserver.process import ApiServer
from tests.fabric.store import etcd_server
from tests.fabric.store.etcd_server import EtcdServer
from tests.scenarios.policy_lab import PolicyLab, pod_object
from tests.scenarios.relay import Relay, relaying

RBAC = Path(__file__).parents[2] / "docs" / "kubernetes" / "rbac.yaml"
NODES = ("node1", "node2")
PODS = "/api/v1/namespaces/default/pods"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"


@dataclass
class KubeLab:
    """`api` is the nodes' API server."""

    policed: PolicyLab
    etcd: EtcdServer
    api: ApiServer
    admin: ApiServer
    relay: Relay

    def create_pod(self, name: str) -> None:
        """As the scheduler and the kubelet have it."""
        pod = self.policed.lab.pod(name)
        families = (4, 6) if self.policed.lab.options.ipv6 else (4,)
        self.admin.create({**pod_object(pod, families), "spec": {"nodeName": pod.node}}, path=PODS)

    def create_policy(self, document: dict[str, Any]) -> None:
        self.admin.create(document, path=POLICIES)

    def delete_policy(self, name: str) -> None:
        self.admin.ask("DELETE", f"{POLICIES}/{name}")

    def cut(self) -> None:
        """The nodes' connections break, and new ones are refused, until `restore`."""
        for name in NODES:
            self.relay.cut(f"fablab-{name}")

    def restore(self) -> None:
        for name in NODES:
            self.relay.restore(f"fablab-{name}")


@contextmanager
def kube_lab(directory: Path, *, pods: int = 1, ipv6: bool = False, words: Sequence[str] = ()) -> Iterator[KubeLab]:
    """With so many pods on each node that the API does not know yet; `words` are flags of the daemons."""
    with (
        etcd_server.running(directory / "etcd") as etcd,
        apiserver.running(directory / "api", etcd, f"--rbac={RBAC}") as api,
        apiserver.running(directory / "admin", etcd) as admin,
    ):
        for number, name in enumerate(NODES, 1):
            networks = [f"10.244.{number}.0/24", *([f"2001:db8:42:{number}::/64"] if ipv6 else [])]
            admin.create(apiserver.node(name, *networks))
        arguments = ("--kube-subnet-mgr", f"--kube-api-url={api.url}", *words)
        lab = Lab(nodes=2, pods=pods, pod_kind="tun", ipv6=ipv6, reserve=False, daemon_args=arguments)
        with relaying(api.port, [f"fablab-{name}" for name in NODES]) as relay, lab:
            yield KubeLab(PolicyLab(lab, directory), etcd, api, admin, relay)
