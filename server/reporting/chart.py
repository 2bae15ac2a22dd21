"""A line over steps with the band between lowest and highest, as inline SVG."""

from __future__ import annotations

from html import escape

from server.reporting.document import Chart

WIDTH, HEIGHT = 720, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 22


def svg(chart: Chart) -> str:
    """Its axis leaves out the highest hundredth, so that a spike does not flatten the curve."""
    points = chart.points
    low = min(p[2] for p in points)
    tops = sorted(p[3] for p in points)
    high = tops[min(len(tops) - 1, int(len(tops) * 0.99))]
    high = high if high > low else low + 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(step: int) -> str:
        return f"{LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    mean = " ".join(f"{x(s)},{y(m)}" for s, m, _, _ in points)
    over = [f"{x(s)},{y(h)}" for s, _, _, h in points]
    under = [f"{x(s)},{y(lo)}" for s, _, lo, _ in reversed(points)]
    middle = (low + high) / 2
    marks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v)}" y2="{y(v)}"/>'
        f'<text x="{LEFT - 6}" y="{y(v)}" dy="4" text-anchor="end">{v:.4g}</text>'
        for v in (low, middle, high)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f'{marks}<polygon class="band" points="{" ".join(over + under)}"/>'
        f'<polyline class="mean" points="{mean}"/>'
        f'<text x="{LEFT}" y="{HEIGHT - 5}">step {first:,}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{last:,}</text></svg>'
    )
