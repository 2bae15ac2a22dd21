"""Slurm without a Slurm: what its commands print, the job's script, and the poller over a fake."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from server.domain.states import State
from server.launch.launcher import EngineEnding, Handle, LaunchRequest, Liveness, Workspace
from server.launch.slurm import answers, client, script
from server.launch.slurm import launcher as launcher_module
from server.launch.slurm import poller as poller_module
from server.launch.slurm.answers import JobRow
from server.launch.slurm.client import SlurmError
from server.launch.slurm.launcher import SlurmLauncher
from server.supervision import decide, recovery
from server.supervision.decide import Explain, RunSeen, Seen, Signal
from server.supervision.recovery import Circumstances, ExitReport, History
from server.supervision.watch import Presence
from trainer.contract.reasons import Reason
from trainer.contract.spec import PlaceSpec, RecoverySpec, resolve
from trainer.contract.spec.place import limit_seconds

# --- what is printed -----------------------------------------------------------------------------

# Slurm 22.05.8; the last one has a reason with a bar in it, which nothing forbids
SQUEUE = """\
12|traind-aa|RUNNING|0|node1|2026-11-28T18:47:12|2026-11-28T18:57:12|10:00|0|None|
13|traind-bb|PENDING|0||2027-01-01T00:00:00|N/A|1-00:00:00|2|(Resources)|
14|traind-cc|CANCELLED|15|node2|2026-11-28T18:47:12|2026-11-28T18:47:13|UNLIMITED|0|None|
15|traind-dd|FAILED|768|node[1-2]|2026-11-28T18:47:12|2026-11-28T18:47:13|10:00|0|a|b|

slurm_load_jobs error: something that is no row
"""


def test_squeue_is_read_row_by_row() -> None:
    running, pending, cancelled, failed = answers.parse_squeue(SQUEUE)
    assert (running.job, running.name, running.state) == ("12", "traind-aa", "RUNNING")
    assert running.started_at is not None
    assert running.ended_at is not None
    assert running.ended_at - running.started_at == 600
    assert running.exit_code is None
    assert pending.is_waiting
    assert pending.is_requeued
    assert not running.is_requeued
    assert pending.nodes == ""
    assert answers.pending_words(pending) == "Slurm job 13 is pending: Resources."
    assert cancelled.has_ended
    assert cancelled.exit_code == -15
    assert (failed.exit_code, failed.nodes, failed.reason) == (3, "node[1-2]", "a|b")


def test_sacct_is_read_and_its_states_with_a_user_too() -> None:
    text = (
        "14|traind-cc|CANCELLED by 1000|0:15|node2|2026-11-28T18:47:12|2026-11-28T18:48:12|10:00\n"
        "15|traind-dd|FAILED|3:0|None assigned|Unknown|Unknown|Partition_Limit\n"
    )
    cancelled, failed = answers.parse_sacct(text)
    assert (cancelled.state, cancelled.exit_code) == ("CANCELLED", -15)
    assert (failed.exit_code, failed.nodes, failed.started_at) == (3, "", None)


def test_the_number_of_a_job_is_taken_from_sbatch() -> None:
    assert answers.parse_submitted("1234\n") == "1234"
    assert answers.parse_submitted("1234;cluster\n") == "1234"
    assert answers.parse_submitted("sbatch: a notice of the site\n77\n") == "77"
    assert answers.parse_submitted("") is None
    assert answers.parse_submitted("Submitted batch job 12") is None


@pytest.mark.parametrize(
    "text",
    [
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
        "size and/or time limits)",
        "sbatch timed out after 90 s",
        "Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_what_may_pass_is_tried_again(text: str) -> None:
    assert answers.may_pass(text)


def test_what_is_about_the_request_is_not_tried_again() -> None:
    for text in (
        "Batch job submission failed: Invalid partition name specified",
        "Batch job submission failed: Invalid account or account/partition combination specified",
        "Batch job submission failed: Requested node configuration is not available",
    ):
        assert not answers.may_pass(text)


def row(state: str, **known: object) -> JobRow:
    return JobRow("12", "traind-aa", state, nodes="node1", limit="1:00:00", **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("TIMEOUT", Reason.time_limit, "Slurm job 12 reached its time limit of 1:00:00"),
        ("PREEMPTED", Reason.preempted, "Slurm job 12 was preempted by a job of higher priority"),
        ("NODE_FAIL", Reason.node_failed, "a node of Slurm job 12 failed on node1"),
        ("BOOT_FAIL", Reason.node_failed, "a node of Slurm job 12 failed on node1"),
        ("OUT_OF_MEMORY", Reason.host_out_of_memory, "killed for exceeding its memory request"),
        ("CANCELLED", Reason.engine_cancelled, "Slurm job 12 was cancelled on node1"),
        ("DEADLINE", Reason.engine_refused, "Slurm job 12 missed its deadline"),
    ],
)
def test_each_end_names_its_cause(state: str, reason: Reason, words: str) -> None:
    found = answers.ending(row(state), 180, has_begun=True)
    assert found is not None
    assert found.reason is reason
    assert words in found.message


@pytest.mark.parametrize(
    ("state", "why", "reason"),
    [
        ("PENDING", "(BeginTime)", Reason.preempted),
        ("COMPLETED", "None", Reason.preempted),  # started again, and its script ended at once
        ("PENDING", "(JobHeldAdmin)", Reason.engine_cancelled),
        ("REQUEUE_HOLD", "", Reason.engine_cancelled),
    ],
)
def test_a_requeued_job_is_followed_by_a_new_one_unless_it_is_held(
    state: str, why: str, reason: Reason
) -> None:
    found = answers.ending(row(state, restarts=1, reason=why), 180, has_begun=True)
    assert found is not None
    assert found.reason is reason
    assert found.message.startswith("Slurm job 12 was requeued by the cluster")


def test_an_end_shortly_before_the_limit_is_the_limits() -> None:
    began = 1_000_000.0
    for lasted, is_limit in ((3600 - 200, True), (3600 - 400, False)):
        ended = row("COMPLETED", started_at=began, ended_at=began + lasted)
        found = answers.ending(ended, 180, has_begun=True)
        assert (found is not None) == is_limit
    unlimited = JobRow("12", "n", "COMPLETED", started_at=0, ended_at=9e9, limit="UNLIMITED")
    assert answers.ending(unlimited, 180, has_begun=True) is None


# --- the spec ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "--wrap=evil"},
        {"partition": "a b"},
        {"account": "x\ny"},
        {"gres": "-p"},
        {"constraint": "a;b"},
        {"modules": ["$(touch x)"]},
        {"modules": ["-x"]},
        {"time_limit": "soon"},
        {"time_limit": "0"},
        {"memory": "64 G"},
        {"nodes": 0},
        {"options": ["--wrap=x"]},
    ],
)
def test_a_place_takes_no_options_in_disguise(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PlaceSpec.model_validate({"engine": "slurm", **wrong})


def test_limits_are_read_as_slurm_reads_them() -> None:
    texts = ("90", "90:30", "1:00:00", "1-0", "1-2:03", "1-2:03:04")
    assert [limit_seconds(t) for t in texts] == [5400, 5430, 3600, 86400, 93780, 93784]


def test_devices_are_shared_by_the_nodes() -> None:
    body = {"name": "x", "batch": {"tokens": 65536, "device_batch_size": 4}, "gpus": 8}
    spec = resolve({**body, "place": {"engine": "slurm", "nodes": 2}})
    assert spec.rank_devices == [f"cuda:{index}" for index in (0, 1, 2, 3)] * 2
    with pytest.raises(ValidationError, match="cannot be shared equally by 3 nodes"):
        resolve({**body, "place": {"engine": "slurm", "nodes": 3}})
    with pytest.raises(ValidationError, match="leaves too little beside save_seconds"):
        resolve({**body, "place": {"engine": "slurm", "time_limit": "5"}})
    with pytest.raises(ValidationError, match="hours are for this machine"):
        resolve({**body, "place": {"engine": "slurm"}, "hours": [{"from": "08:00"}]})


# --- the script ----------------------------------------------------------------------------------

HOSTILE = 'it\'s $(touch pwned) `id` "x" %j\\ ;&'


@pytest.fixture
def work(tmp_path: Path) -> LaunchRequest:
    directory = tmp_path / HOSTILE / "attempts" / "0003"
    directory.mkdir(parents=True)
    place = PlaceSpec(engine="slurm", nodes=2, partition="gpu", modules=["cuda/12.4"])
    return LaunchRequest(
        Workspace(directory, "secret"), "trainer", ranks=4, place=place, uses_gpus=True
    )


def test_hostile_names_are_words_and_no_shell(work: LaunchRequest, tmp_path: Path) -> None:
    assert work.place is not None
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "srun").write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {tmp_path / "argv"}\n')
    (bin_dir / "srun").chmod(0o755)
    site = tmp_path / "site file.sh"
    site.write_text("module() { :; }\nSITE=1\n")
    text = script.render(work, work.place, f"/opt/{HOSTILE}/python", site)
    text = text.replace("module load", "true load")
    path = work.workspace.directory / script.SCRIPT
    path.write_text(text)
    environment = {"PATH": f"{bin_dir}:/usr/bin:/bin"}
    subprocess.run(["bash", str(path)], check=True, env=environment, cwd=tmp_path)
    argv = (tmp_path / "argv").read_text().split("\0")[:-1]
    directory = str(work.workspace.directory)
    assert argv[-5:] == [f"/opt/{HOSTILE}/python", "-P", "-m", "trainer", directory]
    assert "--ntasks=4" in argv
    assert not list(tmp_path.rglob("pwned"))


def test_a_job_that_was_given_up_or_started_before_does_nothing(
    work: LaunchRequest, tmp_path: Path
) -> None:
    assert work.place is not None
    path = work.workspace.directory / script.SCRIPT
    path.write_text(script.render(work, work.place, "/no/such/python", None))
    environment = {"PATH": "/usr/bin:/bin", "SLURM_RESTART_COUNT": "1"}
    assert subprocess.run(["bash", str(path)], env=environment, check=False).returncode == 0
    script.withdraw(work.workspace)
    environment = {"PATH": "/usr/bin:/bin"}
    assert subprocess.run(["bash", str(path)], env=environment, check=False).returncode == 0


def test_what_sbatch_is_given(work: LaunchRequest) -> None:
    assert work.place is not None
    given = script.arguments(work, work.place)
    assert given[:2] == ["--parsable", "--no-requeue"]
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--partition=gpu"} <= set(given)
    assert {"--gres=gpu:2", "--signal=TERM@180"} <= set(given)
    (name,) = [one for one in given if one.startswith("--job-name=")]
    assert "secret" not in shlex.join(given)
    assert name == f"--job-name={script.job_name('secret')}"
    (output,) = [one for one in given if one.startswith("--output=")]
    assert "%%j" in output


# --- the poller over a fake ----------------------------------------------------------------------


class FakeSlurm:
    """Stands for the commands. jobs: what squeue shows; error: what they all fail with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[JobRow] = []
        self.error: str | None = None
        self.sbatch_error: str | None = None
        self.accepts_despite = False
        self.submitted: list[str] = []
        self.asked: list[list[str]] = []
        self.cancelled: list[tuple[str, ...]] = []
        monkeypatch.setattr(client, "squeue", self.squeue)
        monkeypatch.setattr(client, "sbatch", self.sbatch)
        monkeypatch.setattr(client, "scancel", lambda *args: self.cancelled.append(args))
        monkeypatch.setattr(client, "sacct", lambda job: None)

    def squeue(self, names: list[str]) -> list[JobRow]:
        self.asked.append(list(names))
        if self.error is not None:
            raise SlurmError(self.error)
        return [job for job in self.jobs if job.name in names]

    def sbatch(self, arguments: list[str], environment: dict[str, str], directory: Path) -> str:
        name = next(one for one in arguments if one.startswith("--job-name=")).partition("=")[2]
        job = str(100 + len(self.submitted))
        if self.sbatch_error is None or self.accepts_despite:
            self.submitted.append(name)
            self.jobs.append(JobRow(job, name, "PENDING", reason="(Priority)"))
        if self.sbatch_error is not None:
            raise SlurmError(self.sbatch_error)
        return f"{job}\n"

    def becomes(self, state: str) -> None:
        self.jobs = [JobRow(one.job, one.name, state, nodes="node1") for one in self.jobs]


# The waits of the poller and the launcher, in a hundredth of their time.
WAITS = ("SOONEST_SECONDS", "YOUNG_SECONDS", "RETRY_SECONDS", "SETTLE_SECONDS", "MISSING_SECONDS",
         "FRESH_SECONDS")  # fmt: skip


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(monkeypatch)


@pytest.fixture
def launcher(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLauncher]:
    for module in (poller_module, launcher_module):
        for name in WAITS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name) / 100)
    made = SlurmLauncher("python", poller=poller_module.SlurmPoller(interval_seconds=0.05))
    yield made
    made.leave()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, "token")


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def submit(launcher: SlurmLauncher, workspace: Workspace) -> None:
    place = PlaceSpec(engine="slurm")
    assert launcher.spawn(LaunchRequest(workspace, "trainer", place=place)) is None


def running(launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace) -> Handle:
    """The job of a submission that Slurm has started."""
    submit(launcher, workspace)
    until(lambda: launcher.find(workspace) is not None)
    handle = launcher.find(workspace)
    assert handle is not None
    slurm.becomes("RUNNING")
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.alive)
    return handle


def test_a_job_is_submitted_found_and_followed(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    submit(launcher, workspace)
    assert launcher.starting(workspace) in (Liveness.waiting, Liveness.alive)
    until(lambda: launcher.find(workspace) is not None)
    handle = launcher.find(workspace)
    assert handle is not None
    assert launcher.is_known(handle)
    until(lambda: (wait := launcher.waits(workspace, handle)) and "Priority" in wait.message)
    assert launcher.is_alive(workspace, handle) is Liveness.waiting
    slurm.becomes("RUNNING")
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.alive)
    assert launcher.waits(workspace, handle) is None
    slurm.becomes("NODE_FAIL")
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.gone)
    found = launcher.ending(workspace, 0)
    assert found is not None
    assert found.reason is Reason.node_failed


def test_f68_a_requeued_job_is_gone_and_taken_out_of_the_queue(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    handle = running(launcher, slurm, workspace)
    slurm.jobs = [JobRow("100", one.name, "PENDING", restarts=1) for one in slurm.jobs]
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.gone)
    found = launcher.ending(workspace, 0)
    assert found is not None
    assert found.reason is Reason.preempted
    launcher.release(workspace)
    until(lambda: slurm.cancelled == [(f"--name={script.job_name(workspace.token)}", "100")])


def test_silence_is_no_death_and_a_moving_outbox_is_life(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    handle = running(launcher, slurm, workspace)
    slurm.error = "Unable to contact slurm controller (connect failure)"
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.unreachable)
    wait = launcher.waits(workspace, handle)
    assert wait is not None
    assert wait.reason is Reason.engine_unreachable
    (workspace.directory / "outbox.jsonl").write_text("{}\n")
    assert launcher.is_alive(workspace, handle) is Liveness.alive
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.unreachable)
    polls = len(slurm.asked)
    until(lambda: len(slurm.asked) > polls + 5)
    assert launcher.is_alive(workspace, handle) is Liveness.unreachable
    slurm.error = None
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.alive)


def test_a_job_that_is_no_longer_listed_is_gone_after_a_minute_only(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    handle = running(launcher, slurm, workspace)
    slurm.jobs.clear()
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.unreachable)
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.gone)


def test_a_submission_whose_answer_was_lost_is_never_made_twice(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    slurm.sbatch_error, slurm.accepts_despite = "Socket timed out on send/recv operation", True
    submit(launcher, workspace)
    until(lambda: launcher.find(workspace) is not None)
    assert len(slurm.submitted) == 1


def test_a_submission_that_failed_for_the_moment_is_made_again(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    slurm.sbatch_error = slurm.error = "Unable to contact slurm controller (connect failure)"
    submit(launcher, workspace)
    until(lambda: len(slurm.asked) > 2)
    assert launcher.starting(workspace) is Liveness.waiting
    assert slurm.submitted == []
    slurm.sbatch_error = slurm.error = None
    until(lambda: launcher.find(workspace) is not None)
    assert len(slurm.submitted) == 1


def test_a_refused_submission_ends_with_sbatchs_words(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    slurm.sbatch_error = "Batch job submission failed: Invalid partition name specified"
    submit(launcher, workspace)
    until(lambda: launcher.starting(workspace) is None)
    assert launcher.ending(workspace, 0) == EngineEnding(
        Reason.engine_refused, f"sbatch: {slurm.sbatch_error}"
    )


def test_a_daemon_that_starts_anew_finds_its_job_by_name(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    slurm.jobs = [JobRow("7", script.job_name(workspace.token), "RUNNING", nodes="node1")]
    until(lambda: launcher.find(workspace) == {"engine": "slurm", "job": "7"})


def test_what_was_never_submitted_is_given_up_and_may_not_start_late(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    assert launcher.starting(workspace) is Liveness.waiting
    until(lambda: launcher.starting(workspace) is None)
    assert (workspace.directory / script.WITHDRAWN).exists()


def test_one_squeue_asks_for_all_jobs(
    launcher: SlurmLauncher, slurm: FakeSlurm, tmp_path: Path
) -> None:
    workspaces = [Workspace(tmp_path, f"token-{index}") for index in range(20)]
    for workspace in workspaces:
        submit(launcher, workspace)
    until(lambda: slurm.asked and len(slurm.asked[-1]) == 20)
    assert slurm.asked[-1] == sorted(script.job_name(workspace.token) for workspace in workspaces)


def test_signals_go_to_the_job_of_that_number_and_name(
    launcher: SlurmLauncher, slurm: FakeSlurm, workspace: Workspace
) -> None:
    import signal

    submit(launcher, workspace)
    until(lambda: launcher.find(workspace) is not None)
    handle = launcher.find(workspace)
    assert handle is not None
    name = f"--name={script.job_name(workspace.token)}"
    assert launcher.signal(workspace, handle, signal.SIGTERM)
    until(lambda: slurm.cancelled == [(name, "--state=PENDING", "100")])
    slurm.becomes("RUNNING")
    until(lambda: launcher.is_alive(workspace, handle) is Liveness.alive)
    launcher.signal(workspace, handle, signal.SIGTERM)
    until(lambda: slurm.cancelled[-1] == (name, "--signal=TERM", "100"))
    launcher.signal(workspace, handle, signal.SIGKILL)
    until(lambda: slurm.cancelled[-1] == (name, "100"))


# --- decisions -----------------------------------------------------------------------------------

WORDS = (Reason.waiting_for_engine, "Slurm job 12 is pending: Resources.")


def seen(state: State, presence: Presence, **known: object) -> RunSeen:
    process = Seen(presence=presence, engine_waits=WORDS, silence=1e6, **known)  # type: ignore[arg-type]
    return RunSeen(state, process=process, wants_to_run=True)


def test_a_waiting_job_is_explained_once_and_never_stalls() -> None:
    assert decide.for_run(seen(State.starting, Presence.waiting)) == Explain(*WORDS)
    told = RunSeen(
        State.starting,
        process=Seen(presence=Presence.waiting, engine_waits=WORDS, silence=1e6),
        reason=WORDS[0],
        message=WORDS[1],
    )
    assert decide.for_run(told) == decide.WAIT


def test_an_unreachable_one_is_never_signalled_or_closed() -> None:
    for state in (State.running, State.starting, State.pausing, State.cancelling):
        action = decide.for_run(seen(state, Presence.unreachable, drained=True))
        assert action == decide.WAIT or isinstance(action, Explain)


def test_a_waiting_job_of_a_run_that_is_to_stop_is_taken_back() -> None:
    for state in (State.pausing, State.cancelling):
        action = decide.for_run(seen(state, Presence.waiting))
        assert isinstance(action, Signal)
        assert decide.for_run(seen(state, Presence.waiting, step=1)) == decide.WAIT


def history(**known: object) -> History:
    values = {"state": State.running, "wants_to_run": True, "recovery": RecoverySpec(),
              "durable_step": 100, "failures": 0, "best_failed_step": 50}  # fmt: skip
    return History(**{**values, **known})  # type: ignore[arg-type]


def follow(reason: Reason, said: ExitReport | None = None, **known: object) -> recovery.Verdict:
    seen = Circumstances(engine=EngineEnding(reason, "Slurm job 12 ended so"))
    return recovery.follow(recovery.classify(said, seen), history(**known))


SAVED = ExitReport("terminated", Reason.terminated, "", 100)


@pytest.mark.parametrize("reason", [Reason.preempted, Reason.node_failed])
def test_a_job_taken_away_is_submitted_again_without_blame(reason: Reason) -> None:
    for said in (None, SAVED):
        verdict = follow(reason, said, failures=2)
        assert (verdict.state, verdict.reason) == (State.recovering, reason)
        assert verdict.failures == 2
        assert "Slurm job 12 ended so" in verdict.message


def test_a_job_that_somebody_cancelled_is_not_submitted_again() -> None:
    for said in (None, SAVED):
        verdict = follow(Reason.engine_cancelled, said)
        assert (verdict.state, verdict.reason) == (State.paused, Reason.engine_cancelled)
        asked = follow(Reason.engine_cancelled, said, state=State.pausing, wants_to_run=False)
        assert (asked.state, asked.reason) == (State.paused, Reason.requested)


def test_a_time_limit_continues_while_something_is_gained() -> None:
    assert follow(Reason.time_limit, SAVED).state is State.recovering
    assert follow(Reason.time_limit, SAVED).failures == 0
    stuck = {"durable_step": 50, "failures": 2}
    assert follow(Reason.time_limit, SAVED, **stuck).state is State.failed
    assert follow(Reason.time_limit, None, **stuck).reason is Reason.no_progress


def test_a_refused_job_fails_at_once_and_memory_does_not_repeat_for_ever() -> None:
    assert follow(Reason.engine_refused).state is State.failed
    assert follow(Reason.host_out_of_memory).state is State.recovering
    assert follow(Reason.host_out_of_memory, same_before=1).state is State.failed


def test_what_the_trainer_says_of_itself_counts_first() -> None:
    said = ExitReport("failed", Reason.out_of_memory, "CUDA out of memory", 7)
    assert follow(Reason.engine_cancelled, said).reason is Reason.out_of_memory
