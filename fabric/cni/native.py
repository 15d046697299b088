"""The verbs for configurations of our own type, `fabric-cni`. docs/cni.md has the keys."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fabric.cni import attaching, hostside, kinds, pod, subnet_env
from fabric.cni.attachment import Attachment, Record
from fabric.cni.config import Conf, load, valid_attachments
from fabric.cni.errors import LIMITED_CONNECTIVITY, NOT_AVAILABLE, TRY_AGAIN_LATER, CniError, Failures
from fabric.cni.ipam import OURS, Ipam, filled, is_complete
from fabric.cni.logs import log
from fabric.cni.protocol import Request
from fabric.cni.state import DEFAULT_DIR, Store


class Settings(NamedTuple):
    """What ADD works with: the configuration with its `ipam` section filled in, and the pods' MTU (0: unknown)."""

    conf: Conf
    kind: str
    mtu: int


def add(request: Request, conf: Conf, answer: attaching.Answer) -> None:
    """Make the interface. Raises CniError, nothing is left then."""
    settings = _settings(conf)
    _refuse_unready(settings)
    attachment, store = _attachment(request, conf), _store(conf)
    settle(store)
    with pod.opened(request) as inside, store.locked(attachment, create=True):
        attaching.refuse_existing(inside, request.ifname)
        stale = store.load(attachment)
        if stale is not None:
            log(f"{attachment.key}: removing what an earlier ADD without DEL has left")
            attaching.detach(request, stale, load(dict(stale.document)), None, _keeper(store))
        attaching.attach(request, settings.conf, settings.kind, settings.mtu, inside, _keeper(store), answer)


def delete(request: Request, conf: Conf) -> None:
    """Remove the interface and free its addresses; without a record, by the attachment's names and `prevResult`."""
    attachment, store = _attachment(request, conf), _store(conf)
    with pod.opened_if_there(request) as inside, store.locked(attachment, create=False):
        _remove(request, conf, store, attachment, inside)


def check(request: Request, conf: Conf) -> None:
    """Raise CniError for what is not as ADD left it."""
    attachment, store = _attachment(request, conf), _store(conf)
    with pod.opened(request) as inside, store.locked(attachment, create=False):
        record = store.load(attachment) or _without_record(request, conf, attachment)
        document = {**record.document, "prevResult": conf.folded.get("prevresult")}
        attaching.check(request, record, load(document), inside)


def collect(request: Request, conf: Conf) -> None:
    """GC: remove what belongs to no valid attachment; all of it is tried. Raises CniError with what failed."""
    valid = [Attachment(conf.name, *pair) for pair in valid_attachments(conf)]
    keys = {attachment.key for attachment in valid}
    store, failures = _store(conf), Failures()
    settle(store)
    with store.locked(None, create=False):
        for attachment in store.all():
            if attachment.key not in keys:
                failures.attempt(partial(_drop, request, conf, store, attachment))
        if kinds.wanted(conf) in kinds.PORTS:
            from fabric.cni.kinds import daemon

            failures.attempt(partial(daemon.sweep, conf, keys))
        failures.attempt(lambda: hostside.sweep(conf.name, valid))
        failures.attempt(lambda: Ipam(_settings(conf).conf, request).collect(valid))
    failures.report()


def status(request: Request, conf: Conf) -> None:
    """Raise CniError (50, 51) unless ADD can be served."""
    try:
        settings = _settings(conf)
    except CniError as error:
        code = NOT_AVAILABLE if error.code == TRY_AGAIN_LATER else error.code
        raise CniError(code, error.msg, error.details) from None
    kinds.load(settings.kind).ready(settings.conf)
    Ipam(settings.conf, request).ready()


def remove_all(store: Store, leaving: Sequence[tuple[Record, Conf]]) -> dict[Attachment, CniError]:
    """Remove attachments whose containers and ports are gone, as DEL does; what of them stays. The caller holds their
    locks, as for DEL."""
    return attaching.detach_all(leaving, _keeper(store))


def settle(store: Store) -> None:
    """Tell the daemon of the ports that it could not be told of when they went."""
    for attachment in store.late():
        from fabric.cni.kinds import daemon

        with store.claimed(attachment) as ours:
            record = store.load_late(attachment) if ours else None
            if record is not None and not daemon.tell(record):
                return  # the next call tries again
            if ours:
                store.settle(attachment)


def _refuse_unready(settings: Settings) -> None:
    """Before anything is reserved. What STATUS calls unavailable may pass: the runtime is to try again."""
    try:
        kinds.load(settings.kind).ready(settings.conf)
    except CniError as error:
        code = TRY_AGAIN_LATER if error.code in (NOT_AVAILABLE, LIMITED_CONNECTIVITY) else error.code
        raise CniError(code, error.msg, error.details) from None


def _drop(request: Request, conf: Conf, store: Store, attachment: Attachment) -> None:
    log(f"GC: {attachment.key} is not valid any more")
    request = request._replace(container_id=attachment.container_id, ifname=attachment.ifname)
    _remove(request, conf, store, attachment, None)


def _remove(request: Request, conf: Conf, store: Store, attachment: Attachment, inside: pod.Pod | None) -> None:
    record, keeper = store.load(attachment), _keeper(store)
    if record is None:
        record = _without_record(request, conf, attachment)
        keeper = keeper._replace(postpone=lambda record: None)  # there most likely was no port; GC would find it
    attaching.detach(request, record, load(dict(record.document)), inside, keeper)


def _without_record(request: Request, conf: Conf, attachment: Attachment) -> Record:
    try:
        kind = kinds.wanted(conf)
    except CniError as error:
        log(f"{attachment.key}: {error}")  # ADD refused it, too: there is nothing, but DEL has to succeed
        kind = "veth"
    ipam = {"type": OURS, **conf.section("ipam")}
    return Record(attachment, kind, request.netns, _with_ipam(conf, ipam).document)


def _settings(conf: Conf) -> Settings:
    """Raises CniError: 11 when subnet.env is needed and not there, 2 and 7 for the configuration."""
    kind, mtu, section = kinds.wanted(conf), conf.mtu(), conf.section("ipam")
    path = conf.path("subnetfile", subnet_env.DEFAULT_PATH)
    if is_complete(conf):
        try:
            mtu = mtu or subnet_env.read(path).mtu
        except CniError:
            mtu = 0  # the kernel's, or the daemon's: nobody else said anything
        return Settings(_with_ipam(conf, {"type": OURS, **section}), kind, mtu)
    env = subnet_env.read(path)
    return Settings(_with_ipam(conf, filled(section, env)), kind, mtu or env.mtu)


def _with_ipam(conf: Conf, section: dict[str, Any]) -> Conf:
    document = {key: value for key, value in conf.document.items() if key.lower() != "ipam"}
    return load({**document, "ipam": section})


def _attachment(request: Request, conf: Conf) -> Attachment:
    return Attachment(conf.name, request.container_id, request.ifname)


def _store(conf: Conf) -> Store:
    return Store(Path(conf.path("datadir", DEFAULT_DIR)) / conf.name, conf.name)


def _keeper(store: Store) -> attaching.Keeper:
    return attaching.Keeper(lambda: None, store.save, lambda record: store.remove(record.attachment), store.postpone)
