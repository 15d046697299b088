"""Truth tables of network policy: data, a naive evaluator that owes nothing to the engine, and a runner.

`e2e.py`: the 48 NetworkPolicy cases of kubernetes/kubernetes test/e2e/network/netpol/network_policy.go at
008b3652959ca58af8be3fb5b6ecfe9ae7638282: names and expected reachability are upstream's. A case is (name, pods, steps);
a step is ("apply", object), ("delete", namespace, name), ("label-pod", "x/a", labels to add), ("set-pod", "x/a", all
labels), ("delete-pod", "x/a"), the same three for namespaces, or ("expect", protocol, port, [(from, to, allowed),
...]): everything is allowed, then each exception in order, the last one wins.
From and to are "*" (any pod), "x" (a namespace) or "x/a" (a pod). A pod to itself is always allowed, whatever the
table says; upstream leaves it out.
`cyclonus.py`: the 230 cases of Cyclonus; what must pass in them stands by hand in `cyclonus_tables.py`.
`cluster.py`: the 92 sub-tests of ClusterNetworkPolicy's conformance suite with its verdicts.
`oracle.py` answers from the text of NetworkPolicy v1 alone; `runner.py` plays steps; `engine.py` asks the real engine.
Every probed cell is held against the table three ways: by hand, by the text, by the engine.
"""
