"""The host's routes to pods on ports, and 127.0.0.1 for their port mappings. They go with the node port, which every
start makes anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from ipaddress import ip_interface

from fabric.model import Endpoint

log = logging.getLogger("fabric")


def lead_host_to(device: str, endpoints: Iterable[Endpoint]) -> None:
    """What the plugin's ADD did for them, again. Errors are said: the pods reach everything but the host then."""
    addresses = [ip_interface(address) for endpoint in endpoints for address in endpoint.addresses]
    if not addresses:
        return
    from fabric.cni import hostside, links  # the plugin's own functions; a node without pods needs none of them
    from fabric.cni.errors import CniError
    from fabric.cni.kinds import common
    from routes.netlink import Netlink

    try:
        with Netlink() as netlink:
            link = links.find(netlink, device)
            if link is not None:
                common.route_to_pod(netlink, link, addresses)
    except (CniError, OSError) as error:
        log.error("the host's routes to %d pods are missing: %s", len(addresses), error)
    try:
        hostside.reopen_localhost(device, [address.ip for address in addresses])
    except CniError as error:
        log.warning("127.0.0.1 leads to no port mapping of a pod before the next pod with one: %s", error)
