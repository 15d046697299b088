"""The network configuration that comes on stdin: decoded, and its keys that every kind of interface shares. Pure.

Keys match without regard to case, as in Go. What a chained or delegated plugin is to see is passed on as it came.
Source: CNI SPEC 1.1.0 section 1, `pkg/types/types.go`, `CONVENTIONS.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.cni.errors import DECODING_FAILURE, INVALID_CONFIG, UNSUPPORTED_FIELD, CniError, shown
from fabric.cni.protocol import is_name, parse_args

MAX_BYTES = 1 << 20
VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


class Conf(NamedTuple):
    """One plugin's configuration. `document` is what came, `folded` the same with lower-case keys."""

    name: str
    type: str
    version: str
    document: dict[str, Any]
    folded: dict[str, Any]

    def section(self, key: str) -> dict[str, Any]:
        """An object by its (lower-case) key, empty when absent. Raises CniError (7) for another type."""
        value = self.folded.get(key)
        if value is not None and not isinstance(value, dict):
            raise CniError(INVALID_CONFIG, f"{key} must be an object", shown(value))
        return value or {}

    def text(self, key: str, default: str = "") -> str:
        """A text by its (lower-case) key. Raises CniError (7) for another type."""
        value = self.folded.get(key)
        if value is not None and not isinstance(value, str):
            raise CniError(INVALID_CONFIG, f"{key} must be a text", shown(value))
        return value or default

    def path(self, key: str, default: str) -> str:
        """An absolute path. Raises CniError (7)."""
        value = self.text(key, default)
        if not value.startswith("/") or "\0" in value:
            raise CniError(INVALID_CONFIG, f"{key} must be an absolute path", shown(value))
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean. Raises CniError (7)."""
        value = self.folded.get(key)
        if value is not None and not isinstance(value, bool):
            raise CniError(INVALID_CONFIG, f"{key} must be true or false", shown(value))
        return default if value is None else value

    def mtu(self) -> int:
        """`mtu` in bytes, 0 for none given. Raises CniError (7)."""
        value = self.folded.get("mtu")
        if value in (None, 0) and value is not False:
            return 0
        if type(value) is not int or not 68 <= value <= 65535:
            raise CniError(INVALID_CONFIG, "mtu must be a number of bytes between 68 and 65535", shown(value))
        return value


def parse(data: bytes) -> tuple[dict[str, Any], object]:
    """The object on stdin, and its version, which may be anything. Raises CniError (6)."""
    try:
        document = jsonsafe.loads(data, max_bytes=MAX_BYTES)
    except jsonsafe.JsonError as error:
        raise CniError(DECODING_FAILURE, "error unmarshall network config", str(error)) from None
    if not isinstance(document, dict):
        raise CniError(DECODING_FAILURE, "error unmarshall network config", "it is not a JSON object")
    return document, jsonsafe.fold_keys(document).get("cniversion")


def load(document: dict[str, Any]) -> Conf:
    """The configuration with its names checked. Raises CniError (6, 7)."""
    folded = jsonsafe.fold_keys(document)
    name, kind, version = folded.get("name"), folded.get("type"), folded.get("cniversion")
    if version is not None and not isinstance(version, str):
        raise CniError(DECODING_FAILURE, "cniVersion must be a text", shown(version))
    if not name:
        raise CniError(INVALID_CONFIG, "missing network name")
    if not is_name(name) or len(name) > 200:
        raise CniError(INVALID_CONFIG, "invalid characters found in network name", shown(name))
    if not is_name(kind):
        raise CniError(INVALID_CONFIG, "type must be the name of a plugin", shown(kind))
    return Conf(name, str(kind), version or "0.1.0", document, folded)


def valid_attachments(conf: Conf) -> frozenset[tuple[str, str]]:
    """(container id, interface) of every attachment that GC has to spare. Raises CniError (7).

    libcni writes `null` for an empty list. A missing key is refused: it would be taken for "remove everything".
    """
    if VALID_ATTACHMENTS not in conf.folded:
        raise CniError(INVALID_CONFIG, f"GC needs {VALID_ATTACHMENTS}: nothing was removed")
    listed = conf.folded[VALID_ATTACHMENTS]
    if listed is not None and not isinstance(listed, list):
        raise CniError(INVALID_CONFIG, f"{VALID_ATTACHMENTS} must be a list", shown(listed))
    found = set()
    for item in listed or []:
        fields = jsonsafe.fold_keys(item) if isinstance(item, dict) else {}
        pair = fields.get("containerid"), fields.get("ifname")
        if not all(isinstance(text, str) and text for text in pair):
            # Skipping it would take the resources of a container that is alive.
            raise CniError(INVALID_CONFIG, f"{VALID_ATTACHMENTS} has an invalid entry", shown(item))
        found.add((str(pair[0]), str(pair[1])))
    return frozenset(found)


def wanted_mac(conf: Conf, args: str) -> str:
    """The MAC that the runtime asks for, empty for none. Raises CniError (4, 7).

    In the bridge plugin's order: `runtimeConfig.mac`, `args.cni.mac`, `MAC` in CNI_ARGS.
    """
    runtime = jsonsafe.fold_keys(conf.section("runtimeconfig"))
    cni = jsonsafe.fold_keys(_object(jsonsafe.fold_keys(conf.section("args")), "cni"))
    value = runtime.get("mac") or cni.get("mac") or parse_args(args).get("MAC")
    if not value:
        return ""
    if not isinstance(value, str) or not _MAC.fullmatch(value) or not _is_unicast(value):
        raise CniError(INVALID_CONFIG, "mac must be a unicast MAC like 02:42:ac:11:00:02", shown(value))
    return value.lower()


def _is_unicast(mac: str) -> bool:
    octets = bytes.fromhex(mac.replace(":", ""))
    return not octets[0] & 1 and any(octets)


def refuse(conf: Conf, unsupported: Mapping[str, str]) -> None:
    """Raise CniError (2) for the first key of `unsupported` (lower-case key to what to do) that is set to something."""
    for key, advice in unsupported.items():
        value = conf.folded.get(key)
        if value:
            raise CniError(UNSUPPORTED_FIELD, f"unsupported field {key}={shown(value)}", advice)


def _object(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = fields.get(key)
    if value is not None and not isinstance(value, dict):
        raise CniError(INVALID_CONFIG, f"{key} must be an object", shown(value))
    return value or {}
