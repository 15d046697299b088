"""Stubs of compiled modules against the modules: every name is there, with the parameters the stub says."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUBS = sorted(stub for package in ("tun", "encap", "routes", "fabric") for stub in (ROOT / package).rglob("*.pyi"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """(dotted name, definition) of every function and method of a stub."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{item.name}", item) for item in node.body if isinstance(item, Function))


def names(definition: Function) -> list[tuple[str, bool, bool]]:
    """(name, keyword-only, has a default) of each parameter but `self`."""
    arguments = definition.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaulted = len(positional) - len(arguments.defaults)
    found = [(a.arg, False, i >= defaulted) for i, a in enumerate(positional)]
    found += [(a.arg, True, d is not None) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [item for item in found if item[0] not in ("self", "cls")]


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: str(stub.relative_to(ROOT)))
def test_stub_agrees_with_its_module(stub: Path) -> None:
    module = importlib.import_module(".".join(stub.relative_to(ROOT).with_suffix("").parts))
    assert not str(module.__file__).endswith(".py"), "a stub beside a module that is not compiled"
    for dotted, definition in functions(ast.parse(stub.read_text())):
        found = module
        for part in dotted.split("."):
            found = getattr(found, part)
        if dotted.endswith("__") or definition.decorator_list:
            continue  # a constructor in C and a property have no signature
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
        every = [(p.name, p.kind is p.KEYWORD_ONLY, p.default is not p.empty) for p in parameters]
        actual = [item for item in every if item[0] not in ("self", "cls")]
        assert actual == names(definition), f"{stub.name}: {dotted}"
