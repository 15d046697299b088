"""Doing things to the kernel: each operation is a value, its failure is a value, and the others go on."""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from routes.netlink import Netlink, Request
from routes.state import ObjectError

HINTS = {
    errno.EPERM: "the process needs CAP_NET_ADMIN",
    errno.EACCES: "not allowed here (is net.ipv6.conf.*.disable_ipv6 set?)",
    errno.EROFS: "mount /proc/sys writable, or the host's /proc/sys/net at /host/proc/sys/net",
    errno.ENODEV: "the device went away meanwhile",
    errno.ENETDOWN: "the device is down",
    errno.ENETUNREACH: "the gateway is not on link here",
    errno.EHOSTUNREACH: "the gateway is not on link here",
    errno.EOPNOTSUPP: "this kernel has no support for it, or its module is not loaded",
    errno.EADDRINUSE: "another socket or VXLAN device holds the UDP port; `ss -ulnp` and `ip -d link` show which",
    errno.EEXIST: "another program's object is in its place and is left alone",
    errno.ENOBUFS: "the kernel is short of memory; tried again at the next check",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One request about one object. `verb` completes "<object> <verb>" in the record of changes.

    `request` makes the message when its turn comes, so that thousands do not pile up.
    `gone` are error numbers that mean it was done already (removing what is not there); `applied` runs on success.
    """

    object: str
    verb: str
    request: Callable[[], Request]
    applied: Callable[[], None]
    gone: tuple[int, ...] = ()


@dataclass(slots=True)
class Work:
    """What one reconcile has done and could not do so far."""

    changes: list[str] = field(default_factory=list)
    errors: list[ObjectError] = field(default_factory=list)

    def perform(self, netlink: Netlink, operations: Sequence[Operation]) -> None:
        """Do all operations, in order, in as few system calls as the batches allow."""
        results = netlink.perform(operation.request() for operation in operations)
        for operation, error in zip(operations, results, strict=True):
            if error is None:
                self.changes.append(f"{operation.object} {operation.verb}")
            elif error.errno not in operation.gone:
                self.fail(operation.object, error)
                continue
            operation.applied()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What the kernel refuses to do or say inside is an error of `name`; what follows goes on."""
        try:
            yield
        except OSError as error:
            self.fail(name, error)

    def fail(self, name: str, error: OSError) -> None:
        """Record that `name` could not be brought to its state, with the advice that goes with the error."""
        reason = error.strerror or str(error)
        hint = HINTS.get(error.errno or 0)
        self.errors.append(ObjectError(name, f"{reason}; {hint}" if hint else reason))
