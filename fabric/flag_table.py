"""The flags themselves: flanneld's names and defaults (flannel `main.go`), then ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

OFFLOADS = ("tun-tso", "tun-uso", "udp-gso", "udp-gro", "udp-batch", "tap-tunnel-gso")
Kind = Literal["text", "bool", "int", "list"]
Group = Literal["flannel", "etcd", "kube", "ours", "later"]
TITLES: dict[Group, str] = {
    "flannel": "flanneld's flags",
    "etcd": "etcd store (any of these selects it, as flanneld without --kube-subnet-mgr)",
    "kube": "Kubernetes API as store",
    "ours": "flags beyond flanneld's",
    "later": "accepted, without effect in this version (a warning says so)",
}
ETCD_ENDPOINTS = "http://127.0.0.1:4001,http://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `group` is the section of the help it stands in; those of "later" only give a warning."""

    name: str
    kind: Kind
    default: Any
    help: str
    group: Group = "flannel"


FLAGS: tuple[Flag, ...] = (
    Flag("iface", "list", (), "interface towards the other nodes: name or IP; repeatable, the first that fits wins"),
    Flag("iface-regex", "list", (), "the same by regular expression, IPs first, then names; checked after --iface"),
    Flag("iface-can-reach", "text", "", "the interface by which this IP is reached; checked after --iface-regex"),
    Flag("subnet-file", "text", "/run/flannel/subnet.env", "where to write the node's subnet and MTU"),
    Flag("public-ip", "text", "", "IPv4 address the other nodes send to (default: the interface's)"),
    Flag("public-ipv6", "text", "", "IPv6 address the other nodes send to (default: the interface's)"),
    Flag("subnet-lease-renew-margin", "int", 60, "minutes before its end at which the lease is renewed, 1 to 1439"),
    Flag("ip-masq", "bool", False, "masquerade traffic that leaves the pod network"),
    Flag("ip-masq-fully-random-disable", "bool", False, "masquerade without random ports"),
    Flag("iptables-resync", "int", 5, "seconds between checks of the firewall rules"),
    Flag("iptables-forward-rules", "bool", True, "accept forwarded traffic from and to the pod network"),
    Flag("ip-blackhole-route", "bool", False, "add a blackhole route for the node's subnet"),
    Flag("net-config-path", "text", "/etc/kube-flannel/net-conf.json", "network configuration (not with etcd)"),
    Flag("healthz-ip", "text", "0.0.0.0", "address of the health endpoint"),
    Flag("healthz-port", "int", 0, "port of the health endpoint (/healthz, /readyz), 0 is off"),
    Flag("v", "int", 0, "log level: 0 normal, 1 and more for debugging"),
    Flag("etcd-endpoints", "text", ETCD_ENDPOINTS, "etcd servers, comma-separated URLs", "etcd"),
    Flag("etcd-prefix", "text", "/coreos.com/network", "key prefix in etcd", "etcd"),
    Flag("etcd-keyfile", "text", "", "TLS key for etcd", "etcd"),
    Flag("etcd-certfile", "text", "", "TLS certificate for etcd", "etcd"),
    Flag("etcd-cafile", "text", "", "certificate authority for etcd", "etcd"),
    Flag("etcd-username", "text", "", "user name for etcd", "etcd"),
    Flag("etcd-password", "text", "", "password for etcd", "etcd"),
    Flag("kube-subnet-mgr", "bool", False, "use the Kubernetes API instead of etcd", "kube"),
    Flag("kube-api-url", "text", "", "Kubernetes API server (default: the cluster this pod runs in)", "kube"),
    Flag("kubeconfig-file", "text", "", "kubeconfig (default: the cluster this pod runs in)", "kube"),
    Flag("kube-annotation-prefix", "text", "flannel.alpha.coreos.com", "prefix of node annotations", "kube"),
    Flag("set-node-network-unavailable", "bool", True, "clear the node's NetworkUnavailable condition", "kube"),
    Flag("kube-policy", "text", "auto", "network policies of the API: on, off, or auto (if we may read them)", "kube"),
    Flag("store", "text", "sqlite:///var/lib/fabric/fabric.db", "embedded store, without etcd and Kubernetes", "ours"),
    Flag("node-name", "text", "", "name of this node (default: $NODE_NAME, else the host name)", "ours"),
    Flag("adopt", "bool", True, "take over the device that a stopped flanneld left", "ours"),
    Flag("device", "text", "", "name of the node port (default: flannel.<VNI>)", "ours"),
    Flag("run-dir", "text", "/run/fabric", "control socket and lock", "ours"),
    Flag("state-dir", "text", "/var/lib/fabric", "what must survive a restart", "ours"),
    Flag("cni-data-dir", "text", "/var/lib/cni/fabric", "records of the CNI plugin (its dataDir)", "ours"),
    Flag("workers", "int", 1, "data-path workers, each an egress and an ingress thread", "ours"),
    Flag("offload", "list", (), "NAME=on|off for one of " + ", ".join(OFFLOADS) + "; repeatable", "ours"),
    Flag("vxlan-reserved", "text", "strict", "reserved VXLAN bits: strict (as Linux) or ignore (RFC 7348)", "ours"),
    Flag("txqueuelen", "int", 1000, "queue length of the node port in packets", "ours"),
    Flag("flow-table", "int", 131072, "connections that can be tracked at once, 120 bytes each; 0 tracks none", "ours"),
    Flag("metrics-port", "int", 0, "port of the Prometheus metrics (/metrics), 0 is off", "ours"),
    Flag("metrics-ip", "text", "127.0.0.1", "address of the Prometheus metrics", "ours"),
    Flag("policy-dir", "text", "", "directory of YAML files with network policies", "ours"),
    Flag("store-policy", "bool", False, "network policies from etcd or SQLite, below PREFIX/policy/", "ours"),
    Flag("service-cidr", "list", (), "networks of Service addresses, comma-separated; repeatable", "ours"),
    Flag("policy-bridges", "text", "on", "enforce policy also for pods on bridges and pairs: on or off", "ours"),
    Flag("log-format", "text", "", "text or json (default: text on a terminal, else json)", "ours"),
    Flag("vmodule", "text", "", "log level by source file", "later"),
    Flag("log_backtrace_at", "text", "", "log a stack trace at a source line", "later"),
)
BY_NAME = {flag.name: flag for flag in FLAGS}
