"""The three kinds of store, each with where its configuration comes from and how a node has its lease in it.

SQLite and Kubernetes read `--net-config-path`; etcd has the configuration under `<prefix>/config`, where it is waited
for as flanneld does. The clients of etcd and Kubernetes are imported only when they are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from fabric import config, leases
from fabric.config import NetConf
from fabric.daemon.own_lease import Identity, OwnLease
from fabric.errors import ConfigError, StartError, StoreError, StoreUnavailableError
from fabric.flags import KubeOptions, Options
from fabric.state_file import Remembered
from fabric.store.base import Store

if TYPE_CHECKING:
    from fabric.daemon.parts import Membership, Source
    from fabric.store.etcd.settings import EtcdSettings
    from fabric.store.kube.store import KubeStore

T = TypeVar("T")
SQLITE = "sqlite://"
PATIENCE = 3.0
RETRY_SECONDS = 1.0
log = logging.getLogger("fabric")


def make_source(options: Options) -> Source:
    """The source that `options` choose. Raises StartError."""
    path = Path(options.net_config_path)
    if options.store_kind == "etcd":
        return EtcdSource(options.etcd)
    if options.store_kind == "kubernetes":
        return KubeSource(options.kube, options.node_name, config.load(path, None, check=False))
    # A missing file has a meaning only because the store is the embedded one.
    return SqliteSource(sqlite_path(options.store), config.load(path, config.DEFAULT_TEXT))


def sqlite_path(url: str) -> Path:
    """The path in `sqlite:///absolute/path`. Raises StartError for anything else."""
    if not url.startswith(SQLITE + "/") or len(url) <= len(SQLITE) + 1:
        raise StartError(f"--store {url!r} is not available in this version: give sqlite:///ABSOLUTE/PATH")
    return Path(url[len(SQLITE) :])


class SqliteSource:
    """The embedded store. `conf` was read before anything else, so that a wrong file refuses the start at once."""

    kind = "sqlite"
    config_text = ""
    prefix = leases.subnets_prefix()

    def __init__(self, path: Path, conf: NetConf) -> None:
        self.url = f"{SQLITE}{path}"
        self._path = path
        self._conf = conf
        # Directories and the file that do not exist yet are ours to remove when the start fails.
        self._missing = [item for item in (path, *path.parents) if not item.exists()]
        self._store: Store | None = None

    async def connect(self, remembered: Remembered) -> Store:
        self._store = self._make()
        return self._store

    def _make(self) -> Store:
        from fabric.store.sqlite import SqliteStore

        return SqliteStore(self._path)

    async def config(self, remembered: Remembered) -> NetConf:
        return self._conf

    async def public_addresses(self, remembered: Remembered) -> Mapping[int, str]:
        return {}

    def membership(self, identity: Identity, margin: float, clock: Callable[[], float]) -> Membership:
        assert self._store is not None
        return OwnLease(self._store, self.prefix, identity, margin, clock)

    async def undo(self) -> None:
        if self._store is None or self._path not in self._missing:
            return
        try:
            if (await self._store.list("")).entries:
                return
        except StoreError:
            return  # who knows what is in it
        await self._store.close()
        with contextlib.suppress(OSError):  # a directory that somebody else uses by now stays
            self._path.unlink(missing_ok=True)
            for directory in self._missing[1:]:
                directory.rmdir()


class EtcdSource:
    """etcd, which also holds the network configuration."""

    kind = "etcd"

    def __init__(self, settings: EtcdSettings) -> None:
        self.url = ",".join(settings.endpoints)
        self.prefix = leases.subnets_prefix(settings.prefix)
        self.config_text = ""
        self._settings = settings
        self._store: Store | None = None

    async def connect(self, remembered: Remembered) -> Store:
        from fabric.store.etcd.store import EtcdStore

        self._store = EtcdStore(self._settings)
        return self._store

    async def config(self, remembered: Remembered) -> NetConf:
        from fabric.store.etcd.store import read_config

        assert self._store is not None
        store, prefix = self._store, self._settings.prefix
        place = f"{prefix.rstrip('/')}/config in etcd"
        conf, self.config_text = await wait_for_config(lambda: read_config(store, prefix), place, remembered.config)
        return conf

    async def public_addresses(self, remembered: Remembered) -> Mapping[int, str]:
        return {}

    def membership(self, identity: Identity, margin: float, clock: Callable[[], float]) -> Membership:
        assert self._store is not None
        return OwnLease(self._store, self.prefix, identity, margin, clock)

    async def undo(self) -> None:
        return None


class KubeSource:
    """The Kubernetes API: leases are annotations of Nodes. `name` is this node's when nothing else says it.

    `access` and `names` are for others who ask the same API."""

    kind = "kubernetes"
    config_text = ""
    prefix = leases.subnets_prefix()

    def __init__(self, options: KubeOptions, name: str, conf: NetConf) -> None:
        from fabric.store.kube import access, annotate

        self._options = options
        self._name = name
        self._conf = conf
        self.access = access.load(options.api_url, options.kubeconfig, os.environ)
        self.names = annotate.names(options.annotation_prefix)
        self._store: KubeStore | None = None
        self.url = str(self.access.endpoint)

    async def connect(self, remembered: Remembered) -> Store:
        from fabric.store.kube.store import KubeStore

        self._store = KubeStore(self.access, self.names, await self._node_name(remembered))
        return self._store

    async def _node_name(self, remembered: Remembered) -> str:
        if self._options.node_name:
            return self._options.node_name
        from fabric.store.kube.api import Api
        from fabric.store.kube.store import node_name_of_pod

        known = remembered.own.node if remembered.own else ""
        pod = {"POD_NAME": self._options.pod_name, "POD_NAMESPACE": self._options.pod_namespace}
        api = Api(self.access, self.names)
        return await patiently(lambda: node_name_of_pod(api, pod), known or None) or self._name

    async def config(self, remembered: Remembered) -> NetConf:
        return self._conf

    async def public_addresses(self, remembered: Remembered) -> Mapping[int, str]:
        from fabric.store.kube.api import NotFoundError
        from fabric.store.kube.store import node_public_ips

        assert self._store is not None
        store, known = self._store, remembered.public if remembered.own else None
        try:
            return await patiently(lambda: node_public_ips(store), known)
        except NotFoundError:
            return {}  # the Node is waited for when its lease is taken

    def membership(self, identity: Identity, margin: float, clock: Callable[[], float]) -> Membership:
        from fabric.daemon.kube_lease import KubeLease

        assert self._store is not None
        return KubeLease(self._store, self.prefix, identity, self._options.set_network_unavailable)  # the time of day

    async def undo(self) -> None:
        return None


async def patiently(ask: Callable[[], Awaitable[T]], known: T | None) -> T:
    """The answer of `ask`; `known` when the store does not answer for `PATIENCE` seconds, StartError without it."""
    deadline = monotonic() + PATIENCE
    while True:
        try:
            async with asyncio.timeout(None if known is None else deadline - monotonic()):
                return await ask()
        except TimeoutError:
            if known is None:
                raise
            return known  # it takes connections, and says nothing
        except StoreUnavailableError as error:
            if monotonic() >= deadline:
                if known is None:
                    raise StartError(str(error)) from None
                return known
        await asyncio.sleep(0.1)


async def wait_for_config(
    read: Callable[[], Awaitable[bytes | None]], place: str, remembered: str
) -> tuple[NetConf, str]:
    """The configuration that `read` finds at `place`, and its text; looked for every second until it is there.

    With one `remembered` from an earlier run, that is taken when the store does not answer for `PATIENCE` seconds.
    What is wrong is said once, not at every look.
    """
    deadline, said = monotonic() + PATIENCE, ""
    try:
        known = config.parse(remembered) if remembered else None
    except ConfigError:
        known = None  # of another version, or damaged
    while True:
        try:
            data = await read()
            if data is not None:
                return config.parse(data), data.decode()
            problem = f"{place} does not exist"
        except StoreUnavailableError as error:
            problem = str(error)
            if known is not None and monotonic() >= deadline:
                log.warning("%s: starting with the network configuration of the last run", error)
                return known, remembered
        except ConfigError as error:
            problem = f"{place}: {error}"
        if problem != said and (known is None or monotonic() >= deadline):
            log.warning("no network configuration yet: %s; looking again every second", problem)
            said = problem
        await asyncio.sleep(RETRY_SECONDS)
