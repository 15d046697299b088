"""A Python for an installation: one that fabricd's user can run."""

from __future__ import annotations

from functools import cache

from fabric.install.environment import EnvironmentProblem, base_python, check_python


@cache
def host_python() -> str:
    """The running Python's base, or Debian's; empty when neither will do."""
    for python in (base_python(), "/usr/bin/python3"):
        try:
            check_python(python)
        except EnvironmentProblem:
            continue
        return python
    return ""
