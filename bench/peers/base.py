"""What all other tunnels have in common: processes in two nodes, a device each, routes that lead into it."""

from __future__ import annotations

import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import ClassVar

from fabric.lab import system
from fabric.lab.plan import LabError, Node

START_SECONDS = 10.0


class Tunnel(ABC):
    """Between two nodes. Sides are 0 and 1, in the order of the nodes."""

    name: ClassVar[str]
    label: ClassVar[str]
    tools: ClassVar[Mapping[str, str]]
    encrypted: ClassVar[bool] = False
    mtu: ClassVar[int] = 1450

    def __init__(self, nodes: Sequence[Node], run_dir: Path) -> None:
        """Files lie below the lab's run directory, so that a sweep of the lab finds them after a crash."""
        self.nodes = list(nodes[:2])
        self.directory = run_dir / f"tunnel-{self.name}"
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def missing(cls) -> str:
        """Debian packages to install before it can run; empty when everything is there."""
        return " ".join(dict.fromkeys(package for tool, package in cls.tools.items() if shutil.which(tool) is None))

    @abstractmethod
    def configure(self) -> None:
        """Write keys and configuration of both sides into `self.directory`."""

    @abstractmethod
    def command(self, side: int) -> list[str]:
        """Command line of one side's process, in the foreground."""

    def device(self, side: int) -> str:
        """Name of the tunnel device in that side's node."""
        return f"{self.name}0"

    def ready(self, side: int) -> None:
        """Called when the device exists; sets it up."""
        system.batch([f"link set {self.device(side)} mtu {self.mtu} up"], self.nodes[side].netns)

    def environment(self) -> dict[str, str] | None:
        """Environment of the processes; None is ours."""
        return None

    # Life

    def start(self) -> None:
        """Start both sides and wait for their devices; raises LabError with the end of the log when they fail."""
        self.directory.mkdir(mode=0o700)
        try:
            self.configure()
            for side in (0, 1):
                self._start(side)
            for side in (0, 1):
                self._wait(side)
                self.ready(side)
        except BaseException:
            self.stop()
            raise

    def _start(self, side: int) -> None:
        with self.log(side).open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    system.inside(self.nodes[side].netns, self.command(side)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    start_new_session=True,
                )
            )

    def _wait(self, side: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        netns = self.nodes[side].netns
        while not system.run(netns, ["ip", "-o", "link", "show", "dev", self.device(side)], check=False):
            if self._processes[side].poll() is not None or time.monotonic() > deadline:
                words = self.log(side).read_text(errors="replace").strip().splitlines()
                raise LabError(f"{self.name} did not start: {words[-1] if words else 'no output'}")
            time.sleep(0.02)

    def log(self, side: int) -> Path:
        """What one side's process says."""
        return self.directory / f"log{side}"

    def pids(self) -> list[int]:
        """Processes of both sides."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """End the processes (their devices go with them) and remove the files. Idempotent."""
        with system.shielded():
            system.stop([process.pid for process in self._processes if process.poll() is None], seconds=2.0)
            for process in self._processes:
                process.wait()
            self._processes = []
            shutil.rmtree(self.directory, ignore_errors=True)

    # Use

    @contextmanager
    def active(self) -> Iterator[None]:
        """Route pod traffic between the two nodes through this tunnel."""
        self._routes("replace")
        try:
            yield
        finally:
            self._routes("del")

    def _routes(self, verb: str) -> None:
        for side in (0, 1):
            halves = ip_network(self.nodes[1 - side].subnet).subnets()
            lines = [f"route {verb} {half} dev {self.device(side)}" for half in halves]
            system.batch(lines, self.nodes[side].netns)

    # Helpers

    def write(self, name: str, text: str) -> Path:
        """A file in the directory, private: some hold keys."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def run(self, *argv: str, data: str = "") -> str:
        """Output of a tool; raises LabError when it fails."""
        done = subprocess.run(argv, input=data, capture_output=True, text=True, cwd=self.directory, timeout=20)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise LabError(f"`{' '.join(argv)}` failed: {words[-1] if words else done.returncode}")
        return done.stdout
