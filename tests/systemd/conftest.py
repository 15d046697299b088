"""A node's network namespace with a real systemd in it that runs fabricd's unit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.fabric.daemon.nodes import ip
from tests.systemd.booted import Booted

WATCHDOG = 2
"""Seconds, in place of the unit's ten."""


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    name = f"fabtest-sd-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        ip("-n", name, "address", "add", "192.0.2.91/24", "dev", "eth0")
        for end in ("eth0", "far0"):
            ip("-n", name, "link", "set", end, "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.fixture(scope="module")
def booted(netns: str) -> Iterator[Booted]:
    options = "--iface=eth0 --ip-masq --healthz-port=18471 --metrics-port=18472"
    made = Booted(netns, options, {"WatchdogSec": str(WATCHDOG)})
    try:
        made.systemctl("start", "fabricd.service")
        yield made
    finally:
        print(made.console(), made.log())
        made.close()
