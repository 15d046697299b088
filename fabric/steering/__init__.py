"""Pods that the host's kernel connects pass the daemon: while policy is in force, their traffic is led through it.

A bridge switches frames between its pods, and the host routes between pods on pairs (`veth`), to the outside and from
it, all without the daemon. Here are the kernel objects that change this, for the interfaces behind which addresses of
this node's subnets lie:

    pod's frame to another pod of its bridge
      | table bridge podfabric_steer: the frame gets the bridge's MAC: the host routes it instead of switching it
      v
    pod's packet, not to the host itself
      | table inet podfabric_steer: marked, not tracked by the host (it has not been judged, nor translated, yet)
      | rules 1122, 1123: what is marked goes to the bridge port, or nowhere
      v
    bridge port --> daemon: as from a pod port (source, policy, route)
                      | to a pod without a port of its own: bridge port --> rule 1120 --> main table --> its interface
                      | to a peer, to a pod port: straight there
                      | to anything else: node port --> host: translation of Services, routes, as from a pod port
    host's packet to this node's subnets, forwarded (translated, from outside)
      | marked by another bit; rules 1124, 1125: to the node port, or nowhere
      v
    node port --> daemon: judged as what it is now

What the host itself sends to its pods goes directly: it reaches them whatever policies say. What a pod
sends to an address of the host stays there.

Everything is left in place when the daemon ends: without it nothing of these pods passes but to and from their host.
"""
