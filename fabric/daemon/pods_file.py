"""The pods' interfaces on disk, so that a restarted daemon finds its ports again, and their form in the control API.

`<state-dir>/pods.json`, mode 0600, replaced atomically: `{"version": 1, "boot_id": "...", "pods": [...]}`. `boot_id` is
that of the kernel under which it was written: no pod of another boot is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.errors import FabricError
from fabric.files import read_private, write_atomic
from fabric.model import Endpoint
from tun.netns import NetnsIdentity

NAME = "pods.json"
VERSION = 1
MAX_BYTES = 16 << 20
KINDS = ("tun", "tap", "veth", "bridge")
MAX_LABELS = 256
_TEXTS = ("name", "kind", "netns", "ifname", "mac")
_POD = {"namespace": "pod_namespace", "name": "pod_name", "uid": "pod_uid", "container_id": "container_id"}


class Known(NamedTuple):
    """An endpoint, and which namespace its path led to when it was added; None when it did not lead to any."""

    endpoint: Endpoint
    netns: NetnsIdentity | None


class Remembered(NamedTuple):
    """The file's content. `problem` says in a few words why it is not complete."""

    boot_id: str = ""
    pods: tuple[Known, ...] = ()
    problem: str = ""


def described(endpoint: Endpoint) -> dict[str, Any]:
    """The record as the control API gives it; `parse` reads it."""
    return {
        **{key: getattr(endpoint, key) for key in _TEXTS},
        "addresses": [str(address) for address in endpoint.addresses],
        "mtu": endpoint.mtu,
        "pod": {key: getattr(endpoint, field) for key, field in _POD.items()},
        "labels": dict(endpoint.labels),
        "since": endpoint.since,
    }


def parse(params: Mapping[str, Any], method: str, since: float) -> Endpoint:
    """The endpoint of a request. Raises FabricError with the first thing that is wrong."""
    texts = {key: params.get(key, "") for key in _TEXTS} | {"kind": params.get("kind") or "tun"}
    for key, value in texts.items():
        if not isinstance(value, str) or not value.isprintable() or (key != "mac" and not value):
            raise FabricError(f"{method}: {key} must be a non-empty string")
    if texts["kind"] not in KINDS:
        raise FabricError(f"{method}: kind must be one of {', '.join(KINDS)}")
    mtu = params.get("mtu")
    if mtu is not None and (type(mtu) is not int or mtu < 0):
        raise FabricError(f"{method}: mtu must be a number of bytes")
    pod = _texts(params, "pod", method)
    addresses = _addresses(params.get("addresses", []), method, str(texts["name"]))
    who = {field: pod.get(key, "") for key, field in _POD.items()}
    labels = _texts(params, "labels", method)
    return Endpoint(**texts, addresses=addresses, mtu=mtu or 0, **who, labels=labels, since=since)  # type: ignore[arg-type]


def save(directory: Path, boot_id: str, pods: Iterable[Known]) -> None:
    """Replace the file. Raises OSError."""
    items = [{**described(known.endpoint), "netns_id": known.netns} for known in pods]
    data = jsonsafe.dumps({"version": VERSION, "boot_id": boot_id, "pods": items}).encode()
    write_atomic(directory / NAME, data, 0o600, 0o700)


def load(directory: Path, owner: int | None = None) -> Remembered:
    """Read the file back; what cannot be read counts as absent. Never raises. `owner` is whose it may be besides root.
    """
    try:
        # Whoever else could write it could have us open namespaces and take over addresses.
        document = jsonsafe.loads(read_private(directory / NAME, MAX_BYTES, owner), max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return Remembered()
    except OSError as error:
        return Remembered(problem=error.strerror or str(error))
    except jsonsafe.JsonError as error:
        return Remembered(problem=str(error))
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return Remembered(problem="it is not of this version")
    boot_id, items = document.get("boot_id"), document.get("pods")
    if not isinstance(boot_id, str) or not isinstance(items, list):
        return Remembered(problem="fields are missing")
    parsed = [_known(item) for item in items]
    bad = sum(item is None for item in parsed)
    return Remembered(boot_id, tuple(filter(None, parsed)), f"{bad} records are damaged" if bad else "")


def _known(item: Any) -> Known | None:
    if not isinstance(item, dict) or not isinstance(item.get("since"), int | float):
        return None
    identity = item.get("netns_id")
    whole = isinstance(identity, list) and len(identity) == 3 and all(type(number) is int for number in identity)
    if identity is not None and not whole:
        return None
    try:
        return Known(parse(item, NAME, item["since"]), NetnsIdentity(*identity) if identity else None)
    except FabricError:
        return None


def _addresses(value: Any, method: str, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FabricError(f"{method}: addresses must be a list of strings like 10.244.1.5/24")
    try:
        return tuple(ip_address(item.partition("/")[0]) for item in value)
    except ValueError as error:
        raise FabricError(f"{method}: port {name}: {error}") from None


def _texts(params: Mapping[str, Any], key: str, method: str) -> dict[str, str]:
    value = params.get(key) or {}
    whole = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if not whole or len(value) > MAX_LABELS:
        raise FabricError(f"{method}: {key} must be an object of at most {MAX_LABELS} strings")
    return dict(value)
