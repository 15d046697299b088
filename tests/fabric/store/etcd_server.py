"""A real etcd on loopback ports of its own, for every test that needs one.

    with running(tmp_path) as etcd:                   # or EtcdServer(...).start() and .stop()
        etcd.url                                      # http://127.0.0.1:PORT
        etcd.ctl("put", "/a", "1")                    # etcdctl, its standard output
        etcd.compact(); etcd.kill(); etcd.start(); etcd.restart(); etcd.freeze(); etcd.thaw()
        etcd.save(path); etcd.restore(path)           # etcdctl snapshot

Options: `tls` (see `certificates.Authority`), `netns` (a namespace's name; ctl then runs in there, too), `extra` flags.
`cluster(directory, 3)` gives the members of one cluster. The server dies with the test process, however that ends
(PR_SET_PDEATHSIG), and keeps everything in the directory given. Needs the Debian packages etcd-server and etcd-client.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.fabric.store.certificates import Pair
from tests.scenarios.waiting import wait_for

START_SECONDS = 60.0
# Below the range that the kernel takes for outgoing connections (32768 and up): a port keeps free while etcd is down.
PORTS = range(20000, 32000)
_given: set[int] = set()
ALONE = ("--heartbeat-interval=50", "--election-timeout=500")  # one member elects itself, and need not wait for others


@dataclass(frozen=True, slots=True)
class Tls:
    """Server side: `server` is its certificate; with `client_ca` only clients with a certificate of that CA get in.
    `client` is the pair that the helper's own etcdctl uses."""

    cafile: Path
    server: Pair
    client_ca: Path | None = None
    client: Pair | None = None


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now, and that nobody else was given: another member may not listen yet."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            return port


@dataclass
class EtcdServer:
    """One etcd process and its data under `directory`. Ports are chosen once, so that a restart keeps the URL."""

    directory: Path
    name: str = "etcd"
    tls: Tls | None = None
    netns: str = ""
    extra: Sequence[str] = ()
    user: str = ""  # "name:password" for ctl
    members: dict[str, str] = field(default_factory=dict)  # name -> peer URL of every member, filled by `cluster`
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.members.setdefault(self.name, self.peer_url)
        self.token = "podfabric-test"

    @property
    def url(self) -> str:
        """What `--etcd-endpoints` takes."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.directory / f"{self.name}.data"

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def start(self, wait: bool = True) -> EtcdServer:
        """Start it on the data that is there, and wait until it answers."""
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = self._spawn(log)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until it has a leader and answers."""
        wait_for(self._healthy, f"etcd {self.name} answers", START_SECONDS)

    def stop(self) -> None:
        """Orderly end; also of a frozen one. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same data and ports."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop answering without closing anything, as a black hole does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ctl(self, *words: str, input: str | None = None, check: bool = True) -> str:
        """Run etcdctl against this server."""
        argv = [*self._wrap(), "etcdctl", f"--endpoints={self.url}", "--command-timeout=10s", *self._ctl_flags()]
        done = subprocess.run([*argv, *words], input=input, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"etcdctl {words[0]}: {done.stderr}"
        return done.stdout

    def put_soon(self, key: str, value: str) -> None:
        """Put, as often as it takes: a cluster that lost a member may be electing its leader."""
        wait_for(lambda: self.ctl("put", key, value, check=False), f"etcd {self.name} takes a put", START_SECONDS)

    def get(self, key: str) -> dict[str, Any] | None:
        """Key, value (base64), create_revision, mod_revision, version, lease as etcdctl prints them; None without."""
        found = json.loads(self.ctl("get", key, "-w", "json")).get("kvs")
        return dict(found[0]) if found else None

    def revision(self) -> int:
        """The store's current revision."""
        return int(json.loads(self.ctl("get", "x", "-w", "json"))["header"]["revision"])

    def compact(self) -> int:
        """Compact everything before the current revision, and give that."""
        revision = self.revision()
        self.ctl("compact", str(revision), "--physical")
        return revision

    def save(self, path: Path) -> None:
        """A backup, as an administrator makes it."""
        self.ctl("snapshot", "save", str(path))

    def restore(self, path: Path, token: str = "") -> None:
        """Stop it, replace its data by the backup, start. The same `token` gives the same cluster id."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)
        self.token = token or self.token
        argv = ["etcdctl", "snapshot", "restore", str(path), f"--data-dir={self.data}", *self._membership()]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        self.start()

    def enable_auth(self, password: str = "root-secret") -> None:
        """Users on; `ctl` goes on as root."""
        self.ctl("user", "add", f"root:{password}")
        self.ctl("user", "grant-role", "root", "root")
        self.ctl("auth", "enable")
        self.user = f"root:{password}"

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        argv = [
            *self._wrap(),
            *("setpriv", "--pdeathsig", "KILL", "etcd", f"--data-dir={self.data}", *self._membership()),
            *(f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"),
            *(f"--listen-peer-urls={self.peer_url}", "--initial-cluster-state=new"),
            *(
                "--logger=zap",
                "--log-outputs=stderr",
                "--log-level=warn",
                *self._timing(),
                *self._tls_flags(),
                *self.extra,
            ),
        ]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _membership(self) -> list[str]:
        return [
            f"--name={self.name}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in self.members.items()),
            f"--initial-cluster-token={self.token}",
        ]

    def _tls_flags(self) -> list[str]:
        if self.tls is None:
            return []
        flags = [f"--cert-file={self.tls.server.cert}", f"--key-file={self.tls.server.key}"]
        if self.tls.client_ca is not None:
            flags += [f"--trusted-ca-file={self.tls.client_ca}", "--client-cert-auth"]
        return flags

    def _timing(self) -> Sequence[str]:
        return ALONE if len(self.members) == 1 else ()

    def _ctl_flags(self) -> list[str]:
        flags = [f"--user={self.user}"] if self.user else []
        if self.tls is not None:
            flags.append(f"--cacert={self.tls.cafile}")
            if self.tls.client is not None:
                flags += [f"--cert={self.tls.client.cert}", f"--key={self.tls.client.key}"]
        return flags

    def _wrap(self) -> list[str]:
        return ["ip", "netns", "exec", self.netns] if self.netns else []

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"etcd {self.name} ended: {self.log.read_text()[-2000:]}"
        argv = [*self._wrap(), "etcdctl", f"--endpoints={self.url}", "--command-timeout=2s", *self._ctl_flags()]
        return subprocess.run([*argv, "endpoint", "health"], capture_output=True).returncode == 0

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(directory: Path, **options: Any) -> Iterator[EtcdServer]:
    """A started server, stopped in any case. Options as of `EtcdServer`."""
    server = EtcdServer(directory, **options)
    try:
        yield server.start()
    finally:
        server.kill()


@contextmanager
def cluster(directory: Path, size: int) -> Iterator[list[EtcdServer]]:
    """The started members of one cluster."""
    members: dict[str, str] = {}
    servers = [EtcdServer(directory, name=f"etcd{number}", members=members) for number in range(size)]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start(wait=False)
        for server in servers:
            server.wait_ready()
        yield servers
