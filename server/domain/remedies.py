"""Advice for a run's state, and for a failed run the resume request that follows it.

API, command line and page take both from here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from server.database.tables import Run
from server.domain import checkpoint_lookup, gang
from server.domain.states import SETTLED, State
from server.schemas.runs import Remedy
from trainer.contract import units
from trainer.contract.reasons import Reason
from trainer.contract.spec import MAX_REWINDS, RecoverySpec

_TOO_SMALL = (
    "One row per pass does not fit either: free the memory that other programs hold, or train a "
    "smaller model or shorter rows in a new run."
)


def advice(run: Run) -> str:
    """Advice for the run's reason; differs where nothing continues by itself."""
    reason = Reason(run.reason)
    if State(run.state) not in SETTLED:
        return reason.advice
    if reason is Reason.non_finite_loss and _is_rewound_out(run):
        return _after_the_last_rewind(run)
    if reason is Reason.out_of_memory and _rows(run) == 1:
        return _TOO_SMALL
    return reason.advice_once_stopped


def remedy(session: Session, run: Run) -> Remedy | None:
    """The resume of a failed run that follows its advice; None for other runs."""
    if State(run.state) is not State.failed:
        return None
    return _remedy(run) or _plain(session, run)


def out_of_memory(run: Run) -> str:
    """The estimate, the measured peak, the device's memory, and the rows per pass to use."""
    found = [
        f"{words} {units.num_bytes(size)}"
        for words, size in (
            ("the plan estimated", run.plan.get("memory", {}).get("total")),
            ("the measured peak was", run.progress.get("vram_peak_bytes")),
            ("the device has", run.progress.get("vram_total_bytes")),
        )
        if size
    ]
    sentences = [", ".join(found)] if found else []
    if (fewer := _fewer_rows(run)) is not None:
        sentences.append(f"resume with overrides.device_batch_size {fewer} (it is {_rows(run)})")
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


# --- by reason -----------------------------------------------------------------------------------


def _remedy(run: Run) -> Remedy | None:
    match Reason(run.reason):
        case Reason.out_of_memory:
            fewer = _fewer_rows(run)
            words = f"Resume with {fewer} rows per pass (now {_rows(run)})"
            return _overriding(words, device_batch_size=fewer) if fewer else None
        case Reason.compile_failed:
            return _overriding("Resume without compiling", compile=False)
        case Reason.non_finite_loss:
            return _rewinding(run)
        case _:
            return None


def _rewinding(run: Run) -> Remedy | None:
    """Another rewind; None where the spec's largest number of them is used up."""
    recovery: dict[str, Any] = {"on_non_finite": "rewind"}
    words = "Resume and rewind past the bad batch"
    if _is_rewound_out(run):
        if run.rewinds >= MAX_REWINDS:
            return None
        recovery["max_rewinds"] = run.rewinds + 1
        words = f"Allow one more rewind (so far {run.rewinds}) and resume"
    return Remedy(label=words, request={"recovery": recovery})


def _is_rewound_out(run: Run) -> bool:
    return run.rewinds >= RecoverySpec.model_validate(run.spec.get("recovery", {})).max_rewinds


def _after_the_last_rewind(run: Run) -> str:
    more = ", or resume with a higher recovery.max_rewinds" if run.rewinds < MAX_REWINDS else ""
    return (
        f"The run has used all its rewinds ({run.rewinds}). Check the data or lower the learning "
        f"rate in a new run{more}."
    )


def _plain(session: Session, run: Run) -> Remedy:
    has_checkpoint = checkpoint_lookup.newest(session, run.id) is not None
    words = "Resume from the last checkpoint" if has_checkpoint else "Start again"
    return Remedy(label=words, request={})


def _overriding(label: str, **overrides: Any) -> Remedy:
    return Remedy(label=label, request={"overrides": overrides})


# --- rows of a pass ------------------------------------------------------------------------------


def _rows(run: Run) -> int | None:
    return (
        run.overrides.get("device_batch_size")
        or run.frozen.get("device_batch_size")
        or run.plan.get("batch", {}).get("device_batch_size")
    )


def _fewer_rows(run: Run) -> int | None:
    """The largest number of rows per pass, at most half of today's, that a resume accepts."""
    half = (_rows(run) or 0) // 2
    return next((rows for rows in reversed(gang.dividing_rows(run)) if rows <= half), None)
