"""The extension backend: which command runs for whom, what it is told, and that nobody else pays for a bad one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from fabric import calc
from fabric.backend.command import Bounds
from fabric.backend.extension import ExtensionBackend
from fabric.config import ExtensionCommands
from fabric.errors import StartError
from fabric.model import ExtensionPeer
from tests.fabric.backend.programs import Recorder, program, run
from tests.fabric.calc.worlds import NODES, lease, value
from tests.fabric.clock import eventually as eventually_within

ENVIRONMENT = {"PATH": os.environ["PATH"], "GIVEN": "by the service manager"}
VARIABLES = ("SUBNET", "IPV6SUBNET", "PUBLIC_IP", "PUBLIC_IPV6", "NETWORK")


async def eventually(condition: Callable[[], object]) -> None:
    await eventually_within(condition, 40.0)


def peer(number: int, data: str = "data") -> ExtensionPeer:
    subnet, address = IPv4Network(f"10.244.{number}.0/24"), IPv4Address(f"192.0.2.{number}")
    return ExtensionPeer(f"10.244.{number}.0-24", subnet, None, address, None, data)


def told(recorder: Recorder) -> list[tuple[str, str]]:
    """Subnet and standard input of each run."""
    return [(item["environment"]["SUBNET"], item["stdin"]) for item in recorder.runs()]


@asynccontextmanager
async def running(backend: ExtensionBackend) -> AsyncIterator[ExtensionBackend]:
    task = asyncio.create_task(backend.run())
    try:
        yield backend
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def make(commands: ExtensionCommands, bounds: Bounds | None = None) -> ExtensionBackend:
    return ExtensionBackend(commands, ENVIRONMENT, bounds)


# --- start ---


def test_what_pre_startup_prints_is_our_data(tmp_path: Path) -> None:
    script = program(tmp_path, "pre", "cat; echo ' public key '; echo warning >&2")

    async def body() -> None:
        assert await make(ExtensionCommands(pre_startup=script)).pre_startup() == "public key"
        assert await make(ExtensionCommands()).pre_startup() == ""

    run(body())


def test_post_startup_is_told_of_our_lease(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    own = replace(
        lease("10.244.1.0-24", value("192.0.2.1")), ipv6_subnet=IPv6Network("fd00::/64"),
        public_ipv6=IPv6Address("2001:db8::1"),
    )  # fmt: skip
    networks = [IPv4Network("10.244.0.0/16"), IPv6Network("fd00::/56")]

    async def body() -> None:
        backend = make(ExtensionCommands(post_startup=f"{recorder.command} $NETWORK $SUBNET"))
        await backend.post_startup(networks, own, "public key")
        await make(ExtensionCommands()).post_startup(networks, own, "")

    run(body())
    (seen,) = recorder.runs()
    assert seen["arguments"] == ["10.244.0.0/16", "10.244.1.0/24"]
    assert {name: seen["environment"][name] for name in VARIABLES} == {
        "SUBNET": "10.244.1.0/24", "IPV6SUBNET": "fd00::/64", "PUBLIC_IP": "192.0.2.1", "PUBLIC_IPV6": "2001:db8::1",
        "NETWORK": "10.244.0.0/16",
    }  # fmt: skip
    assert seen["environment"]["GIVEN"] == "by the service manager"
    assert seen["stdin"] == "public key\n"


@pytest.mark.parametrize("which", ["pre_startup", "post_startup"])
def test_a_start_command_that_fails_refuses_the_start(tmp_path: Path, which: str) -> None:
    script = program(tmp_path, "bad", "echo no such device >&2; exit 2")
    name = {"pre_startup": "PreStartupCommand", "post_startup": "PostStartupCommand"}[which]

    async def start() -> None:
        backend = make(ExtensionCommands(**{which: script}))
        await backend.pre_startup()
        await backend.post_startup([], lease("10.244.1.0-24", value("192.0.2.1")), "")

    async def body() -> None:
        with pytest.raises(StartError) as error:
            await start()
        assert str(error.value) == (
            f"extension backend: {name}: exit code 2: no such device; "
            "correct the command or the cause of its failure"
        )

    run(body())


def test_a_start_command_that_prints_too_much_refuses_the_start() -> None:
    async def body() -> None:
        with pytest.raises(StartError, match="PreStartupCommand: it prints more than 16384 bytes"):
            await make(ExtensionCommands(pre_startup="cat /dev/zero")).pre_startup()

    run(body())


# --- peers ---


def test_peers_come_change_and_go(tmp_path: Path) -> None:
    add, remove = Recorder(tmp_path, "add"), Recorder(tmp_path, "remove")

    async def body() -> None:
        commands = ExtensionCommands(subnet_add=f"{add.command} via $PUBLIC_IP", subnet_remove=remove.command)
        async with running(make(commands)) as backend:
            backend.want([peer(2), peer(3)])
            await eventually(lambda: len(add.runs()) == 2)
            assert sorted(told(add)) == [("10.244.2.0/24", "data\n"), ("10.244.3.0/24", "data\n")]
            assert {item["arguments"][1] for item in add.runs()} == {"192.0.2.2", "192.0.2.3"}
            backend.want([peer(2), peer(3)])
            backend.want([peer(2, "new"), peer(3)])
            await eventually(lambda: len(add.runs()) == 3)
            assert told(add)[-1] == ("10.244.2.0/24", "new\n")
            backend.want([peer(3)])
            await eventually(lambda: remove.runs())
            assert told(remove) == [("10.244.2.0/24", "new\n")]
            backend.want([peer(2), peer(3)])
            await eventually(lambda: len(add.runs()) == 4)
            backend.want([])
            await eventually(lambda: len(remove.runs()) == 3)
            assert backend.problems() == ()
        assert len(add.runs()) == 4

    run(body())


def test_a_peer_of_ipv6_has_its_variables(tmp_path: Path) -> None:
    add = Recorder(tmp_path)
    six = replace(peer(2), ipv6_subnet=IPv6Network("fd00::/64"), public_ipv6=IPv6Address("2001:db8::2"))

    async def body() -> None:
        async with running(make(ExtensionCommands(subnet_add=add.command))) as backend:
            backend.want([six, peer(3)])
            await eventually(lambda: len(add.runs()) == 2)

    run(body())
    seen = {item["environment"]["SUBNET"]: item["environment"] for item in add.runs()}
    assert (seen["10.244.2.0/24"]["IPV6SUBNET"], seen["10.244.2.0/24"]["PUBLIC_IPV6"]) == ("fd00::/64", "2001:db8::2")
    assert (seen["10.244.3.0/24"]["IPV6SUBNET"], seen["10.244.3.0/24"]["PUBLIC_IPV6"]) == ("", "")
    assert "NETWORK" not in seen["10.244.2.0/24"]


def test_without_commands_peers_need_nothing() -> None:
    async def body() -> None:
        async with running(make(ExtensionCommands())) as backend:
            for peers in ([peer(2)], [peer(2, "new")], []):
                backend.want(peers)
                for _ in range(5):
                    await asyncio.sleep(0)
            assert backend.problems() == ()

    run(body())


@pytest.mark.slow
def test_one_bad_peer_delays_nobody_and_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cure = tmp_path / "cure"
    more = f"""
if os.environ["SUBNET"].startswith("10.244.5.") and not os.path.exists({str(cure)!r}):
    sys.exit("it hurts")
"""
    add = Recorder(tmp_path, more=more)

    async def body() -> None:
        async with running(make(ExtensionCommands(subnet_add=add.command))) as backend:
            backend.want([peer(5), *(peer(number) for number in range(10, 30))])
            await eventually(lambda: len({subnet for subnet, _ in told(add)}) == 21)
            await eventually(lambda: [subnet for subnet, _ in told(add)].count("10.244.5.0/24") >= 2)
            assert backend.problems() == ("peer 10.244.5.0-24: SubnetAddCommand: exit code 1: it hurts",)
            cure.touch()
            await eventually(lambda: not backend.problems())
        assert [subnet for subnet, _ in told(add)].count("10.244.10.0/24") == 1

    with caplog.at_level(logging.ERROR):
        run(body())
    assert [record.getMessage() for record in caplog.records] == [
        "extension peer 10.244.5.0-24: SubnetAddCommand: exit code 1: it hurts; it is tried again"
    ]


@pytest.mark.slow
def test_commands_that_hang_hold_up_nobody_for_long(tmp_path: Path) -> None:
    more = "\nif os.environ['PUBLIC_IP'].endswith('9'):\n    import time; time.sleep(600)\n"
    add = Recorder(tmp_path, more=more)

    async def body() -> None:
        async with running(make(ExtensionCommands(subnet_add=add.command), Bounds(seconds=2))) as backend:
            backend.want([peer(number) for number in (9, 19, 29, 2, 3)])
            await eventually(lambda: {"10.244.2.0/24", "10.244.3.0/24"} <= {subnet for subnet, _ in told(add)})
            await eventually(lambda: len(backend.problems()) == 3)
            assert all("no end within 2 s; it was killed" in line for line in backend.problems())

    run(body())


def test_a_peer_that_goes_while_its_command_runs_is_removed_after(tmp_path: Path) -> None:
    go = tmp_path / "go"
    add = Recorder(tmp_path, "add", f"\nimport time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.01)\n")
    remove = Recorder(tmp_path, "remove")

    async def body() -> None:
        commands = ExtensionCommands(subnet_add=add.command, subnet_remove=remove.command)
        async with running(make(commands)) as backend:
            backend.want([peer(2)])
            await eventually(lambda: add.runs())
            backend.want([])
            assert remove.runs() == []
            go.touch()
            await eventually(lambda: remove.runs())
            assert told(remove) == [("10.244.2.0/24", "data\n")]

    run(body())


def test_one_that_never_got_a_command_is_not_removed_by_one(tmp_path: Path) -> None:
    remove = Recorder(tmp_path)

    async def body() -> None:
        backend = make(ExtensionCommands(subnet_remove=remove.command))
        backend.want([peer(2)])
        backend.want([peer(3)])
        async with running(backend):
            backend.want([])
            for _ in range(5):
                await asyncio.sleep(0)
        assert remove.runs() == []

    run(body())


# --- CVE-2026-32241 ---


def hostile(marker: Path) -> list[str]:
    return [
        f"$(touch {marker})", f"`touch {marker}`", f"; touch {marker}", f"\ntouch {marker}\n", f"| touch {marker} #",
        f"'; touch {marker}; '", f'"; touch {marker}; "', f"&& touch {marker}", "$SUBNET ${PUBLIC_IP} $PATH", "--help",
        "-e exec", "{}", "%s%n", "\0", "é☃", "x" * 60_000,
    ]  # fmt: skip


@pytest.mark.slow
def test_what_a_peer_published_reaches_a_command_on_standard_input_only(tmp_path: Path) -> None:
    """CVE-2026-32241: an annotation of a node was run by `sh -c` as root on all others."""
    marker = tmp_path / "marker"
    add, remove = Recorder(tmp_path, "add"), Recorder(tmp_path, "remove")
    data = hostile(marker)
    leases = [
        lease(f"10.244.{number}.0-24", value(f"192.0.2.{number}", kind="extension", BackendData=text))
        for number, text in enumerate(data, 10)
    ]
    peers = calc.calculate(NODES["extension"], leases).extension
    assert [item.data for item in peers] == data
    line = "run $SUBNET ${PUBLIC_IP} $BackendData $DATA $STDIN $1"

    async def body() -> None:
        commands = ExtensionCommands(subnet_add=f"{add.command} {line}", subnet_remove=f"{remove.command} {line}")
        async with running(make(commands)) as backend:
            backend.want(peers)
            await eventually(lambda: len(add.runs()) == len(data))
            backend.want([])
            await eventually(lambda: len(remove.runs()) == len(data))

    run(body())
    assert not marker.exists()
    for recorder in (add, remove):
        seen = {item["environment"]["SUBNET"]: item for item in recorder.runs()}
        for number, text in enumerate(data, 10):
            item = seen[f"10.244.{number}.0/24"]
            assert item["arguments"] == ["run", f"10.244.{number}.0/24", f"192.0.2.{number}", "", "", "", ""]
            assert item["stdin"] == text.encode(errors="replace").decode() + "\n"
            given = {k: v for k, v in item["environment"].items() if k not in ENVIRONMENT and k != "LC_CTYPE"}
            assert given == {
                "SUBNET": f"10.244.{number}.0/24", "PUBLIC_IP": f"192.0.2.{number}", "IPV6SUBNET": "",
                "PUBLIC_IPV6": "",
            }  # fmt: skip


def test_a_lease_cannot_bring_other_text_into_the_variables() -> None:
    """They are made from parsed addresses; what does not parse is no lease."""
    for key in ("10.244.9.0-24;reboot", "10.244.9.0-24$(reboot)"):
        with pytest.raises(ValueError, match="key"):
            lease(key, value("192.0.2.9", kind="extension"))
    with pytest.raises(ValueError, match="PublicIP"):
        lease("10.244.9.0-24", json.dumps({"PublicIP": "192.0.2.9;reboot", "BackendType": "extension"}).encode())


