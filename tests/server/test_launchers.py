"""What every launcher promises to the supervisor: laws over real processes, and a silent engine."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.domain import runs
from server.launch import process, registry, torchrun
from server.launch.launcher import Handle, Launcher, LaunchRequest, Liveness, Workspace
from server.launch.local import Local
from server.settings import Settings
from tests.server.house import House
from trainer.contract import rundir

KINDS = ("local", "torchrun")


@pytest.fixture(params=KINDS)
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Launcher:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{_PROGRAM}"\n')
    python.chmod(0o755)
    settings = Settings(data_dir=tmp_path / "data", trainer_python=str(python))
    return registry.make(settings)[request.param]


_PROGRAM = (
    "import subprocess, sys, time; "
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
)


@pytest.fixture
def workspace(tmp_path: Path, launcher: Launcher) -> Iterator[Workspace]:
    directory = tmp_path / "attempt"
    directory.mkdir()
    made = Workspace(directory, secrets.token_hex(8))
    yield made
    _until(lambda: not process.kill_carriers(made.token))  # one may have started another meanwhile
    _until(lambda: launcher.exit_code(made) is not None or made.token not in _children(launcher))
    launcher.release(made)


def _children(launcher: Launcher) -> Any:
    return getattr(launcher, "_children", ())


def _until(holds: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def _started(launcher: Launcher, workspace: Workspace) -> Handle:
    handle = launcher.spawn(LaunchRequest(workspace, "trainer"))
    assert handle is not None
    _until(lambda: launcher.has_leftovers(workspace))
    return handle


_API = "torch/distributed/elastic/multiprocessing/api.py"
_REPORT = f"""W1129 01:33:15.037000 14065 {_API}:1028] Sending process 14101 closing signal SIGTERM
E1129 01:33:15.041000 14065 {_API}:1002] failed (exitcode: -9) local_rank: 0 (pid: 14100) of binary
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
  exitcode  : -15 (pid: 14101)  (SIGTERM)
============================================================
"""
_SIGNALLED = (
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15"
)


@pytest.mark.parametrize(
    ("log", "code"),
    [(_REPORT, -9), (_SIGNALLED, -15), ("RuntimeError: no such file", None), ("", None)],
)
def test_the_agents_report_names_the_rank_that_failed_first(log: str, code: int | None) -> None:
    assert torchrun.first_exit_code(log) == code


def test_what_the_ranks_wrote_is_told_from_the_agents_report() -> None:
    assert torchrun.without_report(f"it trains\nit ends\n{_REPORT}") == "it trains\nit ends"
    assert torchrun.without_report("it trains") == "it trains"


@pytest.mark.parametrize(("kind", "code"), [("torchrun", -9), ("local", 1)])
def test_a_gang_ends_with_the_exit_code_of_the_rank_that_failed_first(
    tmp_path: Path, kind: str, code: int
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (tmp_path / rundir.LOG).write_text(_REPORT)
    settings = Settings(data_dir=tmp_path / "data", trainer_python=str(python))
    launcher, workspace = registry.make(settings)[kind], Workspace(tmp_path, secrets.token_hex(8))
    launcher.spawn(LaunchRequest(workspace, "trainer"))
    assert _until(lambda: launcher.exit_code(workspace)) == code
    launcher.release(workspace)


def test_what_was_started_is_alive_and_found_again(
    launcher: Launcher, workspace: Workspace
) -> None:
    handle = _started(launcher, workspace)
    assert launcher.is_known(handle)
    assert launcher.is_alive(workspace, handle) is Liveness.alive
    assert launcher.find(workspace) == handle
    assert launcher.exit_code(workspace) is None
    assert not launcher.is_of_another_boot(handle)


def test_nothing_is_known_before_the_start(launcher: Launcher, workspace: Workspace) -> None:
    reserved = launcher.reserve()
    assert not launcher.is_known(reserved)
    assert not launcher.is_of_another_boot(reserved)
    assert launcher.find(workspace) is None
    assert not launcher.has_leftovers(workspace)
    assert not launcher.signal(workspace, reserved, signal.SIGKILL)


def test_a_signal_ends_it_and_the_rest_is_swept(launcher: Launcher, workspace: Workspace) -> None:
    handle = _started(launcher, workspace)
    _until(lambda: len(process.carriers(workspace.token)) == 2)  # its helper too
    assert launcher.signal(workspace, handle, signal.SIGKILL)
    assert _until(lambda: launcher.exit_code(workspace)) == -signal.SIGKILL
    assert launcher.is_alive(workspace, handle) is Liveness.gone
    assert launcher.has_leftovers(workspace)
    launcher.sweep(workspace)
    _until(lambda: not launcher.has_leftovers(workspace))


def test_no_signal_goes_to_another_execution(launcher: Launcher, workspace: Workspace) -> None:
    handle = _started(launcher, workspace)
    other = Workspace(workspace.directory, "another-token")
    assert not launcher.signal(other, handle, signal.SIGKILL)
    assert launcher.find(other) is None
    assert launcher.is_alive(workspace, handle) is Liveness.alive


def test_a_copied_directory_has_no_process(
    launcher: Launcher, workspace: Workspace, tmp_path: Path
) -> None:
    handle = _started(launcher, workspace)
    (tmp_path / "copy").mkdir()
    copy = Workspace(tmp_path / "copy", workspace.token)
    assert launcher.find(copy) is None
    assert launcher.is_alive(copy, handle) is Liveness.gone
    launcher.sweep(copy)
    assert launcher.is_alive(workspace, handle) is Liveness.alive


def test_a_stopped_one_is_seen_and_continued(launcher: Launcher, workspace: Workspace) -> None:
    handle = _started(launcher, workspace)
    assert launcher.signal(workspace, handle, signal.SIGSTOP)
    _until(lambda: launcher.is_stopped(handle))
    assert launcher.signal(workspace, handle, signal.SIGCONT)
    _until(lambda: not launcher.is_stopped(handle))


def test_a_released_child_leaves_no_zombie(launcher: Launcher, workspace: Workspace) -> None:
    handle = _started(launcher, workspace)
    found = launcher.process(handle)
    assert found is not None
    launcher.release(workspace)
    os.kill(found.pid, signal.SIGKILL)

    def is_reaped() -> bool:
        launcher.reap()
        return not Path(f"/proc/{found.pid}").exists()

    _until(is_reaped)


# --- an engine that does not answer --------------------------------------------------------------


class Silent(Local):
    """A launcher whose engine stops to answer."""

    is_silent = False

    def is_alive(self, workspace: Workspace, handle: Handle) -> Liveness:
        return Liveness.unreachable if self.is_silent else super().is_alive(workspace, handle)


def test_silence_of_an_engine_is_no_death(tmp_path: Path) -> None:
    house = House(tmp_path)
    engine = Silent(house.settings.trainer_python)
    try:
        run_id = house.create(steps=100_000)
        with house.daemon(launchers={"local": engine}) as supervisor:
            pid = house.pid(run_id)
            engine.is_silent = True
            os.kill(pid, signal.SIGKILL)
            ticks = supervisor.ticks
            house.until(lambda: supervisor.ticks > ticks + 10)
            assert len(house.attempts(run_id)) == 1
            assert house.run(run_id).state == "running"
            engine.is_silent = False
            house.until(lambda: len(house.attempts(run_id)) == 2)
            house.pid(run_id)
            house.ask(runs.request_cancel, run_id)
            house.becomes(run_id, "cancelled")
    finally:
        house.close()


def test_f58_a_stopped_rank_is_named_and_goes_on_when_stacks_are_asked_for(tmp_path: Path) -> None:
    """Rank 0 waits for it: by its own state it only hangs."""
    workspace = Workspace(tmp_path, secrets.token_hex(8))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK],
            cwd=tmp_path,
            env={**os.environ, process.TOKEN_VARIABLE: workspace.token, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        _until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        ranks[1].send_signal(signal.SIGSTOP)
        assert _until(lambda: torchrun.stopped_ranks(workspace)) == [1]
        launcher = torchrun.Torchrun(sys.executable)
        handle = launcher.find(workspace)
        assert handle is not None
        assert handle["pid"] == ranks[0].pid
        assert launcher.signal(workspace, handle, rundir.DUMP_SIGNAL)
        _until(lambda: not torchrun.stopped_ranks(workspace))
        _until(lambda: len(list(tmp_path.glob("dumped-*"))) == 2)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


_RANK = (
    "import os, pathlib, signal, time; from trainer.contract.rundir import DUMP_SIGNAL; "
    "mine = os.environ['RANK']; "
    "signal.signal(DUMP_SIGNAL, lambda *_: pathlib.Path('dumped-' + mine).touch()); "
    "pathlib.Path('ready-' + mine).touch(); "
    "[time.sleep(1) for _ in range(60)]"
)
