"""YAML files to objects: what is read, where it stands, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fabric.policing import last_good
from fabric.policing.documents import DocumentError, parse_documents

TWO = b"""\
# a comment
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector: {}
  - ports:
    - port: 80
---
---
kind: List
items:
- kind: Pod
- kind: Node
"""


def test_documents_have_their_lines() -> None:
    found = parse_documents(TWO, "a.yaml")
    assert [(item.value["kind"], item.line, item.alone) for item in found] == [
        ("Namespace", 2, False), ("NetworkPolicy", 6, False), ("Pod", 21, False), ("Node", 22, False)
    ]  # fmt: skip
    assert found[1].lines == {"spec.ingress[0]": 13, "spec.ingress[1]": 15}
    assert found[1].place("spec.ingress[1]") == "a.yaml:15"
    assert found[1].place("spec") == "a.yaml:6"


def test_json_and_one_object() -> None:
    (found,) = parse_documents(b'{"kind": "Pod", "n": 1.5, "t": true, "z": null}', "a.json")
    assert found.alone
    assert found.value == {"kind": "Pod", "n": 1.5, "t": True, "z": None}


@pytest.mark.parametrize("text", [b"", b"---\n", b"# nothing\n"])
def test_nothing(text: bytes) -> None:
    assert parse_documents(text, "a.yaml") == []


@pytest.mark.parametrize("text", ["8000:8010", "2026-11-26", "1:20.5"])
def test_what_yaml_1_1_makes_a_number_or_a_date_of_stays_text(text: str) -> None:
    (found,) = parse_documents(f"a: {text}".encode(), "a.yaml")
    assert found.value == {"a": text}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (b"a: 1\nb: 2\na: 3\n", 3, "'a' is given twice"),
        (b"x: &a {b: 1}\ny:\n  <<: *a\n", 3, "merge keys"),
        (b"a: !!python/object:os.system x\n", 1, "tag"),
        (b"a: !!binary aGk=\n", 1, "tag"),
        (b"- a\n", 1, "not an object"),
        (b"? [1]\n: 2\n", 1, "a key is not a text"),
        (b"a: [\n", 2, "not YAML"),
        (b"a: \xff\n", 0, "not UTF-8"),
        (b"a: " + b"[" * 200 + b"]" * 200, 1, "deeper than"),
        (b"kind: List\nitems: [1]\n", 2, "an item of a list"),
        (b"a: 1\nb: .inf\n", 2, "too large"),
        (b"a: .nan\n", 1, "too large"),
        (b"a: 1.0e+999\n", 1, "too large"),
        (b"a: " + b"9" * 30, 1, "too large"),
        (b"a: " + b"9" * 9_000, 1, "cannot be read"),
    ],
)
def test_refusals(text: bytes, line: int, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason) as caught:
        parse_documents(text, "a.yaml")
    assert caught.value.line == line


@pytest.mark.slow
def test_aliases_are_taken_and_a_bomb_of_them_is_not() -> None:
    (found,) = parse_documents(b"a: &x {k: v}\nb: *x\n", "a.yaml")
    assert found.value["b"] == {"k": "v"}
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(DocumentError, match="more than"):
        parse_documents(bomb.encode(), "a.yaml")


PARTS = ["a", "kind", "List", "items", ":", " ", "\n", "-", "[", "]", "{", "}", "&x", "*x", "<<", "!!binary", "!t", "|",
         ">", "'", '"', "\t", "1e9", "0x", "---\n", "...", "?", ",", "#", "%YAML", "\x00", "\ud800"]  # fmt: skip
CHARACTERS = st.characters(codec="ascii", exclude_categories=["Cc"]) | st.sampled_from("\n\tä\U0001f600")
TEXTS = st.text(CHARACTERS, max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e17, 1e17) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    refused = ""
    with suppress(DocumentError):
        try:
            assert all(isinstance(item.value, dict) for item in parse_documents(data, "a.yaml"))
        except DocumentError as error:
            refused = str(error)
            raise
    assert "\n" not in refused


@pytest.mark.slow
@given(st.dictionaries(TEXTS.filter(lambda key: key != "kind"), VALUES, max_size=4))
def test_what_was_dumped_is_read_back_and_can_be_remembered(value: dict[str, object]) -> None:
    (found,) = parse_documents(yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass"), "a.yaml")
    assert found.value == value
    assert json.loads(last_good.render({"t": {"k": found}}))["sources"]["t"][0]["object"] == value


def test_the_memory_is_read_back(tmp_path: Path) -> None:
    found = parse_documents(TWO, "a.yaml")[1]
    last_good.save(tmp_path, last_good.render({"t": {"k": found}}))
    assert last_good.load(tmp_path)["t"]["k"].value == found.value
