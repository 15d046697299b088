"""Address to next hop, in the process and in the kernel.

Theory of operation. Two things know where a destination is: the prefix table that the data path searches (`routes.fib`)
and the kernel's own routes, which bring local packets to our device and answer local processes. Both are derived from
one desired state, whole and immutable, by whoever uses this package; neither is ever edited in place.

`routes.fib` compiles prefixes into sorted disjoint intervals, searched without the GIL. A change is a new table.

The kernel's copy is reconciled, not commanded. `routes.state` has the words (`DeviceState`, `Route`, `Neighbour`,
`FdbEntry`, `VxlanLink`), `routes.watch` the one object a daemon needs: `KernelReconciler`. It looks at the devices,
their addresses, neighbours and forwarding entries, and at the main routing table, compares (`routes.delta`), and
repairs the difference; it looks again 20 ms after the kernel announces any change (looks are 200 ms apart), and every
10 s in any case. Which change was announced does not matter, so a lost announcement costs a delay and nothing else.

Ours is recognisable. Every route and blackhole of ours carries protocol number 112; a VXLAN device that the desired
state describes is ours with everything on it. A process that starts with no memory finds its own by these marks, keeps
what is still right without a gap, and removes the rest; without a mark nothing is removed or replaced. The exception is
what flannel left for us to take over (`routes.main_table`).

Devices are of three kinds. An overlay device that its owner makes (a TUN): link, addresses and routes are kept, and its
owner is told when it is gone. A VXLAN device of the kernel's: made here as well, with neighbours and forwarding
entries. The underlay: nothing but routes, for peers that are on link (host-gw, direct routing); which are, the
reconciler tells whenever the answer changes.

What is what:

    fib, flatten            prefix table, its compile-time half         no I/O
    delta, pace, wire       difference of two maps; when to look; bytes no I/O, time is an argument
    state                   desired state, results, errors              values
    codec, netlink          rtnetlink messages (pyroute2), conversation
    observe, lookup         the kernel's objects as values; questions at start-up
    reachable, vxlan        which addresses are on link; which VXLAN devices are there
    links, vxlan_link       a device itself                             synchronous, as are the next two lines
    addresses, neighbours, main_table, work                             tables of objects, and their repair
    device, namespace       one device; all of them in order
    wakeups, watch          descriptors that tell of changes; the reconciler on the event loop

Import the submodule you need; the package itself imports nothing, so a user of the table pays for no netlink.

Limits. The network namespace of the process. Main routing table only; IPv4 routes without TOS; one next hop per route.
Two programs that both insist on one object will take turns, at most five times a second. A foreign route for a
prefix of ours is reported and left, also where it is preferred to ours. An IPv6 route that another program merged with
ours into one multipath route counts as foreign. Changes of sysctls are heard only through the same mount of /proc, and
changes of policy rules not at all; the regular check finds both. A VXLAN device that a process without memory no longer
wants is left (`routes.vxlan` removes it); so are routes through a device that no desired state has named. With
`learning`, each entry that the kernel learns costs a look. A full look costs about 0.01 ms per object of ours (a peer
on a VXLAN device is three), and 0.015 ms per address of the on-link question; other programs' routes cost a dump, but
are not read unless their prefix length is one of ours. Writing an object costs about 0.03 ms.
"""
