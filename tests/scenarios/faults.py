"""One fault after the other under traffic: what is lost, for how long, and how soon all is as before.

    python -m tests.scenarios.faults [--only WORD] [--frozen 30]

Two nodes; requests with numbers go between their pods every 2 ms. For each fault a line: how many requests had no
answer, the longest time from when the fault was over to the last lost one, the time until the kernel's state was
restored, and the target. Ends with 1 when one is beyond twice its target. Needs root; run it in namespaces of its own.

Not here: a stalled loop and a dead task (`tests/fabric/daemon/test_watchdog.py`, `tests/systemd/test_service.py`), the
wall clock's jumps, which no namespace has for itself (`tests/fabric/test_clock_jumps.py`).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fabric.lab import Lab, measure
from tests.scenarios import flows, inside, test_overload, test_reconcile
from tests.scenarios.test_reconcile import FAULTS, NODE, observed
from tests.scenarios.waiting import wait_for

REPAIR = 0.5
"""R21: something of ours was changed."""
UNDERLAY = "eth0"
ROUTES = 4000


class Fault(NamedTuple):
    """`act` does it and returns when it is over; `target` are seconds from then for the traffic, and at least `REPAIR`
    for the kernel's state. `lossless`: nothing may be lost at all."""

    name: str
    act: Callable[[Lab], None]
    target: float
    lossless: bool = False


class Row(NamedTuple):
    name: str
    sent: int
    lost: int
    outage: float
    restored: float
    target: float
    good: bool

    def report(self) -> str:
        return (
            f"{self.name:<28} lost {self.lost:>5} of {self.sent:>6}  until {self.outage * 1e3:>6.0f} ms after it"
            f"  restored after {self.restored * 1e3:>6.0f} ms  target {self.target * 1e3:>5.0f} ms"
            f"  {'ok' if self.good else 'BEYOND TWICE THE TARGET'}"
        )


# --- faults that are not the reconciler's alone ---


def flap(lab: Lab) -> None:
    """The underlay's link goes and comes back after 300 ms; its IPv6 address, too."""
    keep = Path("/proc/sys/net/ipv6/conf") / UNDERLAY / "keep_addr_on_down"
    inside.call(NODE, lambda: keep.write_text("1"))
    inside.ip(NODE, "link", "set", UNDERLAY, "down")
    time.sleep(0.3)  # the fault itself: so long it is down
    inside.ip(NODE, "link", "set", UNDERLAY, "up")


def underlay_mtu(lab: Lab) -> None:
    """100 bytes less, until the daemon has followed, and back."""
    before = observed()["mtu"]
    inside.ip(NODE, "link", "set", UNDERLAY, "mtu", "1400")
    wait_for(lambda: observed().get("mtu") == before - 100, "the daemon to follow")
    inside.ip(NODE, "link", "set", UNDERLAY, "mtu", "1500")


def many_changes(lab: Lab) -> None:
    """More messages at once than a netlink socket holds, and our own route gone in the middle of them."""
    lines = [f"route add 198.18.{n // 250}.{n % 250}/32 dev {UNDERLAY}" for n in range(ROUTES)]
    lines.insert(ROUTES // 2, f"route del {test_reconcile.PEER}")
    lines += [line.replace(" add ", " del ") for line in lines if " add " in line]
    command = ["ip", "netns", "exec", NODE, "ip", "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)


def second_daemon(lab: Lab) -> None:
    """With a run directory of its own: the port and the device are taken, so it is refused."""
    argv = [sys.executable, "-m", "fabric.daemon.main", f"--iface={UNDERLAY}", f"--store=sqlite:///{lab.run_dir}/x/f.db",
            f"--run-dir={lab.run_dir}/x/run", f"--state-dir={lab.run_dir}/x/state",
            f"--subnet-file={lab.run_dir}/x/subnet.env"]  # fmt: skip
    done = subprocess.run(["ip", "netns", "exec", NODE, *argv], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr


def frozen(seconds: float) -> Callable[[Lab], None]:
    """The daemon stands still for so long."""

    def act(lab: Lab) -> None:
        pid = lab.daemon_pids()["node1"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)  # the fault itself
        os.kill(pid, signal.SIGCONT)

    return act


def killed(lab: Lab) -> None:
    """Without a service manager the queues go with the process; pods' devices stay."""
    lab.restart_daemon("node1", how=signal.SIGKILL)


def faults(still: float) -> list[Fault]:
    def repaired(name: str) -> Fault:
        return Fault(name, lambda lab: FAULTS[name](), REPAIR)

    return [
        *(repaired(name) for name in FAULTS),
        Fault("second daemon", second_daemon, REPAIR, lossless=True),
        Fault("underlay link flapped", flap, 0.1),
        Fault("underlay MTU down and up", underlay_mtu, 1.0),
        Fault("netlink overrun", many_changes, 1.0),
        Fault(f"stopped for {still:g} s", frozen(still), 1.0),
        Fault("killed, no service manager", killed, 1.0),
    ]


def under_traffic(lab: Lab, fault: Fault) -> Row:
    """Do it, wait until all is as before, and say what it cost."""
    one, other = lab.pods
    wanted = observed()
    with flows.probing(one.netns, one.ip, other.netns, other.ip) as probes:
        begin = time.monotonic()
        fault.act(lab)
        over = time.monotonic() if fault.name not in FAULTS else begin
        wait_for(lambda: observed() == wanted, f"{wanted} after {fault.name}, not {observed()}", 20)
        restored = time.monotonic() - over
        outage = max(0.0, probes.outage(begin, 20) - (over - begin))
        lost = probes.lost(begin)
        sent = sum(1 for moment in probes.sent if moment >= begin)
    good = outage <= 2 * fault.target and restored <= 2 * max(fault.target, REPAIR) and not (fault.lossless and lost)
    return Row(fault.name, sent, lost, outage, restored, fault.target, good)


def overloaded(lab: Lab) -> str:
    """A burst of as much as two processors send: every datagram that did not arrive is counted somewhere."""
    one, other = lab.pods
    before = test_overload.losses(lab)
    done = measure.udp(lab, one, other, sizes=[200], flows=8, burst=32, seconds=2.0)
    wait_for(lambda: sum(test_overload.counted(lab, before).values()) >= done.sent - done.delivered, "the counts", 3)
    counted = test_overload.counted(lab, before)
    off = sum(counted.values()) - (done.sent - done.delivered)
    return (
        f"{'queues overflowed':<28} sent {done.sent}, delivered {done.delivered}, counted {sum(counted.values())}"
        f" ({off:+d}, of the kernels' own packets): {counted}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--frozen", type=float, default=30.0, help="seconds for which the daemon is stopped")
    asked = parser.parse_args()
    bad = 0
    with Lab(nodes=2, pods=1, pod_kind="bridge", ipv6=True, mode="veth") as lab:
        for fault in faults(asked.frozen):
            if asked.only in fault.name:
                row = under_traffic(lab, fault)
                bad += not row.good
                print(row.report(), flush=True)
        if asked.only in "queues overflowed":
            print(overloaded(lab), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
