"""Pods in a bridge under policy, with the unit: enforcement and connections last through kill, restart and handover.

Their traffic is led to the daemon's bridge port by the host's rules and tables; both last longer than the process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from fabric.control_client import DaemonUnavailableError
from tests.fabric.daemon.nodes import ip
from tests.scenarios.policy_lab import policy
from tests.scenarios.waiting import wait_for
from tests.systemd.booted import Booted
from tests.systemd.cluster import Pod, client
from tests.systemd.sequence import Flow, flowing
from tests.systemd.test_restarts import hand_over, kill, restart, stop_and_start

pytestmark = [pytest.mark.root, pytest.mark.slow]
TARGET, ALLOWED, REFUSED = "target", "allowed", "refused"
PORT = 7000
RATE = 1000
SECONDS = 30
"""For what takes one where nothing else runs."""


class Bridged(NamedTuple):
    booted: Booted
    pods: dict[str, Pod]
    directory: Path


@pytest.fixture(scope="module")
def bridged(netns: str) -> Iterator[Bridged]:
    """A node with three pods in a bridge; one of them takes from one other only."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="fabtest-bridges-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, directory)
        (directory / "policies").mkdir()
        subprocess.run(["ip", "netns", "exec", netns, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        options = "--iface=eth0 --txqueuelen=10000 --policy-dir=/srv/policies"
        booted = Booted(netns, options, {"ReadWritePaths": "/srv"}, shared=directory)
        stack.callback(booted.close)
        stack.callback(lambda: print(booted.console(), booted.log()))
        booted.systemctl("start", "fabricd.service")
        pods = dict(make_pods(stack, netns, booted))
        objects = [pod_object(name, pod) for name, pod in pods.items()]
        write(directory, "pods.yaml", objects)
        made = Bridged(booted, pods, directory)
        allow(made, ALLOWED)
        yield made


def make_pods(stack: ExitStack, netns: str, booted: Booted) -> Iterator[tuple[str, Pod]]:
    """A bridge as the plugin makes it, with the subnet's first address, and pods on it."""
    with client(booted) as daemon:
        subnet = daemon.ask("status")["subnets"][0].rpartition(".")[0]
    ip("-n", netns, "link", "add", "cni0", "type", "bridge")
    ip("-n", netns, "address", "add", f"{subnet}.1/24", "dev", "cni0")
    ip("-n", netns, "link", "set", "cni0", "up")
    for number, name in enumerate((TARGET, ALLOWED, REFUSED), 2):
        pod = Pod(f"fabtest-bp{os.getpid()}-{number}", f"{subnet}.{number}")
        ip("netns", "add", pod.netns)
        stack.callback(subprocess.run, ["ip", "netns", "delete", pod.netns], check=False)
        ip("-n", pod.netns, "link", "set", "lo", "up")
        ip("-n", netns, "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", pod.netns)
        ip("-n", netns, "link", "set", f"veth{number}", "master", "cni0", "up")
        ip("-n", pod.netns, "address", "add", f"{pod.address}/24", "dev", "eth0")
        ip("-n", pod.netns, "link", "set", "eth0", "mtu", "1450", "up")
        ip("-n", pod.netns, "route", "add", "default", "via", f"{subnet}.1")
        yield name, pod


def pod_object(name: str, pod: Pod) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"pod": name}},
            "status": {"podIPs": [{"ip": pod.address}]}}  # fmt: skip


def write(directory: Path, name: str, objects: list[dict[str, object]]) -> None:
    (directory / ".new").write_text("\n---\n".join(json.dumps(item) for item in objects))
    (directory / ".new").rename(directory / "policies" / name)


def allow(bridged: Bridged, *sources: str) -> None:
    """The target takes from these, and that is in force when this returns."""
    name = "-".join(["from", *sources])
    write(bridged.directory, "policy.yaml", [policy(name, *sources, target=TARGET)])
    wait_for(lambda: policies(bridged.booted) == {name}, "the policy to be in force", SECONDS)


def policies(booted: Booted) -> set[str]:
    """Those in force."""
    with suppress(DaemonUnavailableError), client(booted) as daemon:
        return {item["name"] for item in daemon.ask("policy.list")["objects"] if item["state"] == "in force"}
    return set()


def dropped(booted: Booted) -> int:
    """What this process has refused by policy."""
    with suppress(DaemonUnavailableError), client(booted) as daemon:
        return int(daemon.ask("counters")["drop_policy_ingress"])
    return 0


def delivered(booted: Booted) -> int:
    """Packets to pods in the bridge."""
    with client(booted) as daemon:
        return int(daemon.ask("port.counters")["bridges"]["frames_to"])


@pytest.mark.parametrize("how", [kill, restart, hand_over, stop_and_start])
def test_enforcement_lasts(bridged: Bridged, how: Callable[[Booted], None]) -> None:
    """What is refused never arrives; of what is allowed nothing is lost but while the daemon is stopped."""
    booted, pods, directory = bridged
    target, allowed, refused = pods[TARGET], pods[ALLOWED], pods[REFUSED]
    wanted = Flow(allowed.netns, target.netns, target.address, PORT, RATE, directory)
    forbidden = Flow(refused.netns, target.netns, target.address, PORT + 1, RATE, directory)
    with flowing(wanted, forbidden):
        wait_for(lambda: dropped(booted) > RATE / 10, "the refused pod to send", SECONDS)
        steady = time.monotonic()
        how(booted)
        wait_for(lambda: dropped(booted) > RATE / 10, "it to have sent to this process", SECONDS)
        end = time.monotonic()
    found = wanted.summary(steady, end)
    print(found)
    assert forbidden.summary().sent == 0, "what arrived is known to have been sent"
    assert found.doubled == 0
    if how is not stop_and_start:
        assert found.lost == 0


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6])
def test_what_was_forbidden_before_a_kill_stays_forbidden(bridged: Bridged, seconds: float) -> None:
    """The next process goes on by the last verdicts it finds, and may find none, but never older ones: they are kept
    half a second after a change."""
    target, refused = bridged.pods[TARGET], bridged.pods[REFUSED]
    allow(bridged, ALLOWED, REFUSED)
    before = delivered(bridged.booted)
    flow = Flow(refused.netns, target.netns, target.address, PORT, RATE, bridged.directory)
    with flowing(flow):
        begun = time.monotonic()
        wait_for(lambda: delivered(bridged.booted) > before + RATE, "the verdicts to be kept that allow it", SECONDS)
        allow(bridged, ALLOWED)
        forbidden = time.monotonic()
        wait_for(lambda: time.monotonic() > forbidden + seconds, "the moment of the kill")
        kill(bridged.booted)
        wait_for(lambda: dropped(bridged.booted) > RATE / 10, "it to have sent to the next process", SECONDS)
        end = time.monotonic()
    assert flow.summary(begun, forbidden).sent > 0
    assert flow.summary(forbidden, end).sent == 0, "what arrived is known to have been sent"
