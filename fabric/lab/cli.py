"""`fabricctl lab`: the lab's commands."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec

import click

from fabric.errors import FabricError
from fabric.lab import lab as labs
from fabric.lab import measure, report, run, system
from fabric.lab.plan import MODES, POD_KINDS, Options

Arguments = ParamSpec("Arguments")


INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP leave as Ctrl-C does, so that everything on the way out cleans up; and they do so once.

    Whoever presses Ctrl-C again would otherwise interrupt the clean-up that the first one began.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for which in INTERRUPTS:
            signal.signal(which, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {which: signal.signal(which, interrupt) for which in INTERRUPTS}
    try:
        yield
    except KeyboardInterrupt:
        raise  # the process is about to end and stays deaf until then
    except BaseException:
        restore(before)
        raise
    restore(before)


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give signals their old handlers."""
    for which, handler in handlers.items():
        signal.signal(which, handler)


def plainly(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """One line instead of a traceback for what the user can act on; exit code 1, 130 when interrupted."""

    @wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            with interruptible():
                command(*args, **kwargs)
        except FabricError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise SystemExit(130) from None

    return wrapped


def topology_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that describe a lab."""
    options = (
        click.option("--nodes", default=2, show_default=True, metavar="N", help="Number of nodes."),
        click.option("--pods", default=2, show_default=True, metavar="M", help="Pods per node."),
        click.option("--mode", default="wire", show_default=True, type=click.Choice(MODES), help="Underlay offloads."),
        click.option("--peer", type=click.Choice(["kernel"]), help="Make the last node a kernel VXLAN node."),
        click.option("--pod-kind", default="tun", show_default=True, type=click.Choice(POD_KINDS), help="Pods' eth0."),
        click.option("--ipv6", is_flag=True, help="Dual stack: IPv6 pods over an IPv6 underlay as well."),
        click.option("--fabric", default="fabric", type=click.Choice(["fabric", "kernel"]), hidden=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


def options_of(given: dict[str, Any]) -> Options:
    """Options from the command line."""
    kernel_peer = given.pop("peer") == "kernel"
    return Options(kernel_peer=kernel_peer, **given)


@click.group(name="lab")
def lab() -> None:
    """A cluster of nodes and pods in network namespaces on this machine.

    Everything it makes is called fablab-* or lies in /run/fablab, and `down` removes it.
    """


@lab.command()
@topology_options
@plainly
def up(**given: Any) -> None:
    """Bring a lab up and leave it up."""
    console = report.console()
    made = labs.Lab(options_of(given))
    run.with_status(console, "bringing the lab up", made.up)
    made.keep()
    console.print(report.nodes_table(made))


@lab.command()
@click.option("--count", default=2, show_default=True, help="Probes per pair.")
@click.option("--size", default=56, show_default=True, help="Payload bytes of a probe.")
@click.option("--df", is_flag=True, help="Forbid fragmentation.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def ping(count: int, size: int, df: bool, as_json: bool) -> None:
    """Ping every pod pair; exit code 1 when one does not answer."""
    pairs = measure.ping_pairs(labs.Lab.attach(), count=count, size=size, dont_fragment=df)
    if as_json:
        click.echo(json.dumps([asdict(pair) for pair in pairs], indent=1))
    else:
        console = report.console()
        console.print(report.ping_line(pairs))
        console.print(report.ping_matrix(pairs))
    if not all(pair.ok for pair in pairs):
        raise SystemExit(1)


@lab.command()
@click.option("--rounds", default=3, show_default=True, help="Alternating pairs of measurements.")
@click.option("--seconds", default=1.5, show_default=True, help="Length of one measurement.")
@click.option("--mode", type=click.Choice(MODES), help="Switch the underlay to this mode first.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def bench(rounds: int, seconds: float, mode: Any, as_json: bool) -> None:
    """Compare the fabric with kernel VXLAN between the same nodes, in turn."""
    console = report.console()
    found = labs.Lab.attach()
    if mode:
        found.set_mode(mode)
    result = run.bench_lab(found, rounds, seconds, console)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        console.print(run.bench_table(result))


@lab.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("where", metavar="NODE|POD")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@plainly
def execute(where: str, argv: tuple[str, ...]) -> None:
    """Run a command in a node or pod."""
    words = argv[1:] if argv[0] == "--" else argv
    if not words:
        raise click.UsageError("no command given")
    command = system.inside(labs.Lab.attach().netns(where), words)
    os.execvp(command[0], command)


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plainly
def status(as_json: bool) -> None:
    """Show nodes, subnets, daemons and pods."""
    found = labs.Lab.attach()
    if as_json:
        click.echo(json.dumps(found.status(), indent=1))
    else:
        report.console().print(report.nodes_table(found))


@lab.command()
@plainly
def down() -> None:
    """Take the lab down, also what a crashed one left behind."""
    click.echo("everything removed" if labs.remove() else "no lab was up")


@lab.command(name="run")
@topology_options
@click.option("--seconds", default=2.0, show_default=True, help="Length of one measurement.")
@plainly
def run_(seconds: float, **given: Any) -> None:
    """Up, ping every pod pair, throughput, a capture of the wire, a summary, down."""
    system.require("ip", "ethtool", "bridge", "tcpdump")
    if not run.run_lab(options_of(given), seconds, report.console()):
        raise click.ClickException("not every path works; see above")
