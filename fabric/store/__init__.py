"""Stores: where leases lie and how a node learns of changes. `fabric.store.base` has the interface."""
