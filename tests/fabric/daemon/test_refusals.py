"""The real program refuses bad input with one line and exit code 1 (2 for usage), and leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def host() -> Iterator[str]:
    """A network namespace with one interface, eth0 with 198.51.100.1/24: nothing depends on the machine's own."""
    name = f"fabtest-refusals-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in ("link add eth0 type veth peer name far0", "addr add 198.51.100.1/24 dev eth0", "link set far0 up",
                      "link set eth0 up"):  # fmt: skip
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def fabricd(
    tmp_path: Path, *words: str, config: str | None = None, netns: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "net-conf.json"
    if config is not None:
        path.write_text(config)
    inside = ("ip", "netns", "exec", netns) if netns else ()
    files = [f"--{name}={tmp_path / name}" for name in ("run-dir", "state-dir", "subnet-file")]
    return subprocess.run(
        [*inside, sys.executable, "-m", "fabric.daemon.main", f"--net-config-path={path}", f"--store=sqlite://{tmp_path}/f.db",
         "--log-format=json", *files, *words],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environ},
    )  # fmt: skip


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused start."""
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert (result.returncode, len(lines), lines[-1]["level"]) == (1, 1, "error")
    message: str = lines[-1]["message"]
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "net-conf.json: not valid JSON"),
        ("{}", "net-conf.json: please define a correct Network parameter"),
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}', 'backend type "wireguard" is not available'),
    ],
)
def test_a_wrong_configuration(tmp_path: Path, config: str, message: str) -> None:
    assert message in refusal(fabricd(tmp_path, config=config))
    assert [item.name for item in tmp_path.iterdir()] == ["net-conf.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--store=postgres://x",), "--store 'postgres://x' is not available in this version"),
        (("--subnet-lease-renew-margin=0",), "give 1 to 1439 minutes"),
    ],
)
def test_what_this_version_cannot_do(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(fabricd(tmp_path, *words))
    assert list(tmp_path.iterdir()) == []


def test_the_same_by_variable(tmp_path: Path) -> None:
    message = refusal(fabricd(tmp_path, FLANNELD_SUBNET_LEASE_RENEW_MARGIN="0"))
    assert "--subnet-lease-renew-margin" in message


def test_usage(tmp_path: Path) -> None:
    result = fabricd(tmp_path, "--no-such-flag")
    assert (result.returncode, result.stderr.splitlines()[0]) == (2, "fabricd: unknown flag --no-such-flag")


@pytest.mark.slow
def test_version_and_help(tmp_path: Path) -> None:
    assert fabricd(tmp_path, "--version").stdout.startswith("fabricd ")
    assert "--iface-can-reach" in fabricd(tmp_path, "--help").stdout


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--iface=wlan7",), "no interface fits: --iface wlan7: no such interface (there are "),
        (("--iface=lo",), "no interface fits: --iface lo: lo has no usable IPv4 address"),
        (("--iface=eth0", "--device=lo"), "device lo exists already"),
        (("--iface=eth0", "--device=much-too-long-a-name"), "is not valid"),
        ((), "no interface fits: default route: there is no IPv4 default route: give --iface"),
    ],
)
def test_the_hosts_refusals(tmp_path: Path, host: str, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(fabricd(tmp_path, *words, netns=host))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_without_the_tun_device(tmp_path: Path) -> None:
    command = f"mount -t tmpfs none /dev/net && exec {sys.executable} -m fabric.daemon.main --log-format=json"
    hide = ["unshare", "--mount", "sh", "-c", f"{command} --run-dir={tmp_path / 'run'}"]
    result = subprocess.run(hide, capture_output=True, text=True, timeout=60, check=False)
    assert "/dev/net/tun does not exist: load the module (modprobe tun)" in refusal(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_without_privilege(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fabric.daemon.main", "--log-format=json", f"--run-dir={tmp_path / 'run'}"]
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    result = subprocess.run([*drop, *command], capture_output=True, text=True, timeout=60, check=False)
    assert "no privilege to make network devices (CAP_NET_ADMIN)" in refusal(result)
    assert list(tmp_path.iterdir()) == []
