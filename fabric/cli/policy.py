"""`fabricctl policy`: what is enforced, why a flow passes or not, and changing it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from fabric.cli.asking import Refused, ask
from fabric.control_client import DEFAULT_RUN_DIR

MAX_OBJECT = 60 << 10
"""Bytes of one object in a request: the control socket takes lines of 64 KiB."""
_run_dir = click.option("--run-dir", default=DEFAULT_RUN_DIR, show_default=True, help="the daemon's --run-dir")
_as_json = click.option("--json", "as_json", is_flag=True, help="print JSON instead of text")


@click.group()
def policy() -> None:
    """Network policy: what is in force, why a flow passes or not, and changing it."""


@policy.command("list")
@_run_dir
@_as_json
def list_(run_dir: str, as_json: bool) -> None:
    """All policies, those that are refused with the reason."""
    found = _ask(run_dir, "policy.list")
    if as_json:
        _print_json(found)
        return
    from fabric.cli import tables

    tables.print_policies(found)


@policy.command()
@click.argument("source")
@click.argument("target")
@click.argument("port")
@_run_dir
@_as_json
def explain(source: str, target: str, port: str, run_dir: str, as_json: bool) -> None:
    """Whether a new flow from SOURCE to TARGET passes, and which rule says so.

    SOURCE and TARGET are addresses or pods as NAMESPACE/NAME; PORT is 80, 53/udp, or icmp. Both ends are looked at,
    wherever they are; each node enforces the rules of its own pods. Exit code 3 means that the flow is denied.
    """
    found = _ask(run_dir, "policy.explain", {"source": source, "target": target, "port": port})
    if as_json:
        _print_json(found)
    else:
        click.echo("\n".join(explained(found)))
    if not found["allowed"]:
        sys.exit(3)


def explained(found: Mapping[str, Any]) -> list[str]:
    """The explanation in lines."""
    port = found["protocol"] if found["port"] is None else f"{found['protocol']} port {found['port']}"
    lines = [
        f"{'ALLOWED' if found['allowed'] else 'DENIED'}: {port}, a new flow",
        f"  from {_end(found['source'])}",
        f"  to   {_end(found['target'])}",
    ]
    for direction, end in (("egress", "source"), ("ingress", "target")):
        tiers = [tier for tier in found["tiers"] if tier["direction"] == direction]
        if not tiers:
            lines.append(f"{direction} of the {end}: {_unasked(found, direction)}")
        for tier in tiers:
            place = f" at {tier['place']}" if tier["place"] else ""
            matched = tier["rule"] and not tier["rule"].startswith("end of tier")
            how = f" by {tier['rule']}{place}" if matched else ", no rule matches"
            lines.append(f"{direction} of the {end}, tier {tier['tier']}: {tier['action']}{how}")
            lines.append(f"  asked: {', '.join(tier['policies'])}")
    lines += [f"note: {found['note']}"] if found["note"] else []
    return [_plain(line) for line in lines]


def _unasked(found: Mapping[str, Any], direction: str) -> str:
    """Why no tier was asked."""
    source, target = found["source"], found["target"]
    asked = {tier["direction"] for tier in found["tiers"]}
    if direction == "ingress" and not found["allowed"] and "egress" in asked:
        return "not asked, the flow is denied before"
    end = source if direction == "egress" else target
    if not end["what"].startswith("pod "):
        return "no policy applies, it is not a pod"
    if source["what"] == target["what"]:
        return "a pod always reaches itself"
    if direction == "ingress" and source["what"].startswith("node ") and source["node"] == target["node"]:
        return "a node always reaches its own pods"
    return "allowed, no policy selects the pod for it"


def _end(end: Mapping[str, Any]) -> str:
    where = f" on node {end['node']}" if end["node"] and end["what"].startswith("pod ") else ""
    return f"{end['address']} ({end['what']}{where}{', this node' if end['here'] else ''})"


@policy.command()
@click.option("-f", "--filename", required=True, type=click.Path(allow_dash=True), help="YAML or JSON; - for stdin")
@_run_dir
def apply(filename: str, run_dir: str) -> None:
    """Write the objects of a file into the daemon's --policy-dir, or its store."""
    objects = read_objects(filename)
    if not objects:
        raise Refused(f"{filename} has no objects")
    for value in objects:
        if len(json.dumps(value).encode()) > MAX_OBJECT:
            raise Refused(f"an object of {filename} is larger than {MAX_OBJECT >> 10} KiB: split it")
    for value in objects:
        done = _ask(run_dir, "policy.apply", {"object": value})
        click.echo(f"{done['object']} {'replaced' if done['existed'] else 'created'} in {done['place']}{_waits(done)}")


def read_objects(filename: str) -> list[dict[str, Any]]:
    """The objects of a file. Raises Refused with one line."""
    from fabric.policing.documents import DocumentError, parse_documents

    try:
        data = sys.stdin.buffer.read() if filename == "-" else Path(filename).read_bytes()
        return [dict(given.value) for given in parse_documents(data, filename)]
    except OSError as error:
        raise Refused(f"{filename}: {error.strerror}") from None
    except DocumentError as error:
        raise Refused(f"{filename}: {error}") from None


@policy.command()
@click.argument("kind")
@click.argument("name", metavar="[NAMESPACE/]NAME")
@click.option("--api-version", default="", help="where kinds of two APIs have the name")
@_run_dir
def delete(kind: str, name: str, api_version: str, run_dir: str) -> None:
    """Remove one object."""
    namespace, slash, rest = name.partition("/")
    params = {"kind": kind, "name": rest if slash else name}
    params |= {"namespace": namespace} if slash else {}
    params |= {"apiVersion": api_version} if api_version else {}
    done = _ask(run_dir, "policy.delete", params)
    click.echo(f"{done['object']} removed from {done['place']}{_waits(done)}")


@policy.command()
@click.option("-f", "--filename", type=click.Path(allow_dash=True), help="YAML or JSON; without it the staged policies")
@_run_dir
@_as_json
def diff(filename: str | None, run_dir: str, as_json: bool) -> None:
    """Which live flows of this node the objects of a file, or the staged policies, would refuse, and what would become
    of them: cut, reset (cut, and their ends told) or kept.

    Exit code 3 means that some would be cut.
    """
    params: dict[str, Any] = {} if filename is None else {"objects": read_objects(filename)}
    found = _ask(run_dir, "policy.diff", params)
    if as_json:
        _print_json(found)
    else:
        from fabric.cli import tables

        tables.print_cut_flows(found)
    if found["cut"]:
        sys.exit(3)


@policy.command()
@_run_dir
@_as_json
@click.option("--all", "every", is_flag=True, help="show rules that have decided none, too")
def hits(run_dir: str, as_json: bool, every: bool) -> None:
    """How many flows each rule has decided on this node since the daemon started.

    Below it, while policies are staged, what their rules would have done since then: the flows that each would have
    decided, and those of them that it would have let pass though they are refused now, or the other way round.
    """
    found: Sequence[Mapping[str, Any]] = _ask(run_dir, "policy.hits")
    if as_json:
        _print_json(found)
        return
    from fabric.cli import tables

    tables.print_hits([item for item in found if every or item["hits"]])


@policy.command()
@_run_dir
@_as_json
def denied(run_dir: str, as_json: bool) -> None:
    """The last flows that policy has refused on this node, the newest last.

    A sample: at most 32 a second of each thread, the last 256 in all. Without a rule it says why none was asked.
    """
    found: Sequence[Mapping[str, Any]] = _ask(run_dir, "policy.denied")
    if as_json:
        _print_json(found)
        return
    from fabric.cli import tables

    tables.print_denied(found)


def _waits(done: Mapping[str, Any]) -> str:
    return "" if done["in_force"] else " (not in force yet: see fabricctl policy list)"


def _ask(run_dir: str, method: str, params: dict[str, Any] | None = None) -> Any:
    return ask(run_dir, method, params)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _plain(text: str) -> str:
    """Names come from others: nothing of it may steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
