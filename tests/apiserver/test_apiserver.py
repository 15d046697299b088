"""The API server of the tests, itself tested by clients that we did not write: kubectl and kubernetes-asyncio."""

import asyncio
import json
import subprocess
from typing import Any

import pytest

from tests.apiserver.fixtures import MakeServer
from tests.apiserver.process import NODES, ApiServer, node
from tests.fabric.store.etcd_server import EtcdServer
from tests.scenarios.waiting import wait_for

pytestmark = pytest.mark.root
MAC = "12:c6:65:89:b4:e3"


def test_kubectl_lists_in_chunks_annotates_patches_and_deletes(api: ApiServer) -> None:
    api.create(*(node(f"node{number}", f"10.244.{number}.0/24") for number in range(1, 8)))
    names = api.kubectl("get", "nodes", "--chunk-size=3", "-o", "name").split()
    assert names == [f"node/node{number}" for number in range(1, 8)]
    assert len(api.requests(f"GET {NODES}?continue=")) == 2
    api.kubectl("annotate", "node", "node1", "flannel.alpha.coreos.com/public-ip=192.0.2.7")
    assert api.annotations("node1") == {"public-ip": "192.0.2.7"}
    api.kubectl("annotate", "node", "node1", "flannel.alpha.coreos.com/public-ip-")
    assert api.annotations("node1") == {}
    api.kubectl("patch", "node", "node1", "-p", '{"spec":{"taints":[{"key":"a","effect":"NoSchedule"}]}}')
    api.kubectl("patch", "node", "node1", "-p", '{"spec":{"taints":[{"key":"b","effect":"NoSchedule"}]}}')
    assert [taint["key"] for taint in api.get("node1")["spec"]["taints"]] == ["a", "b"]
    api.kubectl("delete", "node", "node7")
    assert "node7" not in api.kubectl("get", "nodes")


def test_kubectl_watches(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    argv = api.kubectl_argv("get", "nodes", "-w", "--output-watch-events", "-o", "json")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as kubectl:
        assert kubectl.stdout is not None
        try:
            wait_for(lambda: api.requests(f"GET {NODES}?") and "watch=true" in api.requests()[-1], "kubectl watches")
            api.create(node("node2", "10.244.2.0/24"))
            api.annotate("node2", public_ip="192.0.2.2")
            api.delete("node1")
            decoder, text = json.JSONDecoder(), ""
            seen: list[tuple[str, str]] = []
            while len(seen) < 4:
                text += kubectl.stdout.readline()
                try:
                    event, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    continue
                text = text[end:].lstrip()
                seen.append((event["type"], event["object"]["metadata"]["name"]))
        finally:
            kubectl.kill()
    assert seen == [("ADDED", "node1"), ("ADDED", "node2"), ("MODIFIED", "node2"), ("DELETED", "node1")]


def test_a_status_patch_merges_annotations_and_conditions_and_leaves_the_spec(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24", public_ip="192.0.2.1"))
    condition = {"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp", "message": "up"}
    patch = {
        "metadata": {"annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"}},
        "spec": {"podCIDR": "10.1.0.0/24"},
        "status": {"conditions": [condition]},
    }
    api.ask("PATCH", f"{NODES}/node1/status", patch, "application/strategic-merge-patch+json")
    found = api.get("node1")
    assert found["spec"]["podCIDR"] == "10.244.1.0/24"
    assert api.annotations("node1") == {"public-ip": "192.0.2.1", "backend-type": "vxlan"}
    assert [(item["type"], item["status"]) for item in found["status"]["conditions"]] == [
        ("NetworkUnavailable", "False"),
        ("Ready", "True"),
    ]
    before = api.get("node1")["metadata"]["resourceVersion"]
    api.ask("PATCH", f"{NODES}/node1/status", patch, "application/strategic-merge-patch+json")
    assert api.get("node1")["metadata"]["resourceVersion"] == before, "a patch that changes nothing is no write"
    api.patch("node1", {"status": {"conditions": []}})
    assert len(api.get("node1")["status"]["conditions"]) == 2


def test_writes_are_fenced_by_the_resource_version(api: ApiServer) -> None:
    api.create(node("node1", "10.244.1.0/24"))
    document = api.get("node1")
    api.annotate("node1", public_ip="192.0.2.1")
    with pytest.raises(AssertionError, match="modified"):
        api.ask("PUT", f"{NODES}/node1", document)


async def _events(client: Any, count: int, version: str) -> list[tuple[str, str, str]]:
    from kubernetes_asyncio import client as kube
    from kubernetes_asyncio import watch

    seen: list[tuple[str, str, str]] = []
    async with watch.Watch() as stream:
        source = stream.stream(kube.CoreV1Api(client).list_node, resource_version=version, allow_watch_bookmarks=True)
        async for event in source:
            raw = event["raw_object"]
            seen.append((event["type"], raw["metadata"].get("name", ""), raw["metadata"]["resourceVersion"]))
            if len(seen) == count:
                break
    return seen


def _with_client(api: ApiServer, body: Any) -> Any:
    from kubernetes_asyncio import client as kube

    async def run() -> Any:
        configuration = kube.Configuration()
        configuration.host = api.url
        async with kube.ApiClient(configuration) as client:
            return await asyncio.wait_for(body(client), 20)

    return asyncio.run(run())


def test_a_foreign_client_lists_and_watches(api: ApiServer) -> None:
    from kubernetes_asyncio import client as kube

    api.create(node("node1", "10.244.1.0/24", mac=MAC, public="192.0.2.1"), node("node2", "10.244.2.0/24"))

    async def body(client: Any) -> Any:
        found = await kube.CoreV1Api(client).list_node(limit=1)
        assert found.items[0].spec.pod_cidr == "10.244.1.0/24"
        assert found.metadata._continue
        version = found.metadata.resource_version
        api.annotate("node2", public_ip="192.0.2.2")
        api.delete("node1")
        return await _events(client, 2, version)

    seen = _with_client(api, body)
    assert [item[:2] for item in seen] == [("MODIFIED", "node2"), ("DELETED", "node1")]


def test_bookmarks_follow_what_came_before(make_api: MakeServer) -> None:
    api = make_api("--bookmarks=0.1")
    api.create(node("node1", "10.244.1.0/24"))
    seen = _with_client(api, lambda client: _events(client, 4, api.get("node1")["metadata"]["resourceVersion"]))
    marks = [int(version) for kind, _, version in seen if kind == "BOOKMARK"]
    assert marks
    assert marks == sorted(marks)


def _compacted(api: ApiServer, etcd: EtcdServer) -> tuple[str, str]:
    """A continue token and a resource version that are not to be had any more."""
    api.create(node("node1", "10.244.1.0/24"), node("node2", "10.244.2.0/24"))
    page = api.ask("GET", f"{NODES}?limit=1")
    for address in ("192.0.2.1", "192.0.2.2"):
        api.annotate("node1", public_ip=address)
    etcd.compact()
    return page["metadata"]["continue"], page["metadata"]["resourceVersion"]


def test_compaction_expires_lists_and_watches(api: ApiServer, cluster_etcd: EtcdServer) -> None:
    from kubernetes_asyncio.client.exceptions import ApiException

    token, version = _compacted(api, cluster_etcd)
    with pytest.raises(AssertionError, match="too old"):
        api.ask("GET", f"{NODES}?limit=1&continue={token}")
    with pytest.raises(ApiException, match="410"):
        _with_client(api, lambda client: _events(client, 1, version))


def test_a_late_expiry_is_an_event(make_api: MakeServer, cluster_etcd: EtcdServer) -> None:
    api = make_api("--late")
    _, version = _compacted(api, cluster_etcd)
    event = json.loads(api.kubectl("get", "--raw", f"{NODES}?watch=1&resourceVersion={version}&timeoutSeconds=5"))
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_faults_tokens_and_roles(make_api: MakeServer, tmp_path: Any) -> None:
    tokens, role = tmp_path / "tokens", tmp_path / "role.yaml"
    tokens.write_text("good\n")
    role.write_text("kind: ClusterRole\nrules: [{apiGroups: [''], resources: [nodes], verbs: [list]}]\n")
    api = make_api(f"--tokens={tokens}", f"--rbac={role}", token="good")
    assert api.ask("GET", NODES)["items"] == []
    with pytest.raises(AssertionError, match="forbidden"):
        api.get("node1")
    api.fault("list", 429, retry_after=1)
    with pytest.raises(AssertionError, match="as asked for"):
        api.ask("GET", NODES)
    api.token = "bad"
    with pytest.raises(AssertionError, match="Unauthorized"):
        api.ask("GET", NODES)
