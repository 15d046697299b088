"""Leases as they lie in the store: keys and values byte for byte as flannel's etcd manager writes them.

Key: `<prefix>/subnets/10.244.1.0-24`, dual stack `…/10.244.1.0-24&fd00:1::-64`. Value: `LeaseAttrs` JSON.
Source: flannel `pkg/subnet/subnet.go` (MakeSubnetKey, ParseSubnetKey), `pkg/lease/lease.go`. flannel has no key for a
lease without IPv4; ours then carries `0.0.0.0-0` in front, which only our own stores ever see. A store that knows whose
lease it is (Kubernetes) adds the node's name: `10.244.1.0-24@node1`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError
from typing import Any

from fabric import jsonsafe
from fabric.model import Address, Lease

DEFAULT_PREFIX = "/coreos.com/network"
TTL = 24 * 3600.0
MAX_VALUE_BYTES = 64 << 10
UNREADABLE = b"!"  # no JSON begins so
_KEY = re.compile(
    r"([0-9]{1,3}(?:\.[0-9]{1,3}){3})-([0-9]{1,2})(?:&([a-f0-9:]{2,39})-([0-9]{1,3}))?(?:@([a-z0-9][-.a-z0-9]{0,252}))?"
)
_NO_IPV4 = "0.0.0.0-0"


class LeaseFormatError(ValueError):
    """A key or value that is not a lease. The message is one line."""


def subnets_prefix(prefix: str = DEFAULT_PREFIX) -> str:
    """The prefix under which all lease keys lie, with its final slash."""
    return prefix.rstrip("/") + "/subnets/"


def key_of(subnet: IPv4Network | None, ipv6_subnet: IPv6Network | None, node: str = "") -> str:
    """The last component of the lease's key."""
    first = f"{subnet.network_address}-{subnet.prefixlen}" if subnet else _NO_IPV4
    second = "" if ipv6_subnet is None else f"&{ipv6_subnet.network_address}-{ipv6_subnet.prefixlen}"
    return f"{first}{second}@{node}" if node else f"{first}{second}"


def parse_key(key: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The subnets of a key's last component, with or without a node's name. Raises LeaseFormatError."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise LeaseFormatError("the key is not of the form ADDRESS-LENGTH")
    try:
        subnet = None if key.startswith(_NO_IPV4 + "&") else IPv4Network(f"{match[1]}/{match[2]}")
        ipv6_subnet = IPv6Network(f"{match[3]}/{match[4]}") if match[3] else None
    except (AddressValueError, NetmaskValueError, ValueError):
        raise LeaseFormatError("the key is not a network address with its length") from None
    if subnet is not None and subnet.prefixlen == 0:
        raise LeaseFormatError("the key names the whole address space")
    return subnet, ipv6_subnet


def emit_value(lease: Lease) -> bytes:
    """LeaseAttrs JSON of `lease`: `PublicIP` and `PublicIPv6` always, the backend's fields only when they are set."""
    fields: dict[str, Any] = {
        "PublicIP": str(lease.public_ip) if lease.public_ip else "0.0.0.0",
        "PublicIPv6": str(lease.public_ipv6) if lease.public_ipv6 else None,
    }
    if lease.backend_type:
        fields["BackendType"] = lease.backend_type
    if lease.backend_data is not None:
        fields["BackendData"] = lease.backend_data
    if lease.backend_v6_data is not None:
        fields["BackendV6Data"] = lease.backend_v6_data
    return jsonsafe.dumps(fields).encode()


def unreadable(reason: str) -> bytes:
    """The value by which a store says that it cannot make LeaseAttrs of what it holds; `parse` raises the reason."""
    return UNREADABLE + reason[:200].encode("utf-8", "replace")


def parse(key: str, value: bytes, expires: float | None = None, revision: int = 0) -> Lease:
    """The lease under `key` (its last component). Raises LeaseFormatError; says nothing about what it means to us."""
    subnet, ipv6_subnet = parse_key(key)
    if value.startswith(UNREADABLE):
        raise LeaseFormatError(ascii(value[1:201].decode("utf-8", "replace"))[1:-1])
    try:
        document = jsonsafe.loads(value, max_bytes=MAX_VALUE_BYTES)
        if b"\\ud" in value or b"\\uD" in value:
            jsonsafe.dumps(document).encode()
    except jsonsafe.JsonError as error:
        raise LeaseFormatError(f"the value is not valid JSON: {error}") from None
    except UnicodeEncodeError:  # it could not be written to our state file, and with it no other lease
        raise LeaseFormatError("the value holds half of a surrogate pair") from None
    if not isinstance(document, dict):
        raise LeaseFormatError("the value is not a JSON object")
    fields = jsonsafe.fold_keys(document)
    kind = fields.get("backendtype")
    kind = "" if kind is None else kind
    if not isinstance(kind, str) or len(kind) > 64:
        raise LeaseFormatError("BackendType is not a short string")
    public_ip = _address(fields, "PublicIP", IPv4Address)
    public_ipv6 = _address(fields, "PublicIPv6", IPv6Address)
    return Lease(
        subnet=subnet,
        ipv6_subnet=ipv6_subnet,
        public_ip=public_ip if isinstance(public_ip, IPv4Address) and int(public_ip) else None,
        public_ipv6=public_ipv6 if isinstance(public_ipv6, IPv6Address) and int(public_ipv6) else None,
        backend_type=kind,
        backend_data=fields.get("backenddata"),
        backend_v6_data=fields.get("backendv6data"),
        expires=expires,
        revision=revision,
        key=key,
        node=key.partition("@")[2],
    )


def parse_mac(data: Any) -> bytes | None:
    """The six bytes of `VtepMAC` in a vxlan backend's data, None when it is missing or no unicast address."""
    text = jsonsafe.fold_keys(data).get("vtepmac") if isinstance(data, dict) else None
    return _mac(text) if isinstance(text, str) and len(text) == 17 else None


@lru_cache(maxsize=8192)  # every change of one lease looks at all of them
def _mac(text: str) -> bytes | None:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}", text):
        return None
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    return None if mac[0] & 1 or not any(mac) else mac


def emit_mac(mac: bytes) -> str:
    """`c6:d2:32:6f:8f:44`, as Go prints it."""
    return ":".join(f"{byte:02x}" for byte in mac)


def new_mac(random: bytes) -> bytes:
    """A unicast, locally administered address from six random bytes (flannel `pkg/mac/mac.go`)."""
    return bytes([(random[0] & 0xFE) | 0x02]) + random[1:6]


def derived_mac(public: Address) -> bytes:
    """The MAC in VXLAN of a node whose lease names none: a function of the public address that the lease does name."""
    from hashlib import sha256  # brings OpenSSL along, which most nodes never need

    return new_mac(sha256(public.packed).digest())


def vxlan_data(vni: int, mac: bytes) -> dict[str, Any]:
    """`BackendData` of a vxlan lease. flannel's own reader breaks on further string fields, so there are none."""
    return {"VNI": vni, "VtepMAC": emit_mac(mac)}


def _address(fields: dict[str, Any], name: str, kind: type[IPv4Address] | type[IPv6Address]) -> Address | None:
    text = fields.get(name.lower())
    if text is None or text == "":
        return None
    try:
        if not isinstance(text, str) or "%" in text:
            raise ValueError("not a plain address")
        return kind(text)
    except ValueError:
        raise LeaseFormatError(f"{name} is not an address of its family") from None
