"""What became of a rehearsed packet, step by step as the data path goes, in words and as data. Pure.

Every step up to the one that ended the packet's way is told, none beyond. What each says is read from what the data
path did (`Rehearsed`) and from the tables it did it by; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from encap.drops import TEXTS
from encap.inner import parse_packet
from fabric.capture.comments import ends_of
from fabric.explain import headers, results
from fabric.explain.arrival import Arrival
from fabric.explain.packets import ICMP, ICMPV6
from fabric.forward.rehearse import UNDERLAY, LiveTables, Rehearsed, Route
from fabric.policy.rules import DIRECTIONS, Action
from fabric.who import Address, Names

INNER = ("inner_short", "inner_version", "inner_header", "inner_length", "inner_checksum", "inner_extension",
         "inner_fragment", "inner_transport")  # fmt: skip
FROM_PORT = (("Ethernet header", ("port_ethernet",)), ("packet", INNER), ("source", ("source_spoofed",)),
             ("tunnel port", ("pod_to_vtep",)))  # fmt: skip
FROM_UNDERLAY = (
    ("length", ("outer_truncated",)), ("peer", ("unknown_vtep",)), ("format", ("format_refused",)),
    ("VXLAN header", ("vxlan_short", "vxlan_flags", "vxlan_reserved", "vxlan_vni")), ("MAC addresses", ("inner_mac",)),
    ("Ethernet type", ("inner_ethertype",)), ("packet", INNER), ("source", ("source_not_leased",)),
    ("destination", ("destination_not_local",)), ("congestion mark", ("ecn_ce_not_ect",)),
)  # fmt: skip
"""What is checked, in order, and the reasons for which a packet ends there."""
ROUTE_REASONS = ("no_route", "not_unicast")
ACTIONS = {Action.ALLOW: "allowed", Action.DENY: "denied", Action.PASS: "passed on"}
ASKED = ("policy_egress", "policy_ingress")
SERVICE = "not judged: a Service's address; it is judged when the host has translated it and it comes in again"


class Story:
    """Of one packet. `place_of` says where a rule of a description stands, or ""."""

    def __init__(
        self, tables: LiveTables, arrival: Arrival, result: Rehearsed, names: Names, place_of: Callable[[str], str]
    ) -> None:
        self.tables, self.arrival, self.result = tables, arrival, result
        self.names, self.place_of = names, place_of
        self.found = parse_packet(arrival.packet) if arrival.packet else {"reason": 13}
        self.reason = result.drops[0] if result.drops else ""
        self.steps: list[dict[str, str]] = []

    def tell(self) -> dict[str, Any]:
        """The whole of it, for JSON (docs/reference.md has the fields)."""
        self._entry()
        judged = None
        if self._checks():
            route = self._route()
            if self.reason not in ROUTE_REASONS:
                self._flow()
                judged = self._policy()
                if not self.reason.startswith("policy"):
                    self._size(route)
        return {
            "packet": headers.packet_line(self.arrival.packet),
            "from": self._from(),
            "steps": self.steps,
            "verdict": results.verdict(self.result),
            "reason": self.reason,
            "meaning": TEXTS.get(self.reason.upper(), ""),
            "flow": {"before": self.result.before, "after": self.result.after},
            "policy": judged,
            "results": results.results(self.tables, self.arrival, self.result, self._route_of_target(), self.names),
            "notes": list(self.arrival.notes),
        }

    def _say(self, step: str, text: str) -> None:
        self.steps.append({"step": step, "text": text})

    # --- where it comes in ---

    def _from(self) -> dict[str, str]:
        if self.arrival.position == UNDERLAY:
            assert self.arrival.outer is not None
            return {"port": "underlay", "source": str(self.arrival.outer.source), "format": self.arrival.outer.form}
        return {"port": self.tables.ports[self.arrival.position].name, "source": "", "format": ""}

    def _entry(self) -> None:
        arrival = self.arrival
        if arrival.outer is None:
            self._say("comes in by", f"{self._port(arrival.position)}: {arrival.why}")
            return
        peer = self.tables.peer_at(arrival.outer.source)
        who = f"peer {self._peer_name(peer)}" if peer else f"{arrival.outer.source}, which is no peer"
        self._say("comes in by", f"the underlay from {who}: {arrival.why}")

    def _port(self, position: int) -> str:
        port = self.tables.ports[position]
        if position == 0:
            return "the node port (the host)"
        pod = next((name for address in port.addresses if (name := self.names.pod(address))), "")
        return f"port {port.name}" + (f" (pod {pod})" if pod else "")

    def _peer_name(self, peer: Any) -> str:
        node = next((name for prefix in peer.prefixes if (name := self.names.peer(prefix.network_address))), "")
        return f"{node} ({peer.underlay})" if node and node != str(peer.underlay) else str(peer.underlay)

    def _checks(self) -> bool:
        """What was checked; whether the packet got past it."""
        order = FROM_PORT if self.arrival.outer is None else FROM_UNDERLAY
        passed: list[str] = []
        for what, reasons in order:
            if self.reason in reasons:
                before = f"{', '.join(passed)}: passed; " if passed else ""
                self._say("checks", f"{before}{what}: {self._dropped()}{self._hint()}")
                return False
            if self._applies(what):
                passed.append(what)
        self._say("checks", f"{', '.join(passed)}: passed")
        return True

    def _applies(self, what: str) -> bool:
        outer, position = self.arrival.outer, self.arrival.position
        if outer is not None:
            return outer.form == "vxlan" or what not in ("VXLAN header", "MAC addresses", "Ethernet type")
        if what == "Ethernet header":
            return self.arrival.link
        return what == "packet" or position != 0

    def _dropped(self) -> str:
        return f"dropped, {self.reason} ({TEXTS.get(self.reason.upper(), '')})"

    def _hint(self) -> str:
        if self.reason == "source_spoofed":
            own = self.tables.ports[self.arrival.position].addresses
            return f"; the port's own: {', '.join(map(str, own)) or 'none'}"
        return ""

    # --- its way ---

    def _ends(self) -> tuple[Address, Address]:
        ends = ends_of(self.arrival.packet)
        assert ends is not None  # it has passed the parser
        return ends

    def _route_of_target(self) -> Route | None:
        return None if self.found["reason"] else self.tables.route(self._ends()[1])

    def _route(self) -> Route | None:
        target, route = self._ends()[1], self._route_of_target()
        if self.reason in ROUTE_REASONS:
            self._say("route", f"to {target}: {self._dropped()}")
        elif route is None:
            self._say("route", f"none to {target} in the fabric: to the host by the node port")
        elif route.position is not None:
            self._say("route", f"{target} leads to {self._port(route.position)}{self._by_node_port(route)}")
        elif route.peer is not None:
            way = route.peer.encapsulation or "the host's own route"
            plain = ", a pod's packets by the host's own route" if route.plain and route.peer.encapsulation else ""
            text = f"{target} leads to peer {self._peer_name(route.peer)} by {way}{plain}{self._by_node_port(route)}"
            self._say("route", text)
        return route

    def _by_node_port(self, route: Route) -> str:
        """A reply may have to leave by another way than its route."""
        node = self.tables.ports[0].name
        if self.result.target == node and route.position != 0 and not (route.plain and self.arrival.position > 0):
            return "; but it replies to what came by the node port, and leaves by that"
        return ""

    def _flow(self) -> None:
        before, after = self.result.before, self.result.after
        if not self.tables.tracked:
            self._say("flow", "none: this daemon tracks no flows (--flow-table 0)")
        elif before is not None:
            state = f"state {before['state']}" + ("" if before["allowed"] else ", refused")
            then = f", then {after['state']}" if after is not None and after["state"] != before["state"] else ""
            self._say("flow", f"found: {results.flow_ends(before)}, {state}{then}, in by {before['entry']},"
                              f" silent for {before['idle']} s")  # fmt: skip
        elif after is not None:
            self._say("flow", f"new: it would begin in state {after['state']}, charged to {after['account']}")
        else:
            self._say("flow", "none is found, and none is made")

    def _policy(self) -> dict[str, Any] | None:
        if self.tables.policy is None:
            if self.reason.startswith("policy"):
                self._say("policy", self._dropped())
            else:
                self._say("policy", "none is enforced")
            return None
        judged, before = self.result.judged, self.result.before
        numbers = self._rules()
        described = [self.tables.policy.describe(number) for number in numbers]
        rules = [{"rule": rule, "place": self.place_of(rule)} for rule in described]
        said = " and ".join(f"{item['rule']}{_at(item['place'])}" for item in rules) or "no rule"
        tiers = self._tiers() if judged is not None and numbers and before is None else []
        if self.reason.startswith("policy"):
            by = f": {said}" if rules else ""
            self._say("policy", f"{self._dropped()}{by}")
        elif before is not None:
            self._say("policy", f"not asked: the flow was allowed when it began, by {said}")
        elif self._is_service():
            self._say("policy", SERVICE)
        else:
            self._say("policy", f"allowed by {said}" if rules else "allowed: no policy decides on this flow")
        return {"allowed": not self.reason.startswith("policy"), "rules": rules, "tiers": tiers}

    def _rules(self) -> list[int]:
        """Numbers of the rules that decided: of the flow that is there, else of the answer to this packet."""
        flow, judged = self.result.after if self.result.before is not None else None, self.result.judged
        if flow is not None:
            found: Sequence[object] = (flow["egress_rule"], flow["ingress_rule"])
        elif judged is not None:
            found = (judged.egress_rule, judged.ingress_rule)
        else:
            found = ()
        return [number for number in found if isinstance(number, int)]

    def _is_service(self) -> bool:
        target = self._ends()[1]
        return self._route_of_target() is None and any(target in network for network in self.tables.settings.services)

    def _tiers(self) -> list[dict[str, Any]]:
        assert self.tables.policy is not None
        source, target = self._ends()
        at, packet = self.found["l4"], self.arrival.packet
        icmp = (packet[at], packet[at + 1]) if self.found["protocol"] in (ICMP, ICMPV6) else None
        found = []
        for direction, label, number, action in self.tables.policy.trace(
            str(source), str(target), self.found["protocol"], self.found["dport"], self.found["sport"], icmp
        ):
            rule = "" if number is None else self.tables.policy.describe(number)
            found.append({"direction": DIRECTIONS[direction], "tier": label[0], "policies": list(label[1]),
                          "action": ACTIONS[Action(action)], "rule": rule, "place": self.place_of(rule)})  # fmt: skip
        return found

    def _size(self, route: Route | None) -> None:
        """TTL, MTU, and what is left to go wrong."""
        size, reason = self.found["length"], self.reason
        mtu = self._mtu(route)
        pieces = max(len(self.result.datagrams), len(self.result.delivered))
        if reason == "too_big":
            self._say("size", f"{size} bytes do not fit the way's MTU {mtu}: {self._dropped()}")
        elif reason:
            self._say("way", self._dropped())
        elif mtu is None:
            self._say("size", f"{size} bytes, for the host to send on")
        elif pieces > 1:
            self._say("size", f"{size} bytes exceed the way's MTU {mtu}: cut into {pieces}")
        elif size > mtu:
            self._say("size", f"{size} bytes exceed the way's MTU {mtu}, and are handed over whole")
        else:
            self._say("size", f"{size} bytes fit the way's MTU {mtu}")

    def _mtu(self, route: Route | None) -> int | None:
        if self.result.target:
            position = self.tables.position(self.result.target)
        elif route is None or self.result.datagrams:
            position = None
        else:
            position = route.position
        if position is not None:
            return None if position == 0 else self.tables.ports[position].mtu
        return route.peer.mtu if route is not None and route.peer is not None else None


def _at(place: str) -> str:
    return f" ({place})" if place else ""
