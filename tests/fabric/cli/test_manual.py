"""Manual pages and completion: for every command, and such that their readers take them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fabric.cli import manual
from fabric.cli.main import main
from fabric.flag_table import FLAGS
from tests.fabric.cli.test_main import run

WITHOUT_JSON = {
    # They print what another program wants or says, or the one thing they did.
    "fabricctl install", "fabricctl uninstall", "fabricctl policy apply", "fabricctl policy delete",
    "fabricctl completion", "fabricctl extcap", "fabricctl lab exec", "fabricctl cni install",
    "fabricctl lab up", "fabricctl lab down", "fabricctl lab run",
}  # fmt: skip


def commands(group: click.Group = main, path: str = "fabricctl") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_that_shows_something_has_json() -> None:
    without = {path for path, command in commands() if "as_json" not in {item.name for item in command.params}}
    assert without - WITHOUT_JSON == set()


def test_every_command_and_flag_has_a_page() -> None:
    pages = manual.pages()
    assert {f"{path.replace(' ', '-')}.8" for path, _ in commands()} <= set(pages)
    for flag in FLAGS:
        assert f"--{flag.name}" in pages["fabricd.8"].replace("\\-", "-")
    for path, command in commands():
        page = pages[f"{path.replace(' ', '-')}.8"].replace("\\-", "-")
        for item in (each for each in command.params if not getattr(each, "hidden", False)):
            assert all(word in page for word in item.opts if word.startswith("--")), path


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_takes_them_without_a_warning() -> None:
    text = "\n".join(manual.pages().values())
    shown = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-z"], input=text, capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""


@pytest.mark.slow
def test_the_written_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "fabric.cli.manual", str(tmp_path)], check=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == manual.pages()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_FABRICCTL_COMPLETE" in result.stdout


@pytest.mark.slow
def test_bash_completes(tmp_path: Path) -> None:
    """The script itself, in bash: `fabricctl fl<TAB>` and an option."""
    program = tmp_path / "fabricctl"
    program.write_text(f"#!{sys.executable}\nfrom fabric.cli.main import main\n\nmain()\n")
    program.chmod(0o755)
    script = run("completion", "bash").stdout
    for words, expected in ((["fabricctl", "fl"], "flows"), (["fabricctl", "flows", "--pe"], "--peer")):
        code = (
            f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
            '_fabricctl_completion fabricctl; echo "${COMPREPLY[@]}"'
        )
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert shown.stdout.split() == [expected]
