"""`fabricctl explain`: what would become of a packet."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from fabric.cli.asking import Refused, ask, options
from fabric.cli.plain import plain
from fabric.explain import MOST_BYTES, files

WIDTH = 12


@click.command(
    epilog="\b\nfabricctl explain shop/web 10.244.2.7 tcp/443\nfabricctl explain 10.244.2.7 shop/web udp/53 --size 3000"
    "\nfabricctl explain -r seen.pcapng --packet 7"
)
@click.argument("source", required=False)
@click.argument("target", required=False)
@click.argument("protocol", required=False)
@click.option("-r", "--read", "file", type=click.File("rb"), metavar="FILE", help="a packet of a pcap or pcapng file")
@click.option("--packet", "number", type=click.IntRange(1), default=1, show_default=True, help="which one of the file")
@click.option("--from", "by", default="", help="by which way it comes in: a port, node, underlay, or a peer's underlay "
              "address; found out by its source address else")  # fmt: skip
@click.option("--sport", type=click.IntRange(0, 65_535), help="source port, of ICMP its identifier  [default: 40000]")
@click.option("--size", type=click.IntRange(1, 65_535), help="bytes of the IP packet  [default: as few as can be]")
@click.option("--flags", help="TCP flags by their first letters, such as SA  [default: S]")
@click.option("--ttl", type=click.IntRange(0, 255), help="TTL or hop limit  [default: 64]")
@click.option("--may-cut", is_flag=True, help="without DF: it may be cut into fragments")
@options
def explain(
    source: str | None, target: str | None, protocol: str | None, file: Any, number: int, by: str, sport: int | None,
    size: int | None, flags: str | None, ttl: int | None, may_cut: bool, run_dir: str, as_json: bool,
) -> None:  # fmt: skip
    """What would become of a packet at this node, by the daemon's tables of this moment; nothing is sent.

    The packet is a new flow's first one from SOURCE to TARGET (addresses or pods) by PROTOCOL: tcp/PORT, udp/PORT,
    sctp/PORT, icmp, icmp/TYPE or a protocol's number; or one out of a capture: an IP packet, an Ethernet frame, or a
    tunnel's datagram from the underlay.
    """
    made = {"sport": sport, "size": size, "flags": flags, "ttl": ttl, "may_cut": may_cut or None}
    given = {name: value for name, value in made.items() if value is not None}
    if file is not None:
        if source is not None or given:
            raise click.UsageError("a packet of a file is taken as it is: give -r FILE, or a packet in words")
        params = _captured(file, number)
    elif protocol is None:
        raise click.UsageError("give SOURCE TARGET PROTOCOL, such as shop/web 10.244.2.7 tcp/443, or -r FILE")
    else:
        params = {"source": source, "target": target, "protocol": protocol, **given}
    told = ask(run_dir, "explain", {**params, "from": by})
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for line in lines(told):
        click.echo(plain(line))


def _captured(file: Any, number: int) -> dict[str, Any]:
    try:
        captured = files.packet_at(file, number)
        data, ethernet = files.network_packet(captured)
    except files.CaptureError as error:
        raise Refused(f"{file.name}: {error}") from None
    except OSError as error:
        raise Refused(f"{file.name} cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise Refused(f"{file.name}: packet {number} has {len(data)} bytes, at most {MOST_BYTES} can be explained")
    missing = max(0, captured.length - len(captured.data))
    return {"packet": base64.b64encode(data).decode(), "ethernet": ethernet, "length": len(data) + missing}


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The story for people."""
    yield told["packet"]
    for step in told["steps"]:
        yield f"  {step['step']:<{WIDTH}} {step['text']}"
        if step["step"] == "policy":
            for tier in (told["policy"] or {"tiers": ()})["tiers"]:
                place = f" ({tier['place']})" if tier["place"] else ""
                rule = tier["rule"] or "no rule"
                yield f"  {'':<{WIDTH}} {tier['direction']} tier {tier['tier']}: {tier['action']} by {rule}{place}"
    for note in told["notes"]:
        yield f"  {'note':<{WIDTH}} {note}"
    yield _verdict(told)
    for result in told["results"]:
        yield f"{result['kind']} to {result['to']}, {result['length']} bytes"
        for line in result["headers"]:
            yield f"  {line}"
        yield from _hex(bytes.fromhex(result["hex"])[: result["headers_length"]])


def _verdict(told: Mapping[str, Any]) -> str:
    if told["reason"]:
        return f"dropped: {told['reason']} ({told['meaning']})"
    ends = [result["to"] for result in told["results"] if result["kind"] != "answer"]
    return f"{told['verdict']}{' to ' + ends[0] if ends else ''}"


def _hex(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 16):
        yield f"  {at:04x}  {data[at : at + 16].hex(' ')}"
