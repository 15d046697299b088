"""`subnet.env` as CNI plugins read it: the node's networks, subnets and MTU. Strict, since addresses come from it.

Source: flannel cni-plugin `flannel.go` (variables, several networks with commas, the list of what is missing).
"""

from __future__ import annotations

import os
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import NamedTuple

from fabric.cni.errors import INVALID_CONFIG, TRY_AGAIN_LATER, CniError

DEFAULT_PATH = "/run/flannel/subnet.env"
MAX_BYTES = 64 << 10
ADVICE = "Check the log of fabricd (or the flannel pod) of this node"


class SubnetEnv(NamedTuple):
    """`subnet` and `ipv6_subnet` are the node's own, None for a family that is off; `mtu` is the pods', in bytes."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    subnet: IPv4Interface | None
    ipv6_subnet: IPv6Interface | None
    mtu: int
    ip_masq: bool

    @property
    def subnets(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The families in use, IPv4 first."""
        return tuple(subnet for subnet in (self.subnet, self.ipv6_subnet) if subnet is not None)


def read(path: str) -> SubnetEnv:
    """The file's content. Raises CniError: 11 while there is none (the node is not ready), 7 when it is damaged."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise CniError(TRY_AGAIN_LATER, _text(f"open {path}: {error.strerror}")) from None
    try:
        return parse(data.decode("ascii"))
    except UnicodeDecodeError:
        raise CniError(INVALID_CONFIG, _text(f"{path} is not a text file")) from None
    except ValueError as error:
        raise CniError(INVALID_CONFIG, _text(f"{path}: {error}")) from None


def parse(text: str) -> SubnetEnv:
    """Unknown lines are passed over. Raises ValueError for a bad value, or naming the variables that are missing."""
    values = dict(line.rstrip("\r").partition("=")[::2] for line in text.split("\n"))
    networks = tuple(
        dict.fromkeys(
            [IPv4Network(cidr, strict=False) for cidr in _cidrs(values, "FLANNEL_NETWORK")]
            + [IPv6Network(cidr, strict=False) for cidr in _cidrs(values, "FLANNEL_IPV6_NETWORK")]
        )
    )
    subnet = IPv4Interface(values["FLANNEL_SUBNET"]) if "FLANNEL_SUBNET" in values else None
    ipv6_subnet = IPv6Interface(values["FLANNEL_IPV6_SUBNET"]) if "FLANNEL_IPV6_SUBNET" in values else None
    missing = [] if networks else ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
    missing += [] if subnet or ipv6_subnet else ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
    missing += [name for name in ("FLANNEL_MTU", "FLANNEL_IPMASQ") if name not in values]
    if missing:
        raise ValueError(f"it is missing {', '.join(missing)}")
    mtu = values["FLANNEL_MTU"]
    if not mtu.isdecimal() or len(mtu) > 5 or not 68 <= int(mtu) <= 65535:
        raise ValueError(f"FLANNEL_MTU {mtu[:20]!r} is not a number between 68 and 65535")
    return SubnetEnv(networks, subnet, ipv6_subnet, int(mtu), values["FLANNEL_IPMASQ"] == "true")


def _cidrs(values: dict[str, str], name: str) -> list[str]:
    return values[name].split(",") if name in values else []


def _text(reason: str) -> str:
    return f"failed to load flannel 'subnet.env' file: {reason}. {ADVICE}."
