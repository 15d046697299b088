"""What flannel leaves in the firewall is found and removed, and not a byte of anybody else's."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from fabric.errors import TrafficError
from fabric.traffic import leftovers
from fabric.traffic.reconcile import Reconciler
from fabric.traffic.rules import TrafficState
from tests.fabric.traffic import flannel, neighbours
from tests.fabric.traffic.flannel import NET4, NET6, POD4, POD6
from tests.fabric.traffic.kernel import nft, run, skip_without

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

STATE = TrafficState((NET4, NET6), (POD4, POD6), ip_masq=True, forward=True)


def iptables_mode(netns: str, flavour: str) -> None:
    flannel.install(netns, NET4, POD4, flavour)
    flannel.install(netns, NET6, POD6, flavour)


def before_it_had_chains(netns: str, flavour: str) -> None:
    """As flannel did until v0.19: its rules right in iptables' own chains."""
    for table, line in (
        ("nat", '-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN'),
        ("nat", '-A POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE'),
        ("filter", '-A FORWARD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT'),
    ):
        run(f"iptables-{flavour}-restore", "--noflush", script=f"*{table}\n{line}\nCOMMIT\n")


def nftables_mode(netns: str, flavour: str) -> None:
    nft(flannel.NFTABLES_MODE)


def witness() -> str:
    """Everything in the firewall, with handles and counters; the time of day left out."""
    texts = [run("nft", "-a", "list", "ruleset")]
    texts += [run(f"{name}-legacy-save", "-c", check=False) for name in ("iptables", "ip6tables")]
    return re.sub(r"^#.*$", "", "".join(texts), flags=re.MULTILINE)


CASES = {
    "iptables-nft": (iptables_mode, "nft", 4, [
        "iptables-nft ip table nat: chain FLANNEL-POSTRTG with 6 rules and 1 rule in POSTROUTING",
        "iptables-nft ip table filter: chain FLANNEL-FWD with 2 rules and 1 rule in FORWARD",
    ]),
    "iptables-legacy": (iptables_mode, "legacy", 4, [
        "iptables-legacy ip6 table nat: chain FLANNEL-POSTRTG with 6 rules and 1 rule in POSTROUTING",
    ]),
    "without chains, iptables-nft": (before_it_had_chains, "nft", 2, [
        "iptables-nft ip table nat: 2 rules in POSTROUTING",
        "iptables-nft ip table filter: 1 rule in FORWARD",
    ]),
    "without chains, iptables-legacy": (before_it_had_chains, "legacy", 2, [
        "iptables-legacy ip table filter: 1 rule in FORWARD",
    ]),
    "nftables": (nftables_mode, "nft", 2, ["nftables table ip flannel-ipv4", "nftables table ip6 flannel-ipv6"]),
}  # fmt: skip
Make = Callable[[str, str], None]


@pytest.mark.parametrize("case", CASES)
def test_flannels_rules_go_and_the_neighbours_stay_as_they_are(netns: str, case: str) -> None:
    make, flavour, count, lines = CASES[case]
    skip_without(flavour)
    neighbours.make(flavour)
    for tool in (f"iptables-{flavour}", f"ip6tables-{flavour}"):  # the empty tables it makes for flannel's rules stay
        for table, chain in (("nat", "POSTROUTING"), ("filter", "FORWARD")):
            run(tool, "-t", table, "-A", chain, "-j", "RETURN")
    before = witness()
    make(netns, flavour)
    with_flannel = witness()
    assert with_flannel != before

    found = leftovers.find()

    assert len(found) == count
    assert set(lines) <= {str(each) for each in found}
    assert witness() == with_flannel
    assert leftovers.remove(found) == []
    assert witness() == before
    assert leftovers.find() == []


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_neighbours_alone_are_nothing_of_flannels(flavour: str) -> None:
    skip_without(flavour)
    neighbours.make(flavour)
    before = witness()

    assert leftovers.find() == []
    assert leftovers.remove([]) == []
    assert witness() == before


def test_only_what_was_chosen_is_removed(netns: str) -> None:
    iptables_mode(netns, "nft")
    nftables_mode(netns, "nft")
    found = leftovers.find()

    leftovers.remove([each for each in found if each.family == "ip6"])

    assert leftovers.find() == [each for each in found if each.family == "ip"]


def test_removing_again_is_no_error(netns: str) -> None:
    iptables_mode(netns, "nft")
    found = leftovers.find()

    assert leftovers.remove(found) == []
    assert leftovers.remove(found) == []


def test_flannel_that_repairs_its_rules_meanwhile_is_found_by_its_names(netns: str) -> None:
    iptables_mode(netns, "nft")
    found = leftovers.find()
    leftovers.remove(found)
    iptables_mode(netns, "nft")

    assert leftovers.remove(found) == []

    assert leftovers.find() == []


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_a_chain_that_somebody_else_calls_stays_whole_and_is_named(netns: str, flavour: str) -> None:
    skip_without(flavour)
    iptables_mode(netns, flavour)
    run(f"iptables-{flavour}", "-A", "OUTPUT", "-j", "FLANNEL-FWD")
    before = forward(flavour)

    (failure,) = leftovers.remove(leftovers.find())

    assert failure.startswith(f"iptables-{flavour} ip table filter: chain FLANNEL-FWD with 2 rules and 1 rule in")
    assert forward(flavour) == before


def forward(flavour: str) -> list[str]:
    saved = run(f"iptables-{flavour}-save", "-t", "filter")
    return [line for line in saved.splitlines() if not line.startswith("#")]


def test_ours_and_flannels_side_by_side(netns: str) -> None:
    run("iptables", "-P", "FORWARD", "DROP")
    iptables_mode(netns, "nft")
    Reconciler().look(STATE, 0.0, full=True)
    ours = run("nft", "-a", "list", "table", "inet", "podfabric")

    assert leftovers.remove(leftovers.find()) == []

    assert run("nft", "-a", "list", "table", "inet", "podfabric") == ours
    assert "podfabric forward" in run("iptables", "-S", "FORWARD")
    assert leftovers.find() == []


def test_without_the_right_to_look_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("fabric.traffic.nft.Nftables.__init__", refused)

    with pytest.raises(TrafficError, match="cannot be searched for flannel's rules: Operation not permitted"):
        leftovers.find()
