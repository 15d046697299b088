"""The Kubernetes API as a store: every Node that flannel manages is one lease. flannel's `pkg/subnet/kube`, mirrored.

    Access --> Api --> Reflector --> NodeTable --> KubeStore.list, .watch
    (who, where)  (HTTP verbs)  (list, then watch)  (what we keep)   (entries under any prefix)

The reflector lists all Nodes in pages at one resource version, then watches from there, for ever. A watch that ends,
breaks or falls silent is resumed from the last version that was seen; only an answer of 410 (or a version that ran
backwards: a cluster restored from a backup) makes it list again, and a list replaces the table as a whole, so that
nodes which vanished meanwhile vanish here. Nothing is handed on before the first list is complete.

Of each Node its name, age, podCIDRs and flannel's annotations are kept; everything else is skipped by the JSON decoder
and never becomes an object. A Node that cannot be understood is left out or keeps its last good lease, is counted and
mentioned once, and never touches another.

`annotate` knows flannel's names and what is published under them, `nodes` turns API objects into entries, `table`
holds them; these three are pure. Our own node's annotations are written by `fabric.daemon.kube_lease`.

Limits: 65,536 nodes. HTTP/1.1 only; no proxy between us and the API; of a kubeconfig the users with a token, a token
file or a client certificate (no exec plugins, no passwords). Writing is limited to the own Node's status subresource
and to Events about refused policies (`fabric.policing.kube_events`); `put` and `delete` of the store's contract do not
exist here.
"""
