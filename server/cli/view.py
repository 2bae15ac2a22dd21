"""The screen of `traind watch`: its state and layout. No I/O.

`View` collects progress and events; `screen` draws it for a terminal, `line` for a pipe.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.cli import output, plot
from server.cli.listing import event_line
from trainer.contract import units
from trainer.contract.metric_text import named, shown
from trainer.contract.metrics import BY_KEY, EVALUATED_KEYS
from trainer.contract.text import clean, shorten

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from server.schemas.events import EventView
    from server.schemas.metrics import MetricsAnswer
    from server.schemas.progress import Progress

KEPT_EVENTS = 200
KEPT_LOSSES = 4096
LONG_STAGE_SECONDS = 60.0  # a shorter one is over before its duration is read


@dataclass
class View:
    """State of the screen: a run's progress, curve and events. losses: (step, loss), ascending."""

    progress: Progress
    events: deque[EventView] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT_LOSSES))
    connected: bool = True

    def take(self, progress: Progress) -> None:
        if self.losses and progress.step < self.losses[-1][0]:  # another attempt began earlier
            kept = [pair for pair in self.losses if pair[0] <= progress.step]
            self.losses.clear()
            self.losses.extend(kept)
        if progress.loss is not None and (not self.losses or progress.step > self.losses[-1][0]):
            self.losses.append((progress.step, progress.loss))
        self.progress = progress

    def take_history(self, answer: MetricsAnswer) -> None:
        for series in answer.series:
            if series.key == "loss":
                self.losses.clear()
                self.losses.extend((p[0], p[2]) for p in series.points if p[2] is not None)


def line(progress: Progress) -> str:
    """Progress on one line: 'step 120/200  60.0 %  loss 3.2141  12,345 tok/s  ETA 1 min 12 s'."""
    if progress.state not in ("running", "pausing", "completed"):
        return clean(f"{progress.state}: {progress.reason_message}{_stage(progress)}")
    return clean(
        f"step {progress.step:,}/{progress.end_step:,}  {units.progress(progress.fraction)}  "
        f"{named('loss', progress.loss_smooth or progress.loss)}  "
        f"{shown('tokens_per_second', progress.tokens_per_second)}  "
        f"ETA {units.duration(progress.eta_seconds)}"
        f"{_stage(progress)}{_condition(progress)}"
    )


def bar_line(progress: Progress, width: int = 100) -> Text:
    """The progress line after a progress bar."""
    text = output.styled(plot.bar(progress.fraction, max(10, width - 78)), "green")
    return text.append(shorten(f" {line(progress)}", 77), style="default")


def screen(view: View, width: int, height: int, now: float | None = None) -> RenderableType:
    """Draw the full screen of `view` in `width` x `height` cells."""
    from rich.console import Group
    from rich.panel import Panel

    now = time.time() if now is None else now
    inner = max(20, width - 4)
    rows = [*_head(view.progress, inner, now), output.styled("")]
    rows += [_loss(view, inner), output.styled(""), *_facts(view.progress, now)]
    room = max(1, height - len(rows) - 5)
    rows += [output.styled(""), *(event_line(e) for e in list(view.events)[-room:])]
    for row in rows:
        row.truncate(inner, overflow="ellipsis")
    hint = (
        "Ctrl-C stops watching, not the run"
        if view.connected
        else "the daemon does not answer; waiting for it"
    )
    return Panel(
        Group(*rows),
        title=_title(view.progress),
        title_align="left",
        subtitle=output.styled(hint, "dim" if view.connected else "bold yellow"),
        subtitle_align="right",
        height=height,
    )


def by_step(losses: list[tuple[int, float]], width: int) -> list[float | None]:
    """Means in `width` bins of equal steps, so that history and live points have the same
    weight."""
    if not losses:
        return []
    low, high = losses[0][0], losses[-1][0]
    bins: list[list[float]] = [[] for _ in range(min(width, high - low + 1))]
    for step, loss in losses:
        bins[min(len(bins) - 1, (step - low) * len(bins) // max(1, high - low + 1))].append(loss)
    return [sum(part) / len(part) if part else None for part in bins]


def _title(progress: Progress) -> Text:
    title = output.styled(f" {clean(progress.name)} ", "bold").append_text(
        output.state(progress.state, progress.condition)
    )
    parts = []
    if progress.phase:
        parts.append(f"phase {clean(progress.phase)}")
    if progress.attempt:
        parts.append(f"attempt {progress.attempt}")
    return title.append("".join(f" · {part}" for part in parts) + " ", style="dim")


def _head(progress: Progress, width: int, now: float) -> list[Text]:
    done = f" {units.progress(progress.fraction)}"
    bar = output.styled(plot.bar(progress.fraction, max(10, width - len(done))), "green")
    finish = f" ({units.when(progress.finish_at)})" if progress.finish_at else ""
    steps = output.styled(f"step {progress.step:,} of {progress.end_step:,}", "bold")
    steps.append(f"   {units.count(progress.tokens_seen)} tokens", style="default")
    steps.append(f"   ETA {units.duration(progress.eta_seconds)}{finish}", style="default")
    if progress.energy_left_joules is not None:
        cost = "" if progress.cost_left is None else f", cost {units.cost(progress.cost_left)}"
        steps.append(f"   {units.energy(progress.energy_left_joules)}{cost}", style="default")
    if progress.eta_source:
        steps.append(f"   {clean(progress.eta_source)}", style="dim")
    rows = [bar.append(done, style="bold"), steps]
    if progress.state != "running" or _stage(progress):
        rows.append(output.styled(clean(progress.reason_message) + _stage(progress), "yellow"))
    if progress.advice and progress.state in ("failed", "paused", "recovering"):
        rows.append(output.styled(clean(progress.advice), "yellow"))
    return rows


def _loss(view: View, width: int) -> Text:
    progress = view.progress
    label = f"{_cells(progress, _LOSSES)}  "
    curve = plot.sparkline(by_step(list(view.losses), max(8, width - len(label))), width)
    return output.styled(label, "bold").append(curve, style="cyan")


def _facts(progress: Progress, now: float) -> list[Text]:
    peak = progress.peak_flops
    of_peak = f" of {units.flops(peak.value)}/s ({clean(peak.source)})" if peak else ""
    saved = progress.last_checkpoint
    rows = [
        ("speed", _cells(progress, _SPEED)),
        (BY_KEY["mfu"].name, f"{shown('mfu', progress.mfu)} "
                             f"({shown('mfu', progress.mfu_causal)} causal){of_peak}"),
        ("schedule", _cells(progress, _SCHEDULE)),
        ("device", _device(progress)),
        ("quality", _cells(progress, EVALUATED_KEYS)
                    + f"   resume {progress.exact_resume or units.DASH}"),
        *([("more", _cells(progress, others))] if (others := _others()) else []),
        ("checkpoint", f"step {saved.step:,}, {units.num_bytes(saved.bytes)}, "
                       f"{units.ago(saved.created_at, now)}" if saved else "none yet"),
        ("last step", units.ago(progress.last_step_at, now)),
    ]  # fmt: skip
    return [
        output.styled(f"{name:<12}", "dim").append(text, style="default") for name, text in rows
    ]


# The metrics of each row; those that no row names have one of their own.
_LOSSES = ("loss", "loss_smooth")
_SPEED = ("tokens_per_second", "step_seconds")
_SCHEDULE = ("lr_multiplier", "momentum", "weight_decay", "grad_norm")
_MEMORY = "vram_reserved_bytes"
_READINGS = ("power_watts", "temperature_celsius")


def _others() -> list[str]:
    placed = {*_LOSSES, *_SPEED, "mfu", *_SCHEDULE, _MEMORY, *_READINGS, *EVALUATED_KEYS}
    return [key for key in BY_KEY if key not in placed]


def _cells(progress: Progress, keys: Iterable[str]) -> str:
    """'LR × peak 0.3536   momentum 0.9500'"""
    return "   ".join(named(key, progress.metric(key)) for key in keys)


def _device(progress: Progress) -> str:
    vram = progress.vram_bytes
    parts = []
    if vram.reserved is not None:
        total = f" of {units.num_bytes(vram.total)}" if vram.total else ""
        parts.append(f"{named(_MEMORY, vram.reserved)}{total}")
    if vram.peak is not None:
        parts.append(f"peak {units.num_bytes(vram.peak)}")
    parts += [named(k, progress.metric(k)) for k in _READINGS if progress.metric(k) is not None]
    if progress.energy_joules:
        parts.append(units.energy(progress.energy_joules))
    return "   ".join(parts) or units.DASH


def _condition(progress: Progress) -> str:
    return f"  [{progress.condition.message}]" if progress.condition else ""


def _stage(progress: Progress) -> str:
    """The stage, like '  [evaluating 40 %: hellaswag]', while the run does not train; of a longer
    one how long it lasts."""
    if not progress.stage or progress.stage == "training":
        return ""
    share = "" if progress.stage_fraction is None else f" {units.percent(progress.stage_fraction)}"
    detail = f": {progress.stage_detail}" if progress.stage_detail else ""
    lasts = time.time() - (progress.stage_since or time.time())
    since = f" for {units.duration(lasts)}" if lasts >= LONG_STAGE_SECONDS else ""
    return clean(f"  [{progress.stage}{share}{since}{detail}]")
