"""Audit job: repeats recorded steps from a checkpoint and compares the losses bit for bit.

On the machine and versions of the run, a difference means silent data corruption in memory, disk or
processor: nothing in the software may change these bits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from trainer.contract import events, journal
from trainer.contract.jobs import AuditResult, LossDifference
from trainer.contract.orders import AttemptOrder, JobOrder, Lineage
from trainer.contract.rundir import RunDir, parse_checkpoint_name
from trainer.runtime.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: {"checkpoint": name, "steps": n, "order": the attempt order that made the steps}."""
    from trainer.runtime.reporter import Reporter
    from trainer.train import loop, resume, setup

    attempt = AttemptOrder.model_validate(order.params["order"])
    named = parse_checkpoint_name(order.params["checkpoint"])
    if named is None:
        raise ValueError(f"{order.params['checkpoint']!r} names no checkpoint")
    start, number = named
    limits = Lineage(limits={number: start})
    audit = attempt.model_copy(
        update={
            "lineage": limits, "max_step": start,
            "run_dir": order.run_dir, "data_dir": order.data_dir,
            "devices": [],  # one rank: with lanes it computes the same bits as several
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=own.directory) as folder:
        header = journal.JournalHeader(order.job_id, 0, order.token)
        quiet = Reporter(journal.Writer.create(Path(folder) / "replay.jsonl", header))
        parts = setup.build(audit, quiet, own.control, owns_run=False)
        try:
            found = _compare(parts, int(order.params["steps"]), own, loop, resume)
            return found.model_dump()
        finally:
            parts.close()


def _compare(parts: Any, steps: int, own: Process, loop: Any, resume: Any) -> AuditResult:
    from trainer.train.phase_schedule import scheduled

    differences, compared = [], 0
    run_dir: RunDir = parts.run_dir
    for _ in range(steps):
        step = parts.state.step
        if own.control.wants_attention():
            break
        recorded = resume.recorded_loss(run_dir, parts.order.attempt, step)
        loop.skip_batches(parts, step)
        batches = parts.next_step_batches()
        result = parts.stepper.train_step(batches.own, **scheduled(parts.order, step))
        parts.state.step = step + 1
        own.reporter.emit(events.Stage(stage="verifying", fraction=(compared + 1) / steps))
        if recorded is None:
            continue
        compared += 1
        found = float(result.loss)
        if found != recorded:
            differences.append(LossDifference(step=step, recorded=recorded, found=found))
    verdict = "approximate" if parts.inexact else ("mismatch" if differences else "verified")
    return AuditResult(
        verdict=verdict if compared else "nothing recorded",
        checkpoint=parts.parent,
        compared=compared,
        differences=differences,
        why=parts.inexact,
    )
