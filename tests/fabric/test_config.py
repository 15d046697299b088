"""net-conf.json: flannel's defaults and messages, and nothing that a broken file could do beyond one line."""

import contextlib
import json
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import config
from fabric.config import Backend, ExtensionCommands
from fabric.errors import ConfigError


def conf(**fields: object) -> str:
    return json.dumps({"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}, **fields})


@pytest.mark.parametrize(
    ("network", "given", "expected"),
    [
        ("10.244.0.0/16", {}, (24, "10.244.1.0", "10.244.255.0")),
        ("10.244.0.0/22", {}, (24, "10.244.1.0", "10.244.3.0")),
        ("10.244.0.0/23", {}, (25, "10.244.0.128", "10.244.1.128")),
        ("10.244.0.0/28", {}, (30, "10.244.0.4", "10.244.0.12")),
        ("10.244.7.9/16", {}, (24, "10.244.1.0", "10.244.255.0")),
        ("10.244.0.0/16", {"SubnetLen": 26}, (26, "10.244.0.64", "10.244.255.192")),
        ("10.244.0.0/16", {"SubnetMin": "10.244.9.0", "SubnetMax": "10.244.11.0"}, (24, "10.244.9.0", "10.244.11.0")),
        ("10.244.0.0/16", {"SubnetMin": "0.0.0.0", "SubnetMax": ""}, (24, "10.244.1.0", "10.244.255.0")),
        ("10.244.0.0/16", {"SubnetLen": 0, "SubnetMin": None}, (24, "10.244.1.0", "10.244.255.0")),
    ],
)
def test_ipv4_range(network: str, given: dict[str, object], expected: tuple[int, str, str]) -> None:
    limits = config.parse(conf(Network=network, **given)).ipv4
    assert limits is not None
    assert (limits.subnet_len, str(IPv4Address(limits.minimum)), str(IPv4Address(limits.maximum))) == expected


@pytest.mark.parametrize(
    ("network", "given", "expected"),
    [
        ("fd00:10::/56", {}, (64, "fd00:10:0:1::", "fd00:10:0:ff::")),
        ("fd00:10::/62", {}, (64, "fd00:10:0:1::", "fd00:10:0:3::")),
        ("fd00:10::/63", {}, (65, "fd00:10:0:0:8000::", "fd00:10:0:1:8000::")),
        ("fd00:10::/124", {}, (126, "fd00:10::4", "fd00:10::c")),
        ("fd00:10::/56", {"IPv6SubnetLen": 80}, (80, "fd00:10:0:0:1::", "fd00:10:0:ff:ffff::")),
        ("fd00:10::/56", {"IPv6SubnetMin": "fd00:10:0:4::", "IPv6SubnetMax": "fd00:10:0:8::"},
         (64, "fd00:10:0:4::", "fd00:10:0:8::")),
    ],
)  # fmt: skip
def test_ipv6_range(network: str, given: dict[str, object], expected: tuple[int, str, str]) -> None:
    limits = config.parse(conf(EnableIPv6=True, IPv6Network=network, **given)).ipv6
    assert limits is not None
    assert (limits.subnet_len, str(IPv6Address(limits.minimum)), str(IPv6Address(limits.maximum))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: Expecting value (line 1, column 1)"),
        ("[]", "must be a JSON object"),
        ('{"Network":"10.244.0.0/16","Network":"10.245.0.0/16"}', "not valid JSON: key 'Network' is given twice"),
        ("[" * 100, "not valid JSON: nested deeper than 32"),
        ('{"Network":NaN}', "not valid JSON: NaN is not a JSON number"),
        ("{}", "please define a correct Network parameter in the flannel config"),
        (conf(Network=""), "please define a correct Network parameter in the flannel config"),
        (conf(Network="10.244.0.0"), "please define a correct Network parameter in the flannel config "
                                     "('10.244.0.0' is not an address prefix)"),
        (conf(Network="fd00::/48"), "please define a correct Network parameter in the flannel config "
                                    "('fd00::/48' is not an IPv4 network)"),
        (conf(SubnetLen=31), "SubnetLen must be less than /31"),
        (conf(SubnetLen=17), "network must be able to accommodate at least four subnets"),
        (conf(Network="10.244.0.0/29"), "network is too small. Minimum useful network prefix is /28"),
        (conf(SubnetMin="10.245.0.0"), "SubnetMin is not in the range of the Network"),
        (conf(SubnetMax="10.243.0.0"), "SubnetMax is not in the range of the Network"),
        (conf(SubnetMin="10.244.1.1"), "SubnetMin is not on a SubnetLen boundary: 10.244.1.1"),
        (conf(SubnetMax="10.244.1.7"), "SubnetMax is not on a SubnetLen boundary: 10.244.1.7"),
        (conf(SubnetMin="pods"), "SubnetMin is not an IP address: 'pods'"),
        (conf(SubnetLen="24"), "SubnetLen must be a whole number from 0 to 2147483648"),
        (conf(EnableIPv6=True), "please define a correct IPv6Network parameter in the flannel config"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/125"),
         "IPv6Network is too small. Minimum useful network prefix is /124"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetLen=127), "SubnetLen must be less than /127"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetLen=57),
         "network must be able to accommodate at least four subnets"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetMin="fe00::"),
         "IPv6SubnetMin is not in the range of the IPv6Network"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetMax="fe00::"),
         "IPv6SubnetMax is not in the range of the IPv6Network"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetMin="fd00:0:0:1::1"),
         "IPv6SubnetMin is not on a SubnetLen boundary: fd00:0:0:1::1"),
        (conf(EnableIPv6=True, IPv6Network="fd00::/56", IPv6SubnetMax="fd00:0:0:1::1"),
         "IPv6SubnetMax is not on a SubnetLen boundary: fd00:0:0:1::1"),
        (conf(EnableIPv6=True, IPv6Network="10.0.0.0/8"),
         "please define a correct IPv6Network parameter in the flannel config ('10.0.0.0/8' is not an IPv6 network)"),
        (conf(SubnetMin="10.244.9.0", SubnetMax="10.244.8.0"),
         "SubnetMin is above SubnetMax: no node could get a subnet"),
        (conf(EnableIPv4=False), "EnableIPv4 and EnableIPv6 are both false: enable one of them"),
        (conf(EnableIPv4="yes"), "EnableIPv4 must be true or false"),
        (conf(Backend="vxlan"), "Backend must be a JSON object"),
        (conf(Backend={"Type": "carrier-pigeon"}), "unknown backend type: carrier-pigeon"),
        (conf(Backend={"Type": 7}), "Backend.Type must be a string"),
        *((conf(Backend={"Type": name}),
           f'backend type "{name}" is not available in this version: '
           'use "vxlan", "udp", "host-gw", "alloc" or "extension"')
          for name in ("wireguard", "ipip", "ipsec", "tencent-vpc")),
        (conf(Backend={"Type": "vxlan", "VNI": 1 << 24}), "Backend.VNI must be a whole number from 0 to 16777215"),
        (conf(Backend={"Type": "vxlan", "VNI": 1.0}), "Backend.VNI must be a whole number from 0 to 16777215"),
        (conf(Backend={"Type": "vxlan", "Port": "8472"}), "Backend.Port must be a whole number from 0 to 65535"),
        (conf(Backend={"Type": "udp", "Port": 65536}), "Backend.Port must be a whole number from 0 to 65535"),
        (conf(Backend={"Type": "vxlan", "MTU": -1}), "Backend.MTU must be a whole number from 0 to 65535"),
        *((conf(Backend={"Type": "vxlan", name: 1}), f"Backend.{name} must be true or false")
          for name in ("GBP", "Learning", "DirectRouting")),
        (conf(Backend={"Type": "vxlan", "Datapath": "ebpf"}),
         'Backend.Datapath must be "user" or "kernel", not \'ebpf\''),
        (conf(Backend={"Type": "vxlan", "Datapath": 1}), 'Backend.Datapath must be "user" or "kernel", not \'1\''),
        (conf(Backend={"Type": "extension", "SubnetAddCommand": ["ip", "route"]}),
         "Backend.SubnetAddCommand must be a string"),
        (conf(Backend={"Type": "extension", "PreStartupCommand": "a\0b"}),
         "Backend.PreStartupCommand must be a string"),
        (conf(EnableNFTables="on"), "EnableNFTables must be true or false"),
        (conf(Backend={"Type": "udp"}, EnableIPv6=True, IPv6Network="fd00::/56"),
         'backend "udp" carries IPv4 only: set EnableIPv6 to false or use "vxlan"'),
    ],
)  # fmt: skip
def test_refused_with_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(text)
    assert str(error.value) == message


def test_keys_match_without_case_and_unknown_ones_are_ignored() -> None:
    found = config.parse('{"NETWORK":"10.244.0.0/16","backend":{"type":"VXLAN","vni":7},"Remark":[1]}')
    assert (found.backend.type, found.backend.vni, found.backend.port) == ("vxlan", 7, 8472)


def test_a_later_key_wins_whatever_its_case() -> None:
    """Go's decoder writes each matching key into the one field."""
    text = '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","vni":7,"VNI":8}}'
    assert config.parse(text).backend.vni == 8


@pytest.mark.parametrize("text", ['{"Network":"10.244.0.0/16"}', '{"Network":"10.244.0.0/16","Backend":null}',
                                  '{"Network":"10.244.0.0/16","Backend":{"Type":""}}'])  # fmt: skip
def test_without_a_type_the_backend_is_udp_as_in_flannel(text: str) -> None:
    backend = config.parse(text).backend
    assert (backend.type, backend.port) == ("udp", 8285)


VXLAN_DEFAULTS = Backend("vxlan", vni=1, port=8472, mtu=0, kernel=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"Type": "vxlan"}, VXLAN_DEFAULTS),
        ({"Type": "vxlan", "VNI": None, "Port": 0, "MTU": None, "Datapath": "user"}, VXLAN_DEFAULTS),
        ({"TYPE": "VxLan", "vni": 9, "PORT": 4789, "mtu": 1400, "DIRECTROUTING": True, "gbp": True, "learning": True,
          "DataPath": "Kernel"},
         Backend("vxlan", 9, 4789, 1400, kernel=True, direct_routing=True, gbp=True, learning=True)),
        ({"Type": "udp"}, Backend("udp", port=8285)),
        ({"Type": "udp", "Port": 9000, "MTU": 1400, "GBP": True}, Backend("udp", port=9000)),
        ({"Type": "host-gw"}, Backend("host-gw")),
        ({"Type": "host-gw", "VNI": 5}, Backend("host-gw", vni=5)),
        ({"Type": "alloc"}, Backend("alloc")),
        ({"Type": "extension"}, Backend("extension")),
        ({"Type": "extension", "PreStartupCommand": "pre", "postStartupCommand": "post x", "SUBNETADDCOMMAND": "add",
          "SubnetRemoveCommand": "rm"},
         Backend("extension", commands=ExtensionCommands("pre", "post x", "add", "rm"))),
    ],
)  # fmt: skip
def test_every_key_of_every_backend(given: dict[str, object], expected: Backend) -> None:
    assert config.parse(conf(Backend=given)).backend == expected


@pytest.mark.parametrize(
    ("given", "lease_type", "encapsulation", "ports"),
    [
        ({"Type": "vxlan", "Port": 4789}, "vxlan", "vxlan", {"vxlan": 4789, "udp": 8285}),
        ({"Type": "vxlan", "Datapath": "kernel"}, "vxlan", None, {"vxlan": 8472, "udp": 8285}),
        ({"Type": "udp", "Port": 9000}, "", "udp", {"vxlan": 8472, "udp": 9000}),
        ({"Type": "host-gw"}, "host-gw", None, {"vxlan": 8472, "udp": 8285}),
        ({"Type": "alloc"}, "", None, {"vxlan": 8472, "udp": 8285}),
        ({"Type": "extension"}, "extension", None, {"vxlan": 8472, "udp": 8285}),
    ],
)
def test_what_a_type_means_for_lease_and_data_path(
    given: dict[str, object], lease_type: str, encapsulation: str | None, ports: dict[str, int]
) -> None:
    backend = config.parse(conf(Backend=given)).backend
    assert (backend.lease_type, backend.encapsulation, backend.ports) == (lease_type, encapsulation, ports)


def test_switches_without_effect_are_named() -> None:
    given = {"Type": "vxlan", "GBP": True, "DirectRouting": True, "Learning": True}
    assert config.parse(conf(Backend=given)).warnings == (
        'Backend.GBP has an effect with "Datapath": "kernel" only: our data path carries no group policy id',
        'Backend.Learning has an effect with "Datapath": "kernel" only: '
        "our data path never learns addresses from the wire",
    )
    assert config.parse(conf(Backend={**given, "Datapath": "kernel"})).warnings == ()
    assert config.parse(conf(Backend={"Type": "vxlan", "GBP": False})).warnings == ()


# --- Kubernetes: the node's podCIDR decides ---


@pytest.mark.parametrize(
    "given",
    [
        {"SubnetLen": 31}, {"SubnetLen": 3}, {"SubnetMin": "10.99.0.0"}, {"SubnetMax": "10.244.1.7"},
        {"SubnetMin": "pods"}, {"SubnetLen": "24"}, {"Network": "10.244.0.0/29"}, {"Network": "10.244.0.0/32"},
        {"EnableIPv6": True, "IPv6Network": "fd00::/125", "IPv6SubnetLen": 127},
    ],
)  # fmt: skip
def test_without_the_check_only_networks_matter(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config.parse(conf(**given))
    found = config.parse(conf(**given), check=False)
    assert str(found.networks[0]) == given.get("Network", "10.244.0.0/16")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "please define a correct Network parameter in the flannel config"),
        (conf(EnableIPv6=True), "please define a correct IPv6Network parameter in the flannel config"),
        (conf(Backend={"Type": "ipsec"}), 'backend type "ipsec" is not available in this version'),
    ],
)
def test_without_the_check_the_rest_is_still_looked_at(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(text, check=False)


# --- MTU, names, addresses ---


@pytest.mark.parametrize(
    ("fields", "underlay", "mtu"),
    [
        ({}, 1500, 1450),
        ({}, 9000, 8950),
        ({"EnableIPv6": True, "IPv6Network": "fd00::/56"}, 1500, 1430),
        ({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00::/56"}, 1500, 1430),
        ({"Backend": {"Type": "udp"}}, 1500, 1472),
        ({"Backend": {"Type": "vxlan", "MTU": 1414}}, 1500, 1364),
        ({"Backend": {"Type": "vxlan", "Datapath": "kernel"}}, 1500, 1450),
        ({"Backend": {"Type": "vxlan", "MTU": 1414, "Datapath": "kernel"}, "EnableIPv6": True,
          "IPv6Network": "fd00::/56"}, 1500, 1344),
        ({"Backend": {"Type": "host-gw"}}, 1500, 1500),
        ({"Backend": {"Type": "host-gw"}, "EnableIPv6": True, "IPv6Network": "fd00::/56"}, 1500, 1500),
        ({"Backend": {"Type": "alloc"}}, 1500, 1500),
        ({"Backend": {"Type": "extension"}}, 9000, 9000),
    ],
)  # fmt: skip
def test_mtu_is_the_smallest_over_enabled_families(fields: dict[str, object], underlay: int, mtu: int) -> None:
    assert config.overlay_mtu(config.parse(conf(**fields)), underlay) == mtu


@pytest.mark.parametrize(
    ("fields", "mtu"),
    [
        ({}, 1450),
        ({"Backend": {"Type": "udp"}}, 1472),
        ({"Backend": {"Type": "host-gw"}}, 1450),
        ({"Backend": {"Type": "host-gw"}, "EnableIPv6": True, "IPv6Network": "fd00::/56"}, 1430),
        ({"Backend": {"Type": "vxlan", "MTU": 1400, "Datapath": "kernel"}}, 1350),
    ],
)
def test_the_node_port_of_a_type_without_tunnel_leaves_room_for_one(fields: dict[str, object], mtu: int) -> None:
    assert config.node_port_mtu(config.parse(conf(**fields)), 1500) == mtu


def test_device_names() -> None:
    def port(**backend: object) -> str:
        return config.node_port_name(config.parse(conf(Backend=backend)).backend)

    assert port(Type="vxlan") == port(Type="udp") == port(Type="host-gw") == "flannel.1"
    assert port(Type="vxlan", VNI=7) == "flannel.7"
    assert port(Type="vxlan", VNI=7, Datapath="kernel") == "fabric.7"
    assert [config.vxlan_device_name(7, version) for version in (4, 6)] == ["flannel.7", "flannel-v6.7"]


def test_host_gw_publishes_addresses_of_its_own_only() -> None:
    ours, other = ip_address("192.0.2.1"), ip_address("198.51.100.9")
    config.check_public(Backend("host-gw"), [ours], [ours])
    config.check_public(Backend("vxlan"), [ours], [other])
    with pytest.raises(ConfigError) as error:
        config.check_public(Backend("host-gw"), [ours], [other])
    assert str(error.value) == (
        'backend "host-gw" makes 198.51.100.9 the next hop of the peers, and it is not an address of this interface: '
        "leave --public-ip out, or use a backend with a tunnel where a NAT is in between"
    )


def test_an_mtu_too_small_for_ipv6_is_refused() -> None:
    dual = config.parse(conf(EnableIPv6=True, IPv6Network="fd00::/56"))
    with pytest.raises(ConfigError, match="an outer MTU of 1300 leaves 1230 bytes for pods, 1280 are needed"):
        config.overlay_mtu(dual, 1300)


def test_load_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net-conf.json"
    assert config.load(path, config.DEFAULT_TEXT).backend.type == "vxlan"
    with pytest.raises(ConfigError, match="no such file; give --net-config-path"):
        config.load(path, None)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"net-conf\.json: not valid JSON"):
        config.load(path, config.DEFAULT_TEXT)


BACKEND_KEYS = ["Type", "VNI", "Port", "MTU", "Datapath", "GBP", "SubnetAddCommand", "PreStartupCommand"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a1./: é\n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(BACKEND_KEYS), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["Network", "IPv6Network", "EnableIPv4", "EnableIPv6", "SubnetLen", "SubnetMin", "Backend"])
GOOD = st.sampled_from(["10.244.0.0/16", "fd00::/48", "10.244.3.0", {"Type": "vxlan"}, {"Type": "host-gw"}, 26, True])


@pytest.mark.slow
@given(st.dictionaries(KEYS, JSON | GOOD))
def test_any_object_is_accepted_or_refused(document: dict[str, object]) -> None:
    for check in (True, False):
        with contextlib.suppress(ConfigError):
            found = config.parse(json.dumps(document), check)
            config.node_port_mtu(found, 9000)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_one_line(data: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        config.parse(data)
    assert "\n" not in str(error.value)
