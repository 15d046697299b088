"""Certificates for tests, made by the openssl command (a dependency of Debian's ca-certificates)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and of its key, PEM."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority whose files lie in `directory`; `cafile` is what clients are told to trust."""

    def __init__(self, directory: Path, name: str = "podfabric test CA") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.cafile = directory / "ca.crt"
        self._key = directory / "ca.key"
        _openssl("req", "-x509", "-days", "2", "-subj", f"/CN={name}", *_EC, "-keyout", self._key, "-out", self.cafile)

    def issue(self, name: str, hosts: Sequence[str] = ("127.0.0.1", "::1", "localhost"), days: int = 2) -> Pair:
        """A certificate with common name `name` for `hosts`, good for servers and clients."""
        pair = Pair(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        request = self._directory / f"{name}.csr"
        names = ",".join(("IP:" if host[-1].isdigit() or ":" in host else "DNS:") + host for host in hosts)
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n"
            "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        _openssl("req", "-subj", f"/CN={name}", *_EC, "-keyout", pair.key, "-out", request)
        sign = ("x509", "-req", "-days", str(days), "-CA", self.cafile, "-CAkey", self._key, "-CAcreateserial")
        _openssl(*sign, "-in", request, "-extfile", extensions, "-out", pair.cert)
        return pair


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
