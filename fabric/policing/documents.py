"""YAML text with several documents to API objects, each with the lines at which it and its rules stand. Pure.

YAML 1.1 as PyYAML reads it, with what Kubernetes' own reader does otherwise or what could hide something: `8000:8010`
and dates stay text, a key that is given twice, a merge key and a tag of its own are refused, and so is a document of
more than MAX_NODES values (aliases count as often as they are used) or deeper than MAX_DEPTH. `List` kinds are opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 8 << 20
MAX_NODES = 500_000
MAX_DEPTH = 24
MOST = 10**18
"""Numbers are smaller than this and finite, so that what is remembered as JSON can be read back."""
_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp")}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class DocumentError(ValueError):
    """The file cannot be read as objects; `line` counts from 1, 0 where it is about the whole file."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Given:
    """One object as a source gives it.

    `value` is the decoded object. `file` and `line` say where it stands, empty and 0 for an object of an API; `lines`
    are those of its rules by their path (`spec.ingress[0]`); `alone` whether it is the only object of its file.
    """

    value: Mapping[str, Any]
    file: str = ""
    line: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)
    alone: bool = False

    def place(self, path: str = "") -> str:
        """`web.yaml:14`: of the rule at `path` if that is known, else of the object; empty for an API's."""
        return f"{self.file}:{self.lines.get(path, self.line)}" if self.file else ""


def parse_documents(data: bytes, file: str) -> list[Given]:
    """All objects of one file. Raises DocumentError, then nothing of the file can be trusted."""
    if len(data) > MAX_BYTES:
        raise DocumentError(0, f"{len(data)} bytes are more than the limit of {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
        loader = _Loader(text)
        try:
            found = list(_objects(loader, file))
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise DocumentError(0, f"not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or " ".join(str(error).split())[:150]
        raise DocumentError(mark.line + 1 if mark else 0, f"not YAML: {reason}") from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(0, f"not YAML: {type(error).__name__}") from None
    return [Given(g.value, g.file, g.line, g.lines, len(found) == 1) for g in found]


def _objects(loader: Any, file: str) -> Iterator[Given]:
    builder = _Builder(loader)
    while loader.check_node():
        node = loader.get_node()
        value = builder.build(node, 0)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise DocumentError(_line(node), "a document is not an object")
        items = value.get("items")
        if str(value.get("kind", "")).endswith("List") and isinstance(items, list):
            inner = _child(node, "items")
            for item, item_node in zip(items, inner.value, strict=True):
                if not isinstance(item, dict):
                    raise DocumentError(_line(item_node), "an item of a list is not an object")
                yield Given(item, file, _line(item_node), _rule_lines(item_node))
        else:
            yield Given(value, file, _line(node), _rule_lines(node))


class _Builder:
    """Nodes to values, within the limits, of one file."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._left = MAX_NODES

    def build(self, node: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise DocumentError(_line(node), f"more than {MAX_NODES} values, or deeper than {MAX_DEPTH}")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, depth + 1) for item in node.value]
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in found:
                raise DocumentError(_line(key_node), f"key {key[:60]!r} is given twice")
            found[key] = self.build(value_node, depth + 1)
        return found

    def _key(self, node: Any) -> str:
        if node.tag == f"{_TAG}merge":
            raise DocumentError(_line(node), "merge keys (<<) are not taken: write the fields out")
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN:
            raise DocumentError(_line(node), "a key is not a text")
        return str(node.value)

    def _scalar(self, node: Any) -> Any:
        if node.tag not in _PLAIN:
            raise DocumentError(_line(node), f"a value has the tag {node.tag[:60]}: only plain values are taken")
        if node.tag == f"{_TAG}timestamp" or (node.tag in (f"{_TAG}int", f"{_TAG}float") and ":" in node.value):
            return str(node.value)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            raise DocumentError(_line(node), f"{node.value[:60]!r} cannot be read") from None
        if isinstance(value, int | float) and not -MOST < value < MOST:
            raise DocumentError(_line(node), f"{node.value[:60]!r} is too large a number")
        return value


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _child(node: Any, name: str) -> Any:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == name:
            return value
    return None


def _rule_lines(node: Any) -> dict[str, int]:
    spec = _child(node, "spec")
    found = {}
    for side in ("ingress", "egress"):
        rules = _child(spec, side) if spec is not None else None
        if isinstance(rules, yaml.SequenceNode):
            found.update({f"spec.{side}[{i}]": _line(rule) for i, rule in enumerate(rules.value)})
    return found
