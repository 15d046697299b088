"""The reconciler on an event loop with everything that flannel's backends need: VXLAN devices of both families with
their peers, plain routes, blackholes, the on-link question."""

import asyncio
import subprocess
import time
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

import pytest
import uvloop

from routes.pace import Pacing
from routes.reachable import Reachability
from routes.state import DeviceState, ReconcileResult, Route
from routes.watch import KernelReconciler
from tests.routes.conftest import (
    eventually,
    ip,
    ip_batch,
    ip_json,
    kernel_blackholes,
    kernel_fdb,
    kernel_neighbours,
    kernel_routes,
)
from tests.routes.overlay import Peer, is_programmed, overlay
from tests.routes.running import NO_TIMER, REPAIR, RESYNC, RUNNERS, SLACK, SOON, Runner, running

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("underlay")]

HOLES = frozenset({ip_network("10.244.1.0/24"), ip_network("2001:db8:42:1::/64")})
DIRECT = DeviceState(
    "eth0",
    up=None,
    routes=frozenset(
        {
            Route(ip_network("10.244.9.0/24"), ip_address("192.0.2.9")),
            Route(ip_network("2001:db8:42:9::/64"), ip_address("2001:db8::9")),
        }
    ),
)
STATES = overlay([2, 3], 4), overlay([2, 3], 6), DIRECT
MANY = 1000
PROGRAMMED = 15.0
"""Seconds within which 1,000 peers must be there, on however busy a machine; it takes a tenth of one."""


def all_there() -> bool:
    return (
        is_programmed(STATES[0])
        and is_programmed(STATES[1])
        and kernel_routes("eth0") == {(str(route.prefix), str(route.via)) for route in DIRECT.routes}
        and kernel_blackholes() == set(map(str, HOLES))
    )


DAMAGE = [
    "ip neigh del 10.244.2.0 dev flannel.1",
    "ip -6 neigh del 2001:db8:42:2:: dev flannel-v6.1",
    "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
    "ip neigh add 10.244.77.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
    "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.77",
    "bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 192.0.2.77",
    "bridge fdb del 02:00:00:00:00:02 dev flannel-v6.1",
    "ip route del 10.244.2.0/24",
    "ip -6 route del 2001:db8:42:2::/64",
    "ip route del 10.244.9.0/24",
    "ip -6 route del 2001:db8:42:9::/64",
    "ip route del blackhole 10.244.1.0/24",
    "ip -6 route del blackhole 2001:db8:42:1::/64",
    "ip route add 10.244.88.0/24 via 192.0.2.88 dev eth0 proto 112",
    "ip route add blackhole 10.244.88.0/24 proto 112",
    "ip link set flannel.1 address 02:00:00:00:00:99",
    "ip link set flannel.1 mtu 1400",
    "ip link set flannel.1 down",
    "ip link del flannel.1",
    "ip link del flannel-v6.1",
]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNNERS)
def test_each_object_taken_away_is_back_within_half_a_second(run: Runner) -> None:
    took: dict[str, float] = {}

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            reconciler.set_desired(STATES, HOLES)
            await eventually(all_there, SOON)
            for command in DAMAGE:
                changes, start = reconciler.counters["changes"], time.monotonic()
                await asyncio.to_thread(subprocess.run, command.split(), check=True)
                await eventually(lambda changes=changes: reconciler.counters["changes"] > changes, SOON)
                await eventually(all_there, SOON)
                took[command] = time.monotonic() - start
                print(f"{took[command] * 1000:6.1f} ms  {command}")

    run(scenario())

    slowest, *others = sorted(took.values(), reverse=True)
    assert max(others) <= REPAIR, took  # one of them may have met a busy moment of the machine
    assert slowest <= 2 * REPAIR, took


@pytest.mark.slow
def test_a_thousand_peers_and_one_more() -> None:
    state, more = overlay(range(2, MANY + 2)), overlay(range(2, MANY + 3))
    never = Pacing(debounce=30.0, interval=60.0, check_interval=60.0)

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=never)) as reconciler:
            start = time.monotonic()
            reconciler.set_desired(state)
            await eventually(lambda: reconciler.counters["changes"] >= 3 * MANY, PROGRAMMED)
            print(f"{MANY} peers: {(time.monotonic() - start) * 1000:.0f} ms")
            assert await asyncio.to_thread(is_programmed, state)

            changes, start = reconciler.counters["changes"], time.monotonic()
            reconciler.set_desired(more)
            await eventually(lambda: reconciler.counters["changes"] > changes, SOON)
            print(f"one more: {(time.monotonic() - start) * 1000:.1f} ms")
            assert await asyncio.to_thread(is_programmed, more)

            assert reconciler.counters["changes"] == changes + 3
            assert (reconciler.counters["reconciles"], reconciler.counters["flushes"]) == (1, 1)
            assert (reconciler.counters["errors"], reconciler.counters["overruns"]) == (0, 0)

    uvloop.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNNERS)
def test_an_overrun_of_neighbour_events_is_recovered_from_within_a_second(run: Runner) -> None:
    state = overlay(range(2, 22))
    stale = [f"neigh add 10.245.{number >> 8}.{number & 255} lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent"
             for number in range(300)]  # fmt: skip
    deleted = [f"neigh del {each.address} dev flannel.1" for each in state.neighbours]

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER, receive_buffer=1024)) as reconciler:
            reconciler.set_desired(state)
            await eventually(partial(is_programmed, state), SOON)
            for burst in range(3):
                overruns = reconciler.counters["overruns"]
                ip_batch(stale + deleted)  # in this thread: the loop cannot read meanwhile
                took = await eventually(partial(is_programmed, state), RESYNC + SLACK)
                print(f"{took * 1000:6.1f} ms  burst {burst}, overruns {reconciler.counters['overruns'] - overruns}")
                assert reconciler.counters["overruns"] > overruns
            assert reconciler.counters["errors"] == 0

    run(scenario())


def test_other_devices_neighbours_wake_nobody() -> None:
    others = [f"neigh replace 192.0.2.{number} lladdr 02:00:00:00:00:50 dev eth0 nud permanent"
              for number in range(50, 150)]  # fmt: skip

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            reconciler.set_desired(STATES[:2])
            await eventually(lambda: is_programmed(STATES[0]) and is_programmed(STATES[1]), SOON)
            await settled(reconciler)
            events = reconciler.counters["events"]
            await asyncio.to_thread(ip_batch, others)
            await asyncio.to_thread(ip, "neigh del 10.244.2.0 dev flannel.1")  # announced after the others
            await eventually(lambda: reconciler.counters["events"] > events, SOON)
            await eventually(partial(is_programmed, STATES[0]), SOON)
            assert reconciler.counters["events"] - events < len(others) // 2

    uvloop.run(scenario())


async def settled(reconciler: KernelReconciler) -> None:
    """Until what a change announces has been looked at: a look that found nothing to change."""
    while True:
        reconciles, changes = reconciler.counters["reconciles"], reconciler.counters["changes"]
        result = await reconciler.reconcile()
        if not result.changes and reconciler.counters["reconciles"] == reconciles + 1:
            assert reconciler.counters["changes"] == changes
            return


def test_nothing_is_touched_before_the_first_desired_state() -> None:
    before = [
        "link add flannel.1 type vxlan id 7 dev eth0 dstport 4789",
        "route add blackhole 10.244.88.0/24 proto 112",
        "route add 10.244.88.0/25 via 192.0.2.88 dev eth0 proto 112",
    ]
    for command in before:
        ip(command)

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            await reconciler.reconcile()
            assert await asyncio.to_thread(kernel_blackholes) == {"10.244.88.0/24"}
            assert await asyncio.to_thread(kernel_routes, "eth0") == {("10.244.88.0/25", "192.0.2.88")}
            (link,) = await asyncio.to_thread(ip_json, "-d link show dev flannel.1")
            assert link["linkinfo"]["info_data"]["id"] == 7

            reconciler.set_desired(STATES, HOLES)
            await eventually(all_there, SOON)

    uvloop.run(scenario())


def test_a_device_of_our_own_that_is_deleted_is_told_when_it_is_back() -> None:
    told: list[tuple[str, int | None]] = []

    async def scenario() -> None:
        reconciler = KernelReconciler(pacing=NO_TIMER, on_device=lambda *what: told.append(what))
        async with running(reconciler):
            reconciler.set_desired(STATES, HOLES)
            await eventually(all_there, SOON)
            await asyncio.to_thread(ip, "link del flannel.1")
            await eventually(lambda: len(told) == 4, SOON)
            await eventually(all_there, SOON)

    uvloop.run(scenario())

    assert [name for name, _ in told] == ["flannel.1", "flannel-v6.1", "eth0", "flannel.1"]
    assert told[0][1] != told[3][1]


@pytest.mark.parametrize("ended", [False, True], ids=["while it runs", "after it ran"])
def test_withdrawing_leaves_nothing_of_ours(ended: bool) -> None:
    results: list[ReconcileResult] = []

    async def scenario() -> None:
        reconciler = KernelReconciler(pacing=NO_TIMER)
        run = asyncio.create_task(reconciler.run())
        reconciler.set_desired(STATES, HOLES)
        await eventually(all_there, SOON)
        if ended:
            run.cancel()
            await asyncio.wait([run])
        results.append(await reconciler.withdraw())
        run.cancel()
        await asyncio.wait([run])
        reconciler.close()

    asyncio.run(scenario())

    assert results[0].errors == ()
    assert ip_json("link show type vxlan") == []
    assert (kernel_routes("eth0"), kernel_blackholes()) == (set(), set())


def test_ending_without_withdrawing_leaves_everything() -> None:
    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            reconciler.set_desired(STATES, HOLES)
            await eventually(all_there, SOON)

    uvloop.run(scenario())

    assert all_there()


def test_an_underlay_that_flaps_has_its_routes_back() -> None:
    """IPv4 only: going down takes the IPv6 addresses of an interface as well, and with them what is on link."""
    routes = frozenset(route for route in DIRECT.routes if route.via.version == 4)
    wanted = {(str(route.prefix), str(route.via)) for route in routes}

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            reconciler.set_desired(replace(DIRECT, routes=routes))
            await eventually(lambda: kernel_routes("eth0") == wanted, SOON)
            for _ in range(5):
                await asyncio.to_thread(ip_batch, ["link set eth0 down", "link set eth0 up"])
                took = await eventually(lambda: kernel_routes("eth0") == wanted, SOON)
                print(f"{took * 1000:6.1f} ms after link up")

    uvloop.run(scenario())


NEAR, FAR = ip_address("192.0.2.77"), ip_address("198.51.100.7")


def test_the_on_link_answer_is_told_when_it_changes_and_only_then() -> None:
    told: list[Reachability] = []

    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER, on_reachable=told.append)) as reconciler:
            reconciler.watch_reachable([NEAR, FAR])
            await eventually(lambda: told == [{NEAR: "eth0", FAR: None}], SOON)

            await asyncio.to_thread(ip, "route add 198.51.100.0/24 dev wire0")
            await eventually(lambda: told[1:] == [{NEAR: "eth0", FAR: "wire0"}], SOON)
            await asyncio.to_thread(ip, "route add 192.0.2.77/32 via 192.0.2.254")
            await eventually(lambda: told[2:] == [{NEAR: None, FAR: "wire0"}], SOON)
            await asyncio.to_thread(ip, "link set wire0 down")
            await eventually(lambda: told[-1][FAR] is None, SOON)

            looks = reconciler.counters["reconciles"]
            answers = len(told)
            await asyncio.to_thread(ip, "route add 203.0.113.0/24 via 192.0.2.254")  # changes no answer
            await eventually(lambda: reconciler.counters["reconciles"] > looks, SOON)
            await reconciler.reconcile()
            assert len(told) == answers

    uvloop.run(scenario())


def test_new_addresses_are_asked_about_at_once() -> None:
    told: list[Reachability] = []

    async def scenario() -> None:
        never = Pacing(debounce=30.0, interval=60.0, check_interval=60.0)
        async with running(KernelReconciler(pacing=never, on_reachable=told.append)) as reconciler:
            reconciler.watch_reachable([NEAR])
            await eventually(lambda: told == [{NEAR: "eth0"}], SOON)
            reconciler.watch_reachable([NEAR, FAR])
            await eventually(lambda: told[1:] == [{NEAR: "eth0", FAR: None}], SOON)
            reconciler.watch_reachable([FAR])
            await eventually(lambda: told[2:] == [{FAR: None}], SOON)
            reconciler.watch_reachable([])
            await eventually(lambda: told[3:] == [{}], SOON)
            assert reconciler.counters["reconciles"] <= 1

    uvloop.run(scenario())


def test_the_regular_check_asks_again() -> None:
    """Policy rules are announced in a group that nobody listens to."""
    told: list[Reachability] = []
    ip("route add 192.0.2.77/32 via 192.0.2.254 table 77")

    async def scenario() -> None:
        pacing = Pacing(check_interval=0.1, interval=0.01)
        async with running(KernelReconciler(pacing=pacing, on_reachable=told.append)) as reconciler:
            reconciler.watch_reachable([NEAR])
            await eventually(lambda: told == [{NEAR: "eth0"}], SOON)
            await asyncio.to_thread(ip, "rule add to 192.0.2.77 lookup 77")
            await eventually(lambda: told[1:] == [{NEAR: None}], SOON)

    uvloop.run(scenario())


def test_a_mac_change_of_a_peer_leaves_one_entry_of_each_kind() -> None:
    async def scenario() -> None:
        async with running(KernelReconciler(pacing=NO_TIMER)) as reconciler:
            for generation in range(5):
                state = overlay([2, Peer(3, generation)])
                reconciler.set_desired(state)
                await eventually(partial(is_programmed, state), SOON)

    uvloop.run(scenario())

    assert len(kernel_fdb("flannel.1")) == len(kernel_neighbours("flannel.1")) == 2
