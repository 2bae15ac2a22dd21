"""What the CLI draws, as pure functions: safe text, units, curves, the watched picture."""

from __future__ import annotations

import io
import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from server.cli import extending, plot
from server.cli.view import View, by_step, line, screen
from server.schemas.events import EventView
from server.schemas.metrics import MetricsAnswer
from server.schemas.progress import Progress
from tests.server import stub_daemon
from trainer.contract.extend import ExtendRequest, preview
from trainer.contract.schedule import initial_schedule
from trainer.contract.text import (
    clean,
    clean_lines,
    markdown,
    markdown_lines,
    markup,
    markup_lines,
    shorten,
    shown_path,
    to_json,
)

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n\u202egnp.exe\u2028\x00[red]x[/red] :smile:"


@given(st.text())
def test_f54_no_control_character_survives(text: str):
    cleaned = clean(text)
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
    assert not [c for c in cleaned if unicodedata.bidirectional(c) in BIDI_CONTROLS]
    kept = clean_lines(text)
    assert not [c for c in kept if unicodedata.category(c) == "Cc" and c not in "\n\t"]


BIDI_CONTROLS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def test_f54_escapes_are_visible_and_ordinary_text_is_untouched():
    assert clean("\x1b[31m\n\t") == "\\x1b[31m\\n\\t"
    assert clean("a\u180e\ufffab\U000e0041") == "a\\u180e\\ufffab\\U000e0041"
    assert clean("größe ≤ 3 × 10⁻⁴ 学習 🙂") == "größe ≤ 3 × 10⁻⁴ 学習 🙂"
    assert clean_lines("a\r\nb\rc\td") == "a\nb\\x0dc\td".replace("\\x0d", "\\r")


@given(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x, max_size=3)))
def test_f54_json_is_ascii_and_says_the_same(value: object):
    text = to_json(value)
    assert text.isascii()
    assert not any(ord(c) < 0x20 and c != "\n" for c in text)
    assert json.loads(text) == value


def test_shorten():
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abc", 4) == "abc"


def test_a_sparkline_rises_where_the_values_do():
    assert plot.sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == plot.BARS
    assert plot.sparkline([8, None, 1], 3) == "█ ▁"
    assert plot.sparkline([2.0] * 5, 3) == "▄▄▄"
    assert plot.sparkline([], 10) == ""
    assert plot.sparkline([None, None], 2) == "  "


@given(st.lists(st.none() | st.floats(), max_size=50), st.integers(0, 40))
def test_a_sparkline_fits(values: list[float | None], width: int):
    assert len(plot.sparkline(values, width)) == min(width, len(values))


@given(st.floats(-1, 2), st.integers(1, 60))
def test_a_bar_fits(fraction: float, width: int):
    assert len(plot.bar(fraction, width)) == width


def test_a_bar_is_full_only_at_the_end():
    assert plot.bar(1.0, 10) == "█" * 10
    assert plot.bar(0.5, 10) == "█" * 5 + "·" * 5
    assert plot.bar(0.0, 4) == "····"


def test_a_rising_curve_goes_from_bottom_left_to_top_right():
    rows = plot.draw([plot.Curve([(0, 0), (10, 1)])], width=10, height=5).rows
    inked = {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell.char != " "}
    assert (4, 0) in inked
    assert (0, 9) in inked
    assert (0, 0) not in inked
    assert (4, 9) not in inked


points = st.lists(
    st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), max_size=20, unique_by=lambda p: p[0]
)


@given(points, st.integers(8, 60), st.integers(3, 20))
def test_a_plot_is_as_large_as_asked(pairs: list[tuple[int, float]], width: int, height: int):
    curve = plot.Curve([(float(x), y) for x, y in sorted(pairs)])
    drawn = plot.draw([curve], width=width, height=height)
    assert len(drawn.rows) == height
    assert all(len(row) == width for row in drawn.rows)
    assert len(drawn.lines()) == height + 2
    assert all(len(text) <= width + drawn.margin + 2 for text in drawn.lines())


def test_nan_in_a_curve_is_left_out():
    drawn = plot.draw([plot.Curve([(0, 0.0), (1, float("nan")), (2, 1.0)])], width=8, height=4)
    assert any(cell.char != " " for row in drawn.rows for cell in row)


# --- the extend's picture: the reference run, 130,000 -> 200,000 ---------------------------------


def reference(shape: str = "linear", **ask: object):
    before = initial_schedule(130_000, 40, 0.65, shape, 0.05)  # type: ignore[arg-type]
    return preview(
        ExtendRequest.model_validate({"to_step": 200_000, **ask}),
        [before],
        joint_step=130_000,
        reached_step=130_000,
        end_step=200_000,
        batch_tokens=65_536,
        flops_per_token=887e6,
        warmup_steps=40,
        warmdown_ratio=0.65,
        peak_weight_decay=0.1,
    )


def test_the_extend_is_described_with_both_sides_of_the_joint():
    said = dict(extending.describe(reference(schedule={"rewarm_steps": 0})))
    assert said["steps"] == "130,000 to 200,000 (70,000)"
    assert said["tokens"].startswith("4,587,520,000")
    assert said["learning rate"] == "0.05 -> 0.5615 of its peak (× 11.2)"
    assert said["weight decay"] == "0 -> 0.0273"
    assert said["momentum"].startswith("0.9 -> 0.937")
    assert "70,000" in said["mode"]


def test_the_cosine_extend_too():
    said = dict(extending.describe(reference("cosine", schedule={"rewarm_steps": 0})))
    assert said["learning rate"] == "0.05 -> 0.5823 of its peak (× 11.6)"


def test_the_extend_plot_marks_the_joint_and_labels_the_steps():
    drawn = extending.draw(reference(), width=72, height=14)
    column = next(c for c, cell in enumerate(drawn.rows[1]) if cell.char == "┊")
    assert column == int(0.65 * 71)
    ticks = drawn.lines()[-1]
    assert all(step in ticks for step in ("70,000", "130,000", "200,000"))
    before = {c for row in drawn.rows for c, cell in enumerate(row) if cell.style == "cyan"}
    after = {c for row in drawn.rows for c, cell in enumerate(row) if "green" in cell.style}
    assert max(before) <= column <= min(after) + 1


# --- the watched picture -------------------------------------------------------------------------


def picture(view: View, width: int = 90, height: int = 24) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, markup=False, emoji=False)
    console.print(screen(view, width, height, now=10.0))
    return file.getvalue().splitlines()


def a_view(**fields: object) -> View:
    return View(Progress.model_validate(stub_daemon.progress(**fields)))  # type: ignore[arg-type]


def test_the_screen_fills_its_size_and_says_what_matters():
    view = a_view()
    for n in range(100):
        view.events.append(EventView.model_validate(stub_daemon.event(n, f"event {n}")))
    lines = picture(view)
    assert len(lines) == 24
    assert all(len(text) == 90 for text in lines)
    text = "\n".join(lines)
    for said in ("demo", "running", "attempt 1", "step 50 of 200", "25.0 %", "3.5000", "event 99"):
        assert said in text
    assert "event 10 " not in text


@pytest.mark.parametrize(("width", "height"), [(20, 6), (40, 12), (200, 60), (10, 3)])
def test_the_screen_bears_any_size(width: int, height: int):
    assert picture(a_view(), width, height)


def test_f54_nothing_in_the_picture_is_obeyed():
    view = a_view(name=HOSTILE, phase=HOSTILE, stage="evaluating", stage_detail=HOSTILE,
                  reason_message=HOSTILE, advice=HOSTILE, eta_source=HOSTILE)  # fmt: skip
    view.events.append(EventView.model_validate(stub_daemon.event(1, HOSTILE, run=HOSTILE)))
    text = "\n".join(picture(view, 160))
    assert not any(ord(c) < 0x20 and c != "\n" for c in text)
    assert "\x9b" not in text
    assert "\u202e" not in text
    assert "[red]x[/red] :smile:" in text
    assert "\x1b" not in line(view.progress)


def test_progress_of_an_earlier_step_cuts_the_curve_back():
    view = a_view(step=10)
    for step in range(11, 60):
        view.take(Progress.model_validate(stub_daemon.progress(step=step, loss=float(step))))
    view.take(Progress.model_validate(stub_daemon.progress(step=30, loss=1.0)))
    assert view.losses[-1][0] == 30
    assert [step for step, _ in view.losses] == sorted({step for step, _ in view.losses})


def test_history_is_taken_from_the_metrics():
    series = {"key": "loss", "points": [[1, 0.0, 5.0, 5.0, 5.0], [2, 0.0, None, None, None]]}
    answer = {"series": [series], "bin_steps": 1, "raw_points": 2, "segments": []}
    view = a_view()
    view.take_history(MetricsAnswer.model_validate(answer))
    assert list(view.losses) == [(1, 5.0)]


def test_losses_are_binned_by_step_not_by_count():
    dense_then_sparse = [(step, 1.0) for step in range(100)] + [(199, 3.0)]
    assert by_step(dense_then_sparse, 4) == [1.0, 1.0, None, 3.0]
    assert by_step([], 10) == []


def test_a_line_says_what_it_is_doing_when_it_does_not_step():
    running = Progress.model_validate(stub_daemon.progress())
    assert line(running) == ("step 50/200  25.0 %  loss 3.6000  12,345 tok/s  ETA 1 min 30 s")
    evaluating = Progress.model_validate(
        stub_daemon.progress(stage="evaluating", stage_fraction=0.4, stage_detail="hellaswag")
    )
    assert line(evaluating).endswith("[evaluating 40 %: hellaswag]")
    queued = Progress.model_validate(stub_daemon.progress("queued", reason_message="Waiting."))
    assert line(queued) == "queued: Waiting."


def test_f54_paths_and_documents_escape_by_the_same_module():
    assert shown_path("a\nb\x1b[2J\u202e.txt") == "a\\nb\\x1b[2J\\u202e.txt"
    assert shown_path(os.fsdecode(b"caf\xe9.txt")) == "caf\\xe9.txt"
    assert shown_path("x" * 400) == "…" + "x" * 299
    assert markup('<b title="\u202e\x07">&') == "&lt;b title=&quot;  &quot;&gt;&amp;"
    assert markup_lines("a\n\t<b>\x1b\u202e") == "a\n\t&lt;b&gt;"
    assert markdown("a\n# `b` | *c* \u202e") == "a \\# \\`b\\` \\| \\*c\\*"
    assert markdown_lines("```\nx\x07") == ["````", "```", "x", "````"]


@given(st.text())
def test_f54_no_document_holds_a_character_that_hides_or_turns_text(text: str):
    for escaped in (markup(text), markup_lines(text), markdown(text), *markdown_lines(text)):
        assert all(c.isprintable() or c in "\n\t" for c in escaped)
    path = shown_path(text.encode("utf-8", "replace").decode())
    assert not [c for c in path if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
