"""Who gets into etcd, and what a person reads who does not: TLS, client certificates, users, addresses."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop

from fabric import leases
from fabric.errors import ConfigError, StoreUnavailableError
from fabric.store.etcd.settings import EtcdSettings
from fabric.store.etcd.store import EtcdStore
from tests.fabric.store.certificates import Authority, Pair
from tests.fabric.store.etcd.watched import P, watched
from tests.fabric.store.etcd_server import EtcdServer, Tls, free_port, running

pytestmark = pytest.mark.root
LOOPS = [uvloop.new_event_loop, asyncio.new_event_loop]
SECRET = "pass-w0rd"


class Site:
    """Three servers: TLS without client certificates, TLS with, and plain with users; and certificates to try."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.ca = Authority(directory / "ca")
        self.other = Authority(directory / "other", "somebody else's CA")
        self.pair = self.ca.issue("node1")
        self.strange = self.other.issue("node1")
        elsewhere = self.ca.issue("elsewhere", hosts=("etcd.example", "192.0.2.1"))
        self.tls = stack.enter_context(running(directory / "tls", tls=Tls(self.ca.cafile, self.pair)))
        both = Tls(self.ca.cafile, self.pair, self.ca.cafile, self.pair)
        self.mutual = stack.enter_context(running(directory / "mutual", tls=both))
        self.users = stack.enter_context(running(directory / "users"))
        self.misnamed = EtcdServer(directory / "misnamed", tls=Tls(self.ca.cafile, elsewhere))
        stack.callback(self.misnamed.kill)
        self.misnamed.start(wait=False)
        for name in ("node1", "stranger"):
            self.users.ctl("user", "add", f"{name}:{SECRET}")
        self.users.ctl("role", "add", "flannel")
        self.users.ctl("role", "grant-permission", "flannel", "readwrite", leases.DEFAULT_PREFIX, "--prefix")
        self.users.ctl("user", "grant-role", "node1", "flannel")
        self.users.enable_auth()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), stack)


def settings(url: str, ca: Authority | None = None, pair: Pair | None = None, user: str = "") -> EtcdSettings:
    return EtcdSettings(
        (url,),
        cafile=str(ca.cafile) if ca else "",
        certfile=str(pair.cert) if pair else "",
        keyfile=str(pair.key) if pair else "",
        username=user,
        password=SECRET if user else "",
    )


def attempt(wanted: EtcdSettings, loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> None:
    """Write, read, follow and delete a key."""

    async def body() -> None:
        async with asyncio.timeout(30), watched(settings=wanted) as watch:
            entry = await watch.store.put(P + "10.244.1.0-24", b"{}", 0, 100.0)
            await watch.until_shows({"10.244.1.0-24": b"{}"})
            await watch.store.delete(entry.key, entry.revision)
            await watch.until_shows({})

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(body())


@pytest.mark.parametrize("loop", LOOPS)
def test_those_who_may(site: Site, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    attempt(settings(site.tls.url, site.ca), loop)
    attempt(settings(site.tls.url, site.ca, site.strange), loop)  # nobody asks for it
    attempt(settings(site.mutual.url, site.ca, site.pair), loop)
    attempt(settings(site.mutual.url.removeprefix("https://"), site.ca, site.pair), loop)
    attempt(settings(site.users.url, user="node1"), loop)
    attempt(settings(site.tls.url, site.ca, user="unneeded"), loop)  # users are not enabled there


REFUSALS: list[tuple[str, Callable[[Site], EtcdSettings], str]] = [
    ("wrong CA", lambda site: settings(site.tls.url, site.other), "not trusted .* as --etcd-cafile"),
    ("the system's CAs", lambda site: settings(site.tls.url), "not trusted .* as --etcd-cafile"),
    ("another name", lambda site: settings(site.misnamed.url, site.ca), "certificate for another name .*127.0.0.1"),
    ("no certificate", lambda site: settings(site.mutual.url, site.ca), "give --etcd-certfile and --etcd-keyfile"),
    ("a strange one", lambda site: settings(site.mutual.url, site.ca, site.strange), "not trust our certificate"),
    ("http for https", lambda site: settings(site.tls.url.replace("https", "http")), "https:// there"),
    ("https for http", lambda site: settings(site.users.url.replace("http", "https"), site.ca), "http:// there"),
    ("no CA file", lambda site: EtcdSettings((site.tls.url,), cafile="/no/ca"), "--etcd-cafile /no/ca: No such file"),
    ("no PEM", lambda site: EtcdSettings((site.tls.url,), cafile="/etc/passwd"), "/etc/passwd: no usable PEM"),
    (
        "the key of another",
        lambda site: settings(site.tls.url, site.ca, Pair(site.pair.cert, site.strange.key)),
        "--etcd-keyfile .*no usable PEM file .key values mismatch",
    ),
    ("nobody", lambda site: settings(site.users.url), "give --etcd-username and --etcd-password"),
    ("unknown user", lambda site: settings(site.users.url, user="joe"), "name or password: check --etcd-username"),
    (
        "wrong password",
        lambda site: EtcdSettings((site.users.url,), username="node1", password=SECRET + "2"),
        "name or password: check --etcd-username",
    ),
    ("no role", lambda site: settings(site.users.url, user="stranger"), "'stranger' away .* grant-permission"),
    ("no such host", lambda site: settings("http://nosuch.invalid:2379"), "no such host 'nosuch.invalid'"),
    ("nothing there", lambda site: settings(f"http://127.0.0.1:{free_port()}"), "refuses the connection: start etcd"),
]


@pytest.mark.parametrize(("wanted", "words"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
@pytest.mark.parametrize("loop", LOOPS)
def test_those_who_may_not_are_told_what_to_do(
    site: Site,
    wanted: Callable[[Site], EtcdSettings],
    words: str,
    loop: Callable[[], asyncio.AbstractEventLoop],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def body() -> str:
        store = EtcdStore(wanted(site))
        await store.open()
        try:
            with pytest.raises(StoreUnavailableError, match=words) as caught:
                await store.list(P)
            with pytest.raises(StoreUnavailableError, match=words):
                await store.put(P + "10.244.1.0-24", b"{}", 0, 100.0)
        finally:
            await store.close()
        return str(caught.value)

    with asyncio.Runner(loop_factory=loop) as runner:
        message = runner.run(body())
    assert "\n" not in message
    assert SECRET not in message + caplog.text


def test_a_token_that_is_no_longer_accepted_is_renewed(site: Site) -> None:
    async def body() -> None:
        async with asyncio.timeout(30), watched(settings=settings(site.users.url, user="node1")) as watch:
            await watch.until_shows({})
            site.users.ctl("user", "passwd", "node1", "--interactive=false", input=f"{SECRET}\n")  # ends its tokens
            entry = await watch.store.put(P + "10.244.1.0-24", b"{}", 0, None)
            await watch.until_shows({"10.244.1.0-24": b"{}"})
            await watch.store.delete(entry.key, entry.revision)
            await watch.until_shows({})
            assert not watch.outages

    asyncio.run(body())


def test_a_refused_write_leaves_no_lease_behind(site: Site) -> None:
    async def body() -> None:
        store = EtcdStore(settings(site.users.url, user="stranger"))
        try:
            with pytest.raises(StoreUnavailableError):
                await store.put(P + "10.244.1.0-24", b"{}", 0, 100.0)
        finally:
            await store.close()

    asyncio.run(body())
    assert site.users.ctl("lease", "list") == "found 0 leases\n"


def test_secrets_stay_out_of_logs_and_texts(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wanted = settings(site.users.url, user="node1")
    attempt(wanted)
    assert SECRET not in caplog.text + repr(wanted)
    assert "token" not in caplog.text
    with pytest.raises(ConfigError) as caught:
        EtcdStore(EtcdSettings((f"http://node1:{SECRET}@127.0.0.1:2379",)))
    assert SECRET not in str(caught.value)


def test_half_a_client_certificate_is_said_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    half = EtcdSettings((site.tls.url,), cafile=str(site.ca.cafile), certfile=str(site.pair.cert))
    attempt(half)
    assert [record.message for record in caplog.records] == [
        "no client certificate is used: --etcd-certfile and --etcd-keyfile only work together"
    ]
