"""Unix time that goes on evenly, for everything that is an age: when a lease ends, how long something is remembered.

The wall clock is set: by a person, by NTP when a machine without a battery has started, by a hypervisor. A lease does
not get a day older by that. `steady` is the wall clock as it was when the process started, plus the time since, suspend
included. It may be wrong, and it never jumps; what has to be the time of day (certificates, the API's time stamps,
logs) does not use it. Two processes may disagree: what they share says in whose time it is (`fabric.store.sqlite_file`)
or how long it still lasts (etcd).
"""

from __future__ import annotations

from collections.abc import Callable
from time import CLOCK_BOOTTIME, clock_gettime, time


def uptime() -> float:
    """Seconds since the machine started, suspend included."""
    return clock_gettime(CLOCK_BOOTTIME)


class SteadyClock:
    """Called, it gives Unix time in seconds. `wall` is looked at once."""

    def __init__(self, wall: Callable[[], float] = time, uptime: Callable[[], float] = uptime) -> None:
        self._uptime = uptime
        self._offset = wall() - uptime()

    def __call__(self) -> float:
        return self._offset + self._uptime()


steady = SteadyClock()
