"""Events about refused policies, against the tests' API server over a real etcd."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from fabric.policing import kube_events
from fabric.policing.documents import Given
from fabric.policing.keeper import PolicyKeeper
from fabric.policing.kube_events import EventReporter, Pace, Refused, event_of, name_of
from fabric.policing.kube_source import KubePolicySource
from fabric.policing.world import OwnNode, World
from tests.apiserver.process import ApiServer, running
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import Recorder, network_policy
from tests.fabric.policing.test_kube_source import CLUSTER, CNP, NETWORKING, TIMING, client, fill, run
from tests.fabric.store.etcd_server import EtcdServer

PACE = Pace(rate=1000.0, pause=(0.05, 0.2))
REFUSED = Refused(
    "networking.k8s.io/v1", "NetworkPolicy", "shop", "web", "uid-1", 1, 42, "spec.ingress: is a number, not a list",
    "it is not in force",
)  # fmt: skip
NOW = datetime(2026, 11, 26, 12, 0, 0, 5, UTC)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


def events(api: ApiServer, namespace: str, about: str = "") -> list[dict[str, Any]]:
    """The Events, about one object or all, by their time."""
    selector = f"?fieldSelector=involvedObject.name={about}" if about else ""
    found: list[dict[str, Any]] = api.ask("GET", f"/api/v1/namespaces/{namespace}/events{selector}")["items"]
    return sorted(found, key=lambda item: str(item["eventTime"]))


def posts(api: ApiServer, status: int, namespace: str) -> int:
    """How many Events were offered with this answer."""
    return len(api.requests(f"POST /api/v1/namespaces/{namespace}/events {status}"))


@pytest.fixture(scope="module")
def shared(cluster_etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """For tests that keep to a namespace, or objects, of their own."""
    with running(tmp_path_factory.mktemp("api"), cluster_etcd) as api:
        fill(api)
        yield api


@asynccontextmanager
async def reporting(
    api: ApiServer, node: str = "n1", pace: Pace = PACE, nodes: int = 1
) -> AsyncIterator[EventReporter]:
    reporter = EventReporter(client(api), node, lambda: nodes, pace)
    task = asyncio.get_running_loop().create_task(reporter.run())
    try:
        yield reporter
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def node(api: ApiServer, name: str, directory: Path) -> AsyncIterator[PolicyKeeper]:
    """What a daemon has of policy."""

    def world(found: Mapping[str, Given]) -> World:
        return World(OwnNode(name), found, strict=True)

    recorder = Recorder()
    source = KubePolicySource(client(api), name, TIMING, PACE)
    keeper = PolicyKeeper([source], name, world, lambda: recorder, directory / name)
    await keeper.first()
    tasks = [asyncio.ensure_future(body()) for _, body in keeper.tasks()]
    try:
        yield keeper
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await keeper.close()


def test_a_name_is_of_object_generation_and_reason_and_not_of_the_node() -> None:
    others = [replace(REFUSED, uid="uid-2"), replace(REFUSED, generation=2), replace(REFUSED, reason="spec: is odd")]
    assert len({name_of(item) for item in (REFUSED, *others)}) == 4
    assert name_of(replace(REFUSED, version=43, outcome="the last good one stays in force")) == name_of(REFUSED)
    for name in ("web", "a" * 253, "a." * 100 + "a", "a" * 79 + "-b", "0"):
        found = name_of(replace(REFUSED, name=name))
        assert SUBDOMAIN.match(found)
        assert len(found) <= 253


def test_an_event_names_the_object_and_is_within_the_apis_limits() -> None:
    event = event_of(REFUSED, "n" * 200, NOW)
    assert event["metadata"] == {"name": name_of(REFUSED), "namespace": "shop"}
    assert event["involvedObject"] == {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "web",
        "uid": "uid-1", "resourceVersion": "42",
    }  # fmt: skip
    assert (event["type"], event["reason"], event["reportingComponent"]) == ("Warning", "PolicyRefused", "podfabric")
    assert event["message"] == "spec.ingress: is a number, not a list: it is not in force"
    assert (event["eventTime"], event["firstTimestamp"]) == ("2026-11-26T12:00:00.000005Z", "2026-11-26T12:00:00Z")
    assert event["reportingInstance"] == "n" * 128
    long = event_of(replace(REFUSED, namespace="", reason="spec: " + "\u00e4\udc80" * 600), "n1", NOW)
    assert len(long["message"].encode()) <= 1024
    assert long["message"].endswith("...: it is not in force")
    assert long["metadata"]["namespace"] == "default"
    assert "namespace" not in long["involvedObject"]


@pytest.mark.slow
def test_of_two_nodes_one_creates_the_event(shared: ApiServer) -> None:
    refused = replace(REFUSED, namespace="two")

    async def body() -> None:
        async with reporting(shared, "n1") as one, reporting(shared, "n2") as two:
            one.tell([refused])
            two.tell([replace(refused, version=43)])
            await eventually(lambda: posts(shared, 409, "two"))
            one.tell([refused])  # every compilation tells
            one.tell([refused, replace(refused, name="z")])
            await eventually(lambda: posts(shared, 201, "two") == 2)

    run(body)
    assert sorted(item["involvedObject"]["name"] for item in events(shared, "two")) == ["web", "z"]
    assert posts(shared, 409, "two") == 1


@pytest.mark.slow
def test_the_number_is_bounded_and_the_rate_is_that_of_the_cluster(
    shared: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_events, "MOST_OBJECTS", 3)
    many = [replace(REFUSED, namespace="many", name=f"p{number}") for number in (5, 3, 1, 4, 2)]

    async def body() -> None:
        async with reporting(shared) as reporter:
            reporter.tell(many)
            await eventually(lambda: posts(shared, 201, "many") == 3)
            reporter.tell([*many, replace(many[0], name="p0")])
            await eventually(lambda: posts(shared, 201, "many") == 4)
        async with reporting(shared, "n2", nodes=10**9) as one_of_many, reporting(shared) as reporter:
            one_of_many.tell(many)  # its turn is in days
            reporter.tell([replace(many[0], name="p9")])
            await eventually(lambda: posts(shared, 201, "many") == 5)

    run(body)
    names = [item["involvedObject"]["name"] for item in events(shared, "many")]
    assert sorted(names) == ["p0", "p1", "p2", "p3", "p9"]
    assert posts(shared, 409, "many") == 0


@pytest.mark.slow
def test_an_event_that_the_api_has_forgotten_is_written_again_while_it_is_true(shared: ApiServer) -> None:
    refused = replace(REFUSED, namespace="old")
    other = replace(refused, name="other")

    async def forget() -> None:
        await asyncio.to_thread(shared.ask, "DELETE", f"/api/v1/namespaces/old/events/{name_of(refused)}")

    async def body() -> None:
        async with reporting(shared, pace=replace(PACE, repeat=0.1)) as reporter:
            reporter.tell([refused])
            await eventually(lambda: posts(shared, 409, "old") >= 2)
            await forget()
            await eventually(lambda: posts(shared, 201, "old") == 2)
            reporter.tell([other])
            await eventually(lambda: posts(shared, 201, "old") == 3)
            await forget()  # it is right now, and stays forgotten
            before = posts(shared, 409, "old")
            await eventually(lambda: posts(shared, 409, "old") >= before + 2)

    run(body)
    assert [item["involvedObject"]["name"] for item in events(shared, "old")] == ["other"]


def test_without_the_right_it_is_said_once_and_tried_rarely(
    shared: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    shared.fault("create", 403, count=3)

    async def body() -> None:
        began = monotonic()
        async with reporting(shared, pace=replace(PACE, forbidden=0.2)) as reporter:
            reporter.tell([replace(REFUSED, namespace="closed", name=f"p{number}") for number in range(9)])
            await eventually(lambda: posts(shared, 403, "closed") == 3)
            assert monotonic() - began >= 0.4
            await eventually(lambda: posts(shared, 201, "closed") == 9)

    run(body)
    (said,) = [line for line in caplog.messages if "Events" in line]
    assert said.endswith("not allowed (as asked for): apply docs/kubernetes/rbac.yaml")


def test_an_api_that_is_away_gets_it_later_and_one_refusal_does_not_hold_up_the_others(
    shared: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    refused = replace(REFUSED, namespace="away")
    shared.kill()

    async def body() -> None:
        async with reporting(shared) as reporter:
            reporter.tell([refused])
            await eventually(lambda: caplog.messages)
            reporter.tell([refused, replace(refused, name="more")])
            shared.start()  # from this thread, since it dies with the one that started it
            await eventually(lambda: posts(shared, 201, "away") == 2, 20)
            await asyncio.to_thread(shared.fault, "create", 429)
            await asyncio.to_thread(shared.fault, "create", 422)
            ending = "unable to create new content in namespace away because it is being terminated"
            await asyncio.to_thread(shared.fault, "create", 403, message=ending)
            reporter.tell([replace(refused, uid=f"uid-{number}") for number in (2, 3, 4)])
            await eventually(lambda: posts(shared, 201, "away") == 3)

    run(body)
    assert [posts(shared, status, "away") for status in (429, 422, 403)] == [1, 1, 1]
    assert len([line for line in caplog.messages if "Events about refused policies are not written" in line]) == 2


def test_nodes_write_one_event_for_each_mistake_and_none_for_what_is_right(shared: ApiServer, tmp_path: Path) -> None:
    wrong = network_policy("web", ingress=[{"ports": [{"port": 80800}]}])
    path, key = f"{NETWORKING}/web", "networking.k8s.io/v1/NetworkPolicy/shop/web"
    before = posts(shared, 409, "shop")

    async def body() -> None:
        async with node(shared, "n1", tmp_path) as first, node(shared, "n2", tmp_path) as second:
            nodes = first, second
            await asyncio.to_thread(shared.create, wrong, path=NETWORKING)
            await eventually(lambda: posts(shared, 409, "shop") == before + 1)
            await asyncio.to_thread(shared.ask, "PUT", path, network_policy("web"))
            await eventually(lambda: all(key in keeper.outcome.accepted for keeper in nodes))
            await asyncio.to_thread(shared.ask, "PUT", path, wrong)
            await eventually(lambda: posts(shared, 409, "shop") == before + 2)
            await asyncio.to_thread(shared.ask, "PUT", path, network_policy("web", egress=3))
            await eventually(lambda: posts(shared, 409, "shop") == before + 3)

    run(body)
    policy = shared.ask("DELETE", path)["metadata"]
    port, end = "spec.ingress[0].ports[0].port: is 80800, not in 1..65535", "the last good one stays in force"
    found = events(shared, "shop", "web")
    assert [item["message"] for item in found] == [
        f"{port}: it is not in force", f"{port}: {end}", f"spec.egress: is a number, not a list: {end}"
    ]  # fmt: skip
    assert {item["involvedObject"]["uid"] for item in found} == {policy["uid"]}
    assert {item["reportingInstance"] for item in found} <= {"n1", "n2"}
    assert found[2]["involvedObject"]["resourceVersion"] == policy["resourceVersion"]


def test_what_cannot_be_read_and_what_is_enforced_in_part_have_events_too(shared: ApiServer, tmp_path: Path) -> None:
    named = CNP | {"metadata": {"name": "named"}, "spec": CNP["spec"] | {"ingress": [], "egress": [
        {"action": "Accept", "to": [{"domainNames": ["www.example.org"]}]}]}}  # fmt: skip
    odd = network_policy("odd") | {"metadata": {"name": "odd", "namespace": "shop", "labels": {"a": 3}}}

    async def body() -> None:
        async with node(shared, "n1", tmp_path) as keeper:
            await asyncio.to_thread(shared.create, odd, path=NETWORKING)
            await asyncio.to_thread(shared.create, named, path=CLUSTER)
            await eventually(lambda: events(shared, "shop", "odd") and events(shared, "default", "named"))
            assert any("NetworkPolicy shop/odd" in line for line in keeper.problems())
            await asyncio.to_thread(shared.ask, "PUT", f"{NETWORKING}/odd", network_policy("odd"))
            await eventually(lambda: not any("shop/odd" in line for line in keeper.problems()))

    run(body)
    (unread,), (part,) = events(shared, "shop", "odd"), events(shared, "default", "named")
    assert unread["involvedObject"]["uid"] == shared.ask("DELETE", f"{NETWORKING}/odd")["metadata"]["uid"]
    assert unread["message"].endswith("`$.metadata.labels[...]`: it is not in force")
    assert (unread["reason"], part["reason"]) == ("PolicyRefused", "PolicyPartlyEnforced")
    assert part["involvedObject"]["uid"] == shared.ask("DELETE", f"{CLUSTER}/named")["metadata"]["uid"]
    assert part["message"] == ("spec.egress[0].to[0] has domainNames, which is not supported: the Accept rule "
                               "spec.egress[0] matches nothing")  # fmt: skip


@pytest.mark.root  # as all tests with kubectl
def test_kubectl_shows_them(shared: ApiServer, tmp_path: Path) -> None:
    admin = CNP | {"spec": CNP["spec"] | {"priority": 5000}}

    async def body() -> None:
        async with node(shared, "n1", tmp_path):
            annotate = "annotate", "-n", "shop", "networkpolicy", "all", "podfabric.io/established=forever"
            await asyncio.to_thread(shared.kubectl, *annotate)
            await asyncio.to_thread(shared.ask, "PUT", f"{CLUSTER}/admin", admin)
            await eventually(lambda: events(shared, "shop", "all") and events(shared, "default", "admin"))

    run(body)
    why = "metadata.annotations.podfabric.io/established: is 'forever', not one of keep, re-evaluate, reset: the last"
    (line,) = shared.kubectl("events", "-n", "shop", "--for", "networkpolicy/all", "--no-headers").splitlines()
    assert line.split(None, 4)[1:4] == ["Warning", "PolicyRefused", "NetworkPolicy/all"]
    assert why in line
    found = shared.kubectl("get", "events", "-n", "shop", "--field-selector", "involvedObject.name=all", "-o",
                           "jsonpath={.items[*].message}")  # fmt: skip
    assert found.startswith(why)
    described = shared.kubectl("describe", "clusternetworkpolicy", "admin").splitlines()[-1]
    assert described.split()[:2] == ["Warning", "PolicyRefused"]
    assert described.endswith("podfabric  spec.priority: is 5000, not in 0..1000: the last good one stays in force")
    # kubectl looks for no events here, whoever wrote them.
    assert "Events:" not in shared.kubectl("describe", "networkpolicy", "-n", "shop", "all")
