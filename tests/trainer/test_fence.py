"""An attempt that was superseded commits nothing, at whatever moment its successor begins."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainer.checkpoint import fence
from trainer.checkpoint.fence import Fenced
from trainer.contract.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    for number in (1, 2):
        run.attempt(number).mkdir(parents=True)
    return run


def begun(run: RunDir, attempt: int) -> Path:
    """A checkpoint that this attempt has written but not committed."""
    temp = fence.staging(run.checkpoints, attempt)
    assert temp is not None
    fence.make(temp)
    (temp / "model").write_bytes(b"weights")
    return temp


def test_a_checkpoint_is_committed_by_one_rename(run: RunDir) -> None:
    path = run.checkpoint(10, 1)
    fence.commit(begun(run, 1), path)
    assert (path / "model").read_bytes() == b"weights"
    fence.commit(begun(run, 1), run.checkpoint(20, 1))


def test_a_successor_takes_away_what_was_about_to_be_committed(run: RunDir) -> None:
    temp = begun(run, 1)
    assert fence.shut_out(run.root, 2) == ["0001/staging.superseded-0002"]
    with pytest.raises(Fenced, match="attempt 2 has taken over"):
        fence.commit(temp, run.checkpoint(10, 1))
    assert list(run.checkpoints.iterdir()) == []


def test_one_that_lives_on_cannot_begin_another(run: RunDir) -> None:
    fence.shut_out(run.root, 2)
    temp = fence.staging(run.checkpoints, 1)
    assert temp is not None
    for _ in range(2):
        with pytest.raises(Fenced, match="attempt 2"):
            fence.make(temp)


def test_its_own_and_newer_attempts_are_left_alone(run: RunDir) -> None:
    temp = begun(run, 2)
    assert fence.shut_out(run.root, 2) == []
    fence.commit(temp, run.checkpoint(10, 2))
    assert fence.shut_out(run.root, 1) == []
    fence.commit(begun(run, 2), run.checkpoint(20, 2))


def test_shutting_out_twice_is_shutting_out_once(run: RunDir) -> None:
    begun(run, 1)
    run.attempt(3).mkdir()
    fence.shut_out(run.root, 2)
    assert fence.shut_out(run.root, 3) == []
    assert (run.attempt(1) / "staging").is_file()
    assert (run.attempt(2) / "staging").is_file()


def test_a_successor_that_cannot_be_ruled_out_stops_the_commit(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that fails is not a listing without newer attempts."""

    def failing(path: object) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(fence.os, "listdir", failing)
    with pytest.raises(OSError, match="Stale"):
        fence.refuse_if_succeeded(run.root, 1)


def test_an_import_has_no_attempt_to_write_in(run: RunDir) -> None:
    assert fence.staging(run.checkpoints, 7) is None
