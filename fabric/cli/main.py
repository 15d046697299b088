"""`fabricctl`: ask the running daemon, take a node over from flannel, or run a lab.

What is not asked for is not imported.
"""

from __future__ import annotations

import json
from importlib import import_module

import click

from fabric.cli.asking import Refused, ask, options
from fabric.cli.cni import cni
from fabric.flags import version

LAZY = {
    "adopt": "fabric.cli.adopt",
    "capture": "fabric.cli.capture",
    "completion": "fabric.cli.completion",
    "doctor": "fabric.cli.doctor",
    "explain": "fabric.cli.explain",
    "extcap": "fabric.cli.extcap",
    "flows": "fabric.cli.flows",
    "install": "fabric.cli.install",
    "lab": "fabric.lab.cli",
    "policy": "fabric.cli.policy",
    "top": "fabric.cli.top",
    "uninstall": "fabric.cli.install",
}
"""Commands that come from their own modules when they are needed, each under its own name there."""


class LazyGroup(click.Group):
    """A group with the commands of LAZY besides its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = LAZY.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        try:
            command: click.Command = getattr(import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            raise Refused(f"this installation has no {cmd_name}") from None
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="fabricctl", message="%(prog)s %(version)s")
def main() -> None:
    """Look at a running fabricd, take a node over from flannel, or run a lab of several nodes."""


@main.command()
@options
def status(as_json: bool, run_dir: str) -> None:
    """What the node is and how it is doing."""
    _show("status", as_json, run_dir)


@main.command()
@options
def leases(as_json: bool, run_dir: str) -> None:
    """All nodes' leases, ours marked with a star: whose they are and when they end."""
    _show("leases", as_json, run_dir)


@main.command()
@options
def peers(as_json: bool, run_dir: str) -> None:
    """The other nodes: by which way each is reached, or why it is not."""
    _show("peers", as_json, run_dir)


@main.command()
@options
def pods(as_json: bool, run_dir: str) -> None:
    """The pods of this node: addresses, the port of each, and how it is connected."""
    _show("endpoint.list", as_json, run_dir)


@main.command()
@options
def routes(as_json: bool, run_dir: str) -> None:
    """The routes towards the peers' pods."""
    _show("routes", as_json, run_dir)


@main.command()
@options
@click.option("--all", "all_counters", is_flag=True, help="show counters that are zero, too")
def counters(as_json: bool, run_dir: str, all_counters: bool) -> None:
    """What was carried and what was dropped, by reason."""
    _show("counters", as_json, run_dir, all_counters)


def _show(method: str, as_json: bool, run_dir: str, every: bool = False) -> None:
    result = ask(run_dir, method)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from fabric.cli import tables  # rich takes its time, and --json needs none of it

    tables.show(method, result, every)


main.add_command(cni)

if __name__ == "__main__":
    main()
