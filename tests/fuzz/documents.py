"""What the control side reads as text: leases, net-conf.json, subnet.env, and what comes to the CNI plugin.

`pass` and `refused` are all there is: a refusal is the reader's own error, one printable line. What passes is held
against what the reader promises.
"""

from __future__ import annotations

from collections.abc import Callable

from fabric import config, leases
from fabric.cni import config as cni_config
from fabric.cni import protocol, result, subnet_env
from fabric.cni.errors import CniError
from fabric.errors import ConfigError
from fabric.ipam import config as ipam_config
from fabric.ipam.errors import IPAMError
from fabric.leases import LeaseFormatError
from tests.fuzz.mutation import Mutator

Counts = dict[str, int]
KEYS = (b"10.244.1.0-24", b"10.244.1.0-24&2001:db8:1::-64", b"0.0.0.0-0&2001:db8:1::-64@node1")
VALUES = (
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}}',
    b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":'
    b'"12:c6:65:89:b4:e3"},"BackendV6Data":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}}',
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}',
    b'{"PublicIP":"192.0.2.1","PublicIPv6":null}',
)
NET_CONFS = (
    b'{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}',
    b'{"EnableIPv4":true,"Network":"10.244.0.0/16","SubnetLen":24,"SubnetMin":"10.244.1.0","SubnetMax":"10.244.99.0",'
    b'"EnableIPv6":true,"IPv6Network":"2001:db8::/48","IPv6SubnetLen":64,"IPv6SubnetMin":"2001:db8:0:1::",'
    b'"IPv6SubnetMax":"2001:db8:0:9::","EnableNFTables":true,'
    b'"Backend":{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1500,"GBP":true,"Learning":false,"DirectRouting":true}}',
    b'{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Port":8285}}',
    b'{"network":"10.244.0.0/16","backend":{"type":"extension","SubnetAddCommand":"ip route add"}}',
    b'{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Datapath":"kernel","VNI":1}}',
)
BACKEND_WORDS = (b'"wireguard"', b'"host-gw"', b'"alloc"', b'"udp"', b'"kernel"', b"16777216", b"65536", b"30", b"8")
SUBNET_ENVS = (
    b"FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    b"FLANNEL_NETWORK=10.244.0.0/16,10.10.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=2001:db8::/48\n"
    b"FLANNEL_IPV6_SUBNET=2001:db8:0:1::1/64\r\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
)
ENVIRONMENTS = (
    b"CNI_COMMAND=ADD\nCNI_CONTAINERID=cnitool-77383ca0a0715733ca6f\nCNI_NETNS=/run/netns/pod\nCNI_IFNAME=eth0\n"
    b"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1\nCNI_PATH=/opt/cni/bin:/usr/lib/cni",
    b"CNI_COMMAND=DEL\nCNI_CONTAINERID=1\nCNI_IFNAME=eth0\nCNI_NETNS_OVERRIDE=TRUE",
    b"CNI_COMMAND=GC\nCNI_PATH=/opt/cni/bin",
)
CNI_CONFS = (
    b'{"cniVersion":"1.1.0","name":"cbr0","type":"podfabric","mtu":1450,"ipam":{"type":"host-local","ranges":'
    b'[[{"subnet":"10.244.1.0/24","rangeStart":"10.244.1.10","gateway":"10.244.1.1"}],[{"subnet":"2001:db8:1::/64"}]],'
    b'"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1","mtu":1400}],"dataDir":"/run/x","resolvConf":"/etc/resolv.conf"},'
    b'"runtimeConfig":{"mac":"02:42:ac:11:00:02","ips":["10.244.1.9/24"]},"args":{"cni":{"ips":["10.244.1.8"]}}}',
    b'{"cniVersion":"1.0.0","name":"n","type":"flannel","delegate":{"isDefaultGateway":true},"prevResult":{"cniVersion":'
    b'"1.0.0","interfaces":[{"name":"eth0","mac":"02:42:ac:11:00:02","sandbox":"/run/netns/pod"}],"ips":[{"interface":0,'
    b'"address":"10.244.1.5/24","gateway":"10.244.1.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["192.0.2.53"]}}}',
    b'{"cniVersion":"0.2.0","name":"n","type":"t","prevResult":{"ip4":{"ip":"10.244.1.5/24","routes":[{"dst":"::/0"}]}},'
    b'"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}],"ipam":{"subnet":"10.244.1.0/28"}}',
)


def lease_values(seed: int, count: int) -> Counts:
    """Keys and values of a store; a lease that is taken is written and read back as the same."""
    key, value = Mutator(seed, KEYS), Mutator(seed + 1, VALUES)
    choose = Mutator(seed + 2, KEYS).below

    def one() -> None:
        name = key().decode("utf-8", "surrogateescape") if choose(4) == 0 else KEYS[choose(3)].decode()
        lease = leases.parse(name, value())
        for data in (lease.backend_data, lease.backend_v6_data):
            mac = leases.parse_mac(data)
            assert mac is None or (len(mac) == 6 and not mac[0] & 1)
        if choose(4) == 0:
            assert leases.key_of(lease.subnet, lease.ipv6_subnet, lease.node).partition("@")[0]
            written = leases.emit_value(lease)
            assert leases.emit_value(leases.parse(name, written)) == written

    return _run(one, LeaseFormatError, count)


def net_conf(seed: int, count: int) -> Counts:
    """The network configuration: ranges that hold at least one subnet, numbers that the wire and the kernel take."""
    text = Mutator(seed, NET_CONFS, BACKEND_WORDS)

    def one() -> None:
        conf = config.parse(text(), bool(text.below(4)))
        for limits in (conf.ipv4, conf.ipv6):
            assert limits is None or limits.minimum <= limits.maximum
        assert conf.networks
        assert 0 <= conf.backend.vni < 1 << 24
        assert 0 <= conf.backend.port < 1 << 16
        assert config.overlay_mtu(conf, 1500) >= 576

    return _run(one, ConfigError, count)


def subnet_file(seed: int, count: int) -> Counts:
    """`subnet.env` as the CNI plugin reads it."""
    text = Mutator(seed, SUBNET_ENVS, (b"FLANNEL_MTU", b"FLANNEL_SUBNET", b"0000145099", b"67", b"65536", b"10.1.1/33"))

    def one() -> None:
        found = subnet_env.parse(text().decode("ascii", "replace"))
        assert found.subnets
        assert found.networks
        assert 68 <= found.mtu <= 65535

    return _run(one, ValueError, count)


def cni_environment(seed: int, count: int) -> Counts:
    """The variables with which a runtime starts the plugin."""
    text = Mutator(seed, ENVIRONMENTS, (b"CHECK", b"STATUS", b"VERSION", b"..", b"all", b"x" * 201, b";"))

    def one() -> None:
        lines = text().decode("utf-8", "surrogateescape").split("\n")
        request = protocol.parse_environment(dict(line.partition("=")[::2] for line in lines))
        if request.command in ("ADD", "DEL", "CHECK"):
            assert "/" not in request.ifname
            assert protocol.is_name(request.container_id)
        protocol.parse_args(request.args)

    return _run(one, CniError, count)


def cni_input(seed: int, count: int) -> Counts:
    """The configuration on stdin: our keys, the result of the plugin before us, the addresses' part."""
    text = Mutator(seed, CNI_CONFS, (b'"1.1.0"', b'"0.1.0"', b'"IP=10.244.1.7"', b'"mac"', b'"ips"', b"1400"))

    def one() -> None:
        document, version = cni_config.parse(text())
        conf = cni_config.load(document)
        assert protocol.version_answer(version)["cniVersion"]
        assert conf.mtu() == 0 or 68 <= conf.mtu() <= 65535
        cni_config.wanted_mac(conf, "")
        if "prevresult" in conf.folded:
            found = result.parse(conf.folded["prevresult"])
            assert result.parse(result.emit(found, protocol.NEWEST)) == found
        ipam_config.requested(document)
        assert ipam_config.load(document).range_sets

    return _run(one, (CniError, IPAMError), count)


def _run(one: Callable[[], None], refusal: type[Exception] | tuple[type[Exception], ...], count: int) -> Counts:
    refused = 0
    for _ in range(count):
        try:
            one()
        except refusal as error:
            refused += 1
            if refused % 8 == 0:
                check_line(error)
    return {"pass": count - refused, "refused": refused}


def check_line(error: Exception) -> None:
    """A refusal is one line that a terminal can show."""
    if not str(error).isprintable():
        raise AssertionError(f"not one line: {error!r}")
