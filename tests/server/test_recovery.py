"""What follows an ended attempt: how it ended, and the policy. Pure tables."""

from __future__ import annotations

from typing import Any

import pytest

from server.database import tables
from server.domain import remedies
from server.domain.states import State
from server.machine import kernel_log
from server.supervision import recovery
from server.supervision.recovery import Circumstances, Ending, ExitReport, History, classify, follow
from trainer.contract.reasons import Reason
from trainer.contract.spec import RecoverySpec

R = Reason
XID_79 = kernel_log.worst_xid(
    ["NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus."]
)
XID_31 = kernel_log.worst_xid(["NVRM: Xid (PCI:0000:01:00): 31, pid=1, MMU Fault"])


@pytest.mark.parametrize(
    ("said", "seen", "outcome", "reason"),
    [
        (ExitReport("completed", R.finished), {}, "completed", R.finished),
        (ExitReport("paused", R.requested), {"exit_code": -9}, "paused", R.requested),
        (ExitReport("terminated", R.terminated), {}, "terminated", R.terminated),
        (ExitReport("terminated", R.terminated), {"stalled": "silent"}, "terminated", R.stalled),
        (ExitReport("failed", R.out_of_memory), {}, "failed", R.out_of_memory),
        (ExitReport("failed", R.crashed), {"xid": XID_79}, "failed", R.gpu_lost),
        (ExitReport("failed", R.data_changed), {"xid": XID_79}, "failed", R.data_changed),
        (None, {"exit_code": -11}, "crashed", R.crashed),
        (None, {"exit_code": -15}, "terminated", R.terminated),
        (ExitReport("failed", R.rank_lost), {"exit_code": -15}, "terminated", R.terminated),
        (ExitReport("failed", R.out_of_memory), {"exit_code": -15}, "failed", R.out_of_memory),
        (None, {"stalled": "silent for 600 s", "exit_code": -15}, "crashed", R.stalled),
        (None, {}, "crashed", R.crashed),
        (None, {"other_boot": True, "exit_code": -9}, "crashed", R.host_restarted),
        (None, {"stalled": "silent for 600 s", "exit_code": -9}, "crashed", R.stalled),
        (None, {"oom": "limit 8.59 GB", "exit_code": -9}, "crashed", R.host_out_of_memory),
        (None, {"xid": XID_79}, "crashed", R.gpu_lost),
    ],
)
def test_classify(
    said: ExitReport | None, seen: dict[str, Any], outcome: str, reason: Reason
) -> None:
    ending = classify(said, Circumstances(**seen))
    assert (ending.outcome, ending.reason) == (outcome, reason)
    assert ending.message


def history(**told: Any) -> History:
    policy = {k: told.pop(k) for k in list(told) if k in RecoverySpec.model_fields}
    base: dict[str, Any] = {
        "state": State.running, "wants_to_run": True, "recovery": RecoverySpec(**policy),
        "durable_step": 0, "failures": 0, "best_failed_step": -1,
    }  # fmt: skip
    return History(**{**base, **told})


def ended(outcome: str, reason: Reason, **more: Any) -> Ending:
    return Ending(outcome, reason, "what it said", **more)


@pytest.mark.parametrize(
    ("ending", "told", "state", "reason"),
    [
        (ended("completed", R.finished), {}, "completed", R.finished),
        (ended("completed", R.finished), {"has_further_phase": True}, "queued", R.requested),
        (
            ended("completed", R.finished),
            {"has_further_phase": True, "state": State.pausing, "wants_to_run": False},
            "paused", R.requested,
        ),
        (ended("completed", R.finished), {"state": State.cancelling}, "cancelled", R.requested),
        (ended("phase_ended", R.requested), {"has_further_phase": True}, "queued", R.requested),
        (
            ended("paused", R.requested),
            {"state": State.pausing, "wants_to_run": False},
            "paused", R.requested,
        ),
        (ended("paused", R.requested), {"state": State.pausing}, "queued", R.requested),
        (ended("paused", R.data_changed), {}, "paused", R.data_changed),
        (
            ended("crashed", R.crashed),
            {"state": State.pausing, "wants_to_run": False},
            "paused", R.crashed,
        ),
        (ended("crashed", R.crashed), {"state": State.cancelling}, "cancelled", R.requested),
        (ended("terminated", R.terminated), {}, "recovering", R.terminated),
        (ended("terminated", R.terminated), {"on_crash": "stop"}, "paused", R.terminated),
        (
            ended("terminated", R.terminated),
            {"other_boot": True, "on_reboot": "wait"},
            "paused", R.host_restarted,
        ),
        (ended("crashed", R.crashed), {}, "recovering", R.crashed),
        (ended("crashed", R.crashed), {"on_crash": "stop"}, "failed", R.crashed),
        (ended("crashed", R.host_restarted), {}, "recovering", R.host_restarted),
        (
            ended("crashed", R.host_restarted),
            {"other_boot": True, "on_reboot": "wait"},
            "paused", R.host_restarted,
        ),
        (ended("failed", R.data_changed), {}, "paused", R.data_changed),
        (ended("failed", R.out_of_memory), {}, "failed", R.out_of_memory),
        (ended("failed", R.environment_changed), {}, "failed", R.environment_changed),
        (ended("failed", R.no_checkpoint), {}, "failed", R.no_checkpoint),
        (ended("failed", R.io_error), {}, "recovering", R.io_error),
        (ended("crashed", R.host_out_of_memory), {}, "recovering", R.host_out_of_memory),
        (
            ended("crashed", R.host_out_of_memory), {"same_before": 1},
            "failed", R.host_out_of_memory,
        ),
        (ended("crashed", R.gpu_lost, xid=XID_31), {}, "recovering", R.gpu_lost),
        (ended("crashed", R.gpu_lost, xid=XID_79), {}, "failed", R.gpu_lost),
        (ended("terminated", R.stalled), {}, "recovering", R.stalled),
        (ended("failed", R.non_finite_loss, step=7), {}, "failed", R.non_finite_loss),
        (
            ended("failed", R.non_finite_loss, step=7), {"on_non_finite": "rewind"},
            "recovering", R.non_finite_loss,
        ),
        (
            ended("failed", R.non_finite_loss, step=7),
            {"on_non_finite": "rewind", "rewinds": 3},
            "failed", R.non_finite_loss,
        ),
    ],
)  # fmt: skip
def test_follow(ending: Ending, told: dict[str, Any], state: str, reason: Reason) -> None:
    verdict = follow(ending, history(**told))
    assert (verdict.state, verdict.reason) == (state, reason)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"rewinds": 3}, "the loss is nan. It was already rewound 3 times."),
        ({}, "the loss is nan. Rewinding to the last checkpoint; step 7 is skipped."),
    ],
)
@pytest.mark.parametrize("cause", ["the loss is nan", "the loss is nan."])
def test_what_follows_a_cause_is_a_sentence_of_its_own(
    cause: str, told: dict[str, Any], expected: str
) -> None:
    ending = Ending("failed", R.non_finite_loss, cause, step=7)
    assert follow(ending, history(on_non_finite="rewind", **told)).message == expected


def test_back_off_grows_and_the_limit_ends_it() -> None:
    seen, now = [], history(max_attempts_without_progress=6)
    while True:
        verdict = follow(ended("crashed", R.crashed), now)
        if verdict.state is State.failed:
            break
        seen.append(verdict.delay_seconds)
        now = history(
            max_attempts_without_progress=6,
            failures=verdict.failures,
            best_failed_step=verdict.best_failed_step,
        )
    assert seen == [1.0, 5.0, 15.0, 60.0, 60.0]
    assert verdict.reason is R.no_progress
    assert "6 consecutive attempts" in verdict.message


def test_a_durable_checkpoint_beyond_the_last_failure_resets_the_count() -> None:
    told = {"failures": 2, "best_failed_step": 100}
    stuck = follow(ended("crashed", R.crashed), history(**told, durable_step=100))
    assert stuck.state is State.failed
    moved = follow(ended("crashed", R.crashed), history(**told, durable_step=101))
    assert (moved.state, moved.failures, moved.best_failed_step) == (State.recovering, 1, 101)


def test_orders_and_reboots_are_no_failures() -> None:
    for ending in (ended("terminated", R.terminated), ended("crashed", R.host_restarted)):
        verdict = follow(ending, history(failures=2, best_failed_step=50))
        assert (verdict.failures, verdict.best_failed_step) == (2, 50)


def test_every_verdict_is_a_legal_move() -> None:
    from server.domain.states import MOVES

    outcomes = [
        "completed",
        "phase_ended",
        "paused",
        "cancelled",
        "terminated",
        "failed",
        "crashed",
    ]
    waiting = [State.running, State.starting, State.pausing, State.cancelling]
    for state in waiting:
        for outcome in outcomes:
            for reason in Reason:
                for wants in (True, False):
                    told = history(state=state, wants_to_run=wants, has_further_phase=wants)
                    verdict = follow(Ending(outcome, reason, "x", 1), told)
                    by_way = {State.running} if state is State.starting else set()
                    legal = MOVES[state].union(*(MOVES[s] for s in by_way))
                    assert verdict.state in legal, (state, outcome, reason, verdict)


# reason -> (a word its advice needs when it stopped, words that belong to other causes)
FITS: dict[Reason, str] = {
    R.out_of_memory: "device_batch_size",
    R.host_out_of_memory: "Close other programs",
    R.no_checkpoint: "undamaged copy",
    R.too_many_open_files: "ulimit -n",
    R.data_changed: "Restore the original file",
    R.data_unusable: "the message names",
    R.file_missing: "Restore the file",
    R.not_permitted: "access to the file",
    R.io_error: "dmesg",
    R.disk_full: "Free some space, then resume",
    R.network_failed: "proxy",
    R.software_missing: "traind doctor",
    R.compile_failed: "overrides.compile",
    R.device_missing: "traind doctor",
    R.gpu_lost: "Xid",
    R.non_finite_loss: "learning rate",
    R.crashed: "log",
    R.stalled: "stack dump",
    R.journal_damaged: "weights are not affected",
    R.environment_changed: "earlier versions",
    R.terminated: "resume continues",
    R.host_restarted: "Resume continues",
}
ON_ITS_OWN = ("by itself", "restarts")


@pytest.mark.parametrize("reason", FITS)
def test_the_advice_fits_its_cause(reason: Reason) -> None:
    """What a failed run says, in its advice and in its message, whatever led to the failure."""
    assert FITS[reason] in reason.advice_once_stopped
    assert not any(words in reason.advice_once_stopped for words in ON_ITS_OWN)
    told = history(advice="Resume with overrides.device_batch_size 4 (it is 8).", failures=2)
    verdict = follow(ended("failed", reason), told)
    said = f"{verdict.message} {reason.advice_once_stopped}"
    assert ("device_batch_size" in said) is (reason is R.out_of_memory)
    if verdict.reason is R.no_progress and reason not in (R.crashed, R.stalled):
        assert reason.advice_once_stopped in verdict.message


def test_a_run_that_goes_on_by_itself_is_told_so_and_one_that_stopped_is_not() -> None:
    for state, going in (("recovering", True), ("failed", False), ("paused", False)):
        for reason in (R.crashed, R.stalled):
            advice = remedies.advice(tables.Run(state=state, reason=reason))
            assert ("by itself" in advice) is going, (state, reason)


def test_what_cannot_get_better_by_itself_is_not_tried_again() -> None:
    for reason in (R.not_permitted, R.software_missing, R.compile_failed, R.no_checkpoint):
        assert follow(ended("failed", reason), history()).state is State.failed
    for reason in (R.too_many_open_files, R.file_missing, R.network_failed):
        assert follow(ended("failed", reason), history()).state is State.recovering


def test_an_end_for_want_of_disk_space_is_never_counted_as_a_failure() -> None:
    verdict = follow(ended("failed", R.disk_full), history(failures=2))
    assert (verdict.state, verdict.reason, verdict.failures) == (State.recovering, R.disk_full, 2)


def test_f35_the_estimate_stands_beside_the_measured_peak() -> None:
    run = tables.Run(
        plan={
            "memory": {"total": 11 * 10**9},
            "batch": {"device_batch_size": 8},
            "shape": {"sequence_len": 128},
        },
        progress={"vram_peak_bytes": 10 * 10**9, "vram_total_bytes": 12_345_000_000},
        overrides={},
        frozen={"device_batch_size": 5, "lanes": 1},
        batch_tokens=25 * 128,
    )
    assert remedies.out_of_memory(run) == (
        "The plan estimated 11 GB, the measured peak was 10 GB, the device has 12.3 GB. "
        "Resume with overrides.device_batch_size 1 (it is 5)."
    )


# --- f36: the kernel's words ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "action"),
    [(13, "restart"), (31, "restart"), (43, "restart"), (48, "reset"), (63, "reset"),
     (64, "inspect"), (74, "inspect"), (79, "reboot"), (92, "inspect"), (94, "restart"),
     (95, "reset"), (119, "reset"), (999, "reset")],
)  # fmt: skip
def test_f36_each_xid_has_its_class_of_action(number: int, action: str) -> None:
    line = f"[  812.4] NVRM: Xid (PCI:0000:01:00): {number}, pid=4711, name=python"
    found = kernel_log.worst_xid(["usb 1-1: new device", line])
    assert found is not None
    assert (found.number, found.action) == (number, action)
    assert kernel_log.advice(found)


def test_f36_the_gravest_xid_names_the_end() -> None:
    lines = [f"NVRM: Xid (PCI:0000:01:00): {n}, pid=1" for n in (45, 79, 31)]
    found = kernel_log.worst_xid(lines)
    assert found is not None
    assert found.number == 79
    said = recovery.classify(None, Circumstances(xid=found))
    assert "fallen off the bus" in said.message


def test_f36_another_cards_and_another_programs_xid_is_not_ours() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:82:00): 79, pid=1, GPU has fallen off the bus",
        "NVRM: Xid (PCI:0000:01:00): 31, pid=815, name=blender, MMU Fault",
    ]
    assert kernel_log.worst_xid(lines, "0000:01:00", 4711) is None
    ours = kernel_log.worst_xid(lines, "0000:01:00", 815)
    assert ours is not None
    assert ours.number == 31
    # what the card suffers ends whoever used it
    whole = ["NVRM: Xid (PCI:0000:01:00.0): 79, pid='<unknown>', name=<unknown>"]
    lost = kernel_log.worst_xid(whole, "0000:01:00", 4711)
    assert lost is not None
    assert lost.number == 79


def test_f13_the_kernels_oom_lines() -> None:
    lines = [
        "Out of memory: Killed process 4711 (python) total-vm:20971520kB",
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python,pid=4712,uid=1000",
        "Memory cgroup out of memory: Killed process 4713 (python)",
        "systemd[1]: Started something.",
    ]
    assert kernel_log.oom_killed(lines) == {4711, 4712, 4713}


def test_f13_the_memory_group_is_read(tmp_path: Any) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    (tmp_path / "memory.max").write_text("8589934592\n")
    (tmp_path / "memory.peak").write_text("8500000000\n")
    group = kernel_log.memory_group(root=tmp_path)
    assert (group.oom_kills, group.limit) == (3, 8589934592)
    assert str(group) == "limit 8.59 GB, peak 8.5 GB"
