"""fabricctl against a fake daemon's socket: tables for people, JSON for machines, one line when nobody answers."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fabric.cli.main import main

ANSWERS: dict[str, object] = {
    "status": {
        "version": "0.1.0", "pid": 7, "node": "n1", "ready": True, "uptime": 61.5, "interface": "eth0",
        "underlay": ["192.0.2.1"], "public": ["192.0.2.1"], "subnets": ["10.244.1.0/24"],
        "lease": {"key": "10.244.1.0-24", "expires": None}, "device": "flannel.1", "mtu": 1450,
        "backend": {"type": "vxlan", "kernel": False, "vni": 1, "port": 8472},
        "store": {"kind": "sqlite", "url": "sqlite:///f.db", "available": False, "reason": "is locked",
                  "revision": None, "malformed": 0},
        "health": {"ready": True, "endpoint": "0.0.0.0:8081", "problems": ["task lease is not running"]},
        "peers": {"used": 1, "quarantined": 1}, "kernel": {"problems": ["route 10.244.9.0/24: no"]},
        "firewall": {"masquerade": True, "forward_rules": True, "problems": ["firewall: nftables: no"]},
        "policy": {"sources": ["directory /p"], "snapshot": 3, "objects": 7, "problems": ["web.yaml: cannot be read"]},
        "tasks": {"watch": True, "lease": False},
        "dataplane": {"offloads": {"udp-gso": True}, "ports": [{"name": "node"}]},
    },
    "leases": [
        {"key": "10.244.1.0-24", "state": "own", "reason": "", "way": "", "subnets": ["10.244.1.0/24"], "node": "",
         "public": ["192.0.2.1"], "backend": "vxlan", "macs": ["02:00:00:00:00:01"], "expires": None, "own": True,
         "owner": "192.0.2.1", "ttl": None},
        {"key": "10.244.2.0-24", "state": "used", "reason": "", "way": "vxlan", "subnets": ["10.244.2.0/24"],
         "node": "n2", "public": ["192.0.2.2"], "backend": "vxlan", "macs": [], "expires": 5.0, "own": False,
         "owner": "n2", "ttl": 3661.0},
    ],
    "peers": [
        {"key": "10.244.2.0-24", "state": "used", "reason": "", "way": "direct route", "subnets": ["10.244.2.0/24"],
         "node": "n2", "public": ["192.0.2.2"], "backend": "vxlan", "macs": ["02:00:00:00:00:02"], "expires": None,
         "traffic": {"packets_to": 54321, "bytes_to": 7_000_000, "packets_from": 8, "bytes_from": 800}},
        {"key": "10.244.3.0-24", "state": "quarantined", "reason": "192.0.2.3 is not on link", "way": "",
         "subnets": ["10.244.3.0/24"], "public": ["192.0.2.3"], "backend": "host-gw", "macs": [], "expires": None},
        {"key": "[red]x\x1b[2J", "state": "malformed", "reason": "[bold]no", "way": "", "subnets": [], "public": []},
    ],
    "routes": [{"prefix": "10.244.2.0/24", "via": "10.244.2.0", "device": "flannel.1", "underlay": "192.0.2.2",
                "mtu": 1450}],
    "endpoint.list": [
        {"name": "cni/podnet/c1/eth0", "kind": "tun", "netns": "/run/netns/a", "ifname": "eth0", "mac": "",
         "addresses": ["10.244.1.5"], "mtu": 1450, "labels": {}, "since": 5.0, "problem": "",
         "traffic": {"frames_from": 4321, "bytes_from": 5_000_000, "frames_to": 7, "bytes_to": 900, "drops": 12},
         "pod": {"namespace": "shop", "name": "web-1", "uid": "", "container_id": "c1"}},
        {"name": "p2", "kind": "tun", "netns": "/run/netns/b", "ifname": "eth0", "mac": "", "addresses": [], "mtu": 0,
         "labels": {}, "since": 5.0, "problem": "port p2: held by another process", "traffic": None,
         "pod": {"namespace": "", "name": "", "uid": "", "container_id": "c2"}},
    ],
    "counters": {"egress_packets": 1234567, "drop_no_route": 0, "flows": 5},
}  # fmt: skip


def flow(number: int, **changes: object) -> dict[str, object]:
    """A connection of a pod of this node to one behind n2."""
    return {
        "protocol": 6, "source": "10.244.1.5", "sport": 40000 + number, "destination": "10.244.2.7", "dport": 80,
        "state": "established", "entry": "cni/podnet/c1/eth0", "reply_entry": "underlay", "account": None, "idle": 3,
        "expires_in": 432000, "allowed": True, "standing": "", "egress_rule": None, "ingress_rule": None,
        **changes,
    }  # fmt: skip


FLOWS = [
    flow(0), flow(1, protocol=17, state="replied"), flow(2, destination="10.244.3.7"),
    flow(3, source="10.244.2.9", destination="10.244.1.6"),
    flow(4, protocol=47, sport=0, dport=0, allowed=False, standing="reset"),
]  # fmt: skip


def page(params: dict[str, int]) -> dict[str, object]:
    """Two connections at a time."""
    start = params["cursor"]
    return {"flows": FLOWS[start : start + 2], "next": start + 2 if start + 2 < len(FLOWS) else None}


ANSWERS["flows"] = page


def serve(listener: socket.socket, raw: bytes | None) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, client.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                known = ANSWERS[request["method"]]
                result = known(request["params"]) if callable(known) else known
                client.sendall(json.dumps({"result": result}).encode() + b"\n" if raw is None else raw)
                if raw is not None:
                    break


@pytest.fixture
def run_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    raw = getattr(request, "param", None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fabricd.sock"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener, raw))
        thread.start()
        yield tmp_path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, list(words))


@pytest.mark.parametrize("command", ["status", "leases", "peers", "routes", "counters"])
def test_json_is_the_daemons_answer(run_dir: Path, command: str) -> None:
    result = run(command, "--json", "--run-dir", str(run_dir))
    assert (result.exit_code, json.loads(result.stdout)) == (0, ANSWERS[command])


@pytest.mark.parametrize(
    ("words", "expected", "absent"),
    [
        (("status",), ["vxlan, VNI 1, UDP port 8472", "sqlite, sqlite:///f.db: unavailable: is locked", "udp-gso on",
                       "1 quarantined", "masquerading and forwarding", "ready, asked at 0.0.0.0:8081",
                       "task lease is not running", "route 10.244.9.0/24: no", "firewall: nftables: no",
                       "7 objects of directory /p, snapshot 3", "web.yaml: cannot be read"], []),
        (("leases",), ["* ", "10.244.1.0/24", "never", "n2", "in 1:01:01", "own"], []),
        (("peers",), ["10.244.2.0/24", "02:00:00:00:00:02", "direct route", "used", "[red]x", "malformed: [bold]no",
                      "quarantined: 192.0.2.3 is not on link", "7.0 MB (54,321)", "800 bytes (8)"], ["\x1b"]),
        (("pods",), ["NAMESPACE", "shop", "web-1", "10.244.1.5", "cni/podnet/c1/eth0", "tun", "c2", "held by",
                     "5.0 MB (4,321)", "900 bytes (7)", "12"], []),
        (("routes",), ["10.244.2.0/24", "flannel.1", "192.0.2.2"], []),
        (("counters",), ["1,234,567"], ["drop_no_route"]),
        (("counters", "--all"), ["1,234,567", "drop_no_route"], []),
    ],
)
def test_tables(run_dir: Path, words: tuple[str, ...], expected: list[str], absent: list[str]) -> None:
    result = run(*words, "--run-dir", str(run_dir))
    assert result.exit_code == 0
    assert [word for word in expected if word not in result.stdout] == []
    assert [word for word in absent if word in result.stdout] == []


def test_without_a_daemon_one_line(tmp_path: Path) -> None:
    result = run("status", "--run-dir", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == (
        f"fabricctl: no fabricd runs here ({tmp_path}/fabricd.sock does not exist): start it, or give its --run-dir\n"
    )


def test_a_dead_daemons_socket_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "fabricd.sock"))
    result = run("status", "--run-dir", str(tmp_path))
    assert (result.exit_code, result.stderr.startswith("fabricctl: fabricd is gone")) == (1, True)


@pytest.mark.parametrize("run_dir", [b"", b"rubbish\n", b"[1]\n", b'{"error":"not today"}\n'], indirect=True)
def test_a_bad_answer_is_one_line(run_dir: Path) -> None:
    result = run("status", "--run-dir", str(run_dir))
    assert result.exit_code == 1
    assert result.stderr.startswith("fabricctl: ")
    assert result.stderr.count("\n") == 1


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("adopt", "completion", "counters", "flows", "lab", "leases", "peers", "routes", "status", "top"):
        assert f"  {command}" in result.stdout
