"""pyroute2's message classes (encode and decode of rtnetlink), without the rest of pyroute2.

`import pyroute2` runs the package's `__init__`, which loads NDB, nftables, IPVS, 9P and more: 12.7 MB resident and
70 ms here (pyroute2 0.9.7, Python 3.11). The few message classes that a reconciler needs cost 2.0 MB and 12 ms. A
daemon whose idle size is a target takes only them: while they load, an empty package of the same name and search path
stands in, so that their own imports resolve; then it is withdrawn, and `import pyroute2` elsewhere works as ever.

Limits: needs `pyroute2.netlink` to stay importable by itself, which the tests check.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def bare_package(name: str) -> Iterator[None]:
    """While open, submodules of package `name` can be imported without running the package's own `__init__`."""
    if name in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"package {name} is not installed; `./dev build` installs it", name=name)
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
    try:
        yield
    finally:
        del sys.modules[name]


with bare_package("pyroute2"):
    from pyroute2.netlink import nlmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

__all__ = ["ifaddrmsg", "ifinfmsg", "nlmsg", "rtmsg"]
