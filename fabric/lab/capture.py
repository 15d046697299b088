"""A few packets of the underlay, decoded by tcpdump: what the fabric really puts on the wire."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from fabric.lab.lab import Lab
from fabric.lab.plan import LabError

PORT = 8472
STOP_SECONDS = 3.0


def capture(lab: Lab, node: str, during: Callable[[], object], count: int = 4, expression: str = "") -> list[str]:
    """tcpdump's lines for the first `count` VXLAN packets at a node's eth0 while `during` runs.

    Each packet is two lines, the outer header with VNI and the inner packet. Raises LabError when tcpdump cannot run.
    """
    matching = f"udp port {PORT}" + (f" and ({expression})" if expression else "")
    process = lab.popen(
        node,
        ["tcpdump", "-i", "eth0", "-nn", "-t", "-l", "-Z", "root", "-T", "vxlan", "-c", str(count), matching],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = []
    while line := process.stderr.readline():
        said.append(line.strip())
        if line.startswith("listening on"):
            break
    else:
        process.communicate()
        raise LabError(f"tcpdump on {node} did not start: {said[-1] if said else 'no output'}")
    try:
        during()
        output, _ = process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return output.splitlines()
