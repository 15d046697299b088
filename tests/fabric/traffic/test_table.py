"""Our own table in a real kernel: what is in it, that every change of it is undone, that nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from itertools import combinations

import pytest

from fabric.traffic import table
from fabric.traffic.nft import Nftables
from fabric.traffic.reconcile import Reconciler
from fabric.traffic.rules import Rule, TrafficState
from routes.netlink import Request
from tests.fabric.traffic import neighbours
from tests.fabric.traffic.flannel import NET4, NET6, POD4, POD6
from tests.fabric.traffic.kernel import handle, nft, own_table, ruleset, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

IPV4 = TrafficState((NET4,), (POD4,), ip_masq=True, forward=True)
DUAL = TrafficState((NET4, NET6), (POD4, POD6), ip_masq=True, forward=True)
GOLDEN = """\
table inet podfabric {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 counter packets 0 bytes 0 accept comment "from pods"
		ip daddr 10.244.0.0/16 counter packets 0 bytes 0 accept comment "to pods"
		ip6 saddr 2001:db8:f4::/48 counter packets 0 bytes 0 accept comment "from pods"
		ip6 daddr 2001:db8:f4::/48 counter packets 0 bytes 0 accept comment "to pods"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat + 5; policy accept;
		meta mark & 0x00004000 == 0x00004000 counter packets 0 bytes 0 return comment "kube-proxy translates it"
		ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 counter packets 0 bytes 0 return comment "a pod here to any pod"
		ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 counter packets 0 bytes 0 return comment "any pod to a pod here"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 counter packets 0 bytes 0 return comment "outside to a pod here"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 counter packets 0 bytes 0 masquerade fully-random comment "a pod to the outside"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 counter packets 0 bytes 0 masquerade fully-random comment "host or outside to a pod elsewhere"
		ip6 saddr 2001:db8:f4:1::/64 ip6 daddr 2001:db8:f4::/48 counter packets 0 bytes 0 return comment "a pod here to any pod"
		ip6 saddr 2001:db8:f4::/48 ip6 daddr 2001:db8:f4:1::/64 counter packets 0 bytes 0 return comment "any pod to a pod here"
		ip6 saddr != 2001:db8:f4::/48 ip6 daddr 2001:db8:f4:1::/64 counter packets 0 bytes 0 return comment "outside to a pod here"
		ip6 saddr 2001:db8:f4::/48 ip6 daddr != ff00::/8 counter packets 0 bytes 0 masquerade fully-random comment "a pod to the outside"
		ip6 saddr != 2001:db8:f4::/48 ip6 daddr 2001:db8:f4::/48 counter packets 0 bytes 0 masquerade fully-random comment "host or outside to a pod elsewhere"
	}
}
"""  # noqa: E501 - nft's lines


def settle(reconciler: Reconciler, state: TrafficState) -> None:
    """Look until nothing has to be changed."""
    for _ in range(3):
        result = reconciler.look(state, 0.0, full=False)
        assert (result.failed, result.refused) == (False, "")
        if not result.changes:
            return
    raise AssertionError(f"still changing: {result.changes}")


def test_the_table_as_nft_shows_it() -> None:
    settle(Reconciler(), DUAL)

    assert own_table() == GOLDEN


def test_masquerading_with_the_ports_that_the_kernel_would_choose() -> None:
    settle(Reconciler(), replace(DUAL, random_fully=False))

    assert own_table() == GOLDEN.replace("masquerade fully-random", "masquerade")


def test_odd_prefixes_read_as_prefixes() -> None:
    state = TrafficState((ip_network("10.200.0.0/13"),), (ip_network("10.207.255.240/28"),), ip_masq=True)

    settle(Reconciler(), state)

    assert "ip saddr 10.207.255.240/28 ip daddr 10.200.0.0/13 counter" in own_table()


DAMAGE = {
    "table deleted": "delete table inet podfabric",
    "table flushed": "flush table inet podfabric",
    "chain deleted": "flush chain inet podfabric postrouting; delete chain inet podfabric postrouting",
    "rule deleted": "delete rule inet podfabric postrouting handle {handle}",
    "rule appended": "add rule inet podfabric postrouting counter",
    "rule in front": "insert rule inet podfabric postrouting accept",
    "rule replaced": "replace rule inet podfabric postrouting handle {handle} ip saddr 10.244.0.0/17 counter return",
    "policy is drop": "add chain inet podfabric forward {{ policy drop; }}",
    "asleep": "add table inet podfabric {{ flags dormant; }}",
    "chain of somebody": "add chain inet podfabric mine {{ type filter hook forward priority 0; policy drop; }}",
    "set of somebody": "add set inet podfabric mine {{ type ipv4_addr; }}",
    "another priority": "flush chain inet podfabric forward; delete chain inet podfabric forward; "
    "add chain inet podfabric forward {{ type filter hook forward priority 7; }}",
    "another kind": "delete table inet podfabric; add table inet podfabric; "
    "add chain inet podfabric postrouting {{ type filter hook input priority 0; }}",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_change_of_the_table_is_undone(damage: str) -> None:
    neighbours.make()
    reconciler = Reconciler()
    settle(reconciler, DUAL)
    others = ruleset()

    number = handle("inet podfabric", "postrouting", "ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24")
    nft(DAMAGE[damage].format(handle=number))
    assert own_table() != GOLDEN
    assert reconciler.look(DUAL, 0.0, full=False).restored

    assert (own_table(), ruleset()) == (GOLDEN, others)
    assert reconciler.look(DUAL, 0.0, full=False).changes == ()


def test_a_fresh_process_keeps_what_is_right_and_repairs_what_is_not() -> None:
    settle(Reconciler(), DUAL)
    before = run("nft", "-a", "list", "table", "inet", "podfabric")

    assert Reconciler().look(DUAL, 0.0, full=False).changes == ()
    assert run("nft", "-a", "list", "table", "inet", "podfabric") == before

    nft("flush chain inet podfabric postrouting")
    settle(Reconciler(), DUAL)
    assert own_table() == GOLDEN


STATES = [
    DUAL,
    replace(DUAL, random_fully=False),
    replace(DUAL, networks=(ip_network("10.96.0.0/12"), NET6), subnets=(ip_network("10.97.3.0/24"), POD6)),
    replace(DUAL, forward=False),
    replace(DUAL, ip_masq=False),
    IPV4,
    TrafficState(),
]


def test_the_way_to_a_state_does_not_matter() -> None:
    tables = []
    for state in STATES:
        settle(Reconciler(), TrafficState())
        settle(Reconciler(), state)
        tables.append(own_table())
    assert len(set(tables)) == len(STATES)
    assert tables[-1] == ""

    reconciler = Reconciler()
    for before, after in combinations(range(len(STATES)), 2):
        for each in (before, after, before):
            settle(reconciler, STATES[each])
            assert own_table() == tables[each], (STATES[before], STATES[after])


def test_a_node_without_rules_never_touches_the_firewall() -> None:
    neighbours.make()
    before = ruleset()

    result = Reconciler().look(TrafficState((NET4,), (POD4,)), 0.0, full=False)

    assert (result.changes, ruleset(without="")) == ((), before)


def test_a_kernel_that_describes_rules_otherwise_is_not_written_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def described(family: str, rule: Rule) -> table.Described:
        return (("counter", ()), ("something new", ())), rule.comment

    monkeypatch.setattr(table, "described", described)
    reconciler = Reconciler()

    first, second, third = (reconciler.look(DUAL, 0.0, full=False) for _ in range(3))

    assert (len(first.changes), second.changes, third.changes) == (1, (), ())
    assert second.problems == third.problems
    assert "describes table inet podfabric otherwise" in third.problems[0]
    assert own_table() == GOLDEN
    nft("delete table inet podfabric")
    assert reconciler.look(DUAL, 0.0, full=False).restored
    assert own_table() == GOLDEN


def test_a_change_in_the_middle_of_a_look_is_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    reconciler, requests = Reconciler(), table.OwnTable.requests
    reconciler.look(DUAL, 0.0, full=False)

    def meanwhile(self: table.OwnTable, kernel: Nftables) -> list[Request]:
        nft("flush chain inet podfabric postrouting")
        return requests(self, kernel)

    with monkeypatch.context() as patch:
        patch.setattr(table.OwnTable, "requests", meanwhile)
        result = reconciler.look(DUAL, 0.0, full=False)

    assert (result.problems, result.changes) == ((), ())
    reconciler.look(DUAL, 0.0, full=False)
    assert own_table() == GOLDEN
