from collections.abc import Mapping, Sequence

from encap.vtep import Row, VtepTable
from fabric.forward.enforcement import Enforcement
from fabric.forward.flows import FlowTable
from fabric.forward.ports import WorkerPort
from fabric.model import Address, Encapsulation, ForwardingState, LocalVtep, Network, Peer
from routes.fib import Fib

def to_vtep(position: int) -> int: ...
def to_host(position: int) -> int: ...
def to_port(position: int) -> int: ...
def compile_tables(
    state: ForwardingState,
    tunnel_ports: Mapping[Encapsulation, int],
    ports: Sequence[WorkerPort],
    slots: Mapping[str, int] = ...,
) -> tuple[VtepTable, Fib]: ...
def served(state: ForwardingState) -> list[Peer]: ...
def vtep_row(
    state: ForwardingState, tunnel_ports: Mapping[Encapsulation, int], peer: Peer, slots: Mapping[str, int]
) -> Row: ...
def peer_routes(peer: Peer, position: int) -> dict[Network, int]: ...
def local_routes(vteps: Sequence[LocalVtep], ports: Sequence[WorkerPort]) -> dict[Network, int]: ...

class Snapshot:
    number: int
    def __init__(
        self,
        number: int,
        state: ForwardingState,
        ports: Sequence[WorkerPort],
        ports_version: int,
        tunnel_ports: Mapping[Encapsulation, int],
        strict: bool,
        flows: FlowTable | None = None,
        enforcement: Enforcement | None = None,
        tables: tuple[VtepTable, Fib] | None = None,
    ) -> None: ...
    def route(self, address: Address) -> int | None: ...
    def vtep(self, position: int) -> str | None: ...
    def vtep_from(self, address: Address) -> str | None: ...
