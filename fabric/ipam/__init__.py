"""IPAM: pod addresses of one node, kept in files, as the CNI reference plugin `host-local` keeps them.

Theory of operation. A reservation is a file named after the address, its content says for whom (`store`). Both plugins
may work on one directory, at the same time and in turns: the format, the lock and the order in which addresses are
tried are the same. `ranges` and `config` say what may be handed out; `ownership` says whose a record is; `allocator`
has the verbs. They are synchronous, take the directory's lock once, and keep nothing in memory.

What is different from `host-local`, on purpose:

- A record is linked into place when it is complete and on disk; a crash leaves the old state or the new one.
- A full disk leaves no reservation behind: the last-reserved hint is written before the reservation, not after.
- A failed ADD takes back what it reserved itself; `host-local` frees all that the container holds, live ones included.
- DEL works with a broken range configuration, and reports a reservation that it cannot remove.
- `gc` and `reconcile` free what nobody owns; `host-local` has neither.
- Links are not followed, and a directory that others may write to is refused.
- A range whose start lies behind its default end is refused.

Damaged records: the name reserves, whatever the content. Such an address is given to nobody and is freed by `gc` and
`reconcile` only when no live attachment can be its owner.

Values are named tuples, not dataclasses: the CNI plugin starts for every pod, and dataclasses would double its imports.

Limits: every ADD and DEL reads all records of the network (about 20 us each), so a network of one node should stay
below some thousand addresses. The lock is waited for without limit, as in `host-local`; the runtime's time limit ends
it. A live attachment's record that is damaged in more than one byte but still looks like one is not recognised.
Source: containernetworking/plugins `plugins/ipam/host-local`, CNI SPEC 1.1.0.
"""
