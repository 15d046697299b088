"""A Kubernetes API server for tests whose store is a real etcd, so that the hard semantics are etcd's and not ours.

    resourceVersion = mod_revision              list = range at one revision; limit, continue pin it
    watch = etcd watch with prev_kv             compaction = 410 Expired, in a list or a watch
    bookmark = the revision of a marker key     write = compare-and-swap on mod_revision

`process.ApiServer` runs it as a process of its own that can be killed, frozen and started again; `proxy.Proxy` stands
between it and a client and breaks connections. `python -m tests.apiserver --help` lists what it can be told.

Enough discovery is there for kubectl. Limits: Nodes, Pods, Namespaces, Events and policies only; no tables, no
admission, no validation beyond the size of annotations; of a strategic merge patch lists are merged where Nodes have a
merge key.
"""
