"""The fuzz targets: a function of (seed, count) each, giving counts by reason. AssertionError is a finding.

Parser, decapsulation (with merge behind it) and egress run in compiled loops (`fabric.forward.probe`), which check
after every case that what was fed is what was handed over plus what was dropped under one reason. `merge` and `split`
drive `tests.tun.fuzz`; `policy` compares well-formed worlds with a naive twin; what the control side reads has modules
of its own beside this one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from encap.drops import DropReason
from fabric.forward.probe import Probe, fuzz_parse
from tests.fabric.policy.fuzz import compare_worlds
from tests.fuzz import control_socket, documents, kubernetes
from tests.fuzz.etcd import etcd_list, etcd_watch
from tests.fuzz.seeds import OWN, PEER, inner_packets, make_snapshot, port_frames, vxlan_payloads
from tests.tun.fuzz import fuzz_merge, fuzz_split, merge_cases, split_cases

Counts = dict[str, int]
BLOCK = 250_000
INNER = {DropReason(value).name.lower() for value in range(DropReason.INNER_SHORT, DropReason.NO_ROUTE)}
OUTER = {DropReason(value).name.lower() for value in range(1, DropReason.INNER_SHORT)} - {"format_refused"}
ROUTED = {"ttl_expired", "too_big"}
TEXT = {"pass", "refused"}


@contextmanager
def probe(
    encapsulation: str = "vxlan", *, strict: bool = True, by_host: bool = False, policed: bool = False
) -> Iterator[tuple[Probe, int]]:
    """A probe whose datagrams go to a socket that nobody reads, and the tunnel's port number."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        sink.bind((str(PEER), 0))
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        sender.bind((str(OWN), 0))
        port = sink.getsockname()[1]
        snapshot = make_snapshot(encapsulation, port=port, strict=strict, by_host=by_host, policed=policed)
        yield Probe(snapshot, sender.fileno(), encapsulation), port


def in_blocks(run: Callable[[int, int], Counts], seed: int, count: int) -> Counts:
    """`count` cases as blocks with seeds of their own, so that a failing block is quick to repeat."""
    total: Counts = {}
    for block in range(0, count, BLOCK):
        for name, value in run(seed * 10_000 + block // BLOCK, min(BLOCK, count - block)).items():
            total[name] = total.get(name, 0) + value
    return total


def parser(seed: int, count: int) -> Counts:
    seeds = inner_packets(3, 2, 6)
    return in_blocks(lambda s, n: fuzz_parse(seeds, s, n), seed, count)


def decapsulation(seed: int, count: int) -> Counts:
    with probe() as (fed, _):
        seeds = vxlan_payloads()
        return in_blocks(lambda s, n: fed.fuzz_ingress(seeds, s, n), seed, count)


def decapsulation_lenient(seed: int, count: int) -> Counts:
    with probe(strict=False) as (fed, _):
        seeds = vxlan_payloads()
        return in_blocks(lambda s, n: fed.fuzz_ingress(seeds, s, n), seed, count)


def decapsulation_udp(seed: int, count: int) -> Counts:
    with probe("udp") as (fed, _):
        seeds = inner_packets(3, 2, 6) + inner_packets(3, 2, 10) + inner_packets(3, 1, 6)[:4]
        return in_blocks(lambda s, n: fed.fuzz_ingress(seeds, s, n), seed, count)


def decapsulation_by_host(seed: int, count: int) -> Counts:
    """From a peer that names no MAC and that the host's own routes lead to."""
    with probe(by_host=True) as (fed, _):
        seeds = vxlan_payloads()
        return in_blocks(lambda s, n: fed.fuzz_ingress(seeds, s, n), seed, count)


def egress(seed: int, count: int) -> Counts:
    with probe() as (fed, port):
        seeds = port_frames(port)
        return in_blocks(lambda s, n: fed.fuzz_egress(seeds, s, n), seed, count)


def egress_by_host(seed: int, count: int) -> Counts:
    with probe(by_host=True) as (fed, port):
        seeds = port_frames(port)
        return in_blocks(lambda s, n: fed.fuzz_egress(seeds, s, n), seed, count)


def decapsulation_policed(seed: int, count: int) -> Counts:
    with probe(policed=True) as (fed, _):
        seeds = vxlan_payloads()
        return in_blocks(lambda s, n: fed.fuzz_ingress(seeds, s, n), seed, count)


def egress_policed(seed: int, count: int) -> Counts:
    with probe(policed=True) as (fed, port):
        seeds = port_frames(port)
        return in_blocks(lambda s, n: fed.fuzz_egress(seeds, s, n), seed, count)


def merge(seed: int, count: int) -> Counts:
    for case in merge_cases(seed, count):
        fuzz_merge(case)
    return {"pass": count}


def split(seed: int, count: int) -> Counts:
    for case in split_cases(seed, count):
        fuzz_split(case)
    return {"pass": count}


def policy(seed: int, count: int) -> Counts:
    """Verdicts of compiled policies of random clusters against an evaluator that reads the objects themselves."""
    return compare_worlds(seed * 10_000_000, count)


# Target, cases at scale 1, reasons it must meet. The longest runs come first, so that both processes end together.
TARGETS: dict[str, tuple[Callable[[int, int], Counts], int, set[str]]] = {
    "policy": (policy, 1_000_000, {"pass", "denied"}),
    "merge": (merge, 150_000, set()),
    "subnet-env": (documents.subnet_file, 1_000_000, TEXT),
    "kubernetes-nodes": (kubernetes.fuzz, 500_000, {"value", "node", "item", "page", "ignored", "pass"}),
    "lease-values": (documents.lease_values, 1_000_000, TEXT),
    "control-socket": (control_socket.fuzz, 300_000, TEXT),
    "cni-input": (documents.cni_input, 500_000, TEXT),
    "net-conf": (documents.net_conf, 1_000_000, TEXT),
    "decapsulation": (decapsulation, 20_000_000, OUTER | INNER | ROUTED),
    "etcd-watch": (etcd_watch, 1_000_000, {"pass", "malformed", "nothing_new"}),
    "etcd-list": (etcd_list, 1_000_000, {"pass", "malformed"}),
    "cni-environment": (documents.cni_environment, 1_000_000, TEXT),
    "egress": (
        egress,
        4_000_000,
        INNER | ROUTED | {"no_route", "not_unicast", "source_spoofed", "pod_to_vtep", "superframe"},
    ),
    "decapsulation-lenient": (decapsulation_lenient, 10_000_000, (OUTER | INNER | ROUTED) - {"vxlan_reserved"}),
    "decapsulation-udp": (decapsulation_udp, 10_000_000, INNER | ROUTED | {"unknown_vtep", "source_not_leased"}),
    "parser": (parser, 20_000_000, INNER),
    "decapsulation-by-host": (decapsulation_by_host, 5_000_000, OUTER | INNER | ROUTED),
    "split": (split, 300_000, set()),
    "decapsulation-policed": (decapsulation_policed, 5_000_000, INNER | {"policy_ingress", "policy_fragment", "held"}),
    "egress-by-host": (egress_by_host, 1_000_000, INNER | {"no_route", "not_unicast", "source_spoofed", "pod_to_vtep"}),
    "egress-policed": (egress_policed, 1_000_000, INNER | {"not_unicast", "policy_egress", "policy_fragment", "held"}),
}
