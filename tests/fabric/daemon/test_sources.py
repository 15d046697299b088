"""Where configuration and store come from: waiting, what is remembered, and what a failed start takes back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric import config, flags
from fabric.daemon import sources
from fabric.daemon.sources import SqliteSource, make_source, patiently, wait_for_config
from fabric.errors import ConfigError, StartError, StoreUnavailableError
from fabric.state_file import Remembered

TEXT = b'{"Network":"10.250.0.0/16","Backend":{"Type":"vxlan"}}'
Answer = bytes | None | Exception


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(sources, "PATIENCE", 0.02)


def answers(*given: Answer) -> Callable[[], Awaitable[bytes | None]]:
    """Each answer once, the last for ever."""
    left = list(given)

    async def read() -> bytes | None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


DOWN = StoreUnavailableError("etcd http://192.0.2.1:2379 does not answer")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((TEXT,), []),
        ((None, None, None, TEXT), ["/x/config in etcd does not exist"]),
        ((DOWN, DOWN, DOWN, TEXT), ["etcd http://192.0.2.1:2379 does not answer"]),
        ((b"{", b"{", TEXT), ["/x/config in etcd: not valid JSON"]),
        ((DOWN, None, None, b"{}", TEXT), ["does not answer", "does not exist", "please define a correct Network"]),
    ],
)
def test_the_configuration_is_waited_for_and_each_trouble_said_once(
    given: tuple[Answer, ...], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fabric"):
        found = wait_for_config(answers(*given), "/x/config in etcd", "")
        conf, text = asyncio.run(asyncio.wait_for(found, 10))
    assert (str(conf.networks[0]), text) == ("10.250.0.0/16", TEXT.decode())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(said)
    assert all(word in line for word, line in zip(said, lines, strict=True))


def test_a_configuration_of_the_last_run_is_taken_when_the_store_stays_away(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fabric"):
        conf, text = asyncio.run(wait_for_config(answers(DOWN), "/x/config in etcd", TEXT.decode()))
    assert (str(conf.networks[0]), text) == ("10.250.0.0/16", TEXT.decode())
    assert [record.getMessage() for record in caplog.records] == [
        f"{DOWN}: starting with the network configuration of the last run"
    ]


def test_a_damaged_memory_is_none() -> None:
    conf, _ = asyncio.run(wait_for_config(answers(*[DOWN] * 60, TEXT), "/x/config in etcd", '{"Network":'))
    assert str(conf.networks[0]) == "10.250.0.0/16"


def test_a_store_that_answers_wins_over_what_is_remembered() -> None:
    other = TEXT.replace(b"10.250", b"10.251")
    conf, _ = asyncio.run(wait_for_config(answers(DOWN, other), "/x/config in etcd", TEXT.decode()))
    assert str(conf.networks[0]) == "10.251.0.0/16"


def test_patience() -> None:
    async def ask(given: Callable[[], Awaitable[bytes | None]], known: bytes | None) -> bytes | None:
        return await patiently(given, known)

    assert asyncio.run(ask(answers(DOWN, b"x"), None)) == b"x"
    assert asyncio.run(ask(answers(DOWN), b"known")) == b"known"
    with pytest.raises(StartError, match="does not answer"):
        asyncio.run(ask(answers(DOWN), None))


def test_patience_with_a_store_that_says_nothing() -> None:
    async def silence() -> bytes:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    assert asyncio.run(asyncio.wait_for(patiently(silence, b"known"), 10)) == b"known"


def source(tmp_path: Path, *words: str) -> object:
    return make_source(flags.parse([f"--net-config-path={tmp_path / 'net-conf.json'}", *words], {}))


def test_flags_choose_the_source(tmp_path: Path) -> None:
    made = source(tmp_path, f"--store=sqlite://{tmp_path}/f.db")
    assert (made.kind, made.url) == ("sqlite", f"sqlite://{tmp_path}/f.db")  # type: ignore[attr-defined]
    made = source(tmp_path, "--etcd-endpoints=http://192.0.2.1:2379", "--etcd-prefix=/other/")
    assert (made.kind, made.url) == ("etcd", "http://192.0.2.1:2379")  # type: ignore[attr-defined]
    assert made.prefix == "/other/subnets/"  # type: ignore[attr-defined]
    (tmp_path / "net-conf.json").write_bytes(TEXT)
    made = source(tmp_path, "--kube-subnet-mgr", "--kube-api-url=http://192.0.2.1:8080", "--node-name=n")
    assert made.kind == "kubernetes"  # type: ignore[attr-defined]
    assert "192.0.2.1:8080" in made.url  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--kube-subnet-mgr", "--kube-api-url=http://192.0.2.1"), ConfigError, "net-conf.json: no such file"),
        (("--store=postgres://x",), StartError, "give sqlite:///ABSOLUTE/PATH"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source(tmp_path, *words)


@pytest.mark.parametrize("words", [("--kube-api-url=nonsense://x",), ("--kubeconfig-file=/nowhere/kubeconfig",), ()])
def test_kubernetes_flags_that_lead_nowhere(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "net-conf.json").write_bytes(TEXT)
    with pytest.raises(StartError) as found:
        source(tmp_path, "--kube-subnet-mgr", *words)
    assert "\n" not in str(found.value)


def undone(path: Path, fill: bool) -> None:
    """Open a store at `path`, with a key in it or not, and take the start back."""

    async def body() -> None:
        made = SqliteSource(path, config.parse(config.DEFAULT_TEXT))
        store = await made.connect(Remembered())
        await store.open()
        if fill:
            await store.put("/key", b"value", 0, None)
        await made.undo()
        await store.close()

    asyncio.run(body())


def test_a_store_made_by_a_failed_start_goes_with_its_directories(tmp_path: Path) -> None:
    undone(tmp_path / "a" / "b" / "fabric.db", fill=False)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_somebody_wrote_to_stays(tmp_path: Path) -> None:
    undone(tmp_path / "fabric.db", fill=True)
    assert (tmp_path / "fabric.db").exists()
    undone(tmp_path / "fabric.db", fill=False)
    assert (tmp_path / "fabric.db").exists()


def test_an_empty_store_that_was_there_before_stays(tmp_path: Path) -> None:
    asyncio.run(_make(tmp_path / "fabric.db"))
    undone(tmp_path / "fabric.db", fill=False)
    assert (tmp_path / "fabric.db").exists()


async def _make(path: Path) -> None:
    store = await SqliteSource(path, config.parse(config.DEFAULT_TEXT)).connect(Remembered())
    await store.open()
    await store.close()
