"""The plugin's one error, with CNI's codes. Codes below 100 are CNI SPEC 1.1.0's ("Error"), 999 is libcni's."""

from __future__ import annotations

from collections.abc import Callable

from fabric.errors import FabricError

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2  # the message names key and value
UNKNOWN_CONTAINER = 3  # nothing to clean up: the runtime need not call DEL
INVALID_ENVIRONMENT = 4  # the message names the variables
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
# From 100 on the codes are a plugin's own; 100 to 102 are those of `fabric.ipam`.
INTERFACE_EXISTS = 110
DAEMON_REFUSED = 111
KERNEL_REFUSED = 112
CHECK_FAILED = 113
INTERRUPTED = 114
PORT_TAKEN = 115
INTERNAL = 999


class CniError(FabricError):
    """`code`, `msg` and `details` are the fields of CNI's error object. `msg` is one line."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


class Failures:
    """Errors of GC, which goes on after each."""

    def __init__(self) -> None:
        self._errors: list[CniError] = []

    def attempt(self, step: Callable[[], object]) -> None:
        """Do the step; a CniError is kept for the report."""
        try:
            step()
        except CniError as error:
            self._errors.append(error)

    def report(self) -> None:
        """Raise one CniError for all, with the first one's code."""
        if self._errors:
            details = "; ".join(map(str, self._errors))
            raise CniError(self._errors[0].code, f"GC could not remove everything: {len(self._errors)} errors", details)


def shown(value: object, limit: int = 80) -> str:
    """A value from outside, fit for one line of a log or a terminal."""
    return ascii(value)[:limit]
