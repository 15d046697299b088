"""The TAP of tunnel-GSO transmit: whether it can help here, and its set-up (`inject` says how it is used).

A rule at the TAP's ingress hook sends its frames out by the underlay interface, to neighbours on its link. So neither
the host's routing nor its firewall has a part in it, and no forwarding has to be enabled.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING

from routes import lookup, sysctls
from tun.device import Kind, create
from tun.offload import Features
from tun.virtio import TUNNEL_HEADER_SIZE

if TYPE_CHECKING:
    from fabric.traffic.redirect import Redirect

SIOCETHTOOL = 0x8946
ETHTOOL_GSSET_INFO = 0x37
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GFEATURES = 0x3A
ETH_SS_FEATURES = 4
STRING = 32

IPInterface = IPv4Interface | IPv6Interface


def passes_tunnel_superframes(interface: str) -> bool:
    """Whether the device takes UDP-tunnel superframes with outer checksums unsegmented (ethtool -k)."""
    try:
        active = _active_features(interface)
    except OSError:
        return False
    return {"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"} <= active


def _ethtool(sock: socket.socket, interface: str, data: array.array[int]) -> None:
    request = struct.pack("16sQ16x", interface.encode(), data.buffer_info()[0])
    fcntl.ioctl(sock, SIOCETHTOOL, request)


def _active_features(interface: str) -> set[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        info = array.array("B", struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
        _ethtool(sock, interface, info)
        count = struct.unpack("=IIQI", info.tobytes())[3]
        head = struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count)
        strings = array.array("B", head + bytes(STRING * count))
        _ethtool(sock, interface, strings)
        names = strings.tobytes()[12:]
        words = (count + 31) // 32
        features = array.array("B", struct.pack("=II", ETHTOOL_GFEATURES, words) + bytes(16 * words))
        _ethtool(sock, interface, features)
    blocks = features.tobytes()[8:]
    active = {}
    for i in range(count):
        # struct ethtool_get_features_block: available, requested, active, never_changed.
        word = struct.unpack_from("=I", blocks, 16 * (i // 32) + 8)[0]
        active[names[STRING * i : STRING * (i + 1)].rstrip(b"\0").decode()] = bool(word >> (i % 32) & 1)
    return {name for name, on in active.items() if on}


def is_virtual(interface: str) -> bool:
    """Whether no hardware is behind the device, as with a veth: what it passes on unsegmented stays on this machine."""
    return not Path(f"/sys/class/net/{interface}/device").exists()


def on_link(interface: str) -> list[IPInterface]:
    """What can be reached by neighbour lookup on the interface: its addresses with their prefix lengths."""
    return [item.interface for item in lookup.interface_addresses(interface)]


class TunnelTap:
    """The TAP, up, without addresses, and the rule that sends its frames out by `interface`. `mac` is its own.

    Raises DeviceError (kernel older than 6.17, taken name) or OSError (nftables or sysctls refuse); nothing is left
    then.
    """

    def __init__(self, name: str, interface: str) -> None:
        self._redirect: Redirect | None = None
        self._target = 0  # the interface's index: another of its name is another interface
        self.device = create(name, Kind.TAP, allowed=Features.ALL, header_size=TUNNEL_HEADER_SIZE)
        try:
            ipv6 = sysctls.root() / "net/ipv6/conf" / name
            if ipv6.exists():
                (ipv6 / "accept_ra").write_text("0")
                (ipv6 / "addr_gen_mode").write_text("1")
            self.aim(interface)
            self.device.up = True
            self.mac = self.device.mac
        except BaseException:
            self.device.close()
            raise

    def aims_at(self, interface: str) -> bool:
        """Whether frames leave by the device that has this name now. Raises OSError when there is none."""
        return socket.if_nametoindex(interface) == self._target

    def aim(self, interface: str) -> None:
        """From now on frames leave by this device. Raises OSError; they go nowhere then."""
        from fabric.traffic.redirect import Redirect  # 30 ms of processor time, and seldom needed

        if self._redirect is not None:
            self._redirect.close()
            self._redirect, self._target = None, 0
        index = socket.if_nametoindex(interface)
        self._redirect = Redirect(self.device.name, index)
        self._target = index

    def close(self) -> None:
        """Both go."""
        if self._redirect is not None:
            self._redirect.close()
        self.device.close()
