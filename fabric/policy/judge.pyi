from ipaddress import IPv4Address, IPv6Address
from typing import Any

Ip = str | IPv4Address | IPv6Address

class Stage:
    """One tier for one kind of endpoint; see judge.py."""

    label: Any
    arrays: tuple[bytes, ...]
    def __init__(
        self, arrays: tuple[bytes, ...], default_action: int, default_rule: int, default_established: int, label: object
    ) -> None: ...
    def frozen(self) -> tuple[tuple[bytes, ...], int, int, int]: ...

class PolicySnapshot:
    """One immutable generation of every verdict; see judge.py."""

    number: int
    stages: list[Stage]
    names: Any
    def __init__(self, number: int, arrays: tuple[bytes, ...], stages: list[Stage], names: object) -> None: ...
    def frozen(self) -> tuple[int, tuple[bytes, ...]]: ...
    def verdict(
        self,
        src: Ip,
        dst: Ip,
        protocol: str | int,
        dport: int | None = None,
        sport: int = 0,
        icmp: tuple[int, int] | None = None,
    ) -> tuple[bool, int | None, int | None]: ...
    def established(
        self,
        src: Ip,
        dst: Ip,
        protocol: str | int,
        dport: int | None = None,
        sport: int = 0,
        icmp: tuple[int, int] | None = None,
    ) -> tuple[int | None, int | None, int | None]: ...
    def allowed(self, src: Ip, dst: Ip, protocol: str | int, port: int | None = None) -> bool: ...
    def repeat(self, count: int, src: Ip, dst: Ip, protocol: str | int, dport: int | None = None) -> int: ...
    def describe(self, number: int) -> str: ...
    def knows(self, address: Ip) -> bool: ...
    def trace(
        self,
        src: Ip,
        dst: Ip,
        protocol: str | int,
        dport: int | None = None,
        sport: int = 0,
        icmp: tuple[int, int] | None = None,
    ) -> list[tuple[int, Any, int | None, int]]: ...
