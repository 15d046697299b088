"""The sections of a CNI result."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from fabric.ipam import allocator
from fabric.ipam.config import Route
from fabric.ipam.errors import IO_FAILURE, IPAMError
from fabric.ipam.result import Dns, IPConfig, parse_resolv_conf, render
from tests.fabric.ipam.plugin import document, ours, reference

IPS = (
    IPConfig(ip_interface("10.244.1.2/24"), ip_address("10.244.1.1")),
    IPConfig(ip_interface("2001:db8::2/64"), ip_address("2001:db8::1")),
)
ROUTES = (
    Route("10.244.0.0/16"),
    Route("0.0.0.0/0", ip_address("10.244.1.1"), (("mtu", 1450), ("table", 0))),
)


def test_everything() -> None:
    dns = Dns(("192.0.2.53",), "example.org", ("a.example", "b.example"), ("ndots:5",))
    assert render(IPS, ROUTES, dns, "1.1.0") == {
        "ips": [
            {"address": "10.244.1.2/24", "gateway": "10.244.1.1"},
            {"address": "2001:db8::2/64", "gateway": "2001:db8::1"},
        ],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1450, "table": 0}],
        "dns": {
            "nameservers": ["192.0.2.53"],
            "domain": "example.org",
            "search": ["a.example", "b.example"],
            "options": ["ndots:5"],
        },
    }


@pytest.mark.parametrize(("version", "families"), [("0.3.0", ["4", "6"]), ("0.4.0", ["4", "6"]), ("1.0.0", [None] * 2)])
def test_old_results_name_the_family(version: str, families: list[str | None]) -> None:
    assert [item.get("version") for item in render(IPS, (), Dns(), version)["ips"]] == families


def test_empty_sections_are_left_out() -> None:
    assert list(render(IPS, (), Dns(), "1.1.0")) == ["ips"]


RESOLV_CONF = """
# nameserver 192.0.2.1
; nameserver 192.0.2.2
nameserver 192.0.2.53  trailing words
nameserver
 nameserver\t2001:db8::53
domain one.example
domain two.example
search a.example b.example\r
search c.example
options ndots:5 timeout:1
options rotate
sortlist 192.0.2.0
Nameserver 192.0.2.3
"""


def test_resolver_files_are_read_as_the_reference_does(tmp_path: Path) -> None:
    assert parse_resolv_conf(RESOLV_CONF) == Dns(
        ("192.0.2.53", "2001:db8::53"),
        "two.example",
        ("a.example", "b.example", "c.example"),
        ("ndots:5", "timeout:1", "rotate"),
    )
    (tmp_path / "resolv.conf").write_text(RESOLV_CONF)
    found = [
        call("ADD", document(tmp_path / name, "10.244.1.0/24", resolvConf=str(tmp_path / "resolv.conf")), "pod-1")
        for name, call in (("reference", reference), ("ours", ours))
    ]
    assert found[0].result == found[1].result
    assert "dns" in found[0].result


def test_a_resolver_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, "/a\0b"):
        with pytest.raises(IPAMError) as error:
            allocator.read_dns(str(path))
        assert error.value.code == IO_FAILURE
    assert allocator.read_dns("") == Dns()
