"""From one list of states, the many histories that must all end in the same place.

After Calico Felix's calculation-graph tests: a list of named states is expanded into orderings; since the output may
depend on nothing but the last state, every expansion has to give what the last state gives on its own. What the store
can do besides is woven in: lists that come again, lists that do not come at all, entries that cannot be read.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

AWAY = "the store does not answer"


@dataclass(frozen=True)
class State:
    """What is known at one time: the store's entries by key, and which addresses are on link through which device.

    `damaged` are keys whose value cannot be read at this time, `rubbish` are keys that are no leases at all.
    """

    entries: Mapping[str, bytes]
    links: Mapping[str, str | None] = field(default_factory=dict)
    damaged: frozenset[str] = frozenset()
    rubbish: Mapping[str, bytes] = field(default_factory=dict)


RUBBISH = {
    "rubbish": b"{}",
    "10.244.9.0-24": b"\xff\xfe",
    "10.244.10.0-24": b"[" * 1000,
    "10.244.11.0-24": b'{"PublicIP":7}',
    "10.244.0.0-99": b"{}",
    "": b"",
    "..-/etc/passwd": b"null",
}


def histories(states: list[State]) -> Iterator[tuple[str, list[State | str]]]:
    """Named histories that end in the last of `states`."""
    final = states[-1]
    yield "as written", [*states]
    yield "reversed, then the end", [*reversed(states), final]
    yield "duplicated", [state for state in states for _ in range(2)]
    yield "squashed", [final]
    yield "empty in between", [item for state in states for item in (State({}), state)]
    yield "split, one key at a time", split(states)
    yield "split, keys reversed", split([replace(state, entries=turned(state.entries)) for state in states])
    yield "links first", [item for state in states for item in (State(final.entries, state.links), state)]
    yield "links unknown", [item for state in states for item in (replace(state, links={}), state)]
    yield "links gone", [item for state in states for item in (replace(state, links=dict.fromkeys(state.links)), state)]
    yield "away in between", [item for state in states for item in (AWAY, state, AWAY)]
    yield "listed again after each outage", [item for state in states for item in (state, AWAY, state)]
    yield "rubbish comes and goes", [item for state in states for item in (replace(state, rubbish=RUBBISH), state)]
    yield "rubbish stays", [replace(state, rubbish=RUBBISH) for state in states]
    yield "every value damaged for a while", [item for state in states for item in (state, damage(state), state)]
    for seed in range(2):
        yield f"shuffled {seed}", [*shuffled(states, seed), final]
        yield f"shuffled and split {seed}", split([*shuffled(states, seed), final])


def split(states: list[State]) -> list[State | str]:
    """Each change of a state in single keys: what goes first, then what comes or is other than before."""
    steps: list[State | str] = []
    now: dict[str, bytes] = {}
    for state in states:
        for key in [key for key in now if key not in state.entries]:
            del now[key]
            steps.append(replace(state, entries=dict(now)))
        for key, data in state.entries.items():
            if now.get(key) != data:
                now[key] = data
                steps.append(replace(state, entries=dict(now)))
        steps.append(state)
    return steps


def damage(state: State) -> State:
    """The same keys, none of whose values can be read."""
    return replace(state, damaged=frozenset(state.entries))


def turned(entries: Mapping[str, bytes]) -> Mapping[str, bytes]:
    return dict(reversed(list(entries.items())))


def shuffled(states: list[State], seed: int) -> list[State]:
    order = list(states)
    random.Random(seed).shuffle(order)
    return order

