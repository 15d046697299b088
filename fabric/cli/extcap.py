"""`fabricctl extcap`: captures as interfaces of Wireshark (its doc/extcap.adoc says how it asks).

Wireshark runs every program in its extcap directory: first for the interfaces, then for their options, then to capture
into a pipe. `--install` puts a two-line script there that leads here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from fabric.capture import libpcap
from fabric.cli.asking import Refused
from fabric.cli.capture import capture
from fabric.control_client import DEFAULT_RUN_DIR
from fabric.errors import FabricError
from fabric.files import write_atomic
from fabric.flags import version

NAME = "podfabric"
INTERFACES = {
    "podfabric": ("podfabric: what passes and what is refused", ()),
    "podfabric-refused": ("podfabric: refused packets only", ("refused",)),
}
OPTIONS = (
    ("--pod", "Pod", "string", "only packets of this pod: namespace/name, name, address or port"),
    ("--peer", "Node", "string", "only packets to and from pods behind this node"),
    ("--outer", "Filter for the underlay", "string", "pcap-filter(7) for packets of the underlay"),
    ("--run-dir", "Run directory", "string", "the daemon's --run-dir"),
)
DIRECTORIES = ("/usr/lib/x86_64-linux-gnu/wireshark/extcap", "/usr/lib/aarch64-linux-gnu/wireshark/extcap",
               "/usr/lib/wireshark/extcap", "/usr/local/lib/wireshark/extcap")  # fmt: skip


@click.command()
@click.option("--install", is_flag=True, help="make Wireshark show these interfaces")
@click.option("--directory", metavar="DIR", help="Wireshark's extcap directory [default: where it is on this system]")
@click.option("--extcap-interfaces", "list_interfaces", is_flag=True, hidden=True)
@click.option("--extcap-interface", "interface", hidden=True)
@click.option("--extcap-dlts", "list_links", is_flag=True, hidden=True)
@click.option("--extcap-config", "list_options", is_flag=True, hidden=True)
@click.option("--extcap-capture-filter", "inner", default="", hidden=True)
@click.option("--extcap-version", hidden=True, expose_value=False)
@click.option("--capture", "start", is_flag=True, hidden=True)
@click.option("--fifo", hidden=True)
@click.option("--pod", hidden=True)
@click.option("--peer", hidden=True)
@click.option("--outer", default="", hidden=True)
@click.option("--run-dir", default=DEFAULT_RUN_DIR, hidden=True)
@click.pass_context
def extcap(
    context: click.Context, install: bool, directory: str | None, list_interfaces: bool, interface: str | None,
    list_links: bool, list_options: bool, inner: str, start: bool, fifo: str | None, pod: str | None, peer: str | None,
    outer: str, run_dir: str,
) -> None:  # fmt: skip
    """Captures as interfaces in Wireshark: --install once, then they are in its list. The capture filter there is one
    for inner packets."""
    if install:
        click.echo(put(directory))
    elif list_interfaces:
        click.echo(f"extcap {{version={version()}}}{{display=podfabric}}")
        for name, (shown, _) in INTERFACES.items():
            click.echo(f"interface {{value={name}}}{{display={shown}}}")
    elif interface not in INTERFACES:
        raise Refused("Wireshark runs this; --install shows its interfaces there")
    elif list_links:
        click.echo("dlt {number=1}{name=EN10MB}{display=pcapng: Ethernet and IP}")
    elif list_options:
        for number, (option, shown, kind, tip) in enumerate(OPTIONS):
            click.echo(f"arg {{number={number}}}{{call={option}}}{{display={shown}}}{{type={kind}}}{{tooltip={tip}}}")
    elif start and fifo:
        places = INTERFACES[interface][1]
        context.invoke(
            capture, target=fifo, pod=pod or None, peer=peer or None, inner=inner, outer=outer, run_dir=run_dir,
            places=places,
        )  # fmt: skip
    else:
        _check(inner)


def put(directory: str | None) -> str:
    """Write the script. What was done. Raises Refused."""
    found = directory or next((known for known in DIRECTORIES if Path(known).is_dir()), None)
    if found is None:
        raise Refused("no Wireshark is found here: give its extcap directory by --directory (tshark -G folders)")
    program = Path(sys.argv[0]).absolute()
    if program.name != "fabricctl":
        program = Path(shutil.which("fabricctl") or program)
    path = Path(found) / NAME
    try:
        write_atomic(path, f'#!/bin/sh\nexec "{program}" extcap "$@"\n'.encode(), 0o755, 0o755)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from None
    return f"{path} written: Wireshark and tshark show {' and '.join(INTERFACES)} from their next start on"


def _check(inner: str) -> None:
    """A filter is asked about while it is typed: what is printed is what is wrong with it."""
    try:
        libpcap.compile(inner, libpcap.DLT_RAW, 65535)
    except FabricError as error:
        click.echo(str(error))
