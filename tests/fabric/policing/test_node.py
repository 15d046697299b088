"""The daemon with `--policy-dir`, with fakes around it and its real control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric import flags
from fabric.control_client import ControlClient, DaemonRefusedError
from fabric.daemon.node import Node
from fabric.errors import StartError
from fabric.forward.policies import Denied
from fabric.model import DataplaneSettings, Endpoint
from fabric.store.memory import MemoryStore
from tests.fabric.clock import Clock, eventually
from tests.fabric.fakes import Bench
from tests.fabric.policing.recorder import RecordingDataplane, network_policy, pod
from tests.fabric.policing.test_diff import flow, staged


class PolicyBench:
    """A bench whose data path records its policies; `policies` is the directory."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.policies = directory / "policies"
        self.policies.mkdir(exist_ok=True)
        clock = Clock()
        self.bench = Bench(directory, MemoryStore(clock), clock, f"--policy-dir={self.policies}", *words)
        self.bench.parts = replace(self.bench.parts, dataplane=self._make)
        self.dataplane: RecordingDataplane

    def _make(self, settings: DataplaneSettings) -> RecordingDataplane:
        self.dataplane = RecordingDataplane(self.bench.journal, settings)
        return self.dataplane

    def write(self, name: str, *values: Any) -> None:
        temporary = self.policies / ".new"
        temporary.write_text(yaml.safe_dump_all(values))
        temporary.rename(self.policies / name)

    def run(self, body: Callable[[Node], Awaitable[None]]) -> None:
        async def whole() -> None:
            node = self.bench.node()
            try:
                await asyncio.wait_for(node.start(), 10)
                await asyncio.wait_for(body(node), 20)
            finally:
                await node.stop()

        asyncio.run(whole())

    async def ask(self, method: str, **params: Any) -> Any:
        def ask() -> Any:
            with ControlClient(str(self.bench.run_dir)) as client:
                return client.ask(method, params)

        return await asyncio.to_thread(ask)


@pytest.fixture
def bench(tmp_path: Path) -> PolicyBench:
    return PolicyBench(tmp_path)


def port(name: str, address: str, pod_name: str = "", **labels: str) -> dict[str, Any]:
    return {"name": name, "kind": "tun", "netns": f"/run/netns/{name}", "ifname": "eth0", "addresses": [address],
            "pod": {"namespace": "shop", "name": pod_name}, "labels": labels}  # fmt: skip


def test_the_policy_is_there_before_the_workers_start(bench: PolicyBench) -> None:
    bench.write("all.yaml", network_policy("all"))

    async def body(node: Node) -> None:
        steps = bench.bench.journal.steps
        assert steps.index("set_policy") < steps.index("start")
        assert bench.dataplane.settings.policy_required
        status = await bench.ask("status")
        assert status["policy"]["objects"] == 1
        assert status["policy"]["sources"] == [f"directory {bench.policies}"]
        assert status["tasks"]["policy"]
        assert status["tasks"]["policy directory"]

    bench.run(body)


def test_an_add_is_answered_when_the_pod_has_its_policy(bench: PolicyBench) -> None:
    bench.write("all.yaml", network_policy("db", podSelector={"matchLabels": {"app": "db"}}))

    async def body(node: Node) -> None:
        await bench.ask("port.add", **port("p1", "10.244.1.5", "web"))
        await bench.ask("port.add", **port("p2", "10.244.1.6", "db", app="db"))
        last = bench.dataplane.last
        assert last.knows("10.244.1.6")
        assert last.allowed("10.244.1.6", "10.244.1.5", "TCP", 80)
        assert not last.allowed("10.244.1.5", "10.244.1.6", "TCP", 80)
        own = next(iter(node.cluster.leases())).subnet
        assert own is not None
        assert last.allowed(str(own.network_address), "10.244.1.6", "TCP", 80)
        await bench.ask("port.delete", name="p2")
        await eventually(lambda: not bench.dataplane.last.knows("10.244.1.6"))
        bridged = {**port("b1", "10.244.1.7", "bridged"), "kind": "bridge"}
        await bench.ask("endpoint.add", **bridged)
        assert bench.dataplane.last.knows("10.244.1.7")

    bench.run(body)


def test_a_port_is_made_when_its_policy_is_in_force(bench: PolicyBench) -> None:
    bench.write("all.yaml", network_policy("all"))

    async def body(node: Node) -> None:
        seen: list[bool] = []
        made = bench.dataplane.add_port

        def add_port(endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
            seen.append(bench.dataplane.last.knows(endpoint.addresses[0]))
            return made(endpoint, fds)

        bench.dataplane.add_port = add_port  # type: ignore[method-assign]
        for position in range(5):
            await bench.ask("port.add", **port(f"p{position}", f"10.244.1.{position + 5}", f"web-{position}"))
        assert seen == [True] * 5

    bench.run(body)


@pytest.mark.slow
def test_a_port_is_refused_while_the_data_path_takes_it_for_another_pod(bench: PolicyBench) -> None:
    bench.write("pods.yaml", pod("old", "10.244.1.5", node="n9"))

    async def body(node: Node) -> None:
        assert bench.dataplane.last.knows("10.244.1.5")
        bench.dataplane.fail = "no memory"
        with pytest.raises(DaemonRefusedError, match="port p1: its policy is not in force yet: try again"):
            await bench.ask("port.add", **port("p1", "10.244.1.5", "new"))
        assert await bench.ask("endpoint.list") == []
        await bench.ask("port.add", **port("p2", "10.244.1.6", "other"))  # unknown there, so it is closed
        bench.dataplane.fail = ""
        await eventually(lambda: bench.dataplane.last.knows("10.244.1.6"))
        await bench.ask("port.add", **port("p1", "10.244.1.5", "new"))

    bench.run(body)


def test_an_add_is_answered_without_a_policy_too(bench: PolicyBench) -> None:
    bench.write("broken.yaml")
    (bench.policies / "broken.yaml").write_text("[")

    async def body(node: Node) -> None:
        await bench.ask("port.add", **port("p1", "10.244.1.5", "web"))
        assert bench.dataplane.snapshots == []
        with pytest.raises(DaemonRefusedError, match="no policy is in force yet"):
            await bench.ask("policy.explain", source="shop/web", target="192.0.2.9", port="80")
        found = await bench.ask("policy.list")
        assert found["snapshot"] == 0
        bench.write("broken.yaml")
        await eventually(lambda: bench.dataplane.snapshots)

    bench.run(body)


def test_a_restart_without_the_directory_has_the_policies_of_the_last_run(tmp_path: Path) -> None:
    bench = PolicyBench(tmp_path)
    bench.write("all.yaml", network_policy("all"), pod("web", "10.244.1.5"))

    async def nothing(node: Node) -> None:
        return None

    bench.run(nothing)
    bench.policies.rename(tmp_path / "away")
    second = PolicyBench(tmp_path)
    second.policies.rmdir()

    async def body(node: Node) -> None:
        assert [item["name"] for item in (await second.ask("policy.list"))["objects"]] == ["all"]
        assert "cannot be read" in (await second.ask("status"))["policy"]["problems"][0]

    second.run(body)


def test_apply_list_explain_hits_delete(bench: PolicyBench) -> None:
    async def body(node: Node) -> None:
        await bench.ask("port.add", **port("p1", "10.244.1.5", "web"))
        value = network_policy("all")
        done = await bench.ask("policy.apply", object=value)
        place = bench.policies / "networkpolicy-shop-all.yaml"
        assert done == {"object": "NetworkPolicy shop/all", "place": str(place), "existed": False, "in_force": True}
        assert not bench.dataplane.last.allowed("198.51.100.1", "10.244.1.5", "TCP", 80)
        found = await bench.ask("policy.explain", source="198.51.100.1", target="shop/web", port="80")
        assert not found["allowed"]
        assert found["target"]["here"]
        value["spec"]["ingress"] = [{}]
        assert (await bench.ask("policy.apply", object=value))["existed"]
        bench.dataplane.hits = {"NetworkPolicy shop/all spec.ingress[0]": 3}
        (counted,) = await bench.ask("policy.hits")
        latency = (await bench.ask("status"))["policy"]["latency"]
        assert latency["count"] > 2
        assert latency["buckets"]["10"] == latency["count"]
        assert (counted["place"], counted["hits"]) == ("networkpolicy-shop-all.yaml:9", 3)
        ends = ip_address("198.51.100.1"), ip_address("10.244.1.5")
        bench.dataplane.refused = [Denied(4, *ends, 6, (4000, 80), "ingress", counted["rule"])]
        (denied,) = await bench.ask("policy.denied")
        assert (denied["protocol"], denied["destination"], denied["ports"]) == ("TCP", "10.244.1.5", [4000, 80])
        assert denied["place"] == counted["place"]
        assert bench.dataplane.last.allowed("198.51.100.1", "10.244.1.5", "TCP", 80)
        done = await bench.ask("policy.delete", kind="networkpolicy", namespace="shop", name="all")
        assert done["in_force"]
        assert (await bench.ask("policy.list"))["objects"] == []
        assert list(bench.policies.iterdir()) == []

    bench.run(body)


def test_diff_looks_at_all_pages_of_the_flow_table(bench: PolicyBench) -> None:
    async def body(node: Node) -> None:
        await bench.ask("port.add", **port("p1", "10.244.1.5", "web"))
        bench.dataplane.live = [flow(f"198.51.100.{i % 250}", "10.244.1.5", dport=i) for i in range(2_500)]
        found = await bench.ask("policy.diff", objects=[network_policy("all")])
        assert (found["flows"], found["cut"], len(found["shown"])) == (2_500, 2_500, 500)
        with pytest.raises(DaemonRefusedError, match="nothing to compare"):
            await bench.ask("policy.diff")
        await bench.ask("policy.apply", object=staged(network_policy("all")))
        assert (await bench.ask("policy.diff"))["cut"] == 2_500
        assert (await bench.ask("status"))["policy"]["staged"] == 1
        assert bench.dataplane.last.allowed("198.51.100.1", "10.244.1.5", "TCP", 80)

    bench.run(body)


@pytest.mark.parametrize(
    ("method", "params", "reason"),
    [
        ("policy.apply", {"object": network_policy("x", ingress=3)}, r"refused: spec\.ingress: is a number"),
        ("policy.apply", {"object": {"kind": "NetworkPolicy"}}, "refused: apiVersion: is missing"),
        ("policy.apply", {}, "refused: apiVersion: is missing"),
        ("policy.delete", {"kind": "NetworkPolicy", "name": "x"}, "there is no NetworkPolicy default/x"),
        ("policy.explain", {"source": "a", "target": "b"}, "port must be a non-empty string"),
    ],
)
def test_refused_requests(bench: PolicyBench, method: str, params: dict[str, Any], reason: str) -> None:
    async def body(node: Node) -> None:
        with pytest.raises(DaemonRefusedError, match=reason):
            await bench.ask(method, **params)

    bench.run(body)


def test_the_store_may_be_the_source(tmp_path: Path) -> None:
    bench = PolicyBench(tmp_path, "--policy-dir=", "--store-policy")

    async def body(node: Node) -> None:
        done = await bench.ask("policy.apply", object=network_policy("all"))
        assert done["place"].endswith("key /coreos.com/network/policy/networking.k8s.io/v1/NetworkPolicy/shop/all")
        assert done["in_force"]
        assert [item["name"] for item in (await bench.ask("policy.list"))["objects"]] == ["all"]
        await bench.ask("policy.delete", kind="NetworkPolicy", namespace="shop", name="all")
        assert (await bench.ask("policy.list"))["objects"] == []
        assert (await bench.ask("status"))["tasks"]["policy store"]

    bench.run(body)


def test_without_policy_the_methods_say_so(tmp_path: Path) -> None:
    bench = PolicyBench(tmp_path, "--policy-dir=")

    async def body(node: Node) -> None:
        assert (await bench.ask("status"))["policy"] == {"sources": [], "problems": []}
        with pytest.raises(DaemonRefusedError, match="enforces no policy: start it with --policy-dir"):
            await bench.ask("policy.list")

    bench.run(body)
    assert not bench.dataplane.settings.policy_required


def test_flags() -> None:
    with pytest.raises(StartError, match="--flow-table 0 tracks no flows"):
        flags.parse(["--policy-dir=/x", "--flow-table=0"], {})
    with pytest.raises(StartError, match="leave out --store-policy"):
        flags.parse(["--store-policy", "--flow-table=0"], {})
    assert flags.parse(["--flow-table=0"], {}).policy == flags.PolicyOptions()
    words = ["--service-cidr=10.96.0.0/12,2001:db8:1::/112", "--service-cidr=198.51.100.0/24"]
    assert [str(item) for item in flags.parse(words, {}).policy.services] == [
        "10.96.0.0/12", "2001:db8:1::/112", "198.51.100.0/24"
    ]  # fmt: skip


def test_a_wrong_service_cidr_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        flags.parse(["--service-cidr=10.96.0.1/12"], {})
    assert caught.value.code == 2
    assert "--service-cidr: 10.96.0.1/12 has host bits set" in capsys.readouterr().err
