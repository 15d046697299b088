"""`python -m fabric.metrics.page`: docs/metrics.md out of the table of families. A test holds the file to this."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from fabric.metrics.bounded import MAX_LABEL, MAX_SERIES
from fabric.metrics.families import FAMILIES

HEAD = f"""# Metrics

Made by `python -m fabric.metrics.page > docs/metrics.md` out of `fabric/metrics/families.py`; do not edit.

`fabricd --metrics-port 9273` serves these at `http://127.0.0.1:9273/metrics` (`--metrics-ip` for another address), in
Prometheus' text format. Without the flag nothing is loaded. While the node does not forward yet, the answer is 503.
`docs/grafana/podfabric.json` is a dashboard of them.

A scrape reads what `fabricctl` reads; the data path does nothing for it. A page is at most one second old, however
often it is asked for, and a client that does not read it within five seconds is let go.

A metric has at most {MAX_SERIES:,} series. What is beyond becomes one series whose labels are all `other` where values
may be added up, and is left out elsewhere ("bounded" below says which); `podfabric_metrics_left_out` counts it. A
label's value is cut at {MAX_LABEL} characters. Besides these there are prometheus_client's `process_*`.
"""


def page() -> str:
    """The whole file."""
    lines = [HEAD]
    for group, families in groupby(FAMILIES, key=lambda family: family.group):
        lines += [f"## {group}", "", "| metric | kind | labels | bounded | says |", "| --- | --- | --- | --- | --- |"]
        for family in families:
            labels = ", ".join(f"`{label}`" for label in family.labels)
            how = "" if not family.labels else "added up" if family.adds else "left out"
            lines.append(f"| `{family.shown}` | {family.kind} | {labels} | {how} | {family.help} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page())
    else:
        sys.stdout.write(page())
