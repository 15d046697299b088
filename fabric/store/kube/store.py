"""`KubeStore`: the Nodes of a cluster under the contract of `fabric.store.base`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NoReturn

from fabric.errors import StoreError, StoreUnavailableError
from fabric.store.base import Entry, Snapshot, Unavailable, WatchItem
from fabric.store.kube.access import Access
from fabric.store.kube.annotate import Names
from fabric.store.kube.api import Api
from fabric.store.kube.nodes import Node
from fabric.store.kube.reflector import Reflector, Timing
from fabric.store.kube.table import NodeTable

log = logging.getLogger("fabric.store.kube")
RESTART_SECONDS = 1.0


class KubeStore:
    """Leases of all managed nodes; `node_name` is the node we run on.

    `api` may be used before `open` and beside the watches. `own_changed` is called when our own Node's podCIDRs or
    flannel annotations are different; `own_node` has them. The store's identity is the API's address and the number
    of times that its versions ran backwards.
    """

    def __init__(self, access: Access, names: Names, node_name: str, timing: Timing | None = None) -> None:
        self.api = Api(access, names)
        self.names = names
        self.node_name = node_name
        self.own_changed: Callable[[], None] = lambda: None
        self._table = NodeTable(names, node_name)
        self._reflector = Reflector(self.api, self._table, self._changed, self._heard, timing)
        self._task: asyncio.Task[None] | None = None
        self._reason = f"Kubernetes API {access.endpoint}: not asked yet"
        self._online = False
        self._own: Node | None = None
        self._closed = False
        self._news = asyncio.Event()
        self._settled = asyncio.Event()

    async def open(self) -> None:
        """Start to list and watch; returns at once, whether the API answers or not."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="kube-reflector")

    async def list(self, prefix: str) -> Snapshot:
        """The content, waiting for the first list. Raises StoreUnavailableError."""
        if self._task is not None and not self._closed:
            await self._settled.wait()
        if not self._online:
            raise StoreUnavailableError(self._reason)
        return self._snapshot(prefix)

    async def put(self, key: str, value: bytes, expected: int, ttl: float | None) -> Entry:
        """Not to be had: nodes write their own annotations only (`KubeLease`)."""
        self._no_writes()

    async def delete(self, key: str, expected: int) -> None:
        """Not to be had: a lease ends with its Node."""
        self._no_writes()

    async def watch(self, prefix: str) -> AsyncIterator[WatchItem]:
        told: Snapshot | None = None
        down = False
        while not self._closed:
            news = self._news
            if self._online:
                snapshot = self._snapshot(prefix)
                if down or told is None or (told.store_id, told.entries) != (snapshot.store_id, snapshot.entries):
                    told, down = snapshot, False
                    yield snapshot
            elif self._settled.is_set() and not down:
                down = True
                yield Unavailable(self._reason)
            if news is self._news:
                await news.wait()

    async def close(self) -> None:
        self._closed, self._online = True, False
        self._reason = f"store {self.api.access.endpoint} is closed"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._settled.set()
        self._wake()

    def own_node(self) -> Node | None:
        """Our own Node as the watch last saw it, None while it does not exist."""
        return self._table.node(self.node_name)

    @property
    def epoch(self) -> int:
        """How often the API's versions ran backwards: they compare within one epoch only."""
        return self._reflector.epoch

    @property
    def lists(self) -> int:
        """How often all nodes were listed."""
        return self._reflector.lists

    @property
    def refused(self) -> int:
        """How often an object could not be used."""
        return self._table.refused

    def problems(self) -> Mapping[str, str]:
        """Nodes that cannot be understood, with the reason."""
        return self._table.problems()

    async def _keep(self) -> None:
        """Run the reflector; a bug in it must not end the control plane."""
        while True:
            try:
                await self._reflector.run()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("the watch of the Kubernetes API died and is started again")
                self._heard(f"Kubernetes API {self.api.access.endpoint}: {type(error).__name__}")
            await asyncio.sleep(RESTART_SECONDS)

    def _snapshot(self, prefix: str) -> Snapshot:
        store_id = f"{self.api.access.endpoint}#{self._reflector.epoch}"
        return Snapshot(store_id, self._reflector.revision, self._table.entries(prefix))

    def _changed(self) -> None:
        own = self.own_node()
        if own != self._own:
            self._own = own
            self.own_changed()
        self._wake()

    def _heard(self, reason: str | None) -> None:
        online = reason is None
        self._reason = reason or self._reason
        if online != self._online or not self._settled.is_set():
            self._online = online
            self._settled.set()
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _no_writes(self) -> NoReturn:
        raise StoreError("leases in the Kubernetes API are annotations of Nodes: each node writes its own")


async def node_public_ips(store: KubeStore) -> dict[int, str]:
    """`node-public-ip` and `node-public-ipv6` of our own Node by IP version, as written by an administrator.

    They win over `--public-ip` and `--public-ipv6` and steer the choice of the interface (flannel GetStoredPublicIP).
    The store need not be open. Raises StoreError.
    """
    found = (await store.api.node(store.node_name)).annotations
    pairs = ((4, found.get(store.names.node_public_ip)), (6, found.get(store.names.node_public_ipv6)))
    return {version: text for version, text in pairs if text}


async def node_name_of_pod(api: Api, environ: Mapping[str, str]) -> str:
    """Our node's name, from the Pod that `POD_NAMESPACE` and `POD_NAME` name; empty without these variables.

    Raises StoreError (flannel asks the same where `NODE_NAME` is not set)."""
    namespace, pod = environ.get("POD_NAMESPACE", ""), environ.get("POD_NAME", "")
    if not namespace or not pod:
        return ""
    name = await api.node_of_pod(namespace, pod)
    if not name:
        raise StoreUnavailableError(f"node name not present in pod spec '{namespace}/{pod}'")
    return name
