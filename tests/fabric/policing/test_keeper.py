"""The keeper with a fed source and a recorder in place of the data path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fabric.policing import last_good
from fabric.policing.documents import Given
from fabric.policing.keeper import PolicyKeeper
from fabric.policing.world import World
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import FedSource, Recorder, network_policy, pod
from tests.fabric.policing.test_world import OWN, endpoint

WEB, DB = pod("web", "10.244.1.5"), pod("db", "10.244.1.6")
FLOW = ("10.244.1.6", "10.244.1.5", "TCP", 80)


class Kept:
    """A keeper with everything around it."""

    def __init__(self, directory: Path) -> None:
        self.source, self.recorder = FedSource(), Recorder()
        self.strict = False
        self.endpoints = [endpoint("p1", "10.244.1.5", "web", "shop")]
        self.keeper = PolicyKeeper([self.source], "n1", self.world, lambda: self.recorder, directory)

    def world(self, objects: Mapping[str, Given]) -> World:
        return World(OWN, objects, tuple(self.endpoints), strict=self.strict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.keeper.first()
        task = asyncio.get_running_loop().create_task(self.keeper.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.keeper.close()


def run(directory: Path, body: Callable[[Kept], Awaitable[None]]) -> Kept:
    async def whole() -> Kept:
        kept = Kept(directory)
        await asyncio.wait_for(body(kept), 20)
        return kept

    return asyncio.run(whole())


def test_nothing_is_compiled_before_a_complete_reading(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        async with kept.running():
            kept.keeper.changed()  # an endpoint, say
            assert not await kept.keeper.settled(1)
            assert kept.recorder.snapshots == []
            assert kept.keeper.problems() == ["test was not read whole yet: pods are closed"]
            kept.source.feed(WEB, DB, network_policy("all"))
            assert await kept.keeper.settled(5)
            assert not kept.recorder.last.allowed(*FLOW)
            assert kept.keeper.problems() == []

    run(tmp_path, body)


def test_what_is_there_at_the_start_is_in_force_before_first_returns(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(WEB, DB, network_policy("all"))
        await kept.keeper.first()
        assert not kept.recorder.last.allowed(*FLOW)
        await kept.keeper.close()

    run(tmp_path, body)


def test_a_burst_is_compiled_together_and_every_snapshot_has_its_number(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(WEB, DB)
        async with kept.running():
            for i in range(50):
                kept.source.feed(WEB, DB, *(network_policy(f"p{j}") for j in range(i + 1)))
            assert await kept.keeper.settled(5)
            assert not kept.recorder.last.allowed(*FLOW)
            numbers = [snapshot.number for snapshot in kept.recorder.snapshots if snapshot]
            assert numbers == sorted(set(numbers))
            assert len(numbers) < 10
            assert kept.keeper.number == numbers[-1]
            assert sum(kept.keeper.latency.distribution().counts) == len(numbers)

    run(tmp_path, body)


def test_a_new_endpoint_is_known_once_settled(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed()
        async with kept.running():
            kept.endpoints.append(endpoint("p2", "10.244.1.9"))
            kept.keeper.changed()
            assert await kept.keeper.settled(5)
            assert kept.recorder.last.knows("10.244.1.9")

    run(tmp_path, body)


def test_an_add_waits_for_the_pods_object_where_an_api_has_it(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.strict = True
        kept.source.feed(DB, network_policy("all"))
        async with kept.running():
            web = kept.endpoints[0].addresses
            assert not kept.recorder.last.knows("10.244.1.5")
            assert not await kept.keeper.knows(web, 0.05)
            asyncio.get_running_loop().call_later(0.05, kept.source.feed, WEB, DB, network_policy("all"))
            assert await kept.keeper.knows(web, 5)
            assert not kept.recorder.last.allowed(*FLOW)

    run(tmp_path, body)


@pytest.mark.slow
def test_a_data_path_that_refuses_is_said_once_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(WEB, DB)
        async with kept.running():
            kept.recorder.fail = "no memory"
            for name in ("a", "b"):
                kept.source.feed(WEB, DB, network_policy(name))
                assert not await kept.keeper.settled(5)
            assert kept.keeper.number == 0
            assert "no memory" in kept.keeper.problems()[0]
            kept.recorder.fail = ""
            await eventually(lambda: kept.keeper.number)
            assert not kept.recorder.last.allowed(*FLOW)

    run(tmp_path, body)
    assert len([line for line in caplog.messages if "no memory" in line]) == 1


def test_a_refused_object_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(network_policy("all"))
        async with kept.running():
            for more in ((), (WEB,), (WEB, DB)):
                kept.source.feed(network_policy("all", ingress=3), *more)
                assert await kept.keeper.settled(5)
            assert not kept.recorder.last.allowed("198.51.100.1", "10.244.1.5", "TCP", 80)

    run(tmp_path, body)
    (said,) = [line for line in caplog.messages if "refused" in line]
    assert said == ("policy: NetworkPolicy shop/all is refused: spec.ingress: is a number, not a list: "
                    "the last good one stays in force")  # fmt: skip


def test_a_source_is_told_what_is_wrong_with_its_own(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        first, later = kept.source, FedSource("later")
        keeper = PolicyKeeper([first, later], "n1", kept.world, lambda: kept.recorder, tmp_path)
        first.feed(network_policy("a", ingress=3), network_policy("b", ingress=3), network_policy("c"))
        later.feed(network_policy("a", ingress=4), network_policy("d"))
        await keeper.first()
        told = [[(item.key.rpartition("/")[2], item.reason, item.outcome) for item in source.told]
                for source in (first, later)]  # fmt: skip
        wrong = "spec.ingress: is a number, not a list", "it is not in force"
        assert told == [[("b", *wrong)], [("a", *wrong)]]
        assert later.content is not None
        assert later.told[0].given is later.content.objects[later.told[0].key]
        await keeper.close()

    run(tmp_path, body)


def test_what_is_in_force_is_on_disk_for_the_next_run(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        kept.source.feed(WEB, network_policy("all"))
        async with kept.running():
            kept.source.feed(WEB, network_policy("all", ingress=3), network_policy("bad", ingress=3))
            assert await kept.keeper.settled(5)

    run(tmp_path, body)
    assert (tmp_path / last_good.NAME).stat().st_mode & 0o777 == 0o600
    found = last_good.load(tmp_path)["test"]
    assert {key: given.value for key, given in found.items()} == {
        "networking.k8s.io/v1/NetworkPolicy/shop/all": network_policy("all"), "v1/Pod/shop/web": WEB
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 2}', '{"version": 1, "sources": 3}', '{"version": 1, "sources": {"a": [1]}}']
)
def test_a_damaged_memory_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / last_good.NAME).write_text(text)
    assert not last_good.load(tmp_path).get("a")


def test_others_may_not_write_the_memory(tmp_path: Path) -> None:
    last_good.save(tmp_path, last_good.render({"test": {"v1/Pod/shop/web": Given(WEB)}}))
    assert last_good.load(tmp_path)["test"]["v1/Pod/shop/web"].value == WEB
    (tmp_path / last_good.NAME).chmod(0o666)
    assert last_good.load(tmp_path) == {}
