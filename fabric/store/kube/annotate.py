"""flannel's annotations on a Node: their names, what is published under them, and what is read back from them.

Source: flannel `pkg/subnet/kube/annotations.go` (names, prefix rules) and `kube.go` (AcquireLease: what is written and
when, GetStoredMacAddresses). Values are byte for byte those of flannel: the next program to read them may be flanneld.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fabric import jsonsafe, leases
from fabric.errors import ConfigError
from fabric.model import Lease

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
MANAGED = "true"
MAX_DATA_BYTES = 64 << 10
# Not anchored at the start, as in flannel.
_PREFIX = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?\Z")
_DUAL_STACK = ("vxlan", "wireguard", "host-gw", "extension")


@dataclass(frozen=True, slots=True)
class Names:
    """The full names of the annotations under one prefix."""

    managed: str
    backend_type: str
    backend_data: str
    backend_v6_data: str
    public_ip: str
    public_ipv6: str
    public_ip_overwrite: str
    public_ipv6_overwrite: str
    node_public_ip: str
    node_public_ipv6: str

    def all(self) -> tuple[str, ...]:
        """Every name, in the order of the fields."""
        return tuple(getattr(self, field) for field in self.__slots__)


def names(prefix: str = DEFAULT_PREFIX) -> Names:
    """The names for `--kube-annotation-prefix`. Raises ConfigError with flannel's message."""
    slashes = prefix.count("/")
    if slashes > 1:
        raise ConfigError("subnet/kube: prefix can contain at most single slash")
    if slashes == 0:
        prefix += "/"
    if not prefix.endswith(("/", "-")):
        prefix += "-"
    if not _PREFIX.search(prefix):
        raise ConfigError("subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*")
    return Names(
        managed=prefix + "kube-subnet-manager",
        backend_type=prefix + "backend-type",
        backend_data=prefix + "backend-data",
        backend_v6_data=prefix + "backend-v6-data",
        public_ip=prefix + "public-ip",
        public_ipv6=prefix + "public-ipv6",
        public_ip_overwrite=prefix + "public-ip-overwrite",
        public_ipv6_overwrite=prefix + "public-ipv6-overwrite",
        node_public_ip=prefix + "node-public-ip",
        node_public_ipv6=prefix + "node-public-ipv6",
    )


def overwrite(names: Names, found: Mapping[str, str], version: int) -> str:
    """The address that the administrator of a node behind a NAT wants published; empty when there is none.

    Anything that is no address of that IP version counts as none: flannel would publish it, and lose the node.
    """
    text = found.get(names.public_ip_overwrite if version == 4 else names.public_ipv6_overwrite, "")
    try:
        return text if text and "%" not in text and ip_address(text).version == version else ""
    except ValueError:
        return ""


def published(names: Names, lease: Lease, found: Mapping[str, str]) -> dict[str, str]:
    """What has to stand on the Node for `lease`, given the annotations that were `found` on it.

    Per family: vxlan and wireguard data that do not exist are not written, the other types have `null`.
    """
    data, data_v6 = jsonsafe.dumps(lease.backend_data), jsonsafe.dumps(lease.backend_v6_data)
    needs_data = lease.backend_type in ("vxlan", "wireguard")
    wanted = {names.managed: MANAGED, names.backend_type: lease.backend_type}
    if data != "null" or not needs_data:
        wanted[names.backend_data] = data
        address = overwrite(names, found, 4) or (str(lease.public_ip) if lease.public_ip else "")
        if address:
            wanted[names.public_ip] = address
    has_v6 = lease.public_ipv6 is not None and lease.backend_type in _DUAL_STACK
    if has_v6 and (data_v6 != "null" or not needs_data):
        wanted[names.backend_v6_data] = data_v6
        wanted[names.public_ipv6] = overwrite(names, found, 6) or str(lease.public_ipv6)
    return wanted


def differing(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """The part of `wanted` that a patch has to write."""
    return {name: value for name, value in wanted.items() if found.get(name) != value}


def stored_macs(names: Names, found: Mapping[str, str]) -> dict[int, bytes]:
    """The MACs by IP version that an earlier run, ours or flannel's, published on this node."""
    pairs = ((4, leases.parse_mac(_data(found, names.backend_data))),
             (6, leases.parse_mac(_data(found, names.backend_v6_data))))  # fmt: skip
    return {version: mac for version, mac in pairs if mac is not None}


def _data(found: Mapping[str, str], name: str) -> Any:
    try:
        return jsonsafe.loads(found.get(name, "null"), max_bytes=MAX_DATA_BYTES)
    except jsonsafe.JsonError:
        return None
