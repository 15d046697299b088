"""TUN and TAP devices: make, attach to, adopt, configure, hand over.

python-pytun opens /dev/net/tun and creates the device. What it has no call for is done here by single ioctls: sizes of
the virtio-net header, offloads, reading back name and flags of a passed fd (pytun cannot adopt one), the namespace of a
device. Its object is dropped at once after its fd was duplicated (pytun opens without O_CLOEXEC), so that created,
attached and adopted devices are all the same: a list of queue fds.

A TUN fd keeps the network namespace alive in which /dev/net/tun was opened, not the one its device is in. Pod devices
are therefore made here and then moved: when the pod's namespace goes, its device goes and the fd says EBADFD. A device
made inside the pod's namespace would keep that namespace alive for as long as we hold the fd. Attaching again to a
persistent device in a pod has no such way around it (the kernel looks for the name where the fd was opened): whoever
uses `attach_in_netns` has to let go when the pod is gone.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import pytun  # type: ignore[import-not-found,import-untyped,unused-ignore]

from tun import link, offload
from tun.errors import TUN_PATH, DeviceError, PortGone, busy_error, create_error, link_error
from tun.netns import Netns, open_netns, run_in_netns, same_netns
from tun.offload import Features
from tun.virtio import HEADER_SIZES
from tun.vnet import VNET_HEADER_SIZE

T = TypeVar("T")

DEFAULT_TXQUEUELEN = 1000
MAX_NAME_BYTES = 15
MAX_QUEUES = 256
_TEMPORARY_NAME = "fabtmp%d"  # the kernel puts the first free number


class Kind(enum.Enum):
    TUN = offload.IFF_TUN
    TAP = offload.IFF_TAP


class Device:
    """A TUN/TAP device held open by one fd per queue (non-blocking, close-on-exec). Made by the functions below.

    fds: queue fds. kind: TUN or TAP. header_size: bytes of virtio-net header on every frame, 10 or 24.
    features: what it takes on write; `probe()` may lessen it. Closing the last fd deletes a device unless persistent.
    """

    def __init__(self, fds: Sequence[int], name: str, kind: Kind, header_size: int, features: Features) -> None:
        self.fds = list(fds)
        self.kind = kind
        self.header_size = header_size
        self.features = features
        self._last_name = name

    @property
    def name(self) -> str:
        """The current name, also after a rename; the last known one when the device is gone."""
        if self.fds:
            with contextlib.suppress(OSError):  # deleted: keep the last name for messages
                self._last_name = _interface(self.fds[0])[0]
        return self._last_name

    @property
    def persistent(self) -> bool:
        return bool(self._call("read", lambda: _interface(self._fd())[1]) & offload.IFF_PERSIST)

    @property
    def gone(self) -> bool:
        """Whether somebody else deleted the device, or it went with its namespace."""
        try:
            _interface(self._fd())
        except OSError:
            return True
        return False

    def in_netns(self, netns: Netns) -> bool:
        """Whether the device is in that namespace. Raises DeviceError when either cannot be opened."""
        target = open_netns(netns)
        try:
            inode = os.fstat(target).st_ino
        finally:
            os.close(target)
        return self._call("read the namespace of", lambda: _device_netns(self._fd())) == inode

    @property
    def mtu(self) -> int:
        return self._inside("read the MTU of", lambda: link.get_mtu(self.name))

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._inside(f"set MTU {mtu} on", lambda: link.set_mtu(self.name, mtu))

    @property
    def mac(self) -> bytes:
        """Of a TAP, 6 bytes; of a TUN zeros."""
        return self._call("read the MAC of", lambda: offload.hardware_address(self._fd()))

    @property
    def txqueuelen(self) -> int:
        return self._inside("read txqueuelen of", lambda: link.get_txqueuelen(self.name))

    @txqueuelen.setter
    def txqueuelen(self, packets: int) -> None:
        self._inside(f"set txqueuelen {packets} on", lambda: link.set_txqueuelen(self.name, packets))

    @property
    def up(self) -> bool:
        return self._inside("read flags of", lambda: link.is_up(self.name))

    @up.setter
    def up(self, up: bool) -> None:
        self._inside("bring up" if up else "bring down", lambda: link.set_up(self.name, up))

    def persist(self, on: bool) -> None:
        """Keeps the device after the last close (on), or lets it go with the last close (off)."""
        self._call("set persistence of", lambda: fcntl.ioctl(self._fd(), offload.TUNSETPERSIST, int(on)))

    def probe(self) -> Features:
        """Writes the test superframes (`offload.probe_write`; device up) and keeps what works in `features`."""
        self.features = offload.probe_write(self._fd(), self.features)
        return self.features

    def move(self, netns: Netns, name: str | None = None) -> None:
        """Moves the device to another namespace, as `name`; it arrives down. DeviceError: the name is taken there."""
        new_name = check_name(self.name if name is None else name)
        target = open_netns(netns)
        try:
            self._inside(f"move to {netns} as {new_name} the device", lambda: link.move(self.name, target, new_name))
        finally:
            os.close(target)

    def close(self) -> None:
        """Closes all queues; a second call does nothing."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _fd(self) -> int:
        if not self.fds:
            raise PortGone("use", self._last_name, "it is closed", errno=errno.EBADF)
        return self.fds[0]

    def _inside(self, what: str, function: Callable[[], T]) -> T:
        """Calls `function` in the device's own namespace."""

        def call() -> T:
            namespace = fcntl.ioctl(self._fd(), offload.TUNGETDEVNETNS)
            try:
                return function() if same_netns(namespace) else run_in_netns(namespace, function)
            finally:
                os.close(namespace)

        return self._call(what, call)

    def _call(self, what: str, function: Callable[[], T]) -> T:
        try:
            return function()
        except OSError as error:
            raise link_error(what, self._last_name, error) from None


def check_name(name: str) -> str:
    """The name when the kernel would take it (dev_valid_name, net/core/dev.c); DeviceError otherwise."""
    length = len(name.encode("utf-8", "surrogateescape"))
    why = ""
    if length == 0:
        why = "the name is empty"
    elif length > MAX_NAME_BYTES:
        why = f"the name has {length} bytes, at most {MAX_NAME_BYTES} fit"
    elif name in (".", "..", "all", "default"):
        why = "the name is reserved"
    elif bad := [c for c in name if c in "/:%" or c.isspace() or not c.isprintable()]:
        why = f"the name has an invalid character {bad[0]!r}"
    if why:
        raise DeviceError("use device name", repr(name), why, "choose another name", errno.EINVAL)
    return name


def create(
    name: str,
    kind: Kind = Kind.TUN,
    *,
    queues: int = 1,
    allowed: Features = Features.ALL,
    header_size: int = VNET_HEADER_SIZE,
    mtu: int | None = None,
    txqueuelen: int = DEFAULT_TXQUEUELEN,
    up: bool = False,
    persist: bool = False,
) -> Device:
    """A new device in the calling thread's namespace, with virtio-net header and the best of the `allowed` offloads.

    queues: 1, or more for a multi-queue device. header_size: 10; 24 on a TAP lets it take UDP-tunnel superframes
    (Linux 6.17; their outer header must start with Ethernet, so a TUN refuses them). mtu None: the kernel's 1500.
    Raises DeviceError: no /dev/net/tun, no privilege, bad or taken name, bad MTU. Nothing is left behind then.
    """
    return _create(check_name(name), kind, queues, allowed, header_size, mtu, txqueuelen, up, persist)


def create_in_netns(
    netns: Netns,
    name: str,
    kind: Kind = Kind.TUN,
    *,
    queues: int = 1,
    allowed: Features = Features.ALL,
    header_size: int = VNET_HEADER_SIZE,
    mtu: int | None = None,
    txqueuelen: int = DEFAULT_TXQUEUELEN,
    up: bool = False,
) -> Device:
    """`create` for a pod: the device appears in `netns` as `name` (say eth0), its queues stay with the caller.

    It is made under a temporary name in the caller's namespace, never up there, and moved (the top of this file says
    why). The fds do not keep the pod's namespace alive; when it goes, they answer EBADFD and poll says POLLERR.
    """
    check_name(name)
    os.close(open_netns(netns))  # a bad namespace is reported before anything is made
    device = _create(_TEMPORARY_NAME, kind, queues, allowed, header_size, mtu, txqueuelen, False, False)
    try:
        device.move(netns, name)
        if up:
            device.up = True
    except BaseException:
        device.close()
        raise
    return device


def attach(
    name: str, *, queues: int = 1, allowed: Features = Features.ALL, header_size: int = VNET_HEADER_SIZE
) -> Device:
    """Opens an existing persistent TUN/TAP device of the calling thread's namespace, which nobody else may hold.

    MTU, txqueuelen and up are left as found. Raises DeviceError when there is none, when it is held by another
    process (also a multi-queue one, where the kernel would let both in), or when `queues` does not fit it.
    """
    check_name(name)
    info = link.tun_info(name)
    if info is None:
        why = "it is not a TUN or TAP device" if link.exists(name) else "there is no such device"
        raise DeviceError("attach to", name, why, "create it, or choose another name", errno.ENODEV)
    if info.queues:
        raise busy_error("attach to", name)
    if queues > 1 and not info.multi_queue:
        raise DeviceError("attach to", name, f"it is no multi-queue device, {queues} queues were asked for", errno=22)
    kind = Kind.TAP if info.kind == "tap" else Kind.TUN
    flags = offload.IFF_MULTI_QUEUE if info.multi_queue else 0
    device = _open(name, kind, flags, queues, allowed, header_size)
    now = link.tun_info(name)
    # Between the two looks: another process opened queues of its own, or the device went and we made a new one.
    if now is None or not now.persistent or (now.multi_queue and now.queues != queues):
        device.close()
        raise busy_error("attach to", name)
    return device


def attach_in_netns(netns: Netns, name: str, *, allowed: Features = Features.ALL) -> Device:
    """`attach` to a device of another namespace. The namespace lives on for as long as the device is open."""
    return run_in_netns(netns, lambda: attach(name, allowed=allowed))


def adopt(fds: int | Sequence[int], allowed: Features = Features.ALL) -> Device:
    """A Device around passed queue fds (SCM_RIGHTS, systemd's fd store) of one device; it owns them from then on.

    Kind, name and header size are read from the kernel and stay as they are; offloads are set anew. Raises DeviceError
    (the fds stay the caller's) when one is no queue of a living device, they belong to different devices, or the device
    has no virtio-net header of a known size.
    """
    fds = [fds] if isinstance(fds, int) else list(fds)
    which = "fd " + ", ".join(map(str, fds))
    if not fds or len(set(fds)) != len(fds):
        raise DeviceError("adopt", which, "no fd, or the same twice", errno=errno.EINVAL)
    try:
        interfaces = {(*_interface(fd), _device_netns(fd)) for fd in fds}
        sizes = {struct.unpack("i", fcntl.ioctl(fd, offload.TUNGETVNETHDRSZ, bytes(4)))[0] for fd in fds}
    except OSError as error:
        gone = error.errno == errno.EBADFD
        why = "its device is gone" if gone else f"it is no TUN/TAP fd ({error.strerror})"
        raise (PortGone if gone else DeviceError)("adopt", which, why, "make a new one", error.errno or 0) from None
    if len(interfaces) != 1:
        raise DeviceError("adopt", which, "the fds belong to different devices", errno=errno.EINVAL)
    name, flags, _ = interfaces.pop()
    (size,) = sizes
    if not flags & offload.IFF_VNET_HDR or not flags & offload.IFF_NO_PI or size not in HEADER_SIZES:
        why = "its frames do not start with a virtio-net header of 10 or 24 bytes"
        raise DeviceError("adopt", name, why, "delete the device, it is not ours", errno.EINVAL)
    _prepare(fds)
    features = offload.negotiate(fds, allowed)
    return Device(fds, name, Kind.TAP if flags & offload.IFF_TAP else Kind.TUN, size, features)


def _create(
    name: str,
    kind: Kind,
    queues: int,
    allowed: Features,
    header_size: int,
    mtu: int | None,
    txqueuelen: int,
    up: bool,
    persist: bool,
) -> Device:
    device = _open(name, kind, offload.IFF_MULTI_QUEUE if queues > 1 else 0, queues, allowed, header_size, new=True)
    try:
        device.txqueuelen = txqueuelen
        if mtu is not None:
            device.mtu = mtu
        if persist:
            device.persist(True)
        if up:
            device.up = True
    except BaseException:
        if device.fds and persist:
            device.persist(False)
        device.close()
        raise
    return device


def _open(
    name: str, kind: Kind, flags: int, queues: int, allowed: Features, header_size: int, *, new: bool = False
) -> Device:
    if not 1 <= queues <= MAX_QUEUES or header_size not in HEADER_SIZES:
        why = f"{queues} queues (1 to {MAX_QUEUES}), virtio-net header of {header_size} bytes (10 or 24)"
        raise DeviceError("create device", name, why, errno=errno.EINVAL)
    fds: list[int] = []
    try:
        for queue in range(queues):
            exclusive = offload.IFF_TUN_EXCL if new and queue == 0 else 0
            fds.append(_open_queue(name, kind.value | flags | exclusive))
            name = _interface(fds[0])[0]  # a pattern became a name
        for fd in fds:
            fcntl.ioctl(fd, offload.TUNSETVNETHDRSZ, struct.pack("i", header_size))
        features = offload.negotiate(fds, allowed)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise link_error("set up device", name, error) from None
        raise
    return Device(fds, name, kind, header_size, features)


def _open_queue(name: str, flags: int) -> int:
    try:
        # The header flag is always set: one layout of frames whatever the offloads are.
        made = pytun.TunTapDevice(name, flags | offload.IFF_NO_PI | offload.IFF_VNET_HDR, TUN_PATH)
    except pytun.Error as error:
        raise create_error(name, error) from None
    try:
        fd = fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
    finally:
        made.close()
    _prepare([fd])
    return fd


def _prepare(fds: Sequence[int]) -> None:
    for fd in fds:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)


def _interface(fd: int) -> tuple[str, int]:
    """Name and IFF_* flags of the device behind a queue; OSError (EBADFD: device gone)."""
    reply = fcntl.ioctl(fd, offload.TUNGETIFF, bytes(40))
    return reply[:16].split(b"\0", 1)[0].decode("utf-8", "surrogateescape"), struct.unpack_from("H", reply, 16)[0]


def _device_netns(fd: int) -> int:
    """Inode of the namespace the device is in."""
    namespace = fcntl.ioctl(fd, offload.TUNGETDEVNETNS)
    try:
        return os.fstat(namespace).st_ino
    finally:
        os.close(namespace)
