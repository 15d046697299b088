"""The verbs for configurations of type `flannel`: what flannel's own CNI plugin does, file by file.

It renders a configuration for a delegate from subnet.env and keeps it as `<dataDir>/<container id>`; both plugins read
each other's files, so either may be there when a pod goes. The delegate `bridge` is done by ourselves, its masquerading
too; one that asks for more than we do (`kinds.bridge.UNSUPPORTED`), and any other delegate, is executed from CNI_PATH,
and so is the DEL of a pod that the reference plugin masquerades.

Source: flannel-io/cni-plugin `flannel.go`, `flannel_linux.go`. What differs: DEL removes the file only when the
delegate was successful, and frees addresses also without a file; CHECK, GC and STATUS do something; `flannel` is no
delegate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fabric import jsonsafe
from fabric.cni import attaching, delegate, hostside, pod, subnet_env
from fabric.cni.attachment import Attachment, Record
from fabric.cni.config import Conf, load, valid_attachments
from fabric.cni.errors import (
    CHECK_FAILED,
    INVALID_CONFIG,
    IO_FAILURE,
    NOT_AVAILABLE,
    TRY_AGAIN_LATER,
    CniError,
    Failures,
)
from fabric.cni.ipam import OURS, Ipam, filled, owners
from fabric.cni.logs import log
from fabric.cni.protocol import Request, is_name
from fabric.cni.result import Result, parse, parse_routes
from fabric.cni.state import Store, read_file, remove_temporaries
from fabric.cni.subnet_env import SubnetEnv
from fabric.files import write_atomic

DEFAULT_DIR = "/var/lib/cni/flannel"
DELEGATE = "bridge"
MASQUERADER, OURSELVES = "masqueradedBy", "fabric-cni"
"""In files of pods that we masquerade. Others with `ipMasq` are the reference bridge's, whose rules only it removes."""


class Rendered(NamedTuple):
    """The delegate's configuration; `ours` when we do its work."""

    conf: Conf
    ours: bool

    @property
    def type(self) -> str:
        return self.conf.type


def render(conf: Conf, env: SubnetEnv) -> dict[str, Any]:
    """The delegate's configuration. Raises CniError (7). Pure."""
    delegated = dict(conf.section("delegate"))
    if not isinstance(delegated.get("type", DELEGATE), str):
        raise CniError(INVALID_CONFIG, "'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in delegated:
            text = f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
            raise CniError(INVALID_CONFIG, text)
    runtime = conf.section("runtimeconfig")
    delegated |= {"runtimeConfig": runtime} if runtime else {}
    delegated["name"] = conf.name
    delegated.setdefault("type", DELEGATE)
    delegated.setdefault("ipMasq", not env.ip_masq)  # if flannel is not doing ipmasq, the delegate should
    delegated.setdefault("mtu", env.mtu)
    if delegated["type"] == DELEGATE:
        delegated.setdefault("isGateway", True)
    delegated["cniVersion"] = conf.version
    section = filled(conf.section("ipam"), env)
    parse_routes(section.get("routes"))
    section["routes"] = [*(section.get("routes") or []), *({"dst": str(network)} for network in env.networks)]
    return delegated | {"ipam": section}


def _masqueraded(conf: Conf, rendered: Conf) -> Conf:
    """The delegate's configuration with what our masquerading needs besides, if that is asked for."""
    if not rendered.flag("ipmasq"):
        return rendered
    path = conf.path("subnetfile", subnet_env.DEFAULT_PATH)
    return load({**rendered.document, MASQUERADER: OURSELVES, "subnetFile": path})


def add(request: Request, conf: Conf, answer: attaching.Answer) -> None:
    """Save the delegate's configuration, then have the delegate done. Raises CniError, nothing is left then."""
    rendered = _rendered(conf)
    if not rendered.ours:
        _refuse_missing(rendered, request)
    attachment, files = Attachment(conf.name, request.container_id, request.ifname), _Files(conf)
    with pod.opened(request) as inside, files.lock.locked(attachment, create=True):
        attaching.refuse_existing(inside, request.ifname)
        if not rendered.ours:
            files.save(request.container_id, rendered.conf)
            answer(_execute(request, conf, rendered, files))
            return
        made = _masqueraded(conf, rendered.conf)
        previous = {"prevResult": conf.folded["prevresult"]} if conf.folded.get("prevresult") else {}
        asked = load({**made.document, **previous})
        keeper = files.keeper()._replace(begin=lambda: files.save(request.container_id, made))
        attaching.attach(request, asked, DELEGATE, asked.mtu(), inside, keeper, answer)


def delete(request: Request, conf: Conf) -> None:
    """Have the delegate undo what ADD had it do. No file, or a damaged one: nothing to delegate, success."""
    attachment, files = Attachment(conf.name, request.container_id, request.ifname), _Files(conf)
    with pod.opened_if_there(request) as inside, files.lock.locked(attachment, create=False):
        saved = files.load(request.container_id)
        if saved is None:
            _delete_by_names(request, conf, attachment, inside, files)
        elif saved.ours:
            record = Record(attachment, DELEGATE, request.netns, saved.conf.document)
            attaching.detach(request, record, saved.conf, inside, files.keeper())
        else:
            delegate.run(saved.type, request, saved.conf.document, "DEL")
            files.remove(request.container_id)


def check(request: Request, conf: Conf) -> None:
    """Raise CniError for what is not as ADD left it."""
    attachment, files = Attachment(conf.name, request.container_id, request.ifname), _Files(conf)
    with pod.opened(request) as inside:
        saved = files.load(request.container_id)
        if saved is None:
            raise CniError(CHECK_FAILED, f"container {request.container_id} was not added by this plugin")
        asked = load({**saved.conf.document, "prevResult": conf.folded.get("prevresult")})
        if saved.ours:
            record = Record(attachment, DELEGATE, request.netns, asked.document)
            attaching.check(request, record, asked, inside)
        else:
            delegate.run(saved.type, request, asked.document, "CHECK")


def collect(request: Request, conf: Conf) -> None:
    """GC: files and addresses of what is not valid any more. Raises CniError with what failed, after trying all."""
    valid = [Attachment(conf.name, *pair) for pair in valid_attachments(conf)]
    containers = {attachment.container_id for attachment in valid}
    files, failures = _Files(conf), Failures()
    with files.lock.locked(None, create=False):
        failures.attempt(lambda: _collect_delegate(request, conf, valid))
        failures.attempt(lambda: hostside.sweep(conf.name, valid))
        for container_id in files.containers():
            if container_id not in containers and files.load(container_id) is not None:
                log(f"GC: {container_id} is not valid any more")
                failures.attempt(partial(files.remove, container_id))
    failures.report()


def status(request: Request, conf: Conf) -> None:
    """Raise CniError (50) while subnet.env is not there, or with what the delegate says."""
    try:
        rendered = _rendered(conf)
        if rendered.ours:
            Ipam(rendered.conf, request).ready()
        elif delegate.speaks(rendered.type, request, conf.version):
            delegate.run(rendered.type, request, rendered.conf.document, "STATUS")
        else:
            delegate.find(rendered.type, request)
    except CniError as error:
        code = NOT_AVAILABLE if error.code == TRY_AGAIN_LATER else error.code
        raise CniError(code, error.msg, error.details) from None


def containers(directory: Path) -> list[str]:
    """The containers that have a file in this directory."""
    try:
        return sorted(name for name in os.listdir(directory) if is_name(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CniError(IO_FAILURE, f"cannot list {directory}: {error.strerror}") from None


def forget(directory: Path, container_id: str, booted: int) -> bool:
    """Free the addresses of a container of an earlier boot, and remove its file; False when it may be there.

    `booted` is when this boot began, in ns: a younger file stays. Of interfaces and rules a reboot leaves nothing.
    Raises CniError.
    """
    path = directory / container_id
    data = read_file(path)
    conf = load(jsonsafe.loads(data)) if data is not None and os.stat(path).st_mtime_ns < booted else None
    if conf is None:
        return False
    lock = Store(directory, conf.name)
    with ExitStack() as stack:
        for owner in owners(conf, container_id):
            attachment = Attachment(conf.name, *owner)
            if not stack.enter_context(lock.claimed(attachment, create=True)):
                return False
            Ipam(conf, Request("DEL")).delete(attachment)
        with suppress(FileNotFoundError):
            os.unlink(path)
    remove_temporaries(directory, (container_id,))
    return True


class _Files:
    """`<dataDir>/<container id>`, flannel's format: the delegate's configuration and nothing else."""

    def __init__(self, conf: Conf) -> None:
        self._network = conf.name
        self._directory = Path(conf.path("datadir", DEFAULT_DIR))
        self.lock = Store(self._directory, conf.name)

    def save(self, container_id: str, conf: Conf) -> None:
        """Raises CniError (5)."""
        try:
            write_atomic(self._directory / container_id, json.dumps(conf.document).encode(), 0o600, 0o700)
        except OSError as error:
            raise CniError(IO_FAILURE, f"cannot write {self._directory / container_id}: {error.strerror}") from None

    def load(self, container_id: str) -> Rendered | None:
        """The file of this container; None when there is none, it is damaged, or another network's."""
        path = self._directory / container_id
        try:
            data = read_file(path)
            conf = load(jsonsafe.loads(data)) if data is not None else None
        except (OSError, ValueError, AttributeError, CniError) as error:
            log(f"{path} cannot be used, taken as absent: {error}")
            return None
        if conf is None or conf.name != self._network:
            return None
        theirs = conf.folded.get("ipmasq") and conf.folded.get(MASQUERADER.lower()) != OURSELVES
        return Rendered(conf, _is_ours(conf) and not theirs)

    def remove(self, container_id: str) -> None:
        """Raises CniError (5)."""
        try:
            os.unlink(self._directory / container_id)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise CniError(IO_FAILURE, f"cannot remove {self._directory / container_id}: {error.strerror}") from None
        finally:
            remove_temporaries(self._directory, (container_id,))

    def containers(self) -> list[str]:
        """The containers that have a file."""
        return containers(self._directory)

    def keeper(self) -> attaching.Keeper:
        """Bridges have nothing that the daemon must be told; ADD alone begins."""

        def nothing(*_: object) -> None:
            return None

        return attaching.Keeper(nothing, nothing, lambda record: self.remove(record.attachment.container_id), nothing)


def _rendered(conf: Conf) -> Rendered:
    env = subnet_env.read(conf.path("subnetfile", subnet_env.DEFAULT_PATH))
    rendered = load(render(conf, env))
    if rendered.type == "flannel":
        raise CniError(INVALID_CONFIG, "delegate.type flannel would execute itself without end")
    return Rendered(rendered, _is_ours(rendered))


def _is_ours(conf: Conf) -> bool:
    from fabric.cni.kinds.bridge import UNSUPPORTED

    return conf.type == DELEGATE and not any(conf.folded.get(key) for key in UNSUPPORTED)


def _execute(request: Request, conf: Conf, rendered: Rendered, files: _Files) -> Result:
    try:
        made = parse(delegate.run(rendered.type, request, rendered.conf.document, "ADD"), f"answer of {rendered.type}")
        return made.after(parse(conf.folded["prevresult"])) if conf.folded.get("prevresult") else made
    except BaseException as error:
        try:
            delegate.run(rendered.type, request, rendered.conf.document, "DEL")
            files.remove(request.container_id)
        except CniError as failure:
            log(f"DEL of {rendered.type} after its failed ADD: {failure}")
        if isinstance(error, CniError):
            raise CniError(error.code, f"failed to delegate add: {error.msg}", error.details) from None
        raise


def _refuse_missing(rendered: Rendered, request: Request) -> None:
    """Before anything is saved."""
    try:
        delegate.find(rendered.type, request)
    except CniError as error:
        raise CniError(error.code, f"failed to delegate add: {error.msg}") from None


def _delete_by_names(
    request: Request, conf: Conf, attachment: Attachment, inside: pod.Pod | None, files: _Files
) -> None:
    """What can be done without the file: an interface of ours, and reservations of this attachment."""
    ipam = {"type": OURS, **conf.section("ipam")}
    document = {"cniVersion": conf.version, "name": conf.name, "type": DELEGATE, "ipam": ipam}
    lost = Record(attachment, DELEGATE, request.netns, document)
    with suppress(CniError):  # where the firewall cannot be asked, nothing is in it
        hostside.detach(lost._replace(document={**document, "ipMasq": True}))
    try:
        if conf.section("delegate").get("type", DELEGATE) == DELEGATE:
            attaching.detach(request, lost, load(document), inside, files.keeper())
    except CniError as error:
        log(f"{attachment.key}: no file of it is left, and cleaning up by its names failed: {error}")


def _collect_delegate(request: Request, conf: Conf, valid: list[Attachment]) -> None:
    rendered = _rendered(conf)
    if rendered.ours:
        Ipam(rendered.conf, request).collect(valid)
    elif delegate.speaks(rendered.type, request, conf.version):
        document = {**rendered.conf.document, **_attachments(conf.document)}
        delegate.run(rendered.type, request, document, "GC")
    else:
        log(f"plugin {rendered.type} has no GC in version {conf.version}")


def _attachments(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key.lower().startswith("cni.dev/")}
