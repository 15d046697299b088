"""`python -m bench.probe ADDRESS PORT`: one UDP request per millisecond; says when answers begin and when they end.

Prints JSON lines `{"answered": t}` at the first answer after a silence and `{"silent": t}` once nothing came for 50 ms,
t in seconds of CLOCK_MONOTONIC, which all processes of the machine share. Ends when stdin ends.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import suppress

INTERVAL = 0.001
SILENCE = 0.05


def say(what: str, when: float) -> None:
    """One transition."""
    print(json.dumps({what: when}), flush=True)


def main(address: str, port: int) -> None:
    """Probe until stdin ends."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        probe.connect((address, port))
        last, answered = time.monotonic(), True
        while True:
            with suppress(OSError):  # no route or refused: that is what we are here to see end
                probe.send(b"probe...")
            ready, _, _ = select.select([probe, sys.stdin], [], [], INTERVAL)
            now = time.monotonic()
            if sys.stdin in ready:
                return
            if probe in ready:
                with suppress(OSError):
                    probe.recv(64)
                    last = now
                    if not answered:
                        answered = True
                        say("answered", now)
                time.sleep(INTERVAL)
            elif answered and now - last > SILENCE:
                answered = False
                say("silent", last)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
