"""What has to be done as root before a fabricd of another user starts: `python -m fabric.daemon.prepare OPTIONS`.

The unit runs it (ExecStartPre=+) before a start that is no restart, when the service manager keeps no descriptors of
ours. The devices of pods outlive the daemon in their namespaces, which only root may enter: each is opened here and
given to the service manager, from which fabricd gets it. What pods that are gone have left of the CNI plugin is root's,
too.

The state directory belongs to fabricd's user, who is not trusted here: its paths are opened only when a namespace is
there, and what is written there becomes that user's. Nothing keeps fabricd from starting; errors are said.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from time import time

from fabric import flags
from fabric.daemon import gone_pods, logs, pods_file, systemd
from fabric.daemon.pods import Pods
from fabric.errors import DataplaneError, PortLostError, StartError
from fabric.flags import Options
from fabric.forward import kept
from fabric.model import Endpoint
from tun.device import attach_in_netns
from tun.errors import DeviceError
from tun.netns import NetnsIdentity, identify

log = logging.getLogger("fabric")
GONE = (errno.ENODEV, errno.ENOENT, errno.EBADFD)


class Attacher:
    """Takes the place of the data path for `Pods`: a port is attached to by giving its queue to the service manager."""

    def __init__(self, keeper: kept.Kept) -> None:
        self._kept = keeper

    def attach_port(self, endpoint: Endpoint) -> dict[str, object]:
        """Raises PortLostError when the device is gone, DataplaneError when it cannot be had."""
        try:
            with attach_in_netns(endpoint.netns, endpoint.ifname) as device:
                self._kept.keep(kept.pod(endpoint.name), device.fds)
        except DeviceError as error:
            if error.errno == errno.EBUSY:  # it is kept already
                return {}
            raise (PortLostError if error.errno in GONE else DataplaneError)(f"port {endpoint.name}: {error}") from None
        return {}

    def add_port(self, endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
        """Nobody asks for that here."""
        raise DataplaneError(f"port {endpoint.name}: fabricd does not run yet")

    def lost_ports(self) -> list[str]:
        """None are known."""
        return []

    def port_counters(self) -> dict[str, dict[str, int]]:
        """Nothing is carried here."""
        return {}

    def delete_port(self, name: str) -> None:
        """Keep its queue no more."""
        self._kept.drop(kept.pod(name))


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a start with fabricd's options; 0 unless they are wrong."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        options = flags.parse(words)
    except StartError:
        return 0  # fabricd says so
    except SystemExit as error:
        return int(error.code or 0)
    logs.configure(options.log_format, options.verbosity)
    directory = Path(options.state_dir)
    if directory.is_dir():
        had_subnet_file = Path(options.subnet_file).exists()
        asyncio.run(prepare(options, directory.stat().st_uid, had_subnet_file, systemd.FdStore()))
        systemd.barrier()
        for name in (pods_file.NAME, gone_pods.NAME):
            give_away(directory, name)
    return 0


async def prepare(options: Options, owner: int, had_subnet_file: bool, keeper: kept.Kept) -> None:
    """Attach to what is there, and release what is not. `owner` has the state directory. Never raises."""
    pods = Pods(Path(options.state_dir), lambda: Attacher(keeper), identify_namespace, time, owner)
    try:
        await pods.restore()
        if await gone_pods.release(options, pods.gone, pods.rebooted, had_subnet_file):
            gone_pods.remember(options)
    except Exception:
        log.exception("pods of before cannot be prepared: their ports may be missing")


def identify_namespace(path: str) -> NetnsIdentity:
    """`tun.netns.identify` for a path that others wrote: anything but a namespace is not even opened."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DeviceError("open network namespace", path, error.strerror or "", errno=error.errno or 0) from None
    if found.st_dev != os.stat("/proc/self/ns/net").st_dev:
        raise DeviceError("open network namespace", path, "it is no namespace", errno=errno.EINVAL)
    return identify(path)


def give_away(directory: Path, name: str) -> None:
    """Make a file that was written here that of the directory's owner."""
    owner = directory.stat()
    try:
        fd = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # it is not there, or a link, which is none of ours
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
            os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
