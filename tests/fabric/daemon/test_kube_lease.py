"""`KubeLease` on an API server whose store is a real etcd: what flannel would publish, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fabric import config, leases
from fabric.config import NetConf
from fabric.daemon.kube_lease import KubeLease
from fabric.daemon.own_lease import Identity
from fabric.errors import LeaseError, StoreUnavailableError
from fabric.store.base import Snapshot
from fabric.store.kube.store import KubeStore, node_name_of_pod, node_public_ips
from tests.apiserver.fixtures import MakeServer
from tests.apiserver.process import NODES, ApiServer, node
from tests.apiserver.proxy import proxying
from tests.fabric.store.kube.harness import P, eventually, make_store, opened, run

pytestmark = pytest.mark.root
V4 = config.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}')
V6 = config.parse('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/48","Backend":{"Type":"vxlan"}}')
DUAL = config.parse(
    '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8::/48","Backend":{"Type":"vxlan"}}'
)
UDP = config.parse('{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}')
MAC4, MAC6 = bytes.fromhex("12c66589b4e3"), bytes.fromhex("da5e459f1273")
PATCH = f"PATCH {NODES}/node1/status"


def identity(conf: NetConf = V4, *public: str, macs: dict[int, bytes] | None = None) -> Identity:
    default = {4: "192.0.2.1", 6: "2001:db8:f::1"}
    given = public or tuple(default[network.version] for network in conf.networks)
    return Identity(conf, tuple(ip_address(text) for text in given), dict(macs or {4: MAC4, 6: MAC6}), ())


@asynccontextmanager
async def joined(url: str, who: Identity, condition: bool = False) -> AsyncIterator[tuple[KubeLease, KubeStore]]:
    """An open store and a lease that was not acquired yet."""
    async with opened(make_store(url)) as store:
        yield KubeLease(store, P, who, condition), store


@asynccontextmanager
async def kept(own: KubeLease, store: KubeStore) -> AsyncIterator[None]:
    """What the daemon does: `run` as a task, `observe` for each snapshot."""

    async def observe() -> None:
        async for item in store.watch(P):
            if isinstance(item, Snapshot):
                own.observe(item)

    tasks = [asyncio.create_task(own.run()), asyncio.create_task(observe())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


COMMON = {"kube-subnet-manager": "true", "backend-type": "vxlan"}
A4 = {"backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', "public-ip": "192.0.2.1"}
A6 = {"backend-v6-data": '{"VNI":1,"VtepMAC":"da:5e:45:9f:12:73"}', "public-ipv6": "2001:db8:f::1"}


@pytest.mark.parametrize(
    ("conf", "cidrs", "published", "key"),
    [
        (V4, ["10.244.1.0/24"], COMMON | A4, "10.244.1.0-24@node1"),
        (DUAL, ["10.244.1.0/24", "2001:db8:0:1::/64"], COMMON | A4 | A6, "10.244.1.0-24&2001:db8:0:1::-64@node1"),
        (V6, ["2001:db8:0:1::/64"], COMMON | A6, "0.0.0.0-0&2001:db8:0:1::-64@node1"),
        (V4, ["2001:db8:0:1::/64", "10.244.1.0/24"], COMMON | A4, "10.244.1.0-24&2001:db8:0:1::-64@node1"),
        (UDP, ["10.244.1.0/24"], {"kube-subnet-manager": "true", "backend-type": "", "backend-data": "null",
                                  "public-ip": "192.0.2.1"}, "10.244.1.0-24@node1"),
    ],
    ids=["v4", "dual", "v6", "v4-of-dual", "udp"],
)  # fmt: skip
def test_publishes_what_flannel_would(
    api: ApiServer, conf: NetConf, cidrs: list[str], published: dict[str, str], key: str
) -> None:
    api.create(node("node1", *cidrs))

    async def body() -> None:
        async with joined(api.url, identity(conf)) as (own, store):
            lease = await own.acquire()
            assert (lease.key, lease.node, own.created, own.lease) == (key, "node1", True, lease)
            assert [str(item) for item in (lease.subnet, lease.ipv6_subnet) if item] == [
                text for text in sorted(cidrs) if (":" in text) in {network.version == 6 for network in conf.networks}
            ]
            assert api.annotations("node1") == published
            async with kept(own, store):
                await eventually(lambda: store.own_node() and store.own_node().annotations)  # type: ignore[union-attr]
                entries = (await store.list(P)).entries
            found = leases.parse(key, entries[P + key].value, None, entries[P + key].created)
            assert (found.public_ip, found.public_ipv6) == (lease.public_ip, lease.public_ipv6)
            assert (found.backend_data, found.backend_v6_data) == (lease.backend_data, lease.backend_v6_data)
            assert (found.revision, found.node) == (lease.revision, lease.node)

    run(body)
    assert len(api.requests(PATCH)) == 1


def test_nothing_is_written_when_nothing_differs(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    for name, text in (COMMON | A4).items():
        api.annotate("node1", **{name: text})

    async def body() -> None:
        async with joined(api.url, identity(macs={4: MAC6})) as (own, _):
            lease = await own.acquire()
            assert leases.parse_mac(lease.backend_data) == MAC4, "the MAC on our Node wins over the remembered one"
            assert not own.created

    run(body)
    assert api.requests(PATCH) == []


def test_a_remembered_mac_that_another_node_has_is_not_used(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    other = node("node2", "10.244.2.0/24", mac="12:c6:65:89:b4:e3", public="192.0.2.2")
    api.create(node("node1", "10.244.1.0/24"), other)

    async def body() -> None:
        async with joined(api.url, identity()) as (own, _):
            own.remember(leases.parse("10.244.1.0-24@node1", b'{"BackendData":{"VtepMAC":"12:c6:65:89:b4:e3"}}'))
            assert leases.parse_mac((await own.acquire()).backend_data) != MAC4

    run(body)
    assert "belongs to another node" in caplog.text


def test_waits_for_the_node_and_its_pod_cidr(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with joined(api.url, identity()) as (own, _):
            task = asyncio.create_task(own.acquire())
            await eventually(lambda: 'there is no node "node1"' in caplog.text)
            api.create(node("node1"))
            await eventually(lambda: 'node "node1" pod cidr not assigned: waiting' in caplog.text)
            api.patch("node1", {"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}})
            assert str((await task).subnet) == "10.244.1.0/24"

    run(body)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("conf", "cidrs", "message"),
    [
        (V4, ["10.1.0.0/24"],
         'subnet "10.244.0.0/16" specified in the flannel net config doesn\'t contain "10.1.0.0/24" PodCIDR of the '
         '"node1" node'),
        (V4, ["10.0.0.0/8"],
         'subnet "10.244.0.0/16" specified in the flannel net config doesn\'t contain "10.0.0.0/8" PodCIDR of the '
         '"node1" node'),
        (DUAL, ["10.244.1.0/24", "2001:db8:1::/64"],
         'subnet "2001:db8::/48" specified in the flannel net config doesn\'t contain "2001:db8:1::/64" IPv6 PodCIDR '
         'of the "node1" node'),
        (V4, ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"],
         'node "node1" pod cidrs should be IPv4/IPv6 only or dualstack'),
        (V4, ["2001:db8:0:1::/64"],
         'node "node1" has no IPv4 PodCIDR, only 0.0.0.0-0&2001:db8:0:1::-64@node1: enable that family'),
    ],
)  # fmt: skip
def test_flannels_refusals(api: ApiServer, conf: NetConf, cidrs: list[str], message: str) -> None:
    api.create(node("node1", *cidrs))

    async def body() -> None:
        async with joined(api.url, identity(conf)) as (own, _):
            with pytest.raises(LeaseError) as caught:
                await own.acquire()
            assert str(caught.value) == message

    run(body)
    assert api.requests(PATCH) == []


def test_the_administrators_address_wins_at_the_start_and_later(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24", public_ip_overwrite="203.0.113.7"))

    async def body() -> None:
        async with joined(api.url, identity()) as (own, store):
            lease = await own.acquire()
            assert lease.public_ip == IPv4Address("203.0.113.7")
            assert api.annotations("node1")["public-ip"] == "203.0.113.7"
            async with kept(own, store):
                api.annotate("node1", public_ip_overwrite="203.0.113.8")
                await eventually(lambda: api.annotations("node1")["public-ip"] == "203.0.113.8")
                own.republish(identity(V4, "192.0.2.77"))
                assert own.lease is not None
                assert own.lease.public_ip == IPv4Address("203.0.113.8")
                api.annotate("node1", public_ip_overwrite=None)
                await eventually(lambda: api.annotations("node1")["public-ip"] == "192.0.2.77")
                await eventually(lambda: own.lease and own.lease.public_ip == IPv4Address("192.0.2.77"))

    run(body)


def test_another_address_of_ours_is_published(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.create(node("node1", "10.244.1.0/24", "2001:db8:0:1::/64"))

    async def body() -> None:
        async with joined(api.url, identity(DUAL)) as (own, store):
            await own.acquire()
            async with kept(own, store):
                own.republish(identity(DUAL, "192.0.2.9", "2001:db8:f::9"))
                assert own.lease is not None
                assert own.lease.public_ipv6 == IPv6Address("2001:db8:f::9")
                changed = {"public-ip": "192.0.2.9", "public-ipv6": "2001:db8:f::9"}
                await eventually(lambda: api.annotations("node1") == COMMON | A4 | A6 | changed)

    run(body)
    assert caplog.messages == []


def test_what_somebody_changed_or_removed_is_written_again(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.create(node("node1", "10.244.1.0/24"))

    async def body() -> None:
        async with joined(api.url, identity()) as (own, store):
            await own.acquire()
            async with kept(own, store):
                for change in ({"kube_subnet_manager": None}, {"backend_data": "null", "public_ip": "192.0.2.66"}):
                    api.annotate("node1", **change)
                    await eventually(lambda: api.annotations("node1") == COMMON | A4)

    run(body)
    assert sum("changed by somebody else" in line for line in caplog.messages) == 1, "once for each fight"


def test_a_fight_over_the_node_gets_slower(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24"))

    async def body() -> None:
        async with joined(api.url, identity()) as (own, store):
            await own.acquire()
            async with kept(own, store):
                times: list[float] = []
                while len(times) < 4:
                    api.annotate("node1", public_ip="192.0.2.66")
                    await eventually(lambda: api.annotations("node1")["public-ip"] == "192.0.2.1")
                    times.append(asyncio.get_running_loop().time())
                gaps = [later - earlier for earlier, later in pairwise(times)]
                assert gaps[0] >= 0.9, gaps
                assert gaps[1] >= 1.9, gaps
                assert gaps[2] >= 3.9, gaps

    run(body)


def test_a_node_that_was_made_anew_and_got_another_pod_cidr(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    changes: list[str] = []

    async def body() -> None:
        async with joined(api.url, identity(), condition=True) as (own, store):
            own.changed = lambda lease: changes.append(lease.key)
            await own.acquire()
            async with kept(own, store):
                await eventually(lambda: _condition(api)["status"] == "False")
                api.delete("node1")
                await eventually(lambda: "node node1 is gone from the API" in caplog.text)
                api.create(node("node1", "10.244.55.0/24"))
                await eventually(lambda: api.annotations("node1") == COMMON | A4)
                await eventually(lambda: changes == ["10.244.55.0-24@node1"])
                await eventually(lambda: _condition(api)["status"] == "False")
                assert own.lease is not None
                assert str(own.lease.subnet) == "10.244.55.0/24"
                api.patch("node1", {"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}})
                api.annotate("node1", public_ip_overwrite="203.0.113.1")
                api.patch("node1", {"spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}})
                await eventually(lambda: changes == ["10.244.55.0-24@node1", "10.244.7.0-24@node1"])

    run(body)


def _condition(api: ApiServer) -> dict[str, Any]:
    found: list[dict[str, Any]] = api.get("node1")["status"]["conditions"]
    return next(item for item in found if item["type"] == "NetworkUnavailable")


@pytest.mark.parametrize("wanted", [True, False])
def test_the_condition_is_cleared_when_the_node_runs(api: ApiServer, wanted: bool) -> None:
    api.create(node("node1", "10.244.1.0/24"))

    async def body() -> None:
        async with joined(api.url, identity(), condition=wanted) as (own, store):
            await own.acquire()
            assert _condition(api)["status"] == "True", "not before the node forwards"
            async with kept(own, store):
                if wanted:
                    await eventually(lambda: _condition(api)["status"] == "False")
                api.annotate("node1", public_ip="192.0.2.66")
                await eventually(lambda: api.annotations("node1") == COMMON | A4)

    run(body)
    found = _condition(api)
    if not wanted:
        assert found["reason"] == "NoRouteCreated"
        return
    assert (found["reason"], found["message"]) == ("FlannelIsUp", "Flannel is running on this node")
    assert found["lastTransitionTime"] == found["lastHeartbeatTime"]
    assert found["lastTransitionTime"][-1] == "Z"
    assert [item["type"] for item in api.get("node1")["status"]["conditions"]] == ["NetworkUnavailable", "Ready"]


def test_a_failed_start_takes_back_what_it_made(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24", public_ip="198.51.100.1"))

    async def body() -> None:
        async with joined(api.url, identity()) as (own, _):
            await own.acquire()
            await own.release()
            await own.release()
            assert api.annotations("node1") == {"public-ip": "198.51.100.1"}
        async with joined(api.url, identity()) as (own, _):
            await own.acquire()
        async with joined(api.url, identity()) as (own, _):
            await own.acquire()
            await own.release()
            assert api.annotations("node1") == COMMON | A4, "it was flannel's before this start"

    run(body)


def test_conflicts_and_outages_are_tried_again(
    api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    api.fault("patch", 409, reason="Conflict")

    async def body() -> None:
        async with joined(api.url, identity(), condition=True) as (own, store):
            with pytest.raises(StoreUnavailableError, match="conflict"):
                await own.acquire()
            api.fault("patch", 503)
            with pytest.raises(StoreUnavailableError, match="503"):
                await own.acquire()
            await own.acquire()
            api.fault("patch", 409, reason="Conflict", count=2)
            async with kept(own, store):
                await eventually(lambda: _condition(api)["status"] == "False")
                api.fault("patch", 500)
                own.republish(identity(V4, "192.0.2.5"))
                await eventually(lambda: api.annotations("node1")["public-ip"] == "192.0.2.5")

    run(body)
    assert len(caplog.messages) == 2, caplog.messages


def test_goes_on_with_the_lease_of_an_earlier_run_and_publishes_it_later(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    remembered = leases.parse(
        "10.244.1.0-24@node1", b'{"PublicIP":"192.0.2.99","BackendData":{"VtepMAC":"da:5e:45:9f:12:73"}}'
    )

    async def body() -> None:
        with proxying(api.port) as proxy:
            proxy.refuse()
            async with joined(proxy.url, identity(macs={})) as (own, store):
                with pytest.raises(StoreUnavailableError):
                    await own.acquire()
                assert not own.resume(leases.parse("10.244.1.0-24@node2", b"{}"))
                assert not own.resume(leases.parse("10.244.1.0-24", b"{}"))
                assert not own.resume(leases.parse("10.1.0.0-24@node1", b"{}"))
                assert own.resume(remembered)
                assert own.lease is not None
                assert (own.lease.public_ip, own.lease.key) == (IPv4Address("192.0.2.1"), "10.244.1.0-24@node1")
                assert leases.parse_mac(own.lease.backend_data) == MAC6
                async with kept(own, store):
                    proxy.listen()
                    await eventually(lambda: "public-ip" in api.annotations("node1"))
        assert api.annotations("node1") == COMMON | {
            "backend-data": '{"VNI":1,"VtepMAC":"da:5e:45:9f:12:73"}',
            "public-ip": "192.0.2.1",
        }

    run(body)


def test_the_role_in_the_manifest_is_all_that_is_needed(
    make_api: MakeServer,
) -> None:
    """Acquire, watch, condition, node-public-ip and the pod's node under exactly the rules of docs/kubernetes."""
    manifest = Path(__file__).parents[3] / "docs" / "kubernetes" / "rbac.yaml"
    everything = make_api()
    everything.create(node("node1", "10.244.1.0/24", node_public_ip="192.0.2.3"))
    everything.create({"metadata": {"name": "p"}, "spec": {"nodeName": "node1"}}, path="/api/v1/namespaces/n/pods")
    limited = make_api(f"--rbac={manifest}")

    async def body() -> None:
        async with joined(limited.url, identity(), condition=True) as (own, store):
            assert await node_name_of_pod(store.api, {"POD_NAME": "p", "POD_NAMESPACE": "n"}) == "node1"
            assert await node_public_ips(store) == {4: "192.0.2.3"}
            await own.acquire()
            async with kept(own, store):
                await eventually(lambda: _condition(everything)["status"] == "False")

    run(body)
    assert not [line for line in limited.requests() if line.endswith(" 403")]
