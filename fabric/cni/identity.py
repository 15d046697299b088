"""Whose interface it is, as far as the runtime says: the pod's namespace, name and uid, and its labels. Pure.

Kubernetes' runtimes give K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID and K8S_POD_INFRA_CONTAINER_ID in CNI_ARGS;
`args.cni.labels` is CNI's convention for labels (CONVENTIONS.md), a list of keys and values. It is for people and
policies: what is not a name or a label is left out, and is never a reason to refuse a pod.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.cni.config import Conf
from fabric.cni.errors import CniError
from fabric.cni.protocol import Request, parse_args

MAX_TEXT, MAX_LABELS = 253, 64
"""Kubernetes' limit for names, in bytes; and more labels than anybody has."""
_ARGS = {"namespace": "K8S_POD_NAMESPACE", "name": "K8S_POD_NAME", "uid": "K8S_POD_UID"}


class Identity(NamedTuple):
    """`pod` has `container_id`, and `namespace`, `name`, `uid` where they are known."""

    pod: dict[str, str]
    labels: dict[str, str]


def identity(conf: Conf, request: Request) -> Identity:
    """The pod of a request. Raises nothing."""
    try:
        args = parse_args(request.args)
    except CniError:  # whoever needs them complains
        args = {}
    container_id = args.get("K8S_POD_INFRA_CONTAINER_ID") or request.container_id
    pod = {key: args[name] for key, name in _ARGS.items() if _is_text(args.get(name))}
    pod["container_id"] = container_id if _is_text(container_id) else request.container_id
    found = _labels(_inner(_inner(conf.folded, "args"), "cni").get("labels"))
    found |= _labels(_inner(conf.folded, "runtimeconfig").get("labels"))
    return Identity(pod, dict(list(found.items())[:MAX_LABELS]))


def _inner(fields: dict[str, Any], key: str) -> dict[str, Any]:
    value = fields.get(key)
    return jsonsafe.fold_keys(value) if isinstance(value, dict) else {}


def _labels(value: object) -> dict[str, str]:
    if isinstance(value, list):
        pairs = [(item.get("key"), item.get("value")) for item in value if isinstance(item, dict)]
    else:
        pairs = list(value.items()) if isinstance(value, dict) else []
    return {str(key): str(text) for key, text in pairs if _is_text(key) and (text == "" or _is_text(text))}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= MAX_TEXT
