"""Manual pages: `python -m fabric.cli.manual DIR` writes one per program and command, out of click and the flags.

The package is built with them (`/usr/share/man/man8`). The form is man(7).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fabric import flag_table
from fabric.cli.main import main

SEE = "\\fBfabricd\\fR(8), \\fBfabricctl\\fR(8)"


def pages() -> dict[str, str]:
    """File names and contents."""
    found = {f"{'-'.join(path)}.8": _command(path, command, context) for path, command, context in _commands()}
    return {"fabricd.8": _daemon(), **found}


def _commands() -> Iterator[tuple[list[str], click.Command, click.Context]]:
    todo: list[tuple[list[str], click.Command, click.Context | None]] = [(["fabricctl"], main, None)]
    while todo:
        path, command, parent = todo.pop(0)
        context = click.Context(command, info_name=path[-1], parent=parent, **command.context_settings)
        yield path, command, context
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    todo.append(([*path, name], child, context))


def _command(path: list[str], command: click.Command, context: click.Context) -> str:
    name = "-".join(path)
    usage = " ".join([*path, *command.collect_usage_pieces(context)])
    lines = [
        f'.TH "{name.upper()}" "8" "" "podfabric" "podfabric"',
        ".SH NAME", f"{_text(name)} \\- {_text(command.get_short_help_str(200).rstrip('.'))}",
        ".SH SYNOPSIS", f"\\fB{_text(usage)}\\fR",
        ".SH DESCRIPTION", _text(_plain(command.help or "")),
    ]  # fmt: skip
    options = [record for item in command.get_params(context) if (record := item.get_help_record(context))]
    if options:
        lines += [".SH OPTIONS", *_list(options)]
    if isinstance(command, click.Group):
        children = [(child, command.get_command(context, child)) for child in command.list_commands(context)]
        shown = [(child, found.get_short_help_str(200)) for child, found in children if found and not found.hidden]
        lines += [".SH COMMANDS", *_list(shown)]
        lines += [f"Each has a page: {_text(name)}-COMMAND(8)."]
    if command.epilog:
        lines += [".SH EXAMPLES", ".nf", _text(_plain(command.epilog)), ".fi"]
    lines += [".SH SEE ALSO", SEE]
    return "\n".join(lines) + "\n"


def _daemon() -> str:
    lines = [
        '.TH "FABRICD" "8" "" "podfabric" "podfabric"',
        ".SH NAME", "fabricd \\- carry pod traffic between nodes over VXLAN from user space",
        ".SH SYNOPSIS", "\\fBfabricd\\fR [\\fI\\-\\-flag\\fR[=\\fIvalue\\fR]]...",
        ".SH DESCRIPTION",
        "The node daemon of podfabric. It accepts every flag of flanneld, and one variable for each: FLANNELD_ and the",
        "flag's name in capitals with _ for \\-. The command line wins over the variable.",
    ]  # fmt: skip
    for group, title in flag_table.TITLES.items():
        flags = [flag for flag in flag_table.FLAGS if flag.group == group]
        shown = [(f"--{flag.name}", flag.help + _default(flag.default)) for flag in flags]
        lines += [f'.SH "{_text(title.upper())}"', *_list(shown)]
    lines += [
        ".SH EXIT STATUS", "0 asked to stop, 1 start refused (one line says why), 2 bad usage.",
        ".SH SEE ALSO", SEE,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    return f" (default: {value})" if value not in ("", (), False, 0) else ""


def _list(rows: list[tuple[str, str]]) -> list[str]:
    return [line for term, text in rows for line in (".TP", f"\\fB{_text(term)}\\fR", _text(text))]


def _plain(text: str) -> str:
    """click's help without its marks, paragraphs kept."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"^ +", "", text.replace("\b", ""), flags=re.MULTILINE)).strip()


def _text(text: str) -> str:
    """Text as roff takes it literally."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line or ".PP" for line in escaped.split("\n"))


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in pages().items():
        (directory / file).write_text(content)
