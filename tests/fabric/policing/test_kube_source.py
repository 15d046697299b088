"""Policies from the Kubernetes API, against the tests' API server over a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from fabric import flags
from fabric.control_client import DaemonRefusedError
from fabric.daemon.node import Node
from fabric.daemon.sources import make_source
from fabric.policing import door, kube_source, last_good, objects
from fabric.policing.documents import Given
from fabric.policing.kube_source import KubePolicySource, source_title
from fabric.policing.source import PolicySourceError
from fabric.store.kube import access, annotate
from fabric.store.kube.api import Api, ForbiddenError
from fabric.store.kube.reflector import Timing
from tests.apiserver.fixtures import MakeServer
from tests.apiserver.process import ApiServer, node
from tests.fabric.clock import eventually
from tests.fabric.policing.recorder import network_policy, pod
from tests.fabric.policing.test_node import PolicyBench, port

RBAC = Path(__file__).parents[3] / "docs" / "kubernetes" / "rbac.yaml"
TIMING = Timing(pause=(0.05, 0.2), settle=0.1)
NETWORKING = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
CLUSTER = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
CNP = {
    "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "admin"},
    "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
             "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]},
}  # fmt: skip


def client(api: ApiServer, token: str = "") -> Api:
    found = access.load(api.url, "", {})
    return Api(replace(found, token=token.encode()) if token else found, annotate.names("flannel.alpha.coreos.com"))


def fill(api: ApiServer) -> None:
    api.create(node("n1", "10.244.1.0/24"))
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}, path="/api/v1/namespaces")
    api.create(pod("web", "10.244.1.5", app="web"), path="/api/v1/namespaces/shop/pods")
    api.create(network_policy("all"), path=NETWORKING)
    api.create(CNP, path=CLUSTER)


def titles(source: KubePolicySource) -> list[str] | None:
    return None if source.content is None else sorted(map(objects.title, source.content.objects))


FLANNELS = [{"resources": ["nodes"], "verbs": ["get", "list", "watch"]}, {"resources": ["pods"], "verbs": ["get"]}]
ALL = ["ClusterNetworkPolicy admin", "Namespace shop", "NetworkPolicy shop/all", "Node n1", "Pod shop/web"]


@asynccontextmanager
async def followed(source: KubePolicySource) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(source.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body(), 40)

    asyncio.run(whole())


@pytest.mark.slow
def test_everything_is_listed_before_anything_is_shown_and_then_followed(api: ApiServer) -> None:
    fill(api)

    async def body() -> None:
        source = KubePolicySource(client(api), "n1", TIMING)
        assert source.content is None
        await source.first(None)
        async with followed(source):
            assert titles(source) == ALL
            before = source.content
            assert before is not None
            await asyncio.to_thread(api.create, pod("db", "10.244.1.6"), path="/api/v1/namespaces/shop/pods")
            await eventually(lambda: "Pod shop/db" in (titles(source) or []))
            await asyncio.to_thread(api.ask, "DELETE", f"{NETWORKING}/all")
            await eventually(lambda: "NetworkPolicy shop/all" not in (titles(source) or []))
            after = source.content
            assert after is not None
            assert after.objects["v1/Pod/shop/web"] is before.objects["v1/Pod/shop/web"]
            assert source.problem() == ""

    run(body)


def test_a_heartbeat_changes_nothing(api: ApiServer) -> None:
    fill(api)

    async def body() -> None:
        source = KubePolicySource(client(api), "n1", TIMING)
        await source.first(None)
        async with followed(source):
            calls: list[int] = []
            source.changed = lambda: calls.append(1)
            await asyncio.to_thread(api.annotate, "n1", something="else")
            change: dict[str, Any] = {"metadata": {"labels": {"zone": "a"}}}
            await asyncio.to_thread(api.patch, "n1", change)
            await eventually(lambda: calls)
            assert len(calls) == 1

    run(body)


def test_a_cluster_without_cluster_policies_is_complete(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(api)
    kinds = [*kube_source.KINDS]
    last = kinds[-1]
    kinds[-1] = type(last)(last.path.replace("clusternetworkpolicies", "others"), last.version, last.kind, dict, True)
    monkeypatch.setattr(kube_source, "KINDS", kinds)

    async def body() -> None:
        source = KubePolicySource(client(api), "n1", TIMING)
        await source.first(None)
        async with followed(source):
            assert titles(source) == ALL[1:]
            assert source.problem() == ""

    run(body)


@pytest.mark.slow
def test_without_the_api_the_last_run_counts_until_everything_was_listed(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(api)
    api.kill()
    monkeypatch.setattr(kube_source, "FIRST_SECONDS", 0.3)
    key, value = objects.normal(network_policy("old"))

    async def body() -> None:
        source = KubePolicySource(client(api), "n1", TIMING)
        await source.first({key: Given(value)})
        async with followed(source):
            assert titles(source) == ["NetworkPolicy shop/old"]
            await eventually(source.problem)
            await asyncio.to_thread(api.start)
            await eventually(lambda: titles(source) == ALL, 10)

    run(body)


@pytest.mark.slow
def test_an_outage_changes_nothing(api: ApiServer) -> None:
    fill(api)

    async def body() -> None:
        source = KubePolicySource(client(api), "n1", TIMING)
        await source.first(None)
        async with followed(source):
            await asyncio.to_thread(api.kill)
            await eventually(source.problem, 10)
            assert titles(source) == ALL
            await asyncio.to_thread(api.start)
            await asyncio.to_thread(api.create, network_policy("new"), path=NETWORKING)
            await eventually(lambda: "NetworkPolicy shop/new" in (titles(source) or []), 10)

    run(body)


@pytest.mark.slow
def test_the_role_in_docs_is_enough_and_flannels_is_told_apart(make_api: MakeServer, tmp_path: Path) -> None:
    flannels = tmp_path / "flannel.yaml"
    flannels.write_text(yaml.safe_dump({"kind": "ClusterRole", "rules": FLANNELS}))
    ours, theirs = make_api(f"--rbac={RBAC}"), make_api(f"--rbac={flannels}")
    fill_as_admin = make_api()
    fill(fill_as_admin)

    async def body() -> None:
        assert await kube_source.allowed(client(ours)) is True
        assert await kube_source.allowed(client(theirs)) is False
        source = KubePolicySource(client(ours), "n1", TIMING)
        await source.first(None)
        async with followed(source):
            assert titles(source) == ALL
        await client(ours).create("/api/v1/namespaces/shop/events", {"metadata": {"name": "about-a-policy"}})
        with pytest.raises(ForbiddenError, match=r"rbac\.yaml"):
            await client(theirs).create("/api/v1/namespaces/shop/events", {"metadata": {"name": "another"}})
        fill_as_admin.kill()
        assert await kube_source.allowed(client(fill_as_admin)) is None

    run(body)


@pytest.mark.slow
def test_nothing_is_written(api: ApiServer) -> None:
    async def body() -> None:
        source = KubePolicySource(client(api), "n1")
        assert source.title == source_title(client(api)) == f"Kubernetes API {api.url}"
        for call in (source.put("k", {}), source.remove("k")):
            with pytest.raises(PolicySourceError, match="use kubectl"):
                await call

    run(body)


@pytest.mark.slow
def test_auto_is_on_where_the_role_may_read_and_stays_on_where_it_was(
    make_api: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kube_source, "FIRST_SECONDS", 1.0)
    flannels, state = tmp_path / "flannel.yaml", tmp_path / "state"
    flannels.write_text(yaml.safe_dump({"kind": "ClusterRole", "rules": FLANNELS}))
    conf = tmp_path / "net-conf.json"
    conf.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')

    async def wanted(api: ApiServer, *words: str) -> tuple[str, ...]:
        options = flags.parse(
            ["--kube-subnet-mgr", f"--kube-api-url={api.url}", f"--state-dir={state}", f"--net-config-path={conf}",
             "--kube-policy=auto", *words], {},
        )  # fmt: skip
        node = SimpleNamespace(options=options, cluster=SimpleNamespace(source=make_source(options)))
        return await door.wanted(cast(Any, node))

    async def body() -> None:
        ours, theirs = make_api(f"--rbac={RBAC}"), make_api(f"--rbac={flannels}")
        assert await wanted(ours) == ("kubernetes",)
        assert await wanted(ours, "--flow-table=0") == ()
        assert await wanted(theirs, "--kube-policy=on") == ("kubernetes",)
        assert not state.exists()
        assert await wanted(theirs) == ()
        assert "our role may not read them: apply docs/kubernetes/rbac.yaml" in caplog.text
        theirs.kill()
        assert await wanted(theirs) == ()  # as in the last run
        (state / last_good.NAME).unlink()
        assert await wanted(theirs) == ("kubernetes",)  # it never spoke
        theirs.start()
        last_good.save(state, last_good.render({f"Kubernetes API {theirs.url}": {}}))
        assert await wanted(theirs) == ("kubernetes",)  # policies were in force before the role was changed

    run(body)


@pytest.mark.slow
def test_a_daemon_enforces_the_clusters_policies(api: ApiServer, tmp_path: Path) -> None:
    fill(api)
    conf = tmp_path / "net-conf.json"
    conf.write_text('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')
    bench = PolicyBench(tmp_path, "--policy-dir=", "--kube-subnet-mgr", f"--kube-api-url={api.url}",
                        "--kube-policy=auto", f"--net-config-path={conf}")  # fmt: skip
    bench.bench.parts = replace(bench.bench.parts, source=make_source(bench.bench.options))
    flow = ("10.244.1.1", "198.51.100.1")

    async def body(node: Node) -> None:
        assert bench.dataplane.settings.policy_required
        assert (await bench.ask("status"))["policy"]["objects"] == 2
        # Its object is there before its ADD, as a scheduler has it; the address of the object is not what counts.
        await asyncio.to_thread(api.create, pod("db", "10.244.1.99"), path="/api/v1/namespaces/shop/pods")
        await bench.ask("port.add", **port("p1", "10.244.1.6", "db"))
        assert bench.dataplane.last.knows("10.244.1.6")
        assert not bench.dataplane.last.knows("10.244.1.99")
        assert bench.dataplane.last.allowed(flow[0], "10.244.1.6", "TCP", 80)  # the node itself, its lease's bridge
        assert not bench.dataplane.last.allowed(flow[1], "10.244.1.6", "TCP", 80)
        await asyncio.to_thread(api.ask, "DELETE", f"{NETWORKING}/all")
        await eventually(lambda: bench.dataplane.last.allowed(flow[1], "10.244.1.6", "TCP", 80))
        with pytest.raises(DaemonRefusedError, match="use kubectl"):
            await bench.ask("policy.apply", object=network_policy("x"))

    bench.run(body)
    assert any("clusternetworkpolicies?watch=1" in line for line in api.requests())
