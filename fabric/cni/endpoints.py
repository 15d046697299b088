"""Pods of kinds that work without the daemon, made known to it where there is one: `endpoint.add`, `endpoint.delete`.

A note and nothing more: no daemon, a stuck one, or one of a version that knows no endpoints is no reason to fail.
"""

from __future__ import annotations

import contextlib
from typing import Any

from fabric.cni.attachment import Record
from fabric.cni.config import load
from fabric.control_client import (
    DEFAULT_RUN_DIR,
    ControlClient,
    DaemonRefusedError,
    DaemonUnavailableError,
)

PATIENCE = 0.5
"""Seconds: nobody waits for it longer."""
KINDS = ("veth", "bridge")


def announce(record: Record) -> None:
    """Make the pod known."""
    if record.kind in KINDS:
        _tell(record, "endpoint.add", described(record))


def withdraw(record: Record) -> None:
    """The pod is gone."""
    if record.kind in KINDS:
        _tell(record, "endpoint.delete", {"name": record.attachment.port})


def described(record: Record) -> dict[str, Any]:
    """The attachment as the daemon gets it, the keys of `port.add` among them."""
    attachment = record.attachment
    found: dict[str, Any] = {"name": attachment.port, "netns": record.netns, "ifname": attachment.ifname}
    found["addresses"] = [str(address) for address in record.addresses]
    found |= {"mtu": record.mtu} if record.mtu else {}
    found |= {"kind": record.kind} if record.kind != "tun" else {}
    found |= {"mac": record.mac} if record.kind == "tap" else {}
    return found | {key: dict(value) for key, value in (("pod", record.pod), ("labels", record.labels)) if value}


def _tell(record: Record, method: str, params: dict[str, Any]) -> None:
    run_dir = load(dict(record.document)).path("rundir", DEFAULT_RUN_DIR)
    with contextlib.suppress(DaemonUnavailableError, DaemonRefusedError), ControlClient(run_dir, PATIENCE) as daemon:
        daemon.ask(method, params)
