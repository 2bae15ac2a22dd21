"""Renders the preview of an extend as one self-contained SVG file."""

from __future__ import annotations

from server.reporting.frame import Frame
from trainer.contract import text, units
from trainer.contract.extend import CurvePoint, ExtendPreview

WIDTH, HEIGHT, TOP = 720, 340, 104
NOTHING = "Nothing would change: this extend is planned already."
# Plain colours, not custom properties: what turns an SVG into a PNG seldom knows those.
STYLE = """
svg{color-scheme:light dark}
.paper{fill:#fff}text{fill:#59636e;font:11px system-ui,sans-serif}
.name{fill:#1b1f24;font-size:15px;font-weight:600}.grid{stroke:#d7dce1}
.present{fill:none;stroke:#59636e;stroke-width:2;stroke-dasharray:5 3}
.new{fill:none;stroke:#0b6bcb;stroke-width:2.5}
line.warmdown{stroke:#59636e;stroke-dasharray:2 3}line.joint{stroke:#b35900}
text.joint,circle{fill:#b35900}
@media(prefers-color-scheme:dark){.paper{fill:#14181c}text{fill:#9aa4ae}.name{fill:#e6e9ec}
.grid{stroke:#343b43}.present,line.warmdown{stroke:#9aa4ae}.new{stroke:#6cb2ff}
line.joint{stroke:#ffb366}text.joint,circle{fill:#ffb366}}
""".strip()


def svg(run_name: str, shown: ExtendPreview | None) -> str:
    """The LR multiplier over steps: as planned so far and as it would continue from the joint.

    shown: None for an extend that changes nothing.
    """
    title = f"{run_name}: learning rate"
    if shown is None:
        return _file(title, NOTHING, _text(16, 48, NOTHING), height=64)
    frame = _frame(shown)
    size = f"steps {shown.start_step:,} to {shown.end_step:,}"
    schedule = f"{shown.schedule.mode}, {shown.schedule.shape}"
    drawn = [
        _text(16, 44, f"as a multiple of the planned peak; {schedule}, {size}"),
        _legend(),
        frame.grid(),
        _line("present", frame, shown.present_curve),
        _line("new", frame, shown.curve),
        *_marks(frame, shown),
        frame.steps(),
    ]
    return _file(title, describe(shown), "".join(drawn), height=HEIGHT)


def describe(shown: ExtendPreview) -> str:
    """Text alternative of the picture."""
    before, after = shown.joint.lr_multiplier
    sentences = [
        f"A new phase ({shown.schedule.mode}, {shown.schedule.shape}) from step "
        f"{shown.start_step:,} to {shown.end_step:,}.",
        f"At the joint the learning rate goes from {units.significant(before)} to "
        f"{units.significant(after)} of its peak.",
        f"It ends at {units.significant(shown.curve[-1].lr_multiplier)} of its peak.",
        f"The warmdown starts at step {shown.warmdown_start:,}."
        if _has_warmdown(shown)
        else "There is no warmdown.",
        *(f"Warning: {warning}." for warning in shown.warnings),
    ]
    return " ".join(sentences)


def _file(title: str, description: str, drawn: str, *, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" '
        'aria-labelledby="preview-title preview-desc">\n'
        f'<title id="preview-title">{_xml(title)}</title>\n'
        f'<desc id="preview-desc">{_xml(description)}</desc>\n'
        f"<style>\n{STYLE}\n</style>\n"
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
        f'<text class="name" x="16" y="24">{_xml(title)}</text>{drawn}\n</svg>\n'
    )


def _frame(shown: ExtendPreview) -> Frame:
    """Around both curves, from zero."""
    points = [*shown.present_curve, *shown.curve]
    steps = [point.step for point in points]
    high = max(point.lr_multiplier for point in points)
    return Frame(
        min(steps), max(steps), 0.0, high if high > 0 else 1.0,
        width=WIDTH, height=HEIGHT, top=TOP, right=16,
    )  # fmt: skip


def _legend() -> str:
    return (
        '<line class="present" x1="16" x2="44" y1="60" y2="60"/>' + _text(50, 64, "so far")
        + '<line class="new" x1="104" x2="132" y1="60" y2="60"/>' + _text(138, 64, "new phase")
    )  # fmt: skip


def _line(style: str, frame: Frame, points: list[CurvePoint]) -> str:
    pairs = ((point.step, point.lr_multiplier) for point in points)
    return f'<polyline class="{style}" points="{frame.points(pairs)}"/>'


def _marks(frame: Frame, shown: ExtendPreview) -> list[str]:
    """The joint with both its values; the warmdown's start, also if it is before the joint."""
    step, (before, after) = shown.joint.step, shown.joint.lr_multiplier
    words = f"joint at step {step:,}: {units.significant(before)} to {units.significant(after)}"
    marks = [_mark(frame, "joint", step, TOP - 22, words)]
    marks += [
        f'<circle cx="{frame.x(step)}" cy="{frame.y(value)}" r="3.5"/>' for value in (before, after)
    ]
    if _has_warmdown(shown):
        start = shown.warmdown_start
        marks.append(_mark(frame, "warmdown", start, TOP - 8, f"warmdown from step {start:,}"))
    return marks


def _mark(frame: Frame, style: str, step: int, y: int, words: str) -> str:
    """A line, and its words above on the side that has more room, where no line crosses them."""
    x = float(frame.x(step))
    side, anchor = (4, "start") if x < frame.width / 2 else (-4, "end")
    return (
        f'<line class="{style}" x1="{x}" x2="{x}" y1="{TOP - 4}" y2="{HEIGHT - frame.bottom}"/>'
        f'<text class="{style}" x="{x + side:.1f}" y="{y}" text-anchor="{anchor}">'
        f"{_xml(words)}</text>"
    )


def _has_warmdown(shown: ExtendPreview) -> bool:
    return shown.warmdown_start < shown.end_step


def _text(x: int, y: int, words: str) -> str:
    return f'<text x="{x}" y="{y}">{_xml(words)}</text>'


def _xml(words: str) -> str:
    """As XML text, which cannot contain control characters."""
    return text.markup(words)
