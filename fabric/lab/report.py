"""Tables and lines for people, made with rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fabric.lab import measure
from fabric.lab.lab import Lab
from fabric.lab.measure import Pings, RoundTrip, Tcp, Udp
from fabric.lab.path import Path

MATRIX_LIMIT = 8


def console() -> Console:
    """The terminal, or plain lines of a fixed width when standard output is something else."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=120)


def ping_line(pairs: Sequence[Pings]) -> str:
    """One sentence about all pairs."""
    good = sum(pair.ok for pair in pairs)
    best = sorted(pair.best for pair in pairs if pair.ok)
    middle = f", median round trip {best[len(best) // 2]:.0f} us" if best else ""
    return f"{good} of {len(pairs)} pod pairs answer ping{middle}"


def ping_matrix(pairs: Sequence[Pings]) -> RenderableType:
    """Best round trips in microseconds, source by target; only the silent pairs when there are many pods."""
    names = list(dict.fromkeys(pair.source for pair in pairs))
    if len(names) > MATRIX_LIMIT:
        silent = [f"{p.source} -> {p.target} ({p.address}) {p.error or 'no answer'}" for p in pairs if not p.ok]
        return Text("\n".join(silent[:20] + (["..."] if len(silent) > 20 else [])) or "every pair answered")
    cells: dict[tuple[str, str], str] = {}
    for pair in pairs:
        cell = f"{pair.best:.0f}" if pair.ok else "[bold red]lost[/]"
        before = cells.get((pair.source, pair.target))
        cells[pair.source, pair.target] = f"{before} / {cell}" if before else cell
    table = Table("us", *names, title="ping, best round trip in microseconds")
    for source in names:
        table.add_row(source, *(cells.get((source, target), "") for target in names))
    return table


def nodes_table(lab: Lab) -> Table:
    """What is where: nodes, subnets, daemons, pods."""
    table = Table("node", "kind", "underlay", "pod subnet", "daemon", "pods", title="lab")
    pids = lab.daemon_pids()
    for node in lab.nodes:
        pid = pids.get(node.name)
        memory = measure.resident(pid) if pid else 0
        daemon = "-" if pid is None else f"pid {pid}, {memory / 1e6:.0f} MB" if memory else "[bold red]not running[/]"
        pods = "\n".join(f"{pod.name} {' '.join(pod.ips)} ({pod.kind})" for pod in node.pods)
        subnets = "\n".join(filter(None, (node.subnet, node.subnet6)))
        table.add_row(node.name, node.kind, node.underlay_ip, subnets, daemon, pods)
    return table


def path_row(path: Path, one: Tcp, four: Tcp, udp: Udp, sparse: RoundTrip) -> tuple[str, ...]:
    """A line of the summary."""
    return (
        f"{path.label}\n{path.kind}",
        f"{one.gbps:.2f}",
        f"{four.gbps:.2f}",
        f"{udp.kpps:.0f}",
        f"{sparse.p50:.0f} / {sparse.p99:.0f}",
        f"{one.cpu_per_gb:.2f}",
    )


def summary(rows: Sequence[tuple[str, ...]], mode: str) -> Table:
    """The throughput part of the summary."""
    table = Table(title=f"pod to pod, underlay mode {mode}")
    table.add_column("path")
    for name in ("TCP 1 stream\nGb/s", "TCP 4 streams\nGb/s", "UDP 64 B\nkpps", "round trip\np50 / p99 us", "CPU s/GB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def memory_line(pids: Mapping[str, int]) -> str:
    """Resident memory of every daemon."""
    if not pids:
        return "no daemon: every node is a kernel node"
    return "resident memory: " + ", ".join(f"{n} {measure.resident(p) / 1e6:.1f} MB" for n, p in pids.items())


def packets(lines: Sequence[str]) -> Text:
    """Captured packets, outer header and inner packet told apart."""
    text = Text()
    for line in lines:
        outer = "VXLAN" in line
        text.append(("  " if outer else "      ") + line + "\n", style="cyan" if outer else "")
    return text
