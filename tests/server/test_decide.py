"""The decision about a run or job at one tick: a table of what is seen and what is done."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from server.domain.states import State
from server.supervision import decide
from server.supervision.decide import (
    WAIT,
    Adopt,
    ClearStall,
    Close,
    Deliver,
    DropPreparation,
    Explain,
    JobSeen,
    Launch,
    Move,
    Prepare,
    RunSeen,
    Seen,
    SendCommand,
    Sweep,
)
from server.supervision.watch import Presence
from trainer.contract.reasons import Reason

LIVE: dict[str, Any] = {"presence": Presence.alive, "has_begun": True}


def alive(**seen: Any) -> Seen:
    return Seen(**{**LIVE, **seen})


@pytest.mark.parametrize(
    ("state", "seen", "action"),
    [
        # a process that is there, was there, or may be there
        ("starting", {"process": Seen(presence=Presence.unknown)}, Adopt()),
        ("running", {"process": Seen(presence=Presence.lingering)}, Sweep()),
        ("running", {"process": Seen(presence=Presence.gone)}, WAIT),
        ("running", {"process": Seen(presence=Presence.gone, drained=True)}, Close()),
        ("completed", {"process": Seen(presence=Presence.gone, drained=True)}, Close()),
        # a live one
        ("starting", {"process": alive(has_begun=False)}, WAIT),
        ("starting", {"process": alive()}, Move(State.running, Reason.requested)),
        ("running", {"process": alive()}, WAIT),
        ("running", {"process": alive(has_commands=True)}, Deliver()),
        ("pausing", {"process": alive()}, SendCommand("pause")),
        ("pausing", {"process": alive(has_commands=True)}, Deliver()),
        ("pausing", {"process": alive(sent=frozenset({"pause"}), step=1)}, WAIT),
        ("cancelling", {"process": alive(sent=frozenset({"pause"}))}, SendCommand("cancel")),
        ("failed", {"process": alive()}, SendCommand("cancel")),
        ("queued", {"process": alive()}, WAIT),  # resumed while pausing: it ends first
        (
            "running",
            {"process": alive(waits_for_space=True, silence=9)},
            Explain(Reason.disk_full),
        ),
        ("running", {"process": alive(), "reason": Reason.disk_full}, Explain(Reason.requested)),
        (
            "running",
            {"process": alive(waits_for_space=True, silence=9e9)},
            Explain(Reason.disk_full),
        ),
        # none
        ("queued", {"may_use_device": True}, Launch()),
        ("queued", {}, WAIT),
        ("queued", {"has_data": False}, Prepare()),
        # no room on the disk: nothing is started, and its reason says so once
        ("queued", {"may_use_device": True, "lacks_disk": True}, Explain(Reason.disk_full)),
        ("recovering", {"may_use_device": True, "lacks_disk": True}, Explain(Reason.disk_full)),
        (
            "queued",
            {"may_use_device": True, "lacks_disk": True, "reason": Reason.disk_full},
            WAIT,
        ),
        ("queued", {"may_use_device": True, "reason": Reason.disk_full}, Launch()),
        ("queued", {"has_data": False, "lacks_disk": True}, Explain(Reason.disk_full)),
        (
            "preparing",
            {"has_data": False, "lacks_disk": True, "preparation": "queued"},
            Explain(Reason.disk_full),
        ),
        (
            "preparing",
            {"has_data": False, "preparation": "running", "reason": Reason.disk_full},
            Explain(Reason.waiting_for_data),
        ),
        (
            "queued",
            {
                "reason": Reason.disk_full,
                "waits": (Reason.waiting_for_device, "another run uses it"),
            },
            Explain(Reason.waiting_for_device, "another run uses it"),
        ),
        ("queued", {"has_data": False, "preparation": "failed"}, Prepare()),
        ("preparing", {"has_data": False, "preparation": "running"}, WAIT),
        ("preparing", {"has_data": False, "preparation": "cancelled"}, Prepare()),
        (
            "preparing",
            {"has_data": False, "preparation": "failed", "preparation_message": "no text"},
            Move(State.failed, Reason.data_unusable, "no text"),
        ),
        (
            "preparing",
            {
                "has_data": False,
                "preparation": "failed",
                "preparation_message": "no memory",
                "preparation_reason": Reason.host_out_of_memory,
            },
            Move(State.failed, Reason.host_out_of_memory, "no memory"),
        ),
        (
            "preparing",  # its preparation ran out of room: tried again when there is more
            {
                "has_data": False,
                "lacks_disk": True,
                "preparation_message": "no room for the cache",
                "preparation_reason": Reason.disk_full,
            },
            Explain(Reason.disk_full, "no room for the cache"),
        ),
        (
            "preparing",
            {
                "has_data": False,
                "preparation": "failed",
                "preparation_message": "it crashed",
                "preparation_reason": Reason.crashed,
            },
            Move(State.failed, Reason.data_unusable, "it crashed"),
        ),
        ("preparing", {}, Move(State.queued, Reason.waiting_for_device)),
        ("preparing", {"may_use_device": True}, Launch()),
        ("recovering", {"may_use_device": True, "is_backing_off": True}, WAIT),
        ("recovering", {"may_use_device": True}, Launch()),
        ("starting", {"may_use_device": True}, Launch()),
        ("queued", {"may_use_device": True, "is_shutting_down": True}, WAIT),
        ("pausing", {}, Move(State.paused, Reason.requested)),
        ("pausing", {"preparation": "running"}, DropPreparation()),
        ("cancelling", {}, Move(State.cancelled, Reason.requested)),
        ("paused", {}, WAIT),
        ("completed", {}, WAIT),
    ],
)
def test_table(state: str, seen: dict[str, Any], action: decide.Action) -> None:
    assert decide.for_run(RunSeen(state=State(state), **seen)) == action


def test_a_run_never_reads_running_when_nothing_runs() -> None:
    action = decide.for_run(RunSeen(state=State.running))
    assert isinstance(action, Move)
    assert action.state is State.recovering


def test_a_resume_that_came_while_it_was_pausing_without_a_process_queues_it() -> None:
    seen = RunSeen(state=State.pausing, wants_to_run=True)
    assert decide.for_run(seen) == Move(State.queued, Reason.requested)


def climb(seen: RunSeen, *more: Seen) -> list[Any]:
    """The signals sent at each rung."""
    actions = [decide.for_run(RunSeen(state=seen.state, process=p, pause_seconds=60)) for p in more]
    return [a.signals if isinstance(a, decide.Signal) else a for a in actions]


def test_the_ladder_of_a_pause_has_one_rung_a_tick() -> None:
    told = frozenset({"pause"})
    assert climb(
        RunSeen(state=State.pausing),
        alive(sent=told, step=1, since_step=59),
        alive(sent=told, step=1, since_step=60),
        alive(sent=told, step=2, since_step=59),
        alive(sent=told, step=2, since_step=60),
        alive(sent=told, step=3, since_step=9999),
    ) == [WAIT, (signal.SIGTERM,), WAIT, (signal.SIGKILL,), WAIT]


def test_the_ladder_of_a_cancel_is_shorter() -> None:
    told = frozenset({"cancel"})
    assert climb(
        RunSeen(state=State.cancelling),
        alive(sent=told, step=1, since_step=29),
        alive(sent=told, step=1, since_step=30),
        alive(sent=told, step=2, since_step=10),
    ) == [WAIT, (signal.SIGTERM,), (signal.SIGKILL,)]


def test_the_ladder_continues_what_is_stopped_before_it_asks_again() -> None:
    told = frozenset({"pause"})
    assert climb(
        RunSeen(state=State.pausing),
        alive(sent=told, is_stopped=True),
        alive(sent=told, is_stopped=True, step=1, since_step=3),  # stopped once more, or traced
        alive(sent=told, is_stopped=True, step=1, since_step=60),
        alive(sent=told, is_stopped=True, step=2, since_step=60),
    ) == [(signal.SIGCONT,), WAIT, (signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)]


def test_one_that_speaks_again_after_sigterm_may_save() -> None:
    assert climb(
        RunSeen(state=State.running),
        alive(silence=1, stall_step=3, since_step=59),
        alive(silence=1, stall_step=3, since_step=60),
    ) == [WAIT, (signal.SIGKILL,)]


def test_the_ladder_of_a_stall() -> None:
    assert climb(
        RunSeen(state=State.running),
        alive(silence=599),
        alive(silence=600),
        alive(silence=601, stall_step=1, since_step=1),
        alive(silence=602, stall_step=1, since_step=2),
        alive(silence=612, stall_step=3, since_step=10),
        alive(silence=620, stall_step=4, since_step=20),
    ) == [WAIT, (signal.SIGURG,), WAIT, (signal.SIGTERM,), (signal.SIGKILL,), WAIT]


def test_a_stalled_process_that_moves_again_is_spared_but_not_a_stopped_one() -> None:
    moved = alive(silence=0.1, stall_step=1, since_step=1)
    assert decide.for_run(RunSeen(state=State.running, process=moved)) == ClearStall()
    stopped = decide.for_run(
        RunSeen(state=State.running, process=alive(silence=600, is_stopped=True))
    )
    assert isinstance(stopped, decide.Signal)
    assert stopped.signals == (signal.SIGURG, signal.SIGCONT)
    after = alive(silence=0.1, stall_step=stopped.step, since_step=2)
    assert climb(RunSeen(state=State.running), after) == [(signal.SIGTERM,)]


def test_patience_belongs_to_the_stage() -> None:
    slow = alive(silence=700, timeout=1800)
    assert decide.for_run(RunSeen(state=State.running, process=slow)) == WAIT


def test_a_daemon_that_takes_its_trainers_along() -> None:
    def ends(process: Seen) -> decide.Action:
        return decide.for_run(
            RunSeen(
                state=State.running, process=process, is_shutting_down=True, stops_trainers=True
            )
        )

    first = ends(alive())
    assert isinstance(first, decide.Signal)
    assert signal.SIGTERM in first.signals
    assert ends(alive(step=2, since_step=5)) == WAIT
    last = ends(alive(step=2, since_step=600))
    assert isinstance(last, decide.Signal)
    assert last.signals == (signal.SIGKILL,)


@pytest.mark.parametrize(
    ("state", "seen", "action"),
    [
        ("queued", {}, WAIT),
        ("queued", {"may_start": True}, Launch()),
        ("queued", {"may_start": True, "is_shutting_down": True}, WAIT),
        ("queued", {"may_start": True, "lacks_disk": True}, Explain(Reason.disk_full)),
        ("queued", {"may_start": True, "lacks_disk": True, "reason": Reason.disk_full}, WAIT),
        ("queued", {"may_start": True, "reason": Reason.disk_full}, Launch()),
        ("queued", {"may_start": True, "is_cancelled": True}, Close()),
        ("running", {"process": Seen(presence=Presence.unknown)}, Adopt()),
        ("running", {"process": Seen(presence=Presence.lingering)}, Sweep()),
        ("running", {"process": Seen(presence=Presence.gone, drained=True)}, Close()),
        ("running", {"process": alive()}, WAIT),
        ("running", {"process": alive(), "is_cancelled": True}, SendCommand("cancel")),
    ],
)
def test_jobs(state: str, seen: dict[str, Any], action: decide.Action) -> None:
    assert decide.for_job(JobSeen(state=state, **seen)) == action
