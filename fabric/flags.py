"""flanneld's flags and `FLANNELD_*` variables, and ours, as checked options.

Go's flag syntax is kept: one dash or two, `--name=value` or `--name value`, and a boolean is `--name` or
`--name=false`. A flag on the command line wins over its variable.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_network
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from fabric.errors import StartError
from fabric.flag_table import BY_NAME, FLAGS, OFFLOADS, TITLES, Flag, Kind
from fabric.model import Network

if TYPE_CHECKING:
    from fabric.store.etcd.settings import EtcdSettings

TRUE = ("1", "t", "T", "true", "TRUE", "True")
FALSE = ("0", "f", "F", "false", "FALSE", "False")
RANGES = {
    "workers": (1, 8), "txqueuelen": (1, 1_000_000), "healthz-port": (0, 65535), "iptables-resync": (1, 86400),
    "flow-table": (0, 1 << 26), "metrics-port": (0, 65535),
}
StoreKind = Literal["sqlite", "etcd", "kubernetes"]


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """Where the Kubernetes API is and which of its nodes we are: `node_name`, or else the node of the named pod."""

    api_url: str
    kubeconfig: str
    annotation_prefix: str
    set_network_unavailable: bool
    node_name: str
    pod_name: str
    pod_namespace: str


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """What of the host's traffic rules is ours: masquerading, forwarding; `resync` seconds between checks."""

    masquerade: bool
    random_fully: bool
    forward_rules: bool
    resync: float


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Where network policies come from; without any of these there are none. `services` are Services' networks,
    `bridges` says whether pods without a port of their own (bridge, veth) pass the daemon where there are policies."""

    directory: str = ""
    services: tuple[Network, ...] = ()
    kube: Literal["auto", "on", "off"] = "off"
    store: bool = False
    bridges: bool = True


@dataclass(frozen=True, slots=True)
class Options:
    """The flags that mean something in this version, checked. `offload` holds the switches that were set."""

    iface: tuple[str, ...]
    iface_regex: tuple[str, ...]
    iface_can_reach: str
    subnet_file: str
    public_ip: str
    public_ipv6: str
    renew_margin: float
    traffic: TrafficOptions
    blackhole_route: bool
    net_config_path: str
    healthz_ip: str
    healthz_port: int
    verbosity: int
    store_kind: StoreKind
    store: str
    etcd: EtcdSettings
    kube: KubeOptions
    node_name: str
    adopt: bool
    device: str
    run_dir: str
    state_dir: str
    cni_data_dir: str
    workers: int
    offload: Mapping[str, bool]
    vxlan_reserved: Literal["strict", "ignore"]
    txqueuelen: int
    flow_table: int
    policy: PolicyOptions
    metrics_ip: str
    metrics_port: int
    log_format: Literal["text", "json"]
    warnings: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fabricd: {message}\nfabricd: see fabricd --help\n")


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Options:
    """Options from `argv` (without the program's name) and the environment.

    Raises SystemExit (0 for help and version, 2 for bad usage) and StartError for what this version refuses.
    """
    environ = os.environ if environ is None else environ
    parser = _parser()
    try:
        given = vars(parser.parse_args(_from_go(argv)))
        if given["version"]:
            print(f"fabricd {version()}")
            parser.exit(0)
        values = {flag.name: _value(flag, given, environ) for flag in FLAGS}
        given_names = {name for name, (value, is_given) in values.items() if is_given and value != ""}
        return _options({name: value for name, (value, _) in values.items()}, given_names, environ)
    except ValueError as error:
        parser.error(str(error))


def log_format_of(argv: Sequence[str]) -> Literal["text", "json"]:
    """The log format for messages about flags themselves: what `--log-format` says, if anything sensible."""
    words = [word.lstrip("-") for word in argv]
    for text in ("json", "text"):
        if f"log-format={text}" in words or ("log-format", text) in pairwise(words):
            return "json" if text == "json" else "text"
    return "text" if sys.stderr.isatty() else "json"


def _parser() -> _Parser:
    parser = _Parser(
        prog="fabricd",
        allow_abbrev=False,
        description="Carries pod traffic between nodes over VXLAN from user space. Every flag of flanneld is accepted; "
        "each is also a variable: FLANNELD_ and the name in capitals with _ for -.",
        epilog="Exit codes: 0 asked to stop, 1 start refused (one line says why), 2 bad usage.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    for group, title in TITLES.items():
        section = parser.add_argument_group(title)
        for flag in FLAGS:
            if flag.group == group:
                shown = f" (default: {flag.default})" if flag.default not in ("", (), False, 0) else ""
                metavar = "BOOL" if flag.kind == "bool" else "N" if flag.kind == "int" else "VALUE"
                section.add_argument(
                    f"--{flag.name}", action="append", default=None, help=flag.help + shown, metavar=metavar
                )
    return parser


@cache
def version() -> str:
    """The installed version, or "unknown" when run from a tree that was never installed."""
    from importlib import metadata  # slow to import, and only needed here

    try:
        return metadata.version("podfabric")
    except metadata.PackageNotFoundError:
        return "unknown"


def _from_go(argv: Sequence[str]) -> list[str]:
    """Go's spellings as argparse's `--name=value`."""
    result: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if word in ("-h", "-help", "--help"):
            result.append("--help")
        elif word in ("-version", "--version", "--version=true", "-version=true"):
            result.append("--version")
        elif word.startswith("-") and len(word) - len(word.lstrip("-")) <= 2 and name in BY_NAME:
            if not equals and BY_NAME[name].kind == "bool":
                value = "true"
            elif not equals:
                if not words:
                    raise ValueError(f"flag needs an argument: --{name}")
                value = words.pop(0)
            result.append(f"--{name}={value}")
        elif word.startswith("-"):
            raise ValueError(f"unknown flag {word.partition('=')[0]}")
        else:
            raise ValueError(f"unexpected argument {word!r}: flags only")
    return result


def _value(flag: Flag, given: Mapping[str, list[str] | None], environ: Mapping[str, str]) -> tuple[Any, bool]:
    """The flag's value, and whether a person set it."""
    words = given.get(flag.name.replace("-", "_"))
    source = f"--{flag.name}"
    if words is None:
        variable = "FLANNELD_" + flag.name.upper().replace("-", "_")
        text = environ.get(variable, "")
        if not text:
            return flag.default, False
        words, source = [text], variable
    if flag.kind == "list":
        return tuple(words), True
    converters: Mapping[Kind, Callable[[str], Any]] = {"text": str, "bool": _bool, "int": _int}
    try:
        value = converters[flag.kind](words[-1])
    except ValueError as error:
        raise ValueError(f"invalid value {words[-1]!r} for {source}: {error}") from None
    return value, True


def _bool(text: str) -> bool:
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError("must be true or false")


def _int(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _options(values: Mapping[str, Any], given: set[str], environ: Mapping[str, str]) -> Options:
    _check_ranges(values)
    node_name = values["node-name"] or environ.get("NODE_NAME", "")
    return Options(
        iface=values["iface"],
        iface_regex=values["iface-regex"],
        iface_can_reach=values["iface-can-reach"],
        subnet_file=values["subnet-file"],
        public_ip=values["public-ip"],
        public_ipv6=values["public-ipv6"],
        renew_margin=values["subnet-lease-renew-margin"] * 60.0,
        traffic=_traffic(values),
        blackhole_route=values["ip-blackhole-route"],
        net_config_path=values["net-config-path"],
        healthz_ip=values["healthz-ip"],
        healthz_port=values["healthz-port"],
        verbosity=values["v"],
        store_kind=_store_kind(values, given),
        store=values["store"],
        etcd=_etcd(values),
        kube=_kube(values, node_name, environ),
        node_name=node_name or os.uname().nodename,
        adopt=values["adopt"],
        device=values["device"],
        run_dir=values["run-dir"],
        state_dir=values["state-dir"],
        cni_data_dir=values["cni-data-dir"],
        workers=values["workers"],
        offload=dict(_switch(item) for word in values["offload"] for item in word.split(",")),
        vxlan_reserved=values["vxlan-reserved"],
        txqueuelen=values["txqueuelen"],
        flow_table=values["flow-table"],
        policy=_policy(values),
        metrics_ip=values["metrics-ip"],
        metrics_port=values["metrics-port"],
        log_format=values["log-format"] or ("text" if sys.stderr.isatty() else "json"),
        warnings=_warnings(values, given),
    )


def _check_ranges(values: Mapping[str, Any]) -> None:
    for name, allowed in (("vxlan-reserved", ("strict", "ignore")), ("log-format", ("", "text", "json")),
                          ("kube-policy", ("auto", "on", "off")), ("policy-bridges", ("on", "off"))):  # fmt: skip
        if values[name] not in allowed:
            raise ValueError(f"invalid value {values[name]!r} for --{name}: one of {', '.join(filter(None, allowed))}")
    for name, (low, high) in RANGES.items():
        if not low <= values[name] <= high:
            raise ValueError(f"invalid value {values[name]} for --{name}: from {low} to {high}")
    margin = values["subnet-lease-renew-margin"]
    if not 1 <= margin <= 1439:
        raise StartError(f"--subnet-lease-renew-margin is {margin}: give 1 to 1439 minutes")


def _store_kind(values: Mapping[str, Any], given: set[str]) -> StoreKind:
    """flanneld uses etcd unless it is told to use Kubernetes; we use SQLite unless we are told to use one of them."""
    if values["kube-subnet-mgr"]:
        return "kubernetes"
    return "etcd" if any(flag.group == "etcd" and flag.name in given for flag in FLAGS) else "sqlite"


def _traffic(values: Mapping[str, Any]) -> TrafficOptions:
    return TrafficOptions(
        masquerade=values["ip-masq"],
        random_fully=not values["ip-masq-fully-random-disable"],
        forward_rules=values["iptables-forward-rules"],
        resync=float(values["iptables-resync"]),
    )


def _etcd(values: Mapping[str, Any]) -> EtcdSettings:
    from fabric.store.etcd.settings import EtcdSettings  # brings ssl along, which fabricctl does not need

    endpoints = tuple(text for text in (part.strip() for part in values["etcd-endpoints"].split(",")) if text)
    names = ("prefix", "keyfile", "certfile", "cafile", "username", "password")
    return EtcdSettings(endpoints, **{name: values[f"etcd-{name}"] for name in names})


def _policy(values: Mapping[str, Any]) -> PolicyOptions:
    """Raises StartError for what cannot be enforced."""
    directory = os.path.abspath(values["policy-dir"]) if values["policy-dir"] else ""
    words = [word.strip() for text in values["service-cidr"] for word in text.split(",")]
    kube: Literal["auto", "on", "off"] = values["kube-policy"] if values["kube-subnet-mgr"] else "off"
    store = values["store-policy"] and not values["kube-subnet-mgr"]
    given = {f"--policy-dir {directory}": directory, "--store-policy": store, "--kube-policy on": kube == "on"}
    asked = [text for text, is_given in given.items() if is_given]
    if asked and not values["flow-table"]:
        raise StartError(
            "--flow-table 0 tracks no flows, so replies could not be told from new flows: "
            f"give it a size, or leave out {' and '.join(asked)}"
        )
    networks = tuple(_network(word) for word in words if word)
    return PolicyOptions(directory, networks, kube, store, values["policy-bridges"] == "on")


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"invalid value {text[:60]!r} for --service-cidr: {error}") from None


def _kube(values: Mapping[str, Any], node_name: str, environ: Mapping[str, str]) -> KubeOptions:
    return KubeOptions(
        api_url=values["kube-api-url"],
        kubeconfig=values["kubeconfig-file"],
        annotation_prefix=values["kube-annotation-prefix"],
        set_network_unavailable=values["set-node-network-unavailable"],
        node_name=node_name,
        pod_name=environ.get("POD_NAME", ""),
        pod_namespace=environ.get("POD_NAMESPACE", ""),
    )


def _switch(text: str) -> tuple[str, bool]:
    name, _, state = text.partition("=")
    if name not in OFFLOADS or state not in ("on", "off"):
        raise ValueError(f"invalid value {text!r} for --offload: NAME=on|off with NAME one of {', '.join(OFFLOADS)}")
    return name, state == "on"


def _warnings(values: Mapping[str, Any], given: set[str]) -> tuple[str, ...]:
    changed = [flag for flag in FLAGS if flag.name in given and values[flag.name] != flag.default]
    lines = [f"--{flag.name} has no effect in this version" for flag in changed if flag.group == "later"]
    if not values["kube-subnet-mgr"]:
        lines += [f"--{flag.name} has no effect without --kube-subnet-mgr" for flag in changed if flag.group == "kube"]
    kind = _store_kind(values, given)
    ignored = [flag.name for flag in FLAGS if (flag.group, kind) == ("etcd", "kubernetes") and flag.name in given]
    if kind != "sqlite" and "store" in given:
        ignored.append("store")
    if kind == "kubernetes" and values["store-policy"]:
        ignored.append("store-policy")
    lines += [f"--{name} has no effect: {kind} is the store" for name in ignored]
    return tuple(lines)

