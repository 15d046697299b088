"""fabricctl policy against a fake daemon's socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fabric.cli.main import main

RULE = "NetworkPolicy shop/allow spec.ingress[0]"
WEB = {"address": "10.244.1.5", "what": "pod shop/web", "node": "n1", "here": True}
DB = {"address": "10.244.2.6", "what": "pod shop/db", "node": "n2", "here": False}
TIER = {"direction": "ingress", "tier": "default", "policies": ["NetworkPolicy shop/allow"], "action": "allowed",
        "rule": RULE, "place": "web.yaml:7"}  # fmt: skip
EXPLAINED = {"allowed": True, "rule": RULE, "place": "web.yaml:7", "source": DB, "target": WEB, "protocol": "TCP",
             "port": 80, "tiers": [TIER], "note": ""}  # fmt: skip
DENIED = {**EXPLAINED, "allowed": False, "protocol": "ICMP", "port": None,
          "tiers": [{**TIER, "direction": "egress", "action": "denied",
                     "rule": "end of tier default, egress: no rule matched", "place": ""}]}  # fmt: skip
LISTED = {
    "snapshot": 4, "sources": ["directory /etc/policies"], "problems": ["web.yaml: not\x1b YAML"],
    "objects": [
        {"kind": "NetworkPolicy", "namespace": "shop", "name": "allow", "place": "web.yaml:1", "state": "in force"},
        {"kind": "Tier", "namespace": "", "name": "ops", "place": "", "state": "refused"},
    ],
}  # fmt: skip
DONE = {"object": "NetworkPolicy shop/web", "place": "/etc/policies/a.yaml", "existed": False, "in_force": True}


class Daemon:
    """Answers each method with what a test has put down for it, and notes what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                request = json.loads(lines.readline())
                self.asked.append(request)
                client.sendall(json.dumps({"result": self.answers[request["method"]]}).encode() + b"\n")

    def run(self, *words: str, stdin: str = "") -> Result:
        runner = CliRunner(env={"COLUMNS": "160"})
        return runner.invoke(main, ["policy", *words, "--run-dir", str(self.directory)], input=stdin)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fabricd.sock"))
        listener.listen()
        thread = threading.Thread(target=found.serve, args=(listener,))
        thread.start()
        yield found
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_list(daemon: Daemon) -> None:
    daemon.answers["policy.list"] = LISTED
    result = daemon.run("list")
    assert result.exit_code == 0
    for word in ("NetworkPolicy", "shop", "allow", "web.yaml:1", "in force", "refused", "snapshot 4", "not\ufffd YAML"):
        assert word in result.stdout
    assert json.loads(daemon.run("list", "--json").stdout) == LISTED


def test_explain_allowed(daemon: Daemon) -> None:
    daemon.answers["policy.explain"] = EXPLAINED
    result = daemon.run("explain", "shop/db", "shop/web", "80")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ALLOWED: TCP port 80, a new flow",
        "  from 10.244.2.6 (pod shop/db on node n2)",
        "  to   10.244.1.5 (pod shop/web on node n1, this node)",
        "egress of the source: allowed, no policy selects the pod for it",
        f"ingress of the target, tier default: allowed by {RULE} at web.yaml:7",
        "  asked: NetworkPolicy shop/allow",
    ]
    assert daemon.asked[0]["params"] == {"source": "shop/db", "target": "shop/web", "port": "80"}


def test_explain_denied_has_an_exit_code_of_its_own(daemon: Daemon) -> None:
    daemon.answers["policy.explain"] = {**DENIED, "note": "it is a Service's"}
    result = daemon.run("explain", "shop/db", "shop/web", "icmp")
    assert result.exit_code == 3
    assert "DENIED: ICMP, a new flow" in result.stdout
    assert "egress of the source, tier default: denied, no rule matches" in result.stdout
    assert "note: it is a Service's" in result.stdout
    assert "ingress of the target: not asked, the flow is denied before" in result.stdout
    assert daemon.run("explain", "a", "b", "icmp", "--json").exit_code == 3


@pytest.mark.parametrize(
    ("source", "target", "lines"),
    [
        ({"what": "outside", "node": ""}, {}, ["egress of the source: no policy applies, it is not a pod"]),
        ({"what": "node n1", "node": "n1"}, {}, ["ingress of the target: a node always reaches its own pods"]),
        (WEB, WEB, ["egress of the source: a pod always reaches itself"]),
    ],
)
def test_why_nothing_was_asked(
    daemon: Daemon, source: dict[str, Any], target: dict[str, Any], lines: list[str]
) -> None:
    daemon.answers["policy.explain"] = {**EXPLAINED, "source": {**DB, **source}, "target": {**WEB, **target},
                                        "tiers": []}  # fmt: skip
    result = daemon.run("explain", "a", "b", "80")
    assert [line for line in lines if line not in result.stdout.splitlines()] == []


def test_apply_from_a_file_and_from_stdin(daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers["policy.apply"] = DONE
    text = "kind: A\n---\nkind: B\n"
    (tmp_path / "a.yaml").write_text(text)
    for words, stdin in ((str(tmp_path / "a.yaml"), ""), ("-", text)):
        daemon.asked.clear()
        result = daemon.run("apply", "-f", words, stdin=stdin)
        assert result.stdout.splitlines() == ["NetworkPolicy shop/web created in /etc/policies/a.yaml"] * 2
        assert [item["params"]["object"] for item in daemon.asked] == [{"kind": "A"}, {"kind": "B"}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", "not YAML"), ("", "has no objects"), ("a: " + "x" * 70_000, "than 60 KiB"), (None, "No such file")],
)
def test_apply_refuses_before_it_asks(daemon: Daemon, tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    result = daemon.run("apply", "-f", str(tmp_path / "a.yaml"))
    assert (result.exit_code, daemon.asked) == (1, [])
    assert reason in result.stderr


def test_delete(daemon: Daemon) -> None:
    daemon.answers["policy.delete"] = {**DONE, "in_force": False}
    result = daemon.run("delete", "NetworkPolicy", "shop/web")
    assert result.stdout == (
        "NetworkPolicy shop/web removed from /etc/policies/a.yaml (not in force yet: see fabricctl policy list)\n"
    )
    daemon.run("delete", "Tier", "ops", "--api-version", "projectcalico.org/v3")
    assert [item["params"] for item in daemon.asked] == [
        {"kind": "NetworkPolicy", "name": "web", "namespace": "shop"},
        {"kind": "Tier", "name": "ops", "apiVersion": "projectcalico.org/v3"},
    ]


def test_diff(daemon: Daemon, tmp_path: Path) -> None:
    cut = {"protocol": "TCP", "source": "198.51.100.7", "source_pod": "", "destination": "10.244.1.5",
           "destination_pod": "shop/web", "port": 80, "state": "established", "rule": RULE,
           "fate": "reset"}  # fmt: skip
    kept = {**cut, "port": 81, "fate": "kept"}
    found = {"flows": 9, "cut": 1, "kept": 1, "changes": ["NetworkPolicy shop/all"], "shown": [cut, kept]}
    daemon.answers["policy.diff"] = found
    (tmp_path / "a.yaml").write_text("kind: A\n")
    result = daemon.run("diff", "-f", str(tmp_path / "a.yaml"))
    assert result.exit_code == 3
    for word in ("10.244.1.5 (shop/web)", "established", RULE, "NetworkPolicy shop/all would cut 1 of 9 live flows",
                 "reset", "kept", "and keep 1"):  # fmt: skip
        assert word in result.stdout
    daemon.answers["policy.diff"] |= {"cut": 0, "kept": 0, "shown": []}
    assert "keep" not in daemon.run("diff").stdout
    assert daemon.run("diff", "--json").exit_code == 0
    assert [item["params"] for item in daemon.asked] == [{"objects": [{"kind": "A"}]}, {}, {}]


def test_denied(daemon: Daemon) -> None:
    flow = {"protocol": "TCP", "source": "198.51.100.7", "destination": "10.244.1.5", "ports": [4000, 80],
            "direction": "ingress", "rule": RULE, "place": "web.yaml:7"}  # fmt: skip
    echo = {**flow, "protocol": "ICMP", "ports": [8, 0], "direction": "", "rule": "policy_unknown_pod", "place": ""}
    daemon.answers["policy.denied"] = [flow, echo]
    shown = daemon.run("denied").stdout
    for word in ("198.51.100.7", "10.244.1.5", "80", f"ingress: {RULE}", "web.yaml:7", "type 8", "policy_unknown_pod"):
        assert word in shown
    assert json.loads(daemon.run("denied", "--json").stdout) == [flow, echo]


def test_hits(daemon: Daemon) -> None:
    unused = {"rule": "NetworkPolicy shop/unused spec.ingress[0]", "hits": 0, "place": ""}
    daemon.answers["policy.hits"] = [{"rule": RULE, "hits": 12345, "place": "web.yaml:7"}, unused]
    assert "unused" not in daemon.run("hits").stdout
    assert "unused" in daemon.run("hits", "--all").stdout
    assert all(word in daemon.run("hits").stdout for word in (RULE, "web.yaml:7", "12,345"))
    assert json.loads(daemon.run("hits", "--json").stdout) == daemon.answers["policy.hits"]


def test_hits_of_staged_policies_have_a_table_of_their_own(daemon: Daemon) -> None:
    idle = {"rule": RULE, "hits": 0, "place": "", "staged": False}
    end = "end of tier default, ingress: no rule of NetworkPolicy shop/new matched"
    would = {"rule": end, "hits": 1234, "place": "", "staged": True, "action": "deny", "changes": 17}
    daemon.answers["policy.hits"] = [idle, would]
    shown = daemon.run("hits").stdout
    assert all(word in shown for word in ("STAGED RULE", "CHANGED", "deny", "1,234", "17"))
    assert RULE not in shown
    daemon.answers["policy.hits"] = [idle]
    assert "STAGED" not in daemon.run("hits").stdout
