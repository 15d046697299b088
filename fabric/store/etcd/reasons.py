"""What went wrong with etcd, as one line for people: what failed, where, why, what to do. No secret gets in here."""

from __future__ import annotations

import socket
import ssl

from fabric.errors import NotConnectedError, StoreCorruptError, StoreUnavailableError
from fabric.store.etcd.http2 import StatusError
from fabric.store.etcd.settings import Endpoint, EtcdSettings

# gRPC status codes (grpc/doc/statuscodes.md); the texts are those of etcd's api/v3rpc/rpctypes/error.go.
PERMISSION_DENIED, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, UNAUTHENTICATED = 7, 9, 11, 12, 16
_OUTCOME_UNKNOWN = {1, 2, 4, 13, 14, 15}  # cancelled, unknown, deadline exceeded, internal, unavailable, data loss
_NO_LEADER = "most members of its cluster are down or cannot reach each other"
_KNOWN: tuple[tuple[str, str], ...] = (
    ("user name is empty", "asks for a user: give --etcd-username and --etcd-password"),
    ("authentication failed", "does not accept the user's name or password: check --etcd-username, --etcd-password"),
    ("no leader", f"has no leader: {_NO_LEADER}"),
    ("request timed out", f"cannot decide anything: {_NO_LEADER}"),
    ("leader changed", "is changing its leader"),
    ("database space exceeded", "is full: compact, defragment and then `etcdctl alarm disarm`"),
    ("too many requests", "is overloaded"),
    ("corrupt cluster", "says that its data is corrupt: look at `etcdctl alarm list`, restore a backup"),
)


class RefusedError(StoreUnavailableError):
    """etcd did not do what it was asked to do; `status` says why."""

    def __init__(self, message: str, status: StatusError) -> None:
        super().__init__(message)
        self.status = status


def stale_token(error: StatusError) -> bool:
    """Whether the call may work with a new token: ours expired, its member restarted, or users were changed."""
    return error.code == UNAUTHENTICATED or "auth token" in error.text or "auth store is old" in error.text


def of_status(endpoint: Endpoint, settings: EtcdSettings, error: StatusError) -> StoreUnavailableError:
    """The error of a call that etcd refused."""
    message = f"etcd {endpoint.url} {_refusal(settings, error)}"
    if error.code == UNIMPLEMENTED or "corrupt cluster" in error.text:
        return StoreCorruptError(message)
    return StoreUnavailableError(message) if error.code in _OUTCOME_UNKNOWN else RefusedError(message, error)


def _refusal(settings: EtcdSettings, error: StatusError) -> str:
    for part, words in _KNOWN:
        if part in error.text:
            return words
    if error.code == UNIMPLEMENTED:
        return "has no v3 API: podfabric needs etcd 3.2 or newer"
    if error.code == PERMISSION_DENIED or "permission denied" in error.text:
        who = f"the user {settings.username!r}" if settings.username else "us"
        advice = f"`etcdctl role grant-permission ROLE readwrite {settings.prefix} --prefix`"
        return f"keeps {who} away from {settings.prefix}: grant it with {advice}"
    return f"refuses: {error.text.removeprefix('etcdserver: ')!r} (gRPC status {error.code})"


def of_connecting(endpoint: Endpoint, settings: EtcdSettings, error: BaseException) -> StoreUnavailableError:
    """The error of a connection that could not be made. `error` is an OSError, TimeoutError or what ended it."""
    cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    message = f"etcd {endpoint.url} {_connecting(endpoint, settings, cause)}"
    reached = isinstance(cause, ssl.SSLError) or not isinstance(cause, OSError)
    return StoreUnavailableError(message) if reached else NotConnectedError(message)


def _connecting(endpoint: Endpoint, settings: EtcdSettings, error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification(error)
    if isinstance(error, ssl.SSLError):
        return _tls(settings, error)
    if isinstance(error, socket.gaierror):
        return f"cannot be reached, no such host {endpoint.host!r}: correct --etcd-endpoints or the DNS"
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection: start etcd there or correct --etcd-endpoints"
    if isinstance(error, TimeoutError):
        return "does not answer: look at the network and the firewalls on the way"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return f"cannot be reached: {error.strerror or error}"
    if str(error).startswith("does not"):
        return str(error)
    if endpoint.tls:
        return (
            f"closed the connection before it answered: wrong port, http:// there, or {_certificate_advice(settings)}"
        )
    return "closed the connection before it answered: wrong port, or https:// there"


def _verification(error: ssl.SSLCertVerificationError) -> str:
    text = error.verify_message.rstrip(".")
    if "mismatch" in text or "not valid for" in text:
        return f"has a certificate for another name ({text}): use a name that it has in --etcd-endpoints"
    if "expired" in text or "not yet valid" in text:
        return f"has a certificate that does not hold now ({text}): renew it or set this machine's clock"
    return f"has a certificate that is not trusted ({text}): give the authority that signed it as --etcd-cafile"


def _tls(settings: EtcdSettings, error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return "does not speak TLS: use http:// in --etcd-endpoints"
    if "ALERT" in reason and ("CERT" in reason or "UNKNOWN_CA" in reason or "HANDSHAKE" in reason):
        return f"refuses our side of TLS ({_lower(reason)}): {_certificate_advice(settings)}"
    return f"cannot be talked to over TLS ({_lower(reason) or error})"


def _certificate_advice(settings: EtcdSettings) -> str:
    if settings.client_certificate:
        return "it may not trust our certificate, see --etcd-certfile and the authority that etcd is told to trust"
    return "it may want a client certificate, give --etcd-certfile and --etcd-keyfile"


def _lower(reason: str) -> str:
    return reason.replace("_", " ").lower()
