"""What becomes of checkpoints when the trainer is killed, the disk refuses, or bytes change.

Trainers come from the fork server; each test carries the number of its fault. The sweeps here take
every place once; the campaigns of tests/soak take each of them at every n-th pass.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.lab import Lab
from trainer.checkpoint import store
from trainer.contract.orders import Lineage
from trainer.train.spike_detector import WINDOW_STEPS, SpikeWatch

STEPS = 16
SHORT: dict[str, Any] = {
    "horizon": {"steps": STEPS},
    "checkpoint": {"every_steps": 4, "every_seconds": None, "keep_last": 2},
}
# Each with how often it is passed before it strikes: late enough for a checkpoint to be there,
# but for those that are passed only once.
PLACES = {
    "trainer.load": 0,
    "checkpoint.write": 100,
    "checkpoint.fsync": 3,
    "durable.fsync": 6,
    "durable.rename": 6,
    "checkpoint.before_manifest": 1,
    "checkpoint.before_rename": 1,
    "checkpoint.before_dir_fsync": 1,
    "checkpoint.remove": 0,
    "journal.append": 20,
    "journal.fsync": 7,
    "loop.step": 9,
    "trainer.exit": 0,
}
DISK_PLACES = {k: v for k, v in PLACES.items() if k.split(".")[0] in ("checkpoint", "durable")}


def finish(lab: Lab, limit: int = 4) -> None:
    for _ in range(limit):
        if lab.run() == 0 and lab.exit()["outcome"] == "completed":
            return
    raise AssertionError(lab.log(lab.attempts))


@pytest.fixture(scope="module")
def twins() -> dict[str, Any]:
    return {}


@pytest.fixture
def twin(lab: Callable[..., Lab], twins: dict[str, Any]) -> tuple[Any, str]:
    """Curve and weights of the run that nothing happened to."""
    if not twins:
        calm = lab("twin", **SHORT)
        finish(calm)
        twins["is"] = (calm.curve(), calm.weights_sha256(STEPS))
    return twins["is"]


def is_the_twin(run: Lab, twin: tuple[Any, str]) -> None:
    assert (run.curve(), run.weights_sha256(STEPS)) == twin
    assert {e["verdict"] for e in run.events("resume_checked")} <= {"verified"}
    assert leftovers(run) == []


def leftovers(run: Lab) -> list[str]:
    names = [p.name for p in run.run_dir.checkpoints.iterdir()]
    return [name for name in names if name.startswith(".")]


def whole(run: Lab) -> list[str]:
    """The checkpoints that verify, oldest first."""
    found = []
    for path in sorted(run.run_dir.checkpoints.glob("step-*")):
        store.verify(path)
        found.append(path.name)
    return found


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_f02_killed_at_any_place_the_next_attempt_resumes_exactly(lab, twin, place):
    run = lab("killed", **SHORT)
    status = run.run(f"{place}={PLACES[place]}*off->1*kill")
    assert status == -signal.SIGKILL, run.log(1)
    committed = whole(run) if run.run_dir.checkpoints.is_dir() else []
    finish(run)
    resumed = run.events("resumed", attempt=2)[0]["checkpoint"]
    assert resumed == (committed[-1] if committed else None)
    is_the_twin(run, twin)


def test_f16_a_stale_attempt_commits_nothing_more(lab):
    run = lab("stale", **SHORT)
    directory = run.order()
    run.run_dir.attempt(2).mkdir()
    run.server.start(directory)
    assert run.server.wait() == 1
    assert run.exit(1)["reason"] == "superseded"
    assert "attempt 2 has taken over" in run.exit(1)["message"]
    assert list(run.run_dir.checkpoints.glob("*")) == []


# --- a next loss that cannot be computed --------------------------------------------------------


@pytest.mark.parametrize("how", ["pause", "terminate"])
def test_without_a_next_loss_the_checkpoint_is_saved_all_the_same(lab, twin, how):
    run = lab("unproven", **SHORT)
    run.interrupt(how, 6, fail=f"saving.next_loss=error({errno.EIO});loop.step=delay(0.1)")
    assert run.exit(1)["outcome"] == ("paused" if how == "pause" else "terminated")
    last = run.events("checkpoint_saved", attempt=1)[-1]
    assert (last["why"], last["next_loss"]) == (how, None)
    (notice,) = [e for e in run.events("notice", attempt=1) if e["code"] == "next_loss_missing"]
    assert notice["step"] == last["step"]
    finish(run)
    assert run.events("resumed", attempt=2)[0]["step"] == last["step"]
    is_the_twin(run, twin)


# --- a disk that is slow -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pause", "terminate"])
def test_a_save_in_flight_is_completed_before_the_attempt_ends(lab, twin, how):
    run = lab("slow", **SHORT)
    run.interrupt(how, 5, fail="checkpoint.before_rename=1*delay(1);loop.step=delay(0.1)")
    saved = run.events("checkpoint_saved", attempt=1)
    first, last = saved[0], saved[-1]
    assert (first["step"], first["why"], last["why"]) == (4, "cadence", how)
    assert first["seconds"] > 1.0
    assert whole(run) == [s["name"] for s in saved][-2:]  # keep_last
    finish(run)
    is_the_twin(run, twin)


def test_saves_that_take_longer_than_their_cadence_never_overlap(lab, twin):
    run = lab("slow", **SHORT)
    assert run.run("checkpoint.before_rename=delay(0.4);loop.step=delay(0.05)") == 0, run.log(1)
    saved = run.events("checkpoint_saved")
    spans = [(s["ts"] - s["seconds"], s["ts"]) for s in saved]
    assert len(spans) > 2
    assert all(ended <= began + 0.1 for (_, ended), (began, _) in pairwise(spans))
    is_the_twin(run, twin)


# --- a disk that refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("place", DISK_PLACES)
def test_f18_f20_a_refused_checkpoint_costs_nothing_and_training_goes_on(lab, twin, place, number):
    run = lab("refused", **SHORT)
    assert run.run(f"{place}={PLACES[place]}*off->1*error({number})") == 0, run.log(1)
    failed = run.events("checkpoint_failed")
    if place == "checkpoint.remove":
        assert failed == []
        assert "could not be removed" in run.log(1)
    else:
        assert [f["errno"] for f in failed] == [number]
        assert os.strerror(number) in failed[0]["message"]
    said = {e["name"] for e in run.events("checkpoint_saved")}
    assert set(whole(run)) <= said
    is_the_twin(run, twin)


def test_f18_while_nothing_can_be_saved_the_last_good_one_stays(lab, twin):
    run = lab("full", **SHORT)
    run.interrupt("pause", 5)
    good = whole(run)[-1]
    run.run(f"checkpoint.write=error({errno.EIO})")
    assert run.exit()["reason"] == "io_error"
    assert whole(run)[-1] == good
    assert leftovers(run) == []
    assert len(run.events("checkpoint_failed")) >= 3
    finish(run)
    is_the_twin(run, twin)


def test_f17_a_full_disk_is_waited_for_in_the_journal(lab, twin):
    run = lab("waiting", **SHORT)
    assert run.run(f"journal.append=20*off->2*error({errno.ENOSPC})") == 0
    (notice,) = run.events("notice")
    assert notice["code"] == "disk_full"
    is_the_twin(run, twin)


@pytest.mark.parametrize("place", ["journal.append", "journal.fsync"])
def test_f20_a_journal_that_fails_ends_the_attempt_and_claims_nothing(lab, twin, place):
    run = lab("unsure", **SHORT)
    assert run.run(f"{place}={PLACES[place]}*off->1*error({errno.EIO})") == 1
    assert run.exit()["reason"] == "io_error"
    finish(run)
    is_the_twin(run, twin)


# --- damage --------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda c: flip(c / store.MODEL),
    "a bit of the optimizer": lambda c: flip(c / store.OPTIMIZER),
    "a bit of the state": lambda c: flip(c / store.STATE),
    "a bit of the manifest": lambda c: flip(c / store.MANIFEST),
    "cut weights": lambda c: os.truncate(c / store.MODEL, 100),
    "no manifest": lambda c: (c / store.MANIFEST).unlink(),
    "no weights": lambda c: (c / store.MODEL).unlink(),
    "swapped files": lambda c: os.replace(c / store.OPTIMIZER, c / store.MODEL),
    "another step's": lambda c: shutil.copy(
        min(c.parent.glob("step-*")) / store.MODEL, c / store.MODEL
    ),
}


@pytest.fixture
def paused(lab: Callable[..., Lab]) -> Lab:
    """A run with checkpoints at steps 4, 8 (or nearby) and at its pause."""
    run = lab("damaged", **SHORT)
    run.interrupt("pause", 9)
    assert len(whole(run)) >= 2
    return run


@pytest.mark.parametrize("what", DAMAGES)
def test_f26_damage_is_found_before_the_load_and_an_older_one_is_used(paused, twin, what):
    *_, older, newest = whole(paused)
    DAMAGES[what](paused.run_dir.checkpoints / newest)
    finish(paused)
    (bad,) = paused.events("checkpoint_bad")
    resumed = paused.events("resumed", attempt=2)[0]
    assert bad["name"] == newest
    assert (resumed["checkpoint"], resumed["skipped"]) == (older, [newest])
    assert paused.curve() == twin[0]
    assert paused.weights_sha256(STEPS) == twin[1]


def test_f26_without_any_good_checkpoint_nothing_begins_at_step_0(paused):
    for name in whole(paused):
        flip(paused.run_dir.checkpoints / name / store.STATE)
    assert paused.run() == 1
    assert paused.exit()["reason"] == "no_checkpoint"
    assert paused.events("step", attempt=2) == []


def test_f26_every_bit_of_a_manifest_counts(paused):
    path = paused.run_dir.checkpoints / whole(paused)[-1]
    raw = (path / store.MANIFEST).read_bytes()
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << (bit % 8)
        (path / store.MANIFEST).write_bytes(damaged)
        with pytest.raises(store.Bad):
            store.read_manifest(path)


def test_f25_torn_and_leftover_directories_are_passed_over_and_swept(paused, twin):
    folder = paused.run_dir.checkpoints
    (folder / ".writing-step-000000012-a0001-77").mkdir()
    (folder / ".removing-step-000000001-a0001-5").mkdir()
    beyond = max(store.verify(folder / name).step for name in whole(paused)) + 1
    torn = folder / f"step-{beyond:09d}-a0001"
    torn.mkdir()
    (torn / store.MODEL).write_bytes(b"torn")
    finish(paused)
    assert leftovers(paused) == []
    assert [e["name"] for e in paused.events("checkpoint_bad")] == [torn.name]
    assert paused.weights_sha256(STEPS) == twin[1]


def test_f26_a_checkpoint_of_an_abandoned_branch_is_never_taken(paused):
    folder = paused.run_dir.checkpoints
    steps = [store.verify(folder / name).step for name in whole(paused)]
    cut = steps[-2]
    found = store.newest(folder, Lineage(limits={1: cut}))
    assert found is not None
    assert found.manifest.step == cut


# --- numbers that go wrong -----------------------------------------------------------------------


def test_f33_a_loss_that_is_no_number_touches_neither_weights_nor_checkpoints(lab, twin):
    run = lab("nan", **SHORT)
    assert run.run("loop.loss=9*off->1*corrupt") == 1
    ended = run.exit()
    assert (ended["outcome"], ended["reason"], ended["step"]) == ("failed", "non_finite_loss", 9)
    assert max(store.verify(run.run_dir.checkpoints / n).step for n in whole(run)) <= 9
    raw = (run.run_dir.attempt(1) / "outbox.jsonl").read_text()
    assert "NaN" not in json.loads(raw.splitlines()[-1])
    assert {e["step"] for e in run.events("step")} == set(range(9))
    finish(run)
    is_the_twin(run, twin)


def test_f33_a_rewind_leaves_the_offending_batch_out_and_says_so(lab, twin):
    run = lab("rewound", **SHORT)
    assert run.run("loop.loss=9*off->1*corrupt") == 1
    assert run.run(skip_steps=[(9, 9)]) == 0
    curve, (usual, _) = run.curve(), twin
    assert set(curve) == set(range(STEPS))
    assert {s: curve[s] for s in range(9)} == {s: usual[s] for s in range(9)}
    moved_up = [curve[step][1] for step in range(9, STEPS - 1)]
    assert moved_up == [usual[step][1] for step in range(10, STEPS)]  # the batches' sha256
    (notice,) = [e for e in run.events("notice") if e["code"] == "batch_left_out"]
    assert notice["step"] == 9
    assert "step 9 is left out" in run.events("resumed", attempt=2)[0]["approximate"]


def test_f34_a_spike_is_said_and_does_not_move_what_is_usual():
    watch = SpikeWatch()
    for step in range(WINDOW_STEPS):
        assert watch.observe(step, 3.0 + 0.01 * (step % 5)) is None
    notice = watch.observe(100, 9.0)
    assert notice is not None
    assert (notice.code, notice.step) == ("loss_spike", 100)
    assert watch.observe(101, 3.02) is None
    assert watch.observe(102, 9.0) is not None


def test_f34_a_new_level_of_the_loss_stops_being_a_spike():
    watch = SpikeWatch()
    for step in range(WINDOW_STEPS):
        watch.observe(step, 3.0)
    said = [watch.observe(100 + step, 4.0) is not None for step in range(2 * WINDOW_STEPS)]
    assert said[0]
    assert not any(said[-20:])


def test_a_checkpoint_that_is_a_link_to_another_disk_is_one_like_all_others(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    run = lab("linked", **SHORT)
    finish(run)
    directory, disk = run.run_dir.checkpoints, tmp_path / "disk"
    disk.mkdir()
    names = sorted(path.name for path in directory.iterdir())
    for name in names:
        shutil.move(directory / name, disk / name)
        (directory / name).symlink_to(disk / name)
    (disk / names[0] / "notes.txt").write_text("somebody else's")
    found = store.newest(directory, Lineage(limits={1: STEPS}))
    assert found is not None
    assert (found.path.name, found.passed_over) == (names[-1], [])
    for name in names:
        store.remove(directory / name)
    assert list(directory.iterdir()) == []
    assert [path.name for path in disk.rglob("*")] == [names[0], "notes.txt"]
