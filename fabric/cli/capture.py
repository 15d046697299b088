"""`fabricctl capture`: what passes and what is refused, as one pcapng file for Wireshark and tcpdump."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, BinaryIO, TypeVar

import click

from fabric import who
from fabric.capture import bpf, libpcap
from fabric.capture.comments import Commentator
from fabric.capture.pace import Pace
from fabric.capture.pcapng import ETHERNET
from fabric.capture.session import RefusedPackets, Session
from fabric.capture.taps import Tap
from fabric.capture.wanted import PLACES, Place, Wanted, tunnel_ports
from fabric.cli.asking import Refused, options, refusing
from fabric.control_client import ControlClient
from fabric.errors import FabricError

MAX_PODS = 64
"""Pods that are listened to when none is named."""
Found = TypeVar("Found", bound=Sized)


@click.command()
@options
@click.option("-w", "target", required=True, metavar="FILE", help="where to write; - is standard output")
@click.option("--pod", help="only packets of this pod: namespace/name, name, address or port")
@click.option("--peer", help="only packets to and from pods behind this node: name, public address or subnet")
@click.option("--inner", default="", metavar="FILTER", help="pcap-filter(7) for inner packets, wherever they are seen")
@click.option("--outer", default="", metavar="FILTER", help="pcap-filter(7) for packets of the underlay")
@click.option("--drop-reason", "reasons", multiple=True, help="only packets refused for this reason; repeatable")
@click.option("--verdict", type=click.Choice(["allowed", "dropped"]),
              help="allowed: what leaves the data path; dropped: what it refused")  # fmt: skip
@click.option("--on", "places", multiple=True, type=click.Choice(PLACES), help="where to look; repeatable (all)")
@click.option("-c", "--count", type=click.IntRange(1), help="end after so many packets")
@click.option("--duration", type=click.FloatRange(0.1), help="end after so many seconds")
@click.option("--snaplen", default=262144, type=click.IntRange(64, 262144), help="bytes of each packet at most")
@click.option("--cpu", default=20, type=click.IntRange(1, 100), metavar="PERCENT",
              help="of one processor at most (20); beyond, packets are lost to the capture, and counted")  # fmt: skip
def capture(
    as_json: bool, run_dir: str, target: str, pod: str | None, peer: str | None, inner: str, outer: str,
    reasons: tuple[str, ...], verdict: str | None, places: tuple[Place, ...], count: int | None,
    duration: float | None, snaplen: int, cpu: int,
) -> None:  # fmt: skip
    """Write packets of the underlay, the node port and pod ports to a pcapng file, and those that the data path
    refused, each with a comment: verdict, reason, pod, peer. Ctrl-C ends it. --json sums up as JSON on stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(ControlClient(run_dir))
        with refusing():
            status, pods, peers = client.ask("status"), client.ask("endpoint.list"), client.ask("peers")
            chosen = who.pods_named(pods, pod) if pod is not None else pods
            behind = who.peers_named(peers, peer) if peer is not None else None
        wanted = Wanted(
            inner, outer, _some(who.addresses(chosen), "pod", pod), _some(who.subnets(behind or ()), "peer", peer),
            _some(who.publics(behind or ()), "peer", peer), _reasons(reasons),
            verdict or "",  # type: ignore[arg-type]
        )  # fmt: skip
        with _one_line():
            where = wanted.places(places)
            if not where:
                raise FabricError("nothing can be seen there: --outer is about the underlay, a drop reason about "
                                  "refused packets")  # fmt: skip
            taps = list(_taps(stack, status, chosen, wanted, where, snaplen))
            matches = libpcap.Matcher(libpcap.compile(wanted.inner_text(), libpcap.DLT_RAW, snaplen))
            refused = _refused(client, wanted, matches) if "refused" in where else None
            out = stack.enter_context(_opened(target))
            comments = Commentator(pods, peers, status["underlay"], tunnel_ports(status))
            session = Session(out, taps, refused, comments, matches, snaplen, Pace(cpu / 100), verdict == "allowed")
            summary = session.run(count, duration)
    for line in summary.problems:
        click.echo(f"fabricctl: {line}", err=True)
    found = {"packets": summary.packets, "refused": summary.refused, "lost": summary.lost}
    words = f"{summary.packets} packets, {summary.refused} of them refused; {summary.lost} lost to the capture"
    click.echo(json.dumps(found) if as_json else words, err=True)


def _some(found: Found, kind: str, name: str | None) -> Found | None:
    """What was found under a name; None when none was given."""
    if name is None:
        return None
    if not found:
        raise Refused(f"{kind} {name} has no address to look for")
    return found


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (FabricError, bpf.BpfError) as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"{error.filename or 'capture'}: {error.strerror}") from None


def _reasons(words: Sequence[str]) -> frozenset[str]:
    from encap.drops import TEXTS

    known = {name.lower() for name in TEXTS}
    found = frozenset(word.removeprefix("drop_").lower() for word in words)
    for word in found - known:
        raise click.BadParameter(f"no reason {word!r}: see docs/reference.md, Drop reasons", param_hint="--drop-reason")
    return found


def _taps(
    stack: contextlib.ExitStack, status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], wanted: Wanted,
    where: frozenset[Place], snaplen: int,
) -> Iterator[Tap]:  # fmt: skip
    ports = tunnel_ports(status)
    inner_text = wanted.inner_text()
    inner = libpcap.compile(inner_text, libpcap.DLT_RAW, snaplen) if inner_text else None

    def on_port(link: int) -> bpf.Program | None:
        return bpf.behind(inner, bpf.ethernet()) if inner is not None and link == ETHERNET else inner or _all(snaplen)

    def on_underlay(link: int) -> bpf.Program | None:
        text = wanted.outer_text(ports.values())
        outer = libpcap.compile(text, libpcap.DLT_EN10MB if link == ETHERNET else libpcap.DLT_RAW, snaplen)
        if inner is None:
            return outer
        if link != ETHERNET:
            raise FabricError("--inner, --pod and --peer need an underlay interface with Ethernet headers")
        return bpf.both(outer, bpf.behind(inner, bpf.tunnels(ports.get("vxlan", 0), ports.get("udp", 0))))

    def opened(name: str, interface: str, netns: str, program: Any) -> Tap:
        tap = Tap(name, interface, netns, snaplen, program)
        stack.callback(tap.close)
        return tap

    if "underlay" in where:
        yield opened("underlay", status["interface"], "", on_underlay)
    if "node" in where and status["backend"]["type"] in ("vxlan", "udp"):
        yield opened("node", status["device"], "", on_port)
    if "pods" in where:
        for item in pods[:MAX_PODS]:
            yield opened(item["name"], item["ifname"], item["netns"], on_port)
        if len(pods) > MAX_PODS:
            click.echo(f"fabricctl: only {MAX_PODS} of {len(pods)} pods are listened to: name one by --pod", err=True)


def _all(snaplen: int) -> bpf.Program:
    """Everything, cut by the kernel already."""
    return libpcap.compile("", libpcap.DLT_RAW, snaplen)


def _refused(client: ControlClient, wanted: Wanted, matches: libpcap.Matcher) -> RefusedPackets:
    with refusing():
        return RefusedPackets(client, matches, wanted.reasons)


@contextlib.contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    """Only for the owner: packets are other people's."""
    if target == "-":
        if sys.stdout.isatty():
            raise FabricError("a capture is not for a terminal: give -w FILE, or pipe it into tcpdump -r -")
        yield sys.stdout.buffer
        return
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        yield file
