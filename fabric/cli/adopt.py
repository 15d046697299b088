"""`fabricctl adopt`: what flanneld left on this node, what of it `fabricd` goes on with, and what has to go.

`fabricd` does the same by itself when it starts (`fabric.daemon.flannel`), with a shorter gap, because it removes the
device only when everything else is ready. This command is for looking first, and for doing it by hand.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabric.cli.asking import Refused
from fabric.daemon.flannel import Flannel
from fabric.errors import FabricError, TrafficError

if TYPE_CHECKING:
    from routes.vxlan import VxlanDevice

NAME = re.compile(r"flannel(?:-v6)?\.(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """What is there. `devices` and `firewall` are to be removed, `subnet_env` and the MACs go on."""

    running: list[int]
    subnet_env: dict[str, str]
    devices: list[dict[str, Any]]
    firewall: list[str]


def look(host: Flannel, subnet_file: Path) -> Found:
    """Look at this network namespace. Raises OSError, TrafficError."""
    from fabric.traffic import leftovers

    devices = [_describe(device) for device in host.devices() if _is_flannels(device)]
    return Found(host.processes(), _subnet_env(subnet_file), devices, [str(item) for item in leftovers.find()])


def act(host: Flannel) -> list[str]:
    """Remove devices and firewall rules; a line for each. Raises OSError, TrafficError."""
    done = []
    for device in [device for device in host.devices() if _is_flannels(device)]:
        host.remove(device)
        done.append(f"removed device {device.link.name}")
    return done + host.sweep_firewall()


def _is_flannels(device: VxlanDevice) -> bool:
    match = NAME.fullmatch(device.link.name)
    return match is not None and int(match[1]) == device.vni


def _describe(device: VxlanDevice) -> dict[str, Any]:
    from routes.lookup import interface_addresses

    return {
        "name": device.link.name,
        "vni": device.vni,
        "port": device.port,
        "mac": device.mac.hex(":"),
        "local": str(device.local) if device.local else None,
        "addresses": [str(item.interface) for item in interface_addresses(device.link.name)],
    }


def _subnet_env(path: Path) -> dict[str, str]:
    try:
        pairs = (line.partition("=") for line in path.read_text(errors="replace").splitlines())
        return {name: value for name, _, value in pairs if name.startswith("FLANNEL_")}
    except OSError:
        return {}


@click.command()
@click.option("--dry-run", is_flag=True, help="only look")
@click.option("--json", "as_json", is_flag=True, help="print what was found as JSON")
@click.option("--subnet-file", default="/run/flannel/subnet.env", show_default=True, help="flanneld's --subnet-file")
@click.option("--back", is_flag=True, help="the other way: make the node ready for flanneld")
@click.argument("fabricd_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FABRICD_FLAGS]")
def adopt(dry_run: bool, as_json: bool, subnet_file: str, back: bool, fabricd_flags: tuple[str, ...]) -> None:
    """Take this node over from a stopped flanneld: show what it left, and remove what is in the way.

    fabricd does this by itself at its start. Subnet, MAC, device name and public IP go on as they are.

    With --back, after fabricd was stopped: make the kernel's device that flanneld goes on with, so that no other node
    notices the change; give the flags with which fabricd ran. Once flanneld runs, the same removes our firewall rules.
    """
    host = Flannel()
    if back:
        _give_back(host, dry_run, as_json, fabricd_flags)
        return
    if fabricd_flags:
        raise click.UsageError("fabricd's flags are for --back only")
    try:
        found = look(host, Path(subnet_file))
        if as_json:
            click.echo(json.dumps(asdict(found), indent=2))
        else:
            _print(found, subnet_file)
        if dry_run:
            return
        if found.running:
            raise Refused(f"flanneld (pid {_pids(found)}) runs: stop it first; nothing was changed")
        for line in act(host):
            click.echo(line, err=as_json)
    except (OSError, TrafficError) as error:
        raise Refused(str(error)) from None


def _give_back(host: Flannel, dry_run: bool, as_json: bool, words: tuple[str, ...]) -> None:
    from fabric import flags
    from fabric.cli import give_back

    try:
        options = flags.parse(words)
        if not dry_run:
            give_back.check_stopped(options.run_dir)
        found = give_back.plan(options, host)
        if as_json:
            click.echo(json.dumps(found.described(), indent=2))
        else:
            click.echo("\n".join(found.lines()))
        if dry_run:
            return
        for line in give_back.act(found):
            click.echo(line, err=as_json)
    except (OSError, FabricError) as error:
        raise Refused(str(error)) from None


def _pids(found: Found) -> str:
    return ", ".join(map(str, found.running))


def _print(found: Found, subnet_file: str) -> None:
    env = found.subnet_env
    click.echo(f"flanneld    {f'runs (pid {_pids(found)})' if found.running else 'does not run'}")
    subnets = [env[name] for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if name in env]
    shown = f"{', '.join(subnets)}, MTU {env.get('FLANNEL_MTU', '?')}: kept" if subnets else "no subnet there"
    click.echo(f"subnet      {subnet_file}: {shown}")
    for device in found.devices:
        click.echo(
            f"device      {device['name']}: VNI {device['vni']}, UDP port {device['port']}, addresses "
            f"{', '.join(device['addresses']) or 'none'}: to be removed; its MAC {device['mac']} is kept if the lease"
            " has it, and so is its name"
        )
    for line in found.firewall:
        click.echo(f"firewall    {line}: to be removed")
    if not found.devices and not found.firewall:
        click.echo("            nothing is in the way of fabricd")
