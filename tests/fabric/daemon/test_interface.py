"""Which interface and addresses are chosen: flannel's order, what was rejected, and one line when nothing fits."""

from collections.abc import Mapping

import pytest

from fabric import flags
from fabric.daemon.interface import External, select
from fabric.errors import StartError
from routes.lookup import InterfaceAddress
from tests.fabric.fakes import FakeKernel, own_address


def choose(
    *words: str,
    versions: tuple[int, ...] = (4,),
    kernel: FakeKernel | None = None,
    stored: Mapping[int, str] | None = None,
) -> External:
    return select(flags.parse(list(words), {}), versions, (kernel or FakeKernel()).host(), stored)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "name", "underlay"),
    [
        ((), "eth0", "192.0.2.1"),
        (("--iface=eth1",), "eth1", "198.51.100.1"),
        (("--iface=198.51.100.1",), "eth1", "198.51.100.1"),
        (("--iface=none", "--iface=eth1", "--iface=eth0"), "eth1", "198.51.100.1"),
        (("--iface=bare", "--iface=eth1"), "eth1", "198.51.100.1"),
        (("--iface=none", "--iface-regex=eth1"), "eth1", "198.51.100.1"),
        (("--iface-regex=^198", "--iface-regex=eth0"), "eth1", "198.51.100.1"),
        (("--iface-regex=^eth",), "eth0", "192.0.2.1"),
        (("--iface-regex=^198\\.",), "eth1", "198.51.100.1"),
        (("--iface-can-reach=192.0.2.77",), "eth1", "198.51.100.1"),
        (("--iface=eth0", "--iface-can-reach=192.0.2.77"), "eth0", "192.0.2.1"),
        (("--iface=none", "--iface-regex=^none", "--iface-can-reach=192.0.2.77"), "eth1", "198.51.100.1"),
        (("--public-ip=198.51.100.1",), "eth1", "198.51.100.1"),
        (("--public-ip=203.0.113.1",), "eth0", "192.0.2.1"),
        (("--iface=eth0", "--public-ip=198.51.100.1"), "eth0", "192.0.2.1"),
    ],
)
def test_order(words: tuple[str, ...], name: str, underlay: str) -> None:
    external = choose(*words)
    assert (external.name, [str(item) for item in external.underlay]) == (name, [underlay])


@pytest.mark.parametrize(
    ("words", "rejected"),
    [
        (("--iface=eth0",), ()),
        (("--iface=none", "--iface=bare", "--iface=eth0"),
         ("--iface none: no such interface", "--iface bare: bare has no usable IPv4 address")),
        (("--iface=203.0.113.5", "--iface-regex=(", "--iface-can-reach=198.51.100.7"),
         ("--iface 203.0.113.5: no interface has it",
          "--iface-regex (: not a regular expression: missing ), unterminated subpattern at position 0")),
        (("--public-ip=203.0.113.1",), ("public IP 203.0.113.1: no interface has it",)),
    ],
)  # fmt: skip
def test_what_was_tried_before_is_kept(words: tuple[str, ...], rejected: tuple[str, ...]) -> None:
    assert choose(*words).rejected == rejected


A, B = "192.0.2.21/24", "192.0.2.22/24"


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        ([own_address(A), own_address(B)], A),
        ([own_address("169.254.1.1/16"), own_address(B)], B),
        ([own_address("169.254.1.1/16")], "169.254.1.1/16"),
        ([own_address(A, permanent=False), own_address(B)], B),
        ([own_address(A, temporary=True), own_address(B)], B),
        ([own_address(A, temporary=True), own_address(B, permanent=False)], A),
        ([own_address(A, deprecated=True), own_address(B, permanent=False, temporary=True)], B),
        ([own_address("169.254.1.1/16"), own_address(A, permanent=False)], A),
    ],
)
def test_preference_among_addresses(addresses: list[str | InterfaceAddress], chosen: str) -> None:
    kernel = FakeKernel(addresses={"eth0": addresses})
    assert str(choose(kernel=kernel).underlay[0]) == chosen.partition("/")[0]
    assert str(choose("--iface-regex=^eth0$", kernel=kernel).underlay[0]) == chosen.partition("/")[0]


def test_an_address_that_was_asked_for_is_taken_whatever_it_is_like() -> None:
    kernel = FakeKernel(addresses={"eth0": [own_address(A), own_address(B, deprecated=True)]})
    assert str(choose("--iface=192.0.2.22", kernel=kernel).underlay[0]) == "192.0.2.22"
    second = FakeKernel(addresses={"eth0": [own_address(A), own_address(B)]})
    assert str(choose("--iface-regex=22$", kernel=second).underlay[0]) == "192.0.2.22"


def test_dual_stack_takes_a_global_address_of_each_family() -> None:
    assert [str(item) for item in choose(versions=(4, 6)).underlay] == ["192.0.2.1", "2001:db8::1"]


def test_dual_stack_by_expression_needs_a_match_in_both_families_or_a_name() -> None:
    kernel = FakeKernel(
        addresses={
            "eth0": ["192.0.2.1/24", "2001:db8::1/64"],
            "eth1": ["198.51.100.1/24", "2001:db8:1::1/64", "2001:db8:1::2/64"],
        }
    )
    by_address = choose("--iface-regex=^198|:2$", versions=(4, 6), kernel=kernel)
    assert [str(item) for item in by_address.underlay] == ["198.51.100.1", "2001:db8:1::2"]
    by_name = choose("--iface-regex=^198", "--iface-regex=eth1", versions=(4, 6), kernel=kernel)
    assert (by_name.name, by_name.rejected) == ("eth1", ("--iface-regex ^198: no address and no name matches",))


def test_a_local_public_ipv6_address_is_used_and_must_be_on_the_same_interface() -> None:
    addresses: dict[str, list[str | InterfaceAddress]] = {
        "eth0": ["192.0.2.1/24", "2001:db8::1/64", "2001:db8::2/64"],
        "eth1": ["2001:db8:1::1/64"],
    }
    words = ("--iface=192.0.2.1", "--public-ipv6=2001:db8::2")
    external = choose(*words, versions=(4, 6), kernel=FakeKernel(addresses=addresses))
    assert [str(item) for item in external.underlay] == ["192.0.2.1", "2001:db8::2"]
    words = ("--iface=192.0.2.1", "--public-ipv6=2001:db8:1::1")
    with pytest.raises(StartError, match="v6 interface eth1 must be the same with v4 interface eth0"):
        choose(*words, versions=(4, 6), kernel=FakeKernel(addresses=addresses))


def test_public_addresses_may_be_others() -> None:
    external = choose("--public-ip=203.0.113.9", "--public-ipv6=2001:db8::99", versions=(4, 6))
    assert [str(item) for item in external.public] == ["203.0.113.9", "2001:db8::99"]
    assert [str(item) for item in external.underlay] == ["192.0.2.1", "2001:db8::1"]


def test_addresses_from_the_store_win_over_the_flags() -> None:
    external = choose("--public-ip=203.0.113.9", stored={4: "203.0.113.10"})
    assert [str(item) for item in external.public] == ["203.0.113.10"]
    assert choose(stored={4: "198.51.100.1"}).name == "eth1"


EXISTING = "(there are bare, eth0, eth1, lo)"


@pytest.mark.parametrize(
    ("words", "versions", "message"),
    [
        (("--iface=wlan7",), (4,), f"no interface fits: --iface wlan7: no such interface {EXISTING}"),
        (("--iface=wlan7", "--iface-regex=^w"), (4,),
         "no interface fits: --iface wlan7: no such interface; --iface-regex ^w: no address and no name matches "
         + EXISTING),
        (("--iface=bare",), (4,), f"no interface fits: --iface bare: bare has no usable IPv4 address {EXISTING}"),
        (("--iface=eth1",), (4, 6), f"no interface fits: --iface eth1: eth1 has no usable IPv6 address {EXISTING}"),
        (("--iface=lo",), (4,), f"no interface fits: --iface lo: lo has no usable IPv4 address {EXISTING}"),
        (("--iface-can-reach=203.0.113.1",), (4,),
         f"no interface fits: --iface-can-reach 203.0.113.1: there is no route to it {EXISTING}"),
        (("--iface-can-reach=pods",), (4,), f"no interface fits: --iface-can-reach pods: not an IP address {EXISTING}"),
        (("--public-ip=pods",), (4,), "--public-ip 'pods' is not an IP address"),
        (("--public-ip=2001:db8::1",), (4,), "--public-ip 2001:db8::1 is not an IPv4 address"),
        (("--public-ip=224.0.0.1",), (4,), "--public-ip 224.0.0.1 is no unicast address that other nodes can reach"),
    ],
)  # fmt: skip
def test_refusals(words: tuple[str, ...], versions: tuple[int, ...], message: str) -> None:
    with pytest.raises(StartError) as error:
        choose(*words, versions=versions)
    assert str(error.value) == message


def test_without_a_default_route_the_interfaces_are_named() -> None:
    with pytest.raises(StartError) as error:
        choose(kernel=FakeKernel(default={4: None}))
    assert str(error.value) == (
        f"no interface fits: default route: there is no IPv4 default route: give --iface {EXISTING}"
    )


def test_default_routes_must_agree() -> None:
    with pytest.raises(StartError) as error:
        choose(versions=(4, 6), kernel=FakeKernel(default={4: "eth0", 6: "eth1"}))
    assert "v6 default route interface eth1 must be the same with v4 default route interface eth0" in str(error.value)
