"""The node's firewall rules for pods, as flannel has them, in one nftables table of our own: `inet podfabric`.

Theory of operation. What the rules are follows from one immutable state (`rules.TrafficState`: the pod networks, this
node's subnets, three flags). The kernel is brought to it by looking and repairing, never by commands that assume what
was there before: a look reads our table back, compares it rule by rule in the kernel's own terms, and replaces what
differs in one transaction that packets see whole or not at all. A look follows 20 ms after the kernel announces any
change of the ruleset, and every few seconds in any case. The kernel numbers its rulesets per network namespace; while
the number is the one that was found right, a look is one question.

Masquerading is in chain `postrouting` (nat, priority srcnat + 5): the six rules of flannel's iptables mode. It is asked
after all other translations, as flannel's appended rules are, so that a node owner's own rule wins.

Forwarding is in chain `forward`. An accept ends its own chain only, so these rules cannot help a packet past a chain of
somebody else that drops it. Where that is iptables' FORWARD with policy DROP (Docker sets it), two accept rules are
kept at its end under the comment "podfabric forward", where flannel's would stand; other chains are reported (`gates`).

Ours is recognisable: the table by its name, the rules in FORWARD by their comment. A fresh process finds them, keeps
what is right and removes the rest. They outlive the daemon, as flannel's do; `TrafficManager.remove` takes them away.

What is what:

    rules, expressions      which rules, and each as nf_tables expressions            no I/O
    messages, nft           pyroute2's message classes; a conversation with nf_tables
    table, gates, legacy    our table; other programs' forward chains; iptables-legacy by its tools
    checks                  sysctls that pods need, said in a line
    events, reconcile       what the kernel announces; one look and its repairs
    manager                 `TrafficManager`, the one object that a daemon needs
    leftovers               what flannel left: find, remove

Import the submodule you need; the package itself imports nothing.

Limits. Linux 5.2 for translation in a table of both families. A rule of iptables' POSTROUTING that accepts in order to
keep a packet from being masqueraded ends its own chain only, and ours still translates. Rules in somebody else's chains
are read only as far as `gates` says. iptables-legacy's tables announce nothing: they are looked at by the clock, and
need the iptables-legacy tools. Connections that began before a rule existed keep what they were given (conntrack).
Two programs that both insist on our table take turns, at most five times a second. One network and one subnet per
family.
"""
