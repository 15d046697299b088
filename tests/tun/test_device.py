"""Devices in namespaces of their own: making, limits, hand-over, faults and their texts."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tun.conftest import Namespace, PacketPeer, tcp_superframe, udp_frame, wait_for
from tun import device as devices
from tun import errors, link
from tun.device import Device, Kind, adopt, attach, check_name, create, create_in_netns
from tun.errors import DeviceError, PortGone
from tun.netns import enter, open_netns, run_in_netns, same_netns
from tun.offload import Features
from tun.port import DevicePort
from tun.virtio import TunnelVnetHeader
from tun.vnet import VnetHeader


@pytest.mark.parametrize("name", ["a", "flannel.1", "x" * 15, "é" * 7, "tun-0_1"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "empty"),
        ("x" * 16, "16 bytes, at most 15"),
        ("é" * 8, "16 bytes, at most 15"),
        ("a/b", "invalid character '/'"),
        ("a:b", "invalid character ':'"),
        ("a b", "invalid character ' '"),
        ("tun%d", "invalid character '%'"),
        ("a\0b", "invalid character"),
        ("..", "reserved"),
        ("all", "reserved"),
    ],
)
def test_bad_names(name: str, text: str) -> None:
    with pytest.raises(DeviceError, match=text) as caught:
        create(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("queues", "size"), [(0, 10), (257, 10), (1, 12)])
def test_bad_shape(queues: int, size: int) -> None:
    with pytest.raises(DeviceError, match="queues"):
        create("fab0", queues=queues, header_size=size)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOENT, "no /dev/net/tun; load the module: modprobe tun"),
        (errno.ENODEV, "no /dev/net/tun"),
        (errno.EPERM, "permission denied; run as root, or with CAP_NET_ADMIN"),
        (errno.EACCES, "permission denied"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_refused_creation_says_why(number: int, text: str) -> None:
    error = errors.create_error("fab0", OSError(number, os.strerror(number)))
    assert text in str(error)
    assert (error.which, error.errno) == ("fab0", number)


def test_no_tun_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "TUN_PATH", str(tmp_path / "tun"))
    with pytest.raises(DeviceError, match="modprobe tun"):
        create("fab0")


@pytest.mark.root
def test_no_privilege(namespace: Namespace) -> None:
    code = "from tun.device import create\ntry: create('fab0')\nexcept Exception as error: print(error)"
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"]
    text = namespace.command(*command, sys.executable, "-c", code)
    assert text.startswith("cannot create device fab0: permission denied; run as root")


@pytest.mark.root
@pytest.mark.parametrize("kind", list(Kind))
def test_created_as_asked(namespace: Namespace, kind: Kind) -> None:
    with namespace.run(lambda: create("flannel.1", kind, mtu=1450, up=True)) as device:
        assert (device.name, device.kind, device.mtu, device.txqueuelen, device.up) == (
            "flannel.1",
            kind,
            1450,
            1000,
            True,
        )
        assert (device.persistent, device.header_size, device.features) == (False, 10, Features.ALL)
        shown = namespace.command("ip", "-d", "link", "show", "flannel.1")
        assert f"tun type {kind.name.lower()} pi off vnet_hdr on persist off" in shown
        assert "mtu 1450" in shown
        assert "qlen 1000" in shown
        assert "UP" in shown
    assert not namespace.run(lambda: link.exists("flannel.1"))


@pytest.mark.root
def test_settings_reach_a_device_in_another_namespace(namespace: Namespace) -> None:
    with namespace.run(lambda: create("fab0")) as device:
        device.mtu = 9000
        device.txqueuelen = 77
        device.up = True
        found = namespace.run(lambda: (link.get_mtu("fab0"), link.get_txqueuelen("fab0"), link.is_up("fab0")))
        assert found == (9000, 77, True)
        device.up = False
        assert not device.up


@pytest.mark.root
def test_bad_mtu_is_refused_and_leaves_nothing(namespace: Namespace) -> None:
    with pytest.raises(DeviceError, match=r"cannot set MTU 70000 on fab0: out of range; a TUN takes 68 to 65535"):
        namespace.run(lambda: create("fab0", mtu=70000, persist=True))
    assert not namespace.run(lambda: link.exists("fab0"))


@pytest.mark.root
def test_rename_is_followed(namespace: Namespace) -> None:
    with namespace.run(lambda: create("fab0")) as device:
        namespace.command("ip", "link", "set", "fab0", "name", "fab1")
        assert device.name == "fab1"
        device.mtu = 1400
        assert device.mtu == 1400


@pytest.mark.root
@pytest.mark.parametrize("queues", [1, 2])
def test_second_opener_is_told_who_holds_it(namespace: Namespace, queues: int) -> None:
    with namespace.run(lambda: create("fab0", queues=queues)):
        for again in (lambda: create("fab0"), lambda: attach("fab0")):
            with pytest.raises(DeviceError, match=rf"taken by another process \(pid {os.getpid()} ") as caught:
                namespace.run(again)
            assert caught.value.errno == errno.EBUSY


@pytest.mark.root
def test_name_of_another_sort_of_device(namespace: Namespace) -> None:
    with pytest.raises(DeviceError, match="device of another sort"):
        namespace.run(lambda: create("lo"))
    with pytest.raises(DeviceError, match="not a TUN or TAP"):
        namespace.run(lambda: attach("lo"))
    with pytest.raises(DeviceError, match="no such device"):
        namespace.run(lambda: attach("fab0"))


@pytest.mark.root
@pytest.mark.parametrize("queues", [1, 2])
def test_persistence(namespace: Namespace, queues: int) -> None:
    first = namespace.run(lambda: create("fab0", queues=queues, mtu=1400, persist=True))
    assert first.persistent
    first.close()
    with pytest.raises(DeviceError, match="held by nobody; attach to it, or remove it: ip link del fab0"):
        namespace.run(lambda: create("fab0"))
    with namespace.run(lambda: attach("fab0", queues=queues)) as second:
        assert (second.kind, second.mtu, second.features, second.persistent) == (Kind.TUN, 1400, Features.ALL, True)
        assert len(second.fds) == queues
        second.persist(False)
    assert not namespace.run(lambda: link.exists("fab0"))


@pytest.mark.root
def test_attach_checks_the_queues(namespace: Namespace) -> None:
    namespace.run(lambda: create("fab0", Kind.TAP, persist=True)).close()
    with pytest.raises(DeviceError, match="no multi-queue device, 2 queues"):
        namespace.run(lambda: attach("fab0", queues=2))
    with namespace.run(lambda: attach("fab0")) as device:
        assert device.kind == Kind.TAP


@pytest.mark.root
def test_two_queues_carry_all_frames(namespace: Namespace) -> None:
    with (
        namespace.run(lambda: create("fab0", queues=2, up=True)) as device,
        PacketPeer(namespace, device) as peer,
    ):
        sent = set()
        for port in range(64):  # many flows, so that the kernel spreads them
            frame = udp_frame(bytes([port]))
            frame = frame[:20] + struct.pack("!H", 5000 + port) + frame[22:]
            peer.inject(frame)
            sent.add(frame)
        queues = [DevicePort(device, queue) for queue in range(2)]
        got = [[frame for _, frame in queue.read_batch(100)] for queue in queues]
        assert set(got[0]) | set(got[1]) == sent
        assert len(got[0]) + len(got[1]) == 64
        for queue in queues:
            queue.write_batch([(VnetHeader(), udp_frame(b"back"))])
            assert peer.take(5.0) is not None


@pytest.mark.root
def test_device_down_is_eio(namespace: Namespace) -> None:
    with namespace.run(lambda: create("fab0")) as device:
        with pytest.raises(OSError, match="Input/output error") as caught:
            os.write(device.fds[0], bytes(10) + udp_frame(b""))
        assert caught.value.errno == errno.EIO
        with pytest.raises(DeviceError, match="device is down; bring it up"):
            DevicePort(device).write_batch([(VnetHeader(), udp_frame(b""))])


@pytest.mark.root
def test_deleted_device_is_ebadfd(namespace: Namespace) -> None:
    with namespace.run(lambda: create("fab0", up=True)) as device:
        namespace.command("ip", "link", "del", "fab0")
        for call in (lambda: os.read(device.fds[0], 100), lambda: os.write(device.fds[0], bytes(38))):
            with pytest.raises(OSError, match="bad state") as caught:
                call()
            assert caught.value.errno == errno.EBADFD
        poll = select.poll()
        poll.register(device.fds[0], select.POLLIN)
        assert poll.poll(0)[0][1] & select.POLLERR
        with pytest.raises(PortGone, match="fab0: the device was deleted; make it again"):
            _ = device.mtu
        with pytest.raises(PortGone, match="its device is gone"):
            adopt(device.fds)
        assert device.name == "fab0"


@pytest.mark.root
def test_closed_device_is_gone(namespace: Namespace) -> None:
    device = namespace.run(lambda: create("fab0"))
    device.close()
    device.close()
    assert device.fds == []
    with pytest.raises(PortGone, match="closed"):
        device.persist(True)


@pytest.mark.root
def test_pod_device_appears_in_the_pod_and_nowhere_else(make_namespace: Callable[[], Namespace]) -> None:
    host, pod = make_namespace(), make_namespace()
    with host.run(lambda: create_in_netns(pod.path, "eth0", mtu=1450, up=True)) as device:
        assert (device.name, device.mtu, device.up, device.features) == ("eth0", 1450, True, Features.ALL)
        assert pod.run(lambda: link.tun_info("eth0")) is not None
        assert host.command("ip", "-o", "link").count("\n") == 1  # lo
        header, frame = tcp_superframe(bytes(5000), 1398)
        with PacketPeer(pod, device) as peer:
            peer.inject(frame, header)
        assert [got for _, got in DevicePort(device).read_batch(2)] == [frame]
        with pytest.raises(DeviceError, match=r"as eth0 .*the name is taken there"):
            host.run(lambda: create_in_netns(pod.path, "eth0"))
        assert host.command("ip", "-o", "link").count("\n") == 1


@pytest.mark.root
def test_pod_namespace_is_not_kept_alive(make_namespace: Callable[[], Namespace]) -> None:
    host, pod = make_namespace(), make_namespace()
    with host.run(lambda: create_in_netns(pod.path, "eth0", up=True)) as device:
        pod.delete()
        poll = select.poll()
        poll.register(device.fds[0], 0)
        assert wait_for(lambda: poll.poll(100))[0][1] & select.POLLERR
        with pytest.raises(PortGone):
            _ = device.up


@pytest.mark.root
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/netns/fabtest-none", "there is no such namespace"),
        ("/proc/self/ns/mnt", "namespace of another kind"),
        (__file__, "ordinary file"),
        (987654, "Bad file descriptor"),
    ],
)
def test_bad_namespace_is_refused_before_anything_is_made(path: str | int, text: str) -> None:
    with pytest.raises(DeviceError, match=text):
        create_in_netns(path, "eth0")


@pytest.mark.root
def test_run_in_netns(namespace: Namespace) -> None:
    fd = open_netns(namespace.path)
    assert not same_netns(fd)
    assert run_in_netns(fd, lambda: same_netns(fd))
    assert not same_netns(fd)  # the caller did not move
    with enter(namespace.path) as inside:
        assert inside.run(socket.if_nameindex) == [(1, "lo")]
        with pytest.raises(ZeroDivisionError):
            inside.run(lambda: 1 // 0)
        assert inside.run(lambda: same_netns(fd))
    os.close(fd)


CHILD = """
import os, socket, sys
from tun.device import adopt
from tun.port import DevicePort
channel = socket.socket(fileno=int(sys.argv[1]))
_, fds, _, _ = socket.recv_fds(channel, 10, 4)
device = adopt(fds)
channel.send(f"{device.name} {device.kind.name} {len(device.fds)} {device.header_size} {int(device.features)}".encode())
channel.recv(1)
ports = [DevicePort(device, queue) for queue in range(len(device.fds))]
channel.send(str(sum(port.write_batch(port.read_batch(10)) for port in ports)).encode())
channel.recv(1)
"""


@pytest.mark.root
@pytest.mark.parametrize("queues", [1, 2])
def test_handed_to_another_process(namespace: Namespace, queues: int) -> None:
    """Queues travel by SCM_RIGHTS; the device and its waiting frames outlive the first holder."""
    device = namespace.run(lambda: create("fab0", queues=queues, up=True))
    frame = udp_frame(b"waiting")
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    command = [sys.executable, "-c", CHILD, str(theirs.fileno())]
    with (
        device,
        ours,
        theirs,
        PacketPeer(namespace, device) as peer,
        subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child,
    ):
        socket.send_fds(ours, [b"fds"], device.fds)
        assert ours.recv(100).decode() == f"fab0 TUN {queues} 10 7"
        for _ in range(3):
            peer.inject(frame)
        device.close()
        assert namespace.run(lambda: link.exists("fab0"))
        ours.send(b".")
        assert ours.recv(100) == b"3"
        assert [peer.take(5.0) for _ in range(3)] == [(VnetHeader(), frame)] * 3
        ours.send(b".")
        assert child.wait(20) == 0
    wait_for(lambda: not namespace.run(lambda: link.exists("fab0")))


@pytest.mark.root
def test_adopt_refuses_what_is_not_ours(namespace: Namespace, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(DeviceError, match="no TUN/TAP fd"):
        adopt(file.fileno())
    with namespace.run(lambda: create("fab0")) as one, namespace.run(lambda: create("fab1")) as two:
        with pytest.raises(DeviceError, match="different devices"):
            adopt([one.fds[0], two.fds[0]])
        with pytest.raises(DeviceError, match="the same twice"):
            adopt([one.fds[0], one.fds[0]])
        assert one.mtu == 1500  # still the caller's
    foreign = os.open("/dev/net/tun", os.O_RDWR)
    namespace.run(lambda: fcntl.ioctl(foreign, 0x400454CA, struct.pack("16sH22x", b"fabplain%d", 0x1001)))
    with pytest.raises(DeviceError, match="do not start with a virtio-net header"):
        adopt(foreign)
    os.close(foreign)


@pytest.mark.root
def test_adopt_takes_over_blocking_and_inherited_fds(namespace: Namespace) -> None:
    with namespace.run(lambda: create("fab0", header_size=10)) as device:
        passed = os.dup(device.fds[0])
        os.set_blocking(passed, True)
        os.set_inheritable(passed, True)
        with adopt(passed, allowed=Features.CSUM) as adopted:
            assert not os.get_blocking(passed)
            assert not os.get_inheritable(passed)
            assert adopted.features == Features.CSUM
            assert isinstance(adopted, Device)


def vxlan_superframe(mac: bytes) -> tuple[TunnelVnetHeader, bytes]:
    """An inner TCPv4 superframe of 3 segments inside Ethernet, IPv4, UDP 8472, VXLAN, Ethernet."""
    _, inner = tcp_superframe(bytes(3000), 1398)
    vxlan = bytes([8, 0, 0, 0, 0, 0, 1, 0]) + bytes(12) + b"\x08\x00" + inner
    udp = struct.pack("!HHHH", 50000, 8472, 8 + len(vxlan), 0)
    outer = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(vxlan), 1, 0, 64, 17, 0, b"\xc0\0\2\1", b"\xc0\0\2\2")
    frame = mac + bytes(6) + b"\x08\x00" + outer + udp + vxlan
    return TunnelVnetHeader(1, 0x21, 104, 1398, 84, 16, 34, 64), frame


@pytest.mark.root
@pytest.mark.parametrize(("kind", "taken"), [(Kind.TAP, True), (Kind.TUN, False)])
def test_tunnel_superframes_are_for_a_tap(namespace: Namespace, kind: Kind, taken: bool) -> None:
    """With the 24-byte header a TAP takes a VXLAN superframe (Linux 6.17), a TUN does not."""
    with namespace.run(lambda: create("fab0", kind, header_size=24, up=True)) as device:
        header, frame = vxlan_superframe(bytes(6))
        message = header.emit() + frame
        if taken:
            assert os.write(device.fds[0], message) == len(message)
        else:
            with pytest.raises(OSError, match="Invalid argument"):
                os.write(device.fds[0], message)
        with PacketPeer(namespace, device) as peer:
            peer.inject(bytes(12) + b"\x08\x00" + udp_frame(b"hello"))
        [(plain, _)] = DevicePort(device).read_batch(2)  # reads carry the 24 bytes too
        assert plain == VnetHeader()
