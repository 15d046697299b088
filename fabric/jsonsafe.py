"""One JSON loader for everything that comes from outside: bounded, strict, and with a single error type.

`json.loads` alone raises RecursionError on deep nesting, accepts NaN and Infinity, lets a duplicate key win
silently and can be made to build huge integers. Here all of these are `JsonError`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DIGITS = 20
_TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{\]}]', re.DOTALL)


class JsonError(ValueError):
    """The text is not JSON that we accept. The message is one line without the text itself."""


def loads(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON text of at most `max_bytes` bytes (UTF-8, a byte order mark is refused).

    Raises JsonError for anything malformed, too large, nested deeper than 32, with duplicate keys, non-finite
    numbers or integers of more than 20 digits. A string may hold half of a surrogate pair, which no encoding takes.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > max_bytes:
        raise JsonError(f"{len(raw)} bytes are more than the limit of {max_bytes}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    _check_depth(text)
    try:
        return _DECODER.decode(text)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise JsonError(f"cannot be parsed: {type(error).__name__}") from None


def dumps(value: Any) -> str:
    """Compact JSON as Go's encoder writes it for our values: no spaces, keys in insertion order."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fold_keys(value: dict[str, Any]) -> dict[str, Any]:
    """The object with lower-case keys, a later one winning: Go's `encoding/json` matches keys without case."""
    return {key.lower(): item for key, item in value.items()}


def _check_depth(text: str) -> None:
    # Counted before parsing, since the C scanner recurses on the machine stack. Behind an unterminated string the count
    # may be wrong, but the scanner never gets there.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError(f"nested deeper than {MAX_DEPTH}")
        elif token[0] in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"key {twice[:40]!r} is given twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _small_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise JsonError(f"an integer of {len(digits)} digits is too large")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999: there is no JSON that it could be written as again
        raise JsonError("a number is too large")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_small_int, parse_float=_finite
)
