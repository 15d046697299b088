"""libcni's rules for names, and what a damaged record may have been."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ipam.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, IPAMError
from fabric.ipam.names import Attachment, check_network
from tests.fabric.ipam.calm import CALM

GOOD_NAMES = ["a", "0", "pod-1", "a_b.c-D", "f" * 64, "a..b", "10.244.1.2"]
BAD_NAMES = [
    "",
    "a b",
    "a\n",
    "a\nb",
    "a\0",
    "\u00e9",
    "a\u00e9",
    *[".", "..", "../../x", "-a", "_a", ".a", "a/b", "a:b", "a=b"],
]
BAD_SPACES = ["a b", "eth0\n", "\teth0", "a\u00a0b", "a\u2028", "a\0"]
BAD_INTERFACES = ["", ".", "..", "a/b", "a:b", *BAD_SPACES, "a" * 16, "\u00e9" * 8, "\udcff"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    assert Attachment(name, "eth0").record == f"{name}\r\neth0".encode()
    assert check_network(name) == name


@pytest.mark.parametrize("name", [*BAD_NAMES, None, 5, b"pod"])
def test_bad_names(name: str) -> None:
    with pytest.raises(IPAMError) as container:
        Attachment(name, "eth0")
    with pytest.raises(IPAMError) as network:
        check_network(name)
    assert (container.value.code, network.value.code) == (INVALID_ENVIRONMENT, INVALID_CONFIG)
    assert (container.value.details + network.value.details).isprintable()


def test_a_network_name_is_a_file_name() -> None:
    assert check_network("a" * 255)
    with pytest.raises(IPAMError, match="longer than 255 bytes"):
        check_network("a" * 256)


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "\u00e9" * 7, "-", "..."])
def test_good_interfaces(name: str) -> None:
    assert Attachment("pod-1", name).ifname == name


@pytest.mark.parametrize("name", [*BAD_INTERFACES, None, 5])
def test_bad_interfaces(name: str) -> None:
    with pytest.raises(IPAMError) as error:
        Attachment("pod-1", name)
    assert error.value.code == INVALID_ENVIRONMENT


def test_attachments_are_values() -> None:
    assert len({Attachment("pod-1", "eth0"), Attachment("pod-1", "eth0"), Attachment("pod-1", "eth1")}) == 2


OWNER = Attachment("0123456789abcdef" * 4, "eth0")


@CALM
@given(st.integers(0, len(OWNER.record) * 8 - 1))
def test_one_changed_bit_does_not_hide_the_owner(position: int) -> None:
    changed = bytearray(OWNER.record)
    changed[position // 8] ^= 1 << position % 8
    assert OWNER.may_have_been(bytes(changed))
    assert OWNER.may_have_been(OWNER.record[: position // 8])


@pytest.mark.parametrize("content", [b"", b"\0" * 70, b"\r\n", b"x/y", b"pod-1\r\n", b"pod-1\neth0", b"\xff\xfe"])
def test_what_is_no_record_may_be_anybodys(content: bytes) -> None:
    assert OWNER.may_have_been(content)


OTHERS = [b"fedcba9876543210" * 4 + b"\r\neth0", b"pod-1", OWNER.record + b"1", b"pod-1\r\neth0"]


@pytest.mark.parametrize("content", OTHERS)
def test_another_owners_record_is_not_ours(content: bytes) -> None:
    assert not OWNER.may_have_been(content)
