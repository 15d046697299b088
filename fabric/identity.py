# cython: language_level=3, boundscheck=False, wraparound=False
"""What differs between two generations of immutable objects of which unchanged ones stay the same objects.

The generations are tuples in one and the same order, of which a change touches a place or two. So what they have in
common is found from both ends by comparing pointers, about one nanosecond each, and only what lies between is looked at
further. That is what lets every layer of the control plane find out for itself what is new in what it is given (it is
level-triggered) at the price of being told.
"""

import cython


def ends(old: tuple, new: tuple) -> tuple[int, int]:
    """How many objects are the same from the first on, and from the last one backwards, without counting any twice."""
    shorter: cython.Py_ssize_t = min(len(old), len(new))
    front: cython.Py_ssize_t = 0
    back: cython.Py_ssize_t = 0
    last_old: cython.Py_ssize_t = len(old) - 1
    last_new: cython.Py_ssize_t = len(new) - 1
    while front < shorter and old[front] is new[front]:
        front += 1
    while back < shorter - front and old[last_old - back] is new[last_new - back]:
        back += 1
    return front, back


def differing(old: tuple, new: tuple) -> tuple[list, list]:
    """(gone, come): the objects that only `old` has, and those that only `new` has, each in its order.

    Told apart by identity, without hashing or comparing any. An object made anew is in both, also where it is equal.
    """
    if old is new:
        return [], []
    front, back = ends(old, new)
    before = old[front : len(old) - back]
    after = new[front : len(new) - back]
    if not before or not after:
        return list(before), list(after)
    had, has = set(map(id, before)), set(map(id, after))
    return [item for item in before if id(item) not in has], [item for item in after if id(item) not in had]
