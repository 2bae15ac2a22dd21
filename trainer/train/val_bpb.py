"""val bpb during training: measured when due, and compared with the recorded value at a joint."""

from __future__ import annotations

from typing import Any

from trainer.contract import bpb_causes, events, units
from trainer.contract.recipe import rules_of
from trainer.evaluate import span
from trainer.train.evaluation_record import record
from trainer.train.phase_schedule import scheduled
from trainer.train.session import Session

BPB_TOLERANCE = 1e-6  # relative: the same weights on the same span give the same value
_TABLES = {"decoded": "older table", "raw": "raw bytes"}


def measure(session: Session) -> bool:
    """Measure and report val bpb at this step; returns False if a command interrupted it."""
    measured = _span_measured(session)
    if measured is None:
        return False
    _report_bpb(session, measured)
    _watch_joint(session, measured.result.value)
    return True


def _span_measured(session: Session) -> span.Measured | None:
    return span.measure(
        session.model,
        session.data,
        session.tokenizer,
        _span(session),
        should_stop=session.control.wants_attention,
        token_losses=session.stepper.token_losses,
        world=session.world,
    )


def _report_bpb(session: Session, measured: span.Measured) -> None:
    result = measured.result
    record(
        session,
        "bpb",
        result.value,
        measured.identity,
        measured.settings,
        result.as_result(),
        result.seconds,
    )
    session.state.evaluations["bpb"] |= {"settings": measured.settings, **conditions(session)}


def _report_both(session: Session, measured: span.Measured) -> None:
    """Report the same losses by both tables of byte lengths, and the difference."""
    assert measured.other is not None
    _report_bpb(session, measured.other)
    values = {m.settings["token_bytes"]: m.result.value for m in (measured, measured.other)}
    share = 1 - values["decoded"] / values["raw"]
    own = _TABLES[measured.settings["token_bytes"]]
    difference = (
        f"{units.percent(share, 2)} lower by the older table"
        if share
        else "the same by both tables"
    )
    session.reporter.emit(
        events.Notice(
            level="info",
            code="val_bpb_by_two_tables",
            message=f"val bpb at step {session.state.step:,} is {values['decoded']:.6f} by the "
            f"byte lengths of before July 2026 and {values['raw']:.6f} by the raw bytes of each "
            f"token: {difference}; this run counts by the {own}",
            step=session.state.step,
            data=values,
        )
    )


# --- at a joint ---------------------------------------------------------------------------------


def recheck_at_start(session: Session) -> None:
    """At a phase's first step: measure val bpb again and compare it with the checkpoint's.

    `auto` measures if the checkpoint has a value of the same identity, `always` in every case. If
    `auto` does not measure, it reports what changed.
    """
    policy, before = session.order.spec.evaluate.recheck_bpb, session.recheck
    at_joint = session.state.step == session.order.first_step_of_phase and session.state.step > 0
    if policy == "never" or not (session.order.recheck_bpb or at_joint):
        return
    session.since_joint = before if at_joint else None
    if policy == "auto" and not before:
        return
    if policy == "auto" and before and not _is_comparable(session, before):
        _report_other_identity(session, before)
        return
    measured = _span_measured(session)
    if measured is None:
        return
    if measured.settings["token_bytes"] == "decoded" or _by_other_table(measured, before):
        _report_both(session, measured)
    _report_bpb(session, measured)
    session.state.evaluated["bpb"] = session.state.step
    if at_joint:
        session.since_joint = _measured_at_joint(session, before)
    if before and before.get("step") == session.state.step:
        _compare(session, before, measured)


def _measured_at_joint(session: Session, before: dict[str, Any] | None) -> dict[str, Any]:
    """The baseline for later values: measured now, with the conditions of the steps before."""
    recorded = {key: before[key] for key in ("data", "muon") if before and key in before}
    return {**session.state.evaluations["bpb"], **recorded}


def _is_comparable(session: Session, before: dict[str, Any]) -> bool:
    """True if it was measured as in this run, or by the other table of byte lengths."""
    known = [span.identity(session.data, s) for s in span.by_both_tables(_span(session))]
    return before.get("identity") in (None, *known)


def _by_other_table(measured: span.Measured, before: dict[str, Any] | None) -> bool:
    other = measured.other
    return bool(before and other and before.get("identity") == other.identity)


def _report_other_identity(session: Session, before: dict[str, Any]) -> None:
    """Report that the recorded value is not comparable with this run's, with the known causes."""
    found = _causes(session, before)
    session.reporter.emit(
        events.Notice(
            level="info",
            code="val_bpb_not_comparable",
            message=f"val bpb {before['value']:.6f} of step {before.get('step', 0):,} cannot be "
            f"compared with what this run measures: {bpb_causes.sentence(found)}",
            step=session.state.step,
            data={"expected": before["value"], "causes": found},
        )
    )


def _compare(session: Session, before: dict[str, Any], measured: span.Measured) -> None:
    """Compare the values; one recorded by the other byte table is compared with that table's."""
    if measured.other and _by_other_table(measured, before):
        measured = measured.other
    found, expected = measured.result.value, before["value"]
    other = before.get("identity") not in (None, measured.identity)
    same = abs(found - expected) <= BPB_TOLERANCE * abs(expected)
    causes = _causes(session, before)
    here = [cause for cause in causes if cause["affects"] == "this_value"]
    session.reporter.emit(
        events.ResumeChecked(
            step=session.state.step,
            what="val_bpb",
            verdict="verified" if same else ("approximate" if here or other else "mismatch"),
            expected=expected,
            found=found,
            why="" if same else bpb_causes.sentence(here),
        )
    )
    if not same:
        why = bpb_causes.sentence(causes) or "no recorded setting changed"
        session.reporter.emit(
            events.Notice(
                level="warning",
                code="val_bpb_differs",
                message=f"val bpb at step {session.state.step:,} is {found:.6f}; the checkpoint "
                f"recorded {expected:.6f} for the same weights: {why}",
                step=session.state.step,
                data={
                    "found": found,
                    "expected": expected,
                    "same_identity": not other,
                    "causes": causes,
                },
            )
        )


def _watch_joint(session: Session, value: float) -> None:
    """At the first value after a joint: if it is worse than the value recorded at the joint, report
    the causes once."""
    before, session.since_joint = session.since_joint, None
    if before is None or value <= before["value"] * (1 + BPB_TOLERANCE):
        return
    causes = _causes(session, before)
    why = bpb_causes.sentence(causes) or "no recorded setting changed"
    step, joint = session.state.step, session.order.first_step_of_phase
    session.reporter.emit(
        events.Notice(
            level="warning",
            code="val_bpb_rose",
            message=f"val bpb is {value:.6f} at step {step:,} and was {before['value']:.6f} at "
            f"step {joint:,}, where this phase begins: {why}",
            step=step,
            data={"found": value, "expected": before["value"], "causes": causes},
        )
    )


def _causes(session: Session, before: dict[str, Any]) -> list[bpb_causes.Cause]:
    joint = session.order.first_step_of_phase
    rates = [scheduled(session.order, s)["lr_multiplier"] for s in (joint - 1, joint) if joint > 0]
    now = {
        "identity": identity(session),
        "settings": span.describe(session.data, _span(session)),
        **conditions(session),
    }
    return bpb_causes.causes(before, now, *rates)


def conditions(session: Session) -> dict[str, Any]:
    """Conditions recorded with a value, for comparison at a later resume."""
    spec = session.order.spec
    return {
        "compute_dtype": session.choices.compute_dtype,
        "data": session.data.identity(),
        "muon": rules_of(spec.model, spec.optimizer).muon,
    }


def identity(session: Session) -> str:
    """Identity of this run's val bpb: what it depends on besides the weights."""
    return span.identity(session.data, _span(session))


def _span(session: Session) -> span.BpbSettings:
    return span.settings_of(
        session.order.spec,
        rows=session.choices.device_batch_size,
        sequence_len=session.order.plan.batch.sequence_len,
    )
