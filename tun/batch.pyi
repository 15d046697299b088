from collections.abc import Sequence
from typing import NamedTuple

from tun.vnet import VnetHeader

ALL_FEATURES: int

class MergeCounters(NamedTuple):
    frames: int
    writes: int
    bytes: int
    merged: int
    bad_checksum: int
    errors_again: int
    errors_down: int
    errors_gone: int
    errors_other: int

def write_merged(
    fd: int,
    frames: Sequence[bytes | tuple[bytes, int]],
    *,
    features: int = ...,
    zone: int = ...,
    rounds: int = ...,
) -> MergeCounters: ...
def merge(
    frames: Sequence[bytes | tuple[bytes, int]], *, features: int = ..., zone: int = ...
) -> list[tuple[VnetHeader, bytes]]: ...
