"""A data directory that was copied, moved, backed up and put back: nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from server import errors
from server.database import backups, migrate, provenance, tables
from server.database.db import Database
from server.database.migrate import Refused
from server.domain import attempts, groups, policies, run_files, runs
from server.domain.extend import next_number
from server.events import webhooks
from server.launch import process
from server.maintenance import backup as backing
from server.maintenance.housekeeping import HousekeepingThread
from server.maintenance.rebuild import rebuild
from server.maintenance.restore import restore
from server.schemas.groups import GroupRequest
from server.schemas.policies import PlacePolicyView
from server.settings import Settings
from server.supervision.startup import arrive
from tests.server.house import House
from tests.server.reporting import Reporter, attempt, create
from trainer.contract import journal, orders
from trainer.contract.reasons import Reason


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


def _ordered(db: Database, settings: Settings, run_id: str) -> Reporter:
    reporter = attempt(db, settings, run_id)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        orders.write(reporter.outbox.parent, attempts.build_order(session, run, row, settings))
    return reporter


def _points(db: Database, run_id: str) -> list[int]:
    with db.read() as session:
        asked = (
            select(tables.Point.step)
            .join(tables.Attempt, tables.Attempt.id == tables.Point.attempt_id)
            .where(tables.Attempt.run_id == run_id)
        )
        return sorted(session.scalars(asked))


# --- journals ------------------------------------------------------------------------------------


def test_a_copied_journal_is_the_same_journal(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 40)
    reporter.ingest()
    reporter.steps(40, 60)
    copy = reporter.outbox.with_name("copy")
    shutil.copy2(reporter.outbox, copy)
    os.replace(copy, reporter.outbox)  # the same bytes, another inode
    assert reporter.ingest().problem is None
    assert _points(db, reporter.run_id) == list(range(60))


@pytest.mark.parametrize("change", ["other token", "a prefix with another record", "shorter"])
def test_another_journal_in_its_place_is_refused(
    db: Database, settings: Settings, change: str
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 40)
    reporter.ingest()
    lines = reporter.outbox.read_bytes().splitlines(keepends=True)
    if change == "other token":
        header = journal.decode(lines[0].rstrip(b"\n"))
        assert header is not None
        lines[0] = journal._encode({**header, "token": "f" * 32})
    elif change == "shorter":
        lines = lines[:20]
    else:
        lines.insert(10, journal._encode({"seq": 9, "ts": 1.0, "kind": "notice"}))
    reporter.outbox.unlink()
    reporter.outbox.write_bytes(b"".join(lines))
    assert reporter.ingest().problem is not None


# --- numbers and orders --------------------------------------------------------------------------


def test_the_next_attempt_is_beyond_rows_and_disk(db: Database, settings: Settings) -> None:
    run_id = create(db)
    run_dir = settings.paths.run(run_id)
    run_dir.attempt(7).mkdir(parents=True)
    (run_dir.checkpoints / "step-000000010-a0009").mkdir(parents=True)
    with db.read() as session:
        assert next_number(session, run_id) == 10


def test_an_order_is_never_replaced(db: Database, settings: Settings) -> None:
    reporter = _ordered(db, settings, create(db))
    before = (reporter.outbox.parent / orders.ORDER).read_bytes()
    with db.read() as session:
        run = session.get_one(tables.Run, reporter.run_id)
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        order = attempts.build_order(session, run, row, settings)
    with pytest.raises(FileExistsError):
        orders.write(reporter.outbox.parent, order.model_copy(update={"token": "another"}))
    assert (reporter.outbox.parent / orders.ORDER).read_bytes() == before
    assert str(settings.paths.root).encode() not in before  # nothing of ours by absolute path
    assert orders.read(reporter.outbox.parent, orders.AttemptOrder) == order


# --- backup and restore --------------------------------------------------------------------------


def test_a_backup_holds_all_that_was_acknowledged_before_it(
    db: Database, settings: Settings, tmp_path: Path
) -> None:
    create(db, "one")
    made = backing.backup(settings, tmp_path / "elsewhere.db")
    assert made.copy_path is not None
    assert backups.problems(db.library, Path(made.copy_path), thorough=True) == []
    create(db, "two")
    db.close()
    settings.paths.database.write_bytes(b"garbage" * 1000)
    with pytest.raises(migrate.Refused, match="traind restore"):
        Database.open(settings)
    put_back = restore(settings)
    assert put_back.backup == made.path
    again = Database.open(settings)
    with again.read() as session:
        assert list(session.scalars(select(tables.Run.name))) == ["one"]
    again.close()


def test_a_restore_reads_again_what_came_after_the_backup(settings: Settings) -> None:
    db = Database.open(settings)
    run_id = create(db, steps=90)
    first = _ordered(db, settings, run_id)
    first.begin()
    first.steps(0, 30)
    first.ingest()
    provenance.record(db, settings.paths)
    backing.backup(settings)
    first.steps(30, 45)
    name = first.save(40)
    second = _ordered(db, settings, run_id)
    second.begin(40, name)
    second.steps(40, 90)
    last = second.save(90)
    second.end("completed", 90, Reason.finished)
    for saved in (name, last):
        (settings.paths.run(run_id).checkpoints / saved).mkdir(parents=True)
    other = create(db, "later")
    HousekeepingThread(db, settings.paths).write_run_files()
    db.close()
    found = restore(settings)
    assert (found.runs, found.attempts, found.problems) == (["later"], 1, [])
    db = Database.open(settings)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        assert (run.state, run.step) == ("completed", 90)
        assert session.get_one(tables.Run, other).state == "queued"
        assert next_number(session, run_id) == 3
    assert _points(db, run_id) == sorted([*range(45), *range(40, 90)])
    db.close()


def test_strange_directories_of_a_run_stop_no_start(db: Database, settings: Settings) -> None:
    """A copied attempt, an order of another run, a run.json that no run could have."""
    reporter = _ordered(db, settings, create(db))
    attempts_dir = reporter.outbox.parent.parent
    shutil.copytree(reporter.outbox.parent, attempts_dir / "0001.bak")
    shutil.copytree(reporter.outbox.parent, attempts_dir / "0007")
    strange = settings.paths.root / "runs" / "run_strange"
    shutil.copytree(attempts_dir.parent, strange)
    (strange / "run.json").write_text('{"id": "run_strange", "name": "x", "created_at": 1e400}')
    (attempts_dir / "²").mkdir()
    provenance.record(db, settings.paths)
    arrive(db, settings.paths)
    with db.read() as session:
        assert list(session.scalars(select(tables.Run.id))) == [reporter.run_id]
        assert list(session.scalars(select(tables.Attempt.number))) == [1]
        assert next_number(session, reporter.run_id) == 8


def test_one_runs_file_that_cannot_be_written_holds_up_no_other(
    db: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = create(db, "first"), create(db, "second")
    (settings.paths.run(first).root / "run.json").mkdir(parents=True)
    housekeeping = HousekeepingThread(db, settings.paths)
    for _ in range(3):
        housekeeping.write_run_files()
    assert (settings.paths.run(second).root / "run.json").is_file()
    assert caplog.text.count("cannot be written") == 1


def test_a_backup_put_back_by_hand_is_noticed_and_begins_a_new_timeline(
    settings: Settings,
) -> None:
    db = Database.open(settings)
    run_id = create(db, steps=90)
    arrive(db, settings.paths)
    backing.backup(settings)
    first = _ordered(db, settings, run_id)
    first.begin()
    first.steps(0, 30)
    first.ingest()
    with db.read() as session:
        told = session.scalar(select(func.max(tables.Event.id))) or 0
    db.close()
    (backup, *_) = backups.newest_first(settings.paths)
    shutil.copyfile(backup, settings.paths.database)
    db = Database.open(settings)
    arrive(db, settings.paths)
    assert _points(db, run_id) == list(range(30))
    with db.write() as session:
        restored = session.query(tables.Event).filter_by(kind="restored", run_id=None).one()
        assert restored.id > told + 10**8  # no client that saw a later event misses it
    arrive(db, settings.paths)
    with db.read() as session:
        assert session.query(tables.Event).filter_by(kind="restored", run_id=None).count() == 1
    place = json.loads((settings.paths.root / webhooks.PLACE).read_text())
    assert place["after"] >= 10**9
    db.close()


def test_an_ordinary_start_is_no_restore(settings: Settings) -> None:
    for _ in range(3):
        db = Database.open(settings)
        arrive(db, settings.paths)
        backing.backup(settings)
        db.close()
    db = Database.open(settings)
    arrive(db, settings.paths)
    with db.read() as session:
        assert session.query(tables.Event).count() == 0
    db.close()


def test_f06_a_restored_database_never_reads_old_exit_records(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older database knew one attempt; the disk has three, each with its last word."""
    house.behave(monkeypatch, all={"hold_at": 15})
    run_id = house.create(steps=40)
    for number in (1, 2, 3):
        with house.daemon():
            if number == 2:
                backing.backup(house.settings)
            if number > 1:
                house.ask(runs.resume, run_id, None)
            house.until(lambda n=number: len(house.attempts(run_id)) == n)
            house.until(lambda: house.last(run_id, lambda a: a.start_step is not None))
            house.becomes(run_id, "running")
            house.ask(runs.request_pause, run_id)
            house.becomes(run_id, "paused")
    house.db.close()
    restore(house.settings)
    house.db = Database.open(house.settings)
    assert [a.number for a in house.attempts(run_id)] == [1, 2, 3]
    house.behave(monkeypatch, all={})
    with house.daemon():
        house.ask(runs.resume, run_id, None)
        house.becomes(run_id, "completed")
    assert [a.number for a in house.attempts(run_id)] == [1, 2, 3, 4]
    house.check(run_id)


def test_a_backup_is_made_each_day_and_old_ones_go(db: Database, settings: Settings) -> None:
    housekeeping, now = HousekeepingThread(db, settings.paths), time.time()
    assert housekeeping.back_up_if_due(now) > 0
    housekeeping.back_up_if_due(now + 60)
    assert len(db.backups()) == 1
    assert list(settings.paths.backups.iterdir()) == db.backups()  # no WAL, no temporary file
    for day in range(1, 12):
        for path in db.backups():  # each a day older than the time that is looked at
            os.utime(path, (now + (day - 1) * 86_400, now + (day - 1) * 86_400))
        housekeeping.back_up_if_due(now + day * 86_400)
    assert len(db.backups()) == backups.KEPT


def test_a_backup_that_fails_is_shown_until_one_succeeds(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    housekeeping = HousekeepingThread(db, settings.paths)
    settings.paths.backups.write_text("in the way")
    housekeeping.back_up_if_due(time.time())
    assert "daily backup" in (db.backup_problem or "")
    settings.paths.backups.unlink()
    housekeeping.back_up_if_due(time.time())
    assert db.backup_problem is None


# --- rebuild -------------------------------------------------------------------------------------


def test_rebuild_gives_back_groups_and_policies_of_devices(settings: Settings) -> None:
    db = Database.open(settings)
    housekeeping = HousekeepingThread(db, settings.paths)
    asked = {"base": {}, "depths": [2, 3], "repeats": 2}
    hours = [{"days": ["sat"], "from": "22:00", "to": "06:00"}]
    policy = PlacePolicyView.model_validate({"hours": hours, "neighbours": {}})
    with db.write() as session:
        for name in ("kept", "deleted"):
            request = GroupRequest.model_validate({"name": name, **asked})
            groups.create(session, request, settings, time.time())
        policies.put(session, "cuda:0", policy)
    housekeeping.one_pass()
    with db.write() as session:
        groups.delete(session, groups.get(session, "deleted"), time.time(), with_runs=False)
    housekeeping.one_pass()
    before = _groups(db)
    db.close()
    settings.paths.database.write_bytes(b"garbage" * 1000)
    made = rebuild(settings)
    assert (len(made.runs), made.problems) == (8, [])
    db = Database.open(settings)
    assert _groups(db) == before
    assert [name for name, *_ in before] == ["kept"]
    with db.read() as session:
        assert policies.all_of_them(session) == {"cuda:0": policy}
    db.close()


def test_rebuild_names_policies_that_cannot_be_read(settings: Settings) -> None:
    db = Database.open(settings)
    create(db)
    HousekeepingThread(db, settings.paths).write_run_files()
    db.close()
    (settings.paths.root / "policies.json").write_text("{")
    settings.paths.database.write_bytes(b"garbage" * 1000)
    (problem,) = rebuild(settings).problems
    assert problem.startswith("the policies of the devices cannot be read: ")


def _groups(db: Database) -> list[Any]:
    """Each group with its members: what they vary, and by which name they run."""
    with db.read() as session:
        return [
            (group.name, group.id, group.request, group.created_at, [
                (run.name, member.index, member.depth, member.variant, member.seed)
                for run in groups.runs_of(session, group)
                for member in [session.get_one(tables.GroupMember, run.id)]
            ])
            for group in session.scalars(select(tables.Group))
        ]  # fmt: skip


def test_f28_rebuild_gives_back_runs_that_were_only_made_or_queued(settings: Settings) -> None:
    db = Database.open(settings)
    create(db, "made", title="a title", start=False, metadata={"who": "me"})
    create(db, "queued")
    renamed = create(db, "renamed")
    with db.write() as session:
        run = session.get_one(tables.Run, renamed)
        run.title, run.version = "given later", run.version + 1
    HousekeepingThread(db, settings.paths).write_run_files()
    db.close()
    settings.paths.database.write_bytes(b"garbage" * 1000)
    made = rebuild(settings)
    assert (sorted(made.runs), made.problems) == (["made", "queued", "renamed"], [])
    assert any("jobs" in one for one in made.not_on_disk)
    db = Database.open(settings)
    with db.read() as session:
        rows = {run.name: run for run in session.scalars(select(tables.Run))}
        assert (rows["made"].state, rows["made"].title) == ("created", "a title")
        assert rows["made"].run_metadata == {"who": "me"}
        assert rows["queued"].state == "queued"
        assert rows["queued"].queue_position is not None
        assert rows["renamed"].title == "given later"
        assert session.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")) >= 1e9
    db.close()


def test_a_deleted_run_leaves_no_file_behind(db: Database, settings: Settings) -> None:
    run_id = create(db, "short-lived", start=False)
    housekeeping = HousekeepingThread(db, settings.paths)
    housekeeping.write_run_files()
    assert run_files.read(settings.paths.run(run_id)) is not None
    with db.write() as session:
        runs.delete(session, session.get_one(tables.Run, run_id), 1.0)
    shutil.rmtree(settings.paths.run(run_id).root)
    housekeeping._write(run_id)
    housekeeping.write_run_files()
    assert not settings.paths.run(run_id).root.exists()


# --- copies and moves ----------------------------------------------------------------------------


def test_a_copy_beside_a_live_original_touches_none_of_its_processes(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"hold_at": 15})
    run_id = house.create(steps=40)
    arrive(house.db, house.settings.paths)
    with house.daemon():
        pid = house.pid(run_id)
        waiting = house.create("waiting", steps=40)
        (tmp_path / "beside").mkdir()
        copy = House(tmp_path / "beside")
        copy.db.close()
        shutil.rmtree(copy.settings.data_dir)
        backing.backup(house.settings)
        shutil.copytree(house.settings.data_dir, copy.settings.data_dir)
        copy.db = Database.open(copy.settings)
        arrive(copy.db, copy.settings.paths)
        with copy.daemon():
            held = copy.becomes(run_id, "paused")
            copy.becomes(waiting, "paused")
        assert held.reason == "copied"
        assert house.attempts(run_id)[0].pid == pid
        (trainer,) = process.carriers(house.attempts(run_id)[0].token)
        assert (trainer.pid, len(copy.attempts(run_id))) == (pid, 1)
        assert house.run(run_id).state == "running"
        copy.behave(monkeypatch, all={})
        with copy.daemon():  # asked for, it trains in the copy, beside the original
            copy.ask(runs.resume, run_id, None)
            copy.becomes(run_id, "completed")
            assert process.is_alive(trainer)
        copy.close()
        house.ask(runs.request_cancel, run_id)
        house.becomes(run_id, "cancelled")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "is not a traind database"),
        ("of another program", "is not a traind database"),
        ("newer", "schema 9999"),
        ("of another directory", "of another data directory"),
        ("text", "fails its integrity check"),
    ],
)
def test_what_must_not_take_the_databases_place_leaves_it_alone(
    settings: Settings, tmp_path: Path, kind: str, said: str
) -> None:
    db = Database.open(settings)
    create(db, "kept")
    provenance.record(db, settings.paths)
    module = db.library.module
    db.close()
    file = tmp_path / "backup.db"
    shutil.copy(backing.backup(settings).path, file)
    changes = {
        "newer": "UPDATE alembic_version SET version_num = '9999'",
        "of another directory": "UPDATE meta SET value = 'other' WHERE key = 'data_dir_id'",
    }
    if kind in changes:
        connection = module.connect(str(file))
        connection.execute(changes[kind])
        connection.commit()
        connection.close()
    else:
        file.write_bytes(b"text" * 100 if kind == "text" else b"")
    if kind == "of another program":
        connection = module.connect(str(file))
        connection.execute("CREATE TABLE runs (id TEXT)")
        connection.close()
    with pytest.raises(Refused, match=said):
        restore(settings, file)
    assert not list(settings.paths.root.glob("traind-before-*"))
    db = Database.open(settings)
    with db.read() as session:
        assert list(session.scalars(select(tables.Run.name))) == ["kept"]
    db.close()


def test_a_rebuild_reads_the_others_where_one_run_is_strange(settings: Settings) -> None:
    db = Database.open(settings)
    first, second = create(db, "first"), create(db, "second")
    HousekeepingThread(db, settings.paths).write_run_files()
    db.close()
    file = settings.paths.run(first).root / "run.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "spec": {"name": 5}}))
    found = rebuild(settings)
    assert found.runs == ["second"]
    assert any(first in problem for problem in found.problems)
    db = Database.open(settings)
    with db.read() as session:
        assert list(session.scalars(select(tables.Run.id))) == [second]
    db.close()


@pytest.mark.parametrize("tool", [rebuild, restore])
def test_a_tool_refuses_a_directory_that_cannot_be_used(tool: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("missing", "file"):
        with pytest.raises(Refused, match=f"{place} cannot be used"):
            tool(Settings(data_dir=tmp_path / place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_rebuild_without_any_run_replaces_nothing(settings: Settings) -> None:
    db = Database.open(settings)
    create(db, "elsewhere")
    db.close()
    shutil.rmtree(settings.paths.root / "runs", ignore_errors=True)
    with pytest.raises(Refused, match="no run in"):
        rebuild(settings)
    assert not list(settings.paths.root.glob("traind-before-*"))


def test_a_directory_from_another_machine_is_reported_once_and_continues(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reports() -> list[str]:
        asked = select(tables.Event.message).where(tables.Event.kind == "moved")
        with db.read() as session:
            return list(session.scalars(asked))

    db = Database.open(settings)
    run_id = create(db)
    monkeypatch.setattr(provenance, "machine_id", lambda: "one")
    for _ in range(2):
        arrive(db, settings.paths)
    assert reports() == []
    monkeypatch.setattr(provenance, "machine_id", lambda: "")  # a container: nothing is known
    arrive(db, settings.paths)
    monkeypatch.setattr(provenance, "machine_id", lambda: "two")
    arrive(db, settings.paths)
    assert reports() == []
    monkeypatch.setattr(provenance, "machine_id", lambda: "three")
    for _ in range(2):
        arrive(db, settings.paths)
    (said,) = reports()
    assert "last opened on another machine" in said
    with db.read() as session:
        assert session.get_one(tables.Run, run_id).state == "queued"
    db.close()


def test_a_copy_of_hard_links_is_refused(settings: Settings, tmp_path: Path) -> None:
    db = Database.open(settings)
    create(db)
    arrive(db, settings.paths)
    db.close()
    copy = Settings(data_dir=tmp_path / "snapshot", port=0)
    assert settings.data_dir is not None
    shutil.copytree(settings.data_dir, copy.paths.root, copy_function=os.link)
    db = Database.open(copy)
    with pytest.raises(errors.StorageBroken, match="made of hard links"):
        arrive(db, copy.paths)
    db.close()


def test_a_moved_directory_is_no_copy(settings: Settings, tmp_path: Path) -> None:
    db = Database.open(settings)
    run_id = create(db)
    arrive(db, settings.paths)
    db.close()
    moved = Settings(data_dir=tmp_path / "elsewhere", port=0)
    os.rename(settings.data_dir, moved.data_dir)
    db = Database.open(moved)
    came = provenance.inspect(db, moved.paths)
    assert (came.copied_from, came.moved_from) == (None, str(settings.paths.root))
    arrive(db, moved.paths)
    with db.read() as session:
        assert session.get_one(tables.Run, run_id).state == "queued"
    assert provenance.inspect(db, moved.paths) == provenance.Provenance()
    db.close()
