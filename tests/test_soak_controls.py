"""The harness can be believed: each campaign fails when what it watches is broken, and only then.

A short share of the cheap campaigns runs here as well; `make soak-ci` runs more of all.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak import (
    api,
    checkpoints,
    daemons,
    errors,
    journals,
    limits,
    places,
    powercuts,
    ranks,
    table,
    trainers,
    weights,
    yields,
)
from tests.soak.counts import Budget, Counts, Stopwatch

TIMED = """
import sys, time
from tests.soak.counts import Stopwatch
began = time.monotonic()
with Stopwatch() as watch:
    print("begun", flush=True)
    sys.stdin.readline()
print(time.monotonic() - began, watch.seconds)
"""


@pytest.mark.parametrize("piece", ["cursor", "buffer", "optimizer", "rng"])
def test_a_piece_of_state_left_out_is_noticed_by_the_weights(piece: str) -> None:
    assert any("is not its twin" in words for words in weights.control(1, piece).failures)


def test_a_piece_of_state_left_out_is_noticed_by_the_ranks() -> None:
    assert any("is not its twin" in words for words in ranks.control(1).failures)


def test_a_checkpoint_altered_while_a_run_makes_way_is_noticed() -> None:
    assert any("is not its twin" in words for words in yields.control(4).failures)


def test_a_deleted_point_is_noticed() -> None:
    assert any("points lost" in words for words in trainers.control(2).failures)


@pytest.mark.parametrize(
    ("how", "said"), [("advanced", "points lost"), ("rewound", "gaps reported")]
)
def test_a_cursor_that_moves_without_its_rows_is_noticed(how: str, said: str) -> None:
    failures = daemons.control(3, how).failures
    assert any(said in words for words in failures)
    assert any("checkpoint_saved" in words for words in failures)


def test_a_cursor_committed_apart_is_noticed_after_a_kill() -> None:
    failures = daemons.control_by_kill(14).failures
    assert any("points lost" in words for words in failures)


def test_a_copy_that_takes_a_process_for_its_own_is_noticed() -> None:
    assert any("ended the original's" in words for words in places.control_copies(17).failures)


def test_a_restore_that_reads_nothing_again_is_noticed() -> None:
    assert any("on the disk" in words for words in places.control_restores(18).failures)


def test_a_daemon_that_takes_a_stranger_for_its_trainer_is_noticed() -> None:
    failures = places.control_strangers(19).failures
    assert any("waited for a stranger" in words for words in failures)


def test_a_path_that_is_stored_absolutely_is_noticed_by_a_move() -> None:
    assert any("absolute path" in words for words in places.control_moves(20).failures)


def test_an_unguarded_delete_is_noticed() -> None:
    assert any("left alive" in words for words in api.control_unguarded(15).failures)


def test_journals_believed_without_their_crc_are_noticed() -> None:
    failures = journals.control(4).failures
    assert any(words.startswith("bit ") for words in failures)
    assert any(words.startswith("read, bit ") for words in failures)


def test_checkpoints_that_are_not_verified_are_noticed() -> None:
    assert len(checkpoints.control(5).failures) >= 40


def test_an_fsync_whose_error_nobody_looks_at_is_noticed() -> None:
    failures = errors.control(6).failures
    assert any("checkpoint.fsync" in words and "claimed" in words for words in failures)
    assert any("journal.fsync" in words for words in failures)


@pytest.mark.needs("loop mounts")
def test_an_fsync_that_does_nothing_is_noticed_by_a_power_cut() -> None:
    failures = powercuts.control(12).failures
    assert any("claims lost" in words for words in failures)


def test_limits_that_are_taken_away_are_noticed() -> None:
    failures = limits.control(16).failures
    for words in (
        "horizon.flops",
        "a body of",
        "a newcomer was shut out",
        "a pickle of",
        "trained on",
    ):
        assert any(words in failure for failure in failures), (words, failures)


def test_a_move_that_is_missing_and_a_second_trainer_are_noticed() -> None:
    failures = api.control(7).failures
    assert any("was followed by" in words for words in failures)
    assert any("2 trainers" in words for words in failures)


# --- a share of each -----------------------------------------------------------------------------


def test_f22_f23_cuts_and_flips_through_the_database() -> None:
    counts = journals.run(4, 8)
    assert counts.failures == []
    assert counts.done["truncations"] > 8_000
    assert counts.done["bit flips"] > 100


@pytest.mark.needs("loop mounts")
def test_f21_what_was_claimed_is_there_after_a_power_cut() -> None:
    counts = Counts("powercuts", 13)
    powercuts._one_disk(counts, random.Random(13), Budget(60), 4)
    assert counts.failures == []
    assert counts.done["power cuts"] >= 2
    assert counts.done["claims held against them"] > 40


def test_f26_damaged_checkpoints() -> None:
    counts = checkpoints.run(2, 9)
    assert counts.failures == []


def test_f18_f20_errors_at_every_pass_of_a_save() -> None:
    counts = Counts("errors", 10)
    errors._sweep(counts)
    assert counts.failures == []
    assert counts.done["errors in a save"] == 2 * 17  # both errors at every pass of a save


def test_one_strike_of_strace_is_answered_for(tmp_path: Path) -> None:
    claims = ["record 0", "checkpoint step-000000001-a0001", f"journal ended: {errno.EIO}"]
    counts = Counts("errors", 11)
    errors._hold_to_claims(counts, "control", tmp_path, claims)
    assert len(counts.failures) == 1


@pytest.mark.needs("strace")
def test_f20_strikes_meet_every_kind_of_system_call_of_a_writer() -> None:
    strikes = errors.every_strike(random.Random(1))
    met = {strike.call for strike in strikes}
    assert met == {*errors.CHANGING, *errors.LOOKING}
    last = max(s.when for s in strikes if s.call == "rename")
    found = errors._struck(1, errors.Strike("rename", last, "signal=KILL"))
    assert (found.failures, found.done) == ([], {"kills at system calls": 1})


def test_the_stopwatch_leaves_out_what_the_machine_did_not_run() -> None:
    """A process that is stopped for a second does not count it; one that sleeps counts it all."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", TIMED], stdin=pipe, stdout=pipe, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "begun\n"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(child.pid, signal.SIGCONT)
        rest, _ = child.communicate("\n", timeout=60)
    finally:
        child.kill()
    whole, counted = map(float, rest.split())
    assert whole - counted > 0.8
    with Stopwatch() as watch:
        time.sleep(0.3)
    assert watch.seconds > 0.1


def test_the_table_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for number in (1, 2_000):
        counts = Counts("weights", number)
        counts.add("kills", number)
        counts.longest("re-adoption", 0.25)
        table.append(counts, path)
    counts.fail("a | b,\nc")
    table.append(counts, path)
    text = path.read_text()
    assert "| weights | 3 | 4,001 kills | 1 |" in text
    assert "| 2,000 kills | re-adoption 0.25 s | 1 (a / b, c) |" in text
