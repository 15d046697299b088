"""The manager on an event loop: what is taken away comes back, told by the kernel and not by a timer.

The regular check is put off to ten minutes where only announcements are to explain a repair.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
import uvloop

from fabric.errors import TrafficError
from fabric.traffic.manager import TrafficManager
from fabric.traffic.reconcile import Reconciler
from fabric.traffic.rules import TrafficState
from tests.fabric.traffic import neighbours
from tests.fabric.traffic.flannel import NET4, NET6, POD4, POD6
from tests.fabric.traffic.kernel import nft, own_table, ruleset, run, skip_without
from tests.fabric.traffic.test_table import GOLDEN
from tests.routes.conftest import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

DUAL = TrafficState((NET4, NET6), (POD4, POD6), ip_masq=True, forward=True)
NO_TIMER = 600.0
SOON = 10.0
"""Seconds after which a thing that should happen at once is held not to happen, on however busy a machine."""
RUNNERS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(uvloop.run, id="uvloop")]
Runner = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def running(manager: TrafficManager) -> AsyncIterator[asyncio.Task[None]]:
    """`manager.run()` in the background, listening if it has a state; an error in it fails the test."""
    looks = manager.counters()["looks"]
    task = asyncio.create_task(manager.run())
    try:
        if looks:  # it looks once it listens
            await eventually(lambda: manager.counters()["looks"] > looks, SOON)
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        manager.close()


async def holds(text: str) -> None:
    await eventually(lambda: own_table() == text, SOON)


@pytest.mark.parametrize("run_loop", RUNNERS)
@pytest.mark.parametrize("damage", ["delete table inet podfabric", "flush chain inet podfabric postrouting"])
def test_what_is_taken_away_comes_back_without_a_timer(
    damage: str, run_loop: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            await asyncio.to_thread(nft, damage)
            took = await eventually(lambda: own_table() == GOLDEN, SOON)
            print(f"{took * 1000:.0f} ms")
            await eventually(lambda: manager.counters()["restored"] == 1, SOON)
            assert manager.counters()["errors"] == 0

    with caplog.at_level(logging.WARNING, "fabric.traffic"):
        run_loop(scenario())

    lines = [record.message for record in caplog.records if "net." not in record.message]
    assert lines == ["table inet podfabric was changed by nft: restored"]


@pytest.mark.parametrize("run_loop", RUNNERS)
def test_a_new_state_is_written_without_waiting_for_the_pace(run_loop: Runner) -> None:
    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        async with running(manager):
            await asyncio.sleep(0)
            assert own_table() == ""
            manager.want(DUAL)
            await holds(GOLDEN)
            manager.want(replace(DUAL, random_fully=False))
            await holds(GOLDEN.replace(" fully-random", ""))
            manager.want(TrafficState())
            await holds("")

    run_loop(scenario())


def test_nothing_is_touched_before_somebody_says_what_is_wanted() -> None:
    neighbours.make()
    nft("table inet podfabric { chain mine { }; }")
    before = ruleset(without="")

    async def scenario() -> None:
        manager = TrafficManager()
        await manager.first()
        async with running(manager):
            while not manager.counters()["events"]:
                await asyncio.to_thread(nft, "add table ip another; delete table ip another")
        assert (manager.counters()["looks"], manager.problems()) == (0, ())

    uvloop.run(scenario())

    assert ruleset(without="") == before


def test_the_rules_outlive_the_manager_and_the_next_one_keeps_them() -> None:
    async def scenario(expected_changes: int) -> None:
        manager = TrafficManager()
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            assert manager.counters()["changes"] == expected_changes

    asyncio.run(scenario(1))
    handles = run("nft", "-a", "list", "table", "inet", "podfabric")
    asyncio.run(scenario(0))

    assert run("nft", "-a", "list", "table", "inet", "podfabric") == handles


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_removing_takes_all_that_is_ours_and_nothing_else(flavour: str) -> None:
    skip_without(flavour)
    neighbours.make(flavour)
    run(f"iptables-{flavour}", "-P", "FORWARD", "DROP")

    def others() -> str:
        return ruleset(without="") + run(f"iptables-{flavour}", "-S")

    before = others()

    async def scenario() -> None:
        manager = TrafficManager()
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            assert "podfabric forward" in others()
        again = TrafficManager()
        again.want(DUAL)
        await again.remove()
        again.close()

    uvloop.run(scenario())

    assert others() == before


def test_a_manager_that_is_told_to_remove_does_not_write_again() -> None:
    async def scenario() -> None:
        manager = TrafficManager()
        task = asyncio.create_task(manager.run())
        manager.want(DUAL)
        await asyncio.sleep(0)  # run is about to look
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await manager.remove()
        manager.close()

    for _ in range(10):
        uvloop.run(scenario())
        assert own_table() == ""


def test_a_service_proxy_that_writes_a_thousand_rules_is_one_event() -> None:
    rules = "".join(f"add rule ip big services ip daddr 198.51.100.{number % 250} drop\n" for number in range(1000))

    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            for times in (1, 2):
                await asyncio.to_thread(nft, f"add table ip big\nadd chain ip big services\n{rules}")
                await eventually(lambda times=times: manager.counters()["events"] >= times, SOON)
            after = manager.counters()
        assert (after["events"], after["overruns"], after["restored"]) == (2, 0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("run_loop", RUNNERS)
def test_announcements_that_were_lost_cost_nothing(run_loop: Runner) -> None:
    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER, receive_buffer=1)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            looks = manager.counters()["looks"]
            for number in range(20):  # the event loop does not read meanwhile
                nft(f"add table ip busy{number}")
            await eventually(lambda: manager.counters()["overruns"] == 1, SOON)
            await eventually(lambda: manager.counters()["looks"] > looks, SOON)
            await asyncio.to_thread(nft, "delete table inet podfabric")
            await holds(GOLDEN)

    run_loop(scenario())


def test_somebody_who_insists_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            while manager.counters()["restored"] < 3:
                await asyncio.to_thread(nft, "flush chain inet podfabric postrouting")
                await holds(GOLDEN)

    with caplog.at_level(logging.WARNING, "fabric.traffic"):
        uvloop.run(scenario())

    assert len([record for record in caplog.records if "was changed by" in record.message]) == 1


def test_a_docker_that_starts_later_does_not_stop_the_pods() -> None:
    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            await asyncio.to_thread(run, "iptables", "-P", "FORWARD", "DROP")
            await eventually(lambda: "podfabric forward" in run("iptables", "-S", "FORWARD"), SOON)

    uvloop.run(scenario())


def test_legacy_tables_are_looked_at_by_the_clock() -> None:
    skip_without("legacy")

    async def scenario() -> None:
        manager = TrafficManager(resync=1.0)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            await asyncio.to_thread(run, "iptables-legacy", "-P", "FORWARD", "DROP")
            await eventually(lambda: "podfabric forward" in run("iptables-legacy", "-S", "FORWARD"), SOON)

    uvloop.run(scenario())


def test_a_problem_is_said_once_and_gone_when_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=1")

    async def scenario() -> None:
        manager = TrafficManager(resync=1.0)
        manager.want(DUAL)
        await manager.first()
        assert manager.problems() == (
            "net.ipv4.ip_forward is 0: pods behind a bridge reach no other node;"
            " set it: sysctl -w net.ipv4.ip_forward=1",
        )
        async with running(manager):
            await eventually(lambda: manager.counters()["looks"] >= 3, SOON)
            await asyncio.to_thread(run, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            await eventually(lambda: manager.problems() == (), SOON)

    with caplog.at_level(logging.WARNING, "fabric.traffic"):
        asyncio.run(scenario())

    assert len(caplog.records) == 1


START = """
import asyncio, sys
from ipaddress import ip_network
from fabric.errors import StartError
from fabric.traffic.manager import TrafficManager
from fabric.traffic.rules import TrafficState

async def main():
    manager = TrafficManager()
    networks, subnets = [ip_network("10.244.0.0/16")], [ip_network("10.244.1.0/24")]
    state = TrafficState(tuple(networks), tuple(subnets), ip_masq=sys.argv[1] == "masq", forward=True)
    manager.want(state)
    try:
        await manager.first()
    except StartError as error:
        print("refused:", error)
    print(*manager.problems(), manager.counters()["errors"], sep="\\n")
    try:
        await manager.remove()
    except Exception as error:
        print(type(error).__name__, error)
    manager.close()

asyncio.run(main())
"""


def without_privilege(*arguments: str) -> list[str]:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", START, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr.count("Traceback") == 0, done.stderr
    return done.stdout.splitlines()


def test_masquerading_that_cannot_be_had_refuses_the_start() -> None:
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    reason = "firewall: nftables: Operation not permitted; fabricd needs CAP_NET_ADMIN"

    assert without_privilege("masq") == [
        f"refused: {reason}; --ip-masq=false starts without",
        reason,
        "1",
        f"TrafficError our firewall rules are not all removed: {reason}",
    ]


def test_forward_rules_that_cannot_be_had_do_not() -> None:
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    refused, *_ = without_privilege("forward")

    assert refused == "firewall: nftables: Operation not permitted; fabricd needs CAP_NET_ADMIN"


def test_an_unforeseen_failure_is_a_problem_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, *_: object, full: bool) -> None:
        raise KeyError("NFTA_NEW")

    async def scenario() -> None:
        manager = TrafficManager(resync=1.0)
        manager.want(replace(DUAL, ip_masq=False))
        with monkeypatch.context() as patch:
            patch.setattr(Reconciler, "look", broken)
            await manager.first()
            assert "failed unexpectedly: KeyError" in manager.problems()[0]
            with pytest.raises(TrafficError, match="failed unexpectedly"):
                await manager.remove()
        manager.want(DUAL)
        async with running(manager):
            await holds(GOLDEN)
            await eventually(lambda: not any("unexpectedly" in line for line in manager.problems()), SOON)

    asyncio.run(scenario())


def test_a_network_that_changes_takes_its_rules_along() -> None:
    run("iptables", "-P", "FORWARD", "DROP")

    async def scenario() -> None:
        manager = TrafficManager(resync=NO_TIMER)
        manager.want(DUAL)
        await manager.first()
        async with running(manager):
            networks, subnets = (ip_network("10.96.0.0/12"), NET6), (ip_network("10.97.1.0/24"), POD6)
            manager.want(replace(DUAL, networks=networks, subnets=subnets))
            await holds(GOLDEN.replace("10.244.0.0/16", "10.96.0.0/12").replace("10.244.1.0/24", "10.97.1.0/24"))
            await eventually(lambda: "10.244" not in run("iptables", "-S", "FORWARD"), SOON)
            assert run("iptables", "-S", "FORWARD").count("-s 10.96.0.0/12") == 1

    uvloop.run(scenario())
