"""`fabricctl install` and `fabricctl uninstall`: the daemon as a service of this host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from fabric.cli.asking import Refused
from fabric.install import environment, steps
from fabric.install.layout import PREFIX, Layout

KINDS = ["tun", "tap", "veth", "bridge", "none"]


def _options(function: Any) -> Any:
    root = click.option("--root", default="/", show_default=True, help="a staged tree; nothing is run then")
    prefix = click.option("--prefix", default=PREFIX, show_default=True, help="where the environment goes")
    vendor = click.option("--vendor", is_flag=True, help="as a package does: /usr/lib and /usr/bin, not /etc")
    return root(prefix(vendor(function)))


@click.command()
@_options
@click.option("--python", default="", help="interpreter of the environment [default: the one that runs this]")
@click.option("--kind", type=click.Choice(KINDS), default="tun", show_default=True, help="of the network's pods")
@click.option("--no-service", is_flag=True, help="only environment, CNI plugin and network: fabricd runs elsewhere")
@click.option("--force", is_flag=True, help="replace files that are something else")
def install(root: str, prefix: str, vendor: bool, python: str, kind: str, no_service: bool, force: bool) -> None:
    """Install podfabric as a systemd service with its CNI plugin and a network. It is not started.

    An environment of its own, the unit, user and directories, fabricctl and the plugin as links. A second run brings
    everything up to date and leaves /etc/default/fabricd alone.
    """
    where = _layout(root, prefix, vendor)
    try:
        network = "" if kind == "none" else kind
        _say(steps.install(where, python or environment.base_python(), network, force, not no_service))
        if where.live and not no_service:
            _say(steps.activate(where, steps.system_run))
    except (OSError, environment.EnvironmentProblem, subprocess.SubprocessError) as error:
        raise Refused(_text(error)) from None


@click.command()
@_options
@click.option("--purge", is_flag=True, help="remove options and state, too")
def uninstall(root: str, prefix: str, vendor: bool, purge: bool) -> None:
    """Stop the service and remove what `fabricctl install` made.

    The user podfabric stays, as users of packages do.
    """
    where = _layout(root, prefix, vendor)
    try:
        if where.live:
            _say(steps.deactivate(steps.system_run))
        _say(steps.uninstall(where, purge))
        if where.live:
            steps.system_run("systemctl", "daemon-reload")
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(_text(error)) from None


def _layout(root: str, prefix: str, vendor: bool) -> Layout:
    if not prefix.startswith("/") or len(Path(prefix).parts) < 3 or os.path.normpath(prefix) != prefix:
        raise Refused(f"--prefix {prefix}: give an absolute path of two levels or more, such as {PREFIX}")
    where = Layout(Path(root).absolute(), prefix, vendor)
    if where.live and os.geteuid() != 0:
        raise Refused("only root may do this; or give --root with a directory of yours")
    return where


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _text(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        reason = str(error.stderr).strip().splitlines()
        return f"{' '.join(error.cmd)} failed: {reason[-1] if reason else error.returncode}"
    return str(error)
