"""Flags: Go's syntax, flannel's names and variables, exit codes."""

import pytest

from fabric import flags
from fabric.errors import StartError

# flannel main.go, every flag that its Linux build defines.
FLANNELD = [
    "etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile", "etcd-username", "etcd-password",
    "iface", "iface-regex", "iface-can-reach", "subnet-file", "public-ip", "public-ipv6", "subnet-lease-renew-margin",
    "ip-masq", "ip-masq-fully-random-disable", "kube-subnet-mgr", "kube-api-url", "kubeconfig-file",
    "kube-annotation-prefix", "net-config-path", "set-node-network-unavailable", "healthz-ip", "healthz-port",
    "iptables-resync", "iptables-forward-rules", "ip-blackhole-route", "v", "vmodule", "log_backtrace_at",
]  # fmt: skip
def parse(*words: str, **environ: str) -> flags.Options:
    return flags.parse(words, environ)


def test_every_flag_of_flanneld_is_known() -> None:
    assert set(FLANNELD) <= {flag.name for flag in flags.FLAGS}


@pytest.mark.parametrize(
    "words", [("--iface", "eth1"), ("-iface", "eth1"), ("--iface=eth1",), ("-iface=eth1",)]
)
def test_go_spellings(words: tuple[str, ...]) -> None:
    assert parse(*words).iface == ("eth1",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), False),
        (("--ip-masq",), True),
        (("-ip-masq=true",), True),
        (("--ip-masq=F",), False),
        (("--ip-masq", "--ip-masq=false"), False),
    ],
)
def test_booleans_take_no_separate_word(words: tuple[str, ...], expected: bool) -> None:
    assert parse(*words).traffic.masquerade is expected


def test_repeatable_flags_keep_their_order() -> None:
    assert parse("--iface=b", "-iface", "a", "--iface-regex", "^e").iface == ("b", "a")


def test_variables_apply_unless_the_flag_is_given() -> None:
    assert parse(FLANNELD_PUBLIC_IP="192.0.2.7").public_ip == "192.0.2.7"
    assert parse("--public-ip=192.0.2.8", FLANNELD_PUBLIC_IP="192.0.2.7").public_ip == "192.0.2.8"
    assert parse(FLANNELD_IP_MASQ="true").traffic.masquerade
    assert parse(FLANNELD_PUBLIC_IP="").public_ip == ""


def test_defaults_of_the_contract() -> None:
    options = parse(NODE_NAME="node7")
    assert options.store == "sqlite:///var/lib/fabric/fabric.db"
    assert (options.run_dir, options.state_dir, options.workers) == ("/run/fabric", "/var/lib/fabric", 1)
    assert (options.subnet_file, options.net_config_path) == (
        "/run/flannel/subnet.env",
        "/etc/kube-flannel/net-conf.json",
    )
    assert (options.node_name, options.renew_margin, options.vxlan_reserved) == ("node7", 3600.0, "strict")


def test_offload_switches() -> None:
    assert parse("--offload", "tun-tso=off", "--offload=udp-gso=on").offload == {"tun-tso": False, "udp-gso": True}


@pytest.mark.parametrize(
    "words",
    [
        ("--no-such-flag",),
        ("--ifac=eth0",),
        ("eth0",),
        ("--iface",),
        ("---iface=eth0",),
        ("--ip-masq=maybe",),
        ("--workers=0",),
        ("--workers=two",),
        ("--offload=warp=on",),
        ("--offload=tun-tso",),
        ("--log-format=xml",),
        ("--vxlan-reserved=maybe",),
        ("--healthz-port=65536",),
        ("--iptables-resync=0",),
    ],
)
def test_bad_usage_ends_with_code_2_and_says_why(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(*words)
    assert error.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("fabricd: ")


def test_a_bad_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(FLANNELD_IP_MASQ="maybe")
    assert "FLANNELD_IP_MASQ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ((), "sqlite"),
        (("--store=sqlite:///x.db",), "sqlite"),
        (("--kube-subnet-mgr=false",), "sqlite"),
        (("--etcd-endpoints=",), "sqlite"),
        (("--etcd-endpoints=http://192.0.2.1:2379",), "etcd"),
        (("--etcd-prefix=/x",), "etcd"),
        (("--etcd-username=u",), "etcd"),
        (("--kube-subnet-mgr",), "kubernetes"),
        (("--kube-subnet-mgr", "--etcd-prefix=/x"), "kubernetes"),
    ],
)
def test_which_store(words: tuple[str, ...], kind: str) -> None:
    assert parse(*words).store_kind == kind


def test_etcd_has_flannels_defaults() -> None:
    etcd = parse("--etcd-cafile=/ca").etcd
    assert etcd.endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert (etcd.prefix, etcd.cafile, etcd.keyfile) == ("/coreos.com/network", "/ca", "")
    words = ("--etcd-endpoints", "https://192.0.2.1:2379, https://192.0.2.2:2379,")
    given = parse(*words, FLANNELD_ETCD_PASSWORD="secret")
    assert given.etcd.endpoints == ("https://192.0.2.1:2379", "https://192.0.2.2:2379")
    assert given.etcd.password == "secret"
    assert "secret" not in repr(given)


def test_who_we_are_in_kubernetes() -> None:
    kube = parse("--kube-subnet-mgr", POD_NAME="p", POD_NAMESPACE="kube-flannel").kube
    assert (kube.node_name, kube.pod_name, kube.pod_namespace) == ("", "p", "kube-flannel")
    assert parse("--kube-subnet-mgr", NODE_NAME="n").kube.node_name == "n"
    assert parse("--kube-subnet-mgr", "--node-name=m", NODE_NAME="n").kube.node_name == "m"
    kube = parse("--kube-subnet-mgr", "--set-node-network-unavailable=false", "--kube-annotation-prefix=x.y").kube
    assert (kube.set_network_unavailable, kube.annotation_prefix) == (False, "x.y")


def test_traffic_flags() -> None:
    traffic = parse().traffic
    assert (traffic.masquerade, traffic.random_fully, traffic.forward_rules, traffic.resync) == (False, True, True, 5.0)
    words = ("--ip-masq", "--ip-masq-fully-random-disable", "--iptables-forward-rules=false", "--iptables-resync=9")
    traffic = parse(*words).traffic
    assert (traffic.masquerade, traffic.random_fully, traffic.forward_rules, traffic.resync) == (
        True, False, False, 9.0,
    )  # fmt: skip


def test_health_and_blackhole() -> None:
    options = parse("--healthz-port=8081", "--healthz-ip=127.0.0.1", "--ip-blackhole-route")
    assert (options.healthz_ip, options.healthz_port, options.blackhole_route) == ("127.0.0.1", 8081, True)
    assert options.warnings == ()


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (("--vmodule=x=2", "--iptables-resync=5", "--log_backtrace_at=x:1"), ["--vmodule", "--log_backtrace_at"]),
        (("--kubeconfig-file=/x",), ["--kubeconfig-file"]),
        (("--set-node-network-unavailable=false",), ["--set-node-network-unavailable"]),
        (("--kube-subnet-mgr", "--kubeconfig-file=/x"), []),
        (("--kube-subnet-mgr", "--etcd-prefix=/x"), ["--etcd-prefix"]),
        (("--etcd-prefix=/x", "--store=sqlite:///x.db"), ["--store"]),
    ],
)
def test_flags_without_effect_warn_once_each(words: tuple[str, ...], warned: list[str]) -> None:
    assert [line.split()[0] for line in parse(*words).warnings] == warned


@pytest.mark.parametrize("margin", ["0", "1440", "-5"])
def test_renew_margin_has_flannels_range(margin: str) -> None:
    with pytest.raises(StartError, match="give 1 to 1439 minutes"):
        parse(f"--subnet-lease-renew-margin={margin}")


@pytest.mark.parametrize("word", ["--version", "-version", "--help", "-h"])
def test_version_and_help_end_with_code_0(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(word)
    assert error.value.code == 0
    assert "fabricd" in capsys.readouterr().out
