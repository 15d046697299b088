"""`fabricctl flows`: the connections that the data path tracks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from fabric import who
from fabric.cli import flow_list
from fabric.cli.asking import options, refusing
from fabric.control_client import ControlClient


@click.command()
@options
@click.option("--pod", help="only those of this pod: namespace/name, name, address or port")
@click.option("--peer", help="only those with pods behind this node: name, public address or subnet")
@click.option("--proto", help="only those of this protocol: tcp, udp, icmp, icmpv6, sctp, or a number")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="show at most so many")
def flows(as_json: bool, run_dir: str, pod: str | None, peer: str | None, proto: str | None, limit: int) -> None:
    """The connections of this node's pods, from the side that began: state, ports, how long silent."""
    with refusing(), ControlClient(run_dir) as client:
        pods, peers = client.ask("endpoint.list"), client.ask("peers")
        wanted = flow_list.Wanted(
            who.addresses(who.pods_named(pods, pod)) if pod is not None else None,
            who.subnets(who.peers_named(peers, peer)) if peer is not None else None,
            _protocol(proto),
        )
        found, more = flow_list.chosen(flow_list.pages(client), wanted, limit)
        found = flow_list.with_names(found, who.Names(pods, peers))
    if as_json:
        click.echo(json.dumps({"flows": found, "more": more}, indent=2))
        return
    from rich.console import Console

    Console().print(table(found))
    if more:
        click.echo(f"there are more than {limit}: choose with --pod, --peer and --proto, or raise --limit", err=True)


def table(found: Sequence[Mapping[str, Any]]) -> Any:
    """One row per connection."""
    from fabric.cli import tables

    made = tables.grid("proto", "from", "", "to", "", "state", "in by", "back by", "idle", "ends in")
    for flow in found:
        made.add_row(
            flow["protocol"],
            _end(flow["source"], flow["sport"]), tables.text(flow["source_name"]),
            _end(flow["destination"], flow["dport"]), tables.text(flow["destination_name"]),
            flow["state"] + (f" ({flow['standing']})" if flow["standing"] else ""),
            tables.text(flow["entry"] or "-"), tables.text(flow["reply_entry"] or "-"),
            f"{flow['idle']} s", tables.duration(flow["expires_in"]),
        )  # fmt: skip
    return made


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _protocol(text: str | None) -> str | None:
    if text is None or text.lower() in flow_list.PROTOCOLS.values():
        return text and text.lower()
    if text.isascii() and text.isdecimal() and int(text) < 256:
        return flow_list.protocol_name(int(text))
    raise click.BadParameter(f"{text!r} is neither of {', '.join(flow_list.PROTOCOLS.values())} nor 0 to 255",
                             param_hint="--proto")  # fmt: skip
