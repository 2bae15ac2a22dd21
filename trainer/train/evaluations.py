"""Evaluations inside a run: val bpb, CORE and samples when they are due, and at a phase's start.

Each stops at its next boundary when a command comes; it is then measured again after the resume,
since what was measured at which step is part of the state.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from trainer.contract import commands, events
from trainer.evaluate import core, core_bundle, samples, span
from trainer.train.session import Session

Kind = Literal["bpb", "core", "sample"]
SAMPLE_TOKENS = 64
BPB_TOLERANCE = 1e-6  # relative: the same weights on the same span give the same value


def due(step: int, every: int | Literal["end"] | None, at_end: bool) -> bool:
    """Whether something with this cadence falls on `step`; never on step 0."""
    if every is None or step == 0:
        return False
    return at_end or (every != "end" and step % every == 0)


def due_kinds(session: Session, at_end: bool) -> list[Kind]:
    """What is due at this boundary and not measured yet."""
    spec, step = session.order.spec.evaluate, session.state.step
    cadences: list[tuple[Kind, Any]] = [
        ("bpb", spec.bpb_every),
        ("core", spec.core_every if spec.core_bundle else None),
        ("sample", spec.sample_every if spec.prompts else None),
    ]
    return [
        kind
        for kind, every in cadences
        if due(step, every, at_end) and session.state.evaluated.get(kind) != step
    ]


def measure(session: Session, kinds: list[Kind]) -> bool:
    """Measure each; False when a command came first."""
    for kind in kinds:
        if not _measure(session, kind):
            return False
        session.state.evaluated[kind] = session.state.step
    session.reporter.emit(events.Stage(stage="training"))
    return True


def measure_on_request(session: Session, command: commands.Evaluate) -> None:
    """Evaluate now, at this boundary; a command that stops it leaves no half result."""
    if command.bpb:
        _measure(session, "bpb")
    if command.core:
        _measure(session, "core", command.core_max_per_task)
    session.reporter.emit(events.Stage(stage="training"))


def recheck_at_start(session: Session) -> None:
    """At a phase's first step: measure val bpb again and hold it against the checkpoint's.

    `auto` does so when the checkpoint has one of the same identity, `always` whatever it has.
    """
    policy, before = session.order.spec.evaluate.recheck_bpb, session.recheck
    at_joint = session.state.step == session.order.first_step_of_phase and session.state.step > 0
    if policy == "never" or not (session.order.recheck_bpb or at_joint):
        return
    if policy == "auto" and (not before or before.get("identity") not in (None, identity(session))):
        return
    if not _measure(session, "bpb"):
        return
    session.state.evaluated["bpb"] = session.state.step
    if before and before.get("step") == session.state.step:
        _compare(session, before)


def _compare(session: Session, before: dict[str, Any]) -> None:
    found, expected = session.state.evaluations["bpb"]["value"], before["value"]
    other = before.get("identity") not in (None, identity(session))
    same = abs(found - expected) <= BPB_TOLERANCE * abs(expected)
    session.reporter.emit(
        events.ResumeChecked(
            step=session.state.step,
            what="val_bpb",
            verdict="verified" if same else ("approximate" if other else "mismatch"),
            expected=expected,
            found=found,
            why="measured on another span or tokenizer: not comparable" if other else "",
        )
    )
    if not same:
        session.reporter.emit(
            events.Notice(
                level="warning",
                code="val_bpb_differs",
                message=f"val bpb at step {session.state.step:,} is {found:.6f}; the checkpoint "
                f"recorded {expected:.6f} for the same weights",
                step=session.state.step,
                data={"found": found, "expected": expected, "same_identity": not other},
            )
        )


def identity(session: Session) -> str:
    """What this run's val bpb depends on besides the weights."""
    return span.identity(session.data, _span(session))


def _span(session: Session) -> span.Settings:
    return span.settings_of(
        session.order.spec,
        rows=session.choices.device_batch_size,
        sequence_len=session.order.plan.batch.sequence_len,
    )


# --- measuring -----------------------------------------------------------------------------------


def _measure(session: Session, kind: Kind, max_per_task: int | None = None) -> bool:
    """Measure and report; False when a command came in the middle."""
    if kind == "sample":
        return _sample(session)
    session.reporter.emit(events.Stage(stage="evaluating", detail=kind))
    if kind == "bpb":
        return _bpb(session)
    return _core(session, max_per_task)


def _bpb(session: Session) -> bool:
    measured = span.measure(
        session.model,
        session.data,
        session.tokenizer,
        _span(session),
        should_stop=session.control.wants_attention,
    )
    if measured is None:
        return False
    result = measured.result
    _report(
        session,
        "bpb",
        result.value,
        measured.identity,
        measured.settings,
        result.as_result(),
        result.seconds,
    )
    return True


def _core(session: Session, max_per_task: int | None) -> bool:
    spec = session.order.spec.evaluate
    if not spec.core_bundle:
        return True
    limit = max_per_task or spec.core_max_per_task
    bundle = core_bundle.load_bundle(Path(spec.core_bundle))
    result = core.evaluate(
        session.model,
        session.tokenizer,
        bundle,
        max_per_task=limit,
        should_stop=session.control.wants_attention,
    )
    if result is None:
        return False
    settings = {"max_per_task": limit, "bundle": bundle.sha256}
    name = core.identity(bundle, session.data.tokenizer_sha256, limit)
    _report(session, "core", result.core_metric, name, settings, result.as_result(), result.seconds)
    return True


def _sample(session: Session) -> bool:
    session.reporter.emit(events.Stage(stage="sampling"))
    for prompt in session.order.spec.evaluate.prompts:
        started = time.monotonic()
        sample = samples.generate(
            session.model,
            session.tokenizer,
            prompt,
            max_tokens=SAMPLE_TOKENS,
            temperature=0.0,
            top_k=None,
            seed=0,
            should_stop=session.control.wants_attention,
        )
        if sample is None or session.control.wants_attention():
            return False
        session.reporter.emit(
            events.Sample(
                step=session.state.step,
                prompt=prompt,
                text=sample.text,
                seconds=time.monotonic() - started,
            )
        )
    return True


def _report(
    session: Session,
    kind: Literal["bpb", "core"],
    value: float,
    name: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    seconds: float,
) -> None:
    step = session.state.step
    session.state.evaluations[kind] = {"value": value, "identity": name, "step": step}
    session.reporter.emit(
        events.Evaluation(
            evaluation=kind,
            step=step,
            value=value,
            identity=name,
            settings=settings,
            result=result,
            seconds=seconds,
        )
    )
