"""`fabricctl doctor`: try everything, and say what is wrong with what to do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

import click

from fabric import who
from fabric.capture.wanted import tunnel_ports
from fabric.cli.asking import Refused, options, refusing
from fabric.control_client import ControlClient, DaemonRefusedError
from fabric.doctor import diagnose, probes
from fabric.errors import FabricError

MOST = 32
"""Peers that are tried when none is named."""


@click.command()
@options
@click.option("--peer", help="try only this node: name, public address or subnet")
@click.option("--from", "source", metavar="POD", help="with --to: whether policy lets this pod reach that one")
@click.option("--to", "target", metavar="POD", help="a pod as NAMESPACE/NAME, or an address; its node is tried")
@click.option("--port", default="80", show_default=True, help="of --to: 80, 53/udp, icmp")
def doctor(
    as_json: bool, run_dir: str, peer: str | None, source: str | None, target: str | None, port: str
) -> None:
    """Try the way to every other node and say what is wrong, why, and what to do. Sends a few packets, changes nothing.
    Exit code 1 when something is wrong."""
    if (source is None) != (target is None):
        raise click.UsageError("--from and --to belong together")
    try:
        with refusing(), ControlClient(run_dir) as client:
            status, pods = client.ask("status"), client.ask("endpoint.list")
            routes, peers = client.ask("routes"), client.ask("peers")
            question = _explained(client, source, target, port) if source and target else {}
            if peer is None and question:
                peers = _behind(peers, question["target"]["address"])
            chosen = who.peers_named(peers, peer) if peer is not None else peers[:MOST]
            seen = [probes.peer(client, status, item, routes, tunnel_ports(status)) for item in chosen]
            findings = [
                *diagnose.of_node(probes.node(client, status, pods, {})),
                *(diagnose.of_policy(source or "", target or "", port, question) if question else ()),
                *(finding for each in seen for finding in diagnose.of_peer(each)),
            ]
    except PermissionError:
        raise Refused("doctor needs root: it sends echo requests and looks at packets") from None
    except FabricError as error:
        raise Refused(str(error)) from None
    if as_json:
        tried = [each.name for each in seen]
        click.echo(json.dumps({"findings": [asdict(each) for each in findings], "peers": tried}, indent=2))
    else:
        for finding in findings:
            place = f"{finding.peer}: " if finding.peer else ""
            click.echo(f"{finding.name}: {place}{finding.text}\n  fix: {finding.fix}")
        well = len(seen) - len({finding.peer for finding in findings if finding.peer})
        faults = "1 fault" if len(findings) == 1 else f"{len(findings)} faults"
        click.echo(f"{faults}; {well} of {len(seen)} peers answer as they should")
        if peer is None and len(peers) > MOST:
            click.echo(f"only {MOST} of {len(peers)} peers were tried: name others by --peer", err=True)
    sys.exit(1 if findings else 0)


def _explained(client: ControlClient, source: str, target: str, port: str) -> dict[str, Any]:
    """What policy says about a new flow; without policy everything is allowed."""
    try:
        found: dict[str, Any] = client.ask("policy.explain", {"source": source, "target": target, "port": port})
    except DaemonRefusedError as error:
        if "enforces no policy" in str(error) or "unknown method" in str(error):
            return {}
        raise
    return found


def _behind(peers: list[dict[str, Any]], address: str) -> list[dict[str, Any]]:
    """The peer behind which the address is; all when it is behind none."""
    return [peer for peer in peers if any(ip_address(address) in net for net in who.subnets([peer]))] or peers
