"""Reservations and records of pods that went without DEL, removed at the start; the work is `fabric.cni.reclaim`'s.

`<state-dir>/cni.json` has the boot in which this was last done: in the same boot only the pods that this start has lost
are looked at. The plugin's modules are loaded when there is something to look at, and not otherwise.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fabric.boot import boot_id
from fabric.files import write_atomic
from fabric.flags import Options
from fabric.model import Endpoint

if TYPE_CHECKING:
    from fabric.cni.reclaim import Outcome

log = logging.getLogger("fabric")
NAME = "cni.json"


async def release(options: Options, lost: Sequence[Endpoint], rebooted: bool, subnet_file: bool) -> bool:
    """Remove what pods have left that are gone for certain; False when some of it is left. Never raises.

    `lost` are the daemon's own, of before a reboot when `rebooted`. `subnet_file` says whether there was a subnet.env
    when this start began: then pods of type `flannel` may have been added since the boot.
    """
    path = Path(options.state_dir) / NAME
    now, before = boot_id(), _last(path)
    data_dir = Path(options.cni_data_dir)
    if (before == now and not lost) or not _is_there(data_dir):
        return True
    if not any(os.access(path, os.W_OK) for path in (data_dir, data_dir.parent)):
        log.info("%s is not ours to change: what pods that are gone have left is left to DEL or GC", data_dir)
        return False
    flannels = before not in ("", now) and not subnet_file
    try:
        found = await asyncio.to_thread(_release, data_dir, lost, rebooted, now, before != now, flannels)
    except Exception:  # whatever it is: pods that are gone keep no node from forwarding
        log.exception("what pods that are gone have left is not released: it is left to GC")
        return False
    if found.removed:
        log.info("released what %d pods that are gone had left: records, addresses, port mappings", found.removed)
    for problem in found.problems[:5]:
        log.warning("what a pod that is gone had is left to DEL or GC: %s", problem)
    return not found.problems


def remember(options: Options) -> None:
    """This boot was looked at, all of it, by a start that has come this far."""
    path, now = Path(options.state_dir) / NAME, boot_id()
    if _last(path) == now:
        return
    try:
        write_atomic(path, json.dumps({"version": 1, "boot_id": now}).encode(), 0o600, 0o700)
    except OSError as error:
        log.warning("--state-dir: %s cannot be written: %s: the next start looks again", path, error.strerror)


def _is_there(data_dir: Path) -> bool:
    return os.path.isdir(data_dir) or os.path.isdir(data_dir.parent / "flannel")


def _release(
    data_dir: Path, lost: Sequence[Endpoint], rebooted: bool, boot: str, others: bool, flannels: bool
) -> Outcome:
    from fabric.cni import reclaim
    from fabric.cni.logs import muted

    pods = [reclaim.Lost(endpoint.name, endpoint.netns, rebooted) for endpoint in lost]
    with muted():
        found = reclaim.lost(data_dir, pods, boot)
        if others:
            found += reclaim.rebooted(data_dir, boot)
        if flannels:
            found += reclaim.flannels(data_dir.parent / "flannel")
    return found


def _last(path: Path) -> str:
    """The boot of the last look; empty when that is not known."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    last = value.get("boot_id") if isinstance(value, dict) else ""
    return last if isinstance(last, str) else ""
