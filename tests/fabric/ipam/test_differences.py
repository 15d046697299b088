"""What is different from the reference plugin on purpose. Each test shows the reference plugin's way first."""

from __future__ import annotations

from pathlib import Path

from fabric.ipam.errors import ADDRESS_UNAVAILABLE, INVALID_CONFIG
from tests.fabric.ipam.plugin import document, files, ours, reference, reserved


def test_a_failed_add_keeps_what_the_container_had(tmp_path: Path) -> None:
    kept = []
    for name, call in (("reference", reference), ("ours", ours)):
        conf = document(tmp_path / name, "10.244.1.0/29", "2001:db8::/64")
        call("ADD", conf, "pod-1")
        assert call("ADD", conf, "pod-1", args="IP=10.244.1.5").error
        kept.append(set(reserved(tmp_path / name)))
    assert kept == [set(), {"10.244.1.2", "2001:db8::2"}]


def test_a_start_behind_the_default_end(tmp_path: Path) -> None:
    """The reference plugin runs out of the subnet."""
    conf = document(tmp_path, [{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.255"}])
    assert [reference("ADD", conf, f"pod-{number}").addresses for number in range(2)] == [
        ["10.244.1.255"],
        ["10.244.2.0"],
    ]
    assert ours("ADD", conf, "pod-3").code == INVALID_CONFIG


def test_del_needs_no_valid_ranges(tmp_path: Path) -> None:
    conf = document(tmp_path, "10.244.1.0/24")
    ours("ADD", conf, "pod-1")
    broken = document(tmp_path, "10.244.1.0/32")
    assert reference("DEL", broken, "pod-1").error
    assert not ours("DEL", broken, "pod-1").error
    assert reserved(tmp_path) == {}


def test_del_of_nothing_makes_nothing(tmp_path: Path) -> None:
    for name, call, made in (("reference", reference, ["lock"]), ("ours", ours, [])):
        assert not call("DEL", document(tmp_path / name, "10.244.1.0/24"), "pod-1").error
        assert list(files(tmp_path / name)) == [f"pods/{item}" for item in made]


def test_only_reservations_are_released(tmp_path: Path) -> None:
    """A container may be called like an address; the reference plugin then removes the hint with that content."""
    left = []
    for name, call in (("reference", reference), ("ours", ours)):
        conf = document(tmp_path / name, "10.244.1.0/24")
        call("ADD", conf, "pod-1")
        call("DEL", conf, "10.244.1.2")
        left.append(set(files(tmp_path / name / "pods")))
    assert left[1] - left[0] == {"last_reserved_ip.0"}


def test_one_requested_address_per_range_set(tmp_path: Path) -> None:
    """Which of two is left over is random in the reference plugin; that the ADD fails and leaves nothing is not."""
    conf = document(tmp_path, "10.244.1.0/24", "2001:db8::/64")
    conf["runtimeConfig"] = {"ips": ["10.244.1.7", "10.244.1.8", "2001:db8::7"]}
    assert reference("ADD", conf, "pod-1").error
    refused = ours("ADD", conf, "pod-1")
    assert (refused.code, refused.error) == (ADDRESS_UNAVAILABLE, "failed to allocate all requested IPs: 10.244.1.8")
    assert reserved(tmp_path) == {}
    conf["runtimeConfig"] = {"ips": ["2001:db8::7", "10.244.1.7"]}
    assert ours("ADD", conf, "pod-1").addresses == ["10.244.1.7", "2001:db8::7"]
