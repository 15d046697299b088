"""subnet.env as a plugin reads it, and the delegate's configuration that flannel's plugin makes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cni.config import load
from fabric.cni.errors import CniError
from fabric.cni.flannel import render
from fabric.cni.subnet_env import parse, read
from tests.fabric.cni.codes import code_of

V4 = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
DUAL = V4 + "FLANNEL_IPV6_NETWORK=2001:db8:42::/48\nFLANNEL_IPV6_SUBNET=2001:db8:42:1::1/64\n"


def test_both_families() -> None:
    env = parse(DUAL)
    assert [str(network) for network in env.networks] == ["10.244.0.0/16", "2001:db8:42::/48"]
    assert [str(subnet) for subnet in env.subnets] == ["10.244.1.1/24", "2001:db8:42:1::1/64"]
    assert (env.mtu, env.ip_masq) == (1450, True)
    assert parse(V4.replace("true", "false")).ip_masq is False


def test_several_networks_each_once_and_other_lines_passed_over() -> None:
    text = V4.replace("10.244.0.0/16", "10.244.0.0/16,10.4.0.0/16,10.244.0.0/16")
    text = "# comment\r\nOTHER=1\n\n" + text.replace("\n", "\r\n")
    assert [str(network) for network in parse(text).networks] == ["10.244.0.0/16", "10.4.0.0/16"]


MISSING = {
    "FLANNEL_NETWORK": "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK",
    "FLANNEL_SUBNET": "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU": "FLANNEL_MTU",
    "FLANNEL_IPMASQ": "FLANNEL_IPMASQ",
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_listed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("".join(f"{line}\n" for line in V4.splitlines() if not line.startswith(f"{name}=")))
    with pytest.raises(CniError, match=f"it is missing {MISSING[name]}.*fabricd") as caught:
        read(str(path))
    assert caught.value.code == 7


def test_while_there_is_none_the_runtime_is_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(CniError, match=r"failed to load flannel 'subnet\.env' file: open .*No such file") as caught:
        read(str(tmp_path / "subnet.env"))
    assert caught.value.code == 11


def test_every_truncation_is_an_error_or_means_the_same(tmp_path: Path) -> None:
    """A file cut short gives no other IPv4 addresses and no other MTU, although nothing marks its end."""
    path = tmp_path / "subnet.env"
    whole = parse(DUAL)
    for length in range(len(DUAL)):
        path.write_text(DUAL[:length])
        assert code_of(lambda: read(str(path))) in (0, 7)
        with contextlib.suppress(CniError):
            found = read(str(path))
            assert (found.subnet, found.mtu) == (whole.subnet, whole.mtu)


@given(st.text(max_size=80), st.integers(0, len(DUAL)))
def test_any_text_is_read_or_refused(extra: str, position: int) -> None:
    with contextlib.suppress(ValueError):
        found = parse(DUAL[:position] + extra + DUAL[position:])
        assert (68 <= found.mtu <= 65535, bool(found.networks), bool(found.subnets)) == (True, True, True)


def rendered(text: str = DUAL, **conf: Any) -> dict[str, Any]:
    return render(load({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", **conf}), parse(text))


def test_the_delegates_configuration_has_what_flannel_fills_in() -> None:
    assert rendered(delegate={"hairpinMode": True, "isDefaultGateway": True}, runtimeConfig={"mac": "x"}) == {
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": True,
        "isDefaultGateway": True,
        "isGateway": True,
        "ipMasq": False,
        "mtu": 1450,
        "runtimeConfig": {"mac": "x"},
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "2001:db8:42:1::/64"}]],
            "routes": [{"dst": "10.244.0.0/16"}, {"dst": "2001:db8:42::/48"}],
        },
    }


def test_what_the_configuration_says_wins_over_what_is_filled_in() -> None:
    delegate = {"type": "bridge", "ipMasq": True, "mtu": 1300, "isGateway": False}
    found = rendered(V4, delegate=delegate)
    assert {key: found[key] for key in delegate} == delegate
    assert rendered(V4.replace("=true", "=false"))["ipMasq"] is True, "if flannel is not doing it, the delegate should"
    assert "isGateway" not in rendered(V4, delegate={"type": "ipvlan"})


def test_ipam_keeps_its_type_and_routes_but_not_its_ranges() -> None:
    ipam = {
        "type": "x-ipam",
        "dataDir": "/d",
        "ranges": [[{"subnet": "192.0.2.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    assert rendered(V4, ipam=ipam)["ipam"] == {
        "type": "x-ipam",
        "dataDir": "/d",
        "ranges": [[{"subnet": "10.244.1.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.244.0.0/16"}],
    }


REFUSED = [
    ({"delegate": {"type": 3}}, r"must have \(string\) 'type' field"),
    ({"delegate": {"name": "x"}}, "must not have 'name' field"),
    ({"delegate": {"ipam": {}}}, "must not have 'ipam' field"),
    ({"delegate": "bridge"}, "delegate must be an object"),
    ({"delegate": {"type": "../bridge"}}, None),
    ({"ipam": {"routes": "x"}}, "failed to parse routes"),
    ({"ipam": {"routes": [{"dst": "x"}]}}, "failed to parse routes"),
]


@pytest.mark.parametrize(("conf", "text"), REFUSED, ids=range(len(REFUSED)))
def test_a_bad_delegate_is_refused_in_flannels_words(conf: dict[str, Any], text: str | None) -> None:
    with pytest.raises(CniError, match=text or "type must be the name of a plugin") as caught:
        load(rendered(V4, **conf))
    assert caught.value.code == 7


@pytest.mark.parametrize("mtu", ["0000145099", "145099", "67", "65536", "1" * 5000])
def test_an_mtu_out_of_range_is_refused_however_long_it_is(mtu: str) -> None:
    with pytest.raises(ValueError, match="FLANNEL_MTU"):
        parse(V4.replace("1450", mtu))
