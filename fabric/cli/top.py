"""`fabricctl top`: a live view of the node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from time import monotonic, sleep
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fabric.cli import flow_list, rates, tables
from fabric.cli.asking import options, refusing
from fabric.control_client import ControlClient

MAX_FLOWS = 20_000
"""Connections that are looked at for one picture."""
ROWS = 12
RATES = ("bit/s out", "bit/s in")
DROPS = "drops/s"


@click.command()
@options
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.2, 3600), help="seconds")
@click.option("--once", is_flag=True, help="one picture, of one interval, then end")
def top(as_json: bool, run_dir: str, interval: float, once: bool) -> None:
    """Peers, pods, connections, rates and drops, again and again. Ctrl-C ends it. --json prints one line each time."""
    with refusing(), ControlClient(run_dir) as client:
        pictures = islice(views(client, interval), 1 if once else None)
        try:
            if as_json:
                for picture in pictures:
                    click.echo(json.dumps(picture))
            elif once:
                Console().print(render(next(pictures), every=True))
            else:
                _live(pictures)
        except KeyboardInterrupt:
            pass


def views(client: ControlClient, interval: float) -> Iterator[dict[str, Any]]:
    """One view after each interval, for ever."""
    before = look(client)
    while True:
        sleep(interval)
        after = look(client)
        yield rates.view(before, after)
        before = after


def look(client: ControlClient) -> rates.Look:
    """Everything one picture needs, in one go."""
    flows: list[dict[str, Any]] = []
    complete = True
    status, counters = client.ask("status"), client.ask("counters")
    if "flows" in counters:
        flows, more = flow_list.chosen(flow_list.pages(client), flow_list.Wanted(), MAX_FLOWS)
        complete = not more
    peers, pods = client.ask("peers"), client.ask("endpoint.list")
    return rates.Look(monotonic(), status, counters, peers, pods, flows, complete)


def _live(pictures: Iterator[dict[str, Any]]) -> None:
    console = Console()
    with Live(Text("the first interval …"), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        for picture in pictures:
            live.update(render(picture), refresh=True)


def render(view: Mapping[str, Any], every: bool = False) -> Group:
    """The picture; at most ROWS of each kind unless `every`."""
    most = len(view["pods"]) + len(view["peers"]) if every else ROWS
    problems = [Text(f"! {tables.text(line)}", style="red") for line in view["problems"]]
    return Group(_head(view), *problems, _rates(view["rates"]), _drops(view["drops"]), *_lists(view, most))


def _head(view: Mapping[str, Any]) -> Text:
    store = view["store"]
    flows = view["flows"]
    states = ", ".join(f"{count} {state}" for state, count in flows["states"].items())
    some = "" if flows["all"] else f" of {flows['looked_at']} looked at"
    return Text(
        f"{tables.text(view['node'])}  fabricd {view['version']}, up {tables.duration(view['uptime'])}, "
        f"{'ready' if view['ready'] else 'not ready'}, store {store['kind']} "
        f"{'available' if store['available'] else 'away'}\n"
        f"connections: {flows['tracked']:,} ({states or 'none'}{some})",
        style="bold",
    )


def _rates(found: Mapping[str, float]) -> Table:
    made = tables.grid("per second", "packets", "bits", "calls")
    for name, shown, calls in (("egress", "pods to peers", "send_calls"), ("ingress", "peers to pods", "write_calls")):
        made.add_row(shown, _si(found[f"{name}_packets"]), _si(found[f"{name}_bytes"] * 8), _si(found[calls]))
    return made


def _drops(drops: Mapping[str, float]) -> Text:
    if not drops:
        return Text("no drops", style="green")
    return Text("drops per second: " + ", ".join(f"{name} {_si(value)}" for name, value in drops.items()), style="red")


def _lists(view: Mapping[str, Any], most: int) -> Iterator[Table | Text]:
    kinds = (
        ("pod", view["pods"], ("name", "kind", "addresses", "problem")),
        ("peer", view["peers"], ("node", "way", "subnets", "state")),
    )
    for title, items, columns in kinds:
        pods = title == "pod"
        made = tables.grid(title, "way", "addresses", "state", "connections", *RATES, *((DROPS,) if pods else ()))
        for item in sorted(items, key=_busiest, reverse=True)[:most]:
            cells = (", ".join(item[name]) if isinstance(item[name], list) else item[name] for name in columns)
            # Out is what this node's pods send, of a pod and of a peer.
            traffic = _traffic(item.get("rates"), ("from", "to") if pods else ("to", "from"))
            made.add_row(*map(tables.text, cells), f"{item['flows']:,}", *traffic)
        yield made
        if len(items) > most:
            yield Text(f"and {len(items) - most} more")


def _busiest(item: Mapping[str, Any]) -> tuple[float, int]:
    """What a list is ordered by: bytes, then connections."""
    found = item.get("rates") or {}
    return found.get("bytes_from", 0) + found.get("bytes_to", 0), item["flows"]


def _traffic(found: Mapping[str, float] | None, ways: tuple[str, str]) -> tuple[str, ...]:
    """Cells of RATES and, of a pod, DROPS; none where they are not known."""
    if not found:
        return ()
    drops = (_si(found["drops"]),) if "drops" in found else ()
    return (*(_si(found[f"bytes_{way}"] * 8) for way in ways), *drops)


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000 or unit == "G":
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= 1000
    return ""
