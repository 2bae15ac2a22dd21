"""Recovery: classifies how an attempt ended and decides what the run does next. Pure.

`classify` determines how it ended, from the exit record or, without one, from the kernel's
evidence. `follow` determines what the run does next under its recovery policy.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from server.domain.states import YIELDS, State
from server.launch.launcher import EngineEnding
from server.machine.kernel_log import Xid, XidAction, advice
from trainer.contract.reasons import Reason
from trainer.contract.spec import RecoverySpec

BACKOFF_SECONDS = (1.0, 5.0, 15.0, 60.0)

# A retry would fail in the same way, so the run stops at once with advice.
_HOPELESS = frozenset(
    {
        Reason.out_of_memory,
        Reason.device_missing,
        Reason.data_unusable,
        Reason.no_checkpoint,
        Reason.environment_changed,
        Reason.not_permitted,
        Reason.software_missing,
        Reason.compile_failed,
        Reason.engine_refused,
    }
)

# The cluster ended the job.
_NO_FAULT_OF_THE_RUN = frozenset({Reason.preempted, Reason.node_failed, Reason.engine_cancelled})

# A trainer whose GPU is lost sees an ordinary exception; the kernel's message is more precise.
_MAYBE_THE_GPU = frozenset({Reason.crashed, Reason.gpu_lost})


# --- how it ended --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExitReport:
    """The process's own report: its exit record, or the `ended` record of its outbox."""

    outcome: str
    reason: Reason
    message: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Circumstances:
    """Outside evidence of a death. exit_code: negative is a signal, None is unknown.

    last_words: the last line of its log, made safe to show.
    """

    exit_code: int | None = None
    last_words: str = ""
    other_boot: bool = False
    stalled: str | None = None
    oom: str | None = None
    xid: Xid | None = None
    engine: EngineEnding | None = None


@dataclass(frozen=True)
class Ending:
    """outcome: completed, phase_ended, paused, cancelled, terminated, failed or crashed."""

    outcome: str
    reason: Reason
    message: str
    step: int | None = None
    xid: Xid | None = None


def classify(said: ExitReport | None, seen: Circumstances) -> Ending:
    """Classify an attempt's ending. Its own report takes precedence, except over an Xid."""
    if said is not None and said.outcome == "terminated" and seen.engine is not None:
        by_engine = seen.engine
        saved = said.message.rstrip(".") or "it saved a checkpoint first"
        return Ending("terminated", by_engine.reason, f"{by_engine.message}; {saved}", said.step)
    if said is not None and said.outcome != "failed":
        reason = Reason.stalled if seen.stalled and said.outcome == "terminated" else said.reason
        return Ending(said.outcome, reason, said.message or reason.sentence, said.step)
    if _was_terminated_early(said, seen):
        message = "SIGTERM ended it during its start, before its first record"
        return Ending("terminated", Reason.terminated, message)
    if said is not None and (seen.xid is None or said.reason not in _MAYBE_THE_GPU):
        return Ending("failed", said.reason, said.message or said.reason.sentence, said.step)
    step = said.step if said is not None else None
    reason, message = _cause(seen)
    if said is None and reason in _NO_FAULT_OF_THE_RUN:
        return Ending("terminated", reason, message, step)
    return Ending("failed" if said else "crashed", reason, message, step, seen.xid)


def _was_terminated_early(said: ExitReport | None, seen: Circumstances) -> bool:
    """True if SIGTERM arrived before its handler was installed, which then prevents such an end. Of
    several ranks the others then report a lost rank."""
    is_unexplained = said is None or said.reason is Reason.rank_lost
    is_signal_alone = not (seen.stalled or seen.other_boot or seen.engine or seen.xid)
    return is_unexplained and is_signal_alone and seen.exit_code == -signal.SIGTERM


def _cause(seen: Circumstances) -> tuple[Reason, str]:
    if seen.other_boot:
        return Reason.host_restarted, "the machine restarted during the run"
    if seen.stalled:
        return Reason.stalled, seen.stalled
    if seen.engine is not None:
        return seen.engine.reason, seen.engine.message
    if seen.oom is not None:
        limits = f" ({seen.oom})" if seen.oom else ""
        return Reason.host_out_of_memory, f"the kernel killed it: out of host memory{limits}"
    if seen.xid is not None:
        return Reason.gpu_lost, f"the GPU reported {seen.xid}. {advice(seen.xid)}"
    said = f"; the last line of its log: {seen.last_words}" if seen.last_words else ""
    return Reason.crashed, f"it exited without a report: {_exit_words(seen.exit_code)}{said}"


def _exit_words(code: int | None) -> str:
    if code is None:
        return "killed, or exited while the daemon was not running"
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"


# --- what comes next -----------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """History of a run, as needed by recovery.

    durable_step: the step of the newest usable checkpoint, 0 without one.
    same_before: how many of the last attempts in a row ended for the same reason.
    """

    state: State
    wants_to_run: bool
    recovery: RecoverySpec
    durable_step: int
    failures: int
    best_failed_step: int
    rewinds: int = 0
    same_before: int = 0
    has_further_phase: bool = False
    other_boot: bool = False
    advice: str = ""
    reason: Reason = Reason.requested
    reason_message: str = ""


@dataclass(frozen=True)
class Verdict:
    """The next move and its side effects. delay_seconds: before the next attempt may start."""

    state: State
    reason: Reason
    message: str
    delay_seconds: float = 0.0
    failures: int = 0
    best_failed_step: int = -1
    skip_step: int | None = None
    keeps_device: bool = False


def follow(
    ending: Ending, history: History, backoff: tuple[float, ...] = BACKOFF_SECONDS
) -> Verdict:
    """Recovery move after an attempt has ended."""
    kept: dict[str, Any] = {
        "failures": history.failures,
        "best_failed_step": history.best_failed_step,
    }
    if history.state is State.cancelling:
        return Verdict(State.cancelled, Reason.requested, ending.message, **kept)
    if ending.outcome in ("completed", "phase_ended"):
        return _after_completion(ending, history)
    if history.state is State.pausing:
        return _while_pausing(ending, history, kept)
    if ending.outcome == "paused":
        return Verdict(State.paused, ending.reason, ending.message, **kept)
    return _recover(ending, history, kept, backoff)


def _after_completion(ending: Ending, history: History) -> Verdict:
    if history.has_further_phase:
        if history.state is State.pausing and not history.wants_to_run:
            return Verdict(State.paused, Reason.requested, ending.message)
        message = "the next phase begins"
        return Verdict(State.queued, Reason.requested, message, keeps_device=True)
    return Verdict(State.completed, Reason.finished, ending.message)


def _while_pausing(ending: Ending, history: History, kept: dict[str, Any]) -> Verdict:
    """Move a run that ended while pausing; it is not restarted, whatever its outcome."""
    if history.reason is Reason.copied:
        return Verdict(State.paused, Reason.copied, Reason.copied.sentence, **kept)
    if history.wants_to_run and history.reason in YIELDS:
        message = history.reason_message or history.reason.sentence
        return Verdict(State.queued, history.reason, message, keeps_device=True, **kept)
    if history.wants_to_run:
        return Verdict(State.queued, Reason.requested, ending.message, **kept)
    if ending.outcome in ("crashed", "failed"):
        message = f"it ended before the pause was complete: {ending.message}"
        return Verdict(State.paused, ending.reason, message, **kept)
    if history.reason is Reason.budget_spent:
        return Verdict(State.paused, history.reason, history.reason_message, **kept)
    return Verdict(State.paused, Reason.requested, ending.message, **kept)


def _recover(
    ending: Ending, history: History, kept: dict[str, Any], backoff: tuple[float, ...]
) -> Verdict:
    policy = history.recovery
    rebooted = history.other_boot and ending.outcome != "failed"
    if rebooted and policy.on_reboot == "wait":
        return _stop_orderly(history, Reason.host_restarted, ending.message, kept)
    if ending.reason is Reason.data_changed:
        return _stop_orderly(history, ending.reason, ending.message, kept)
    if ending.reason is Reason.engine_cancelled:  # cancelled deliberately: no new job
        return _stop_orderly(history, ending.reason, ending.message, kept)
    if ending.reason is Reason.time_limit:
        return _after_time_limit(ending, history, kept, backoff)
    if ending.outcome == "terminated" or ending.reason is Reason.host_restarted:
        return _after_orders(ending, history, kept, backoff)
    if ending.reason is Reason.non_finite_loss:
        return _after_non_finite(ending, history, kept)
    if ending.reason is Reason.disk_full and policy.on_crash != "stop":
        return Verdict(State.recovering, ending.reason, ending.message, backoff[0], **kept)
    if (why_not := _hopeless(ending, history)) is not None:
        return Verdict(State.failed, ending.reason, why_not, **kept)
    return _after_failure(ending, history, backoff)


def _stop_orderly(history: History, reason: Reason, message: str, kept: dict[str, Any]) -> Verdict:
    """Move to paused if the table of moves allows it, as for every run with a live process."""
    after = State.paused if history.state in (State.starting, State.running) else State.failed
    return Verdict(after, reason, message, **kept)


def _after_orders(
    ending: Ending, history: History, kept: dict[str, Any], backoff: tuple[float, ...]
) -> Verdict:
    """Continue after a signal or a reboot, which does not count as a failure of the run."""
    reason = Reason.stalled if ending.reason is Reason.stalled else ending.reason
    if reason is Reason.stalled:
        return _after_failure(ending, history, backoff)
    if history.recovery.on_crash == "stop":
        return _stop_orderly(history, reason, ending.message, kept)
    return Verdict(State.recovering, reason, ending.message, backoff[0], **kept)


def _after_time_limit(
    ending: Ending, history: History, kept: dict[str, Any], backoff: tuple[float, ...]
) -> Verdict:
    """Continue in a new cluster job if this one saved a newer checkpoint; a time limit too short
    for any progress counts as a failure."""
    if ending.outcome != "terminated" or history.durable_step <= history.best_failed_step:
        return _after_failure(ending, history, backoff)
    if history.recovery.on_crash == "stop":
        return _stop_orderly(history, ending.reason, ending.message, kept)
    best = {**kept, "failures": 0, "best_failed_step": history.durable_step}
    return Verdict(State.recovering, ending.reason, ending.message, backoff[0], **best)


def _after_non_finite(ending: Ending, history: History, kept: dict[str, Any]) -> Verdict:
    policy, said = history.recovery, ending.message.rstrip(".")
    if policy.on_non_finite == "stop" or ending.step is None:
        return Verdict(State.failed, ending.reason, ending.message, **kept)
    if history.rewinds >= policy.max_rewinds:
        message = f"{said}. It was already rewound {history.rewinds} times."
        return Verdict(State.failed, ending.reason, message, **kept)
    message = f"{said}. Rewinding to the last checkpoint; step {ending.step} is skipped."
    return Verdict(State.recovering, ending.reason, message, skip_step=ending.step, **kept)


def _hopeless(ending: Ending, history: History) -> str | None:
    """Why another attempt would be useless; None if it may succeed."""
    if history.recovery.on_crash == "stop":
        return f"{ending.message.rstrip('.')}. The run's recovery.on_crash is 'stop'."
    if ending.reason is Reason.out_of_memory:
        return ". ".join(filter(None, (ending.message.rstrip("."), history.advice)))
    if ending.reason in _HOPELESS:
        return ending.message
    if ending.reason is Reason.host_out_of_memory and history.same_before >= 1:
        return f"{ending.message}, twice in a row"
    if ending.xid is not None and ending.xid.action is not XidAction.restart:
        return ending.message
    return None


def _after_failure(ending: Ending, history: History, backoff: tuple[float, ...]) -> Verdict:
    """Count attempts without progress: a durable checkpoint beyond the last failure resets them."""
    progressed = history.durable_step > history.best_failed_step
    failures = 1 if progressed else history.failures + 1
    best = max(history.durable_step, history.best_failed_step)
    if failures >= history.recovery.max_attempts_without_progress:
        message = (
            f"{failures} consecutive attempts did not get beyond step {best:,}; "
            f"the last one: {ending.message}"
        )
        if ending.reason not in (Reason.crashed, Reason.stalled):  # their log has the cause
            message = f"{message.rstrip('.')}. {ending.reason.advice_once_stopped}"
        return Verdict(
            State.failed, Reason.no_progress, message, failures=failures, best_failed_step=best
        )
    delay = backoff[min(failures, len(backoff)) - 1]
    return Verdict(
        State.recovering, ending.reason, ending.message, delay, failures, best_failed_step=best
    )
