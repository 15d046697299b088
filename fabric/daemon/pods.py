"""The pods of this node: one record for each interface, which outlives the daemon, and the ports that belong to them.

Theory of operation. A record is on disk before its device is made and goes after its device, so a crash at any point
leaves at most a record without a device, which the next start drops. At a start each port is attached to the device
that an earlier run has left in the pod's namespace, before the first worker runs. It has to be the same namespace: file
and cookie are compared, and nothing of another boot is touched. What is gone for certain is dropped and said once;
what is not certain (the device is held by somebody, the namespace cannot be opened) is kept and tried again.

Attaching keeps a namespace alive (`tun.device`), so `watch` looks whether the paths still lead to the namespaces, and
lets go of the ports of pods that went without a word.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.boot import boot_id
from fabric.daemon import pods_file
from fabric.daemon.control import Descriptors
from fabric.daemon.pods_file import Known
from fabric.errors import DataplaneError, FabricError, PortLostError
from fabric.model import Endpoint
from tun.errors import DeviceError
from tun.netns import NetnsIdentity

if TYPE_CHECKING:
    from fabric.daemon.parts import Ports

log = logging.getLogger("fabric")
BUSY_SECONDS = 3.0
"""How long a start waits for a device that is still held: the process of the earlier run may be dying."""
BUSY_PAUSE = 0.02
WATCH_SECONDS = 1.0
Identify = Callable[[str], NetnsIdentity]


class Pods:
    """Of one daemon. `directory` is the state directory, `owner` whose the file in it may be (default: the caller's),
    `identify` says which namespace a path leads to now."""

    def __init__(
        self,
        directory: Path,
        dataplane: Callable[[], Ports],
        identify: Identify,
        clock: Callable[[], float],
        owner: int | None = None,
    ) -> None:
        self._directory = directory
        self._owner = owner
        self._dataplane = dataplane
        self._identify = identify
        self._clock = clock
        self._boot_id = boot_id()
        self._known: dict[str, Known] = {}
        self._waiting: dict[str, str] = {}  # recorded ports without their device, and why
        self._lost = 0
        self.frozen = False
        """A successor has our records: none is added or removed."""
        self._making: set[str] = set()
        self._made = asyncio.Event()
        self.gone: list[Endpoint] = []
        """Of those that `restore` has dropped: the ones that are gone without doubt."""
        self.rebooted = False
        """Whether they are of before a reboot."""
        self._unsaved = ""
        self._some = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        """Called when a record has come or gone."""

    # --- over a restart ---

    async def restore(self) -> None:
        """Take up what the last run has left. Never raises: a pod that cannot be had is said and kept for later."""
        found = pods_file.load(self._directory, self._owner)
        if found.problem:
            log.error("%s: %s: ports are missing until their pods are added again",
                      self._directory / pods_file.NAME, found.problem)  # fmt: skip
        if not found.pods:
            return
        if found.boot_id != self._boot_id:
            log.info("forgetting %d pods of before the reboot", len(found.pods))
            self._lost += len(found.pods)
            self.rebooted, self.gone = True, [known.endpoint for known in found.pods]
        else:
            deadline = asyncio.get_running_loop().time() + BUSY_SECONDS
            for known in found.pods:
                await self._take_up(known, deadline)
            log.info("%d pods of an earlier run are connected again, %d wait, %d are gone",
                     len(self._known) - len(self._waiting), len(self._waiting), self._lost)  # fmt: skip
        self._save()

    async def _take_up(self, known: Known, deadline: float) -> None:
        name = known.endpoint.name
        reason = self._gone(known)
        if reason:
            self._say_gone(known.endpoint, reason)
            if self._is_beyond_doubt(known):
                self.gone.append(known.endpoint)
            return
        self._remember(known)
        if not known.endpoint.is_port:
            return
        loop = asyncio.get_running_loop()
        while self._attach(known) and name in self._waiting:
            if loop.time() > deadline:
                log.error("%s; trying again every %g s", self._waiting[name], WATCH_SECONDS)
                return
            await asyncio.sleep(BUSY_PAUSE)

    def _attach(self, known: Known) -> bool:
        """Try once; False when there is nothing to try any more."""
        name = known.endpoint.name
        try:
            self._dataplane().attach_port(known.endpoint)
        except PortLostError as error:
            self._forget(name)
            self._say_gone(known.endpoint, str(error))
            return False
        except DataplaneError as error:
            self._waiting[name] = str(error)
            return True
        self._waiting.pop(name, None)
        return True

    def _gone(self, known: Known) -> str:
        """Why the pod's namespace is gone for certain; empty when it is there, or when that cannot be known."""
        path = known.endpoint.netns
        try:
            now = self._identify(path)
        except DeviceError as error:
            certain = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)
            return f"its namespace {path} is gone" if certain else ""
        return "" if known.netns is None or known.netns.is_same(now) else f"{path} is another namespace now"

    def _is_beyond_doubt(self, known: Known) -> bool:
        """Whether a pod that `_gone` is about is gone, too, where this daemon may not see all paths of the host's.

        Another namespace at its path says so. A path that is missing does where we have seen it once, and see where it
        was: in a container of our own we may have neither the directory nor the host's processes.
        """
        if known.netns is None:
            return False
        path = Path(known.endpoint.netns)
        try:
            self._identify(str(path))
        except DeviceError as error:
            missing = error.errno == errno.ENOENT and not str(path).startswith("/proc/")
            return missing and path.parent.is_dir()
        return True

    # --- requests ---

    def add_port(self, params: Mapping[str, Any], passed: Descriptors) -> dict[str, Any]:
        """`port.add`. Raises FabricError; nothing is left then, passed queues are closed."""
        return self.make_port(self.record_port(params), passed)

    def record_port(self, params: Mapping[str, Any]) -> Known:
        """The first half of `add_port`: the record. Raises FabricError."""
        self._check_frozen()
        endpoint = pods_file.parse(params, "port.add", self._clock())
        if not endpoint.is_port:
            raise FabricError(f"port.add: kind {endpoint.kind} has no port: use endpoint.add")
        known = self._new(endpoint)
        self._remember(known)
        self._making.add(endpoint.name)
        self._save()
        return known

    def withdraw_port(self, known: Known) -> None:
        """Take back what `record_port` has done."""
        self._finished(known.endpoint.name)
        self._forget(known.endpoint.name)
        self._save()

    def make_port(self, known: Known, passed: Descriptors) -> dict[str, Any]:
        """The second half: the port. Raises FabricError; the record is gone then."""
        endpoint = known.endpoint
        try:
            made = self._dataplane().add_port(endpoint, passed.take())
        except BaseException:
            self.withdraw_port(known)
            raise
        self._finished(endpoint.name)
        mtu = made.get("mtu")
        if isinstance(mtu, int):
            self._known[endpoint.name] = known._replace(endpoint=replace(endpoint, mtu=mtu))
            if mtu != endpoint.mtu:
                self._save()  # the next run may not enter the pod to look
        return dict(made)

    def delete_port(self, name: str) -> None:
        """`port.delete`. Raises DataplaneError when there is no such port."""
        self._check_frozen()
        if self._waiting.pop(name, None) is None:
            self._dataplane().delete_port(name)
        self._forget(name)
        self._save()

    def add_endpoint(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`endpoint.add`: a pod that the host's kernel connects. One of the same name is replaced."""
        self._check_frozen()
        endpoint = pods_file.parse(params, "endpoint.add", self._clock())
        if endpoint.is_port:
            raise FabricError(f"endpoint.add: a pod of kind {endpoint.kind} has a port: use port.add")
        before = self._known.get(endpoint.name)
        if before is not None and before.endpoint.is_port:
            raise FabricError(f"endpoint.add: {endpoint.name} is the name of a port")
        self._forget(endpoint.name)
        self._remember(self._new(endpoint))
        self._save()
        return pods_file.described(endpoint)

    def delete_endpoint(self, name: str) -> None:
        """`endpoint.delete`; one that is not there is fine. Raises FabricError for a port."""
        self._check_frozen()
        known = self._known.get(name)
        if known is not None and known.endpoint.is_port:
            raise FabricError(f"endpoint.delete: {name} is a port: use port.delete")
        if known is not None:
            self._forget(name)
            self._save()

    def endpoints(self) -> list[dict[str, Any]]:
        """All records, with `problem` where a port has no device, and `traffic` of those that pass the workers."""
        traffic = self._dataplane().port_counters() if self._known else {}
        return [
            {
                **pods_file.described(known.endpoint),
                "problem": self._waiting.get(name, ""),
                "traffic": traffic.get(name) if known.endpoint.is_port else None,
            }
            for name, known in sorted(self._known.items())
        ]

    def records(self) -> list[Endpoint]:
        """All endpoints, in the order in which they came."""
        return [item.endpoint for item in self._known.values()]

    def ports(self) -> list[Endpoint]:
        """The endpoints whose packets pass the workers."""
        return [item.endpoint for name, item in self._known.items() if item.endpoint.is_port]

    def counters(self) -> dict[str, int]:
        """By name, for `fabricctl counters`."""
        return {
            "pods_ports": len(self.ports()) - len(self._waiting),
            "pods_waiting": len(self._waiting),
            "pods_of_the_kernel": len(self._known) - len(self.ports()),
            "pods_lost": self._lost,
        }

    # --- while it runs ---

    async def watch(self) -> None:
        """Let go of pods that went without a word, and try again what could not be had, for ever."""
        while True:
            await self._some.wait()
            await asyncio.sleep(WATCH_SECONDS)
            self.look()

    def look(self) -> None:
        """One look of `watch`."""
        lost = set(self._dataplane().lost_ports())
        for name, known in list(self._known.items()):
            reason = "" if _unchanged(known) else self._gone(known)
            reason = reason or ("its device was deleted" if name in lost else "")
            if reason:
                self._say_gone(known.endpoint, reason)
                if known.endpoint.is_port and self._waiting.pop(name, None) is None:
                    self._dataplane().delete_port(name)
                self._forget(name)
                self._save()
            elif name in self._waiting:
                self._attach(known)
        if self._unsaved:
            self._save()

    def _finished(self, name: str) -> None:
        self._making.discard(name)
        self._made.set()

    async def idle(self) -> None:
        """Until no port has its record and is still being made."""
        while self._making:
            self._made.clear()
            await self._made.wait()

    def _check_frozen(self) -> None:
        if self.frozen:
            raise FabricError("fabricd is handing over to its successor: try again in a moment")

    def _new(self, endpoint: Endpoint) -> Known:
        if endpoint.is_port and endpoint.name in self._known:
            raise DataplaneError(f"port {endpoint.name} exists already")
        try:
            return Known(endpoint, self._identify(endpoint.netns))
        except DeviceError as error:
            if endpoint.is_port:
                raise DataplaneError(f"port {endpoint.name}: {error}") from None
            return Known(endpoint, None)  # a note of somebody else's pod: perhaps we cannot see its namespace

    def _remember(self, known: Known) -> None:
        self._known[known.endpoint.name] = known
        self._some.set()
        self.changed()

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._waiting.pop(name, None)
        if not self._known:
            self._some.clear()
        self.changed()

    def _say_gone(self, endpoint: Endpoint, reason: str) -> None:
        self._lost += 1
        log.warning("pod port %s is dropped: %s", endpoint.name, reason)

    def _save(self) -> None:
        """A full disk costs no pod its network: what could not be saved is tried again."""
        try:
            pods_file.save(self._directory, self._boot_id, self._known.values())
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._unsaved:
                log.warning("--state-dir %s cannot be written: %s: pod ports would be lost by a restart",
                            self._directory, reason)  # fmt: skip
            self._unsaved = reason
        else:
            self._unsaved = ""


def _unchanged(known: Known) -> bool:
    """The quick look, one stat(2): a file that is used again by another namespace comes with a lost device."""
    try:
        found = os.stat(known.endpoint.netns)
    except OSError:
        return False
    return known.netns is not None and (found.st_dev, found.st_ino) == known.netns[:2]
