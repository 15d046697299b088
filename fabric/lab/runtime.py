"""The lab as a container runtime: pods get their eth0 from `fabric-cni`, executed in their node's namespace.

Each node has `cni/` among its files in the lab's run directory: the plugin's launcher in `bin/`, one
`net.d/<kind>.conflist` per kind of its pods, what ADD answered in `results/`, and the plugin's own records and
reservations, so that nothing of a lab lies outside.
Fabric nodes have a network of type `fabric-cni`, kernel nodes flannel's, as a runtime there would read it.

A pod's name is its container id. The addresses are asked for (`runtimeConfig.ips`), so that they follow the pods'
numbers although ADDs run beside each other. Source: CNI SPEC 1.1.0 section 3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from fabric.cni import launcher
from fabric.files import write_atomic
from fabric.lab import system
from fabric.lab.daemons import NodeFiles
from fabric.lab.plan import LabError, Node, Pod

NETWORK_NAME = "fablab"
IFNAME = "eth0"
VERSION = "1.1.0"
SECONDS = 60.0
PARALLEL = 2 * (os.cpu_count() or 1)
"""Calls at once: the plugin computes most of its time, more would only wait."""


def program(node: Node, run_dir: Path) -> list[str]:
    """The plugin's command line: the launcher of the node, else the module."""
    script = run_dir / node.name / "cni" / "bin" / launcher.PROGRAM
    return [str(script)] if script.exists() else [sys.executable, "-m", "fabric.cni.main"]


def conflist(node: Node, kind: str, run_dir: Path) -> dict[str, Any]:
    """The network for pods of one kind on a node; networks of all kinds share their reservations by the name."""
    files = NodeFiles(run_dir / node.name)
    directory = files.directory / "cni"
    ipam = {"type": "host-local", "dataDir": str(directory / "networks")}
    plugin: dict[str, Any] = {"type": "fabric-cni", "kind": kind, "runDir": str(files.socket.parent)}
    if node.kind == "kernel":
        plugin = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
    plugin |= {"subnetFile": str(files.subnet_file), "dataDir": str(directory / plugin["type"]), "ipam": ipam}
    return {"cniVersion": VERSION, "name": NETWORK_NAME, "plugins": [{**plugin, "capabilities": {"ips": True}}]}


def install(node: Node, run_dir: Path) -> None:
    """Write the networks of the node's pods, and the plugin's launcher."""
    text = launcher.here()
    if text:
        write_atomic(run_dir / node.name / "cni" / "bin" / launcher.PROGRAM, text.encode(), 0o700, 0o700)
    for kind in sorted({pod.kind for pod in node.pods}):
        text = json.dumps(conflist(node, kind, run_dir), indent=2) + "\n"
        write_atomic(list_path(node, kind, run_dir), text.encode(), 0o600, 0o700)


def list_path(node: Node, kind: str, run_dir: Path) -> Path:
    """Where the network of a kind is written."""
    return run_dir / node.name / "cni" / "net.d" / f"{kind}.conflist"


def result_path(node: Node, pod: Pod, run_dir: Path) -> Path:
    """Where ADD's answer is kept for DEL."""
    return run_dir / node.name / "cni" / "results" / f"{pod.name}.json"


def add(node: Node, pod: Pod, run_dir: Path, mtu: int = 0) -> None:
    """Give the pod its eth0; `pod.ips` are what the plugin says. `mtu` 0 leaves it to subnet.env. Raises LabError."""
    conf = request(node, pod, run_dir) | ({"mtu": mtu} if mtu else {})
    if pod.ips:
        conf["runtimeConfig"] = {"ips": pod.ips}
    result = execute("ADD", node, pod, conf, run_dir)
    pod.ips = [str(ip_interface(ip["address"]).ip) for ip in result["ips"]]
    write_atomic(result_path(node, pod, run_dir), json.dumps(result).encode(), 0o600, 0o700)


def delete(node: Node, pod: Pod, run_dir: Path) -> None:
    """Take the pod's eth0 away and free its addresses. Idempotent, also before `install`. Raises LabError."""
    if not list_path(node, pod.kind, run_dir).exists():
        return
    kept = result_path(node, pod, run_dir)
    previous = {"prevResult": json.loads(kept.read_text())} if kept.exists() else {}
    execute("DEL", node, pod, request(node, pod, run_dir) | previous, run_dir)
    kept.unlink(missing_ok=True)


def request(node: Node, pod: Pod, run_dir: Path) -> dict[str, Any]:
    """The plugin's configuration out of the list, without what is the runtime's. Raises LabError."""
    path = list_path(node, pod.kind, run_dir)
    try:
        network = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{pod.name} has no network: {path} cannot be read: {error}") from None
    plugin = {key: value for key, value in network["plugins"][0].items() if key != "capabilities"}
    return {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}


def execute(command: str, node: Node, pod: Pod, conf: dict[str, Any], run_dir: Path) -> Any:
    """One call of the plugin; the object it answers with (None for nothing). Raises LabError with its error."""
    try:
        done = subprocess.run(
            system.inside(node.netns, program(node, run_dir)),
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            env=environment(command, pod),
            timeout=SECONDS,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"fabric-cni {command} for {pod.name} did not end within {SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout) if done.stdout else None
    except ValueError:
        answer = None
    if done.returncode:
        raise LabError(f"fabric-cni {command} for {pod.name} failed: {reason(answer, done)}")
    return answer


def environment(command: str, pod: Pod) -> dict[str, str]:
    """What the plugin finds in its environment; CNI_ARGS as kubelet's runtimes write them."""
    namespace, _, name = (pod.identity or f"default/{pod.name}").partition("/")
    names = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": name}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("CNI_")},
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.name,
        "CNI_NETNS": str(system.NETNS_DIR / pod.netns),
        "CNI_IFNAME": IFNAME,
        "CNI_ARGS": ";".join(f"{name}={value}" for name, value in names.items()),
        "CNI_PATH": str(Path(sys.executable).parent),
    }


def reason(answer: Any, done: subprocess.CompletedProcess[str]) -> str:
    """One line out of an error object, else the last of stderr."""
    if isinstance(answer, dict) and "msg" in answer:
        details = f": {answer['details']}" if answer.get("details") else ""
        return f"{answer['msg']}{details} (code {answer.get('code')})"
    words = done.stderr.strip().splitlines()
    return words[-1] if words else f"it ended with status {done.returncode}"


def for_each(pods: Iterable[tuple[Node, Pod]], work: Callable[[Node, Pod], None]) -> list[LabError]:
    """Do something with pods, several at once; the errors. What interrupts us ends the calls that have not begun."""
    errors: list[LabError] = []

    def attempt(node: Node, pod: Pod) -> None:
        try:
            work(node, pod)
        except LabError as error:
            errors.append(error)

    with ThreadPoolExecutor(PARALLEL) as pool:
        try:
            for done in [pool.submit(attempt, node, pod) for node, pod in pods]:
                done.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return errors


def add_all(nodes: Sequence[Node], run_dir: Path) -> None:
    """Pods of all nodes. Raises LabError with the first that failed, and how many more did."""
    errors = for_each([(node, pod) for node in nodes for pod in node.pods], lambda node, pod: add(node, pod, run_dir))
    if errors:
        raise LabError(str(errors[0]) + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""))


def delete_all(nodes: Sequence[Node], run_dir: Path) -> list[LabError]:
    """Pods of all nodes; the errors."""
    return for_each([(node, pod) for node in nodes for pod in node.pods], lambda node, pod: delete(node, pod, run_dir))
