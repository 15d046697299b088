"""Answers that no etcd gives: each is one line for people, none is a traceback, and none makes us hold much."""

import asyncio
import logging
import os
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabric.errors import StoreError, StoreUnavailableError
from fabric.lab import measure
from fabric.store.base import Snapshot, Unavailable, WatchItem
from fabric.store.etcd import client, messages
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from tests.fabric.store.etcd.hostile import HEADER, OK, Answer, Script, framed, hostile

P = "/coreos.com/network/subnets/"
LOTS = messages.RANGE.response(
    header={"cluster_id": 7, "revision": 3},
    kvs=[{"key": f"{P}{number}".encode(), "mod_revision": 3} for number in range(70_000)],
).SerializeToString()
GOAWAY = b"\0\0\x08\7\0\0\0\0\0"
ANSWERS: list[tuple[str, Answer, str]] = [
    ("no protobuf", Answer(framed(b"\xff\xff\xff")), "malformed"),
    ("nothing", Answer(b""), "malformed"),
    ("two answers", Answer(framed(HEADER) * 2), "malformed"),
    ("half an answer", Answer(framed(HEADER)[:-1]), "malformed"),
    ("4 GiB to come", Answer(struct.pack(">BI", 0, 0xFFFFFFFF) + b"x"), "more than"),
    ("compressed", Answer(struct.pack(">BI", 1, 3) + b"xxx"), "compressed"),
    ("no status", Answer(framed(HEADER), trailers=(("x", "y"),)), "instead of a gRPC answer"),
    ("strange status", Answer(b"", trailers=(("grpc-status", "²"),)), "instead of a gRPC answer"),
    ("high status", Answer(b"", trailers=(("grpc-status", "999"), ("grpc-message", "%zz%ff"))), "status 999"),
    ("long message", Answer(b"", trailers=(("grpc-status", "9"), ("grpc-message", "%0a" * 9000))), "status 9"),
    ("a web page", Answer(b"<html>", headers=((":status", "404"),), trailers=(("a", "b"),)), "HTTP status 404"),
    ("no API", Answer(b"", trailers=(("grpc-status", "12"),)), "no v3 API"),
    (
        "corrupt",
        Answer(b"", trailers=(("grpc-status", "14"), ("grpc-message", "etcdserver: corrupt cluster"))),
        "corrupt",
    ),
    ("too much", Answer(framed(LOTS)), "more than 65536 keys"),
    ("garbage on the line", Answer(raw=b"\0" * 90), "HTTP/2"),
    ("pushed", Answer(raw=b"\0\0\4\5\4\0\0\0\1\0\0\0\2"), "HTTP/2"),
    ("an end", Answer(raw=GOAWAY + struct.pack(">II", 1, 0), trailers=None), "GOAWAY"),
    ("too many pings", Answer(raw=GOAWAY + struct.pack(">II", 1, 11), trailers=None), "GOAWAY"),
    ("a reset", Answer(raw=b"\0\0\4\3\0\0\0\0\1" + struct.pack(">I", 8), trailers=None), "reset"),
]


def run(body: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture | None = None) -> None:
    async def whole() -> None:
        await asyncio.wait_for(body(), 40)

    asyncio.run(whole())
    if caplog is not None:
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def refusal(url: str) -> str:
    """What `list` says."""
    store = EtcdStore(EtcdSettings((url,)))
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            await store.list(P)
    finally:
        await store.close()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "words"), [case[1:] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_a_bad_answer_is_one_line(answer: Answer, words: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with hostile(lambda path, before: answer) as url:
            message = await refusal(url)
        assert words in message
        assert message.startswith(f"etcd {url} ") or "keys" in message
        assert "\n" not in message
        assert len(message) < 1200

    run(body, caplog)


@pytest.mark.parametrize(
    "greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 smtp.example ESMTP\r\n", b"\0" * 100, b"\xff" * 100_000]
)
def test_another_protocol_is_one_line(greeting: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with hostile(lambda path, before: Answer(), greeting) as url:
            assert "wrong port" in await refusal(url)

    run(body, caplog)


def watch_script(*responses: bytes, then: Answer | None = None) -> Script:
    """An etcd with an empty store whose watch sends these responses."""

    def script(path: str, before: int) -> Answer:
        if path == "Watch":
            return then or Answer(b"".join(map(framed, responses)), trailers=None)
        return Answer(framed(HEADER))

    return script


async def items_of(url: str, enough: Callable[[list[WatchItem]], bool]) -> list[WatchItem]:
    """What the watch yields until that is enough."""
    store = EtcdStore(EtcdSettings((url,)))
    items: list[WatchItem] = []
    watch = store.watch(P)
    try:
        async for item in watch:
            items.append(item)
            if enough(items):
                return items
    finally:
        await watch.aclose()  # type: ignore[attr-defined]
        await store.close()
    return items


Response = messages.WATCH.response
CREATED = Response(header={"revision": 3}, created=True).SerializeToString()
GOOD = Response(
    header={"revision": 1 << 40}, events=[{"kv": {"key": (P + "good").encode(), "mod_revision": 1 << 40}}]
).SerializeToString()
STRANGE = {
    "empty": b"",
    "an event of nothing": Response(events=[{}]).SerializeToString(),
    "an old revision": Response(events=[{"kv": {"key": (P + "old").encode(), "mod_revision": -5}}]).SerializeToString(),
    "another prefix": Response(events=[{"kv": {"key": b"/else", "mod_revision": 9}}]).SerializeToString(),
    "a strange type": Response(events=[{"type": 77, "kv": {"key": b"", "mod_revision": 9}}]).SerializeToString(),
    "a strange lease": Response(
        events=[
            {"kv": {"key": (P + "l").encode(), "mod_revision": 9, "lease": -1}},
            {"type": 1, "kv": {"mod_revision": 9}},
        ]
    ).SerializeToString(),
    "created again": CREATED,
    "a deletion of nothing": Response(
        events=[{"type": 1, "kv": {"key": (P + "none").encode(), "mod_revision": 9}}]
    ).SerializeToString(),
}


@pytest.mark.parametrize("response", STRANGE.values(), ids=STRANGE.keys())
def test_a_strange_event_does_no_harm(response: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with hostile(watch_script(CREATED, response, GOOD)) as url:
            items = await items_of(
                url, lambda items: isinstance(items[-1], Snapshot) and P + "good" in items[-1].entries
            )
            assert not any(isinstance(item, Unavailable) for item in items)

    run(body, caplog)


ENDINGS: dict[str, Answer] = {
    "malformed": Answer(framed(CREATED) + framed(b"\xff\xff"), trailers=None),
    "the end": Answer(framed(CREATED)),
    "cancelled": Answer(framed(Response(canceled=True, cancel_reason="no\nreason").SerializeToString()), trailers=None),
    "no leader": Answer(b"", trailers=(("grpc-status", "14"), ("grpc-message", "etcdserver: no leader"))),
    "garbage": Answer(framed(CREATED), raw=b"\0" * 90, trailers=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_watch_that_ends_is_said_once_and_tried_with_growing_pauses(
    ending: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    watches = 0

    def script(path: str, before: int) -> Answer:
        nonlocal watches
        watches += path == "Watch"
        return watch_script(then=ending)(path, before) if watches < 5 else watch_script(CREATED, GOOD)(path, before)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with hostile(script) as url:
            items = await items_of(
                url, lambda items: isinstance(items[-1], Snapshot) and P + "good" in items[-1].entries
            )
        assert loop.time() - start > 0.2  # four pauses, half of 0.1 s at least
        kinds = [type(item) for item in items]
        outages = [item for item in items if isinstance(item, Unavailable)]
        assert outages
        assert not any("\n" in outage.reason for outage in outages)
        # A watch that began is over again with each end, one that never began is one outage.
        assert all(kinds[i] is not kinds[i + 1] or kinds[i] is Snapshot for i in range(len(kinds) - 1))

    run(body, caplog)


@pytest.mark.slow
def test_who_does_not_want_pings_gets_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd with a high `--grpc-keepalive-min-time` ends the connection: the next one waits twice as long."""
    monkeypatch.setattr(client, "PING_AFTER", 0.4)
    pings: list[float] = []

    async def body() -> None:
        async with hostile(watch_script(CREATED), pings=pings) as url:
            loop = asyncio.get_running_loop()
            start = loop.time()
            items = await items_of(url, lambda items: len(items) == 4)
            assert [type(item) for item in items] == [Snapshot, Unavailable, Snapshot, Unavailable]
            assert pings[0] - start > 0.39
            assert pings[1] - pings[0] > 0.79

    run(body)


@pytest.mark.slow
def test_endless_compaction_is_no_busy_loop(caplog: pytest.LogCaptureFixture) -> None:
    """An etcd that always says compacted: a handful of lists a second, not thousands."""
    caplog.set_level(logging.INFO)
    lists = 0

    def script(path: str, before: int) -> Answer:
        nonlocal lists
        lists += path == "Range"
        compacted = Response(canceled=True, compact_revision=9).SerializeToString()
        return watch_script(compacted)(path, before)

    async def body() -> None:
        async with hostile(script) as url:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await items_of(url, lambda items: False)

    run(body, caplog)
    assert 1 <= lists < 15
    assert len(caplog.records) < 15


@pytest.mark.slow
def test_a_flood_does_not_grow_us() -> None:
    """100 MB of events at a consumer that reads one item and then stops: flow control holds the sender back."""
    event = {"kv": {"key": (P + "x").encode(), "mod_revision": 1 << 20, "value": b"v" * 60_000}}
    flood = framed(CREATED) + framed(Response(events=[event]).SerializeToString()) * 1700

    async def body() -> None:
        async with hostile(watch_script(then=Answer(flood, trailers=None))) as url:
            store = EtcdStore(EtcdSettings((url,)))
            watch = store.watch(P)
            try:
                assert isinstance(await anext(watch), Snapshot)
                before = measure.resident(os.getpid())
                for _ in range(500):  # nobody reads the watch, and other calls do not mind
                    await store.list(P)
                    assert measure.resident(os.getpid()) - before < 30 << 20
            finally:
                await watch.aclose()  # type: ignore[attr-defined]
                await store.close()

    run(body)


field = st.integers(-(1 << 63), (1 << 63) - 1)
kvs = st.fixed_dictionaries(
    {},
    optional={
        "key": st.binary(max_size=8).map(P.encode().__add__) | st.binary(max_size=30),
        "value": st.binary(max_size=30),
        "mod_revision": field | st.integers(0, 20),
        "create_revision": field,
        "lease": field,
    },
)
answers = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda kvs, revision, more, count: messages.RANGE.response(
            header={"cluster_id": 7, "revision": revision}, kvs=kvs, more=more, count=count
        ).SerializeToString(),
        st.lists(kvs, max_size=4),
        field,
        st.booleans(),
        field,
    ),
    st.builds(
        lambda kvs, ok: messages.TXN.response(
            succeeded=ok, responses=[{"response_range": {"kvs": kvs}}, {"response_range": {"kvs": kvs}}]
        ).SerializeToString(),
        st.lists(kvs, max_size=2),
        st.booleans(),
    ),
    st.builds(lambda ID, TTL: messages.LEASE_TIME_TO_LIVE.response(ID=ID, TTL=TTL).SerializeToString(), field, field),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(answers, min_size=1, max_size=6), st.booleans())
def test_any_answers_give_a_result_or_an_error_for_people(given_answers: list[bytes], writes: bool) -> None:
    def script(path: str, before: int) -> Answer:
        return Answer(framed(given_answers[min(before, len(given_answers) - 1)]), OK)

    async def body() -> None:
        async with hostile(script) as url:
            store = EtcdStore(EtcdSettings((url,)))
            message = ""
            try:
                async with asyncio.timeout(10):
                    await (store.put(P + "a", b"v", 3, 100.0) if writes else store.list(P))
            except StoreError as error:
                message = str(error)
            finally:
                await store.close()
            assert "\n" not in message

    run(body)


responses = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda kvs, kinds, created, revision: Response(
            header={"cluster_id": 7, "revision": revision},
            created=created,
            events=[{"type": kind, "kv": kv} for kind, kv in zip(kinds, kvs, strict=False)],
        ).SerializeToString(),
        st.lists(kvs, max_size=4),
        st.lists(st.sampled_from([0, 1, 2]), min_size=4),
        st.booleans(),
        field,
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(responses, max_size=5), field)
def test_any_watch_ends_in_one_line(given_responses: list[bytes], revision: int) -> None:
    def script(path: str, before: int) -> Answer:
        if path == "Watch":
            return Answer(b"".join(map(framed, given_responses)))
        return Answer(
            framed(messages.RANGE.response(header={"cluster_id": 7, "revision": revision}).SerializeToString())
        )

    async def body() -> None:
        async with hostile(script) as url:
            items = await items_of(url, lambda items: isinstance(items[-1], Unavailable))
            for item in items[:-1]:
                assert isinstance(item, Snapshot)
                assert all(key.startswith(P) for key in item.entries)

    run(body)
