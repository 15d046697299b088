"""The fabric daemons of a lab: started in their node's namespace, waited for, asked over their control socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.lab import system
from fabric.lab.plan import LabError, Node

READY_SECONDS = 20.0
CONTROL_SECONDS = 5.0

# Popen objects of daemons this process started: kept so that their exit status can be collected.
children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """Where one node's files lie in the lab's run directory."""

    directory: Path

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    @property
    def log(self) -> Path:
        return self.directory / "fabricd.log"

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "fabricd.sock"


def command(node: Node, run_dir: Path, extra: Sequence[str]) -> list[str]:
    """The command line of a node's fabricd; `extra` comes last and wins."""
    script = Path(sys.executable).parent / "fabricd"
    program = [str(script)] if script.exists() else [sys.executable, "-m", "fabric.daemon.main"]
    own = run_dir / node.name
    return [
        *program,
        *("--store", f"sqlite://{run_dir / 'fabric.db'}"),
        *("--node-name", node.name),
        *("--iface", "eth0"),
        *("--run-dir", str(own / "run")),
        *("--state-dir", str(own / "state")),
        *("--cni-data-dir", str(own / "cni")),
        *("--subnet-file", str(own / "subnet.env")),
        *("--net-config-path", str(run_dir / "net-conf.json")),
        *extra,
    ]


def start(node: Node, run_dir: Path, extra: Sequence[str] = ()) -> int:
    """Start the node's daemon, its output in the node's log; returns the process id.

    `ip netns exec` replaces itself by the daemon, so the id is the daemon's own.
    """
    files = NodeFiles(run_dir / node.name)
    files.directory.mkdir(mode=0o755, exist_ok=True)
    if files.subnet_file.exists():
        # It stays, because the daemon reads its previous subnet there; its age tells whether the new one is ready.
        os.utime(files.subnet_file, ns=(0, 0))
    with files.log.open("ab") as log:
        process = subprocess.Popen(
            system.inside(node.netns, command(node, run_dir, extra)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    children[process.pid] = process
    return process.pid


def exit_status(pid: int) -> int | None:
    """None while the daemon runs, else its exit status (-1 when it was not started by this process)."""
    child = children.get(pid)
    if child is not None:
        return child.poll()
    return None if system.alive(pid) else -1


def reap() -> None:
    """Forget the daemons of this process that have ended, so that none stays behind as a zombie."""
    for pid, child in list(children.items()):
        if child.poll() is not None:
            del children[pid]


def ending(status: int) -> str:
    """An exit status in words."""
    return f"was killed by {signal.Signals(-status).name}" if status < -1 else f"ended with status {status}"


def last_lines(path: Path, count: int = 5) -> str:
    """The end of a log, one line per line."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def wait_ready(node: Node, pid: int, run_dir: Path, seconds: float = READY_SECONDS) -> dict[str, str]:
    """Wait until the daemon forwards (it writes subnet.env last); the content of subnet.env.

    Raises LabError with the end of its log when it ends or takes too long.
    """
    files = NodeFiles(run_dir / node.name)
    deadline = time.monotonic() + seconds
    while not written(files.subnet_file):
        status = exit_status(pid)
        if status is not None:
            raise LabError(f"fabricd on {node.name} {ending(status)}:\n{last_lines(files.log)}")
        if time.monotonic() > deadline:
            raise LabError(f"fabricd on {node.name} was not ready after {seconds:g} s:\n{last_lines(files.log)}")
        time.sleep(0.01)
    return parse_subnet_env(files.subnet_file.read_text())


def written(path: Path) -> bool:
    """Whether the file was written since `start`."""
    try:
        return path.stat().st_mtime_ns != 0
    except OSError:
        return False


def parse_subnet_env(text: str) -> dict[str, str]:
    """KEY=VALUE lines."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def control(path: Path, method: str, params: Mapping[str, Any] | None = None) -> Any:
    """One request to a daemon's control socket (JSON lines); the `result` of its answer, or the whole answer.

    Raises LabError when the daemon does not answer or refuses.
    """
    request: dict[str, Any] = {"method": method}
    if params is not None:
        request["params"] = dict(params)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(CONTROL_SECONDS)
            client.connect(str(path))
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline() or b"null")
    except (OSError, ValueError) as error:
        raise LabError(f"the daemon at {path} does not answer: {error}") from None
    if not isinstance(answer, dict):
        raise LabError(f"the daemon at {path} closed the connection without an answer to {method}")
    if answer.get("error"):
        raise LabError(f"the daemon at {path} refused {method}: {answer['error']}")
    return answer.get("result", answer)
