"""How to reach etcd: what the `--etcd-*` flags say, checked. Imports nothing heavy: the daemon may always have it.

Rules as flannel's (`pkg/subnet/etcd/registry.go`, etcd `client/pkg/transport`): a client certificate is used when both
its files are given; `https://` alone makes TLS, with `--etcd-cafile` or else the system's authorities.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from fabric.errors import ConfigError, StoreUnavailableError

DEFAULT_ENDPOINTS = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """The flags; `prefix` is flannel's `--etcd-prefix`, under which `config` and `subnets/` lie. "" is not given."""

    endpoints: tuple[str, ...] = DEFAULT_ENDPOINTS
    prefix: str = "/coreos.com/network"
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        """Without the password, wherever this gets printed."""
        return f"EtcdSettings(endpoints={self.endpoints}, prefix={self.prefix!r}, username={self.username!r})"

    @property
    def client_certificate(self) -> bool:
        """Whether we show a certificate of our own."""
        return bool(self.certfile and self.keyfile)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of etcd; `url` is what people know it by."""

    url: str
    host: str
    port: int
    tls: bool


def parse_endpoints(settings: EtcdSettings) -> tuple[Endpoint, ...]:
    """The endpoints. Raises ConfigError for one that is no `http://HOST:PORT` or `https://HOST:PORT`."""
    found = tuple(_endpoint(text.strip(), settings) for text in settings.endpoints if text.strip())
    if not found:
        raise ConfigError("--etcd-endpoints is empty: give at least one http:// or https:// URL")
    return found


def _endpoint(text: str, settings: EtcdSettings) -> Endpoint:
    if "@" in text:  # never repeated: it may hold a password
        raise ConfigError("--etcd-endpoints: no user name in a URL; use --etcd-username and --etcd-password")
    # Without a scheme the TLS options decide, as in etcd's own client.
    tls_wanted = bool(settings.cafile) or settings.client_certificate
    url = text if "://" in text else f"{'https' if tls_wanted else 'http'}://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
        raise ConfigError(f"--etcd-endpoints: {text!r} is not of the form http://HOST:PORT or https://HOST:PORT")
    return Endpoint(url.rstrip("/"), host, port or DEFAULT_PORT, parts.scheme == "https")


def tls_context(settings: EtcdSettings) -> ssl.SSLContext:
    """A fresh context, so that renewed files count from the next connection on. Raises StoreUnavailableError."""
    flag, path = "--etcd-cafile", settings.cafile
    try:
        context = ssl.create_default_context(cafile=settings.cafile or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if settings.client_certificate:
            flag, path = "--etcd-certfile and --etcd-keyfile", f"{settings.certfile}, {settings.keyfile}"
            # An encrypted key would otherwise be asked for on the terminal.
            context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: "")
    except ssl.SSLError as error:
        reason = (error.reason or "").replace("_", " ").lower() or "unreadable"
        raise StoreUnavailableError(f"{flag} {path}: no usable PEM file ({reason})") from None
    except OSError as error:
        raise StoreUnavailableError(f"{flag} {path}: {error.strerror}") from None
    return context
