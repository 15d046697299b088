"""Names and values of annotations are flannel's, byte for byte."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from fabric.errors import ConfigError
from fabric.model import Lease
from fabric.store.kube import annotate

N = annotate.names()
F = "flannel.alpha.coreos.com/"
DATA = {"VNI": 1, "VtepMAC": "12:c6:65:89:b4:e3"}
DATA6 = {"VNI": 1, "VtepMAC": "da:5e:45:9f:12:73"}


@pytest.mark.parametrize(
    ("prefix", "backend_type"),  # flannel pkg/subnet/kube/annotations_test.go
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/backend-type"),
        ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-backend-type"),
        ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-backend-type"),
        ("org9.com", "org9.com/backend-type"),
        ("org.com/9", "org.com/9-backend-type"),
        ("a_b.c-d.e/x_y", "a_b.c-d.e/x_y-backend-type"),
    ],
)
def test_prefixes(prefix: str, backend_type: str) -> None:
    assert annotate.names(prefix).backend_type == backend_type


@pytest.mark.parametrize(
    "prefix", ["", "org", "org/", "org/prefix", "org.COM", "org.com/PREFIX", "org.com/a.b", "org.com/x\n", "org.com\n"]
)
def test_prefixes_that_flannel_refuses(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"^subnet/kube: prefix must be in a format: fqdn/\[0-9a-z-_\]\*$"):
        annotate.names(prefix)


def test_a_prefix_has_at_most_one_slash() -> None:
    with pytest.raises(ConfigError, match=r"^subnet/kube: prefix can contain at most single slash$"):
        annotate.names("org.com/a/b")


def lease(kind: str, v4: str = "", v6: str = "", data: Any = None, data6: Any = None) -> Lease:
    return Lease(
        IPv4Network("10.244.1.0/24"),
        IPv6Network("2001:db8:1::/64") if v6 else None,
        IPv4Address(v4) if v4 else None,
        IPv6Address(v6) if v6 else None,
        kind,
        data,
        data6,
    )


COMMON = {F + "kube-subnet-manager": "true"}
V4 = {F + "backend-data": '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', F + "public-ip": "192.0.2.1"}
V6 = {F + "backend-v6-data": '{"VNI":1,"VtepMAC":"da:5e:45:9f:12:73"}', F + "public-ipv6": "2001:db8::1"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (lease("vxlan", "192.0.2.1", "", DATA), {F + "backend-type": "vxlan", **V4}),
        (lease("vxlan", "192.0.2.1", "2001:db8::1", DATA, DATA6), {F + "backend-type": "vxlan", **V4, **V6}),
        (lease("vxlan", "", "2001:db8::1", None, DATA6), {F + "backend-type": "vxlan", **V6}),
        (lease("host-gw", "192.0.2.1"), {F + "backend-type": "host-gw", F + "backend-data": "null",
                                         F + "public-ip": "192.0.2.1"}),
        (lease("host-gw", "192.0.2.1", "2001:db8::1"),
         {F + "backend-type": "host-gw", F + "backend-data": "null", F + "public-ip": "192.0.2.1",
          F + "backend-v6-data": "null", F + "public-ipv6": "2001:db8::1"}),
        (lease("", "192.0.2.1"), {F + "backend-type": "", F + "backend-data": "null", F + "public-ip": "192.0.2.1"}),
        (lease("extension", "192.0.2.1", "", "a key"),
         {F + "backend-type": "extension", F + "backend-data": '"a key"', F + "public-ip": "192.0.2.1"}),
        (lease("wireguard", "192.0.2.1", "", None), {F + "backend-type": "wireguard"}),
    ],
)  # fmt: skip
def test_what_is_published(own: Lease, expected: Mapping[str, str]) -> None:
    assert annotate.published(N, own, {}) == COMMON | dict(expected)


def test_an_overwrite_wins_unless_it_is_no_address() -> None:
    own = lease("vxlan", "192.0.2.1", "2001:db8::1", DATA, DATA6)
    found = {F + "public-ip-overwrite": "203.0.113.9", F + "public-ipv6-overwrite": "2001:DB8::9"}
    wanted = annotate.published(N, own, found)
    assert (wanted[F + "public-ip"], wanted[F + "public-ipv6"]) == ("203.0.113.9", "2001:DB8::9")
    for bad in ("", "nonsense", "2001:db8::9", "203.0.113.9/24", "203.0.113.9%eth0"):
        assert annotate.published(N, own, {F + "public-ip-overwrite": bad})[F + "public-ip"] == "192.0.2.1"


def test_only_what_differs_is_written() -> None:
    own = lease("vxlan", "192.0.2.1", "", DATA)
    wanted = annotate.published(N, own, {})
    assert annotate.differing(wanted, {**wanted, "other": "x"}) == {}
    assert annotate.differing(wanted, {**wanted, F + "public-ip": "192.0.2.9"}) == {F + "public-ip": "192.0.2.1"}


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ('{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}', "12c66589b4e3"),
        ('{"VtepMAC":"12:c6:65:89:b4:e3","VNI":1,"More":"x"}', "12c66589b4e3"),
        ('{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}', ""),
        ("null", ""),
        ("{", ""),
        ("[" * 200, ""),
    ],
)
def test_macs_read_back(text: str, mac: str) -> None:
    found = annotate.stored_macs(N, {F + "backend-data": text, F + "backend-v6-data": text})
    assert found == ({4: bytes.fromhex(mac), 6: bytes.fromhex(mac)} if mac else {})
