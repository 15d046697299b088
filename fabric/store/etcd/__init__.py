"""The store in etcd v3, laid out byte for byte as flannel's etcd manager lays it out.

`store` has `EtcdStore`, put together from `settings` (the flags), `client` (which endpoint, which token), `http2` (the
wire), `messages` (etcd's protobuf), `watch` (following a prefix), `content` (what is known of it), `lease_ends` (times
to live) and `reasons` (errors for people). Only `settings` is imported before the store is chosen: the rest brings h2
and protobuf along. Why these two and no etcd client library: `docs/adr/0012`.

A write is a lease and a transaction that compares the key's revision; the lease that a key hung on before is revoked
when nothing else hangs on it. A watch lists once and then follows etcd's events from the next revision on. It yields
complete snapshots; whatever came in together is one snapshot, and while the consumer is busy etcd is slowed down by
flow control, so a burst costs neither memory nor work. A lost connection is replaced with back-off, at the next
endpoint, and the watch goes on where it was; it lists anew only when etcd has compacted that revision, or when the
history was replaced by a backup, which also changes `store_id`.

Limits: 65,536 keys and 64 MiB under a prefix, 64 MiB an answer; a value over 128 KiB is cut (no reader takes it then).
A lease that somebody keeps alive shows its new end only after its key changed or the connection was made again. No
unix: endpoints, no DNS discovery, no encrypted key files. A history that was replaced while we were connected to
nobody, by one that agrees in the number of keys and in the newest of them, is not told apart.
"""
