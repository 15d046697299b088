# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What a generation of the data path knows of network policy, and the counters of its rules.

An `Enforcement` is one state of policy for the workers: a policy snapshot or none, whether pods are cut off without
one, the networks of Services, and a number. Flows remember the number under which they were judged, so whoever makes
one gives it another number than all before whenever a verdict may have changed. `RuleHits` outlives them: one counter
for each rule number, in blocks that are never freed while it lives, since a worker may be counting.

While policies are staged there is a second snapshot, in which they are in force (`Staged`). Whatever the rules in force
are asked, it is asked too, and only counted (`count_staged`): how many flows each of its rules would have decided, and
for how many of these the verdict would have been the other one. The packet goes by the rules in force alone.

Limits: 16 Service networks; rules with numbers beyond 4,194,303 are not counted.
"""

import cython
from cython.cimports.fabric.forward.kernel import RELAXED, atomic_add, atomic_load
from cython.cimports.fabric.policy.judge import KEEP, NO_RULE, Answer, judge
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free

LOW = (1 << 64) - 1
MOST_SERVICE_NETWORKS = MOST_SERVICES


def is_service(rules, family, high, low):
    """Whether the address lies in a Service network."""
    i: uint32_t
    for i in range(rules.service_count):
        if (
            rules.services[i].family == family
            and low & rules.services[i].mask_low == rules.services[i].low
            and high & rules.services[i].mask_high == rules.services[i].high
        ):
            return True
    return False


def count_rules(hits, a):
    """One flow more for the rules that decided."""
    count_rule(hits, a.egress_rule)
    count_rule(hits, a.ingress_rule)


def count_rule(hits, number):
    """One flow more for a rule, NO_RULE for none."""
    if number == cython.cast(uint32_t, NO_RULE) or number >> HITS_SHIFT >= HITS_BLOCKS:
        return
    if hits[number >> HITS_SHIFT] != cython.NULL:
        atomic_add(hits[number >> HITS_SHIFT] + (number & (HITS_BLOCK - 1)), 1, RELAXED)


def count_staged(staged, q, a):
    """A verdict that would be another is the rule's that would refuse, or that of the end that refuses now."""
    would: Answer
    judge(staged.tables, q, cython.address(would))
    count_rules(staged.hits, cython.address(would))
    if passes(q, a) == passes(q, cython.address(would)):
        return
    if passes(q, a):
        count_rule(staged.changes, would.egress_rule if would.ingress_rule == NO_RULE else would.ingress_rule)
    else:
        count_rule(staged.changes, would.egress_rule if a.ingress_rule == NO_RULE else would.ingress_rule)


def passes(q, a):
    """Whether the flow may begin, or go on although it might not."""
    return a.allowed or (q.live and a.established == KEEP)


@cython.cclass
class RuleHits:
    """Counters by rule number, shared by all threads. Raises MemoryError."""

    def __cinit__(self):
        self.blocks = cython.cast(
            cython.pointer(cython.pointer(uint64_t)), calloc(HITS_BLOCKS, cython.sizeof(cython.pointer(uint64_t)))
        )
        if self.blocks == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        i: uint32_t
        if self.blocks != cython.NULL:
            for i in range(HITS_BLOCKS):
                free(self.blocks[i])
            free(self.blocks)

    def reserve(self, numbers: int) -> None:
        """Make counters for the rule numbers below `numbers`, as far as there may be any. Raises MemoryError."""
        wanted: uint64_t = min(numbers, HITS_BLOCKS * HITS_BLOCK)
        i: uint32_t
        for i in range(cython.cast(uint32_t, (wanted + HITS_BLOCK - 1) >> HITS_SHIFT)):
            if self.blocks[i] == cython.NULL:
                self.blocks[i] = cython.cast(
                    cython.pointer(uint64_t), calloc(HITS_BLOCK, cython.sizeof(uint64_t))
                )
                if self.blocks[i] == cython.NULL:
                    raise MemoryError

    def counts(self) -> dict:
        """{rule number: flows that it decided}, zeros left out."""
        found: dict = {}
        i: uint32_t
        at: uint32_t
        value: uint64_t
        for i in range(HITS_BLOCKS):
            if self.blocks[i] == cython.NULL:
                continue
            for at in range(HITS_BLOCK):
                value = atomic_load(self.blocks[i] + at, RELAXED)
                if value:
                    found[i * HITS_BLOCK + at] = value
        return found


@cython.cclass
class Staged:
    """The staged policies as if they were in force: `policy` has them and all others. Raises MemoryError.

    The counts go on from those of `before` where the rules have their numbers from the same `names`.
    """

    def __cinit__(self, policy: PolicySnapshot, before: Staged | None):
        goes_on: cython.bint = before is not None and before.policy.names is policy.names
        self.policy = policy
        self.hits = before.hits if goes_on else RuleHits()
        self.changes = before.changes if goes_on else RuleHits()
        self.hits.reserve(policy.names.next)
        self.changes.reserve(policy.names.next)
        self.rules.tables = cython.address(self.policy.tables)
        self.rules.hits = self.hits.blocks
        self.rules.changes = self.changes.blocks


@cython.cclass
class Enforcement:
    """One state of policy, immutable. Raises ValueError for too many Service networks.

    `hits` has counters for every rule number of `policy` (`RuleHits.reserve`). Without a policy nothing is judged, or
    with `required` every pod is cut off. `staged`: what is judged by beside it, and only counted.
    """

    def __cinit__(
        self,
        number: int,
        policy: PolicySnapshot | None,
        required: bool,
        services,
        hits: RuleHits,
        staged: Staged | None = None,
    ):
        if len(services) > MOST_SERVICES:
            raise ValueError(f"there are {len(services)} Service networks, at most {MOST_SERVICES} can be used")
        self.policy = policy
        self.hits = hits
        self.rules.number = number
        self.rules.hits = hits.blocks
        self.rules.active = required or policy is not None
        if policy is not None:
            self.rules.tables = cython.address(self.policy.tables)
        self.staged = staged
        if staged is not None:
            self.rules.staged = cython.address(self.staged.rules)
        self.rules.service_count = len(services)
        entry: cython.pointer(ServiceNetwork)
        for i, network in enumerate(services):
            entry = cython.address(self.rules.services[i])
            mask, start = int(network.netmask), int(network.network_address)
            entry.family = network.version
            entry.mask_high = mask >> 64
            entry.mask_low = mask & LOW
            entry.high = start >> 64
            entry.low = start & LOW

    @property
    def number(self) -> int:
        """What flows remember."""
        return self.rules.number

    @property
    def active(self) -> bool:
        """Whether flows are judged at all."""
        return bool(self.rules.active)
