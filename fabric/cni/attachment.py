"""One attachment, what it is called everywhere, and what is remembered of it. Pure.

Every object of an attachment has a name that follows from the attachment alone: what a crash leaves is found again
without a record. An attachment is (network, container id, interface); CNI makes it unique.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.cni.digest import sha256
from fabric.cni.errors import CniError
from fabric.cni.protocol import is_name
from fabric.cni.result import AddressInterface, IPConfig, Route, emit_ip, emit_route, parse_ips, parse_routes

RECORD_VERSION = 1
MAX_BYTES = 2 << 20  # twice a configuration
PORT_PREFIX = "cni"


class Attachment(NamedTuple):
    """An interface of a container in a network. The names were checked when the request was read."""

    network: str
    container_id: str
    ifname: str

    @property
    def key(self) -> str:
        """Its record's file name; a container id has no `@`."""
        return f"{self.container_id}@{self.ifname}"

    @property
    def port(self) -> str:
        """Its port's name in the daemon."""
        return f"{port_prefix(self.network)}{self.container_id}/{self.ifname}"

    @property
    def host_interface(self) -> str:
        """The name of its host interface: `veth` and 11 hexadecimal digits (44 bits of a hash)."""
        text = "\0".join((self.network, self.container_id, self.ifname))
        return f"veth{sha256(text.encode())[:11]}"


def port_prefix(network: str) -> str:
    """What the names of all ports of a network start with."""
    return f"{PORT_PREFIX}/{network}/"


def parse_port(name: str, network: str) -> Attachment | None:
    """The attachment of a port of this network, None for any other port."""
    container_id, slash, ifname = name.removeprefix(port_prefix(network)).partition("/")
    ours = name.startswith(port_prefix(network)) and slash and is_name(container_id) and ifname
    return Attachment(network, container_id, ifname) if ours else None


def parse_any_port(name: str) -> Attachment | None:
    """The attachment of a port of whatever network; None for a port that is not the plugin's."""
    network = name.removeprefix(f"{PORT_PREFIX}/").partition("/")[0]
    return parse_port(name, network) if is_name(network) else None


def parse_key(network: str, key: str) -> Attachment | None:
    """The attachment of a record's file name; None for a file of another sort."""
    container_id, at, ifname = key.partition("@")
    return Attachment(network, container_id, ifname) if at and is_name(container_id) and ifname else None


class Record(NamedTuple):
    """What ADD is going to make, written when the addresses are known; all that DEL, CHECK and GC need later.

    `netns` is CNI_NETNS. `ips` and `routes` are those of the container's interface. `mtu` is in bytes, 0 when nobody
    said; `mac` is the one that was asked for, if any. `pod` and `labels` are those of `identity`. `boot_id` is
    the boot in which ADD was called, empty in records of earlier versions. `document` is the
    configuration with its `ipam` section filled in: DEL goes by it, also when the configuration has changed since.
    """

    attachment: Attachment
    kind: str
    netns: str
    document: Mapping[str, Any]
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    mtu: int = 0
    mac: str = ""
    pod: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    boot_id: str = ""

    @property
    def addresses(self) -> tuple[AddressInterface, ...]:
        """Those of `ips`."""
        return tuple(ip.address for ip in self.ips)

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions that the pod has."""
        return frozenset(ip.address.version for ip in self.ips)

    @property
    def alias(self) -> str:
        """What `ip link` shows about the host's interface."""
        return f"fabric-cni {self.attachment.network}/{self.attachment.container_id}/{self.attachment.ifname}"

    def emit(self) -> bytes:
        """The record's bytes."""
        # ASCII: texts from outside may hold halves of surrogate pairs, which no encoding takes.
        text = json.dumps(
            {
                "version": RECORD_VERSION,
                "network": self.attachment.network,
                "containerID": self.attachment.container_id,
                "ifname": self.attachment.ifname,
                "kind": self.kind,
                "netns": self.netns,
                "ips": [emit_ip(ip) for ip in self.ips],
                "routes": [emit_route(route) for route in self.routes],
                "mtu": self.mtu,
                "mac": self.mac,
                "pod": dict(self.pod),
                "labels": dict(self.labels),
                "bootID": self.boot_id,
                "config": dict(self.document),
            }
        )
        return text.encode("ascii")


def parse_record(data: bytes, attachment: Attachment) -> Record:
    """The record of this attachment. Raises ValueError for anything else."""
    value = jsonsafe.loads(data, max_bytes=MAX_BYTES)
    if not isinstance(value, dict) or value.get("version") != RECORD_VERSION:
        raise ValueError("it is no record of this version")
    if (value.get("network"), value.get("containerID"), value.get("ifname")) != tuple(attachment):
        raise ValueError("it is the record of another attachment")
    kind, netns, mac, mtu, document = (value.get(key) for key in ("kind", "netns", "mac", "mtu", "config"))
    texts = isinstance(kind, str) and isinstance(netns, str) and isinstance(mac, str)
    if not texts or not isinstance(document, dict) or type(mtu) is not int:
        raise ValueError("its fields are of the wrong type")
    try:
        ips, routes = parse_ips(value.get("ips")), parse_routes(value.get("routes"))
    except CniError as error:
        raise ValueError(str(error)) from None
    pod, labels = (_texts(value.get(key)) for key in ("pod", "labels"))
    boot_id = value.get("bootID", "")
    if not isinstance(boot_id, str):
        raise ValueError("its fields are of the wrong type")
    return Record(attachment, str(kind), str(netns), document, ips, routes, mtu, str(mac), pod, labels, boot_id)


def _texts(value: object) -> dict[str, str]:
    """Absent in records of earlier versions."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("its fields are of the wrong type")
    return value
