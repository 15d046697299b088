"""The kinds of interfaces that the plugin makes: a module each, with the functions of `Kind`, loaded when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from fabric.cni.config import Conf
from fabric.cni.errors import INVALID_CONFIG, CniError, shown

if TYPE_CHECKING:
    from fabric.cni.attachment import Record
    from fabric.cni.kinds.common import Expected
    from fabric.cni.pod import Pod
    from fabric.cni.result import Interface, Result

PORTS = ("tun", "tap")
"""Those that are ports of the daemon."""
NAMES = ("tun", "tap", "veth", "bridge")


class Kind(Protocol):
    """What a kind does. `attach` and `detach` may be repeated; all but `plan` and `ready` touch the kernel."""

    def plan(self, conf: Conf, ipam: Result, mac: str) -> Result:
        """The container's addresses and routes, from what IPAM gave. Raises CniError (2, 7)."""

    def attach(self, record: Record, pod: Pod) -> tuple[Interface, ...]:
        """Make everything; the interfaces, the container's last."""

    def detach(self, record: Record, pod: Pod | None) -> bool:
        """Remove everything that is there; False when the daemon has to be told later (`Store.postpone`)."""

    def check(self, record: Record, expected: Expected, pod: Pod) -> None:
        """Raise CniError (113) for what is not as ADD left it."""

    def ready(self, conf: Conf) -> None:
        """Raise CniError (50, 51) unless ADD can be served."""


def wanted(conf: Conf) -> str:
    """The configuration's `kind`, `tun` by default. Raises CniError (7)."""
    name = conf.text("kind", NAMES[0])
    if name not in NAMES:
        raise CniError(INVALID_CONFIG, f"kind must be one of {', '.join(NAMES)}", shown(name))
    return name


def load(name: str) -> Kind:
    """The kind of this name. Raises CniError (7) for one that this version does not have."""
    if name not in NAMES:
        raise CniError(INVALID_CONFIG, f"no kind {shown(name)} in this version")
    return cast(Kind, import_module(f"fabric.cni.kinds.{name}"))
