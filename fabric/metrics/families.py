"""Every metric there is: name, kind, labels, what it says. `docs/metrics.md` is made of this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fabric.metrics.latency import Distribution

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "podfabric_"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `name` is without the prefix and without `_total`; `adds` says whether series of it may be added up
    (those beyond the bound then become one, else they are left out)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    adds: bool = True
    group: str = ""

    @property
    def shown(self) -> str:
        """The name as Prometheus has it."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


class Reading(NamedTuple):
    """One value. `labels` (in the family's order) are texts of others where a store or a runtime wrote them:
    `bounded` disarms them."""

    family: str
    labels: tuple[str, ...]
    value: float | Distribution


def _group(group: str, *families: tuple[str, Kind, tuple[str, ...], bool, str]) -> list[Family]:
    return [Family(name, kind, help, labels, adds, group) for name, kind, labels, adds, help in families]


FAMILIES: tuple[Family, ...] = (
    *_group(
        "The node",
        ("info", "gauge", ("version", "node", "interface", "backend", "device"), False, "1; what runs here"),
        ("ready", "gauge", (), False, "1 once the node forwards"),
        ("start_time_seconds", "gauge", (), False, "Unix time at which the daemon started"),
        ("mtu_bytes", "gauge", (), False, "MTU of the pods"),
        ("lease_expiry_timestamp_seconds", "gauge", (), False, "Unix time at which our lease ends; absent: never"),
        ("problems", "gauge", ("part",), True, "what is wrong now, by part: health, kernel, firewall, pods, policy"),
        ("task_alive", "gauge", ("task",), False, "1 while this task of the control plane runs"),
        ("thread_alive", "gauge", ("thread",), False, "1 while this thread of the data path runs"),
    ),
    *_group(
        "Peers and pods",
        ("peers", "gauge", ("state",), True, "leases of other nodes by state, as in `fabricctl peers`"),
        ("peer_info", "gauge", ("peer", "node", "public", "way", "state"), False, "1; one per lease of another node"),
        ("peer_lease_expiry_timestamp_seconds", "gauge", ("peer",), False,
         "Unix time at which that lease ends; absent: never"),
        ("peer_packets", "counter", ("peer", "direction"), True,
         "packets to the node of this lease and from it; a superframe counts as its segments"),
        ("peer_bytes", "counter", ("peer", "direction"), True, "bytes of these inner packets"),
        ("pods", "gauge", ("kind",), True, "pods of this node by kind of interface"),
        ("pod_info", "gauge", ("port", "namespace", "pod", "kind", "addresses"), False,
         "1; one per interface of a pod"),
        ("pod_frames", "counter", ("port", "direction"), True,
         "frames of a pod on a port: from the pod, to the pod; a superframe counts once"),
        ("pod_bytes", "counter", ("port", "direction"), True, "their bytes"),
        ("pod_drops", "counter", ("port",), True, "its frames, and packets for it, that were refused"),
        ("pod_problem", "gauge", ("port",), True, "1 where a recorded port has no device (see `fabricctl pods`)"),
        ("pods_waiting", "gauge", (), False, "recorded ports without their device, tried again every second"),
        ("pods_lost", "counter", (), True, "records dropped because namespace or device was gone"),
    ),
    *_group(
        "Packets",
        ("packets", "counter", ("direction",), True,
         "packets handed on: egress from a port, ingress from the underlay; a superframe counts as its segments"),
        ("bytes", "counter", ("direction",), True, "bytes of these inner packets"),
        ("superframes", "counter", ("direction",), True, "of these, superframes"),
        ("local_frames", "counter", (), True, "frames from port to port on this node"),
        ("wakeups", "counter", ("direction",), True, "times the threads of this direction woke up"),
        ("joint_turns", "counter", (), True,
         "times the egress thread received from the underlay too, because traffic was sparse"),
        ("drops", "counter", ("reason",), True, "packets refused; each under one reason, see docs/reference.md"),
        ("icmp_errors", "counter", ("direction",), True, "ICMP errors sent, by the thread that sent them"),
        ("icmp_errors_limited", "counter", ("direction",), True, "ICMP errors not sent because of the limit"),
        ("neighbour_answers", "counter", (), True, "ARP requests and neighbour solicitations of TAP ports answered"),
        ("queue_overflows", "counter", ("queue",), True,
         "packets the kernel dropped because a queue was full: `receive` the underlay socket's, `node_port` the TUN's"),
    ),
    *_group(
        "System calls and offloads",
        ("offload", "gauge", ("name",), False, "1 where this offload is in use, 0 where it is not"),
        ("send_datagrams", "counter", (), True, "datagrams given to the underlay"),
        ("send_bytes", "counter", (), True, "their UDP payload"),
        ("send_messages", "counter", (), True, "sends; a UDP_SEGMENT train of many datagrams is one"),
        ("send_calls", "counter", (), True, "system calls for them"),
        ("send_resent", "counter", (), True, "trains the kernel refused and that were sent datagram by datagram"),
        ("send_injected", "counter", (), True, "superframes sent through the TAP"),
        ("receive_datagrams", "counter", (), True, "datagrams from the underlay, whatever became of them"),
        ("receive_messages", "counter", (), True, "messages received; UDP_GRO puts many datagrams into one"),
        ("write_frames", "counter", (), True, "packets given to the merger on their way to a port"),
        ("write_calls", "counter", (), True, "writes to ports"),
        ("write_merged", "counter", (), True, "packets that left joined with others"),
        ("write_bad_checksum", "counter", (), True, "packets with a wrong transport or header checksum, passed on"),
        ("snapshot_generation", "gauge", (), False, "number of the snapshot that the data path uses"),
    ),
    *_group(
        "Flows",
        ("flows", "gauge", (), False, "connections in the flow table"),
        ("flow_events", "counter", ("event",), True,
         "what became of connections: inserted, expired, replaced, evicted_closing, evicted_embryonic,"
         " evicted_answered, forgotten (their pod went)"),
        ("flow_refused", "counter", ("why",), True, "connections that are not tracked: full, quota"),
        ("flow_fragments_unmatched", "counter", (), True, "later fragments whose first one was not seen before them"),
        ("flow_fragments_held", "counter", (), True, "those that waited for it, as policy has to know its ports"),
        ("flow_answered", "counter", (), True, "refused packets of cut connections whose ends were told"),
        ("flow_answers_limited", "counter", (), True, "those not answered because of the limit"),
    ),
    *_group(
        "Store, kernel, firewall",
        ("store_available", "gauge", ("kind",), False, "1 while the store answers"),
        ("store_revision", "gauge", (), False, "revision of the store's content that is used; absent while it is away"),
        ("store_malformed", "gauge", (), False, "leases in the store now that cannot be read"),
        ("store_malformed_leases", "counter", (), True, "unreadable leases met since the start"),
        ("kernel_operations", "counter", ("operation",), True,
         "the reconciler of link, addresses and routes: reconciles, flushes, changes, errors, events, overruns"),
        ("firewall_operations", "counter", ("operation",), True,
         "the reconciler of firewall rules: looks, changes, restored, errors, events, overruns"),
    ),
    *_group(
        "Policy (absent while there is none)",
        ("policy_snapshot", "gauge", (), False, "number of the policy snapshot in force; 0: none yet, pods are closed"),
        ("policy_objects", "gauge", ("state",), True, "policy objects: in_force, refused, staged"),
        ("policy_rules", "gauge", (), False, "rules in force, and others that were counted"),
        ("policy_rule_hits", "counter", ("rule",), True, "connections that this rule decided"),
        ("policy_staged_hits", "counter", ("rule", "action"), True,
         "connections that this rule would have decided if the staged policies were enforced"),
        ("policy_staged_changes", "counter", ("rule", "action"), True,
         "those of them with another verdict now: refused ones with `allow`, ones that pass with `deny`"),
        ("programming_duration_seconds", "histogram", ("what",), False,
         "from the change of an object in the store to its use by the data path"),
    ),
    *_group(
        "The metrics themselves",
        ("metrics_left_out", "gauge", ("family",), False, "series beyond the bound that are not shown by themselves"),
        ("metrics_scrapes", "counter", (), True, "scrapes computed; at most one a second is"),
        ("metrics_scrape_errors", "counter", (), True, "scrapes that failed"),
        ("metrics_scrape_duration_seconds", "gauge", (), False, "time the last scrape took in the event loop"),
        ("counter", "counter", ("counter",), True, "counters of `fabricctl counters` without a metric of their own"),
    ),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
