"""The workers of a data plane and their threads, and what workers that were replaced have counted.

Everything here is called on the control thread. The order is `hire` (workers), `swap` (any number of times), `run`
(threads), `stop`, `dismiss`, and from the beginning when they are to work on other sockets.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from fabric.forward.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fabric.forward.drop_ring import Record
    from fabric.forward.policies import RawDenial
    from fabric.forward.snapshot import Snapshot
    from fabric.forward.underlay import Underlay
    from fabric.model import DataplaneSettings

SETTLE_SECONDS = 1.0
STOP_SECONDS = 5.0


class Crew:
    """`workers` are those of now."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._past: Counter[str] = Counter()
        self._past_lost = 0
        self._recording = False

    def hire(self, settings: DataplaneSettings, underlay: Underlay, segmentation: bool) -> None:
        """As many as the settings say, on the sockets of `underlay`; `segmentation` is whether trains go out whole."""
        transmit = {family: [sock.fileno() for sock in socks] for family, socks in underlay.transmit.items()}
        for index in range(settings.workers):
            worker = Worker(index, underlay.sockets(index), transmit[4], transmit[6])
            worker.set_segmentation(segmentation)
            worker.set_batching(settings.offload.get("udp-batch", True))
            worker.record_drops(self._recording)
            self.workers.append(worker)

    def swap(self, snapshot: Snapshot) -> None:
        """Have all of them use it from their next batch on, and free the old ones: this rarely waits."""
        for worker in self.workers:
            worker.swap(snapshot)
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(worker.reap() for worker in self.workers) and self._threads and time.monotonic() < deadline:
            time.sleep(0.0005)

    def run(self) -> None:
        """Start their threads, one for each direction."""
        for index, worker in enumerate(self.workers):
            for name, body in (("egress", worker.run_egress), ("ingress", worker.run_ingress)):
                thread = threading.Thread(target=_run, args=(body,), name=f"fabric-{name}-{index}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """End the threads when they are done with what they have read; the workers can still be asked."""
        for worker in self.workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=STOP_SECONDS)
        self._threads.clear()

    def dismiss(self) -> None:
        """Forget the workers, whose threads have ended, but for what they have counted."""
        for worker in self.workers:
            self._past.update(worker.counters())
            self._past_lost += worker.recorded_drops()[1]
        self.workers.clear()

    def counters(self) -> dict[str, int]:
        """All of the workers, and of those before them, by name."""
        total = dict(self._past)
        for worker in self.workers:
            worker.reap()
            for name, value in worker.counters().items():
                total[name] = total.get(name, 0) + value
        return total

    def beats(self) -> dict[str, int]:
        """Wake every thread; a number for each that has changed by the next call unless the thread hangs."""
        counted = [beat for worker in self.workers for beat in worker.beat()]
        return {thread.name: beat for thread, beat in zip(self._threads, counted, strict=True)}

    def alive(self) -> dict[str, bool]:
        """Threads by name."""
        return {thread.name: thread.is_alive() for thread in self._threads}

    def denied(self) -> Iterable[RawDenial]:
        """The records of flows that policy has refused."""
        return (record for worker in self.workers for record in worker.denied())

    def record_drops(self, enabled: bool) -> None:
        """Take down the beginning of packets that are refused from now on, or no longer."""
        self._recording = enabled
        for worker in self.workers:
            worker.record_drops(enabled)

    def recorded_drops(self) -> tuple[list[Record], int]:
        """What was taken down since the last call, and how many did not fit so far."""
        found: list[Record] = []
        lost = self._past_lost
        for worker in self.workers:
            records, worker_lost = worker.recorded_drops()
            found += records
            lost += worker_lost
        return found, lost


def _run(body: object) -> None:
    with contextlib.suppress(OSError):
        # Longer time slices: measured to raise bulk throughput, needs no privilege.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    assert callable(body)
    body()
