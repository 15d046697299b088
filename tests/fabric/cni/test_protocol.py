"""The environment of a call, versions, and the two answers that need no work."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fabric.cni.errors import CniError
from fabric.cni.protocol import (
    VERSIONS,
    check_version,
    error_answer,
    parse_args,
    parse_environment,
    version_answer,
)
from tests.fabric.cni.codes import code_of

COMPLETE = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin:/x"}
REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set(),
    "VERSION": set(),
}


def refusal(environ: dict[str, str]) -> CniError:
    with pytest.raises(CniError) as caught:
        parse_environment(environ)
    return caught.value


@pytest.mark.parametrize("command", REQUIRED)
def test_exactly_the_required_variables_are_required(command: str) -> None:
    for name in COMPLETE:
        environ = {"CNI_COMMAND": command} | {key: text for key, text in COMPLETE.items() if key != name}
        if name in REQUIRED[command]:
            error = refusal(environ)
            assert (error.code, error.msg) == (4, f"required env variables [{name}] missing")
            assert refusal(environ | {name: ""}).msg == error.msg, "empty is missing"
        else:
            assert parse_environment(environ).command == command


def test_all_missing_variables_are_named() -> None:
    names = "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"
    assert refusal({"CNI_COMMAND": "ADD"}).msg == f"required env variables [{names}] missing"


@pytest.mark.parametrize("command", ["add", "Add", "ADD\n", "DELETE", "../ADD", "GET", " "])
def test_an_unknown_command_is_named(command: str) -> None:
    error = refusal(COMPLETE | {"CNI_COMMAND": command})
    assert error.code == 4
    assert "CNI_COMMAND" in error.msg
    assert "\n" not in str(error)


def test_no_command_says_who_runs_this() -> None:
    assert "container runtime" in refusal({}).msg


def test_the_request_holds_what_the_environment_says() -> None:
    request = parse_environment({"CNI_COMMAND": "ADD", "CNI_ARGS": "A=B", **COMPLETE})
    assert request == ("ADD", "c1", "/run/netns/x", "eth0", "A=B", ("/opt/cni/bin", "/x"), False)
    for text, expected in {"1": True, "true": True, "TRUE": True, "0": False, "yes": False}.items():
        environ = {"CNI_COMMAND": "ADD", "CNI_NETNS_OVERRIDE": text, **COMPLETE}
        assert parse_environment(environ).own_netns is expected


HOSTILE_IDS = ["../../x", "/etc", "a/b", "-a", ".a", "_a", "a\n", "a b", "a\0", "a;b", "a@b", "ä", "a" * 201, "\udcff"]
HOSTILE_INTERFACES = [
    ".", "..", "a/b", "a:b", "a b", "a\n", "\ta", "a" * 16, "ä" * 8, "eth%d", "all", "default", "a\x07", "\udcff",
    "eth0\u2028",
]  # fmt: skip


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("CNI_CONTAINERID", text) for text in HOSTILE_IDS] + [("CNI_IFNAME", text) for text in HOSTILE_INTERFACES],
)
def test_hostile_names_are_refused_naming_the_variable(command: str, name: str, value: str) -> None:
    error = refusal({"CNI_COMMAND": command, **COMPLETE, name: value})
    assert error.code == 4
    assert name in error.msg
    assert str(error).isprintable()


# libcni's rules in its own terms (pkg/utils/utils.go), as a twin of ours.
LIBCNI_ID = re.compile(rb"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")


def libcni_takes_interface(name: str) -> bool:
    length = len(name.encode("utf-8", "surrogateescape"))
    return 0 < length <= 15 and name not in (".", "..") and not any(c in "/:" or c.isspace() for c in name)


@given(st.text(max_size=20) | st.text(alphabet="aZ0_.-/\n @", max_size=20))
@example("a\n")
def test_container_ids_are_those_of_libcni(text: str) -> None:
    environ = {"CNI_COMMAND": "DEL", **COMPLETE, "CNI_CONTAINERID": text}
    taken = bool(LIBCNI_ID.match(text.encode("utf-8", "surrogatepass")))
    if taken:
        assert parse_environment(environ).container_id == text
    else:
        assert refusal(environ).code == 4


@given(st.text(max_size=17) | st.text(alphabet="aé0./:% \n", max_size=17))
def test_no_interface_is_taken_that_libcni_refuses(text: str) -> None:
    environ = {"CNI_COMMAND": "DEL", **COMPLETE, "CNI_IFNAME": text}
    if not libcni_takes_interface(text):
        assert refusal(environ).code == 4
    elif text.isascii() and text.isprintable() and "%" not in text and text not in ("all", "default"):
        assert parse_environment(environ).ifname == text


@given(st.dictionaries(st.sampled_from(["CNI_COMMAND", *COMPLETE, "CNI_ARGS", "CNI_NETNS_OVERRIDE"]), st.text()))
def test_any_environment_is_a_request_or_error_4(environ: dict[str, str]) -> None:
    assert code_of(lambda: parse_environment(environ)) in (0, 4)


def test_args() -> None:
    assert parse_args("") == {}
    assert parse_args("IgnoreUnknown=1;K8S_POD_NAME=web-0;X=") == {
        "IgnoreUnknown": "1", "K8S_POD_NAME": "web-0", "X": ""
    }  # fmt: skip
    for text in ("A", "A=B;", ";", "A=B=C", "A=B;;C=D"):
        with pytest.raises(CniError) as caught:
            parse_args(text)
        assert (caught.value.code, "CNI_ARGS" in caught.value.msg) == (4, True)


MATRIX = {
    "ADD": set(VERSIONS), "DEL": set(VERSIONS), "CHECK": {"0.4.0", "1.0.0", "1.1.0"}, "GC": {"1.1.0"},
    "STATUS": {"1.1.0"},
}  # fmt: skip


@pytest.mark.parametrize("command", MATRIX)
@pytest.mark.parametrize("version", [*VERSIONS, "", "0.5.0", "1.1", "1.1.1", "2.0.0", "v1.0.0", "1.0.0\n", "9" * 99])
def test_which_command_exists_in_which_version(command: str, version: str) -> None:
    if version in MATRIX[command]:
        check_version(command, version)
        return
    with pytest.raises(CniError) as caught:
        check_version(command, version)
    assert caught.value.code == 1
    assert str(caught.value).isprintable()


def test_version_comes_back_as_it_was_asked_for() -> None:
    expected = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    for asked, answered in {"0.4.0": "0.4.0", "9.9.9": "9.9.9", None: "1.1.0", "": "1.1.0", "x" * 30: "1.1.0"}.items():
        assert version_answer(asked) == {"cniVersion": answered, "supportedVersions": expected}


@pytest.mark.parametrize(("version", "spoken"), [("0.3.1", "0.3.1"), ("7.0.0", "1.1.0"), (None, "1.1.0"), (3, "1.1.0")])
def test_error_object(version: Any, spoken: str) -> None:
    assert error_answer(CniError(7, "bad", "why"), version) == {
        "cniVersion": spoken, "code": 7, "msg": "bad", "details": "why"
    }  # fmt: skip
    assert "details" not in error_answer(CniError(7, "bad"), version)
