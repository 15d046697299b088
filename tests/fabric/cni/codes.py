"""What a call of the plugin's parts comes to, when only the error's code matters."""

from __future__ import annotations

from collections.abc import Callable

from fabric.cni.errors import CniError


def code_of(call: Callable[[], object]) -> int:
    """The code of the error that the call raises, 0 for none. The error has to be fit for a log."""
    try:
        call()
    except CniError as error:
        if not str(error).isprintable():
            raise AssertionError(f"not one line of printable text: {error!r}") from None
        return error.code
    return 0
