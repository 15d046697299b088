"""The flat counters of `fabricctl counters` as metrics: which family, and which label value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fabric.metrics.families import Reading

DROP = "drop_"
_DIRECTIONS = {
    "packets": "packets", "bytes": "bytes", "superframes": "superframes", "wakeups": "wakeups",
    "icmp_sent": "icmp_errors", "icmp_limited": "icmp_errors_limited",
}  # fmt: skip
_FLOW_EVENTS = (
    "inserted", "expired", "replaced", "evicted_closing", "evicted_embryonic", "evicted_answered", "forgotten",
)  # fmt: skip
_ALONE = (
    "send_datagrams", "send_bytes", "send_messages", "send_calls", "send_resent", "send_injected",
    "receive_datagrams", "receive_messages", "write_frames", "write_calls", "write_merged", "write_bad_checksum",
    "joint_turns", "flows", "flow_fragments_unmatched", "flow_fragments_held", "flow_answered", "flow_answers_limited",
    "pods_waiting", "pods_lost",
)  # fmt: skip
KNOWN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"{direction}_{name}": (family, (direction,))
        for direction in ("egress", "ingress")
        for name, family in _DIRECTIONS.items()
    },
    **{f"flow_{event}": ("flow_events", (event,)) for event in _FLOW_EVENTS},
    **{f"flow_refused_{why}": ("flow_refused", (why,)) for why in ("full", "quota")},
    **{name: (name, ()) for name in _ALONE},
    "egress_local": ("local_frames", ()),
    "egress_neighbours": ("neighbour_answers", ()),
    "receive_overflows": ("queue_overflows", ("receive",)),
    "node_port_overflows": ("queue_overflows", ("node_port",)),
    "control_malformed_leases": ("store_malformed_leases", ()),
}
IN_REPORTS = frozenset({"pods_ports", "pods_of_the_kernel"})
"""Counters that say nothing beyond what `endpoint.list` has."""
_PREFIXES = {"kernel_": "kernel_operations", "firewall_": "firewall_operations", DROP: "drops"}


def read(counters: Mapping[str, int]) -> Iterator[Reading]:
    """Every counter as one reading; one that no family is known for goes into the family `counter`."""
    for name, value in counters.items():
        if name in KNOWN:
            family, labels = KNOWN[name]
            yield Reading(family, labels, value)
        elif name not in IN_REPORTS:
            prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
            yield Reading(_PREFIXES.get(prefix, "counter"), (name.removeprefix(prefix),), value)
