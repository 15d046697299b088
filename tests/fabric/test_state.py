"""Files: atomic, private, and never believed blindly."""

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from fabric import config, leases, state_file, subnet_file
from fabric.files import make_dir, write_atomic

CONF = config.parse(config.DEFAULT_TEXT)
DUAL = config.parse(
    '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56","Backend":{"Type":"vxlan"}}'
)
V6 = config.parse(
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56","Backend":{"Type":"vxlan"}}'
)
VALUE = b'{"PublicIP":"192.0.2.2","PublicIPv6":null}'


def test_subnet_env_is_flannels_byte_for_byte() -> None:
    text = subnet_file.render(CONF, leases.parse("10.244.1.0-24", VALUE), 1450, True)
    assert text == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )


def test_subnet_env_dual_stack() -> None:
    text = subnet_file.render(DUAL, leases.parse("10.244.1.0-24&2001:cafe:42::-64", VALUE), 1430, False)
    assert text == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
    )


def test_subnet_env_without_ipv4_has_no_ipv4_pair() -> None:
    text = subnet_file.render(V6, leases.parse("0.0.0.0-0&2001:cafe:42:1::-64", VALUE), 1430, False)
    assert text.splitlines()[:2] == [
        "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56", "FLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64",
    ]  # fmt: skip


def test_subnet_env_mode_and_return(tmp_path: Path) -> None:
    path = tmp_path / "flannel" / "subnet.env"
    subnet_file.write(path, CONF, leases.parse("10.244.1.0-24", VALUE), 1450, False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert [str(item) for item in subnet_file.previous(path)] == ["10.244.1.0/24"]


@pytest.mark.parametrize("text", ["", "FLANNEL_SUBNET=\n", "FLANNEL_SUBNET=pods\n", "\0\xff", "FLANNEL_SUBNET\n"])
def test_an_unreadable_subnet_env_means_no_previous_subnet(tmp_path: Path, text: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(text)
    assert subnet_file.previous(path) == ()
    assert subnet_file.previous(tmp_path / "missing") == ()


def test_leases_on_disk_round_trip(tmp_path: Path) -> None:
    own, peer = leases.parse("10.244.1.0-24", VALUE, 5.0), leases.parse("10.244.2.0-24", VALUE)
    known = state_file.Remembered(own, (peer,), '{"Network":"10.244.0.0/16"}', {4: "192.0.2.9"})
    state_file.save(tmp_path / "state", state_file.Renderer()(known))
    assert state_file.load(tmp_path / "state") == known
    path = tmp_path / "state" / state_file.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_made_of_kept_parts_is_as_one_made_anew() -> None:
    own, *peers = (leases.parse(f"10.244.{number}.0-24", VALUE, 5.0) for number in range(1, 5))
    renderer = state_file.Renderer()
    for chosen in (peers, peers[1:], [*peers[1:], dataclasses.replace(peers[0], expires=9.0)], [], peers[::-1]):
        known = state_file.Remembered(own, tuple(chosen), "{}")
        assert renderer(known) == state_file.Renderer()(known)


RUBBISH = (
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"version":2}',
    b'{"version":1,"own":5,"peers":7}',
    b'{"version":1,"own":{"key":"x","value":"y"}}',
    b'{"version":1,"config":7,"public":[1]}',
    b'{"version":1,"public":{"4":5,"5":"x"}}',
    b'{"version":1,"peers":[{"key":"10.244.2.0-24","value":"{}","expires":"soon"}]}',
)


@pytest.mark.parametrize("data", RUBBISH)
def test_rubbish_on_disk_is_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / state_file.NAME).write_bytes(data)
    assert state_file.load(tmp_path) == state_file.Remembered()


def test_a_state_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    state_file.save(tmp_path, state_file.Renderer()(state_file.Remembered(leases.parse("10.244.1.0-24", VALUE))))
    path = tmp_path / state_file.NAME
    path.chmod(0o666)
    assert state_file.load(tmp_path) == state_file.Remembered()
    path.chmod(0o600)
    moved = tmp_path / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    assert state_file.load(tmp_path) == state_file.Remembered()


def test_atomic_writes_follow_no_link_and_leave_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".target.{os.getpid()}.tmp").symlink_to(victim)
    old = os.umask(0)
    try:
        write_atomic(tmp_path / "target", b"new", 0o600, 0o700)
    finally:
        os.umask(old)
    assert victim.read_text() == "precious"
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o600
    assert sorted(item.name for item in tmp_path.iterdir()) == ["target", "victim"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(OSError, match=r"."):
        write_atomic(target, b"new", 0o600, 0o700)
    assert [item.name for item in tmp_path.iterdir()] == ["target"]


def test_make_dir_tells_what_it_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert make_dir(path, 0o700) == [tmp_path / "a", path]
    assert make_dir(path, 0o700) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
