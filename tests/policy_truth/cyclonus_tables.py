"""What may pass in each step of the 230 cases, by hand. Pods are written out; no selector is evaluated here.

A table is {"x/a <": what may come in, "x/a >": what may go out}; ends that are not in it let everything pass.
"What" is a list of "PODS @ TRAFFIC": pods, namespaces or * for all; TCP, TCP/80 or * for all. A flow passes where both
of its ends let it; a pod to itself always does (Cyclonus judges that too, against Kubernetes).
"""

from __future__ import annotations

from itertools import combinations

Table = dict[str, str]

# The base policy: a of x; b and c of x and y may come, a and b of y and z may be gone to, all on TCP 80.
IN = "x/b x/c y/b y/c @ TCP/80"
OUT = "y/a y/b z/a z/b @ TCP/80"
BASE: Table = {"x/a <": IN, "x/a >": OUT}
ALL = "* @ *"
FREE: Table = {}


def base(into: str = IN, out: str = OUT) -> Table:
    return {"x/a <": into, "x/a >": out}


def one_way(way: str, what: str) -> Table:
    return base(into=what) if way == "ingress" else base(out=what)


# Who each peer of `cyclonus.PEERS` is: x/a's policy, networks around 10.244.2.18.
WHO = {
    "own namespace": "x/a x/b x/c",
    "c of own namespace": "x/c",
    "every namespace": "*",
    "every pod of every namespace": "*",
    "c of every namespace": "x/c y/c z/c",
    "x": "x/a x/b x/c",
    "every pod of x": "x/a x/b x/c",
    "c of x": "x/c",
    "block": "x/c y/b y/c z/a z/c",
    "block with a hole": "x/c",
}
# What each entry of `cyclonus.SINGLE_PORTS` opens of TCP, UDP, SCTP on 80 and 81, by its name in the case.
OPENS = {
    "empty": "TCP", "80": "TCP/80", "81": "TCP/81",
    "TCP": "TCP", "TCP/80": "TCP/80", "TCP/81": "TCP/81",
    "UDP": "UDP", "UDP/80": "UDP/80", "UDP/81": "UDP/81",
    "SCTP": "SCTP", "SCTP/80": "SCTP/80", "SCTP/81": "SCTP/81",
    "TCP/serve-80-tcp": "TCP/80", "TCP/serve-81-tcp": "TCP/81",
    "UDP/serve-80-udp": "UDP/80", "UDP/serve-81-udp": "UDP/81",
    "SCTP/serve-80-sctp": "SCTP/80", "SCTP/serve-81-sctp": "SCTP/81",
    "TCP/53/80": "TCP/80", "TCP/53/84": "TCP/80 TCP/81",
    "UDP/53/80": "UDP/80", "UDP/53/84": "UDP/80 UDP/81",
    "SCTP/53/80": "SCTP/80", "SCTP/53/84": "SCTP/80 SCTP/81",
    "no port given": "*",
    "a name of another protocol": "", "a name nobody has": "", "a number nobody serves": "",
    "empty, 80": "TCP", "empty, serve-80-tcp": "TCP", "empty, UDP": "TCP UDP",
    "80, 81": "TCP/80 TCP/81", "80, serve-81-tcp": "TCP/80 TCP/81", "80, UDP/serve-81-udp": "TCP/80 UDP/81",
    "UDP/80, UDP/serve-81-udp": "UDP/80 UDP/81",
}  # fmt: skip
X_ON_81 = {f"x/{pod} <": "* @ TCP/81" for pod in "abc"}
X_CLOSED = {f"x/{pod} <": "" for pod in "abc"}

TABLES: dict[tuple[str, str], list[Table]] = {
    ("targets", "a of x"): [BASE],
    ("targets", "a of y"): [{"y/a <": IN, "y/a >": OUT}],
    ("targets", "a of z"): [{"z/a <": IN, "z/a >": OUT}],
    ("targets", "selector: every pod of x"): [
        {f"x/{pod} {way}": what for pod in "abc" for way, what in (("<", IN), (">", OUT))}
    ],
    ("targets", "selector: a of x"): [BASE],
    ("targets", "selector: a and b of x"): [{**BASE, "x/b <": IN, "x/b >": OUT}],
    ("rules", "ingress: none"): [base(into="")],
    ("rules", "ingress: all"): [base(into=ALL)],
    ("rules", "egress: none"): [base(out="")],
    ("rules", "egress: all"): [base(out=ALL)],
    ("actions", "a policy comes and goes"): [BASE, FREE],
    ("actions", "a policy changes"): [BASE, base(into="x/b x/c y/b y/c @ UDP/81")],
    ("actions", "a namespace comes and goes"): [
        BASE, base(f"{IN}; y-2/b @ TCP/80", f"{OUT}; y-2/a y-2/b @ TCP/80"), BASE,
    ],
    ("actions", "a namespace gets the label and loses it"): [base(into=""), base(into="y @ TCP/80"), base(into="")],
    ("actions", "a pod comes and goes"): [BASE, BASE, BASE],
    ("actions", "a pod gets the label and loses it"): [base(into=""), base(into="y/b @ TCP/80"), base(into="")],
    ("conflicts", "nothing out of x/b, all into y/c"): [{"x/b >": ""}],
    ("conflicts", "all out of x/b, nothing into y/c"): [{"y/c <": ""}],
    ("conflicts", "egress: nothing + all"): [FREE],
    ("conflicts", "ingress: nothing + all"): [FREE],
    ("conflicts", "egress: nothing + every pod"): [FREE],
    ("conflicts", "egress: nothing + every address"): [FREE],
    ("conflicts", "egress: no address + every pod"): [FREE],
    ("conflicts", "egress: no pod + every address"): [FREE],
    ("conflicts", "egress: no address"): [{"x/b >": ""}],
    ("conflicts", "egress: no pod"): [{"x/b >": ""}],
    ("conflicts", "ingress: nothing + every pod"): [FREE],
    ("conflicts", "ingress: nothing + every address"): [FREE],
    ("conflicts", "ingress: no address + every pod"): [FREE],
    ("conflicts", "ingress: no pod + every address"): [FREE],
    ("conflicts", "ingress: no address"): [{"x/b <": ""}],
    ("conflicts", "ingress: no pod"): [{"x/b <": ""}],
    ("namespaces", "ingress: z by its name"): [base(into="z @ TCP/80")],
    ("namespaces", "egress: z by its name"): [base(out="z @ TCP/80")],
    ("example", "one named port, others come and go"): [X_ON_81] * 7,
    ("upstream", "nothing into x"): [X_CLOSED],
    ("upstream", "nothing into or out of x"): [{**X_CLOSED, "x/a >": "", "x/b >": "", "x/c >": ""}],
    ("upstream", "b and c of other namespaces"): [{"x/a <": "y/b y/c z/b z/c @ *"}],
    ("upstream", "stacked"): [{"x/a <": "y @ TCP/81"}, {"x/a <": "y @ TCP/81"}, {"x/a <": "y @ TCP/80 TCP/81"}],
    ("upstream", "all into x"): [FREE, FREE],
    ("upstream", "one named port"): [X_ON_81, X_ON_81],
    ("upstream", "changed from all to nothing"): [FREE, X_CLOSED],
    ("upstream", "namespace changes"): [{"x/a <": ""}, {"x/a <": "y @ *"}],
    ("upstream", "peer changes"): [{"x/a <": ""}, {"x/a <": "x/b @ *"}],
    ("upstream", "target changes"): [FREE, {"x/a <": ""}],
    ("upstream", "both directions in one policy"): [{"x/a <": "x/b @ *", "x/a >": "* @ TCP/80"}] * 2,
    ("upstream", "refused at the client"): [{"x/a >": "y/a @ *", "y/a <": "x/a @ *", "y/b <": "x/a @ *"}],
    ("upstream", "deleted"): [{**X_CLOSED, "x/a >": "", "x/b >": "", "x/c >": ""}, FREE],
}  # fmt: skip
for _way in ("ingress", "egress"):
    TABLES["peers", f"{_way}: no peer given"] = [one_way(_way, "* @ TCP/80")]
    for _name, _who in WHO.items():
        TABLES["peers", f"{_way}: {_name}"] = [one_way(_way, f"{_who} @ TCP/80")]
    for _first, _second in combinations(WHO, 2):
        _both = f"{WHO[_first]} {WHO[_second]} @ TCP/80"
        TABLES["peers", f"{_way}: {_first}, {_second}"] = [one_way(_way, _both)]
    _ends = {"ingress": "x/b x/c y/b y/c", "egress": "y/a y/b z/a z/b"}[_way]
    for _name, _opened in OPENS.items():
        TABLES["ports", f"{_way}: {_name}"] = [one_way(_way, f"{_ends} @ {_opened}")]


def passes(table: Table, source: str, destination: str, protocol: str, port: int) -> bool:
    if source == destination:
        return True
    traffic = ("*", protocol, f"{protocol}/{port}")
    return offered(table.get(f"{source} >", ALL), destination, traffic) and offered(
        table.get(f"{destination} <", ALL), source, traffic
    )


def offered(what: str, pod: str, traffic: tuple[str, ...]) -> bool:
    for line in what.split(";"):
        ends, _, open_to = line.partition("@")
        if {"*", pod, pod.partition("/")[0]} & set(ends.split()) and set(traffic) & set(open_to.split()):
            return True
    return False
