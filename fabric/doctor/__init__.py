"""`fabricctl doctor`: what is wrong between this node and the others, by trying it out.

    evidence  what was seen: of the node, and of each peer    pure
    diagnose  from evidence to findings, each with its fix    pure
    probes    the tries themselves: echo requests through the tunnel and beside it, the tunnel's port, TCP, packets on
              the underlay, the daemon's counters and refused packets before and after

Limits: seen from one end. A tunnel port that is filtered at the peer and a peer whose daemon refuses what we send look
alike from here; the finding says so, and `doctor` on the peer tells them apart.
"""
