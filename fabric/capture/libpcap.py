"""libpcap's filter compiler and interpreter (`pcap-filter(7)`), by ctypes: no header files, no compiler needed.

libpcap is there wherever tcpdump is (Debian: libpcap0.8).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools

from fabric.capture.bpf import Instruction, Program
from fabric.errors import FabricError

DLT_EN10MB, DLT_RAW = 1, 12
NETMASK_UNKNOWN = 0xFFFFFFFF


class FilterError(FabricError):
    """A filter that libpcap does not take, or no libpcap."""


class _Insn(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("bf_len", ctypes.c_uint), ("bf_insns", ctypes.POINTER(_Insn)))


@functools.cache
def _library() -> ctypes.CDLL:
    for name in ("libpcap.so.0.8", "libpcap.so.1", ctypes.util.find_library("pcap")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = library.pcap_close.argtypes = [ctypes.c_void_p]
        library.pcap_compile.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
        ]  # fmt: skip
        library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
        library.bpf_filter.argtypes = [ctypes.POINTER(_Insn), ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
        return library
    raise FilterError("captures need libpcap: apt-get install libpcap0.8")


def compile(text: str, link: int, snaplen: int) -> Program:
    """The program of a filter for frames of this DLT; an empty text takes everything. Raises FilterError."""
    library = _library()
    if "\0" in text:
        raise FilterError("a filter has no null characters")
    handle = library.pcap_open_dead(link, snaplen)
    made = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(made), text.encode(), 1, NETMASK_UNKNOWN) < 0:
            reason = library.pcap_geterr(handle).decode(errors="replace")
            raise FilterError(f"filter {text!r}: {reason}: see pcap-filter(7)")
        found = (made.bf_insns[place] for place in range(made.bf_len))
        program = tuple(Instruction(item.code, item.jt, item.jf, item.k) for item in found)
        library.pcap_freecode(ctypes.byref(made))
        return program
    finally:
        library.pcap_close(handle)


class Matcher:
    """Runs a program on packets that did not come from the kernel."""

    def __init__(self, program: Program) -> None:
        self._instructions = (_Insn * len(program))(*(_Insn(*item) for item in program))

    def __call__(self, data: bytes, length: int) -> bool:
        """Whether the packet of `length` bytes, of which `data` is the beginning, passes."""
        return bool(_library().bpf_filter(self._instructions, data, length, len(data)))
