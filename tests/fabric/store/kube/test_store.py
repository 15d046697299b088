"""`KubeStore` on an API server whose store is a real etcd: content, resuming, expiry, faults of the server."""

import asyncio
import logging
import random
from pathlib import Path

import pytest

from fabric.errors import NotConnectedError, StoreError, StoreUnavailableError
from fabric.lease_table import LeaseTable
from fabric.store.base import Snapshot, Unavailable
from fabric.store.kube.api import NotFoundError
from fabric.store.kube.reflector import Backoff, Timing
from fabric.store.kube.store import node_name_of_pod, node_public_ips
from tests.apiserver.fixtures import MakeServer
from tests.apiserver.process import NODES, ApiServer, node
from tests.apiserver.proxy import proxying
from tests.fabric.store.etcd_server import EtcdServer, free_port
from tests.fabric.store.kube.harness import (
    MAC,
    QUICK,
    P,
    away,
    content,
    eventually,
    make_store,
    opened,
    run,
    view,
    watching,
)

root = pytest.mark.root


def flannel_node(number: int, **annotations: str) -> dict[str, object]:
    return node(f"node{number}", f"10.244.{number}.0/24", mac=MAC, public=f"192.0.2.{number}", **annotations)


def test_pauses_grow_with_jitter_and_follow_the_servers_wish() -> None:
    backoff = Backoff(0.8, 30.0, random.Random(1))
    pauses = [backoff.pause() for _ in range(9)]
    assert pauses[0] <= 0.1
    for pause, most in zip(pauses[1:], (0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30), strict=True):
        assert most / 2 <= pause <= most
    assert backoff.pause(45) == 45
    assert backoff.pause(3600) == 60
    backoff.reset()
    assert backoff.pause() <= 0.1


def test_pauses_stay_short_where_nobody_takes_connections_and_grow_where_an_api_is_overloaded() -> None:
    backoff = Backoff(0.8, 30.0, random.Random(1))
    for _ in range(9):
        backoff.pause()
    assert all(0.5 <= backoff.pause(at_most=1.0) <= 1.0 for _ in range(20))
    for most in (2.0, 4.0, 8.0):
        assert most / 2 <= backoff.pause() <= most


def test_only_a_connection_that_nobody_takes_is_cheap_to_try_again() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        api = make_store(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}").api
        with pytest.raises(StoreUnavailableError) as caught:
            await api.node("node1")
        assert not isinstance(caught.value, NotConnectedError)
        server.close()
        await server.wait_closed()
        with pytest.raises(NotConnectedError, match=r"refused|Connect call failed"):
            await api.node("node1")

    run(body)


@root
def test_lists_and_follows_changes(api: ApiServer) -> None:
    api.create(flannel_node(1), flannel_node(2), node("plain", "10.244.9.0/24"))

    async def body() -> None:
        async with watching(make_store(api.url)) as items:
            await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.2"})
            api.create(flannel_node(3))
            await content(items, {f"node{n}": f"192.0.2.{n}" for n in (1, 2, 3)})
            api.annotate("node2", public_ip="192.0.2.22")
            await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.22", "node3": "192.0.2.3"})
            api.delete("node1")
            api.annotate("node3", kube_subnet_manager=None)
            await content(items, {"node2": "192.0.2.22"})
            api.patch("node2", {"spec": {"podCIDR": "10.244.77.0/24", "podCIDRs": ["10.244.77.0/24"]}})
            async for item in items:
                assert isinstance(item, Snapshot)
                assert list(item.entries) == [P + "10.244.77.0-24@node2"]
                break

    run(body)
    assert api.lists() == 1


@root
def test_many_pages_are_one_list_at_one_version(api: ApiServer) -> None:
    api.create(*(node(f"n{i}", f"10.{i // 250}.{i % 250}.0/24", mac=MAC, public="192.0.2.1") for i in range(250)))

    async def body() -> None:
        async with opened(make_store(api.url)) as store:
            assert len((await store.list(P)).entries) == 250
            assert {key[:3] for key in (await store.list("/q/")).entries} == {"/q/"}

    run(body)
    assert len(api.requests(f"GET {NODES}?limit=100&continue=")) == 2
    assert api.lists() == 1


@root
def test_another_annotation_prefix(api: ApiServer) -> None:
    found = {f"example.org/net-{name}": value for name, value in
             (("kube-subnet-manager", "true"), ("public-ip", "192.0.2.8"), ("backend-type", "vxlan"))}  # fmt: skip
    other = node("node2", "10.244.2.0/24")
    other["metadata"]["annotations"] = found
    api.create(flannel_node(1), other)

    async def body() -> None:
        async with opened(make_store(api.url, prefix="example.org/net")) as store:
            assert view(await store.list(P)) == {"node2": "192.0.2.8"}

    run(body)


@root
def test_resumes_where_it_was_when_the_server_is_killed(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fabric")
    api.create(flannel_node(1))

    async def body() -> None:
        async with watching(make_store(api.url)) as items:
            await content(items, {"node1": "192.0.2.1"})
            api.kill()
            await away(items)
            api.start()
            api.create(flannel_node(2))
            await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.2"})

    run(body)
    assert api.lists() == 1, "a watch that can be resumed needs no list"
    assert len(caplog.messages) <= 10


@root
@pytest.mark.parametrize("flags", [(), ("--late",)], ids=["before", "in-stream"])
def test_compaction_while_away_is_exactly_one_list(
    make_api: MakeServer, cluster_etcd: EtcdServer, flags: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fabric")
    api = make_api(*flags)
    api.create(flannel_node(1), flannel_node(2), flannel_node(3))

    async def body() -> None:
        with proxying(api.port) as proxy:
            async with watching(make_store(proxy.url)) as items:
                await content(items, {f"node{n}": f"192.0.2.{n}" for n in (1, 2, 3)})
                proxy.refuse()
                await away(items)
                for address in ("192.0.2.21", "192.0.2.22"):
                    api.annotate("node2", public_ip=address)
                api.delete("node3")
                api.create(flannel_node(4))
                cluster_etcd.compact()
                proxy.listen()
                await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.22", "node4": "192.0.2.4"})
                api.annotate("node4", public_ip="192.0.2.44")
                await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.22", "node4": "192.0.2.44"})

    run(body)
    assert api.lists() == 2
    assert len(caplog.messages) <= 10


@root
def test_a_list_that_expires_half_way_starts_over_once(api: ApiServer) -> None:
    api.create(*(node(f"n{i}", f"10.0.{i}.0/24", mac=MAC, public="192.0.2.1") for i in range(150)))
    api.fault("continue", 410, reason="Expired")

    async def body() -> None:
        async with opened(make_store(api.url)) as store:
            assert len((await store.list(P)).entries) == 150
            assert store.lists == 1

    run(body)
    assert len(api.requests(f"GET {NODES} 200")) == 1, "the second time everything in one answer"


@root
def test_a_failing_list_changes_nothing(api: ApiServer) -> None:
    api.create(*(node(f"n{i}", f"10.0.{i}.0/24", mac=MAC, public="192.0.2.1") for i in range(150)))

    async def body() -> None:
        with proxying(api.port) as proxy:
            async with watching(make_store(proxy.url)) as items:
                await content(items, {f"n{i}": "192.0.2.1" for i in range(150)})
                proxy.refuse()
                await away(items)
                api.fault("watch", 410, reason="Expired")
                api.fault("continue", 503, count=3)
                api.annotate("n7", public_ip="192.0.2.7")
                proxy.listen()
                seen: set[int] = set()
                async for item in items:
                    if isinstance(item, Snapshot):
                        seen.add(len(item.entries))
                        if view(item)["n7"] == "192.0.2.7":
                            break
                assert seen == {150}

    run(body)


@root
@pytest.mark.parametrize(
    ("on", "status", "said"),
    [("list", 503, "answers 503"), ("list", 500, "answers 500"), ("watch", 403, "not allowed"), ("any", 401, "(401)")],
)
def test_a_server_that_refuses_is_away_and_then_back(api: ApiServer, on: str, status: int, said: str) -> None:
    api.create(flannel_node(1))
    api.fault(on, status, count=8)

    async def body() -> None:
        async with watching(make_store(api.url)) as items:
            reason = await away(items)
            assert said in reason
            assert "\n" not in reason
            await content(items, {"node1": "192.0.2.1"})
            api.annotate("node1", public_ip="192.0.2.2")
            await content(items, {"node1": "192.0.2.2"})

    run(body)


@root
def test_too_many_requests_wait_as_long_as_asked_and_do_not_list(api: ApiServer) -> None:
    api.create(flannel_node(1))

    async def body() -> None:
        loop = asyncio.get_running_loop()
        with proxying(api.port) as proxy:
            async with watching(make_store(proxy.url)) as items:
                await content(items, {"node1": "192.0.2.1"})
                proxy.refuse()
                await away(items)
                api.fault("list", 429, retry_after=1)
                api.annotate("node1", public_ip="192.0.2.2")
                start = loop.time()
                proxy.listen()
                await content(items, {"node1": "192.0.2.2"})
                assert loop.time() - start >= 1.0

    run(body)
    assert api.lists() == 1


@root
def test_a_rotated_token_is_used_without_a_restart(make_api: MakeServer, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text("first admin\n")
    mine.write_text("first")
    api = make_api(f"--tokens={tokens}", token="admin")
    api.create(flannel_node(1))
    (tmp_path / "config").write_text(
        f"""{{"current-context":"x","contexts":[{{"name":"x","context":{{"cluster":"c","user":"u"}}}}],
        "clusters":[{{"name":"c","cluster":{{"server":"{api.url}"}}}}],
        "users":[{{"name":"u","user":{{"tokenFile":"{mine}"}}}}]}}"""
    )
    from fabric.store.kube import access, annotate
    from fabric.store.kube.store import KubeStore

    async def body() -> None:
        store = KubeStore(access.load("", str(tmp_path / "config"), {}), annotate.names(), "node1", QUICK)
        async with watching(store) as items:
            await content(items, {"node1": "192.0.2.1"})
            tokens.write_text("second admin\n")
            assert "renew the token" in await away(items)  # at the latest when the quiet watch is renewed
            mine.write_text("second")
            api.annotate("node1", public_ip="192.0.2.2")
            await content(items, {"node1": "192.0.2.2"})

    run(body)


@root
def test_a_watch_that_the_server_ends_goes_on_at_once(api: ApiServer) -> None:
    api.create(flannel_node(1))
    timing = Timing(watch=(1, 1), silence=60, settle=0.1, pause=(30, 30), steady=0.5)

    async def body() -> None:
        async with watching(make_store(api.url, timing)) as items:
            await content(items, {"node1": "192.0.2.1"})
            for number in range(2, 5):
                count = len(api.requests(f"GET {NODES}?watch=1"))
                await eventually(lambda count=count: len(api.requests(f"GET {NODES}?watch=1")) > count)  # type: ignore[misc]
                api.annotate("node1", public_ip=f"192.0.2.{number}")
                await content(items, {"node1": f"192.0.2.{number}"}, 5)

    run(body)
    assert api.lists() == 1


@root
@pytest.mark.parametrize("flags", [("--twice",), ("--swapped",), ("--twice", "--swapped")], ids=" ".join)
def test_duplicated_and_reordered_events(make_api: MakeServer, flags: tuple[str, ...]) -> None:
    api = make_api(*flags, "--bookmarks=0.2")
    api.create(*(flannel_node(number) for number in range(1, 6)))

    async def body() -> None:
        async with watching(make_store(api.url)) as items:
            await content(items, {f"node{n}": f"192.0.2.{n}" for n in range(1, 6)})
            for round_ in range(1, 6):
                for number in range(1, 6):
                    api.annotate(f"node{number}", public_ip=f"198.51.100.{10 * round_ + number}")
            for number in (1, 2):
                api.delete(f"node{number}")
            api.create(flannel_node(1))
            expected = {f"node{n}": f"198.51.100.{50 + n}" for n in (3, 4, 5)} | {"node1": "192.0.2.1"}
            await content(items, expected)

    run(body)
    assert api.lists() == 1


@root
def test_versions_that_ran_backwards_are_one_list_and_another_store(
    make_api: MakeServer, cluster_etcd: EtcdServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api = make_api()
    api.create(flannel_node(1), flannel_node(2))
    cluster_etcd.save(tmp_path / "backup")
    api.create(flannel_node(3))

    async def body() -> None:
        table = LeaseTable(P)
        everybody = {f"node{n}": f"192.0.2.{n}" for n in (1, 2, 3)}
        async with watching(make_store(api.url)) as items:
            first = await content(items, everybody)
            table.update(first, 0.0)
            api.kill()
            cluster_etcd.restore(tmp_path / "backup")
            await away(items)
            api.start()
            second = await content(items, {"node1": "192.0.2.1", "node2": "192.0.2.2"})
            assert second.store_id != first.store_id
            table.update(second, 0.0)
            assert {lease.node for lease in table.current(1.0)} == set(everybody), "no route flaps"
            api.create(flannel_node(3))
            table.update(await content(items, everybody), 0.0)
            assert table.remembered() == set()

    run(body, 120)
    assert api.lists() == 2
    assert sum("ran backwards" in line for line in caplog.messages) == 1


@root
def test_hostile_nodes_leave_the_others_alone(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fabric")
    good = {f"node{n}": f"192.0.2.{n}" for n in range(1, 100)}
    api.create(*(flannel_node(number) for number in range(1, 100)))
    api.create(
        node("evil1", "10.9.1.0/24", mac=MAC, public="192.0.2.200", backend_data="[" * 60000),
        node("evil2", "nonsense", mac=MAC, public="192.0.2.201"),
        node("evil3", "10.9.3.0/24", "10.9.4.0/24", mac=MAC, public="192.0.2.202"),
        node("evil4", "10.9.5.0/24", mac=MAC, public="\x1b[31m\n"),
        node("evil5", "10.9.6.0/24", mac=MAC, public="192.0.2.203", backend_type="\x00" * 5000),
        node("evil6", "10.9.7.0/24", mac=MAC, public="192.0.2.204", unrelated="x" * 200000),
    )
    unreadable = {"evil1": "?", "evil4": "?", "evil5": "?"}

    async def body() -> None:
        async with watching(make_store(api.url)) as items:
            table = LeaseTable(P)
            first = await content(items, good | unreadable | {"evil6": "192.0.2.204"})
            lines = table.update(first, 0.0)
            assert len(lines) == 3
            assert {lease.node for lease in table.current(0.0)} == {*good, "evil6"}
            for number in range(30):
                api.annotate("evil6", backend_data="{" * number)
                api.annotate("evil2", backend_data="x" * number)
            api.annotate("node1", public_ip="198.51.100.1")
            last = await content(items, good | unreadable | {"evil6": "?", "node1": "198.51.100.1"})
            table.update(last, 0.0)
            assert {lease.node for lease in table.current(0.0)} == {*good, "evil6"}, "the last good value holds"

    run(body)
    assert len(caplog.messages) == 2, caplog.messages
    assert api.lists() == 1


@root
def test_a_store_without_a_server(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        store = make_store(f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StoreUnavailableError, match="not asked yet"):
            await store.list(P)
        async with watching(store) as items:
            assert "Connect" in await away(items)
            with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1"):
                await store.list(P)
        assert [item async for item in store.watch(P)] == []
        with pytest.raises(StoreUnavailableError, match="is closed"):
            await store.list(P)
        for write in (store.put("k", b"", 0, None), store.delete("k", 0)):
            with pytest.raises(StoreError, match="annotations of Nodes"):
                await write

    run(body)
    assert caplog.messages == []


@root
def test_closing_ends_the_watches(api: ApiServer) -> None:
    api.create(flannel_node(1))

    async def body() -> None:
        store = make_store(api.url)
        await store.open()
        seen: list[object] = []

        async def read() -> None:
            seen.extend([item async for item in store.watch(P)])

        task = asyncio.create_task(read())
        assert view(await store.list(P)) == {"node1": "192.0.2.1"}
        await store.close()
        await store.close()
        await asyncio.wait_for(task, 5)
        assert not any(isinstance(item, Unavailable) for item in seen)

    run(body)


@root
def test_single_objects(api: ApiServer) -> None:
    api.create(flannel_node(1, node_public_ip="192.0.2.111", node_public_ipv6="2001:db8::1"), flannel_node(2))
    api.create({"metadata": {"name": "pod1"}, "spec": {"nodeName": "node7"}}, {"metadata": {"name": "pod2"}},
               path="/api/v1/namespaces/kube-flannel/pods")  # fmt: skip

    async def body() -> None:
        store = make_store(api.url)
        assert await node_public_ips(store) == {4: "192.0.2.111", 6: "2001:db8::1"}
        assert await node_public_ips(make_store(api.url, own="node2")) == {}
        with pytest.raises(NotFoundError, match='nodes "node9" not found'):
            await node_public_ips(make_store(api.url, own="node9"))
        environ = {"POD_NAMESPACE": "kube-flannel", "POD_NAME": "pod1"}
        assert await node_name_of_pod(store.api, environ) == "node7"
        assert await node_name_of_pod(store.api, {"POD_NAME": "pod1"}) == ""
        with pytest.raises(StoreUnavailableError, match="node name not present in pod spec 'kube-flannel/pod2'"):
            await node_name_of_pod(store.api, environ | {"POD_NAME": "pod2"})

    run(body)
