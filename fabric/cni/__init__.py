"""`fabric-cni`, the CNI plugin: gives a container an interface in the pod network, and takes it away again.

Theory of operation. A container runtime executes the program once for every verb and container: parameters in the
environment, configuration on stdin, result or error on stdout (`protocol`, `config`, `result`: pure). A configuration
of type `flannel` is served as flannel's own plugin would (`flannel`), any other by our own rules (`native`). Both come
to `attaching`: the order of steps of ADD, DEL and CHECK, and how a failed ADD is taken back. Where addresses come from
is `ipam`'s matter (`fabric.ipam`, or another IPAM plugin by `delegate`); port mappings and masquerading are those of
`mappings` and `hostside`; whose pod it is (`identity`) is told to the daemon. How the interface is made is up to its
kind:

    kinds/tun       a TUN whose queue goes to the daemon, by the control socket
    kinds/tap       the same with a TAP, for pods that need Ethernet
    kinds/veth      a routed pair: /32 routes, one next hop for all pods, no bridge
    kinds/bridge    a pair into a bridge, as the reference plugin makes it

Nothing is kept in memory between calls, so everything must be found again. Every object is named after its attachment
(`attachment`), and a record on disk (`state`) says what was planned, from before the first object exists until after
the last one is gone. So DEL works with the daemon down, the namespace gone, the record lost, and any number of times; a
call that was killed leaves nothing that DEL, GC or the next ADD does not remove. Different containers never wait for
each other except for IPAM's lock; calls for one container do.

What cannot be told to a daemon that is stuck or away is written down and told by a later call (`Store.postpone`).

Start-up is paid for every pod, so modules are loaded when they are needed, values are named tuples, netlink messages
are packed by hand, and the interpreter starts without `site` (`launcher`, docs/adr/0016).

Limits. Linux, 64 bit. The runtime is trusted as root is: what is checked is that its input means what it says. IPv6
sources of routed pairs are not filtered here. Bandwidth is left to chained plugins. docs/cni.md has the keys, the codes
and what the specification demands.
"""
