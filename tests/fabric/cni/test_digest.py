"""Names and MACs follow from this digest, also those that earlier versions have made."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.cni import digest
from fabric.cni.attachment import Attachment


@given(st.binary(max_size=200))
def test_it_is_the_usual_one(data: bytes) -> None:
    assert digest.sha256(data) == hashlib.sha256(data).hexdigest()


def test_a_python_without_the_lean_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    load = digest.import_module

    def without(name: str) -> Any:
        if name.startswith("_"):
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(digest, "import_module", without)
    assert digest.sha256(b"pod") == hashlib.sha256(b"pod").hexdigest()


def test_a_hosts_interface_keeps_its_name() -> None:
    expected = hashlib.sha256(b"podnet\0c1\0eth0").hexdigest()
    assert Attachment("podnet", "c1", "eth0").host_interface == f"veth{expected[:11]}"
