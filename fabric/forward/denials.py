# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What policy has denied of late, sampled: a ring per thread that the control plane reads.

The thread writes a record, then the number of records. The control plane copies a record and keeps the copy if the
thread has not come round to it meanwhile. At most DENIALS_PER_SECOND are written a second, so that a flood costs
nothing more and the beginning of each second is seen; the drop counters count all.
"""

import cython
from cython.cimports.fabric.forward.kernel import ACQUIRE, RELEASE, atomic_load, atomic_store, fence
from cython.cimports.fabric.policy.judge import NO_RULE
from cython.cimports.libc.stdint import uint64_t


def note_denial(d, q, reason, rule, now):
    """Write a record, unless the second has had its share."""
    if d.second != now:
        d.second = now
        d.taken = 0
    if d.taken >= DENIALS_PER_SECOND:
        return
    d.taken += 1
    record: cython.pointer(Denial) = cython.address(d.ring[d.head % DENIALS])
    record.question = q[0]
    record.rule = rule
    record.reason = reason
    atomic_store(cython.address(d.head), d.head + 1, RELEASE)


def read_denials(d, since):
    """Copies of the records that were not read yet."""
    found: list = []
    copy: Denial
    head: uint64_t = atomic_load(cython.address(d.head), ACQUIRE)
    at: uint64_t = since[0] if head - since[0] < DENIALS else (head - DENIALS + 1 if head >= DENIALS else 0)
    while at < head:
        copy = d.ring[at % DENIALS]
        fence(ACQUIRE)
        # The thread may be writing the record that its number of records names next.
        if atomic_load(cython.address(d.head), ACQUIRE) - at < DENIALS:
            found.append(describe(cython.address(copy)))
        at += 1
    since[0] = head
    return found


@cython.cfunc
def describe(record: cython.pointer(Denial)) -> tuple:
    q = cython.address(record.question)
    source: object = (cython.cast(object, q.src_high) << 64) | q.src_low
    destination: object = (cython.cast(object, q.dst_high) << 64) | q.dst_low
    icmp: cython.bint = q.protocol == 1 or q.protocol == 58
    return (
        record.reason, None if record.rule == NO_RULE else record.rule, q.family, source, destination, q.protocol,
        q.icmp_type if icmp else q.sport, q.icmp_code if icmp else q.dport,
    )
