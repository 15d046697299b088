"""What loading pyroute2's message classes brings along, and what it leaves as it was."""

import subprocess
import sys


def test_only_the_message_classes_of_pyroute2_are_loaded_and_the_rest_stays_usable() -> None:
    """In a process of its own, because other tests may have imported pyroute2."""
    program = """
import sys
import routes.watch
assert "pyroute2" not in sys.modules and "pyroute2.ndb" not in sys.modules, sorted(sys.modules)
import pyroute2
from pyroute2.netlink.rtnl.rtmsg import rtmsg
assert pyroute2.NDB and rtmsg is routes.codec.rtmsg
with pyroute2.IPRoute() as kernel:
    assert [link.get("ifname") for link in kernel.get_links()]
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
