"""The data path: worker threads outside the GIL between local ports and the underlay, fed by immutable snapshots.

    pod -> port -> egress: parse, route, cut (tunnel) ------------> UDP 8472 -> peer node
    pod <- port <- merge <- admit, parse, VXLAN (ingress) <-------- UDP 8472 <- peer node

Theory of operation. A worker (`worker`) is two threads. The egress thread reads ports (`egress`), sends to VTEPs
(`tunnel`) or hands over to ports of this node (`local`). The ingress thread (`ingress`) does the way back. Both read
one `Generation` of tables compiled by the control plane (`snapshot`), swapped by one pointer store and freed when no
thread uses it (`lane`). `dataplane` is what the daemon calls: it owns sockets, ports, workers and threads.

TTL is lowered exactly where a routed kernel node would lower it. The host's kernel does it for frames that pass the
node port. A pod port has no kernel hop beside it, so we do it: a frame sent by a pod port when it leaves for a VTEP
or another pod port, and a frame from the underlay in front of a pod port.

All threads share one flow table (`flows` owns it, `flow_table` reads, `flow_write` changes, `flow_room` makes room,
`flow_state` is the state machine, `flow_key` what a flow is). `flow_track` brings a packet's flow forward and says
whether the packet is a reply that has to leave by the node port, because its flow came in there and the host's kernel
may have translated it.
`fragments` lets later fragments follow the first one; those that overtake it wait (`hold`, `release`) where policy has
to know its ports.

Network policy (`fabric.policy`) is asked where a flow begins (`policing`), on the node of either end, and the verdict
stays in the flow's record: a packet of an established flow costs one comparison of numbers. `enforcement` is what a
generation knows of policy, `policies` the control plane's side of it, `denials` a sample of what was refused.

A port is a TUN or a TAP (`ethernet`); a TAP's pod has one neighbour, the gateway, who answers for everybody.

Limits: at most 8 workers, 4 receive sockets and 16 source ports per family each; one address per family and pod port.
A route is looked up per destination and a flow per packet or superframe; the last one is remembered.
"""
