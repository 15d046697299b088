"""A plot without a plotting library: per mode and variant, throughput as a ratio to kernel VXLAN, as one SVG."""

from __future__ import annotations

from html import escape

from bench.compare import Results
from bench.stats import Spread, ratios, spread
from bench.variants import KERNEL

BARS = (
    ("tcp1_gbps", "TCP, 1 stream", "#1f6f8b"),
    ("tcp4_gbps", "TCP, 4 streams", "#99c1de"),
    ("udp64_kpps", "UDP 64 B", "#e07a5f"),
)
LEFT, RIGHT, WIDTH, ROW, BAR, HEAD = 250, 60, 900, 46, 12, 62
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:11px;fill:#57606a}"
    ".title{font-size:15px;font-weight:600}"
)


def collect(results: Results, mode: str) -> list[tuple[str, list[tuple[str, Spread]]]]:
    """Label and (colour, ratio) of each variant of a mode that has at least one ratio to kernel VXLAN."""
    found = []
    for variant in results.settings.variants:
        if variant.name == KERNEL.name or variant.same_node:
            continue
        bars = []
        for figure, _, colour in BARS:
            ratio = spread(ratios(results.modes[mode], variant.name, KERNEL.name, figure))
            if ratio:
                bars.append((colour, ratio))
        if bars:
            found.append((variant.label, bars))
    return found


def svg(results: Results) -> str:
    """The whole picture: one panel per mode, bars with their range, a line at kernel VXLAN."""
    panels = {mode: collect(results, mode) for mode in results.modes}
    largest = max((bar.high for rows in panels.values() for _, bars in rows for _, bar in bars), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / max(1.2, largest)
    body: list[str] = []
    top = 0
    for mode, rows in panels.items():
        body += panel(mode, rows, top, scale, max(1.2, largest))
        top += HEAD + ROW * len(rows) + 24
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img"'
    title = "<title>Throughput as a ratio to kernel VXLAN in the same run</title>"
    return (
        f'<svg {box}>{title}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def panel(
    mode: str, rows: list[tuple[str, list[tuple[str, Spread]]]], top: int, scale: float, largest: float
) -> list[str]:
    """One mode: heading with legend, grid, bars."""
    bottom = top + HEAD + ROW * len(rows)
    out = [f'<text class="title" x="16" y="{top + 26}">{mode}: ratio to kernel VXLAN</text>']
    for i, (_, label, colour) in enumerate(BARS):
        x = LEFT + 130 * i
        out.append(f'<rect x="{x}" y="{top + 36}" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text class="small" x="{x + 18}" y="{top + 46}">{label}</text>')
    for step in range(int(largest / 0.5) + 1):
        at = LEFT + step * 0.5 * scale
        line = 'stroke="#24292f" stroke-width="1.5"' if step == 2 else 'stroke="#d0d7de"'
        out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top + HEAD - 8}" y2="{bottom}" {line}/>')
        out.append(f'<text class="small" x="{at:.1f}" y="{bottom + 12}" text-anchor="middle">{step * 0.5:g}</text>')
    for i, (label, bars) in enumerate(rows):
        y = top + HEAD + ROW * i
        out.append(f'<text x="{LEFT - 10}" y="{y + ROW / 2:.0f}" text-anchor="end">{escape(label)}</text>')
        for k, (colour, ratio) in enumerate(bars):
            out += bar(y + 3 + k * (BAR + 1), colour, ratio, scale)
    return out


def bar(y: int, colour: str, ratio: Spread, scale: float) -> list[str]:
    """A bar to the median, a thin line over the range, the number behind it."""
    middle = y + BAR / 2
    low, high = LEFT + ratio.low * scale, LEFT + ratio.high * scale
    end = max(high, LEFT + ratio.median * scale) + 5
    return [
        f'<rect x="{LEFT}" y="{y}" width="{ratio.median * scale:.1f}" height="{BAR}" fill="{colour}"/>',
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#24292f"/>',
        f'<text class="small" x="{end:.1f}" y="{y + BAR - 2}">{ratio.median:.2f}</text>',
    ]
