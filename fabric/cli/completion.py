"""`fabricctl completion`: the script that completes commands and options, made by click for the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_FABRICCTL_COMPLETE"
WHERE = {
    "bash": "fabricctl completion bash > /etc/bash_completion.d/fabricctl",
    "zsh": "fabricctl completion zsh > /usr/share/zsh/site-functions/_fabricctl",
    "fish": "fabricctl completion fish > /usr/share/fish/completions/fabricctl.fish",
}


@click.command(epilog="\b\n" + "\n".join(WHERE.values()))
@click.argument("shell", type=click.Choice(list(WHERE)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; installed, it completes commands, options and their values."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    # Not `source()`: for bash it would run bash to look at its version, which need not be where this is made.
    maker = kind(root, {}, "fabricctl", VARIABLE)
    click.echo(maker.source_template % maker.source_vars())
