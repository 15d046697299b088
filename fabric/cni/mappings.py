"""`runtimeConfig.portMappings` and `ipMasq`: what the host's firewall is to do for one attachment. Pure.

Source: containernetworking/plugins `plugins/meta/portmap/main.go`, which is what runtimes expect of the capability
`portMappings`; they give it to the plugins whose entry in the list declares it, and to no other.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from fabric import jsonsafe
from fabric.cni.config import Conf, refuse
from fabric.cni.errors import INVALID_CONFIG, CniError, shown
from fabric.cni.result import Address

PROTOCOLS = ("tcp", "udp", "sctp")
FLANNELS_DELEGATE = "bridge"
UNSUPPORTED = {
    "masqall": "chain the reference plugin `portmap` for it",
    "conditionsv4": "chain the reference plugin `portmap` for it",
    "conditionsv6": "chain the reference plugin `portmap` for it",
}


class Mapping(NamedTuple):
    """A port of the host that leads to a port of the pod; `host` None is any address, of the IP version if given."""

    protocol: str
    host_port: int
    pod_port: int
    host: Address | None = None
    version: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host and self.host.version == 6 else str(self.host or "*")
        return f"{host}:{self.host_port}/{self.protocol}"


class HostSide(NamedTuple):
    """`snat`: who reaches a pod by a mapping and would not be answered by the same way is masqueraded."""

    mappings: tuple[Mapping, ...] = ()
    snat: bool = True
    masquerade: bool = False

    def __bool__(self) -> bool:
        return bool(self.mappings) or self.masquerade


def wanted(conf: Conf) -> HostSide:
    """What the configuration asks for. Raises CniError (2, 7).

    flannel's delegate gets what the list's entry of flannel declares, and leaves mappings to others.
    """
    if conf.type == FLANNELS_DELEGATE:
        return HostSide(masquerade=conf.flag("ipmasq"))
    listed = jsonsafe.fold_keys(conf.section("runtimeconfig")).get("portmappings")
    if listed is not None and not isinstance(listed, list):
        raise CniError(INVALID_CONFIG, "portMappings must be a list", shown(listed))
    if listed:
        refuse(conf, UNSUPPORTED)
    mappings = tuple(dict.fromkeys(_mapping(item) for item in listed or ()))
    _refuse_ambiguous(mappings)
    return HostSide(mappings, conf.flag("snat", True), conf.flag("ipmasq"))


def _mapping(item: object) -> Mapping:
    if not isinstance(item, dict):
        raise CniError(INVALID_CONFIG, "portMappings has an entry that is no object", shown(item))
    fields = jsonsafe.fold_keys(item)
    protocol, host = fields.get("protocol") or PROTOCOLS[0], fields.get("hostip") or ""
    if not isinstance(protocol, str) or protocol.lower() not in PROTOCOLS:
        raise CniError(INVALID_CONFIG, f"portMappings: protocol must be one of {', '.join(PROTOCOLS)}", shown(protocol))
    host_port, pod_port = _port(fields.get("hostport"), "host"), _port(fields.get("containerport"), "container")
    address = _address(host)
    if address is None:
        return Mapping(protocol.lower(), host_port, pod_port)
    return Mapping(
        protocol.lower(), host_port, pod_port, None if address.is_unspecified else address, address.version
    )


def _port(value: object, what: str) -> int:
    if type(value) is not int or not 0 < value < 1 << 16:
        raise CniError(INVALID_CONFIG, f"Invalid {what} port number: {shown(value)}")
    return value


def _address(text: object) -> Address | None:
    if text == "":
        return None
    try:
        if not isinstance(text, str) or "%" in text:
            raise ValueError
        address = ip_address(text)
    except ValueError:
        raise CniError(INVALID_CONFIG, "portMappings: hostIP is no address", shown(text)) from None
    return getattr(address, "ipv4_mapped", None) or address


def _refuse_ambiguous(mappings: tuple[Mapping, ...]) -> None:
    """Two ports of the pod at one port of the host."""
    seen: dict[tuple[object, ...], Mapping] = {}
    for mapping in mappings:
        for version in (mapping.version,) if mapping.version else (4, 6):
            key = (mapping.protocol, mapping.host_port, mapping.host, version)
            other = seen.setdefault(key, mapping)
            if other.pod_port != mapping.pod_port:
                ports = f"to both {other.pod_port} and {mapping.pod_port} of the container"
                raise CniError(INVALID_CONFIG, f"portMappings: {mapping} cannot lead {ports}")
