"""`fabricctl doctor`: try everything, and say what is wrong with what to do."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from fabric import who
from fabric.capture.wanted import tunnel_ports
from fabric.cli.asking import Refused, options, refusing
from fabric.control_client import ControlClient
from fabric.doctor import diagnose, probes
from fabric.errors import FabricError

MOST = 32
"""Peers that are tried when none is named."""


@click.command()
@options
@click.option("--peer", help="try only this node: name, public address or subnet")
def doctor(as_json: bool, run_dir: str, peer: str | None) -> None:
    """Try the way to every other node and say what is wrong, why, and what to do. Sends a few packets, changes nothing.
    Exit code 1 when something is wrong."""
    try:
        with refusing(), ControlClient(run_dir) as client:
            status, pods = client.ask("status"), client.ask("endpoint.list")
            routes, peers = client.ask("routes"), client.ask("peers")
            chosen = who.peers_named(peers, peer) if peer is not None else peers[:MOST]
            seen = [probes.peer(client, status, item, routes, tunnel_ports(status)) for item in chosen]
            findings = [
                *diagnose.of_node(probes.node(client, status, pods, {})),
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
