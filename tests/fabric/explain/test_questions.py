"""What can be asked: protocols in words, and what is printed of an answer."""

from __future__ import annotations

import pytest

from fabric.cli.explain import lines, plain
from fabric.explain.door import QuestionError, parse_protocol


@pytest.mark.parametrize(
    ("text", "version", "found"),
    [("tcp/80", 4, (6, 80)), ("UDP/53", 6, (17, 53)), ("sctp/1", 4, (132, 1)), ("icmp", 4, (1, 8)),
     ("icmp", 6, (58, 128)), ("icmp/13", 4, (1, 13)), ("47", 4, (47, 0))],
)  # fmt: skip
def test_protocols(text: str, version: int, found: tuple[int, int]) -> None:
    assert parse_protocol(text, version) == found


@pytest.mark.parametrize("text", ["", "tcp", "tcp/", "tcp/65536", "tcp/-1", "tcp/x", "icmp/256", "256", "http", "/80"])
def test_what_is_no_protocol(text: str) -> None:
    with pytest.raises(QuestionError, match="no protocol and port"):
        parse_protocol(text, 4)


def test_lines() -> None:
    tier = {"direction": "ingress", "tier": "default", "action": "denied", "rule": "R", "place": "a.yaml:3"}
    told = {
        "packet": "TCP", "steps": [{"step": "checks", "text": "passed"}, {"step": "policy", "text": "dropped"}],
        "policy": {"allowed": False, "rules": [], "tiers": [tier]}, "notes": ["cut off"], "reason": "policy_ingress",
        "meaning": "why", "verdict": "dropped",
        "results": [{"kind": "answer", "to": "web", "length": 40, "headers": ["ICMP"], "headers_length": 18,
                     "hex": "00" * 40}],
    }  # fmt: skip
    assert list(lines(told)) == [
        "TCP",
        "  checks       passed",
        "  policy       dropped",
        "               ingress tier default: denied by R (a.yaml:3)",
        "  note         cut off",
        "dropped: policy_ingress (why)",
        "answer to web, 40 bytes",
        "  ICMP",
        "  0000  " + " ".join(["00"] * 16),
        "  0010  00 00",
    ]
    assert plain("a\x1b[31m") == "a\N{REPLACEMENT CHARACTER}[31m"
