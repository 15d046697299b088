"""The one exception class of this package, and how the kernel's refusals become text for people."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from tun import link

TUN_PATH = "/dev/net/tun"


class DeviceError(Exception):
    """Something on a device, port or namespace failed; the text is one line for people.

    what: the operation ("create device"), which: its object (a name or path), why: the cause,
    todo: what to do about it (may be empty), errno: the kernel's number or 0.
    """

    def __init__(self, what: str, which: str, why: str, todo: str = "", errno: int = 0) -> None:
        self.what = what
        self.which = which
        self.why = why
        self.todo = todo
        self.errno = errno
        super().__init__(f"cannot {what} {which}: {why}" + (f"; {todo}" if todo else ""))


class PortGone(DeviceError):
    """The device behind a port was deleted (EBADFD), or the port was closed."""


def create_error(name: str, error: OSError) -> DeviceError:
    """For a failed open of /dev/net/tun or a failed TUNSETIFF."""
    number = error.errno or 0
    what = "create device"
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return DeviceError(what, name, f"there is no {TUN_PATH}", "load the module: modprobe tun", number)
    if number in (errno.EPERM, errno.EACCES):
        todo = f"run as root, or with CAP_NET_ADMIN and access to {TUN_PATH}"
        return DeviceError(what, name, "permission denied", todo, number)
    if number == errno.EBUSY:
        return busy_error(what, name)
    if number == errno.EINVAL and link.exists(name):
        todo = f"choose another name, or remove it: ip link del {name}"
        return DeviceError(what, name, "the name is taken by a device of another sort", todo, number)
    return DeviceError(what, name, error.strerror or str(error), errno=number)


def busy_error(what: str, name: str) -> DeviceError:
    """For a name that is in use: says whether a process holds it, and which."""
    info = link.tun_info(name)
    if info is None:
        todo = f"choose another name, or remove it: ip link del {name}"
        return DeviceError(what, name, "the name is taken by a device of another sort", todo, errno.EBUSY)
    holders = _holders(name)
    if info.persistent and not info.queues and not holders:
        todo = f"attach to it, or remove it: ip link del {name}"
        return DeviceError(what, name, "a persistent device of this name exists, held by nobody", todo, errno.EBUSY)
    by = f"another process ({', '.join(holders)})" if holders else "another process"
    todo = "stop that process or choose another name"
    return DeviceError(what, name, f"the name is taken by {by}", todo, errno.EBUSY)


def _holders(name: str) -> list[str]:
    """Processes that hold a TUN/TAP device of this name, as "pid 42 fabricd"; tun names its device in fdinfo."""
    return [holder for process in Path("/proc").glob("[0-9]*") if (holder := _holder(process, f"iff:\t{name}"))]


def _holder(process: Path, line: str) -> str:
    # What ends or closes meanwhile, or is not ours to see, is passed over.
    with contextlib.suppress(OSError):
        for info in (process / "fdinfo").iterdir():
            with contextlib.suppress(OSError):
                if line in info.read_text().splitlines():
                    return f"pid {process.name} {(process / 'comm').read_text().strip()}"
    return ""


def link_error(what: str, name: str, error: OSError) -> DeviceError:
    """For a failed setting of an existing device."""
    number = error.errno or 0
    if number in (errno.EBADFD, errno.ENODEV):
        return PortGone(what, name, "the device was deleted", "make it again", number)
    if number == errno.EPERM:
        return DeviceError(what, name, "permission denied", "run as root or with CAP_NET_ADMIN", number)
    if number == errno.EEXIST:
        return DeviceError(what, name, "the name is taken there", "choose another name", number)
    if number == errno.EINVAL and "MTU" in what:
        return DeviceError(what, name, "out of range", "a TUN takes 68 to 65535", number)
    return DeviceError(what, name, error.strerror or str(error), errno=number)
