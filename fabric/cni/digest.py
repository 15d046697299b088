"""SHA-256 without OpenSSL, which `hashlib` loads for 3 to 5 ms of every start. The standard library's `random` does the
same for the same reason."""

from __future__ import annotations

from importlib import import_module


def sha256(data: bytes) -> str:
    """The digest as hexadecimal digits."""
    for name in ("_sha2", "_sha256", "hashlib"):  # Python 3.12, 3.11, any
        try:
            module = import_module(name)
        except ImportError:
            continue
        return str(module.sha256(data).hexdigest())
    raise ImportError("this Python has no SHA-256")
