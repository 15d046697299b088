"""What is kept from call to call changes no answer, whatever came before: against a calculation from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import calc
from fabric.calc.parts import SIZE, Stretches
from fabric.identity import differing
from fabric.model import Lease
from tests.fabric.calc.worlds import NODES, lease, value

KINDS = ("vxlan", "", "host-gw", "extension", "vxlan")


def made(number: int, variant: int) -> tuple[str, bytes, int]:
    """Key, value and revision of a lease; in many variants it claims what another one has."""
    host = number if variant < 4 else number // 2
    key = f"10.244.{number}.0-{24 if variant != 5 else 25}"
    return key, value(f"192.0.2.{host}", vni=1 + (variant == 6), kind=KINDS[variant % len(KINDS)]), 5 + variant % 3


changes = st.lists(st.tuples(st.integers(1, 60), st.none() | st.integers(0, 6)), max_size=6)
links = st.none() | st.dictionaries(
    st.integers(1, 12).map(lambda host: IPv4Address(0xC0000200 + host)), st.sampled_from(["eth0", "eth1", None])
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NODES)
@settings(deadline=None, max_examples=25)
@given(
    crowd=st.integers(0, 120),
    steps=st.lists(st.tuples(changes, links, st.integers(0, 60), st.booleans()), min_size=1, max_size=5),
)
def test_any_path_leads_to_the_same_outcome(
    kind: str, crowd: int, steps: list[tuple[list[tuple[int, int | None]], calc.OnLink | None, int, bool]]
) -> None:
    """A crowd that stays, a few leases that come, change and go, renewals, news of what is on link, another node."""
    node, memo, on_link = NODES[kind], calc.Memo(), {}
    known: dict[str, Lease] = {}
    for number in range(crowd):
        key = f"10.244.{number % 100 + 100}.{number // 100 * 128}-25"
        known[key] = lease(key, value(f"198.51.100.{number + 1}", f"02:00:00:01:00:{number:02x}"))
    for changed, links_now, renewed, moved in steps:
        for number, variant in changed:
            key, data, revision = made(number, variant or 0)
            known.pop(key, None)
            if variant is not None:
                known[key] = lease(key, data, revision)
        for key in sorted(known)[renewed : renewed + 2]:
            known[key] = replace(known[key], expires=2e9 if renewed % 3 else None)
        node = replace(node, underlay_mtu=node.underlay_mtu - 4) if moved else node
        on_link = on_link if links_now is None else dict(links_now)  # type: ignore[arg-type]
        leases = tuple(known[key] for key in sorted(known))
        kept = calc.calculate(node, leases, memo, on_link)
        assert kept == calc.calculate(node, list(leases)[::-1], None, on_link)


def test_a_renewed_lease_changes_nothing_but_its_verdict() -> None:
    node, memo = NODES["vxlan"], calc.Memo()
    one, two = (lease(f"10.244.{number}.0-24", value(f"192.0.2.{number}")) for number in (2, 3))
    before = calc.calculate(node, (one, two), memo)
    after = calc.calculate(node, (replace(one, expires=2e9), two), memo)
    assert differing(before.forwarding.peers, after.forwarding.peers) == ([], [])
    assert [verdict.lease.expires for verdict in after.verdicts] == [2e9, two.expires]


def test_a_reservation_that_gets_a_time_limit_has_its_node() -> None:
    """flannel's udp publishes no type: only the limit tells the lease of a node from one that is kept for it."""
    node, memo = NODES["udp"], calc.Memo()
    reserved = lease("10.244.2.0-24", value("192.0.2.2", kind=""), expires=None)
    for expires, peers in ((None, 0), (2e9, 1), (3e9, 1), (None, 0)):
        found = calc.calculate(node, (replace(reserved, expires=expires),), memo)
        assert len(found.forwarding.peers) == peers


@given(
    st.integers(0, 5 * SIZE),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), st.integers(0, 80)), max_size=12),
)
def test_stretches_are_the_items_in_order(start: int, cuts: list[tuple[int, int, int]]) -> None:
    asked = 0

    def summarise(items: Sequence[int]) -> tuple[int, ...]:
        nonlocal asked
        asked += len(items)
        return tuple(items)

    stretches, twin = Stretches(summarise), list(range(start))
    stretches.replace(0, 0, twin)
    for place, count, new in cuts:
        place = min(place, len(twin))
        count = min(count, len(twin) - place)
        items = list(range(-new, 0))
        asked = 0
        stretches.replace(place, count, items)
        twin[place : place + count] = items
        assert [item for part in stretches.sums for item in part] == twin
        assert asked <= len(items) + 2 * 2 * SIZE  # the stretches at both ends, and no other
