"""Faults that a real kernel makes: full and read-only disks, too little memory, pids used again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.database import tables
from server.database.db import Database
from server.settings import Settings
from tests import kernel
from tests.server import reporting
from tests.server.asgi import Asgi
from tests.server.house import ROOT, House

STEPS = 3_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with kernel.small_disk(tmp_path / "disk", 12 << 20) as mounted:
        yield mounted


@pytest.mark.needs("mounts")
def test_f19_on_a_full_disk_reads_work_writes_say_so_and_reports_catch_up(disk: Path) -> None:
    asgi = Asgi(disk / "data")
    try:
        reporter = reporting.attempt(
            asgi.db, asgi.settings, reporting.create(asgi.db, steps=2 * STEPS)
        )
        reporter.begin()
        reporter.ingest()
        reporter.steps(0, STEPS)
        with kernel.filled(disk):
            for path in ("/v1/runs", "/v1/runs/demo/progress", "/v1/events", "/healthz"):
                assert asgi.get(path).status_code == 200, path
            answers = [asgi.post("/v1/runs", {"name": f"n{i}"}) for i in range(60)]
            refused = [a for a in answers if a.status_code != 201]
            assert refused
            assert {a.status_code for a in refused} <= {507, 503}
            assert all(a.headers["retry-after"] for a in refused)
            with pytest.raises(Exception, match="full"):
                reporter.ingest()
        made = {f"n{i}" for i, a in enumerate(answers) if a.status_code == 201}
        reporter.ingest()
        assert reporter.ingest().problem is None
        with asgi.db.read() as session:
            steps = [s for (s,) in session.query(tables.Point.step).order_by(tables.Point.step)]
            names = {n for (n,) in session.query(tables.Run.name)}
        assert steps == list(range(STEPS))
        assert names == {"demo", *made}
        assert asgi.post("/v1/runs", {"name": "after"}).status_code == 201
        assert asgi.db.integrity_check() == []
    finally:
        asgi.close()


@pytest.mark.needs("mounts")
def test_f32_a_read_only_disk_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with kernel.small_disk(tmp_path / "disk", 1 << 20, ",ro") as disk:
        command = "from server.daemon.serve import serve; from server.settings import Settings; "
        command += f"raise SystemExit(serve(Settings(data_dir={str(disk / 'data')!r}, port=0)))"
        done = subprocess.run(
            [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.needs("memory groups")
def test_f13_what_the_kernel_kills_for_memory_is_named_and_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    with kernel.memory_group(48 << 20) as group:
        house.behave(monkeypatch, all={"eat_at": 5, "group": str(group)})
        run_id = house.create()
        with house.daemon():
            run = house.becomes(run_id, "failed", 60)
        house.close()
    attempts = house_attempts(tmp_path)
    assert run.reason == "host_out_of_memory"
    assert "twice in a row" in run.reason_message
    assert "(limit 50.3 MB, it held " in run.reason_message
    assert [a.reason for a in attempts] == ["host_out_of_memory"] * 2


def house_attempts(directory: Path) -> list[tables.Attempt]:
    db = Database.open(Settings(data_dir=directory / "data"))
    try:
        with db.read() as session:
            return list(session.query(tables.Attempt).order_by(tables.Attempt.number))
    finally:
        db.close()


REUSE = r"""
import json, os, signal, subprocess, sys
from server.launch import process
from server.launch.process import TOKEN_VARIABLE
from trainer.contract.rundir import identify

TRIES = 60
same_pid = same_tick = signalled = believed = 0
for number in range(TRIES):
    token = f"token-{number}"
    ours = subprocess.Popen(["sleep", "60"], env={TOKEN_VARIABLE: token})
    known = identify(ours.pid)
    ours.kill()
    ours.wait()
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(known.pid - 1))
    stranger = subprocess.Popen(["sleep", "60"], env={TOKEN_VARIABLE: "a stranger's"})
    now = identify(stranger.pid)
    same_pid += now.pid == known.pid
    same_tick += now == known
    believed += process.send(known, token, signal.SIGKILL)
    process.kill_carriers(token)
    signalled += stranger.poll() is not None
    stranger.kill()
    stranger.wait()
print(json.dumps({"same_pid": same_pid, "same_tick": same_tick, "signalled": signalled,
                  "believed": believed}))
"""


@pytest.mark.needs("pid namespaces")
def test_f11_a_pid_used_again_even_within_one_tick_gets_no_signal() -> None:
    done = subprocess.run(
        ["unshare", "-p", "-f", "--mount-proc", sys.executable, "-c", REUSE],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(said)
    assert said["same_pid"] >= 50  # the kernel did give the same pids again
    assert said["same_tick"] >= 1  # some with the very same start time: the token alone differs
    assert (said["signalled"], said["believed"]) == (0, 0)
