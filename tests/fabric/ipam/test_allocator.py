"""The verbs: allocate, release, check, gc, reconcile."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address
from pathlib import Path

import pytest

from fabric.ipam import allocator, config
from fabric.ipam.config import IPAMConf
from fabric.ipam.errors import ADDRESS_UNAVAILABLE, ALREADY_ALLOCATED, NOT_ALLOCATED, TRY_AGAIN_LATER, IPAMError
from fabric.ipam.names import Attachment
from tests.fabric.ipam.plugin import document, files, reserved

BOOT, NEXT_BOOT = "3d0ef0a4-0000-4000-8000-000000000001", "3d0ef0a4-0000-4000-8000-000000000002\n"


def pod(number: int, ifname: str = "eth0") -> Attachment:
    """Attachments whose names differ in many places, as those of runtimes do."""
    return Attachment(hashlib.sha256(bytes([number % 256, number // 256])).hexdigest(), ifname)


def conf(place: Path, *sets: object) -> IPAMConf:
    return config.load(document(place, *sets or ("10.244.1.0/29",)))


def given(loaded: IPAMConf, attachment: Attachment, *requested: str) -> list[str]:
    found = allocator.allocate(loaded, attachment, [ip_address(item) for item in requested])
    return [str(item.address.ip) for item in found]


def refusal(loaded: IPAMConf, attachment: Attachment, *requested: str) -> tuple[int, str]:
    with pytest.raises(IPAMError) as error:
        given(loaded, attachment, *requested)
    return error.value.code, error.value.msg


def stale(place: Path, addresses: list[str]) -> None:
    """Reservations of another life, as the reference plugin leaves them when the machine goes down."""
    (place / "pods").mkdir(parents=True)
    for number, address in enumerate(addresses):
        (place / "pods" / address).write_bytes(pod(1000 + number).record)
    (place / "pods" / "last_reserved_ip.0").write_text(addresses[-1])


def test_addresses_go_round(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    order = []
    for number in range(7):
        order += given(loaded, pod(number))
        allocator.release(loaded.place, pod(number))
    assert [address[-1] for address in order] == ["2", "3", "4", "5", "6", "2", "3"]


def test_a_full_set(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    for number in range(5):
        given(loaded, pod(number))
    code, msg = refusal(loaded, pod(5))
    assert code == TRY_AGAIN_LATER
    assert msg == "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.1-10.244.1.6"
    assert [str(item) for item in allocator.release(loaded.place, pod(3))] == ["10.244.1.5"]
    assert given(loaded, pod(5)) == ["10.244.1.5"]


def test_the_result_has_prefix_and_gateway(tmp_path: Path) -> None:
    found = allocator.allocate(conf(tmp_path, "10.244.1.0/29", "2001:db8::/64"), pod(1))
    assert [(str(item.address), str(item.gateway)) for item in found] == [
        ("10.244.1.2/29", "10.244.1.1"),
        ("2001:db8::2/64", "2001:db8::1"),
    ]


def test_a_later_set_that_is_full_takes_the_earlier_back(tmp_path: Path) -> None:
    loaded = conf(tmp_path, "10.244.1.0/29", "2001:db8::/126")
    given(loaded, pod(1))
    given(loaded, pod(2))
    before = reserved(tmp_path)
    code, msg = refusal(loaded, pod(3))
    assert (code, msg.partition(":")[0]) == (TRY_AGAIN_LATER, "failed to allocate for range 1")
    assert reserved(tmp_path) == before


def test_the_same_attachment_twice(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    given(loaded, pod(1))
    code, msg = refusal(loaded, pod(1))
    assert code == ALREADY_ALLOCATED
    assert "10.244.1.2 has been allocated to" in msg
    assert given(loaded, pod(1, "eth1")) == ["10.244.1.3"]


def test_requested_addresses(tmp_path: Path) -> None:
    loaded = conf(tmp_path, "10.244.1.0/29", "2001:db8::/64")
    assert given(loaded, pod(1), "2001:db8::9") == ["10.244.1.2", "2001:db8::9"]
    assert refusal(loaded, pod(2), "10.244.1.2") == (
        ADDRESS_UNAVAILABLE,
        "failed to allocate for range 0: requested IP address 10.244.1.2 is not available in range set "
        "10.244.1.1-10.244.1.6",
    )
    assert refusal(loaded, pod(2), "10.244.1.1") == (
        ADDRESS_UNAVAILABLE,
        "failed to allocate for range 0: requested ip 10.244.1.1 is subnet's gateway",
    )
    before = reserved(tmp_path)
    assert refusal(loaded, pod(2), "10.244.1.4", "192.0.2.1", "10.244.1.5") == (
        ADDRESS_UNAVAILABLE,
        "failed to allocate all requested IPs: 192.0.2.1 10.244.1.5",
    )
    assert reserved(tmp_path) == before


def test_release_is_idempotent_and_finds_every_range(tmp_path: Path) -> None:
    loaded = conf(tmp_path, "10.244.1.0/29", "2001:db8::/64")
    given(loaded, pod(1))
    given(loaded, pod(2))
    (tmp_path / "pods" / "192.0.2.7").write_bytes(pod(1).record + b"\n")  # a range that is no longer configured
    assert [str(item) for item in allocator.release(loaded.place, pod(1))] == ["10.244.1.2", "192.0.2.7", "2001:db8::2"]
    assert allocator.release(loaded.place, pod(1)) == ()
    assert set(reserved(tmp_path)) == {"10.244.1.3", "2001:db8::3"}


def test_nothing_is_made_for_nothing(tmp_path: Path) -> None:
    loaded = conf(tmp_path / "networks")
    assert allocator.release(loaded.place, pod(1)) == ()
    assert allocator.gc(loaded, ()) == ()
    with pytest.raises(IPAMError) as error:
        allocator.check(loaded.place, pod(1))
    assert error.value.code == NOT_ALLOCATED
    assert list(tmp_path.iterdir()) == []


def test_check(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    given(loaded, pod(1))
    allocator.check(loaded.place, pod(1))
    for other in (pod(2), pod(1, "eth1")):
        with pytest.raises(IPAMError) as error:
            allocator.check(loaded.place, other)
        assert error.value.code == NOT_ALLOCATED


def test_gc_keeps_the_valid_and_frees_the_rest(tmp_path: Path) -> None:
    loaded = conf(tmp_path, "10.244.1.0/29", "2001:db8::/64")
    for number in range(4):
        given(loaded, pod(number))
    (tmp_path / "pods" / "10.244.1.6").touch()  # reserved by nobody knows whom
    (tmp_path / "pods" / "notes").write_text("not ours")
    (tmp_path / "pods" / "2001:DB8::9").write_text("no reservation: not as addresses are written")
    freed = allocator.gc(loaded, [pod(1), pod(2)])
    assert list(map(str, freed)) == ["10.244.1.2", "10.244.1.5", "10.244.1.6", "2001:db8::2", "2001:db8::5"]
    assert set(files(tmp_path / "pods")) == {
        *("10.244.1.3", "10.244.1.4", "2001:db8::3", "2001:db8::4"),
        *("2001:DB8::9", "notes", "lock", "last_reserved_ip.0", "last_reserved_ip.1"),
    }


def test_gc_keeps_what_may_be_a_valid_attachments(tmp_path: Path) -> None:
    """Of pod 1 there is no IPv6 record, so the unreadable IPv6 one may be its own. No IPv4 record can be."""
    loaded = conf(tmp_path, "10.244.1.0/29", "2001:db8::/64")
    given(loaded, pod(1))
    (tmp_path / "pods" / "2001:db8::2").write_bytes(b"\0" * 70)
    (tmp_path / "pods" / "2001:db8::3").write_bytes(pod(7).record)
    (tmp_path / "pods" / "10.244.1.3").write_bytes(b"")
    assert list(map(str, allocator.gc(loaded, [pod(1)]))) == ["10.244.1.3", "2001:db8::3"]
    assert list(map(str, allocator.gc(loaded, []))) == ["10.244.1.2", "2001:db8::2"]


def test_gc_goes_on_after_an_error(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    given(loaded, pod(1))
    (tmp_path / "pods" / "10.244.1.0").mkdir()
    given(loaded, pod(2))
    with pytest.raises(IPAMError, match=r"^1 reserved addresses cannot be freed: 10\.244\.1\.0 \(Is a directory\)$"):
        allocator.gc(loaded, [])
    assert reserved(tmp_path) == {}


@pytest.mark.slow
def test_a_reboot_with_250_stale_reservations(tmp_path: Path) -> None:
    """R30: all of them are free before the first ADD is answered, and no live one is lost."""
    addresses = [f"10.244.1.{number}" for number in range(2, 252)]
    stale(tmp_path, addresses)
    loaded = conf(tmp_path, "10.244.1.0/24")
    live = [pod(number) for number in range(3)]
    assert [given(loaded, item) for item in live] == [["10.244.1.252"], ["10.244.1.253"], ["10.244.1.254"]]
    assert refusal(loaded, pod(9))[0] == TRY_AGAIN_LATER
    assert {str(item) for item in allocator.reconcile(loaded, live, BOOT)} == set(addresses)
    assert set(reserved(tmp_path)) == {"10.244.1.252", "10.244.1.253", "10.244.1.254"}
    assert given(loaded, pod(9)) == ["10.244.1.2"]
    assert {tuple(given(loaded, pod(number))) for number in range(10, 259)} == {(item,) for item in addresses[1:]}


def test_reconcile_frees_once_per_boot(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    assert allocator.reconcile(loaded, [], BOOT) == ()
    given(loaded, pod(1))
    assert allocator.reconcile(loaded, [], BOOT) == ()  # the list may be older than the ADD
    given(loaded, pod(2))
    assert [str(item) for item in allocator.reconcile(loaded, [pod(2)], NEXT_BOOT)] == ["10.244.1.2"]
    assert allocator.reconcile(loaded, [], NEXT_BOOT) == ()
    assert set(reserved(tmp_path)) == {"10.244.1.3"}


def test_reconcile_that_fails_is_tried_again(tmp_path: Path) -> None:
    loaded = conf(tmp_path)
    given(loaded, pod(1))
    (tmp_path / "pods" / "10.244.1.5").mkdir()
    for _ in range(2):
        with pytest.raises(IPAMError, match="cannot be freed"):
            allocator.reconcile(loaded, [], BOOT)
    (tmp_path / "pods" / "10.244.1.5").rmdir()
    given(loaded, pod(2))
    assert [str(item) for item in allocator.reconcile(loaded, [], BOOT)] == ["10.244.1.3"]
