"""Evaluations during training: val bpb, CORE and samples when they are due.

Each stops at its next boundary when a command arrives, and is measured again after the resume: the
state records what was measured at which step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from trainer.contract import commands, events
from trainer.contract.evaluations import EVALUATIONS, MEASUREMENTS, MeasurementKind
from trainer.evaluate import core, core_bundle, samples
from trainer.train import val_bpb
from trainer.train.evaluation_record import record
from trainer.train.session import Session

SAMPLE_TOKENS = 64
_LABELS = {one.kind: one.label for one in MEASUREMENTS}


def due(step: int, every: int | Literal["end"] | None, at_end: bool) -> bool:
    """True if something with this cadence is due at `step`; never at step 0."""
    if every is None or step == 0:
        return False
    return at_end or (every != "end" and step % every == 0)


def due_kinds(session: Session, at_end: bool) -> list[MeasurementKind]:
    """Evaluations that are due at this boundary and not measured yet."""
    spec, step = session.order.spec.evaluate, session.state.step
    return [
        one.kind
        for one in MEASUREMENTS
        if due(step, one.cadence(spec), at_end) and session.state.evaluated.get(one.kind) != step
    ]


def measure(session: Session, kinds: list[MeasurementKind]) -> bool:
    """Measure each; returns False if a command arrived first."""
    for kind in kinds:
        if not _measure(session, kind):
            return False
        session.state.evaluated[kind] = session.state.step
    _give_memory_back(session)
    session.reporter.emit(events.Stage(stage="training"))
    return True


def measure_on_request(session: Session, command: commands.Evaluate) -> None:
    """Evaluate now, at this boundary; a command that stops it leaves no partial result."""
    for one in EVALUATIONS:
        if getattr(command, one.kind):
            _measure(session, one.kind, command.core_max_per_task)
    _give_memory_back(session)
    session.reporter.emit(events.Stage(stage="training"))


def _give_memory_back(session: Session) -> None:
    """Free an evaluation's cached memory, which the step cannot reuse."""
    if session.device.type == "cuda":
        torch.cuda.empty_cache()


# --- measuring -----------------------------------------------------------------------------------


def _measure(session: Session, kind: MeasurementKind, max_per_task: int | None = None) -> bool:
    """Measure and report; returns False if a command interrupted it. If the device runs out of
    memory, the evaluation is skipped with a notice and training continues."""
    try:
        return _measured(session, kind, max_per_task)
    except torch.OutOfMemoryError as error:
        if session.world.size > 1:  # the other ranks wait for this one's result
            raise
        why = str(error)
    # outside the handler: the failed pass's frames, and the tensors they hold, are freed
    session.reporter.emit(
        events.Notice(
            level="warning",
            code="evaluation_out_of_memory",
            message=f"{_LABELS[kind]} at step {session.state.step:,} skipped, training continues: "
            f"the device ran out of memory. {why}",
            step=session.state.step,
        )
    )
    return True


def _measured(session: Session, kind: MeasurementKind, max_per_task: int | None) -> bool:
    if kind == "sample":
        return _on_rank_0(session, lambda: _sample(session))
    session.reporter.emit(events.Stage(stage="evaluating", detail=kind))
    if kind == "bpb":
        return val_bpb.measure(session)
    return _core(session, max_per_task)


def _on_rank_0(session: Session, measure: Callable[[], bool]) -> bool:
    """Run `measure` on rank 0 while the other ranks wait for its result, without a timeout."""
    return session.world.broadcast(measure() if session.world.leads else True)


def _core(session: Session, max_per_task: int | None) -> bool:
    spec = session.order.spec.evaluate
    if not spec.core_bundle:
        return True
    limit = max_per_task or spec.core_max_per_task
    bundle = core_bundle.load_bundle(Path(spec.core_bundle))
    bundle = core_bundle.for_recipe(bundle, session.order.spec.model.recipe, limit)
    result = core.evaluate(
        session.model,
        session.tokenizer,
        bundle,
        max_per_task=limit,
        should_stop=session.control.wants_attention,
        world=session.world,
    )
    if result is None:
        return False
    settings = {"max_per_task": limit, "bundle": bundle.sha256}
    name = core.identity(bundle, session.data.tokenizer_sha256, limit)
    record(session, "core", result.core_metric, name, settings, result.as_result(), result.seconds)
    return True


def _sample(session: Session) -> bool:
    session.reporter.emit(events.Stage(stage="sampling"))
    made: list[
        events.SampleResult
    ] = []  # reported together: a pause in between would repeat the first
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
        made.append(
            events.SampleResult(
                step=session.state.step,
                prompt=prompt,
                text=sample.text,
                seconds=time.monotonic() - started,
            )
        )
    for one in made:
        session.reporter.emit(one)
    return True
