"""A run on a corpus that is still being hashed: it trains, reports how far it is, and pauses."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.forkserver import ForkServer
from tests.trainer.lab import TINY, Lab, write_corpus
from trainer.data import contents, hashing, prepared
from trainer.data.prepared import PreparedData


@pytest.fixture
def run(tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A prepared run whose corpus was named by samples, and which no other run has hashed."""
    monkeypatch.setattr(contents, "HASH_FIRST_BYTES", 0)
    write_corpus(tmp_path / "shards")
    made = Lab(tmp_path / "watched", fork_server, {**TINY, "horizon": {"steps": 12}})
    made.prepare(tmp_path / "shards")
    return made


def data_of(run: Lab) -> PreparedData:
    return prepared.read(run.run_dir.data, run.root)


@contextmanager
def hashed_by_another_run(data: PreparedData, **state: Any) -> Iterator[None]:
    """Another run's process is at it, and reports this."""
    path = hashing.state_path(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = {"total_bytes": 4000, "done_bytes": 0, "changed": [], "touched": [], "finished": False}
    with hashing.lock_path(data).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        path.write_text(json.dumps({**begun, "pid": os.getpid(), **state}))
        yield
        path.unlink()


def hashing_notices(run: Lab) -> list[dict[str, Any]]:
    return [e for e in run.events("notice") if e["code"].startswith("corpus_")]


def test_a_run_starts_before_its_corpus_is_hashed_and_reports_how_far_it_is(run: Lab) -> None:
    assert all(file.sampled for file in data_of(run).train_files)
    with hashed_by_another_run(data_of(run), done_bytes=1000):
        run.run()
    assert run.exit()["outcome"] == "completed"
    (notice,) = hashing_notices(run)
    assert notice["data"] == {"done_bytes": 1000, "total_bytes": 4000}
    assert "(25 %)" in notice["message"]


def test_a_file_that_is_not_what_it_was_pauses_the_run_with_its_name(run: Lab) -> None:
    path = data_of(run).train_files[2].path
    with hashed_by_another_run(data_of(run), changed=[[path, "has other content"]]):
        run.run()
    ended = run.exit()
    assert (ended["outcome"], ended["reason"]) == ("failed", "data_changed")
    assert path in ended["message"]


def test_what_was_touched_is_reported(run: Lab) -> None:
    path = data_of(run).train_files[2].path
    with hashed_by_another_run(data_of(run), done_bytes=4000, finished=True, touched=[path]):
        run.run()
    assert run.exit()["outcome"] == "completed"
    done, touched = hashing_notices(run)
    assert "a change of any byte is detected from now on" in done["message"]
    assert touched["code"] == "corpus_touched"
    assert path in touched["message"]
