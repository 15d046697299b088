"""One run of a command: how it is cut and expanded, what it may do, and what is said about one that fails."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.backend.command import Bounds, CommandError, run_command, words_of
from tests.fabric.backend.programs import Recorder, program
from tests.fabric.clock import eventually

ENVIRONMENT = {"PATH": os.environ["PATH"], "SUBNET": "10.244.2.0/24", "WITH_SPACE": "a  b", "1": "one"}
LOOPS = ["asyncio", "uvloop"]


def execute(command: str, stdin: str = "", bounds: Bounds | None = None, loop: str = "asyncio") -> str:
    made = run_command("TestCommand", command, ENVIRONMENT, stdin, bounds or Bounds())
    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return str(runner.run(made))
    return asyncio.run(made)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ip route add $SUBNET dev eth0", ["ip", "route", "add", "10.244.2.0/24", "dev", "eth0"]),
        ("  a\tb\n\v\fc\r\u2003d ", ["a", "b", "c", "d"]),
        ("a\x1cb", ["a\x1cb"]),
        ("echo '$SUBNET' \"${SUBNET}\"", ["echo", "'10.244.2.0/24'", '"10.244.2.0/24"']),
        ("x ${MISSING}y $MISSING", ["x", "y", ""]),
        ("x $WITH_SPACE ${WITH_SPACE}", ["x", "a  b", "a  b"]),
        ("x $SUBNET/y $SUBNETS", ["x", "10.244.2.0/24/y", ""]),
        ("x $1 $ $/ ${}", ["x", "one", "$", "$/", ""]),
        ("a;b && c | d > e `f` $(g)", ["a;b", "&&", "c", "|", "d", ">", "e", "`f`", "$(g)"]),
        ("", []),
    ],
)
def test_words(command: str, words: list[str]) -> None:
    """As Go's strings.Fields and os.Expand: no quotes, no shell."""
    assert words_of(command, ENVIRONMENT) == words


@pytest.mark.slow
@given(st.text(max_size=40))
def test_any_text_is_cut_into_words_without_space(text: str) -> None:
    space = {char for char in text if char.isspace() and not "\x1c" <= char <= "\x1f"}
    words = words_of(text.replace("$", ""), {})
    assert not any(space & set(word) for word in words)
    assert "".join(words) == "".join(char for char in text if char != "$" and char not in space)


@pytest.mark.parametrize("loop", LOOPS)
def test_output_is_what_it_printed(tmp_path: Path, loop: str) -> None:
    script = program(tmp_path, "both", "echo; echo '  one'; echo two; echo noise >&2")
    assert execute(script, loop=loop) == "one\ntwo"


def test_arguments_environment_and_input(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    execute(f"{recorder.command} a $SUBNET", "text\nof two lines")
    (seen,) = recorder.runs()
    assert (seen["arguments"], seen["stdin"]) == (["a", "10.244.2.0/24"], "text\nof two lines\n")
    assert ENVIRONMENT.items() <= seen["environment"].items()
    assert seen["environment"].keys() - ENVIRONMENT.keys() <= {"LC_CTYPE"}


@pytest.mark.parametrize("loop", LOOPS)
def test_large_input_nobody_reads(tmp_path: Path, loop: str) -> None:
    assert execute(program(tmp_path, "deaf", "exec <&-; echo done"), "x" * 500_000, loop=loop) == "done"
    assert execute(program(tmp_path, "quick", "exit 0"), "x" * 500_000, loop=loop) == ""


def test_large_input_is_read_whole(tmp_path: Path) -> None:
    assert execute(program(tmp_path, "count", "wc -c"), "x" * 500_000) == "500001"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 3", "TestCommand: exit code 3"),
        ("echo first >&2; echo last one >&2; echo >&2; exit 1", "TestCommand: exit code 1: last one"),
        ("kill -TERM $$", "TestCommand: ended by SIGTERM"),
        ("printf 'a\\033[2Jb\\001' >&2; exit 2", "TestCommand: exit code 2: a?[2Jb?"),
        ("head -c 1000 /dev/zero | tr '\\0' x >&2; exit 2", "TestCommand: exit code 2: " + "x" * 200),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_failure_is_one_line(tmp_path: Path, text: str, message: str, loop: str) -> None:
    with pytest.raises(CommandError) as error:
        execute(program(tmp_path, "fails", text), loop=loop)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nonexistent/program x", "TestCommand: '/nonexistent/program' cannot be started: No such file or directory"),
        ("/etc/passwd", "TestCommand: '/etc/passwd' cannot be started: Permission denied"),
        ("/ ", "TestCommand: '/' cannot be started: Permission denied"),
        ("$MISSING x", "TestCommand '$MISSING x' names no program"),
        (" \t", "TestCommand ' \\t' names no program"),
    ],
)
def test_what_cannot_be_started_says_so(command: str, message: str) -> None:
    with pytest.raises(CommandError) as error:
        execute(command)
    assert str(error.value) == message


@pytest.mark.parametrize("loop", LOOPS)
def test_it_is_killed_with_its_children_when_it_takes_too_long(tmp_path: Path, loop: str) -> None:
    pids = tmp_path / "pids"
    script = program(tmp_path, "slow", f"sleep 600 & echo $! > {pids}; echo $$ >> {pids}; trap '' TERM; wait")
    begin = time.monotonic()
    with pytest.raises(CommandError) as error:
        execute(script, bounds=Bounds(seconds=0.5), loop=loop)
    assert str(error.value) == "TestCommand: no end within 0.5 s; it was killed"
    assert time.monotonic() - begin < 20
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 10
        while is_running(pid):
            assert time.monotonic() < deadline, f"process {pid} is still there"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_that_holds_the_output_counts_as_running(tmp_path: Path, loop: str) -> None:
    script = program(tmp_path, "leaves", "sleep 600 &")
    with pytest.raises(CommandError, match=r"no end within 0\.5 s; it was killed"):
        execute(script, bounds=Bounds(seconds=0.5), loop=loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_endless_output_is_cut_off(loop: str) -> None:
    with pytest.raises(CommandError) as error:
        execute("cat /dev/zero", bounds=Bounds(output=1000), loop=loop)
    assert str(error.value) == "TestCommand: it prints more than 1000 bytes"


def test_output_of_just_the_limit_is_fine(tmp_path: Path) -> None:
    script = program(tmp_path, "full", "head -c 1000 /dev/zero | tr '\\0' x")
    assert execute(script, bounds=Bounds(output=1000)) == "x" * 1000


def test_endless_errors_do_not_fill_memory(tmp_path: Path) -> None:
    script = program(tmp_path, "noisy", "head -c 20000000 /dev/zero >&2; echo end >&2; echo out; exit 4")
    with pytest.raises(CommandError, match="exit code 4"):
        execute(script)


def test_output_need_not_be_text(tmp_path: Path) -> None:
    assert execute(program(tmp_path, "bytes", "printf 'a\\377b'")) == "a\ufffdb"


def test_a_cancelled_run_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = program(tmp_path, "long", f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600")

    async def body() -> None:
        task = asyncio.create_task(run_command("TestCommand", script, ENVIRONMENT, "", Bounds()))
        await eventually(pid_file.exists, 20.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
    assert not is_running(int(pid_file.read_text()))


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
