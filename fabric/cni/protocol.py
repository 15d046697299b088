"""The exec protocol: environment variables in, versions, result and error objects out. Pure.

Source: CNI SPEC 1.1.0 section 2; the rules for names are libcni's (`pkg/utils/utils.go`), and the kernel's where it
refuses more (`dev_valid_name`, `dev_alloc_name` and the reserved directories of /proc/sys/net/ipv4/conf).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fabric.cni.errors import INCOMPATIBLE_VERSION, INVALID_ENVIRONMENT, CniError, shown

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
MAX_ID_BYTES = 200
"""libcni sets no limit; ours keeps `<container id>@<interface>` with a temporary's ending below NAME_MAX (255)."""
MAX_INTERFACE_BYTES = 15  # IFNAMSIZ without its NUL; the kernel counts bytes

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_SINCE: Mapping[str, str] = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


class Request(NamedTuple):
    """What the environment says. `path` are the directories of other plugins; absent values are empty."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: tuple[str, ...] = ()
    own_netns: bool = False
    """CNI_NETNS_OVERRIDE: the plugin's own network namespace is meant to be the container's."""


def parse_environment(environ: Mapping[str, str]) -> Request:
    """The request, its names checked. Raises CniError (4), naming the variables that are missing or wrong."""
    command = environ.get("CNI_COMMAND", "")
    if not command:
        raise CniError(INVALID_ENVIRONMENT, "CNI_COMMAND is not set: this program is run by a container runtime")
    if command not in _REQUIRED:
        known = ", ".join(_REQUIRED)
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {shown(command, 40)}", f"it is one of {known}")
    missing = [name for name in _REQUIRED[command] if not environ.get(name)]
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    if "CNI_IFNAME" in _REQUIRED[command]:
        _check_container_id(environ["CNI_CONTAINERID"])
        _check_interface(environ["CNI_IFNAME"])
    return Request(
        command,
        environ.get("CNI_CONTAINERID", ""),
        environ.get("CNI_NETNS", ""),
        environ.get("CNI_IFNAME", ""),
        environ.get("CNI_ARGS", ""),
        tuple(filter(None, environ.get("CNI_PATH", "").split(":"))),
        environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"),
    )


def parse_args(text: str) -> dict[str, str]:
    """The pairs of CNI_ARGS. Raises CniError (4) for what is no pair."""
    pairs = [pair.split("=") for pair in text.split(";")] if text else []
    if any(len(pair) != 2 for pair in pairs):
        raise CniError(INVALID_ENVIRONMENT, "CNI_ARGS: invalid pair, K=V;K=V is expected", shown(text))
    return {key: value for key, value in pairs}  # noqa: C416  (lists of two, no tuples)


def is_name(text: object) -> bool:
    """Whether libcni takes it as a container id, a network's name or a plugin's type."""
    return isinstance(text, str) and bool(_NAME.fullmatch(text))


def check_version(command: str, version: str) -> None:
    """Raise CniError (1) for a version that we do not speak, or that has no such command."""
    if version not in VERSIONS:
        details = f"config is {shown(version, 24)}, plugin supports {', '.join(VERSIONS)}"
        raise CniError(INCOMPATIBLE_VERSION, "incompatible CNI versions", details)
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        details = f"{command} exists since {since}"
        raise CniError(INCOMPATIBLE_VERSION, f"config version {version} does not allow {command}", details)


def version_answer(asked: object) -> dict[str, Any]:
    """The answer to VERSION: the version we were asked in comes back as it was."""
    version = asked if isinstance(asked, str) and 0 < len(asked) <= 24 else NEWEST
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


def error_answer(error: CniError, version: object) -> dict[str, Any]:
    """The error object, in the version of the configuration where that can be spoken."""
    answer: dict[str, Any] = {
        "cniVersion": version if version in VERSIONS else NEWEST,
        "code": error.code,
        "msg": error.msg,
    }
    return answer | {"details": error.details} if error.details else answer


def _check_container_id(text: str) -> None:
    if not _NAME.fullmatch(text):
        raise CniError(INVALID_ENVIRONMENT, "CNI_CONTAINERID: invalid characters in containerID", shown(text))
    if len(text) > MAX_ID_BYTES:
        details = f"{len(text)} bytes, at most {MAX_ID_BYTES}"
        raise CniError(INVALID_ENVIRONMENT, "CNI_CONTAINERID: container id is too long", details)


def _check_interface(text: str) -> None:
    problem = _interface_problem(text)
    if problem:
        raise CniError(INVALID_ENVIRONMENT, f"CNI_IFNAME: interface name {problem}", shown(text))


def _interface_problem(text: str) -> str:
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if length > MAX_INTERFACE_BYTES:
        return f"is too long: {length} bytes, at most {MAX_INTERFACE_BYTES}"
    if text in (".", "..", "all", "default"):
        return "is reserved"
    if any(char in "/:%" or char.isspace() or not char.isprintable() for char in text):
        return "contains / or : or % or whitespace or control characters"
    return ""
