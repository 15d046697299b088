"""The log: bounded by place and in all, told what was left out, and without secrets."""

from __future__ import annotations

import io
import json
import logging

import pytest

from fabric.daemon import logs
from fabric.daemon.logs import BoundedHandler, JsonFormatter, TextFormatter
from tests.fabric.clock import Clock


def logger(handler: logging.Handler) -> logging.Logger:
    made = logging.Logger("test")
    made.addHandler(handler)
    return made


def test_one_place_writes_so_many_lines_in_a_window() -> None:
    clock, stream = Clock(), io.StringIO()
    handler = BoundedHandler(stream, lines=3, clock=clock)
    log = logger(handler)

    def noisy(number: int) -> None:
        log.warning("peer %d", number)

    for number in range(10):
        noisy(number)
    log.warning("another place")
    assert stream.getvalue().splitlines() == ["peer 0", "peer 1", "peer 2", "another place"]
    clock.advance(logs.WINDOW)
    noisy(10)
    told, line = stream.getvalue().splitlines()[4:]
    assert told.startswith("7 more lines of daemon/test_logs.py:")
    assert line == "peer 10"


def test_all_places_write_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), io.StringIO()
    log = logger(BoundedHandler(stream, size=100_000, clock=clock))
    for place in range(1000):
        record = logging.LogRecord("x", logging.ERROR, f"file{place}.py", place, "y" * 1000, None, None)
        log.handle(record)
    assert 100_000 <= len(stream.getvalue()) < 102_000
    clock.advance(logs.WINDOW)
    log.warning("again")
    assert stream.getvalue().splitlines()[-1] == "again"
    assert len([line for line in stream.getvalue().splitlines() if "left out" in line]) == 10


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_line_is_not_longer_than_it_may_be(formatter: logging.Formatter) -> None:
    """What a hostile node has written is quoted where it is refused."""
    secret = "correct-horse" * 50
    logs.hide(secret)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger(handler).warning("lease of %s: %s", "x" * (logs.LENGTH // 2 - 20) + secret, "y" * 60_000)
    line = stream.getvalue()
    assert "lease of xxx" in line
    assert "characters left out" in line
    assert "horse" not in line
    assert len(line) < logs.LENGTH + 200


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("etcd at http://user:pa55@192.0.2.1:2379: refused", "etcd at http://***@192.0.2.1:2379: refused"),
        ("Authorization: Bearer eyJhbGciOi.x-y_z", "Authorization: Bearer ***"),
        ("the password is correct-horse, said http", "the password is ***, said http"),
        ("sqlite:///run/x.db at 10:20:30", "sqlite:///run/x.db at 10:20:30"),
    ],
)
def test_secrets_are_not_written(text: str, shown: str) -> None:
    logs.hide("correct-horse")
    logs.hide("")
    logs.hide("db")
    for formatter in (TextFormatter(), JsonFormatter()):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        log = logger(handler)
        log.warning("%s", text)
        try:
            raise ValueError(text)
        except ValueError:
            log.exception("failed")
        found = stream.getvalue()
        assert found.count(shown) == 2
        assert text == shown or text not in found


def test_json_stays_json_with_any_secret() -> None:
    logs.hide('quote"and\\slash')
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger(handler).warning('a quote"and\\slash b')
    assert json.loads(stream.getvalue())["message"] == "a *** b"


def test_debugging_leaves_nothing_out(capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.configure("text", 1)
    for number in range(logs.LINES + 5):
        log.info("line %d", number)
    assert capsys.readouterr().err.count("line") == logs.LINES + 5
    logs.configure("text", 0)
    for number in range(logs.LINES + 5):
        log.info("line %d", number)
    assert capsys.readouterr().err.count("line") == logs.LINES
    log.handlers.clear()
