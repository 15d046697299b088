"""Where the API is and who we are there: in the cluster, by a kubeconfig file, or by `--kube-api-url`.

As flannel (client-go's BuildConfigFromFlags): with neither flag the pod's service account is used; a URL alone means
access without credentials; a URL beside a kubeconfig replaces the file's server. Tokens and certificates are read again
for every connection, so that rotated ones are used without a restart.

Source: Kubernetes documentation "Accessing the API from within a Pod", client-go `rest.InClusterConfig`.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fabric.errors import StartError, StoreUnavailableError
from fabric.store.kube.http import Endpoint

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_TOKEN_BYTES = 64 << 10
Source = Path | bytes


@dataclass(frozen=True, slots=True)
class Access:
    """Endpoint and credentials. A `Source` is a file, read anew for each use, or the content itself (PEM, token).

    `ca` None means the system's authorities; `insecure` that the server's certificate is not looked at.
    """

    endpoint: Endpoint
    token: Source | None = field(default=None, repr=False)
    ca: Source | None = None
    certificate: Source | None = None
    key: Source | None = field(default=None, repr=False)
    insecure: bool = False

    def headers(self) -> list[tuple[str, str]]:
        """The Authorization header, if there is a token. Raises StoreUnavailableError when it cannot be read."""
        if self.token is None:
            return []
        text = _content(self.token, "token").decode("latin-1").strip()
        if not text or not text.isascii() or any(ord(char) <= 32 for char in text):
            raise StoreUnavailableError(f"token {_shown(self.token)} is empty or no token")
        return [("Authorization", f"Bearer {text}")]

    def context(self) -> ssl.SSLContext | None:
        """A TLS context, None without TLS. Raises StoreUnavailableError for files that cannot be used."""
        if not self.endpoint.tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            elif self.ca is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(cadata=_content(self.ca, "certificate authority").decode("ascii"))
            if self.certificate is not None and self.key is not None:
                with _file(self.certificate) as certificate, _file(self.key) as key:
                    context.load_cert_chain(certificate, key)
        except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
            which = f"{_shown(self.ca)}, {_shown(self.certificate)}"
            raise StoreUnavailableError(f"certificates for {self.endpoint} cannot be used ({which}): {error}") from None
        return context


def load(api_url: str, kubeconfig: str, environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Access:
    """The access that `--kube-api-url` and `--kubeconfig-file` ask for. Raises StartError with one line."""
    if kubeconfig:
        from fabric.store.kube import kubeconfig as module  # YAML, and only needed here

        return _checked(module.load(Path(kubeconfig), api_url))
    if api_url:
        return Access(endpoint(api_url, "--kube-api-url"))
    return _checked(_in_cluster(environ, account))


def endpoint(url: str, where: str, server_name: str = "") -> Endpoint:
    """Parse the API's address; `where` it stands is for the message. Raises StartError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValueError("not an address of an API server")
    except ValueError:
        raise StartError(f"{where} {url[:80]!r} is not http://HOST[:PORT] or https://HOST[:PORT]") from None
    tls = parts.scheme == "https"
    return Endpoint(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"), server_name)


def _in_cluster(environ: Mapping[str, str], account: Path) -> Access:
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise StartError(
            "not in a pod (KUBERNETES_SERVICE_HOST is not set): give --kubeconfig-file or --kube-api-url"
        )
    shown = f"[{host}]" if ":" in host else host
    where = endpoint(f"https://{shown}:{port}", "KUBERNETES_SERVICE_HOST")
    return Access(where, token=account / "token", ca=account / "ca.crt")


def _checked(access: Access) -> Access:
    """Everything readable at the start, so that a wrong path is refused and not retried for ever."""
    try:
        access.headers()
        access.context()
    except StoreUnavailableError as error:
        raise StartError(str(error)) from None
    return access


def _content(source: Source, what: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with source.open("rb") as file:
            return file.read(MAX_TOKEN_BYTES if what == "token" else -1)
    except OSError as error:
        raise StoreUnavailableError(f"{what} {source}: {error.strerror}") from None


def _shown(source: Source | None) -> str:
    return str(source) if isinstance(source, Path) else "inline" if source else "none"


@contextlib.contextmanager
def _file(source: Source) -> Iterator[str]:
    """A path for OpenSSL, which takes nothing else; inline content goes through memory, never to the disk."""
    if isinstance(source, Path):
        yield str(source)
        return
    handle = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(handle, source)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
