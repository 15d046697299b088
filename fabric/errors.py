"""Errors for people. The message is the one line a person reads: what failed, on what, why, and what to do."""

from __future__ import annotations


class FabricError(Exception):
    """Base of every error whose text may be shown as it is, without a traceback."""


class StartError(FabricError):
    """Start-up is refused; `fabricd` prints the message and exits with code 1."""


class ConfigError(StartError):
    """A configuration file or value cannot be used. Raised by `fabric.config`."""


class DataplaneError(FabricError):
    """The data plane cannot do what was asked (held port, no device, bad port). Raised by `fabric.forward`."""


class PortLostError(DataplaneError):
    """The device of a pod port is not there any more."""


class TrafficError(FabricError):
    """The firewall cannot be read or changed. Raised by `fabric.traffic`."""


class StoreError(FabricError):
    """Base of the store's errors."""


class StoreUnavailableError(StoreError):
    """The store does not answer now (locked, gone, disk full). Trying again later may help."""


class NotConnectedError(StoreUnavailableError):
    """Nothing there takes connections. Trying costs nobody anything."""


class StoreCorruptError(StoreUnavailableError):
    """The store's file is not one of ours or is damaged. A person has to look at it."""


class ConflictError(StoreError):
    """A fenced write lost: the key is not at the expected revision any more."""


class LeaseError(StartError):
    """No lease can be had: the network is full, or every try lost its race."""
