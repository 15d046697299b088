"""The one error of this package, with CNI's code, and the codes it uses.

Codes below 100 are CNI SPEC 1.1.0's ("Error"); from 100 on they are a plugin's own. The reference plugin reports 999
for everything that is not a bad environment, so no runtime depends on its codes.
"""

from __future__ import annotations

from fabric.errors import FabricError

INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11  # no address is free, or the disk is full: both pass when pods go or space is made
ALREADY_ALLOCATED = 100  # ADD for an attachment that holds an address of the range set
ADDRESS_UNAVAILABLE = 101  # a requested address is taken, a gateway, or in no range
NOT_ALLOCATED = 102  # CHECK for an attachment that holds no address


class IPAMError(FabricError):
    """`code`, `msg` and `details` are the fields of CNI's error object. `msg` is one line."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details
