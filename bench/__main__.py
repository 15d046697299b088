"""`python -m bench [options]` compares; `python -m bench gate` holds the floors; `cni` times the plugin;
`capture` the cost of a capture.

What they measure: see the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from bench import capture, cni, compare, control_plane, gates, instructions, policy, publish, report
from bench.measures import MEASURES
from bench.variants import BY_NAME, choose
from fabric.lab.cli import plainly
from fabric.lab.plan import MODES, POD_KINDS

ROOT = Path(__file__).resolve().parent.parent


def console() -> Console:
    """The terminal, or wide plain lines when standard output is something else."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=160)


def listed(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    """A comma-separated list; empty when it was not given."""
    return [word.strip() for word in value.split(",") if word.strip()] if value else []


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="One round of short measurements in wire mode.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds; in each, kernel VXLAN and then every variant.  [3]")
@click.option("--modes", callback=listed, help=f"Comma-separated, of {', '.join(MODES)}.  [all]")
@click.option("--variants", callback=listed, help=f"Comma-separated, of {', '.join(BY_NAME)}.  [all]")
@click.option("--measures", callback=listed, help=f"Comma-separated, of {', '.join(MEASURES)}.  [all]")
@click.option("--seconds", type=click.FloatRange(0.2), help="Length of one measurement.  [1]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="One more copy.")
@click.option("--publish", "published", is_flag=True, help="Write docs/bench: results.json, table and plot.")
@click.pass_context
def main(
    context: click.Context,
    quick: bool,
    rounds: int | None,
    modes: list[str],
    variants: list[str],
    measures: list[str],
    seconds: float | None,
    json_file: Path | None,
    published: bool,
) -> None:
    """Compare the fabric with kernel VXLAN and other tunnels between the same pods, in one run."""
    if context.invoked_subcommand is None:
        run_comparison(quick, rounds, modes, variants, measures, seconds, json_file, published)


@plainly
def run_comparison(
    quick: bool,
    rounds: int | None,
    modes: list[str],
    variants: list[str],
    measures: list[str],
    seconds: float | None,
    json_file: Path | None,
    published: bool,
) -> None:
    """Check the options, run, show, write."""
    for given, known in ((modes, MODES), (measures, MEASURES)):
        if unknown := [name for name in given if name not in known]:
            raise click.UsageError(f"{unknown[0]} is none of {', '.join(known)}")
    try:
        chosen = choose(variants or list(BY_NAME))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    settings = compare.settings(quick, rounds, modes, chosen, measures, seconds)
    screen = console()
    results = compare.run(settings, screen)
    report.show(results, screen)
    paths = publish.write(results, ROOT / "out" / "bench", json_file)
    if published:
        paths += publish.publish(results, ROOT / "docs" / "bench")
    for path in paths:
        screen.print(f"written: {path}")


@main.command()
@click.option("--seconds", default=gates.SECONDS, show_default=True, help="Length of one measurement.")
@click.option("--pairs", default=gates.MAXIMUM, show_default=True, help="At most this many before a gate says no.")
@click.option("--only", default="", help='One group: hot, cni, lifecycle, a mode, a measure, or "wire tcp1".')
@plainly
def gate(seconds: float, pairs: int, only: str) -> None:
    """Hold the floors of the design; exit code 1 when one is missed."""
    screen = console()
    screen.print(report.GATE_HEAD)
    runner = gates.Runner(lambda result: screen.print(report.gate_line(result)), seconds, pairs)
    good = runner.run(only)
    screen.print(report.gate_summary(runner.results))
    if not good:
        sys.exit(1)


@main.command(name="control-plane")
@plainly
def count_control_plane() -> None:
    """Processor time of a daemon for one node that comes or goes, among 10, 100 and 1,000 nodes."""
    screen = console()
    screen.print("nodes   ms per change   ms per idle second")
    for size, change, idle in control_plane.run():
        screen.print(f"{size:5}   {change:13.1f}   {idle:18.1f}")


@main.command(name="policy")
@plainly
def compile_policy() -> None:
    """Compile time, memory and the cost of one change of policy, for 1,000 and 10,000 pods."""
    screen = console()
    screen.print(policy.HEAD)
    for row in policy.run():
        screen.print(policy.line(row))


@main.command(name="cni")
@click.option("--kinds", default="tun,bridge", show_default=True, callback=listed, help="Of tun, veth and bridge.")
@click.option("--pods", default=cni.PODS, show_default=True, type=click.IntRange(cni.AT_ONCE), help="Pods on the node.")
@click.option("--calls", default=cni.CALLS, show_default=True, type=click.IntRange(1), help="ADDs and DELs in turn.")
@plainly
def cni_latency(kinds: list[str], pods: int, calls: int) -> None:
    """How long ADD and DEL of the CNI plugin take; exit code 1 when a target is missed."""
    good = True
    console().print(cni.start())
    for kind in POD_KINDS:
        if kind in kinds and kind != "mixed":
            found = cni.run(kind, pods, calls)
            console().print("\n".join(cni.lines(found)))
            good = good and found.holds
    if not good:
        sys.exit(1)


@main.command(name="capture")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="Measurements without and with.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of one measurement.")
@plainly
def capture_impact(pairs: int, seconds: float) -> None:
    """What a running capture leaves of the throughput beside it: shares, medians of alternating pairs."""
    console().print("\n".join(capture.lines(capture.run(pairs, seconds))))


@main.command(name="instructions")
@click.argument("words", nargs=-1)
@plainly
def count_instructions(words: tuple[str, ...]) -> None:
    """Instructions per iteration of the hot functions whose name contains WORDS, counted by valgrind.

    Takes some seconds per function; unlike time, the count hardly depends on the machine's load.
    """
    for name, count in instructions.run(" ".join(words)):
        console().print(f"{name:42} {count:10,.1f}")


if __name__ == "__main__":
    main(prog_name="python -m bench")
