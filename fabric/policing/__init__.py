"""The control side of network policy: from where policies are written to the snapshot that the data path judges by.

    directory, store, Kubernetes API --Content--> PolicyKeeper --World--> Compiler --PolicySnapshot--> data path
                 this node's endpoints, leases --^

Theory of operation. A *source* (`source.PolicySource`) shows a complete reading or nothing. The *keeper* merges all
sources with the pods that are on this node and the nodes that have leases, has a thread compile what differs (a burst
of changes at once), and hands the snapshot to the data path. Until every source was read whole and compiled once, the
data path has no snapshot and, being told that policy is required, lets pods' packets pass nowhere. What was accepted is
written to `<state-dir>/policy.json`; a start whose source does not answer goes on with that.

Policies that are staged are compiled apart, together with all that is in force (`staged`), into a second snapshot. The
data path asks it whatever it asks the first one, and only counts the answers.

An object that cannot be enforced as written is refused with the field and the reason, which is said once, and the last
good one of that name stays in force, over a restart too. The source is told, and in a cluster writes an Event about it
(`kube_events`).

`documents`, `objects` and `world` are pure.
"""
