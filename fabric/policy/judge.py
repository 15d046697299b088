# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The verdict on a flow: one immutable table, two binary searches for the addresses, a short walk through tiers.

Theory of operation. Every address is in some *sets* (a set is what a rule's peer means); the address table (single
addresses of pods and nodes first, then intervals) gives its entry: the numbers of its sets, and if a local pod has it,
the *stages* (tiers) of both directions. In a stage each set has the rules that name it, flattened into intervals of
the traffic key (protocol << 16 | destination port, or ICMP type << 8 | code), so that the first matching rule of the
stage is the smallest step found over the sets that the address and the stage share. The shorter of both lists is
walked, the other searched: the cost hangs on how many sets an address is in, not on how many rules there are. Arrays
are `bytes` that the snapshot keeps; stages are shared between snapshots.
"""

import ipaddress

import cython
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.routes.fib import lookup4, lookup6

NUMBERS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58, "SCTP": 132}
ECHO_REQUEST = {1: 8, 58: 128}
LOW_64 = (1 << 64) - 1


def judge(t, q, a):
    """Judge a flow by the source's egress rules and the destination's ingress rules, each where that end is local.

    The first end that refuses a new flow has the last word. An established one that it would keep may still be refused
    by the other end, which then chooses.
    """
    rule: uint32_t = NO_RULE
    choice: uint8_t = RE_EVALUATE
    src: cython.pointer(cython.const[PolicyEntry]) = find_entry(t, q.family, q.src_high, q.src_low)
    dst: cython.pointer(cython.const[PolicyEntry]) = find_entry(t, q.family, q.dst_high, q.dst_low)
    a.allowed = 1
    a.established = RE_EVALUATE
    a.egress_rule = NO_RULE
    a.ingress_rule = NO_RULE
    if src.owner and src.owner == dst.owner:
        return  # a pod is never kept from itself
    if src.stages_count[EGRESS] and not decide(
        t, src, EGRESS, dst, q, cython.address(a.egress_rule), cython.address(a.established)
    ):
        a.allowed = 0
        if not q.live or a.established != KEEP:
            return
    if dst.stages_count[INGRESS] and not (src.is_node and src.node and src.node == dst.node):
        if not decide(t, dst, INGRESS, src, q, cython.address(rule), cython.address(choice)):
            a.allowed = 0
            a.established = choice
            a.ingress_rule = rule
        elif a.allowed:
            a.ingress_rule = rule


def find_entry(t, family, high, low):
    """What is known of an address: of the pod or node that has it, or else of where it lies."""
    position: uint32_t
    if family == 4:
        position = point4(cython.address(t.points), cython.cast(uint32_t, low))
        if position == NO_RULE:
            position = lookup4(cython.address(t.addresses), cython.cast(uint32_t, low))
    else:
        position = point6(cython.address(t.points), high, low)
        if position == NO_RULE:
            position = lookup6(cython.address(t.addresses), high, low)
    return t.entries + position


def point4(points, address):
    """The entry of exactly this address, or NO_RULE."""
    at: uint32_t = find_set(points.start4, points.count4, address)
    return NO_RULE if at == NO_RULE else points.value4[at]


def point6(points, high, low):
    base: uint32_t = 0
    length: uint32_t = points.count6
    half: uint32_t
    probe: uint32_t
    not_above: uint32_t
    if not length:
        return NO_RULE
    while length > 1:
        half = length >> 1
        probe = base + half
        not_above = cython.cast(uint32_t, points.high6[probe] < high) | (
            cython.cast(uint32_t, points.high6[probe] == high) & cython.cast(uint32_t, points.low6[probe] <= low)
        )
        base += half * not_above
        length -= half
    return points.value6[base] if points.high6[base] == high and points.low6[base] == low else NO_RULE


def traffic_key(q):
    if q.protocol == 1 or q.protocol == 58:
        return cython.cast(uint32_t, q.protocol) << 16 | cython.cast(uint32_t, q.icmp_type) << 8 | q.icmp_code
    return cython.cast(uint32_t, q.protocol) << 16 | q.dport


def decide(t, own, direction, other, q, rule, established):
    """The tiers of one end, in order; a flow that none decides is allowed. `established` counts where one denies."""
    key: uint32_t = traffic_key(q)
    i: uint32_t
    step: uint32_t
    action: uint32_t
    for i in range(own.stages_count[direction]):
        stage: cython.pointer(cython.const[PolicyStage]) = t.stages[own.stages_at[direction] + i]
        step = first_match(stage, t.sets + other.sets_at, other.sets_count, key, q.sport)
        if step == NO_RULE:
            action = stage.default_action
            rule[0] = stage.default_rule if action != PASS else NO_RULE
            established[0] = cython.cast(uint8_t, stage.default_established)
        else:
            action = stage.steps[step].action
            rule[0] = stage.steps[step].rule
            established[0] = cython.cast(uint8_t, stage.steps[step].established)
        if action != PASS:
            return action == ALLOW
    return True


def first_match(stage, sets, count, key, sport):
    """The first step of the stage that matches an address in these sets, or NO_RULE."""
    best: uint32_t = NO_RULE
    i: uint32_t
    position: uint32_t
    if count <= stage.set_count:
        for i in range(count):
            position = find_set(stage.sets, stage.set_count, sets[i])
            if position != NO_RULE:
                best = match_in_set(stage, position, key, sport, best)
    else:
        for i in range(stage.set_count):
            if find_set(sets, count, stage.sets[i]) != NO_RULE:
                best = match_in_set(stage, i, key, sport, best)
    return best


def find_set(sets, count, wanted):
    base: uint32_t = 0
    length: uint32_t = count
    half: uint32_t
    if not count:
        return NO_RULE
    while length > 1:
        half = length >> 1
        base += half * cython.cast(uint32_t, sets[base + half] <= wanted)
        length -= half
    return base if sets[base] == wanted else NO_RULE


def match_in_set(stage, position, key, sport, best):
    """The smaller of `best` and the first step that this set's interval around `key` offers."""
    base: uint32_t = stage.first[position]
    length: uint32_t = stage.first[position + 1] - base
    half: uint32_t
    at: uint32_t
    step: uint32_t
    while length > 1:
        half = length >> 1
        base += half * cython.cast(uint32_t, stage.keys[base + half] <= key)
        length -= half
    for at in range(stage.candidates_at[base], stage.candidates_at[base + 1]):
        step = stage.candidates[at]
        if step >= best:
            break
        if source_matches(stage, stage.steps + step, sport):
            return step
    return best


def source_matches(stage, step, sport):
    i: uint32_t
    if not step.sources_count:
        return True
    for i in range(step.sources_at, step.sources_at + step.sources_count):
        if stage.sources[2 * i] <= sport and sport <= stage.sources[2 * i + 1]:
            return True
    return False


def words(data):
    return cython.cast(cython.pointer(cython.const[uint32_t]), cython.cast(cython.p_char, data))


def fill(table, arrays):
    """Point a table of addresses at (start4, value4, high6, low6, value6), which somebody keeps."""
    table.count4 = len(arrays[0]) // 4
    table.start4 = cython.cast(cython.pointer(uint32_t), cython.cast(cython.p_char, arrays[0]))
    table.value4 = cython.cast(cython.pointer(uint32_t), cython.cast(cython.p_char, arrays[1]))
    table.count6 = len(arrays[2]) // 8
    table.high6 = cython.cast(cython.pointer(uint64_t), cython.cast(cython.p_char, arrays[2]))
    table.low6 = cython.cast(cython.pointer(uint64_t), cython.cast(cython.p_char, arrays[3]))
    table.value6 = cython.cast(cython.pointer(uint32_t), cython.cast(cython.p_char, arrays[4]))


def number_of(rule):
    """A rule's number for Python."""
    return None if rule == NO_RULE else rule


class Stage:
    """One tier for one kind of endpoint, immutable: `arrays` are (sets, first, keys, candidates_at, candidates, steps,
    sources) as bytes of native uint32; `default_*` is what happens where no step matches; `label` is the owner's own,
    for explaining.
    """

    def __cinit__(
        self, arrays: tuple, default_action: int, default_rule: int, default_established: int, label: object
    ):
        self.arrays = arrays
        self.label = label
        self.table.sets = words(arrays[0])
        self.table.set_count = len(arrays[0]) // 4
        self.table.first = words(arrays[1])
        self.table.keys = words(arrays[2])
        self.table.candidates_at = words(arrays[3])
        self.table.candidates = words(arrays[4])
        self.table.steps = cython.cast(cython.pointer(cython.const[PolicyStep]), words(arrays[5]))
        self.table.sources = words(arrays[6])
        self.table.default_action = default_action
        self.table.default_rule = default_rule
        self.table.default_established = default_established

    def frozen(self):
        """(arrays, default action, its rule, its choice): what this was made of, but for the label."""
        return self.arrays, self.table.default_action, self.table.default_rule, self.table.default_established


class PolicySnapshot:
    """One immutable generation of every verdict of this node.

    `arrays`: (start4, value4, high6, low6, value6) of the intervals of all addresses, entries, sets, then five for
    single addresses, as bytes; `stages`: what entries point at; `names`: has `describe(number)`, the text of a rule
    number.
    """

    def __cinit__(self, number: int, arrays: tuple, stages: list, names: object):
        i: cython.Py_ssize_t
        self.number = number
        self.arrays = arrays
        self.stages = stages
        self.names = names
        fill(cython.address(self.tables.addresses), arrays[:5])
        fill(cython.address(self.tables.points), arrays[7:])
        self.tables.entries = cython.cast(cython.pointer(cython.const[PolicyEntry]), words(arrays[5]))
        self.tables.sets = words(arrays[6])
        self.tables.stages = cython.cast(
            cython.pointer(cython.pointer(cython.const[PolicyStage])),
            calloc(len(stages) + 1, cython.sizeof(cython.pointer(PolicyStage))),
        )
        if not self.tables.stages:
            raise MemoryError
        for i in range(len(stages)):
            self.tables.stages[i] = cython.address(cython.cast(Stage, stages[i]).table)

    def __dealloc__(self):
        free(self.tables.stages)

    def frozen(self):
        """(number, arrays): what this was made of, but for stages and names."""
        return self.number, self.arrays

    def ask(self, src, dst, protocol, dport, sport, icmp):
        question: Question
        source = ipaddress.ip_address(src)
        destination = ipaddress.ip_address(dst)
        if source.version != destination.version:
            raise ValueError(f"{src} and {dst} are of different families")
        number = NUMBERS[protocol.upper()] if isinstance(protocol, str) else protocol
        if number == 1 and source.version == 6:
            number = 58
        first, second = int(source), int(destination)
        question.family = source.version
        question.protocol = number
        question.icmp_type, question.icmp_code = icmp if icmp is not None else (ECHO_REQUEST.get(number, 0), 0)
        question.sport = sport
        question.dport = dport or 0
        question.src_high = first >> 64
        question.src_low = first & LOW_64
        question.dst_high = second >> 64
        question.dst_low = second & LOW_64
        question.live = 0
        return question

    def verdict(self, src, dst, protocol, dport=None, sport=0, icmp=None):
        """(allowed, egress rule, ingress rule); rules are numbers for `describe`, None where none decided.

        Addresses as text, `protocol` a name or number, `icmp` (type, code), by default an echo request.
        """
        question: Question = self.ask(src, dst, protocol, dport, sport, icmp)
        answer: Answer
        judge(cython.address(self.tables), cython.address(question), cython.address(answer))
        return answer.allowed == 1, number_of(answer.egress_rule), number_of(answer.ingress_rule)

    def established(self, src, dst, protocol, dport=None, sport=0, icmp=None):
        """The same of a flow that was let begin before: (choice, egress rule, ingress rule).

        The choice is None where new ones may begin, too, else the number of an `Established`.
        """
        question: Question = self.ask(src, dst, protocol, dport, sport, icmp)
        answer: Answer
        question.live = 1
        judge(cython.address(self.tables), cython.address(question), cython.address(answer))
        choice = None if answer.allowed else answer.established
        return choice, number_of(answer.egress_rule), number_of(answer.ingress_rule)

    def allowed(self, src, dst, protocol, port=None):
        """Whether both ends, as far as they are local, let a new flow pass."""
        return self.verdict(src, dst, protocol, port)[0]

    def repeat(self, count, src, dst, protocol, dport=None):
        """Judge the same flow `count` times without the interpreter, for measurements; the number allowed."""
        question: Question = self.ask(src, dst, protocol, dport, 0, None)
        answer: Answer
        _: cython.Py_ssize_t
        allowed: cython.Py_ssize_t = 0
        for _ in range(count):
            judge(cython.address(self.tables), cython.address(question), cython.address(answer))
            allowed += answer.allowed
        return allowed

    def describe(self, number):
        """Where a rule number comes from, such as `NetworkPolicy default/web spec.ingress[0]`."""
        return self.names.describe(number)

    def knows(self, address):
        """Whether this is the address of a pod of which this snapshot was compiled."""
        parsed = ipaddress.ip_address(address)
        number = int(parsed)
        return find_entry(cython.address(self.tables), parsed.version, number >> 64, number & LOW_64).owner != 0

    def trace(self, src, dst, protocol, dport=None, sport=0, icmp=None):
        """Each tier that was asked, in order: (direction, stage label, rule number or None, action)."""
        question: Question = self.ask(src, dst, protocol, dport, sport, icmp)
        t: cython.pointer(cython.const[PolicyTables]) = cython.address(self.tables)
        source = find_entry(t, question.family, question.src_high, question.src_low)
        target = find_entry(t, question.family, question.dst_high, question.dst_low)
        found = []
        if source.owner and source.owner == target.owner:
            return found
        for direction in (EGRESS, INGRESS):
            own, other = (source, target) if direction == EGRESS else (target, source)
            if direction == INGRESS and source.is_node and source.node and source.node == target.node:
                break
            for i in range(own.stages_count[direction]):
                stage = self.stages[own.stages_at[direction] + i]
                table: cython.pointer(cython.const[PolicyStage]) = cython.address(cython.cast(Stage, stage).table)
                step: uint32_t = first_match(
                    table,
                    t.sets + other.sets_at,
                    other.sets_count,
                    traffic_key(cython.address(question)),
                    question.sport,
                )
                rule, action = table.default_rule, table.default_action
                if action == PASS:
                    rule = NO_RULE
                if step != NO_RULE:
                    rule, action = table.steps[step].rule, table.steps[step].action
                found.append((direction, stage.label, None if rule == NO_RULE else rule, action))
                if action == DENY:
                    return found
                if action == ALLOW:
                    break
        return found
