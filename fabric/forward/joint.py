# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""One thread for both directions while traffic is sparse, two when it is not.

Theory of operation. A packet that arrives alone wakes a thread, whose write wakes the receiving process, whose answer
wakes a thread again. With two threads the first one has not gone to sleep yet when the second is woken (the receiver
has pre-empted it), so the scheduler sees a busy core and wakes the second thread on an idle one, which costs more than
all our work on the packet. With one thread for both directions that wake-up does not exist: the thread is awake and
finds the answer. Two threads are better as soon as there is more than a packet or so to a turn.

`Shared.joint` says who reads the receive sockets, and only who reads them now may change it: the ingress thread gives
them away after CALM light turns in a row of both threads (`offer`) and parks; the egress thread gives them back when
heavy turns prevail (`weigh`). Ports are always the egress thread's. What is queued meanwhile stays queued: epoll is
level-triggered. Nothing of the ingress thread's memory is touched by the thread that does not read the sockets.

Limits. A direction in which nothing at all moves after a bulk transfer is not calm, so a one-way trickle after it
keeps two threads. A turn is heavy from HEAVY packets on, segments of superframes counted.
"""

import cython
from cython.cimports.encap.net import POLLIN, poll, pollfd
from cython.cimports.fabric.forward.hold import HOLD_MS
from cython.cimports.fabric.forward.kernel import (
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    ORDERED,
    RELAXED,
    atomic_load,
    atomic_store,
    epoll_ctl,
    epoll_event,
)
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.posix.unistd import read, write

HEAVY = cython.declare(uint64_t, 4)
CALM = cython.declare(uint64_t, 16)
# A heavy turn adds 2, a light one takes 1: TCP's superframes and the acknowledgements between them add up, a burst
# among single packets does not.
PRESSURE_LIMIT = cython.declare(uint32_t, 6)


def count_calm(shared, side, packets):
    """Light turns in a row of one thread."""
    calm = cython.address(shared.calm[side])
    atomic_store(calm, atomic_load(calm, RELAXED) + 1 if packets < HEAVY else 0, RELAXED)


def wake_thread(shared, side):
    """Let the other thread look at `joint`."""
    one: uint64_t = 1
    write(shared.wakes[side], cython.address(one), 8)


def follow(e):
    """Watch the receive sockets, those added since included, or none."""
    event: epoll_event
    shared = e.lane.shared
    wanted: uint64_t = atomic_load(cython.address(shared.socket_count), ORDERED) if shared.joint else 0
    event.events = EPOLLIN
    event.data.u64 = 0
    while e.joined < wanted:
        event.data.u32 = SOCKET_TOKEN | e.joined
        epoll_ctl(e.lane.epoll, EPOLL_CTL_ADD, shared.sockets[e.joined], cython.address(event))
        e.joined += 1
    while e.joined > wanted:
        e.joined -= 1
        epoll_ctl(e.lane.epoll, EPOLL_CTL_DEL, shared.sockets[e.joined], cython.NULL)


def patience(e):
    """Fragments that wait are to be lost in time, the ingress thread's too while it is parked."""
    if e.lane.tracker.hold.count or (e.lane.shared.joint and e.ingress.lane.tracker.hold.count):
        return HOLD_MS
    return -1


def weigh(e, packets):
    """Keep both directions, or give the sockets back to the ingress thread."""
    shared = e.lane.shared
    count_calm(shared, 0, packets)
    if not shared.joint:
        return
    if packets >= HEAVY:
        e.pressure += 2
    elif e.pressure:
        e.pressure -= 1
    if e.pressure >= PRESSURE_LIMIT:
        e.pressure = 0
        shared.calm[1] = 0
        atomic_store(cython.address(shared.joint), 0, ORDERED)
        wake_thread(shared, 1)


def offer(s, datagrams):
    """Give the sockets to the egress thread once both have been calm; they are its own from the store on."""
    shared = s.lane.shared
    count_calm(shared, 1, datagrams)
    if shared.calm[1] >= CALM and atomic_load(cython.address(shared.calm[0]), RELAXED) >= CALM:
        atomic_store(cython.address(shared.joint), 1, ORDERED)
        wake_thread(shared, 0)


def park(s):
    """Wait for the wake-up descriptor alone."""
    waiting: pollfd
    token: uint64_t
    waiting.fd = s.lane.wake
    waiting.events = POLLIN
    waiting.revents = 0
    poll(cython.address(waiting), 1, -1)
    read(s.lane.wake, cython.address(token), 8)
    s.parks += 1
