"""docs/reference.md against the code, both ways: nothing is missing there, and nothing is there that does not exist."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from encap.drops import TEXTS
from fabric.daemon import report
from fabric.daemon.pods import Pods
from fabric.flags import FLAGS, OFFLOADS
from fabric.forward.dataplane import Dataplane
from fabric.forward.worker import Worker
from fabric.model import DataplaneSettings
from fabric.traffic.manager import TrafficManager
from routes.watch import KernelReconciler
from tun.netns import identify

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
DROP = "drop_"
CELLS = re.compile(r"(?<!\\)\|")


def section(title: str) -> str:
    """The text under `## title`, up to the next heading of that level."""
    parts = re.split(r"^## (.+)$", REFERENCE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def rows(title: str) -> dict[str, list[str]]:
    """Cells after the first of each table row whose first cell is one code word, by that word."""
    found: dict[str, list[str]] = {}
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in CELLS.split(line.strip().strip("|"))]
        if line.startswith("|") and re.fullmatch(r"`[^`]+`", cells[0]):
            name = cells[0].strip("`")
            assert name not in found, f"{name} has two rows"
            found[name] = cells[1:]
    return found


def counters_of_the_code() -> set[str]:
    """What `fabricctl counters --all` prints, without a daemon."""
    settings = DataplaneSettings(
        vni=1, ports={"vxlan": 8472, "udp": 8285}, encapsulation="vxlan", underlay=(IPv4Address("192.0.2.1"),),
        device="flannel.1", mtu=1450, workers=1, offload={}, reserved_bits="strict", txqueuelen=1000,
    )  # fmt: skip
    reconciler = KernelReconciler()
    worker = Worker(0, [], [], [])
    counters = {**Dataplane(settings).counters(), **worker.counters()}
    traffic = TrafficManager()
    node = SimpleNamespace(
        cluster=SimpleNamespace(table=SimpleNamespace(malformed=0)),
        forwarding=SimpleNamespace(
            keeper=SimpleNamespace(counters=lambda: reconciler.counters),
            dataplane=SimpleNamespace(counters=lambda: counters),
        ),
        firewall=SimpleNamespace(traffic=traffic),
        pods=Pods(Path(), lambda: cast(Any, None), identify, time),
    )
    reconciler.close()
    traffic.close()
    return set(report.counters(cast(Any, node)))


def test_every_flag_with_its_default() -> None:
    def shown(default: object) -> str:
        if isinstance(default, bool):
            return f"`{str(default).lower()}`"
        return "-" if default in ("", ()) else f"`{default}`"

    assert {name: cells[0] for name, cells in rows("Flags").items()} == {
        f"--{flag.name}": shown(flag.default) for flag in FLAGS
    }


@pytest.mark.parametrize("name", OFFLOADS)
def test_every_offload_is_named(name: str) -> None:
    assert f"`{name}`" in section("Flags")


def test_flags_named_anywhere_exist() -> None:
    words = (
        "--json --all --help --version --run-dir --dry-run --pod --proto --limit --interval --once --inner "
        "--outer --drop-reason --verdict --on --duration --snaplen --install --directory --from --to --port"
            " --packet --sport --flags --ttl --may-cut --cpu"
    )
    theirs = set(words.split())
    lab = {"--nodes", "--pods", "--mode", "--peer", "--pod-kind", "--ipv6", "--count", "--size", "--df", "--rounds",
           "--seconds"}  # fmt: skip
    install = {"--back", "--root", "--prefix", "--vendor", "--python", "--force", "--purge", "--kind", "--no-service"}
    known = {f"--{flag.name}" for flag in FLAGS} | theirs | lab | install | {"--name"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", REFERENCE.read_text())) <= known


def test_drop_reasons_with_their_texts() -> None:
    assert {name: cells[0] for name, cells in rows("Drop reasons").items()} == {
        DROP + name.lower(): text for name, text in TEXTS.items()
    }


def test_counters() -> None:
    assert set(rows("Counters")) == {name for name in counters_of_the_code() if not name.startswith(DROP)}


def test_readme_counts_the_drop_reasons() -> None:
    assert f"one of {len(TEXTS)} reasons" in (ROOT / "README.md").read_text()


def test_every_drop_reason_is_a_counter() -> None:
    assert {name for name in counters_of_the_code() if name.startswith(DROP)} == set(rows("Drop reasons"))


def test_control_methods() -> None:
    assert set(rows("Control socket")) == set(report.methods(cast(Any, None)))


def test_environment() -> None:
    read = set()
    for path in (ROOT / "fabric").rglob("*.py"):
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", path.read_text()))
    assert set(rows("Environment")) == read


PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "bench"),
]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in link or "bench/" in target:
            continue  # elsewhere, or made by a benchmark run
        goal = (page.parent / target).resolve() if target else page
        assert goal.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(goal), f"{link}: no such heading"
