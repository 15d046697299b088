"""Mutations of well-formed inputs from a seeded generator: of bytes, and of the words that a text consists of.

Plain random choice: at some ten microseconds a case, where Hypothesis takes a hundred times as long, a million cases
per reader fit into a stage. What is looked for is the exception that nobody expected, and that needs numbers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_WORD = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.:/+-]+|[\s\S]')
WORDS = (
    b"", b"null", b"true", b"false", b"0", b"1", b"-1", b"1.5", b"1e999", b"NaN", b"9" * 30, b"4294967296", b"{}",
    b"[]", b'""', b'"x"', b'"0.0.0.0"', b'"0.0.0.0/0"', b'"10.244.1.0/24"', b'"10.244.1.5"', b'"2001:db8::1"',
    b'"::/0"', b'"2001:db8::/64"', b'"fe80::1%eth0"', b'"\\ud800"', b'"\\u0000"', '"\u202e"'.encode(),
    b'"12:c6:65:89:b4:e3"', b"[" * 40, b'{"a":1,"a":2}', b'"' + b"x" * 300 + b'"', b"\xff", b"{", b"}", b"[", b"]",
    b",", b":", b"=", b"\n", b"/",
)  # fmt: skip


class Mutator:
    """Endless variations of `seeds`: a case in sixteen is a seed as it is, of the others a fifth has bytes changed."""

    def __init__(self, seed: int, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> None:
        self._random = random.Random(seed).random
        self._seeds = seeds
        self._split = [_WORD.findall(item) for item in seeds]
        self._places = [[at for at, word in enumerate(words) if len(word) > 1] for words in self._split]
        self._words = (*WORDS, *words)

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; much cheaper than `randrange`."""
        return int(self._random() * limit)

    def __call__(self) -> bytes:
        """The next case."""
        kind = self.below(16)
        which = self.below(len(self._seeds))
        if kind == 0:
            return self._seeds[which]
        return self._bytes(self._seeds[which]) if kind < 4 else self._text(which)

    def _text(self, which: int) -> bytes:
        """A word or two replaced, by ours or by another of the same text; left out, or said twice.

        Mostly names and values: without its brackets and commas no text gets beyond the parser."""
        found, places = self._split[which].copy(), self._places[which]
        for _ in range(1 + self.below(2)):
            kind = self.below(8)
            at = places[self.below(len(places))] if self.below(4) else self.below(len(found))
            if kind < 4:
                found[at] = self._words[self.below(len(self._words))]
            elif kind < 6:
                found[at] = found[self.below(len(found))]
            else:
                found[at] = found[at] * 2 if kind == 6 else b""
        return b"".join(found)

    def _bytes(self, seed: bytes) -> bytes:
        """A few bytes changed, left out, said twice or put in."""
        data = bytearray(seed)
        for _ in range(1 + self.below(3)):
            at, kind = self.below(len(data) + 1), self.below(4)
            if kind == 0 and at < len(data):
                data[at] = self.below(256)
            elif kind == 1:
                del data[at : at + 1 + self.below(8)]
            elif kind == 2:
                data[at:at] = data[at : at + 1 + self.below(39)]
            else:
                data[at:at] = bytes((self.below(256), self.below(256))[: 1 + self.below(2)])
        return bytes(data)
