# Why a packet was refused. 0 means it was not. One counter each; the texts are in drops.py.
cpdef enum DropReason:
    PASS = 0
    # from the underlay
    OUTER_TRUNCATED = 1
    VXLAN_SHORT = 2
    VXLAN_FLAGS = 3
    VXLAN_RESERVED = 4
    VXLAN_VNI = 5
    UNKNOWN_VTEP = 6
    FORMAT_REFUSED = 7
    INNER_MAC = 8
    INNER_ETHERTYPE = 9
    ECN_CE_NOT_ECT = 10
    SOURCE_NOT_LEASED = 11
    DESTINATION_NOT_LOCAL = 12
    # the inner packet itself, both directions
    INNER_SHORT = 13
    INNER_VERSION = 14
    INNER_HEADER = 15
    INNER_LENGTH = 16
    INNER_CHECKSUM = 17
    INNER_EXTENSION = 18
    INNER_FRAGMENT = 19
    INNER_TRANSPORT = 20
    # routing
    NO_ROUTE = 21
    TTL_EXPIRED = 22
    TOO_BIG = 23
    NOT_UNICAST = 24
    SOURCE_SPOOFED = 25
    POD_TO_VTEP = 26
    SUPERFRAME = 27
    FAMILY_UNSUPPORTED = 28
    # sending to the underlay
    SEND_QUEUE_FULL = 29
    SEND_UNREACHABLE = 30
    SEND_REFUSED = 31
    SEND_FAILED = 32
    # writing to a port
    PORT_QUEUE_FULL = 33
    PORT_DOWN = 34
    PORT_GONE = 35
    PORT_FAILED = 36
    # reading from a TAP port
    PORT_ETHERNET = 37
    # network policy
    POLICY_EGRESS = 38
    POLICY_INGRESS = 39
    POLICY_UNKNOWN_POD = 40
    POLICY_MISSING = 41
    POLICY_FRAGMENT = 42
    REASONS = 43
