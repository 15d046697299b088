"""Any sequence of desired states, and of damage in between, ends where programming the last one alone would end.

Everything that the reconciler may leave behind is compared: the VXLAN devices with their options, addresses, entries
and routes, the underlay's routes, the blackholes.
"""

import json
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routes.namespace import NamespaceReconciler
from routes.state import DesiredState, DeviceState, Route
from tests.routes.conftest import ip_json, kernel_addresses, kernel_fdb, kernel_neighbours, kernel_routes
from tests.routes.overlay import VXLAN, VXLAN6, Peer, overlay

pytestmark = pytest.mark.root

NUMBERS = range(2, 6)
HOLES = st.frozensets(st.sampled_from(["10.244.1.0/24", "2001:db8:42:1::/64"]).map(ip_network))
PEERS = st.dictionaries(st.sampled_from(NUMBERS), st.tuples(st.integers(0, 1), st.sampled_from([0, 99])), max_size=4)
OPTIONS = st.sampled_from(
    [{}, {}, {"vni": 2}, {"port": 4789}, {"learning": True}, {"gbp": True}, {"mac": bytes.fromhex("02aabbccdd0e")}]
)


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredState:
    """The underlay and up to two VXLAN devices. A peer is on the overlay or, by a plain route, on the underlay."""
    devices = []
    for version, vxlan in ((4, VXLAN), (6, VXLAN6)):
        if draw(st.booleans()):
            peers = [Peer(number, *rest) for number, rest in draw(PEERS).items()]
            devices.append(overlay(peers, version, replace(vxlan, **draw(OPTIONS))))
    taken = {route.prefix for device in devices for route in device.routes}
    direct = {Peer(number).route(4).prefix for number in draw(st.frozensets(st.sampled_from(NUMBERS)))} - taken
    gateway = ip_address(draw(st.sampled_from(["192.0.2.2", "192.0.2.3"])))
    devices.append(DeviceState("eth0", up=None, routes=frozenset(Route(prefix, gateway) for prefix in direct)))
    return DesiredState(tuple(draw(st.permutations(devices))), draw(HOLES))


DAMAGE = st.sampled_from(
    [
        "ip link del flannel.1",
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel.1 address 02:00:00:00:00:99",
        "ip neigh del 10.244.2.0 dev flannel.1",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
        "ip -6 neigh replace 2001:db8:42:2:: lladdr 02:00:00:00:00:77 dev flannel-v6.1 nud permanent",
        "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.77 port 99",
        "bridge fdb append 00:00:00:00:00:00 dev flannel-v6.1 dst 2001:db8::77",
        "ip route del 10.244.2.0/24",
        "ip route replace 10.244.3.0/24 via 192.0.2.9 dev eth0 proto 112",
        "ip route replace 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink proto 112",
        "ip route replace blackhole 10.244.1.0/24 proto 112",
        "ip -6 route flush proto 112",
        "ip addr flush dev flannel.1",
    ]
)
STEPS = st.lists(st.one_of(st.tuples(st.booleans(), desired_states()), DAMAGE), max_size=5)


def whole_kernel_state() -> dict[str, Any]:
    names = [link["ifname"] for link in ip_json("link show type vxlan")]
    return {
        "links": {name: options_of(name) for name in names},
        "addresses": {name: kernel_addresses(name) for name in [*names, "eth0", "wire0"]},
        "neighbours": {name: kernel_neighbours(name) for name in [*names, "eth0"]},
        "fdb": {name: kernel_fdb(name) for name in names},
        "routes": {name: kernel_routes(name) for name in [*names, "eth0"]},
        "others": [
            (route["dst"], route.get("type"), route.get("dev"))
            for family in (4, 6)
            for route in ip_json(f"-{family} route show")
            if route.get("type") == "blackhole"
        ],
    }


def options_of(name: str) -> tuple[Any, ...]:
    (link,) = ip_json(f"-d link show dev {name}")
    return link["mtu"], link["address"], "UP" in link["flags"], json.dumps(link["linkinfo"], sort_keys=True)


def brought_to(reconciler: NamespaceReconciler, desired: DesiredState) -> dict[str, Any]:
    """Looks until nothing is left to do: two are enough, a third finds nothing."""
    for _ in range(2):
        reconciler.reconcile(desired)
    last = reconciler.reconcile(desired)
    assert (last.changes, last.errors) == ((), ())
    return whole_kernel_state()


@pytest.mark.slow
@pytest.mark.usefixtures("underlay")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, final=desired_states())
def test_the_last_desired_state_decides(steps: list[tuple[bool, DesiredState] | str], final: DesiredState) -> None:
    bare = whole_kernel_state()
    reconciler = NamespaceReconciler()
    for step in steps:
        if isinstance(step, str):
            subprocess.run(step.split(), capture_output=True, check=False)  # what is not there cannot be damaged
        else:
            by_flush, desired = step
            (reconciler.flush if by_flush else reconciler.reconcile)(desired)

    after_all = brought_to(reconciler, final)
    assert brought_to(reconciler, DesiredState()) == bare
    fresh = NamespaceReconciler()
    alone = brought_to(fresh, final)

    assert after_all == alone
    assert brought_to(fresh, DesiredState()) == bare
