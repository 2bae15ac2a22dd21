"""Line chart with a min-max band, as inline SVG."""

from __future__ import annotations

from server.reporting.document import Chart
from server.reporting.frame import Frame
from trainer.contract import text


def svg(chart: Chart) -> str:
    """SVG of a chart; the axis excludes the highest hundredth, so that spikes do not flatten it."""
    points = chart.points
    low = min(p[2] for p in points)
    tops = sorted(p[3] for p in points)
    high = tops[min(len(tops) - 1, int(len(tops) * 0.99))]
    frame = Frame(points[0][0], points[-1][0], low, high if high > low else low + 1.0)
    over = [(step, highest) for step, _, _, highest in points]
    under = [(step, lowest) for step, _, lowest, _ in reversed(points)]
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{text.markup(chart.title)}">{frame.grid()}'
        f'<polygon class="band" points="{frame.points(over + under)}"/>'
        f'<polyline class="mean" points="{frame.points((p[0], p[1]) for p in points)}"/>'
        f"{frame.steps()}</svg>"
    )
