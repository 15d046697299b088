"""Two nodes with one --policy-dir: what is written there decides which packets of the pods arrive."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import pytest
import yaml

from fabric.lab import Lab
from tests.fabric.policing.test_diff import staged
from tests.scenarios import inside
from tests.scenarios.holes_probes import arrived
from tests.scenarios.policy_lab import PROBE_SECONDS, WEB, PolicyLab, pod_object, policy
from tests.scenarios.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.slow]
PODS = ("node1-pod1", "node1-pod2", "node2-pod1", "node2-pod2")


@pytest.fixture(scope="module")
def policed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyLab]:
    policies = tmp_path_factory.mktemp("policies")
    with Lab(nodes=2, pods=2, pod_kind="tun", daemon_args=(f"--policy-dir={policies}",)) as lab:
        made = PolicyLab(lab, policies)
        made.write("pods.yaml", *(pod_object(lab.pod(name)) for name in PODS))
        yield made


def test_without_policies_everything_passes(policed: PolicyLab) -> None:
    assert {name: policed.passes(name, WEB) for name in PODS} == dict.fromkeys(PODS, True)


def test_a_deny_and_an_exception_take_effect_and_go(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    assert {name: policed.passes(name, WEB) for name in PODS} == {**dict.fromkeys(PODS, False), WEB: True}
    assert policed.passes(WEB, "node1-pod1")
    assert policed.passes("node2", WEB)  # its own node
    policed.write("web.yaml", policy("web", "node1-pod1", ports=(7000,)))
    assert policed.passes("node1-pod1", WEB)
    assert not policed.passes("node1-pod1", WEB, 7001)
    assert not policed.passes("node2-pod2", WEB)
    policed.remove("web.yaml")
    assert policed.passes("node2-pod2", WEB)


def test_an_invalid_change_leaves_the_last_good_one_in_force(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    (policed.policies / "web.yaml").write_text(yaml.safe_dump(policy("web", "node1-pod1", ports=(70_000,))))
    wait_for(lambda: policed.lab.control("node2", "policy.list")["problems"], "refused")
    assert not policed.passes("node1-pod1", WEB)
    found = policed.lab.control("node2", "policy.list")["objects"]
    assert [(item["name"], item["state"]) for item in found] == [("web", "last good one")]
    policed.remove("web.yaml")


def test_the_tool_explains_applies_and_counts(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web", "node1-pod1"))
    done = policed.ctl("node2", "explain", "node1-pod2", WEB, "7000/udp")
    assert (done.returncode, "no rule matches" in done.stdout) == (3, True), done.stderr
    done = policed.ctl("node1", "explain", "node1-pod1", WEB, "7000/udp")
    assert (done.returncode, "at web.yaml:" in done.stdout) == (0, True), done.stderr
    assert policed.passes("node1-pod1", WEB)
    hits = {item["rule"]: item["hits"] for item in json.loads(policed.ctl("node2", "hits", "--json").stdout)}
    assert hits.get("NetworkPolicy default/web spec.ingress[0]", 0) > 0
    policed.remove("web.yaml")
    file = policed.policies.parent / f"{policed.policies.name}.apply.yaml"
    file.write_text(yaml.safe_dump(policy("applied")))
    done = policed.ctl("node2", "apply", "-f", str(file))
    assert "NetworkPolicy default/applied created" in done.stdout, done.stderr
    assert not policed.passes("node1-pod1", WEB)  # it is in force when the tool returns
    done = policed.ctl("node2", "delete", "NetworkPolicy", "applied")
    assert "removed from" in done.stdout, done.stderr
    assert policed.passes("node1-pod1", WEB)


def test_diff_names_the_live_connection_that_a_policy_would_cut(policed: PolicyLab) -> None:
    """And with the policy in force that connection, which was open before, is cut."""
    source, target = policed.lab.pod("node1-pod1"), policed.lab.pod(WEB)
    with (
        inside.listen(target.netns, policed.ip(WEB)) as listener,
        inside.connect(source.netns, policed.ip(WEB), listener.getsockname()[1]) as out,
        listener.accept()[0] as into,
    ):
        policed.write_and_see("web.yaml", "staged", staged(policy("staged")))
        done = policed.ctl("node2", "diff", "--json")
        assert done.returncode == 3, done.stderr
        flows = json.loads(done.stdout)["shown"]
        assert [(f["source_pod"], f["destination_pod"]) for f in flows if f["port"] == listener.getsockname()[1]] == [
            ("default/node1-pod1", f"default/{WEB}")
        ]
        into.settimeout(PROBE_SECONDS)
        out.sendall(b"still open")
        assert into.recv(100) == b"still open"
        policed.write("web.yaml", policy("web"))
        out.sendall(b"cut")
        with pytest.raises(TimeoutError):
            into.recv(100)
    policed.remove("web.yaml")


def test_a_staged_policy_counts_what_it_would_deny_and_denies_nothing(policed: PolicyLab) -> None:
    end = "end of tier default, ingress: no rule of NetworkPolicy default/staged matched"

    def changed() -> int:
        found = {item["rule"]: item for item in policed.lab.control("node2", "policy.hits") if item["staged"]}
        return int(found[end]["changes"]) if end in found else 0

    policed.write_and_see("web.yaml", "staged", staged(policy("staged")))
    wait_for(lambda: policed.passes("node1-pod1", WEB) and changed(), "counted")
    before = changed()
    assert [policed.passes("node1-pod1", WEB) for _ in range(3)] == [True] * 3  # each from a port of its own
    assert changed() >= before + 3  # what another test has left may still be sending
    shown = policed.ctl("node2", "hits").stdout
    assert "STAGED RULE" in shown
    (policed.policies / "web.yaml").unlink()
    wait_for(lambda: not changed(), "gone")


def test_a_pod_is_alive_when_its_add_returns(policed: PolicyLab) -> None:
    for _ in range(3):
        policed.lab.unplug("node1-pod2")
        policed.lab.plug("node1-pod2")
        assert policed.passes("node2-pod2", "node1-pod2")


def test_a_restart_without_the_directory_keeps_the_policies(policed: PolicyLab) -> None:
    policed.write("web.yaml", policy("web"))
    away = policed.policies.with_name("away")
    wait_for(lambda: "default/web" in policed.remembered("node2"), "saved")
    policed.policies.rename(away)
    try:
        policed.lab.restart_daemon("node2")
        assert policed.lab.control("node2", "status")["policy"]["snapshot"] > 0
        assert not policed.passes("node1-pod1", WEB)
        assert policed.passes("node1-pod1", "node2-pod2")
    finally:
        away.rename(policed.policies)
    wait_for(lambda: not policed.lab.control("node2", "status")["policy"]["problems"], "the directory is back")
    policed.remove("web.yaml")
    assert policed.passes("node1-pod1", WEB)


def test_nothing_forbidden_arrives_through_changes_restarts_and_adds(policed: PolicyLab) -> None:
    """A datagram every millisecond to a pod that is closed for it (R14)."""
    policed.write("web.yaml", policy("web", "node2-pod2"))
    wait_for(lambda: "default/web" in policed.remembered("node2"), "saved")
    web, text = policed.lab.pod(WEB), yaml.safe_dump(policy("web", "node2-pod2"))
    with inside.open_udp(web.netns, "0.0.0.0", 7100) as receiver, probing(policed, "node1-pod1", WEB, 7100) as sent:
        for position in range(5):
            before = policed.snapshot("node2")
            (policed.policies / "web.yaml").rename(policed.policies / "web.yaml~")  # as an editor does
            with (policed.policies / "web.yaml").open("w") as file:
                file.write(text[: len(text) // 2])
                file.flush()
                (policed.policies / "other.yaml").write_text(yaml.safe_dump(policy(f"other{position}", "node2-pod2")))
                wait_for(lambda seen=before: policed.snapshot("node2") > seen, "compiled")  # type: ignore[misc]
                file.write(text[len(text) // 2 :])
        assert not arrived(receiver), "while files were changed"
        for _ in range(2):
            policed.lab.unplug(WEB)
            policed.lab.plug(WEB)
        assert not arrived(receiver), "while the pod was added"
        policed.lab.restart_daemon("node2")
        policed.lab.restart_daemon("node2", how=signal.SIGKILL)
        wait_for(lambda: len(sent) > 500, "enough to have been sent")
        assert not arrived(receiver), "while the daemon was started"
    assert policed.passes("node2-pod2", WEB)
    (policed.policies / "other.yaml").unlink()
    policed.remove("web.yaml")


@contextmanager
def probing(policed: PolicyLab, source: str, target: str, port: int) -> Iterator[list[float]]:
    """Send a datagram every millisecond, each of a new flow, until the block ends; when each was sent."""
    sent: list[float] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.001):
            with inside.open_socket(policed.lab.pod(source).netns, socket.AF_INET, socket.SOCK_DGRAM) as sender:
                with suppress(OSError):
                    sender.sendto(b"forbidden", (policed.ip(target), port))
                sent.append(monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield sent
    finally:
        ended.set()
        thread.join()
