# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The flow table as the control plane holds it: memory, accounts of pod ports, counters, and a look at what is in it.

All memory is mapped at the start, 120 bytes per flow, and becomes resident as flows come. The table outlives snapshots
and workers: whoever compiles a `Snapshot` with it lets the workers track flows in it.
"""

import os
from ipaddress import IPv4Address, IPv6Address

import cython
from cython.cimports.fabric.forward.flow_key import SECRET_WORDS, FlowKey
from cython.cimports.fabric.forward.flow_state import CUT, FREE, KEPT, TOLD
from cython.cimports.fabric.forward.flow_table import (
    ACCOUNTS,
    FLOW_COUNTS,
    INSERTED,
    NO_ENTRY,
    NO_RULE,
    NODE_ENTRY,
    UNDERLAY_ENTRY,
    WAYS,
    Bucket,
    Flow,
    FlowRest,
    Table,
    flow_read,
)
from cython.cimports.fabric.forward.flow_write import flow_forget, flow_sweep
from cython.cimports.fabric.forward.kernel import RELAXED, atomic_load, atomic_load32
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.mman import (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

DEFAULT_FLOWS = 131_072
MOST_FLOWS = 1 << 26
QUOTA_SHARE = 8
PLACES = 1 << 16
UNJUDGED = cython.declare(uint32_t, 0xFFFFFFFF)  # a number of rules that is never used
BYTES_PER_FLOW = cython.sizeof(Flow) + cython.sizeof(FlowRest) + cython.sizeof(Bucket) // WAYS
COUNTS = (
    "inserted", "expired", "replaced", "evicted_closing", "evicted_embryonic", "evicted_answered", "forgotten",
    "refused_full", "refused_quota",
)  # fmt: skip
STATES = (
    "unreplied", "replied", "syn-sent", "syn-received", "established", "picked-up", "half-closed", "half-closed",
    "closed", "reset", "denied", "denied",
)  # fmt: skip


def buckets_for(flows):
    """A power of two, with room for `flows`."""
    return 1 << max(0, (flows - 1) // WAYS).bit_length()


@cython.cclass
class FlowTable:
    """Room for at least `flows` flows; `quota` is the most that one pod may hold, 0 for an eighth of them.

    The memory is that of the file `fd` from `offset` on (`room_for` bytes, all zero or of an earlier table, see
    `recover`), or nobody else's. Raises ValueError for a size out of range, MemoryError.
    """

    def __cinit__(self, flows: int = DEFAULT_FLOWS, quota: int = 0, fd: cython.int = -1, offset: int = 0):
        if not 1 <= flows <= MOST_FLOWS:
            raise ValueError(f"a flow table holds 1 to {MOST_FLOWS} flows, not {flows}")
        buckets = buckets_for(flows)
        self.accounts = {}
        self.names = {0: "node"}
        self.room = buckets * WAYS * BYTES_PER_FLOW
        self.table = cython.cast(cython.pointer(Table), calloc(1, cython.sizeof(Table)))
        if self.table == cython.NULL:
            raise MemoryError
        base: cython.p_void = mmap(
            cython.NULL, self.room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS if fd < 0 else MAP_SHARED, fd,
            offset,
        )
        if base == MAP_FAILED:
            raise MemoryError
        flow_bytes: cython.size_t = buckets * WAYS * cython.sizeof(Flow)
        bucket_bytes: cython.size_t = buckets * cython.sizeof(Bucket)
        self.table.flows = cython.cast(cython.pointer(Flow), base)
        self.table.buckets = cython.cast(cython.pointer(Bucket), cython.cast(cython.p_char, base) + flow_bytes)
        self.table.rests = cython.cast(
            cython.pointer(FlowRest), cython.cast(cython.p_char, base) + flow_bytes + bucket_bytes
        )
        self.table.mask = buckets - 1
        self.table.quota = quota or max(1, buckets * WAYS // QUOTA_SHARE)
        i: cython.int
        for i in range(SECRET_WORDS):
            self.table.secret[i] = int.from_bytes(os.urandom(8), "little")

    def __dealloc__(self):
        if self.table != cython.NULL:
            if self.table.flows != cython.NULL:
                munmap(self.table.flows, self.room)
            free(self.table)

    @staticmethod
    def room_for(flows: int) -> int:
        """Bytes of memory for that many."""
        return buckets_for(flows) * WAYS * BYTES_PER_FLOW

    def identity(self) -> dict:
        """What somebody else needs to know to use the same memory: the hash's `secret`, the `accounts` by name."""
        return {"secret": [self.table.secret[i] for i in range(SECRET_WORDS)], "accounts": dict(self.accounts)}

    def set_secret(self, words) -> None:
        """That of an earlier table."""
        i: cython.int
        for i in range(SECRET_WORDS):
            self.table.secret[i] = words[i]

    def set_accounts(self, accounts) -> None:
        """Those of an earlier table."""
        self.accounts = dict(accounts)
        self.names = {0: "node", **{number: name for name, number in accounts.items()}}

    def recover(self) -> int:
        """Go on with the memory of an earlier table that nobody uses any more; how many flows there are.

        A bucket whose writer was killed in the middle is emptied. All flows are judged again by policy at their next
        packet. Before any thread uses the table.
        """
        bucket: cython.pointer(Bucket)
        flow: cython.pointer(Flow)
        at: uint32_t
        way: uint32_t
        found: uint32_t = 0
        for at in range(self.table.mask + 1):
            bucket = self.table.buckets + at
            if bucket.sequence & 1:
                bucket.tags[0] = bucket.tags[1] = 0
                for way in range(WAYS):
                    bucket.classes[way] = FREE
                bucket.sequence += 1
            for way in range(WAYS):
                if bucket.classes[way] != FREE:
                    flow = self.table.flows + at * WAYS + way
                    flow.policy = UNJUDGED
                    self.table.charged[flow.account % ACCOUNTS] += 1
                    found += 1
        self.table.counts[INSERTED] += found
        return found

    @property
    def capacity(self) -> int:
        """Places for flows."""
        return (self.table.mask + 1) * WAYS

    def account(self, name: str) -> int:
        """Number under which the flows of this pod port are counted, the same at every call. Raises ValueError."""
        if name in self.accounts:
            return self.accounts[name]
        used = set(self.accounts.values())
        unused = [number for number in range(1, ACCOUNTS) if number not in used]
        if not unused:
            raise ValueError(f"port {name}: flows of at most {ACCOUNTS - 1} pod ports can be told apart")
        i: uint32_t
        found = unused[0]
        for number in unused:
            # One whose last owner has left no flows.
            i = number
            if atomic_load32(cython.address(self.table.charged[i]), RELAXED) == 0:
                found = number
                break
        self.accounts[name] = found
        self.names[found] = name
        return found

    def keep_accounts(self, names) -> None:
        """Forget the accounts of all other ports; their flows stay until they expire, or `forget` takes them out."""
        kept = set(names)
        self.accounts = {name: number for name, number in self.accounts.items() if name in kept}

    def forget(self, account: int, addresses) -> int:
        """Take out what a pod that is gone has left: flows of its account, and all with one of its addresses at an end.

        The next pod with such an address would inherit ports of entry, states and verdicts. Call it when no snapshot
        leads to the pod any more. How many flows there were.
        """
        number: uint32_t = account
        family: uint8_t
        high: uint64_t
        low: uint64_t
        found: uint32_t = 0
        for address in addresses:
            family = address.version
            high = int(address) >> 64
            low = int(address) & 0xFFFFFFFFFFFFFFFF
            with cython.nogil:
                found += flow_forget(self.table, number, family, high, low)
        return found

    def counters(self) -> dict:
        """By name; `flows` is what the table holds, with what has expired and was not swept yet."""
        counts = [atomic_load(cython.address(self.table.counts[i]), RELAXED) for i in range(FLOW_COUNTS)]
        out = {"flow_" + name: value for name, value in zip(COUNTS, counts, strict=True)}
        return {"flows": max(0, counts[0] - sum(counts[1:7])), **out}

    def sweep(self, now: int) -> None:
        """Take all flows out that have expired by `now` (seconds, monotonic)."""
        seconds: uint32_t = now
        with cython.nogil:
            flow_sweep(self.table, self.table.mask + 1, seconds)

    def dump(self, limit: int, now: int) -> list:
        """At most `limit` of the flows that have not expired by `now`, each consistent in itself."""
        out: list = []
        flow: Flow
        rest: FlowRest
        expires: uint32_t = 0
        index: uint32_t
        seconds: uint32_t = now
        for index in range((self.table.mask + 1) * WAYS):
            if len(out) >= limit:
                break
            if flow_read(
                self.table, index, cython.address(flow), cython.address(rest), cython.address(expires)
            ) and expires > seconds:
                out.append(self._describe(cython.address(flow), cython.address(rest), expires - seconds, seconds))
        return out

    def page(self, start: int, limit: int, now: int) -> tuple:
        """At most `limit` of the flows that have not expired by `now`, from place `start` on, and the place to go on
        from, None at the end. At most PLACES places are looked at, so a page may be empty."""
        out: list = []
        flow: Flow
        rest: FlowRest
        expires: uint32_t = 0
        index: uint32_t
        seconds: uint32_t = now
        places = self.capacity
        last = min(places, start + PLACES)
        for index in range(min(start, places), last):
            if flow_read(
                self.table, index, cython.address(flow), cython.address(rest), cython.address(expires)
            ) and expires > seconds:
                out.append(self._describe(cython.address(flow), cython.address(rest), expires - seconds, seconds))
                if len(out) >= limit:
                    last = index + 1
                    break
        return out, None if last >= places else last

    def _describe(self, flow, rest, left, now):
        """One flow for people, from the side of the end that began it."""
        origin: uint8_t = flow.origin
        return {
            "protocol": flow.key.protocol,
            "source": text(cython.address(flow.key), origin),
            "sport": flow.key.port[origin],
            "destination": text(cython.address(flow.key), 1 - origin),
            "dport": flow.key.port[1 - origin],
            "state": STATES[flow.state],
            "entry": self._entry(flow.entry[origin]),
            "reply_entry": self._entry(flow.entry[1 - origin]),
            "account": self.names.get(flow.account),
            "idle": now - max(flow.seen[0], flow.seen[1]),
            "expires_in": left,
            "allowed": flow.refused == 0,
            "standing": standing_of(flow),
            "egress_rule": None if rest.egress_rule == NO_RULE else rest.egress_rule,
            "ingress_rule": None if rest.ingress_rule == NO_RULE else rest.ingress_rule,
        }

    def _entry(self, entry):
        if entry == NO_ENTRY:
            return None
        if entry == UNDERLAY_ENTRY:
            return "underlay"
        return "node" if entry == NODE_ENTRY else self.names.get(entry)


@cython.cfunc
def standing_of(flow: cython.pointer(cython.const[Flow])) -> str:
    """What policies have made of a flow since it began: empty, kept, cut, reset (ends were told), or refused (no rule
    was asked)."""
    if not flow.refused:
        return "kept" if flow.standing & KEPT else ""
    if not flow.standing & CUT:
        return "refused"
    return "reset" if flow.standing & TOLD else "cut"


@cython.cfunc
def text(key: cython.pointer(cython.const[FlowKey]), side: cython.int) -> str:
    """Address of one end."""
    low: object = key.low[side]
    if key.family == 4:
        return str(IPv4Address(low))
    return str(IPv6Address((cython.cast(object, key.high[side]) << 64) | low))
