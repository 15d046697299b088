"""The daemon's answers as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from time import time
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

STATE_STYLE = {"own": "bold", "used": "green", "remembered": "yellow", "quarantined": "red", "malformed": "red"}


def show(method: str, result: Any, every: bool, console: Console | None = None) -> None:
    """Print the answer to `method`; `every` also shows counters that are zero."""
    console = console or Console()
    makers: Mapping[str, Callable[[Any], Table]] = {
        "status": status,
        "leases": leases,
        "peers": peers,
        "routes": routes,
        "endpoint.list": pods,
    }
    console.print(counters(result, every) if method == "counters" else makers[method](result))


def status(result: Mapping[str, Any]) -> Table:
    """Two columns, one fact per row."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    backend, store, dataplane = result["backend"], result["store"], result["dataplane"]
    vni = f", VNI {backend['vni']}" if backend["type"] == "vxlan" else ""
    port = f", UDP port {backend['port']}" if backend["port"] else ""
    kernel = " by the kernel" if backend["kernel"] else ""
    peers_text = f"{result['peers']['used']} used"
    if result["peers"]["quarantined"]:
        peers_text += f", {result['peers']['quarantined']} quarantined (see: fabricctl peers)"
    rows = {
        "node": f"{result['node']} (fabricd {result['version']}, pid {result['pid']})",
        "up for": _duration(result["uptime"]),
        "subnet": ", ".join(result["subnets"]),
        "lease ends": _until(result["lease"]["expires"]),
        "interface": f"{result['interface']} {', '.join(result['underlay'])}",
        "public IP": ", ".join(result["public"]),
        "backend": f"{backend['type']}{kernel}{vni}{port}",
        "device": f"{result['device']}, MTU {result['mtu']}",
        "peers": peers_text,
        "store": f"{store['kind']}, {store['url']}: "
        + ("available" if store["available"] else f"unavailable: {store['reason']}"),
        "firewall": _firewall(result["firewall"]),
        "health": ("ready" if result["health"]["ready"] else "not ready")
        + (f", asked at {result['health']['endpoint']}" if result["health"]["endpoint"] else ""),
    }
    for name, value in dataplane.items():
        rows[f"data path {name}".replace("_", " ")] = _words(value)
    for name, value in rows.items():
        table.add_row(name, _text(str(value)))
    for name in ("health", "kernel", "firewall"):
        for problem in result[name]["problems"]:
            table.add_row(f"{name} problem", _text(problem), style="red")
    return table


def _firewall(firewall: Mapping[str, Any]) -> str:
    wanted = (("masquerade", "masquerading"), ("forward_rules", "forwarding"))
    return " and ".join(text for name, text in wanted if firewall[name]) or "no rules wanted"


def leases(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per lease, our own marked."""
    table = _table("", "subnet", "owner", "public IP", "backend", "MAC", "ends", "state")
    for lease in result:
        table.add_row(
            "*" if lease["own"] else "",
            _text(", ".join(lease["subnets"]) or lease["key"]),
            _text(lease["owner"]),
            ", ".join(lease["public"]),
            _text(lease.get("backend", "")),
            ", ".join(lease.get("macs", [])),
            "never" if lease["ttl"] is None else f"in {_duration(lease['ttl'])}",
            _state(lease),
        )
    return table


def peers(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per lease."""
    table = _table("subnet", "public IP", "way", "MAC", "lease ends", "state")
    for peer in result:
        table.add_row(
            _text(", ".join(peer["subnets"]) or peer["key"]),
            ", ".join(peer["public"]),
            _text(peer["way"]),
            ", ".join(peer.get("macs", [])),
            _until(peer.get("expires")),
            _state(peer),
        )
    return table


def _state(item: Mapping[str, Any]) -> Text:
    """The state of a lease in its colour, and why it is not used (wholly)."""
    state = Text(item["state"], style=STATE_STYLE.get(item["state"], ""))
    if item["reason"]:
        state.append(_text(f": {item['reason']}"))
    return state


def routes(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per route."""
    table = _table("prefix", "via", "device", "underlay", "MTU")
    for route in result:
        table.add_row(route["prefix"], route["via"], route["device"], route["underlay"], str(route["mtu"]))
    return table


def pods(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per interface. A pod whose runtime gave no name has its container's id; what is wrong is last."""
    table = _table("NAMESPACE", "NAME", "IP", "PORT", "KIND", "AGE", "SENT", "RECEIVED", "DROPS", "")
    for item in result:
        pod = item["pod"]
        table.add_row(
            _text(pod["namespace"] or "-"),
            _text(pod["name"] or pod["container_id"] or "-"),
            ", ".join(item["addresses"]),
            _text(item["name"]),
            item["kind"],
            _duration(max(0.0, time() - item["since"])),
            *_traffic(item.get("traffic")),
            _text(item["problem"]),
            style="red" if item["problem"] else None,
        )
    return table


def _traffic(counts: Mapping[str, int] | None) -> tuple[str, str, str]:
    """Bytes and frames from a pod and to it, and drops; nothing for a pod that passes no worker."""
    if counts is None:
        return "", "", ""
    sent, received = (f"{decimal(counts[f'bytes_{way}'])} ({counts[f'frames_{way}']:,})" for way in ("from", "to"))
    return sent, received, f"{counts['drops']:,}"


def counters(result: Mapping[str, int], every: bool) -> Table:
    """One row per counter, zeros left out unless `every`."""
    table = _table("counter")
    table.add_column("value", justify="right")
    for name, value in result.items():
        if value or every:
            table.add_row(name, f"{value:,}")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(value: str) -> Text:
    """Text as it is, markup and terminal control characters disarmed: others write keys and values of the store."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))


def _until(expires: float | None) -> str:
    return "never" if expires is None else f"in {_duration(max(0.0, expires - time()))}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_words(item) for item in value)
    return str(value)
