"""The API server as a process of its own, and what tests do to the objects in it.

    with running(tmp_path, etcd) as server:
        server.create("nodes", node("node1", "10.244.1.0/24")); server.patch("node1", {...}); server.delete("node1")
        server.kubectl("get", "nodes"); server.requests("GET /api/v1/nodes")
        server.kill(); server.start(); server.freeze(); server.thaw(); server.fault("watch", 429)

It dies with the test process (PR_SET_PDEATHSIG). Needs the Debian package kubernetes-client for `kubectl`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fabric.store.etcd_server import EtcdServer, free_port
from tests.scenarios.waiting import wait_for

START_SECONDS = 30.0
NODES = "/api/v1/nodes"
F = "flannel.alpha.coreos.com/"


def node(name: str, *cidrs: str, mac: str = "", public: str = "", **annotations: str) -> dict[str, Any]:
    """A Node; with `mac` and `public` one that flannel's vxlan backend manages. `annotations` have `_` for `-`."""
    found = {F + key.replace("_", "-"): value for key, value in annotations.items()}
    if mac:
        managed = {"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": public}
        data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
        found = {F + key: value for key, value in managed.items()} | {F + "backend-data": data} | found
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    condition = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "no route"}
    status = {
        "conditions": [condition, {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}],
        "images": [{"names": [f"registry.example.org/image-{number}:v1"], "sizeBytes": number} for number in range(9)],
    }
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "annotations": found, "labels": {"kubernetes.io/hostname": name}},
        "spec": spec,
        "status": status,
    }


@dataclass
class ApiServer:
    """One server over `etcd`; `flags` as of `python -m tests.apiserver`. The port is chosen once."""

    directory: Path
    etcd: EtcdServer
    flags: Sequence[str] = ()
    tls: ssl.SSLContext | None = None  # for our own requests
    token: str = ""
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def audit(self) -> Path:
        return self.directory / "audit.log"

    def start(self) -> ApiServer:
        assert self.process is None, "it runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.apiserver"]
        argv += [f"--etcd={self.etcd.url}", f"--port={self.port}", f"--audit={self.audit}", *self.flags]
        with (self.directory / "apiserver.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._answers, "the API server answers", START_SECONDS)
        return self

    def kill(self) -> None:
        """As a power cut. Idempotent."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Stop answering without closing anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def fault(self, on: str, status: int, **more: Any) -> None:
        """Have the next request of a sort answered with an error (see `policy.Fault`)."""
        self.ask("POST", "/faults", {"on": on, "status": status, **more})

    def create(self, *documents: dict[str, Any], path: str = NODES) -> None:
        """Create objects, over one connection."""
        connection = self._connection()
        try:
            for document in documents:
                self._exchange(connection, "POST", path, document)
        finally:
            connection.close()

    def get(self, name: str) -> dict[str, Any]:
        return self.ask("GET", f"{NODES}/{name}")

    def annotations(self, name: str) -> dict[str, str]:
        """flannel's annotations of a Node, without their prefix."""
        found = self.get(name)["metadata"].get("annotations") or {}
        return {key.removeprefix(F): value for key, value in found.items() if key.startswith(F)}

    def annotate(self, name: str, **annotations: str | None) -> dict[str, Any]:
        """Set (None: remove) flannel's annotations, with `_` for `-`."""
        changes = {F + key.replace("_", "-"): value for key, value in annotations.items()}
        return self.patch(name, {"metadata": {"annotations": changes}})

    def patch(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        return self.ask("PATCH", f"{NODES}/{name}", patch, "application/merge-patch+json")

    def delete(self, name: str) -> None:
        self.ask("DELETE", f"{NODES}/{name}")

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> dict[str, Any]:
        """One request, which has to succeed."""
        connection = self._connection()
        try:
            return self._exchange(connection, method, path, body, kind)
        finally:
            connection.close()

    def requests(self, start: str = "") -> list[str]:
        """The requests so far whose audit line begins with `start`."""
        with suppress(FileNotFoundError):
            return [line for line in self.audit.read_text().splitlines() if line.startswith(start)]
        return []

    def lists(self) -> int:
        """How often all nodes were listed: first pages, without the one-node looks."""
        lines = [line for line in self.requests(f"GET {NODES}?") if "watch=1" not in line and "continue=" not in line]
        return sum("limit=1 " not in line for line in lines)

    def kubectl(self, *words: str, check: bool = True) -> str:
        """Run kubectl against this server; its standard output."""
        done = subprocess.run(self.kubectl_argv(*words), capture_output=True, text=True, timeout=60, env=self._env())
        assert not check or done.returncode == 0, f"kubectl {words[0]}: {done.stderr}"
        return done.stdout

    def kubectl_argv(self, *words: str) -> list[str]:
        return ["kubectl", f"--server={self.url}", f"--cache-dir={self.directory}/kubectl", *words]

    def _env(self) -> dict[str, str]:
        return os.environ | {"HOME": str(self.directory), "KUBECONFIG": "/dev/null"}

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"it ended: {(self.directory / 'apiserver.log').read_text()[-2000:]}"
        with suppress(OSError):
            self.ask("GET", "/version")
            return True
        return False

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, kind: str = "application/json"
    ) -> dict[str, Any]:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        assert answer.status in (200, 201), f"{method} {path}: {found.get('message')}"
        return found


@contextmanager
def running(directory: Path, etcd: EtcdServer, *flags: str, **options: Any) -> Iterator[ApiServer]:
    """A started server, killed in any case."""
    server = ApiServer(directory, etcd, flags, **options)
    try:
        yield server.start()
    finally:
        server.kill()
