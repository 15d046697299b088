"""Negotiation against what the kernel shows, kill switches, the write probe, and the kernel's write rules as a twin."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tun.conftest import Namespace, ipv4_frame, wait_for
from tun import offload
from tun.device import Device, Kind, create
from tun.errors import DeviceError
from tun.offload import Features, allowed_features, candidates, negotiate, offload_bits, probe_frame, probe_write
from tun.port import DevicePort, Frame
from tun.virtio import TunnelVnetHeader, refusal
from tun.vnet import FEATURE_CSUM, FEATURE_TSO, FEATURE_USO, GSO_TCPV4, GSO_UDP_L4, VnetHeader

PLAIN, TSO, FULL = Features.CSUM, Features.CSUM | Features.TSO, Features.ALL


def test_values_equal_those_of_the_compiled_modules() -> None:
    assert (Features.CSUM, Features.TSO, Features.USO) == (FEATURE_CSUM, FEATURE_TSO, FEATURE_USO)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, FULL),
        ({"tun-uso": False}, TSO),
        ({"tun-tso": False}, PLAIN | Features.USO),
        ({"tun-tso": False, "tun-uso": False}, PLAIN),
        ({"udp-gso": False, "tun-tso": True}, FULL),
    ],
)
def test_kill_switches(switches: dict[str, bool], expected: Features) -> None:
    assert allowed_features(switches) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (FULL, [FULL, TSO, Features.NONE]),
        (TSO, [TSO, Features.NONE]),
        (PLAIN | Features.USO, [PLAIN | Features.USO, PLAIN, Features.NONE]),
        (PLAIN, [PLAIN, Features.NONE]),
        (Features.TSO, [Features.NONE]),
        (Features.NONE, [Features.NONE]),
    ],
)
def test_order_of_candidates(allowed: Features, expected: list[Features]) -> None:
    assert candidates(allowed) == expected


@pytest.mark.parametrize(("features", "bits"), [(FULL, 0x6F), (TSO, 0x0F), (PLAIN, 0x01), (Features.NONE, 0)])
def test_offload_bits(features: Features, bits: int) -> None:
    assert offload_bits(features) == bits


@pytest.mark.root
@pytest.mark.parametrize("allowed", [FULL, TSO, PLAIN | Features.USO, PLAIN, Features.NONE])
@pytest.mark.parametrize("queues", [1, 2])
def test_kernel_shows_what_was_negotiated(shared_namespace: Namespace, allowed: Features, queues: int) -> None:
    with shared_namespace.run(lambda: create("fab0", queues=queues, allowed=allowed)) as device:
        assert device.features == allowed  # this needs Linux 6.2
        shown = dict(re.findall(r"^\s*([\w-]+): (on|off)", shared_namespace.command("ethtool", "-k", "fab0"), re.M))
        assert shown["tx-checksumming"] == ("on" if allowed & Features.CSUM else "off")
        for name in ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation"):
            assert shown[name] == ("on" if allowed & Features.TSO else "off"), name
        assert shown["tx-udp-segmentation"] == ("on" if allowed & Features.USO else "off")


def test_fd_without_a_device_is_an_error() -> None:
    with open("/dev/null") as null, pytest.raises(DeviceError, match="set offloads"):
        negotiate([null.fileno()])


@pytest.mark.root
@pytest.mark.parametrize(("kind", "header_size"), [(Kind.TUN, 10), (Kind.TAP, 10), (Kind.TAP, 24)])
def test_probe_passes_and_stays_inside(shared_namespace: Namespace, kind: Kind, header_size: int) -> None:
    """A working kernel takes the frames; a forwarding host without reverse path filter answers and forwards nothing."""
    shared_namespace.command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.default.rp_filter=0")
    with shared_namespace.run(lambda: create("fab0", kind, header_size=header_size, up=True)) as device:
        shared_namespace.command("ip", "route", "add", "default", "dev", "fab0")
        device.txqueuelen = 100
        assert probe_write(device.fds[0], FULL) == FULL
        assert probe_write(device.fds[0], PLAIN) == PLAIN
        assert device.probe() == FULL
        assert device.fds == [device.fds[0]]
        frames = [frame for _, frame in DevicePort(device).read_batch(10)]
        assert not [frame for frame in frames if b"\xc0\x00\x02\x02" in frame]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EAGAIN])
@pytest.mark.root
def test_probe_takes_only_einval_as_broken(
    shared_namespace: Namespace, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def write(fd: int, data: bytes) -> int:
        if VnetHeader.parse(data).gso_type == GSO_UDP_L4:
            raise OSError(error, "as a broken kernel")
        return len(data)

    with shared_namespace.run(lambda: create("fab0", up=True)) as device:
        monkeypatch.setattr(os, "write", write)
        assert probe_write(device.fds[0], FULL) == (TSO if error == errno.EINVAL else FULL)


@pytest.mark.root
def test_probe_of_a_device_that_is_down(shared_namespace: Namespace) -> None:
    with (
        shared_namespace.run(lambda: create("fab0")) as device,
        pytest.raises(DeviceError, match="device is down; bring it up"),
    ):
        device.probe()


@pytest.mark.parametrize("protocol", [6, 17])
def test_probe_frame_is_valid_and_two_and_a_half_segments(protocol: int) -> None:
    header, frame = probe_frame(protocol)
    assert refusal(header, frame) == ""
    assert (len(frame) - header.hdr_len) / header.gso_size == 2.5
    assert struct.unpack_from("!H", frame, 2)[0] == len(frame)
    assert sum(struct.unpack("!10H", frame[:20])) % 0xFFFF == 0


@pytest.mark.root
def test_udp_socket_gives_a_superframe(shared_namespace: Namespace) -> None:
    """A socket's own superframe arrives uncut: one read for ten datagrams."""
    with shared_namespace.run(lambda: create("fab0", mtu=1450)) as device:
        shared_namespace.command("ip", "addr", "add", "192.0.2.1/24", "dev", "fab0")
        device.up = True
        with shared_namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.setsockopt(17, 103, 100)  # UDP_SEGMENT
            sender.sendto(bytes(range(250)) * 4, ("192.0.2.2", 9))
        [(header, frame)] = wait_for(lambda: DevicePort(device).read_batch(2))
        assert (header.flags, header.gso_type, header.gso_size) == (1, GSO_UDP_L4, 100)
        assert (header.csum_start, header.csum_offset) == (20, 6)
        assert frame[28:] == bytes(range(250)) * 4


@pytest.mark.root
@pytest.mark.parametrize(("allowed", "cut"), [(FULL, False), (PLAIN, True), (Features.NONE, True)])
def test_tcp_crosses_two_devices(make_namespace: Callable[[], Namespace], allowed: Features, cut: bool) -> None:
    """A TCP stream between two namespaces whose devices are joined frame by frame: superframes unless switched off."""
    near, far = make_namespace(), make_namespace()
    data = bytes(range(250)) * 2000
    with (
        near.run(lambda: create("fab0", allowed=allowed)) as one,
        far.run(lambda: create("fab0", allowed=allowed)) as two,
    ):
        for namespace, device, address in ((near, one, "192.0.2.1/24"), (far, two, "192.0.2.2/24")):
            namespace.command("ip", "addr", "add", address, "dev", "fab0")
            device.up = True
        sender = near.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        with sender, far.run(lambda: socket.create_server(("192.0.2.2", 9))) as server:
            sender.setblocking(False)
            assert sender.connect_ex(("192.0.2.2", 9)) == errno.EINPROGRESS
            ports = DevicePort(one), DevicePort(two)
            seen: list[Frame] = []

            def pump() -> None:
                for source, sink in (ports, ports[::-1]):
                    frames = source.read_batch(64)
                    seen.extend(frames)
                    sink.write_batch(frames)

            received = _transfer(pump, sender, server, data)
    assert received == data
    largest = max(len(frame) for _, frame in seen)
    assert largest <= 1500 if cut else largest > 20000
    assert any(header.gso_type == GSO_TCPV4 for header, _ in seen) != cut


def _transfer(pump: Callable[[], None], sender: socket.socket, server: socket.socket, data: bytes) -> bytes:
    """Sends `data` and reads it at the other end, pumping frames in between."""
    server.setblocking(False)

    def accept() -> socket.socket | None:
        pump()
        with suppress(BlockingIOError):
            return server.accept()[0]
        return None

    with wait_for(accept) as receiver:
        receiver.setblocking(False)
        received = bytearray()
        sent = 0

        def done() -> bool:
            nonlocal sent
            with suppress(BlockingIOError):
                sent += sender.send(data[sent:])
            pump()
            with suppress(BlockingIOError):
                received.extend(receiver.recv(1 << 20))
            return len(received) == len(data)

        wait_for(done)
        return bytes(received)


@pytest.fixture(scope="module")
def writable(shared_namespace: Namespace) -> Iterator[Device]:
    with shared_namespace.run(lambda: create("fabtwin", up=True)) as device:
        yield device


UDP = ipv4_frame(17, bytes(8), bytes(400))
HEADERS = st.builds(
    VnetHeader,
    flags=st.sampled_from([0, 1, 2]),
    gso_type=st.sampled_from([0, 1, 4, 5, 0x80, 0x81, 0x84, 0x85, 2, 0x7F]),
    hdr_len=st.sampled_from([0, 20, 40, 60, 400, 500]),
    gso_size=st.sampled_from([0, 1, 2, 3, 100, 1398, 0xFFFF]),
    csum_start=st.sampled_from([0, 14, 19, 20, 24, 39, 40, 60, 380, 408, 427, 428, 65535]),
    csum_offset=st.sampled_from([0, 6, 16, 20, 65535]),
)
FRAMES = st.one_of(
    st.sampled_from([UDP, UDP[:1], UDP[:20], UDP[:28], UDP[:40], UDP[:59], UDP[:60], b"\x60" + bytes(99), b"\x15"]),
    st.binary(min_size=1, max_size=80),
)


@pytest.mark.root
@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(VnetHeader(1, 5, 28, 3, 20, 6), UDP)
@example(VnetHeader(1, 5, 28, 4, 20, 6), UDP)
@given(HEADERS, FRAMES)
def test_refusal_agrees_with_the_kernel(writable: Device, header: VnetHeader, frame: bytes) -> None:
    number = 0
    try:
        os.write(writable.fds[0], header.emit() + frame)
    except OSError as error:
        number = error.errno or 0
    assert number == (errno.EINVAL if refusal(header, frame) else 0), refusal(header, frame)


def test_tunnel_header_layout() -> None:
    header = TunnelVnetHeader(9, 0x21, 116, 1398, 84, 16, 34, 64)
    data = header.emit()
    assert len(data) == 24
    assert VnetHeader.parse(data) == header[:6]
    assert struct.unpack_from("<HH", data, 20) == (34, 64)
    assert data[10:20] == bytes(10)
    assert TunnelVnetHeader.parse(data) == header


@pytest.mark.root
def test_every_queue_answers_to_offload_ioctl(shared_namespace: Namespace) -> None:
    with shared_namespace.run(lambda: create("fab0", queues=2)) as device:
        assert negotiate(device.fds, TSO) == TSO
        for fd in device.fds:
            with pytest.raises(OSError, match="Invalid argument"):
                fcntl.ioctl(fd, offload.TUNSETOFFLOAD, 0x8000)  # unknown bits are refused: the feature probe
