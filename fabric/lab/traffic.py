"""Bounded traffic tools, run inside pods: `python -m fabric.lab.traffic COMMAND`.

Servers print one line `{"ready": port}` when they can be reached, senders print one line of result; while data
flows a sink prints `{"progress": bytes or datagrams, "seconds": since the first}`. All output is JSON lines on
stdout. Every command ends by itself: senders after --seconds, servers when their peers are done, after --seconds
at the latest, or when stdin reaches its end (the lab closes it).
"""

from __future__ import annotations

import argparse
import array
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fabric.lab.blast import Streams, rr_echo, rr_exchange, udp_blast, udp_drain
from fabric.lab.echo import family_of, ping

SLICE = 0.2
SOCKET_BUFFER = 4 << 20
SO_RCVBUFFORCE = 33
MAX_SAMPLES = 1_000_000


def say(**fields: Any) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def asked_to_stop() -> bool:
    """Whether the lab closed our stdin (or wrote to it)."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def udp_counters(path: Path = Path("/proc/net/snmp"), path6: Path = Path("/proc/net/snmp6")) -> int:
    """Datagrams that reached the socket layer of this namespace so far, read or not, bad checksums excluded.

    InDatagrams + InErrors - InCsumErrors of both families: full socket buffers count, broken packets do not.
    """
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("Udp:")]
    udp = dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=True))
    six = {}
    for line in path6.read_text().splitlines() if path6.exists() else []:
        name, value = line.split()
        if name.startswith("Udp6"):
            six[name.removeprefix("Udp6")] = int(value)
    return sum(c.get("InDatagrams", 0) + c.get("InErrors", 0) - c.get("InCsumErrors", 0) for c in (udp, six))


def hold(options: argparse.Namespace) -> None:
    """With --hold: say that everything is prepared, start on the next line of stdin."""
    if options.hold:
        say(ready=0)
        sys.stdin.readline()


def tcp_sink(options: argparse.Namespace) -> None:
    """Accept the streams, count what arrives until all end."""
    deadline = time.monotonic() + options.seconds
    family = family_of(options.address)
    with socket.create_server((options.address, options.port), family=family, backlog=64) as listener:
        say(ready=listener.getsockname()[1])
        listener.settimeout(SLICE)
        streams: list[socket.socket] = []
        while len(streams) < options.streams and time.monotonic() < deadline and not asked_to_stop():
            try:
                streams.append(listener.accept()[0])
            except TimeoutError:
                continue
    start = time.monotonic()
    drain = Streams([stream.fileno() for stream in streams], options.size)
    total = 0
    while streams and drain.open_count() and time.monotonic() < deadline and not asked_to_stop():
        total += drain.drain(SLICE)
        say(progress=total, seconds=time.monotonic() - start)
    say(bytes=total, seconds=time.monotonic() - start)


def tcp_send(options: argparse.Namespace) -> None:
    """Connect the streams and send for the time asked."""
    streams = [socket.create_connection((options.address, options.port), timeout=5) for _ in range(options.streams)]
    sender = Streams([stream.fileno() for stream in streams], options.size)
    hold(options)
    start = time.monotonic()
    total = sender.transmit(options.seconds)
    say(bytes=total, seconds=time.monotonic() - start)
    for stream in streams:
        stream.close()


def udp_sink(options: argparse.Namespace) -> None:
    """Count datagrams that reach this namespace's socket layer; read them unless --unread."""
    deadline = time.monotonic() + options.seconds
    with socket.socket(family_of(options.address), socket.SOCK_DGRAM) as sink:
        sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
        sink.bind((options.address, options.port))
        first = udp_counters()
        say(ready=sink.getsockname()[1])
        received = 0
        start = time.monotonic()
        while time.monotonic() < deadline and not asked_to_stop():
            if options.unread:
                select.select([sys.stdin], [], [], SLICE)
            else:
                received += udp_drain(sink.fileno(), SLICE)
            say(progress=udp_counters() - first, seconds=time.monotonic() - start)
        received += 0 if options.unread else udp_drain(sink.fileno(), 0.01)
        say(received=received, delivered=udp_counters() - first, seconds=time.monotonic() - start)


def udp_blaster(options: argparse.Namespace) -> None:
    """Blast from one connected socket per flow."""
    family = family_of(options.address)
    flows = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(options.flows)]
    for flow in flows:
        flow.connect((options.address, options.port))
    hold(options)
    start = time.monotonic()
    sent = udp_blast([flow.fileno() for flow in flows], options.sizes, options.burst, options.seconds)
    say(sent=sent, seconds=time.monotonic() - start)
    for flow in flows:
        flow.close()


def rr_server(options: argparse.Namespace) -> None:
    """Answer UDP requests."""
    deadline = time.monotonic() + options.seconds
    with socket.socket(family_of(options.address), socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(SLICE))
        server.bind((options.address, options.port))
        say(ready=server.getsockname()[1])
        answered = 0
        while time.monotonic() < deadline and not asked_to_stop():
            answered += rr_echo(server.fileno(), SLICE)
        say(answered=answered)


def rr_client(options: argparse.Namespace) -> None:
    """One request in flight, back to back or one per --interval seconds; percentiles in microseconds."""
    samples = array.array("q", bytes(8 * MAX_SAMPLES))
    with socket.socket(family_of(options.address), socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.5))
        client.connect((options.address, options.port))
        count = rr_exchange(client.fileno(), samples, options.size, options.interval, options.seconds)
    times = sorted(samples[:count])
    if not times:
        say(count=0)
        return
    say(
        count=count,
        avg=sum(times) / count / 1000,
        p50=times[count // 2] / 1000,
        p99=times[min(count - 1, count * 99 // 100)] / 1000,
        max=times[-1] / 1000,
    )


def timeval(seconds: float) -> bytes:
    """A struct timeval."""
    whole = int(seconds)
    return array.array("l", [whole, int((seconds - whole) * 1_000_000)]).tobytes()


def echo_targets(options: argparse.Namespace) -> None:
    """ICMP echo to every target in parallel."""
    answers = ping(
        options.targets,
        count=options.count,
        interval=options.interval,
        timeout=options.timeout,
        size=options.size,
        dont_fragment=options.df,
    )
    say(answers=[{"target": a.target, "sent": a.sent, "times": a.times, "error": a.error} for a in answers])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fabric.lab.traffic", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], seconds: float) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--address", default="0.0.0.0", help="numeric address to listen on or to send to")
        command.add_argument("--port", type=int, default=0)
        command.add_argument("--seconds", type=float, default=seconds)
        command.add_argument("--hold", action="store_true", help="senders: prepare, then wait for a line on stdin")
        return command

    for name, run, seconds in (("tcp-sink", tcp_sink, 60.0), ("tcp-send", tcp_send, 2.0)):
        command = add(name, run, seconds)
        command.add_argument("--streams", type=int, default=1)
        command.add_argument("--size", type=int, default=131072, help="bytes per send() or recv()")
    add("udp-sink", udp_sink, 60.0).add_argument("--unread", action="store_true", help="bind, but do not read")
    blaster = add("udp-blast", udp_blaster, 2.0)
    blaster.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=[64])
    blaster.add_argument("--flows", type=int, default=1)
    blaster.add_argument("--burst", type=int, default=32, help="datagrams per sendmmsg; 1 interleaves the flows")
    add("rr-server", rr_server, 60.0)
    client = add("rr-client", rr_client, 2.0)
    client.add_argument("--size", type=int, default=64)
    client.add_argument("--interval", type=float, default=0.0, help="seconds from request to request, 0: back to back")
    pinger = commands.add_parser("ping", help=echo_targets.__doc__)
    pinger.set_defaults(run=echo_targets)
    pinger.add_argument("targets", nargs="+")
    pinger.add_argument("--count", type=int, default=1)
    pinger.add_argument("--interval", type=float, default=0.0)
    pinger.add_argument("--timeout", type=float, default=1.0)
    pinger.add_argument("--size", type=int, default=56)
    pinger.add_argument("--df", action="store_true", help="forbid fragmentation")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one tool; errors are one line on stderr and exit code 1."""
    options = parse(argv)
    try:
        options.run(options)
    except OSError as error:
        print(f"traffic: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
