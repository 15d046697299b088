"""Forwarding past other programs' chains: Docker's FORWARD DROP in both of iptables' forms, and firewalls."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from fabric.traffic.reconcile import SURVEY_SECONDS, Reconciler
from fabric.traffic.rules import TrafficState
from tests.fabric.traffic import neighbours
from tests.fabric.traffic.flannel import NET4, NET6, POD4, POD6
from tests.fabric.traffic.kernel import nft, ruleset, run, skip_without
from tests.fabric.traffic.sites import FAR, OUTSIDE, PAYLOAD, PODS, Site, site

pytestmark = pytest.mark.root

IPV4 = TrafficState((NET4,), (POD4,), forward=True)
DUAL = TrafficState((NET4, NET6), (POD4, POD6), forward=True)
OURS = [
    '-A FORWARD -s 10.244.0.0/16 -m comment --comment "podfabric forward" -j ACCEPT',
    '-A FORWARD -d 10.244.0.0/16 -m comment --comment "podfabric forward" -j ACCEPT',
]
OURS6 = [
    '-A FORWARD -s 2001:db8:f4::/48 -m comment --comment "podfabric forward" -j ACCEPT',
    '-A FORWARD -d 2001:db8:f4::/48 -m comment --comment "podfabric forward" -j ACCEPT',
]
in_both_flavours = pytest.mark.parametrize("flavour", ["nft", "legacy"])
in_a_namespace = pytest.mark.usefixtures("netns")


def forward_rules(flavour: str, family: str = "ip") -> list[str]:
    """The FORWARD chain as iptables shows it, without the policy."""
    listing = run(f"{family}tables-{flavour}", "-S", "FORWARD")
    return [line for line in listing.splitlines() if line.startswith("-A")]


def look(reconciler: Reconciler, state: TrafficState, now: float = 0.0) -> tuple[str, ...]:
    """A full look, which has to succeed; the problems it knows, those of this host's sysctls left out."""
    result = reconciler.look(state, now, full=True)
    assert not result.failed, result.problems
    return tuple(line for line in result.problems if not line.startswith("net."))


def passes(place: Site, sender: str, receiver: str, source: str, destination: str, seconds: float) -> bool:
    """Whether a datagram and its answer are forwarded."""
    with place.socket(receiver, destination) as listening, place.socket(sender, source) as sending:
        listening.settimeout(seconds)
        sending.sendto(PAYLOAD, (destination, listening.getsockname()[1]))
        try:
            _, address = listening.recvfrom(64)
            listening.sendto(b"back", address)
            return sending.recvfrom(64)[0] == b"back"
        except TimeoutError:
            return False


@in_both_flavours
def test_pods_are_reached_although_forward_drops(flavour: str) -> None:
    skip_without(flavour)
    ways = [
        ("pod1", "far", PODS["pod1"][family], FAR[family]) for family in (0, 1)
    ] + [("outside", "pod2", OUTSIDE[family], PODS["pod2"][family]) for family in (0, 1)]
    with site() as place:
        for tool in ("iptables", "ip6tables"):
            place.command("node", f"{tool}-{flavour}", "-P", "FORWARD", "DROP")
        assert not any(passes(place, *way, seconds=0.1) for way in ways)

        assert place.call("node", lambda: look(Reconciler(), DUAL)) == ()

        assert all(passes(place, *way, seconds=5.0) for way in ways)


@in_a_namespace
@in_both_flavours
def test_the_rules_stand_there_while_the_policy_is_drop(flavour: str) -> None:
    skip_without(flavour)
    neighbours.make(flavour)
    others = forward_rules(flavour)
    reconciler = Reconciler()

    look(reconciler, DUAL)
    assert forward_rules(flavour) == others
    run(f"iptables-{flavour}", "-P", "FORWARD", "DROP")
    look(reconciler, DUAL)
    assert forward_rules(flavour) == [*others, *OURS]
    run(f"iptables-{flavour}", "-P", "FORWARD", "ACCEPT")
    look(reconciler, DUAL)
    assert forward_rules(flavour) == others


@in_a_namespace
@in_both_flavours
def test_each_family_has_its_own(flavour: str) -> None:
    skip_without(flavour)
    for tool in ("iptables", "ip6tables"):
        run(f"{tool}-{flavour}", "-P", "FORWARD", "DROP")

    look(Reconciler(), DUAL)

    assert (forward_rules(flavour), forward_rules(flavour, "ip6")) == (OURS, OURS6)


@in_a_namespace
@in_both_flavours
def test_the_rules_follow_the_network_and_go_when_not_wanted(flavour: str) -> None:
    skip_without(flavour)
    neighbours.make(flavour)
    run(f"iptables-{flavour}", "-P", "FORWARD", "DROP")
    others = forward_rules(flavour)
    reconciler = Reconciler()

    look(reconciler, IPV4)
    look(reconciler, replace(IPV4, networks=(ip_network("10.96.0.0/12"),)))
    assert forward_rules(flavour) == [*others, *(line.replace("10.244.0.0/16", "10.96.0.0/12") for line in OURS)]
    look(reconciler, replace(IPV4, forward=False))
    assert forward_rules(flavour) == others


@in_a_namespace
@in_both_flavours
def test_what_iptables_takes_away_comes_back_once(flavour: str) -> None:
    skip_without(flavour)
    neighbours.make(flavour)
    run(f"iptables-{flavour}", "-P", "FORWARD", "DROP")
    expected = [*forward_rules(flavour), *OURS]
    reconciler = Reconciler()
    look(reconciler, IPV4)

    run(f"iptables-{flavour}-restore", "--noflush", script=f"*filter\n-D{OURS[0][2:]}\nCOMMIT\n")
    assert OURS[0] not in forward_rules(flavour)
    look(reconciler, IPV4)
    assert forward_rules(flavour) == expected
    run(f"iptables-{flavour}-restore", "--noflush", script=f"*filter\n{OURS[0]}\nCOMMIT\n")
    look(reconciler, IPV4)
    assert forward_rules(flavour) == expected


@in_a_namespace
def test_nothing_but_our_two_rules_changes() -> None:
    neighbours.make()
    run("iptables", "-P", "FORWARD", "DROP")
    before = ruleset()

    look(Reconciler(), replace(DUAL, ip_masq=True))

    added = [line for line in ruleset().splitlines() if line not in before.splitlines()]
    assert [line.split(" # ")[0].strip() for line in added] == [
        'ip saddr 10.244.0.0/16 counter packets 0 bytes 0 accept comment "podfabric forward"',
        'ip daddr 10.244.0.0/16 counter packets 0 bytes 0 accept comment "podfabric forward"',
    ]
    assert set(before.splitlines()) <= set(ruleset().splitlines())


def firewall(rules: str = "counter", family: str = "inet") -> str:
    return f"table {family} fw {{ chain gate {{ type filter hook forward priority 0; policy drop; {rules}; }}; }}"


@in_a_namespace
def test_a_firewall_that_drops_is_reported_with_what_to_do() -> None:
    nft(firewall())
    reconciler = Reconciler()

    (line,) = look(reconciler, DUAL)
    assert line.startswith("nftables chain inet fw gate drops by default and no simple rule of it accepts 10.244")
    for command in line.split("allow them: ")[1].split("; "):
        run(*command.split())

    assert look(reconciler, DUAL, SURVEY_SECONDS - 1) == (line,)
    assert look(reconciler, DUAL, SURVEY_SECONDS) == ()


RULES = {
    "exactly": ("ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept", True),
    "counted and commented": (
        'ip saddr 10.244.0.0/16 counter accept comment "x"; ip daddr 10.244.0.0/16 counter accept comment "y"', True),
    "wider": ("ip saddr 10.0.0.0/8 accept; ip daddr 10.240.0.0/12 accept", True),
    "one way only": ("ip saddr 10.244.0.0/16 accept", False),
    "narrower": ("ip saddr 10.244.0.0/17 accept; ip daddr 10.244.0.0/16 accept", False),
    "some ports": ("ip saddr 10.244.0.0/16 tcp dport 80 accept; ip daddr 10.244.0.0/16 accept", False),
    "all but": ("ip saddr != 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept", False),
    "dropped": ("ip saddr 10.244.0.0/16 drop; ip daddr 10.244.0.0/16 accept", False),
    "of the other family": ("ip6 saddr ::/0 accept; ip6 daddr ::/0 accept", False),
    "things we do not read": ('iifname "cni0" accept; ct state established accept; meta mark 1 accept', False),
}  # fmt: skip


@in_a_namespace
@pytest.mark.parametrize(
    ("rules", "family"),
    [(name, family) for name in RULES for family in ("inet", "ip") if (name, family) != ("of the other family", "ip")],
)
def test_which_rules_of_a_firewall_are_understood(rules: str, family: str) -> None:
    text, enough = RULES[rules]
    nft(firewall(text, family))

    assert (look(Reconciler(), IPV4) == ()) is enough


@in_a_namespace
@pytest.mark.parametrize(
    "harmless",
    [
        firewall(family="ip6"),
        firewall().replace("forward", "input"),
        firewall().replace("drop", "accept"),
        "table inet fw { chain gate { counter drop; }; }",
        "table bridge fw { chain gate { type filter hook forward priority 0; policy drop; }; }",
    ],
)
def test_chains_that_do_not_stop_ipv4_pods_are_no_problem(harmless: str) -> None:
    nft(harmless)

    assert look(Reconciler(), IPV4) == ()


@in_a_namespace
def test_who_wants_no_forward_rules_is_not_told_of_firewalls() -> None:
    nft(firewall())
    run("iptables", "-P", "FORWARD", "DROP")

    assert look(Reconciler(), replace(IPV4, forward=False, ip_masq=True)) == ()
    assert forward_rules("nft") == []


@in_a_namespace
def test_a_missing_tool_for_legacy_tables_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    skip_without("legacy")
    run("iptables-legacy", "-nL")
    monkeypatch.setenv("PATH", str(tmp_path))

    result = Reconciler().look(IPV4, 0.0, full=True)

    assert result.failed
    assert "iptables-legacy-save is not installed" in result.problems[0]
