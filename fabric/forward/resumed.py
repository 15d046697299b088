"""The data path that goes on where the last run left it, before anything else of the daemon is loaded.

A start takes half a second of processor time, most of it for what only the control plane needs. `resume` takes the kept
descriptors (`fabric.forward.kept`) and what the data path was told last (`fabric.forward.last_state`), and forwards.
Then the daemon starts as ever and tells the data path everything again; what is there already is found, what nobody
asks for is taken away by `start`.

Policy goes on as it was last in force; a change of it is in the file half a second later, and until then there is
nothing in the file: what was allowed before a change is never allowed by this.

Not resumed, so that they wait for the whole start: a command line other than the last one, and a node with policy whose
verdicts are not in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fabric.errors import DataplaneError
from fabric.forward import kept, last_state
from fabric.forward.dataplane import Dataplane
from fabric.forward.last_state import LastState, Told
from fabric.model import Address, DataplaneSettings, Encapsulation, Endpoint, ForwardingState

if TYPE_CHECKING:
    from fabric.policy import PolicySnapshot

log = logging.getLogger("fabric")


class _Unsaid(logging.Handler):
    """Keeps what is logged before anybody has said where to."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class LastingDataplane(Dataplane):
    """A data path that takes down what it is told, for the next run.

    `words` is the command line. `soon` calls what it is given after a moment, so that many changes are taken down once;
    it may be set later."""

    def __init__(
        self,
        settings: DataplaneSettings,
        keeper: kept.Kept,
        words: Sequence[str],
        soon: Callable[[Callable[[], None]], None] = lambda act: act(),
    ) -> None:
        super().__init__(settings, keeper)
        self.soon = soon
        self._words = list(words)
        self._last = LastState(keeper)
        self._told_state: ForwardingState | None = None
        self._told_ports: dict[str, Endpoint] = {}
        self._resumed: set[str] = set()  # ports that nobody has asked for yet
        self._has_node = False  # it was resumed, and nobody has asked for it yet
        self._runs = False
        self._told_policy: PolicySnapshot | None = None
        self._verdicts = b""  # the same, frozen, once that is needed
        self._writing = False
        self._unsaid = _Unsaid()

    def resume(self, told: Told, policy: PolicySnapshot | None) -> None:
        """Forward as it was told, judging by `policy`. Raises DataplaneError; call `stop` then."""
        level = log.level
        log.addHandler(self._unsaid)
        log.setLevel(logging.INFO)
        try:
            if policy is not None:
                super().set_policy(policy)
                self._told_policy, self._verdicts = policy, told.verdicts
            self._resume(told)
        finally:
            log.removeHandler(self._unsaid)
            log.setLevel(level)

    def _resume(self, told: Told) -> None:
        super().open()
        super().require(_formats(told.state))
        super().create_node_port()
        for endpoint in told.ports:
            try:
                super().attach_port(endpoint)
            except DataplaneError as error:
                log.info("not resumed: %s", error)  # the rest of the start finds out what that means
            else:
                self._resumed.add(endpoint.name)
                self._told_ports[endpoint.name] = endpoint
        self.apply(told.state)
        self._start_workers(lambda: None)
        self._runs = self._has_node = True

    def forget(self) -> None:
        """The next run starts without all this."""
        self._last.write(None)
        self.stop()

    # --- what is there already when it was resumed ---

    def open(self) -> None:
        if not self._runs:
            super().open()

    def create_node_port(self) -> None:
        if not self._has_node:
            super().create_node_port()
        self._has_node = False

    def attach_port(self, endpoint: Endpoint) -> dict[str, object]:
        name = endpoint.name
        if name in self._resumed:
            self._resumed.discard(name)
            if _same(endpoint, self._told_ports[name]):
                return next(port.describe() for port in self._pods if port.name == name)
            self.delete_port(name)
        made = super().attach_port(endpoint)
        self._tell(endpoint)
        return made

    def start(self, before_threads: Callable[[], None] | None = None) -> None:
        for record in self._unsaid.records:
            log.handle(record)
        self._unsaid.records.clear()
        for name in list(self._resumed):
            self.delete_port(name)
        if not self._runs:
            super().start(before_threads)
        else:
            self._kept.drop_rest()
            self.follow_offloads()
        self._runs = True
        self._change()

    # --- what is taken down ---

    def apply(self, state: ForwardingState) -> None:
        super().apply(state)
        self._told_state = state
        self._change()

    def add_port(self, endpoint: Endpoint, fds: Sequence[int] = ()) -> dict[str, object]:
        made = super().add_port(endpoint, fds)
        self._tell(endpoint)
        return made

    def delete_port(self, name: str) -> None:
        super().delete_port(name)
        self._resumed.discard(name)
        self._told_ports.pop(name, None)
        self._change()

    def rebind(self, underlay: Sequence[Address], mtu: int, interface: str) -> None:
        super().rebind(underlay, mtu, interface)
        self._change()

    def set_policy(self, snapshot: PolicySnapshot | None, staged: PolicySnapshot | None = None) -> None:
        if snapshot is self._told_policy:  # what is staged is not taken down
            super().set_policy(snapshot, staged)
            return
        self._last.write(None)  # before anything is judged by the new one
        try:
            super().set_policy(snapshot, staged)
            self._told_policy, self._verdicts = snapshot, b""
        finally:
            self._change()

    def halt(self) -> None:
        if self._told_policy is None:
            self._write()
        else:
            self._last.write(None)  # a successor's policy may be a newer one
        self._last.close()
        super().halt()

    def stop(self) -> None:
        if self._writing:
            self._write()
        super().stop()
        self._last.close()

    def _tell(self, endpoint: Endpoint) -> None:
        self._told_ports[endpoint.name] = endpoint
        self._change()

    def _change(self) -> None:
        if self._runs and not self._writing:
            self._writing = True
            self.soon(self._write)

    def _write(self) -> None:
        self._writing = False
        if self._told_state is None or self._resumed:
            return
        if self._told_policy is not None and not self._verdicts:
            from fabric.policy.frozen import freeze

            self._verdicts = freeze(self._told_policy)
        if self.settings.policy_required and not self._verdicts:
            self._last.write(None)
        else:
            ports = tuple(self._told_ports.values())
            self._last.write(Told(self._words, self.settings, self._told_state, ports, self._verdicts))


def resume(keeper: kept.Kept, words: Sequence[str]) -> LastingDataplane | None:
    """The data path of the last run, forwarding; None when it cannot be had without knowing more.

    When it turns out on the way that it cannot be had, the next start does not try again."""
    told = last_state.read(keeper)
    if told is None or told.words != list(words) or not keeper.holds(kept.NODE):
        return None
    policy = _policy(told.verdicts)
    if policy is None and (told.settings.policy_required or told.verdicts):
        return None
    made = LastingDataplane(told.settings, keeper, words)
    try:
        made.resume(told, policy)
    except (DataplaneError, OSError) as error:
        made.forget()
        raise SystemExit(f"fabricd: cannot go on as in the last run, starting anew: {error}") from None
    return made


def _policy(verdicts: bytes) -> PolicySnapshot | None:
    """None where there are none, or another version's."""
    if not verdicts:
        return None
    from fabric.policy.frozen import thaw  # a node without policy does not wait for it

    return thaw(verdicts)


def _formats(state: ForwardingState) -> set[Encapsulation]:
    return {form for peer in state.peers for form in peer.accepts}


def _same(one: Endpoint, other: Endpoint) -> bool:
    """Whether both mean one device with the same addresses."""
    return (one.kind, one.netns, one.ifname, one.addresses, one.mac) == (
        other.kind, other.netns, other.ifname, other.addresses, other.mac
    )  # fmt: skip
