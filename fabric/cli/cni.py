"""`fabricctl cni install`: the plugin where container runtimes look for it, and a network that uses it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from fabric.cni import launcher
from fabric.files import make_dir, write_atomic

PROGRAM = launcher.PROGRAM
CONFLIST = "10-fabric.conflist"  # runtimes take the first file by name: before 10-flannel.conflist
CHAINED = {"bandwidth": {"bandwidth": True}}
"""Plugins put behind ours where they are installed, with their capabilities. A port of the daemon cannot be shaped."""


def conflist(name: str, kind: str, bin_dir: Path, settings: dict[str, str]) -> dict[str, Any]:
    """The network configuration list. Old runtimes read `cniVersion`, new ones pick the highest of `cniVersions`."""
    capabilities = {"ips": True, "portMappings": True} | ({} if kind == "tun" else {"mac": True})
    plugins: list[dict[str, Any]] = [{"type": PROGRAM, "kind": kind, **settings, "capabilities": capabilities}]
    for plugin, wanted in CHAINED.items():
        if (bin_dir / plugin).exists() and not (plugin == "bandwidth" and kind in ("tun", "tap")):
            plugins.append({"type": plugin, "capabilities": wanted})
    versions = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    return {"cniVersion": "1.0.0", "cniVersions": versions, "name": name, "plugins": plugins}


def put(program: Path, path: Path, force: bool) -> str:
    """Make `path` start the plugin: by a launcher, or by a link where that cannot be. What was done. Raises OSError."""
    text = launcher.here().encode()
    if not text:
        return link(program, path, force)
    if path.is_file() and not path.is_symlink():
        content = path.read_bytes()
        if content == text:
            return f"{path} is as it should be already"
        if launcher.MARK.encode() not in content and not force:
            raise FileExistsError(f"{path} is another program: move it away, or use --force")
    write_atomic(path, text, 0o755, 0o755)
    return f"{path} written: starts {program}"


def link(target: Path, path: Path, force: bool) -> str:
    """Make `path` a link to `target`, replacing a link; a file only by `force`. What was done. Raises OSError."""
    if path.is_symlink() and path.readlink() == target:
        return f"{path} is a link to {target} already"
    if path.exists() and not path.is_symlink() and not force:
        raise FileExistsError(f"{path} is another program: move it away, or use --force")
    make_dir(path.parent, 0o755)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(path)
    return f"{path} links to {target}"


def write_conflist(path: Path, content: dict[str, Any], force: bool) -> str:
    """Write the list; one that says something else is replaced only by `force`. What was done. Raises OSError."""
    data = (json.dumps(content, indent=2) + "\n").encode()
    if path.exists() and path.read_bytes() == data:
        return f"{path} is as it should be already"
    if path.exists() and not force:
        raise FileExistsError(f"{path} says something else: look at it, then use --force")
    write_atomic(path, data, 0o644, 0o755)
    return f"{path} written: network {content['name']}, {', '.join(item['type'] for item in content['plugins'])}"


@click.group()
def cni() -> None:
    """The CNI plugin of this node."""


@cni.command()
@click.option("--bin-dir", default="/opt/cni/bin", show_default=True, help="where the runtime looks for plugins")
@click.option("--conf-dir", default="/etc/cni/net.d", show_default=True, help="where it looks for networks")
@click.option("--kind", type=click.Choice(["tun", "tap", "veth", "bridge"]), default="tun", show_default=True)
@click.option("--name", default="cbr0", show_default=True, help="network's name; cbr0 is flannel's, and so are its IPs")
@click.option("--run-dir", default="", help="fabricd's --run-dir, if it has another than /run/fabric")
@click.option("--subnet-file", default="", help="fabricd's --subnet-file, if it has another")
@click.option("--flannel", is_flag=True, help="take the name `flannel`, too, for networks of that type")
@click.option("--force", is_flag=True, help="replace files that are something else")
def install(
    bin_dir: str, conf_dir: str, kind: str, name: str, run_dir: str, subnet_file: str, flannel: bool, force: bool
) -> None:
    """Put the plugin into --bin-dir and write a network for it into --conf-dir.

    bandwidth is chained behind it where --bin-dir has it; port mappings are done by the plugin itself.
    """
    from fabric.cli.asking import Refused
    from fabric.cni.protocol import is_name

    program = Path(sys.executable).with_name(PROGRAM)
    if not program.exists():
        raise Refused(f"there is no {program}: install the distribution, or run ./dev build")
    if not is_name(name):
        raise Refused("--name must start with a letter or digit and hold only those and . _ -")
    given = {"runDir": run_dir, "subnetFile": subnet_file}
    settings = {key: str(Path(value).absolute()) for key, value in given.items() if value}
    try:
        for linked in (PROGRAM, *(("flannel",) if flannel else ())):
            click.echo(put(program, Path(bin_dir) / linked, force))
        content = conflist(name, kind, Path(bin_dir), settings)
        click.echo(write_conflist(Path(conf_dir) / CONFLIST, content, force))
    except OSError as error:
        raise Refused(str(error)) from None
