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

from fabric.cli.plain import plain

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
        "up for": duration(result["uptime"]),
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
        "policy": _policy(result["policy"]),
        "health": ("ready" if result["health"]["ready"] else "not ready")
        + (f", asked at {result['health']['endpoint']}" if result["health"]["endpoint"] else ""),
    }
    for name, value in dataplane.items():
        rows[f"data path {name}".replace("_", " ")] = _words(value)
    for name, value in rows.items():
        table.add_row(name, text(str(value)))
    for name in ("health", "kernel", "firewall", "policy"):
        for problem in result[name]["problems"]:
            table.add_row(f"{name} problem", text(problem), style="red")
    return table


def _firewall(firewall: Mapping[str, Any]) -> str:
    wanted = (("masquerade", "masquerading"), ("forward_rules", "forwarding"))
    return " and ".join(text for name, text in wanted if firewall[name]) or "no rules wanted"


def _policy(policy: Mapping[str, Any]) -> str:
    if not policy["sources"]:
        return "off"
    sources = ", ".join(policy["sources"])
    if not policy["snapshot"]:
        return f"{sources}: not known yet, pods are closed"
    return f"{policy['objects']} objects of {sources}, snapshot {policy['snapshot']}"


def leases(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per lease, our own marked."""
    table = grid("", "subnet", "owner", "public IP", "backend", "MAC", "ends", "state")
    for lease in result:
        table.add_row(
            "*" if lease["own"] else "",
            text(", ".join(lease["subnets"]) or lease["key"]),
            text(lease["owner"]),
            ", ".join(lease["public"]),
            text(lease.get("backend", "")),
            ", ".join(lease.get("macs", [])),
            "never" if lease["ttl"] is None else f"in {duration(lease['ttl'])}",
            _state(lease),
        )
    return table


def peers(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per lease."""
    table = grid("subnet", "public IP", "way", "MAC", "lease ends", "sent", "received", "state")
    for peer in result:
        table.add_row(
            text(", ".join(peer["subnets"]) or peer["key"]),
            ", ".join(peer["public"]),
            text(peer["way"]),
            ", ".join(peer.get("macs", [])),
            _until(peer.get("expires")),
            *_carried(peer.get("traffic"), "packets", ("to", "from")),
            _state(peer),
        )
    return table


def _state(item: Mapping[str, Any]) -> Text:
    """The state of a lease in its colour, and why it is not used (wholly)."""
    state = Text(item["state"], style=STATE_STYLE.get(item["state"], ""))
    if item["reason"]:
        state.append(text(f": {item['reason']}"))
    return state


def routes(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per route."""
    table = grid("prefix", "via", "device", "underlay", "MTU")
    for route in result:
        table.add_row(route["prefix"], route["via"], route["device"], route["underlay"], str(route["mtu"]))
    return table


def pods(result: Sequence[Mapping[str, Any]]) -> Table:
    """One row per interface. A pod whose runtime gave no name has its container's id; what is wrong is last."""
    table = grid("NAMESPACE", "NAME", "IP", "PORT", "KIND", "AGE", "SENT", "RECEIVED", "DROPS", "")
    for item in result:
        pod = item["pod"]
        table.add_row(
            text(pod["namespace"] or "-"),
            text(pod["name"] or pod["container_id"] or "-"),
            ", ".join(item["addresses"]),
            text(item["name"]),
            item["kind"],
            duration(max(0.0, time() - item["since"])),
            *_traffic(item.get("traffic")),
            text(item["problem"]),
            style="red" if item["problem"] else None,
        )
    return table


def _traffic(counts: Mapping[str, int] | None) -> tuple[str, str, str]:
    """Bytes and frames from a pod and to it, and drops; nothing for a pod that passes no worker."""
    return *_carried(counts, "frames", ("from", "to")), f"{counts['drops']:,}" if counts is not None else ""


def _carried(counts: Mapping[str, int] | None, unit: str, ways: tuple[str, str]) -> tuple[str, str]:
    """Bytes and their packets or frames both ways, nothing where none are counted."""
    if counts is None:
        return "", ""
    one, other = (f"{decimal(counts[f'bytes_{way}'])} ({counts[f'{unit}_{way}']:,})" for way in ways)
    return one, other


def print_policies(result: Mapping[str, Any], console: Console | None = None) -> None:
    """One row per policy object, then what is wrong."""
    console = console or Console()
    table = grid("KIND", "NAMESPACE", "NAME", "WHERE", "STATE")
    for item in result["objects"]:
        bad = item["state"] not in ("in force", "staged")
        table.add_row(
            item["kind"], text(item["namespace"] or "-"), text(item["name"]), text(item["place"] or "-"),
            item["state"], style="red" if bad else None,
        )  # fmt: skip
    console.print(table)
    sources = ", ".join(result["sources"])
    snapshot = f"snapshot {result['snapshot']}" if result["snapshot"] else "no snapshot yet: pods are closed"
    console.print(text(f"{sources}: {snapshot}"))
    for problem in result["problems"]:
        console.print(Text.assemble(("problem: ", "red"), text(problem)))


def print_cut_flows(result: Mapping[str, Any], console: Console | None = None) -> None:
    """One row per flow that would be refused, then how many."""
    console = console or Console()
    if result["shown"]:
        table = grid("PROTOCOL", "FROM", "TO", "PORT", "STATE", "FATE", "BY")
        for flow in result["shown"]:
            table.add_row(
                flow["protocol"], text(_named(flow["source"], flow["source_pod"])),
                text(_named(flow["destination"], flow["destination_pod"])),
                "-" if flow["port"] is None else str(flow["port"]), flow["state"], flow["fate"], text(flow["rule"]),
            )  # fmt: skip
        console.print(table)
    changes = ", ".join(result["changes"])
    kept = f", and keep {result['kept']} that it would not let begin" if result["kept"] else ""
    console.print(text(f"{changes} would cut {result['cut']} of {result['flows']} live flows of this node{kept}"))


def _named(address: str, pod: str) -> str:
    return f"{address} ({pod})" if pod else address


def print_denied(result: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """One row per flow."""
    table = grid("PROTOCOL", "FROM", "TO", "PORT", "DENIED BY", "WHERE")
    for item in result:
        first, second = item["ports"]
        port = f"type {first}" if item["protocol"].startswith("ICMP") else str(second)
        direction = f"{item['direction']}: " if item["direction"] else ""
        table.add_row(
            item["protocol"], text(item["source"]), text(item["destination"]), port, text(direction + item["rule"]),
            text(item["place"] or "-"),
        )  # fmt: skip
    (console or Console()).print(table)


def print_hits(result: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """One row per rule; those of staged policies in a table of their own."""
    console = console or Console()
    for title, staged in (("RULE", False), ("STAGED RULE", True)):
        rows = [item for item in result if item.get("staged", False) == staged]
        if staged and not rows:
            continue
        table = grid(title, "WHERE", *(["WOULD"] if staged else []))
        for column in ("FLOWS", "CHANGED") if staged else ("FLOWS",):
            table.add_column(column, justify="right")
        for item in rows:
            more = (item["action"], f"{item['hits']:,}", f"{item['changes']:,}") if staged else (f"{item['hits']:,}",)
            table.add_row(text(item["rule"]), text(item["place"] or "-"), *more)
        console.print(table)


def counters(result: Mapping[str, int], every: bool) -> Table:
    """One row per counter, zeros left out unless `every`."""
    table = grid("counter")
    table.add_column("value", justify="right")
    for name, value in result.items():
        if value or every:
            table.add_row(name, f"{value:,}")
    return table


def grid(*columns: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def text(value: str) -> Text:
    """Text as it is, markup and terminal control characters disarmed: others write keys and values of the store."""
    return Text(plain(value))


def duration(seconds: float) -> str:
    """`1:02:03`."""
    return str(timedelta(seconds=int(seconds)))


def _until(expires: float | None) -> str:
    return "never" if expires is None else f"in {duration(max(0.0, expires - time()))}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_words(item) for item in value)
    return str(value)
