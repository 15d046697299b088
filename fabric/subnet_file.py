"""`subnet.env`, the file by which CNI plugins learn the node's subnet and MTU.

Source: flannel `pkg/subnet/subnet.go` WriteSubnetFile: fixed order of keys, FLANNEL_SUBNET is the first usable address
with the subnet's length, mode 0644 in a 0755 directory, replaced atomically.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_interface
from pathlib import Path

from fabric.config import NetConf
from fabric.files import write_atomic
from fabric.model import Lease, Network

MAX_BYTES = 4096


def render(conf: NetConf, lease: Lease, mtu: int, ip_masq: bool) -> str:
    """The file's text. `mtu` is the pods' MTU in bytes."""
    lines: list[str] = []
    pairs = (("FLANNEL", conf.ipv4, lease.subnet), ("FLANNEL_IPV6", conf.ipv6, lease.ipv6_subnet))
    for name, limits, subnet in pairs:
        if limits is not None and subnet is not None:
            lines += [f"{name}_NETWORK={limits.network}"]
            lines += [f"{name}_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}"]
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={'true' if ip_masq else 'false'}"]
    return "\n".join(lines) + "\n"


def check(path: Path) -> None:
    """Raises OSError when `path` could not be written; nothing is made."""
    existing = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write(path: Path, conf: NetConf, lease: Lease, mtu: int, ip_masq: bool) -> None:
    """Replace `path`. Raises OSError."""
    write_atomic(path, render(conf, lease, mtu, ip_masq).encode(), 0o644, 0o755)


def previous(path: Path) -> tuple[Network, ...]:
    """The subnets of an earlier run, IPv4 first; empty when there are none that can be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return ()
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    found: list[Network] = []
    for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
        try:
            found.append(ip_interface(values[name].strip()).network)
        except (KeyError, ValueError):
            continue
    return tuple(found)
