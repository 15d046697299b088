"""What the commands that ask the daemon share: options, and one line on stderr when it cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from fabric.control_client import DEFAULT_RUN_DIR, ControlClient, DaemonRefusedError, DaemonUnavailableError
from fabric.who import UnknownNameError


class Refused(click.ClickException):
    """One line on stderr, exit code 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"fabricctl: {self.message}", err=True, file=file)


@contextmanager
def refusing() -> Iterator[None]:
    """What the daemon or a name refuses becomes Refused."""
    try:
        yield
    except (DaemonUnavailableError, DaemonRefusedError, UnknownNameError) as error:
        raise Refused(str(error)) from None


def ask(run_dir: str, method: str, params: dict[str, Any] | None = None) -> Any:
    """One request to the daemon of `run_dir`; its result. Raises Refused with one line."""
    with refusing(), ControlClient(run_dir) as client:
        return client.ask(method, params)


def options(function: Any) -> Any:
    """`--json` and `--run-dir`."""
    as_json = click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
    run_dir = click.option("--run-dir", default=DEFAULT_RUN_DIR, show_default=True, help="the daemon's --run-dir")
    return run_dir(as_json(function))
