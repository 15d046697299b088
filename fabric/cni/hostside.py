"""Port mappings and masquerading of an attachment in the host's firewall (`fabric.traffic.portmap` has the table).

Everything is an element that carries the attachment's name, so DEL and GC need neither record nor daemon. Pods without
mappings pay nothing: the firewall's modules are loaded only for those that have some, or whose record is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from fabric.cni import addressing, subnet_env
from fabric.cni.attachment import Attachment, Record
from fabric.cni.config import Conf, load
from fabric.cni.errors import CHECK_FAILED, KERNEL_REFUSED, PORT_TAKEN, CniError
from fabric.cni.logs import log
from fabric.cni.mappings import FLANNELS_DELEGATE, HostSide, Mapping, wanted
from fabric.cni.result import Address, Network, Result
from routes.netlink import Netlink, Request

if TYPE_CHECKING:
    from fabric.traffic.nft import Nftables
    from fabric.traffic.portmap import Element

T = TypeVar("T")


def attach(asked: HostSide, record: Record, given: Result) -> None:
    """Set up what is asked for. Raises CniError: 115 when a port is another container's, 112."""
    if not asked:
        return
    from fabric.traffic import portmap, portmap_table

    chain, making = "", list[Request]()
    if asked.masquerade:
        chain, making = portmap_table.masquerading(cluster_networks(load(dict(record.document)), given))
    elements = _elements(asked, record, chain)

    def missing(kernel: Nftables) -> list[Request]:
        found = [] if kernel.chain(portmap.FAMILY, portmap.TABLE, portmap.VERSION_CHAIN) else portmap_table.requests()
        needed = chain and kernel.chain(portmap.FAMILY, portmap.TABLE, chain) is None
        return found + making if needed else found

    try:
        _with_kernel("set up port mappings", lambda kernel: portmap.add(kernel, elements, lambda: missing(kernel)))
    except portmap.TakenError as error:
        raise _taken(asked, record, error.element, error.holder) from None
    _open_localhost(asked, record)
    _forget_udp(asked.mappings, record)


def detach(record: Record) -> None:
    """Remove everything of the attachment, if there can be anything. Raises CniError (112)."""
    if not _may_have(record):
        return
    from fabric.traffic import portmap

    owner = _owner(record.attachment)
    gone = _with_kernel("remove port mappings", lambda kernel: portmap.remove(kernel, owner.__eq__))
    if gone and record.ips:
        with contextlib.suppress(CniError):  # the configuration of another version
            _forget_udp(wanted(load(dict(record.document))).mappings, record, only_pods=True)


def check(record: Record) -> None:
    """Raise CniError (113) unless mappings and rules are there."""
    asked = wanted(load(dict(record.document)))
    if not asked or not record.ips:  # a lost record does not say which addresses the mappings lead to
        return
    from fabric.traffic import portmap, portmap_table

    elements = _elements(asked, record, "")

    def look(kernel: Nftables) -> tuple[str, list[Element | None]]:
        return portmap_table.broken(kernel), portmap.look_up(kernel, elements)

    broken, found = _with_kernel("look at port mappings", look)
    if broken:
        text = f"chain {broken} of nftables table {portmap.FAMILY} {portmap.TABLE} was changed or is gone"
        raise CniError(CHECK_FAILED, text, "delete the table and start the pods with port mappings again")
    for element, there in zip(elements, found, strict=True):
        if there is None or there._replace(chain="") != element:
            text = f"{record.attachment.key} has lost its entry in {element.set} of {portmap.TABLE}"
            raise CniError(CHECK_FAILED, text, f"it is {there.owner}'s now" if there else "")


def sweep(network: str, valid: Collection[Attachment]) -> None:
    """Remove what belongs to none of the `valid` attachments of the network. For GC. Raises CniError (112)."""
    from fabric.traffic import portmap

    kept = {_owner(attachment) for attachment in valid}

    def stale(owner: str) -> bool:
        return owner.startswith(f"{network}/") and owner not in kept

    for owner in {element.owner for element in _with_kernel("collect port mappings",
                                                            lambda kernel: portmap.remove(kernel, stale))}:  # fmt: skip
        log(f"GC: port mappings of {owner} belonged to no valid attachment")


def cluster_networks(conf: Conf, given: Result) -> list[Network]:
    """Where pods are: the networks of subnet.env, and those that IPAM gave addresses of."""
    networks: list[Network] = [ip.address.network for ip in given.ips]
    with contextlib.suppress(CniError):  # not needed when IPAM has ranges of its own
        networks += subnet_env.read(conf.path("subnetfile", subnet_env.DEFAULT_PATH)).networks
    return list(dict.fromkeys(networks))


def _elements(asked: HostSide, record: Record, chain: str) -> list[Element]:
    from fabric.traffic import portmap

    owner, pods = _owner(record.attachment), _pods(record)
    found = []
    for mapping, pod in _led(asked.mappings, record):
        found.append(
            portmap.port_element(owner, mapping.protocol, mapping.host, mapping.host_port, pod, mapping.pod_port)
        )
    for pod in dict.fromkeys(pod for _, pod in _led(asked.mappings, record)) if asked.snat else ():
        found += [portmap.hairpin_element(owner, _device_to(pod), pod), portmap.self_element(owner, pod)]
        found += [portmap.local_element(owner, pod)] if pod.version == 4 else []
    if asked.masquerade:
        found += [portmap.masquerade_element(owner, pod, chain) for pod in pods.values()]
    return found


def _pods(record: Record) -> dict[int, Address]:
    """The pod's first address of each IP version, as in the reference plugin."""
    return {address.version: address.ip for address in reversed(record.addresses)}


def _led(mappings: tuple[Mapping, ...], record: Record) -> Iterator[tuple[Mapping, Address]]:
    """Each mapping with each address of the pod that it leads to; one of an IP version that the pod lacks has none."""
    pods = _pods(record)
    for mapping in mappings:
        for version in (mapping.version,) if mapping.version else (4, 6):
            if version in pods:
                yield mapping, pods[version]


def _device_to(pod: Address) -> str:
    with Netlink() as netlink:
        return addressing.device_to(netlink, pod)


def _open_localhost(asked: HostSide, record: Record) -> None:
    """Let the kernel route what comes from 127.0.0.1 to the pod, as the reference plugin does."""
    pod = next((pod for _, pod in _led(asked.mappings, record) if pod.version == 4), None)
    if asked.snat and pod is not None:
        addressing.set_sysctls([(f"net/ipv4/conf/{_device_to(pod)}/route_localnet", "1")])


def reopen_localhost(device: str, pods: Iterable[Address]) -> None:
    """What ADD did for mappings by 127.0.0.1, for a device towards these pods that was made anew.

    Only where one of them has such a mapping, and the chain that keeps 127.0.0.0/8 in is in place. Raises CniError
    (112).
    """
    from fabric.traffic import portmap, portmap_table

    wanted = [portmap.local_element("", pod) for pod in pods if pod.version == 4]

    def look(kernel: Nftables) -> bool:
        mapped = any(found is not None for found in portmap.look_up(kernel, wanted))
        return mapped and not portmap_table.broken(kernel)

    if not wanted:
        return
    if _with_kernel("look at port mappings", look):
        addressing.set_sysctls([(f"net/ipv4/conf/{device}/route_localnet", "1")])


def _forget_udp(mappings: tuple[Mapping, ...], record: Record, only_pods: bool = False) -> None:
    """Flows that began before the mapping, or whose pod goes. Never raises: they end by themselves, later."""
    if not any(mapping.protocol == "udp" for mapping in mappings):
        return
    from fabric.traffic.portmap_conntrack import forget_udp

    for version, pod in _pods(record).items():
        ports = {m.host_port for m in mappings if m.protocol == "udp" and m.version in (0, version)}
        try:
            if ports:
                forget_udp(version, ports, pod if only_pods else None)
        except OSError as error:
            log(f"{record.attachment.key}: UDP flows of its ports cannot be forgotten: {error.strerror or error}")


def _may_have(record: Record) -> bool:
    """Without addresses the record is lost, and only the firewall itself can tell; flannel's file has never any."""
    conf = load(dict(record.document))
    try:
        return (not record.ips and conf.type != FLANNELS_DELEGATE) or bool(wanted(conf))
    except CniError:
        return True


def _taken(asked: HostSide, record: Record, element: Element, holder: str) -> CniError:
    from fabric.traffic import portmap

    text = "a port"
    for mapping, pod in _led(asked.mappings, record):
        made = portmap.port_element("", mapping.protocol, mapping.host, mapping.host_port, pod, mapping.pod_port)
        if (made.set, made.key) == (element.set, element.key):
            text = f"port {mapping}"
    return CniError(PORT_TAKEN, f"{text} of this host is {holder or 'another program'}'s already", "choose another")


def _owner(attachment: Attachment) -> str:
    from fabric.traffic.portmap import owner_name

    return owner_name(*attachment)


def _with_kernel(what: str, job: Callable[[Nftables], T]) -> T:
    from fabric.traffic.nft import UNSUPPORTED, Nftables

    try:
        with Nftables() as kernel:
            return job(kernel)
    except OSError as error:
        hint = "; load nf_tables, nft_chain_nat, nft_nat, nft_masq, nft_fib_inet" if error.errno in UNSUPPORTED else ""
        raise CniError(KERNEL_REFUSED, f"{what}: {error.strerror or error}{hint}") from None
