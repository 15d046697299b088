"""Nodes for tests: network namespaces on one bridge-less underlay (a veth pair), each with the real `fabricd`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PYTHON = sys.executable


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], object], seconds: float = 10.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)


class TestNode:
    """One namespace with `eth0` at 192.0.2.<number> (and 2001:db8::<number>), and its daemon."""

    __test__ = False

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.netns = f"fabtest-{os.getpid()}-{number}"
        self.directory = directory / f"node{number}"
        self.directory.mkdir()
        self.store = directory / "store" / "fabric.db"
        self.config = directory / "net-conf.json"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.python: Callable[[list[str]], list[str]] = lambda words: [PYTHON, *words]
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    def start(self, *words: str) -> None:
        """Start the daemon and wait until it is ready."""
        self.launch(*words)
        wait_for(lambda: self.ended() or self.ready(), what=f"node {self.number} ready")
        assert not self.ended(), self.log.read_text()

    def launch(self, *words: str) -> None:
        self.subnet_file.unlink(missing_ok=True)
        python = [
            "-m", "fabric.daemon.main", f"--store=sqlite://{self.store}", "--iface=eth0",
            f"--run-dir={self.run_dir}", f"--state-dir={self.directory / 'state'}",
            f"--cni-data-dir={self.directory / 'data'}",
            f"--subnet-file={self.subnet_file}", f"--net-config-path={self.config}", "--log-format=json", *words,
        ]  # fmt: skip
        command = ["ip", "netns", "exec", self.netns, *self.python(python)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready(self) -> bool:
        return self.subnet_file.exists() and (self.run_dir / "fabricd.sock").exists()

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(10)
        self.process = None
        return code

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.netns], check=False, capture_output=True)

    def ask(self, method: str, **params: object) -> Any:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.run_dir / "fabricd.sock"))
            client.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        assert "error" not in answer, answer
        return answer["result"]

    def messages(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line)["message"] for line in lines if line.startswith("{")]

    def env(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.subnet_file.read_text().splitlines())

    @property
    def address(self) -> str:
        """The node's own overlay address."""
        return str(self.ask("status")["subnets"][0]).split("/")[0]

    def peers(self) -> list[str]:
        return [item["public"][0] for item in self.ask("peers") if item["state"] in ("used", "remembered")]

    def pings(self, address: str, count: int = 1) -> bool:
        command = ["ip", "netns", "exec", self.netns, "ping", "-q", "-c", str(count), "-i", "0.02", "-W", "1", address]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def links(self) -> list[str]:
        return [item["ifname"] for item in json.loads(ip("-j", "-n", self.netns, "link"))]

    def routes(self) -> list[str]:
        """Those of the daemon's that lead somewhere."""
        found = json.loads(ip("-j", "-n", self.netns, "route", "show", "proto", "112"))
        return [item["dst"] for item in found if item.get("type") != "unreachable"]


def connect(left: TestNode, right: TestNode) -> None:
    """A veth pair between the two, IPv4 and IPv6."""
    ip("-n", left.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right.netns)
    for node in (left, right):
        ip("-n", node.netns, "address", "add", f"192.0.2.{node.number}/24", "dev", "eth0")
        ip("-n", node.netns, "address", "add", f"2001:db8::{node.number}/64", "dev", "eth0", "nodad")
        ip("-n", node.netns, "link", "set", "eth0", "up")
