"""Leases, nodes of every backend type, and the lists of states that histories are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from fabric import calc, config, leases
from fabric.config import NetConf
from fabric.model import Lease
from tests.fabric.expanders import State

PREFIX = "/coreos.com/network/subnets/"
EXPIRES = 1e9
OWN_MAC = bytes.fromhex("020000000001")


def conf(backend: Mapping[str, object], *, ipv6: bool = False) -> NetConf:
    document: dict[str, object] = {"Network": "10.244.0.0/16", "Backend": backend}
    if ipv6:
        document |= {"EnableIPv6": True, "IPv6Network": "fd00::/56"}
    return config.parse(json.dumps(document))


def value(public: str, mac: str = "", vni: int = 1, kind: str = "vxlan", **more: object) -> bytes:
    """A lease's value as flannel writes it for its type; `mac` follows from the public address when it is not given."""
    fields: dict[str, Any] = {"PublicIP": public, "PublicIPv6": None}
    if kind:
        fields["BackendType"] = kind
    if kind == "vxlan":
        fields["BackendData"] = {"VNI": vni, "VtepMAC": mac or f"02:00:00:00:00:{int(public.split('.')[-1]):02x}"}
    if kind == "extension":
        fields["BackendData"] = "data of " + public
    return json.dumps({**fields, **more}).encode()


def lease(key: str, data: bytes, revision: int = 5, expires: float | None = EXPIRES) -> Lease:
    return leases.parse(key, data, expires, revision)


def dual(number: int, kind: str = "vxlan", **more: object) -> tuple[str, bytes]:
    """Key and value of a dual-stack lease: 10.244.<number>.0/24 and fd00:0:0:<number>::/64."""
    fields: dict[str, object] = {"PublicIPv6": f"2001:db8::{number:x}"}
    if kind == "vxlan":
        fields["BackendV6Data"] = {"VNI": 1, "VtepMAC": f"02:00:00:00:06:{number:02x}"}
    return f"10.244.{number}.0-24&fd00:0:0:{number:x}::-64", value(f"192.0.2.{number}", kind=kind, **fields | more)


def node(net: NetConf, *, own: Lease | None = None, **changes: object) -> calc.Node:
    """Node 1: 192.0.2.1 (2001:db8::1), 10.244.1.0/24 (fd00:0:0:1::/64), interface eth0 with an MTU of 1500."""
    kind = net.backend.lease_type
    if own is None:
        key, data = ("10.244.1.0-24", value("192.0.2.1", kind=kind)) if net.ipv6 is None else dual(1, kind)
        own = lease(key, data, revision=3)
    addresses = tuple(ip_address(text) for text in ("192.0.2.1", "2001:db8::1")[: len(net.networks)])
    mtu = config.overlay_mtu(net, 1500)
    made = calc.Node(net, own, addresses, addresses, config.node_port_name(net.backend), 1500, mtu, "eth0")
    return replace(made, **changes)  # type: ignore[arg-type]


def links(**devices: str | None) -> calc.OnLink:
    """`links(n2="eth0", n3=None)`: 192.0.2.2 is on the link of eth0, 192.0.2.3 on none."""
    return {ip_address(f"192.0.2.{name[1:]}"): device for name, device in devices.items()}


NODES: dict[str, calc.Node] = {
    "vxlan": node(conf({"Type": "vxlan"})),
    "vxlan, direct": node(conf({"Type": "vxlan", "DirectRouting": True})),
    "vxlan, kernel": node(conf({"Type": "vxlan", "Datapath": "kernel"})),
    "vxlan, kernel, direct": node(conf({"Type": "vxlan", "Datapath": "kernel", "DirectRouting": True})),
    "vxlan, udp held": node(conf({"Type": "vxlan"}), unavailable={"udp": "port 8285 is held by somebody"}),
    "udp": node(conf({"Type": "udp"})),
    "host-gw": node(conf({"Type": "host-gw"})),
    "alloc": node(conf({"Type": "alloc"})),
    "extension": node(conf({"Type": "extension", "SubnetAddCommand": "add"})),
}
NODES6: dict[str, calc.Node] = {
    "vxlan": node(conf({"Type": "vxlan", "DirectRouting": True}, ipv6=True)),
    "vxlan, kernel": node(conf({"Type": "vxlan", "Datapath": "kernel"}, ipv6=True)),
    "host-gw": node(conf({"Type": "host-gw"}, ipv6=True)),
}

OURS = {"10.244.1.0-24": value("192.0.2.1")}
A = {"10.244.2.0-24": value("192.0.2.2")}
A_MOVED = {"10.244.2.0-24": value("192.0.2.22")}
A_GW = {"10.244.2.0-24": value("192.0.2.2", kind="host-gw")}
A_UDP = {"10.244.2.0-24": value("192.0.2.2", kind="")}
A_EXTENSION = {"10.244.2.0-24": value("192.0.2.2", kind="extension")}
B = {"10.244.3.0-24": value("192.0.2.3")}
B_UDP = {"10.244.3.0-24": value("192.0.2.3", kind="")}
C = {"10.244.4.0-24": value("192.0.2.4")}
GW = {"10.244.6.0-24": value("192.0.2.6", kind="host-gw")}
EXTENSION = {"10.244.7.0-24": value("192.0.2.7", kind="extension")}
EXTENSION_OTHER = {"10.244.7.0-24": value("192.0.2.7", kind="extension", BackendData="other data")}
CLASH = {"10.244.2.0-23": value("192.0.2.5")}
CLASH_GW = {"10.244.2.0-23": value("192.0.2.5", kind="host-gw")}
SAME_IP = {"10.244.5.0-24": value("192.0.2.3", "02:00:00:00:00:99")}
OTHER_VNI = {"10.244.8.0-24": value("192.0.2.8", vni=2)}
FOREIGN = {"10.244.12.0-24": value("192.0.2.12", kind="wireguard", BackendData={"PublicKey": "k", "Port": 51820})}
ALL = {**OURS, **A, **B_UDP, **GW, **EXTENSION, **OTHER_VNI, **FOREIGN}
ETH0 = {f"192.0.2.{host}": "eth0" for host in range(2, 9)}
NOWHERE: dict[str, str | None] = dict.fromkeys(ETH0)
OTHER_LINK = {**ETH0, "192.0.2.2": "eth1", "192.0.2.6": "eth1"}

STATE_LISTS: dict[str, list[State]] = {
    "a peer comes": [State(OURS), State({**OURS, **A})],
    "a peer goes": [State({**OURS, **A, **B}), State({**OURS, **B})],
    "a peer changes address and MAC": [State({**OURS, **A, **B}), State({**OURS, **A_MOVED, **B})],
    "a clash appears": [State({**A, **B}), State({**A, **B, **CLASH})],
    "a clash ends": [State({**A, **B, **CLASH}), State({**CLASH})],
    "a clash of types": [State({**A, **B}), State({**CLASH_GW}, ETH0), State({**B_UDP, **CLASH_GW}, ETH0)],
    "a public address is used twice": [State({**B}), State({**SAME_IP, **B})],
    "a peer leaves our VNI": [State({**A, **OTHER_VNI}), State({**OTHER_VNI, **B, **C})],
    "everybody goes": [State(ALL, ETH0), State({}, ETH0)],
    "everybody comes": [State({}), State(ALL, ETH0)],
    "on link and off again": [State(ALL, ETH0), State(ALL, NOWHERE), State(ALL, ETH0), State(ALL, {})],
    "on another link": [State(ALL, ETH0), State(ALL, OTHER_LINK)],
    "a peer goes through all types": [
        State({**OURS, **kind, **GW}, ETH0) for kind in (A, A_UDP, A_GW, A_EXTENSION, A_UDP, A, A_GW)
    ],
    "a peer comes back as host-gw": [State({**A, **B}, ETH0), State({**B}, ETH0), State({**A_GW, **B}, ETH0)],
    "data of an extension": [State(EXTENSION), State(EXTENSION_OTHER), State({**EXTENSION, **A})],
    "everything at once": [
        State(A), State({**B, **CLASH}, ETH0), State({**OURS, **A_MOVED, **SAME_IP, **GW}, NOWHERE),
        State({**OURS, **A_GW, **B_UDP, **C, **CLASH, **EXTENSION, **GW}, ETH0),
    ],
}  # fmt: skip
