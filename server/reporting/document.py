"""The report as a format-independent document: sentences, tables, charts, quotes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from server.reporting import answer
from server.reporting.answer import Report
from trainer.contract import units
from trainer.contract.evaluations import BY_KIND, KIND_OF_METRIC
from trainer.contract.metric_text import shown
from trainer.contract.metrics import BY_KEY

DASH = units.DASH


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are numbers except text_columns."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Quote:
    caption: str
    text: str


@dataclass(frozen=True)
class Chart:
    """points: (step, mean, min, max) over bins of `bin_steps` steps; 1: the values themselves."""

    title: str
    points: list[tuple[int, float, float, float]]
    bin_steps: int = 1


@dataclass(frozen=True)
class Section:
    title: str
    parts: list[str | Table | Quote | Chart] = field(default_factory=list)


def document(report: Report) -> list[Section]:
    """The sections in reading order; empty ones are left out."""
    sections = [
        Section("Summary", list(_summary(report))),
        Section("Model", list(_model(report))),
        Section("Data", list(_data(report))),
        Section("Hardware", list(_hardware(report))),
        Section("Hyperparameters", list(_hyperparameters(report))),
        Section("Phases", list(_phases(report))),
        Section("Evaluations", list(_evaluations(report))),
        Section("Attempts and incidents", list(_attempts(report))),
        Section("Totals", list(_totals(report))),
        Section("Energy", list(_energy(report))),
        Section("Samples", [Quote(s.prompt, s.prompt + s.text) for s in report.samples]),
        Section("Timeline", list(_timeline(report))),
    ]
    return [section for section in sections if section.parts]


# --- sections ------------------------------------------------------------------------------------


def _summary(r: Report) -> Iterator[str | Chart]:
    s = r.standing
    yield (
        f"{r.parameters.total:,} parameters, {s.step:,} of {s.end_step:,} steps "
        f"({units.progress(s.fraction)}), {_tokens(r.totals.tokens)}. State: {s.state}. "
        f"{s.reason_message}"
    )
    if s.eta_seconds is not None:
        finish = f", at {units.utc(s.finish_at)}" if s.finish_at else ""
        yield f"About {units.duration(s.eta_seconds)} left{finish} (from {s.eta_source})."
    if r.exact_resume:
        yield f"Exact resume: {r.exact_resume}."
    yield from (f"Warning: {d.sentence}." for d in r.differences)
    labels = {e.identity: e.label for e in r.evaluations}
    keys = [curve.key for curve in r.curves]
    for curve in r.curves:
        points = [(p[0], p[2], p[3], p[4]) for p in curve.points if p[2] is not None]
        named = [
            (s, m, m if lo is None else lo, m if hi is None else hi) for s, m, lo, hi in points
        ]
        if len(named) > 1:
            title = BY_KEY[curve.key].title
            if keys.count(curve.key) > 1:
                title += f", measured as {labels.get(curve.identity or '', '?')}"
            evaluated = curve.key in KIND_OF_METRIC
            yield Chart(title, named, 1 if evaluated else r.curve_bin_steps)


def _data(r: Report) -> Iterator[str]:
    """Only if there is more than the spec: splits by name, skipped documents."""
    notes = r.data.get("notes") or []
    if notes:
        yield f"Source: {r.data['source']} {r.data.get('path') or r.data.get('name') or ''}".strip()
    yield from (f"{note[:1].upper()}{note[1:]}." for note in notes)


def _model(r: Report) -> Iterator[str | Table]:
    shape, p = r.shape, r.parameters
    yield (
        f"Depth {shape.n_layer}, width {shape.n_embd}, {shape.n_head} heads of {shape.head_dim} "
        f"({shape.n_kv_head} key/value), sequence {shape.sequence_len:,}, vocabulary "
        f"{shape.vocab_size:,}."
    )
    parts = ("wte", "value_embeds", "lm_head", "transformer", "scalars", "total")
    yield Table(["parameters", ""], [[name, f"{getattr(p, name):,}"] for name in parts])


def _hardware(r: Report) -> Iterator[str | Table]:
    h = r.hardware
    devices = ", ".join(f"{name} (attempts {_list(n)})" for name, n in h.devices.items())
    rows = [["device", devices or DASH], ["precision", h.precision]]
    rows += [[f"chosen: {key}", str(value)] for key, value in sorted(h.choices.items())]
    if h.vram_reserved_peak_bytes:
        rows.append(["peak device memory", units.num_bytes(h.vram_reserved_peak_bytes)])
    rows += [["mfu", shown("mfu", h.mfu)], ["mfu_causal", shown("mfu", h.mfu_causal)]]
    peak = h.peak_flops
    named = f"{units.flops(peak.value)}/s: {peak.source}" if peak else "unknown, so no MFU"
    rows.append(["peak it refers to", named])
    rows += [[key, value] for key, value in sorted(h.versions.items())]
    yield Table(["", ""], rows)


def _hyperparameters(r: Report) -> Iterator[str | Table]:
    h, b, s = r.hyperparameters, r.batch, r.schedule
    yield (
        f"Batch {b.tokens:,} tokens = {b.device_batch_size} × {b.sequence_len:,} × "
        f"{b.accumulation}; learning rates × {h.lr_factor:.4f}. Warm-up {s.warmup_steps:,} steps, "
        f"warmdown over {units.percent(s.warmdown_ratio)} ({s.warmdown_shape}) to "
        f"{s.final_lr_frac:g}."
    )
    names = (
        "matrix_lr", "embedding_lr", "value_embedding_lr", "unembedding_lr", "resid_lr", "x0_lr",
        "smear_lr", "weight_decay",
    )  # fmt: skip
    yield Table(
        ["as scaled", ""], [[name, units.significant(getattr(h, name), 6)] for name in names]
    )


def _phases(r: Report) -> Iterator[str | Table]:
    names = ["phase", *(p.name for p in r.phases)]
    yield Table(
        names, [[title, *(value_of(p) for p in r.phases)] for title, value_of in _PHASE_ROWS]
    )
    for p in r.phases:
        if p.joint:
            low, high = p.joint.lr_multiplier
            yield (
                f"{p.name} joined at step {p.joint.step:,}: learning rate "
                f"{units.significant(low)} to {units.significant(high)} of its peak, weight decay "
                f" {units.significant(p.joint.weight_decay[0])} to "
                f"{units.significant(p.joint.weight_decay[1])}; its warmdown starts at step "
                f"{p.warmdown_start:,}"
                + (f"; {p.discarded_steps:,} steps were superseded." if p.discarded_steps else ".")
            )


def _rules(settings: dict[str, Any]) -> str:
    """How val bpb was counted, where not as usual."""
    rules = []
    if settings.get("token_bytes") == "decoded":
        rules.append("byte lengths of before July 2026")
    if settings.get("streams", 1) > 1:
        rules.append(f"{settings['streams']} streams")
    return f" ({', '.join(rules)})" if rules else ""


def _evaluations(r: Report) -> Iterator[str | Table]:
    if not r.evaluations:
        return
    yield Table(
        ["step", "kind", "value", "settings", "attempt", "took"],
        [
            [f"{e.step:,}", BY_KIND[e.kind].label,
             BY_KIND[e.kind].text(e.value) + (" (best)" if e.best else ""),
             e.label, units.integer(e.attempt), units.duration(e.seconds)]
            for e in r.evaluations
        ],
    )  # fmt: skip
    labels = {(e.kind, e.label): e for e in r.evaluations}
    yield (
        "Settings: "
        + ", ".join(
            f"{BY_KIND[kind].label} {label} = {e.identity[:12]}{_rules(e.settings)}"
            for (kind, label), e in labels.items()
        )
        + ". Values under different settings are not comparable."
    )


def _attempts(r: Report) -> Iterator[str | Table]:
    yield Table(
        ["attempt", "phase", "steps", "began", "ended", "outcome", "repeated", "down before"],
        [_attempt_row(a) for a in r.attempts],
    )
    for v in r.verdicts:
        numbers = f": {v.expected!r} and {v.found!r}" if v.expected is not None else ""
        yield f"Attempt {v.attempt}, {v.what}: {v.verdict}{numbers}."
    for i in r.incidents:
        at = f" at step {i.step:,}" if i.step is not None else ""
        yield f"{units.utc(i.unix_seconds)}, {i.level}{at}: {i.message}"


def _attempt_row(a: answer.AttemptReport) -> list[str]:
    last = a.last_step + 1 if a.last_step is not None else None
    return [
        str(a.number), a.phase, f"{units.integer(a.start_step)} to {units.integer(last)}",
        units.utc(a.started_at), units.utc(a.ended_at), _outcome(a),
        units.integer(a.repeated_steps), units.duration(a.down_seconds),
    ]  # fmt: skip


def _outcome(a: answer.AttemptReport) -> str:
    return " ".join(filter(None, [a.outcome or DASH, _because(a)]))


def _because(a: answer.AttemptReport) -> str:
    return f"({a.reason.replace('_', ' ')})" if a.reason and a.outcome != "completed" else ""


def _totals(r: Report) -> Iterator[Table]:
    t = r.totals
    beyond = t.ratio / t.chinchilla_ratio
    yield Table(
        ["", ""],
        [
            ["steps", f"{t.steps:,}"],
            ["tokens", f"{t.tokens:,}"],
            ["training FLOPs", f"{units.significant(t.flops)} "
                               f"({t.flops_per_token:,.0f} per token)"],
            ["counting causal attention only", f"{t.flops_per_token_causal:,.0f} per token"],
            ["tokens : parameters", f"{t.ratio:.1f} : 1 (Chinchilla {t.chinchilla_ratio:.0f}; "
                                    f"{beyond:.2f} × that)"],
            ["processed, repeats included", f"{t.processed_steps:,} steps, "
                                            f"{t.processed_tokens:,} tokens"],
            ["repeated steps", f"{t.lost_steps:,}"],
            ["restarts", f"{t.restarts:,}"],
            ["training time", _time(t.training_seconds)],
            ["wall time", _time(t.wall_seconds)],
            ["down after failures", _time(t.down_seconds)],
            [_label("tokens_per_second"), shown("tokens_per_second", t.tokens_per_second)],
            ["checkpoints kept", f"{t.checkpoints} ({units.num_bytes(t.checkpoint_bytes)})"],
        ],
    )  # fmt: skip


def _energy(r: Report) -> Iterator[Table]:
    e = r.energy
    if e is None:
        return
    rows = [["energy", units.kwh(e.kilowatt_hours)]]
    if e.mean_watts is not None:
        rows.append(["mean power", shown("power_watts", e.mean_watts)])
    if e.joules_per_million_tokens is not None:
        rows.append(["per million tokens", units.joules(e.joules_per_million_tokens)])
    if e.cost is not None:
        rows.append(["cost", f"{units.cost(e.cost)} at {e.price:g} per kWh"])
    yield Table(["", ""], rows)


def _timeline(r: Report) -> Iterator[Table]:
    yield Table(["when", "what"], [[units.utc(m.unix_seconds), m.text] for m in r.timeline])


# --- cells ---------------------------------------------------------------------------------------


def _tokens(count: int) -> str:
    return f"{units.count(count)} tokens"


def _time(seconds: float | None) -> str:
    return DASH if seconds is None else f"{units.duration(seconds)} ({units.minutes(seconds)})"


def _list(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def _label(key: str) -> str:
    return BY_KEY[key].label.lower()


def _span(key: str) -> str:
    return f"{_label(key)}, start to end"


def _val_bpb(p: answer.PhaseReport) -> str:
    if p.val_bpb is None:
        return DASH
    return f"{BY_KIND['bpb'].text(p.val_bpb)} (step {p.val_bpb_step:,})"


def _core(p: answer.PhaseReport) -> str:
    return DASH if p.core is None else f"{shown('core', p.core.value)} (step {p.core.step:,})"


def _tasks(p: answer.PhaseReport) -> str:
    if p.core is None:
        return DASH
    return ", ".join(f"{name} {value:.3f}" for name, value in p.core.highlights.items()) or DASH


def _rates(p: answer.PhaseReport) -> str:
    return f"{units.significant(p.lr_start)} to {units.significant(p.lr_end)}"


_PHASE_ROWS = (
    ("steps", lambda p: f"{p.start_step:,} to {p.end_step:,} ({p.steps_done:,} done)"),
    ("schedule", lambda p: f"{p.mode}, warmdown from {p.warmdown_start:,}"),
    ("tokens", lambda p: f"{p.tokens:,}"),
    ("training time", lambda p: _time(p.training_seconds)),
    ("wall time", lambda p: _time(p.wall_seconds)),
    (_label("tokens_per_second"), lambda p: shown("tokens_per_second", p.tokens_per_second)),
    (_label("step_seconds"), lambda p: shown("step_seconds", p.step_seconds)),
    ("mfu / mfu_causal", lambda p: f"{shown('mfu', p.mfu)} / {shown('mfu', p.mfu_causal)}"),
    (_span("loss"), lambda p: f"{shown('loss', p.loss_start)} to {shown('loss', p.loss_end)}"),
    (_span("lr_multiplier"), _rates),
    (BY_KIND["bpb"].label, _val_bpb),
    (BY_KIND["core"].label, _core),
    ("tasks", _tasks),
    ("checkpoints kept", lambda p: f"{p.checkpoints}"),
)  # fmt: skip
