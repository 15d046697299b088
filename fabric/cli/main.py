"""`fabricctl`: ask the running daemon, take a node over from flannel, or run a lab.

What is not asked for is not imported.
"""

from __future__ import annotations

import json
from typing import Any

import click

from fabric.cli.cni import cni
from fabric.control_client import DEFAULT_RUN_DIR, ControlClient, DaemonRefusedError, DaemonUnavailableError
from fabric.flags import version


class Refused(click.ClickException):
    """One line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"fabricctl: {self.message}", err=True, file=file)


class LazyGroup(click.Group):
    """A group whose larger commands come from their own modules when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "adopt", "install", "lab", "policy", "uninstall"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "adopt":
            from fabric.cli.adopt import adopt

            return adopt
        if cmd_name == "policy":
            from fabric.cli.policy import policy

            return policy
        if cmd_name in ("install", "uninstall"):
            from fabric.cli import install as commands

            return commands.install if cmd_name == "install" else commands.uninstall
        if cmd_name != "lab":
            return super().get_command(ctx, cmd_name)
        try:
            from fabric.lab.cli import lab
        except ModuleNotFoundError as error:
            if error.name not in ("fabric.lab", "fabric.lab.cli"):
                raise
            raise Refused("this installation has no lab") from None
        command: click.Command = lab
        return command


def ask(run_dir: str, method: str, params: dict[str, Any] | None = None) -> Any:
    """One request to the daemon of `run_dir`; its result. Raises Refused with one line."""
    try:
        with ControlClient(run_dir) as client:
            return client.ask(method, params)
    except (DaemonUnavailableError, DaemonRefusedError) as error:
        raise Refused(str(error)) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="fabricctl", message="%(prog)s %(version)s")
def main() -> None:
    """Look at a running fabricd, take a node over from flannel, or run a lab of several nodes."""


def _options(function: Any) -> Any:
    as_json = click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
    run_dir = click.option("--run-dir", default=DEFAULT_RUN_DIR, show_default=True, help="the daemon's --run-dir")
    return run_dir(as_json(function))


@main.command()
@_options
def status(as_json: bool, run_dir: str) -> None:
    """What the node is and how it is doing."""
    _show("status", as_json, run_dir)


@main.command()
@_options
def leases(as_json: bool, run_dir: str) -> None:
    """All nodes' leases, ours marked with a star: whose they are and when they end."""
    _show("leases", as_json, run_dir)


@main.command()
@_options
def peers(as_json: bool, run_dir: str) -> None:
    """The other nodes: by which way each is reached, or why it is not."""
    _show("peers", as_json, run_dir)


@main.command()
@_options
def pods(as_json: bool, run_dir: str) -> None:
    """The pods of this node: addresses, the port of each, and how it is connected."""
    _show("endpoint.list", as_json, run_dir)


@main.command()
@_options
def routes(as_json: bool, run_dir: str) -> None:
    """The routes towards the peers' pods."""
    _show("routes", as_json, run_dir)


@main.command()
@_options
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
