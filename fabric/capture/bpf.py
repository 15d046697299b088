"""Classic BPF programs (Linux Documentation/networking/filter.rst): moved behind tunnel headers. Pure.

libpcap compiles a filter for IP packets that begin at byte 0. `behind` makes of it a program for frames that carry such
packets further in: what a load reads moves by the length of the headers, and a few tests before it see to it that these
headers are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LD, LDX, JMP, RET = 0x00, 0x01, 0x05, 0x06
ABS, IND, LEN, MSH = 0x20, 0x40, 0x80, 0xA0
LDH_ABS, LDB_ABS, JA, JEQ, JSET = 0x28, 0x30, 0x05, 0x15, 0x45
MOST = 4096  # BPF_MAXINSNS
IPV4, IPV6, UDP = 0x0800, 0x86DD, 17


class Instruction(NamedTuple):
    """One instruction, `struct sock_filter`."""

    code: int
    true: int
    false: int
    k: int


Program = tuple[Instruction, ...]


class BpfError(ValueError):
    """A program that cannot be moved; the text is for people."""


class Carrier(NamedTuple):
    """Frames with an Ethernet header that carry packets at `offset`: ethertype, and for a tunnel over UDP its port."""

    ethertype: int
    port: int
    offset: int


def tunnels(vxlan: int, udp: int) -> list[Carrier]:
    """VXLAN and flannel's `udp` format over both families, by their ports; 0 for a format that is not in use."""
    found = [Carrier(IPV4, vxlan, 64), Carrier(IPV6, vxlan, 84)] if vxlan else []
    return found + ([Carrier(IPV4, udp, 42), Carrier(IPV6, udp, 62)] if udp else [])


def ethernet() -> list[Carrier]:
    """Packets right behind an Ethernet header."""
    return [Carrier(IPV4, 0, 14), Carrier(IPV6, 0, 14)]


def moved(program: Program, offset: int) -> Program:
    """The same program for packets that begin at `offset`. Raises BpfError where it looks at the frame's length."""
    result = []
    for item in program:
        mode = item.code & 0xE0
        if item.code & 7 in (LD, LDX) and mode in (ABS, IND, MSH):
            item = item._replace(k=item.k + offset)
        elif item.code & 7 in (LD, LDX) and mode == LEN:
            raise BpfError("len, less and greater are about whole frames: they cannot be used for inner packets")
        result.append(item)
    return tuple(result)


def behind(program: Program, carriers: Sequence[Carrier]) -> Program:
    """`program` for what these frames carry; everything else is refused. Raises BpfError."""
    result: list[Instruction] = []
    for carrier in carriers:
        body = moved(program, carrier.offset)
        tests = _tests(carrier)
        for place, test in enumerate(tests):
            if test.code & 7 == JMP:
                test = test._replace(false=len(tests) - place - 1) if test.code == JEQ else test._replace(
                    true=len(tests) - place - 1
                )
            result.append(test)
        # The last test jumps over the way out when it is true.
        result[-1] = result[-1]._replace(true=1, false=0)
        result += [Instruction(JA, 0, 0, len(body)), *body]
    result.append(Instruction(RET, 0, 0, 0))
    if len(result) > MOST:
        raise BpfError("the filter is too long")
    return tuple(result)


def _tests(carrier: Carrier) -> list[Instruction]:
    """Loads and comparisons; the last one is a JEQ."""

    def equal(load: int, at: int, value: int) -> list[Instruction]:
        return [Instruction(load, 0, 0, at), Instruction(JEQ, 0, 0, value)]

    tests = equal(LDH_ABS, 12, carrier.ethertype)
    if not carrier.port:
        return tests
    if carrier.ethertype == IPV4:
        tests += equal(LDB_ABS, 14, 0x45) + equal(LDB_ABS, 23, UDP)
        tests += [Instruction(LDH_ABS, 0, 0, 20), Instruction(JSET, 0, 0, 0x1FFF)]
        return tests + equal(LDH_ABS, 36, carrier.port)
    return tests + equal(LDB_ABS, 20, UDP) + equal(LDH_ABS, 56, carrier.port)


def both(first: Program, second: Program) -> Program:
    """What passes `first` and `second`. Raises BpfError."""
    if len(first) + len(second) > MOST:
        raise BpfError("the filter is too long")
    head = (
        Instruction(JA, 0, 0, len(first) - place - 1) if item.code & 7 == RET and item.k else item
        for place, item in enumerate(first)
    )
    return (*head, *second)
