"""Calico's selector expressions: text to `selectors`. A small recursive-descent parser with bounds.

    either := both ("||" both)*
    both   := factor ("&&" factor)*
    factor := "!" factor | "(" either ")" | "all()" | "global()" | "has(" label ")" | label comparison
    comparison := ("==" | "!=" | "contains" | "starts with" | "ends with") string
                | ["not"] "in" "{" [string ("," string)*] "}"

`!=` and `not in` match what lacks the label. Source: Calico's documentation of selectors and
`libcalico-go/lib/selector`. `global()` means "in no namespace": the label of the namespace is lacking.
Limits: 16,384 characters, 1,024 tokens, nesting of 32.
"""

from __future__ import annotations

import re

from fabric.policy.errors import PolicyError
from fabric.policy.selectors import EVERYTHING, All, Any, Has, In, Not, Part, Selector

NAMESPACE_LABEL = "projectcalico.org/namespace"
MAX_TEXT = 16_384
MAX_TOKENS = 1_024
MAX_DEPTH = 32
TOKEN = re.compile(
    r"\s*(?:(?P<string>'[^']*'|\"[^\"]*\")|(?P<sign>==|!=|&&|\|\||[!(){},])"
    r"|(?P<words>starts\s+with\b|ends\s+with\b|not\s+in\b)|(?P<label>[A-Za-z0-9_./-]{1,512}))"
)


def parse_selector(text: str, path: str) -> Selector:
    """The selector that `text` says; empty text selects everything. Raises PolicyError naming the position."""
    if len(text) > MAX_TEXT:
        raise PolicyError(path, f"has {len(text)} characters, more than the limit of {MAX_TEXT}")
    if not text.strip():
        return EVERYTHING
    return _Parser(_tokens(text, path), path).whole()


def _tokens(text: str, path: str) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = TOKEN.match(text, position)
        if not match or len(found) >= MAX_TOKENS:
            found_text = text[position : position + 12]
            reason = f"more than {MAX_TOKENS} tokens" if match else f"{found_text!r} is not understood"
            raise PolicyError(path, f"at character {position + 1}: {reason}")
        kind = match.lastgroup or ""
        word = match[kind]
        found.append((kind, word.split()[0] if kind == "words" else word, match.start(kind) + 1))
        position = match.end()
    found.append(("end", "the end", end + 1))
    return found


class _Parser:
    def __init__(self, tokens: list[tuple[str, str, int]], path: str) -> None:
        self.tokens = tokens
        self.path = path
        self.next = 0
        self.depth = 0

    def whole(self) -> Selector:
        found = self.either()
        if self.tokens[self.next][0] != "end":
            self.refuse("the end")
        return found

    def refuse(self, wanted: str) -> None:
        _, word, position = self.tokens[self.next]
        raise PolicyError(self.path, f"at character {position}: {word!r} where {wanted} was expected")

    def take(self, kind: str, word: str | None = None) -> str | None:
        """The next token if it is this one."""
        found_kind, found, _ = self.tokens[self.next]
        if found_kind != kind or (word is not None and found != word):
            return None
        self.next += 1
        return found

    def need(self, kind: str, word: str | None = None) -> str:
        found = self.take(kind, word)
        if found is None:
            self.refuse(repr(word) if word else f"a {kind}")
        return found or ""

    def either(self) -> Selector:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PolicyError(self.path, f"is nested deeper than {MAX_DEPTH}")
        parts = [self.both()]
        while self.take("sign", "||"):
            parts.append(self.both())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def both(self) -> Selector:
        parts = [self.factor()]
        while self.take("sign", "&&"):
            parts.append(self.factor())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def factor(self) -> Selector:
        negated = 0
        while self.take("sign", "!"):
            negated += 1
        if self.take("sign", "("):
            found = self.either()
            self.need("sign", ")")
        else:
            found = self.simple(self.need("label"))
        return Not(found) if negated % 2 else found

    def simple(self, label: str) -> Selector:
        if label in ("all", "global", "has") and self.take("sign", "("):
            if label == "has":
                found: Selector = Has(self.need("label"))
            else:
                found = EVERYTHING if label == "all" else Not(Has(NAMESPACE_LABEL))
            self.need("sign", ")")
            return found
        if self.take("sign", "=="):
            return In(label, frozenset([self.string()]))
        if self.take("sign", "!="):
            return Not(In(label, frozenset([self.string()])))
        if self.take("label", "in"):
            return In(label, self.strings())
        if self.take("words", "not"):
            return Not(In(label, self.strings()))
        if self.take("label", "contains"):
            return Part(label, "contains", self.string())
        for how in ("starts", "ends"):
            if self.take("words", how):
                return Part(label, how, self.string())
        self.refuse("a comparison")
        raise AssertionError("unreachable")

    def string(self) -> str:
        return self.need("string")[1:-1]

    def strings(self) -> frozenset[str]:
        self.need("sign", "{")
        found = []
        while not self.take("sign", "}"):
            found.append(self.string())
            if not self.take("sign", ","):
                self.need("sign", "}")
                break
        return frozenset(found)
