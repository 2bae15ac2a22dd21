"""The journal: gap-free, torn tails waited for, every flipped bit seen, space running out."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys

import pytest

from trainer.contract import journal
from trainer.contract.journal import JournalError, JournalFull, JournalHeader, JournalReader, Writer

HEADER = JournalHeader("run_1", 3, "token")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "outbox.jsonl"


def fill(path, count=20):
    writer = Writer.create(path, HEADER)
    for i in range(count):
        writer.append({"kind": "step", "step": i, "loss": 1 / (i + 1), "text": "é\n\u2028"})
    writer.sync()
    writer.close()


def read_all(path):
    reader, offset, seq, records = JournalReader(path), 0, 0, []
    while True:
        batch = reader.read(offset, seq, max_bytes=700)
        moved = batch.offset > offset
        records += batch.records
        offset, seq = batch.offset, batch.next_seq
        if batch.problem or not moved:
            return records, batch


def test_what_was_appended_is_read_in_order(path):
    fill(path)
    records, batch = read_all(path)
    assert [r["seq"] for r in records] == list(range(20))
    assert records[3]["loss"] == 0.25
    assert records[3]["text"] == "é\n\u2028"
    assert batch.problem is None


def test_header_is_known_after_the_first_read(path):
    fill(path, 1)
    reader = JournalReader(path)
    reader.read()
    assert reader.header == HEADER


def test_f22_truncation_at_every_byte_gives_a_prefix(path, tmp_path):
    fill(path, 12)
    whole = path.read_bytes()
    full, _ = read_all(path)
    cut = tmp_path / "cut.jsonl"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        records, batch = read_all(cut)
        assert batch.problem is None
        assert records == full[: len(records)]
        assert len(records) == max(0, whole[:length].count(b"\n") - 1)


def test_f23_every_flipped_bit_is_noticed(path, tmp_path):
    fill(path, 8)
    whole = bytearray(path.read_bytes())
    full, _ = read_all(path)
    bad = tmp_path / "bad.jsonl"
    for position in range(len(whole)):
        for bit in range(8):
            whole[position] ^= 1 << bit
            bad.write_bytes(whole)
            records, batch = read_all(bad)
            whole[position] ^= 1 << bit
            assert records == full[: len(records)], (position, bit)
            lost_the_end = len(records) < len(full)
            assert lost_the_end, (position, bit)
            torn = position >= len(whole) - len(whole.splitlines()[-1]) - 1
            assert batch.problem or torn, (position, bit)


def test_f24_gone_replaced_and_truncated_files_are_noticed(path, tmp_path):
    fill(path)
    reader = JournalReader(path)
    first = reader.read()
    other = tmp_path / "other"
    fill(other)
    os.replace(other, path)
    assert "replaced" in (reader.read(first.offset, first.next_seq).problem or "")
    reader = JournalReader(path)
    first = reader.read()
    os.truncate(path, 50)
    assert "truncated" in (reader.read(first.offset, first.next_seq).problem or "")
    path.unlink()
    assert "gone" in (reader.read(first.offset, first.next_seq).problem or "")


def test_a_missing_file_that_was_never_read_is_waited_for(path):
    assert JournalReader(path).read() == journal.JournalBatch([], 0, 0)


def test_reopen_cuts_the_torn_line_and_goes_on(path):
    fill(path, 5)
    with path.open("ab") as file:
        file.write(b'{"seq":5,"torn')
    writer = Writer.reopen(path)
    assert writer.append({"kind": "x"}, durable=True) == 5
    records, batch = read_all(path)
    assert len(records) == 6
    assert batch.problem is None


def test_a_second_writer_cannot_create_the_same_file(path):
    fill(path, 1)
    with pytest.raises(FileExistsError):
        Writer.create(path, HEADER)


def test_nan_is_not_written(path):
    writer = Writer.create(path, HEADER)
    with pytest.raises(ValueError):
        writer.append({"loss": float("nan")})
    assert writer.append({"loss": None}) == 0


def test_unknown_version_is_refused_with_both_versions(path):
    Writer.create(path, JournalHeader("r", 1, "t", version=99)).close()
    assert "journal version 99" in (JournalReader(path).read().problem or "")


def test_f17_a_full_disk_leaves_whole_records(path, monkeypatch):
    """ENOSPC in the middle of a record: the file ends where it ended; the retry is not doubled."""
    writer = Writer.create(path, HEADER)
    writer.append({"kind": "a"})
    real, seed = os.write, random.Random(5)
    state = {"full": True}

    def torn_write(fd, data):
        if state["full"] and len(data) > 1:
            real(fd, bytes(data)[: seed.randrange(1, len(data))])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", torn_write)
    for _ in range(5):
        with pytest.raises(JournalFull):
            writer.append({"kind": "b"})
    state["full"] = False
    assert writer.append({"kind": "b"}, durable=True) == 1
    records, batch = read_all(path)
    assert [r["kind"] for r in records] == ["a", "b"]
    assert batch.problem is None


def test_f20_after_a_failed_fsync_nothing_more_is_claimed(path, monkeypatch):
    writer = Writer.create(path, HEADER)

    def failing(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        writer.append({"kind": "a"}, durable=True)
    monkeypatch.undo()
    with pytest.raises(JournalError, match="an earlier write failed"):
        writer.append({"kind": "b"})


@pytest.mark.parametrize("fails", ["write", "ftruncate"])
def test_f20_after_a_failed_write_or_a_torn_record_that_stays_nothing_follows(
    path, monkeypatch, fails
):
    """EIO in the middle of a record, or ENOSPC whose torn record cannot be taken back: whatever was
    appended after it would make damage of a tail."""
    writer = Writer.create(path, HEADER)
    writer.append({"kind": "a"})
    real = os.write

    def torn_write(fd, data):
        real(fd, bytes(data)[:10])
        raise OSError(errno.EIO if fails == "write" else errno.ENOSPC, "failed")

    def failing(fd, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", torn_write)
    if fails == "ftruncate":
        monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(OSError, match=r"failed|Input/output"):
        writer.append({"kind": "b"})
    monkeypatch.undo()
    with pytest.raises(JournalError, match="an earlier write failed"):
        writer.append({"kind": "c"})
    records, batch = read_all(path)
    assert ([r["kind"] for r in records], batch.problem) == (["a"], None)


def test_f02_a_writer_killed_anywhere_leaves_a_readable_prefix(tmp_path):
    code = """
import sys
from pathlib import Path
from trainer.contract.journal import JournalHeader, Writer
writer = Writer.create(Path(sys.argv[1]), JournalHeader("r", 1, "t"))
for i in range(100000):
    writer.append({"kind": "step", "step": i, "pad": "x" * 500}, durable=i % 50 == 0)
"""
    for number in range(4):
        path = tmp_path / f"{number}.jsonl"
        env = {**os.environ, "TRAIND_FAIL": f"journal.append={200 + 97 * number}*off->1*kill"}
        done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, timeout=60)
        assert done.returncode == -9
        records, batch = read_all(path)
        assert batch.problem is None
        assert [r["seq"] for r in records] == list(range(200 + 97 * number))


def test_a_record_too_long_for_its_reader_is_cut_and_read(tmp_path) -> None:
    """Eighty thousand notes, or one of ten megabytes: the report continues behind them."""
    writer = Writer.create(tmp_path / "outbox.jsonl", JournalHeader("run_1", 1, "token"))
    notes = [f"/some/where/{n}.bin is left out: it is binary" for n in range(80_000)]
    writer.append({"kind": "ended", "result": {"notes": notes, "n": 80_000}})
    writer.append({"kind": "notice", "message": "x" * 10_000_000})
    writer.append({"kind": "notice", "message": "short"})
    writer.close()
    reader, records = JournalReader(tmp_path / "outbox.jsonl"), []
    offset = seq = 0
    while offset < (tmp_path / "outbox.jsonl").stat().st_size:
        batch = reader.read(offset, seq)
        assert batch.problem is None
        assert batch.offset > offset
        records += batch.records
        offset, seq = batch.offset, batch.next_seq
    assert [r["kind"] for r in records] == ["ended", "notice", "notice"]
    assert records[0]["result"]["n"] == 80_000
    assert records[0]["result"]["notes"][0] == notes[0]
    assert records[1]["message"].startswith("xxx")
    assert records[2]["message"] == "short"
