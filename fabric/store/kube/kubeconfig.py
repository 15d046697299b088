"""A kubeconfig file as `Access`: the current context's cluster and user.

Source: Kubernetes documentation "Organizing Cluster Access Using kubeconfig Files", API `v1.Config`. Paths in it are
relative to the file. What would need another program or a person (exec plugins, passwords) is refused.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fabric.errors import StartError
from fabric.store.kube.access import Access, Source, endpoint

MAX_BYTES = 4 << 20
REFUSED = {
    "exec": "an exec plugin",
    "auth-provider": "an auth provider",
    "username": "a user name and password",
    "password": "a user name and password",
    "as": "impersonation",
}


def load(path: Path, api_url: str = "") -> Access:
    """Read `path`; `api_url` replaces its server. Raises StartError with one line."""
    config = _Reader(path, _parse(path))
    context: Mapping[str, Any] = {}
    name = config.text(config.document, "current-context", "the file")
    if name:
        context = config.named("contexts", "context", name)
    elif not api_url:
        raise StartError(f"--kubeconfig-file {path} has no current-context: set one with kubectl config use-context")
    cluster_name, user_name = (config.text(context, key, f"context {name}") for key in ("cluster", "user"))
    cluster = config.named("clusters", "cluster", cluster_name) if cluster_name else {}
    user = config.named("users", "user", user_name) if user_name else {}
    return _access(config, cluster, user, api_url, f"user {user_name}")


def _access(
    config: _Reader, cluster: Mapping[str, Any], user: Mapping[str, Any], api_url: str, whose: str
) -> Access:
    for word, what in REFUSED.items():
        if user.get(word):
            raise StartError(
                f"--kubeconfig-file {config.path}: {whose} uses {what}, which is not supported here: "
                "give the user a token, a token file or a client certificate"
            )
    if cluster.get("proxy-url"):
        raise StartError(f"--kubeconfig-file {config.path}: proxy-url is not supported here: give a direct server")
    server = api_url or config.text(cluster, "server", "the cluster")
    if not server:
        raise StartError(f"--kubeconfig-file {config.path}: the cluster has no server: give --kube-api-url")
    where = endpoint(server, f"--kubeconfig-file {config.path}: server", config.text(cluster, "tls-server-name", "it"))
    certificate, key = config.source(user, "client-certificate"), config.source(user, "client-key")
    if (certificate is None) != (key is None):
        raise StartError(f"--kubeconfig-file {config.path}: {whose} needs both client-certificate and client-key")
    file = config.text(user, "tokenFile", whose)  # wins over the token, as with client-go
    token: Source | None = config.path.parent / file if file else config.text(user, "token", whose).encode() or None
    return Access(
        where,
        token=token,
        ca=config.source(cluster, "certificate-authority"),
        certificate=certificate,
        key=key,
        insecure=cluster.get("insecure-skip-tls-verify") is True,
    )


class _Reader:
    """Typed looks into the document."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self.path = path
        self.document = document

    def named(self, plural: str, singular: str, name: str) -> Mapping[str, Any]:
        """The item called `name` of one of the three lists."""
        items = self.document.get(plural)
        for item in items if isinstance(items, list) else ():
            found = item.get(singular) if isinstance(item, dict) and item.get("name") == name else None
            if isinstance(found, dict):
                return found
        raise StartError(f"--kubeconfig-file {self.path}: there is no {singular} {name[:80]!r}")

    def text(self, item: Mapping[str, Any], key: str, whose: str) -> str:
        value = item.get(key)
        if value is not None and not isinstance(value, str):
            raise StartError(f"--kubeconfig-file {self.path}: {key} of {whose} is not a string")
        return value or ""

    def source(self, item: Mapping[str, Any], key: str) -> Source | None:
        """`KEY-data` in base64, which wins, or the file `KEY`."""
        data = self.text(item, f"{key}-data", "it")
        if data:
            try:
                return base64.b64decode("".join(data.split()), validate=True)
            except (binascii.Error, ValueError):
                raise StartError(f"--kubeconfig-file {self.path}: {key}-data is not base64") from None
        file = self.text(item, key, "it")
        return self.path.parent / file if file else None


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise StartError(f"--kubeconfig-file {path} is larger than 4 MiB: this is no kubeconfig")
        document = yaml.safe_load(text)
    except OSError as error:
        raise StartError(f"--kubeconfig-file {path}: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StartError(f"--kubeconfig-file {path} is not YAML: {' '.join(str(error).split())[:150]}") from None
    if not isinstance(document, dict):
        raise StartError(f"--kubeconfig-file {path} is not a kubeconfig: give the file that kubectl uses")
    return document
