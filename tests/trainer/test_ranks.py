"""Several ranks of one attempt: the same bits on any number of them, and what happens to one."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.forkserver import start_torchrun, torchrun
from tests.trainer.test_recipes import GOLDEN_TORCH, ONE_INSTRUCTION_SET
from trainer.contract.rundir import ProcessIdentity, rank_process
from trainer.runtime import rendezvous
from trainer.runtime.peers import Registration
from trainer.runtime.rendezvous import Beats

STEPS = 12
NUMERICS = {"threads": 1, "compile": False, "lanes": 4}
EVALUATE = {"bpb_every": 6, "eval_tokens": 512, "sample_every": None}
CHECKPOINT = {"every_steps": 4, "every_seconds": None}


def ranked(lab, name="ranked", numerics=None, **changes: Any):
    """Four micro-batches of 2 x 32 tokens a step: a lane each."""
    return lab(
        name,
        batch={"tokens": 256, "device_batch_size": 2},
        numerics={**NUMERICS, **(numerics or {})},
        horizon={"steps": STEPS},
        evaluate=EVALUATE,
        checkpoint=CHECKPOINT,
        **changes,
    )


@pytest.fixture(scope="module")
def twins() -> dict[str, tuple[str, Any, list[float]]]:
    return {}


def twin(lab, twins, name="one rank", **changes):
    """The undisturbed run on one rank: sha256, curve, values of val bpb."""
    if name not in twins:
        run = ranked(lab, f"twin of {name}", **changes)
        assert run.run_ranks(1) == [0], run.log(1)
        twins[name] = result(run)
    return twins[name]


def result(run) -> tuple[str, Any, list[float]]:
    values = [e["value"] for e in run.events("evaluation")]
    return run.weights_sha256(STEPS), run.curve(), values


# --- one sha256 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 4])
def test_on_any_number_of_ranks_the_run_is_the_same(lab, twins, ranks):
    run = ranked(lab, f"of {ranks}")
    assert run.run_ranks(ranks) == [0] * ranks, run.log(1)
    assert result(run) == twin(lab, twins)


def test_the_number_of_ranks_changes_on_the_way_and_every_resume_is_verified(lab, twins):
    run = ranked(lab, "mixed")
    for ranks, step in ((2, 3), (1, 5), (4, 8)):
        run.interrupt("pause", step, ranks=ranks)
        assert run.exit()["outcome"] == "paused"
    assert run.run_ranks(2) == [0, 0]
    sha256, curve, _ = twin(lab, twins)
    assert (run.weights_sha256(STEPS), run.curve()) == (sha256, curve)
    verdicts = [e["verdict"] for e in run.events("resume_checked")]
    assert verdicts == ["verified"] * 3


def test_streams_and_lossless_packing_do_not_know_the_number_of_ranks(lab, twins):
    """An imported run of several processes keeps its own order of the data."""
    data = {"packing": "lossless", "streams": 2}
    run = ranked(lab, "streams", data=data)
    run.interrupt("pause", 5, ranks=2)
    assert run.run_ranks(4) == [0] * 4
    sha256, curve, _ = twin(lab, twins, "streams", data=data)
    assert (run.weights_sha256(STEPS), run.curve()) == (sha256, curve)


def test_bf16_on_two_ranks_is_bf16_on_one(lab, twins):
    numerics = {"precision": "bf16"}
    run = ranked(lab, "bf16", numerics)
    assert run.run_ranks(2) == [0, 0], run.log(1)
    assert result(run) == twin(lab, twins, "bf16", numerics=numerics)


def test_ranks_that_cannot_share_the_lanes_make_the_resume_approximate(lab):
    """A run that began on one device with one lane."""
    run = ranked(lab, "no lanes", {"lanes": None})
    run.interrupt("pause", 4)
    assert run.run_ranks(2) == [0, 0], run.log(2)
    (resumed,) = run.events("resumed", 2)
    assert "lanes" in resumed["approximate"]
    assert [e["verdict"] for e in run.events("resume_checked")] == ["approximate"]


# --- what happens to one of them -----------------------------------------------------------------


def test_f57_a_killed_rank_is_named_and_nothing_saved_is_lost(lab, twins):
    run = ranked(lab, "killed")
    run.interrupt("kill", 6, ranks=2, victim=1, fail="loop.step=delay(0.05)")
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("failed", "rank_lost")
    assert "rank 1 (cpu, process" in record["message"]
    assert run.run_ranks(4) == [0] * 4
    sha256, curve, _ = twin(lab, twins)
    assert (run.weights_sha256(STEPS), run.curve()) == (sha256, curve)


def test_f58_a_stopped_rank_holds_the_others_up_and_costs_nothing(lab, twins):
    run = ranked(lab, "stopped")
    directory = run.order(devices=["cpu", "cpu"])
    pids = run.server.start_ranks(directory, 2, "loop.step=delay(0.02)")
    outbox = directory / "outbox.jsonl"
    until(lambda: outbox.exists() and b'"kind":"step","step":3,' in outbox.read_bytes())
    os.kill(pids[1], signal.SIGSTOP)
    until(lambda: (Path("/proc") / str(pids[1]) / "stat").read_text().split()[2] == "T")
    size = settled_size(outbox)
    time.sleep(0.5)
    assert outbox.stat().st_size == size  # rank 0 goes nowhere without it
    os.kill(pids[1], signal.SIGCONT)
    assert run.server.wait_ranks() == [0, 0]
    run.close_attempt(directory)
    assert result(run) == twin(lab, twins)


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def settled_size(path: Path) -> int:
    """Of a file that is written no more: the step under way has ended."""
    before = -1
    while before != (size := path.stat().st_size):
        before = size
        time.sleep(0.5)
    return size


def test_f62_a_full_disk_is_waited_for_by_all_ranks_beyond_the_timeout_of_tensors(lab):
    """Rank 0 waits for room, the others for its word: no collective of tensors has begun."""
    run = lab(
        "full",
        batch={"tokens": 256, "device_batch_size": 2},
        numerics=NUMERICS,
        horizon={"steps": 2},
        checkpoint={"every_steps": None, "every_seconds": None},
    )
    directory = run.order(devices=["cpu", "cpu"])
    full = f"checkpoint.write@0=3*error({errno.ENOSPC})"
    run.server.start_ranks(directory, 2, full, TRAIND_RANKS_TIMEOUT_SECONDS="3")
    assert run.server.wait_ranks() == [0, 0], run.log(1)
    run.close_attempt(directory)
    assert [e["errno"] for e in run.events("checkpoint_failed")] == [errno.ENOSPC] * 3
    assert run.exit()["outcome"] == "completed"
    failed, saved = run.events("checkpoint_failed")[0], run.events("checkpoint_saved")[-1]
    assert saved["ts"] - failed["ts"] > 3


def test_f61_a_rank_out_of_memory_is_named(lab):
    run = ranked(lab, "memory")
    statuses = run.run_ranks(2, fail="loop.step@1=3*off->error(12)")
    assert statuses == [1, 1]
    record = run.exit()
    assert record["reason"] == "host_out_of_memory"
    assert record["message"].startswith("rank 1 (cpu): ")


def test_f63_sigterm_to_one_rank_saves_and_ends_all(lab, twins):
    run = ranked(lab, "terminated")
    run.interrupt("terminate", 5, ranks=2, victim=1, fail="loop.step=delay(0.05)")
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("terminated", "terminated")
    assert run.run_ranks(2) == [0, 0]
    sha256, curve, _ = twin(lab, twins)
    assert (run.weights_sha256(STEPS), run.curve()) == (sha256, curve)


def test_a_rank_with_other_weights_is_named_before_they_are_saved(lab):
    run = ranked(lab, "drifted")
    run.run_ranks(2, fail="loop.weights@1=5*off->1*corrupt")
    record = run.exit()
    assert record["reason"] == "ranks_differ"
    assert "rank" in record["message"]
    assert [e["step"] for e in run.events("checkpoint_saved")] == [4]


def test_a_corpus_that_changed_is_the_reason_and_not_a_lost_rank(lab):
    run = ranked(lab, "data")
    data = json.loads(run.run_dir.data.read_text())
    data["train_files"][0]["size"] += 1
    run.run_dir.data.write_text(json.dumps(data))
    assert run.run_ranks(2) == [1, 1]
    assert run.exit()["reason"] == "data_changed"


# --- before all have joined ----------------------------------------------------------------------


def test_a_rank_that_is_killed_before_all_have_joined_is_named(lab):
    """Nobody is connected to it yet: the other rank would wait for ten minutes."""
    run = ranked(lab, "killed early")
    assert run.run_ranks(2, fail="trainer.load@1=kill") == [1, -signal.SIGKILL]
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("failed", "rank_lost")
    assert "rank 1 (cpu, process" in record["message"]


def test_a_rank_that_fails_before_all_have_joined_is_the_cause(lab):
    run = ranked(lab, "failed early")
    assert run.run_ranks(4, fail=f"trainer.load@2=error({errno.ENOMEM})") == [1] * 4
    record = run.exit()
    assert record["reason"] == "host_out_of_memory"
    assert record["message"].startswith("rank 2 (cpu): ")


@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_before_all_have_joined_ends_all_in_order(lab, victim):
    run = ranked(lab, f"terminated early, rank {victim}")
    directory = run.order(devices=["cpu", "cpu"])
    pids = run.server.start_ranks(directory, 2, "trainer.load@1=delay(100)")
    until(lambda: all(rank_process(directory, rank).exists() for rank in (0, 1)))
    os.kill(pids[victim], signal.SIGTERM)
    assert run.server.wait_ranks()[0] == 0
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("terminated", "terminated")
    assert "before all ranks had joined" in record["message"]


def test_a_rank_that_ends_before_it_could_register_is_named_through_torchrun(lab):
    """torchrun tells the other with SIGTERM, which no handler hears while it waits to join."""
    run = ranked(lab, "never registered")
    directory = run.order(devices=["cpu", "cpu"])
    agent = start_torchrun(directory, 2, TRAIND_FAIL="trainer.begin@1=delay(100)")
    until(rank_process(directory, 0).exists)
    (child,) = [c for c in psutil.Process(agent.pid).children() if c.environ().get("RANK") == "1"]
    child.kill()
    assert agent.wait(60) == 1
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("failed", "rank_lost")
    assert "rank 1 (cpu) ended without a report" in record["message"]


def test_a_rank_of_another_machine_that_is_killed_before_the_join_is_named(lab):
    """Its process cannot be seen from here and its machine's other ranks, of which it has none,
    could not tell: its registration stops counting up."""
    run = ranked(lab, "killed elsewhere")
    directory = run.order(devices=["cpu", "cpu"])
    elsewhere = rank_process(directory, 1)
    elsewhere.parent.mkdir()
    identity = {"boot_id": "another", "pid": 4711, "start_ticks": 1}
    elsewhere.write_text(json.dumps({"host": "second-box", "beat": 3, **identity}))
    assert start_first_node(directory, TRAIND_RANKS_SILENCE_SECONDS="1").wait(60) == 1
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("failed", "rank_lost")
    assert "rank 1 (cpu, process 4711 on second-box): no heartbeat" in record["message"]


def start_first_node(directory: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Rank 0 of two machines with one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with (directory / "trainer.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(directory)],
            env={**os.environ, **place, **address, **environment}, stdout=log, stderr=log,
        )  # fmt: skip


def test_a_rank_of_another_machine_lives_while_its_registration_counts_up():
    def seen(beat: int) -> dict[int, Registration]:
        return {1: Registration("second-box", ProcessIdentity("another", 4711, 1), beat)}

    beats = Beats(3 * rendezvous.POLL_SECONDS)
    assert [beats.silent(seen(beat)) for beat in (0, 0, 0, 1, 1, 1)] == [[]] * 6
    assert beats.silent(seen(1)) == [1]
    own = {1: Registration(socket.gethostname(), ProcessIdentity("another", 4711, 1), 0)}
    beats = Beats(0.0)
    assert all(beats.silent(own) == [] for _ in range(3))  # its process is looked at instead


# --- what is reported ----------------------------------------------------------------------------


def test_each_rank_has_a_row(lab):
    run = ranked(lab, "rows")
    assert run.run_ranks(2) == [0, 0]
    (event, *_) = run.events("ranks")
    assert [row["rank"] for row in event["ranks"]] == [0, 1]
    for row in event["ranks"]:
        assert row["compute_seconds"] > 0
        assert row["waited_seconds"] > 0
        assert row["device"] == "cpu"
        assert row["vram_peak_bytes"] > 0


def test_through_torchrun_one_rank_after_another_has_its_own_log(lab, twins):
    run = ranked(lab, "torchrun")
    directory = run.order(devices=["cpu", "cpu"])
    done = torchrun(directory, 2)
    run.close_attempt(directory)
    assert done.returncode == 0, done.stdout
    sha256, curve, _ = twin(lab, twins)
    assert (run.weights_sha256(STEPS), run.curve()) == (sha256, curve)
    assert (directory / "ranks" / "0001.log").exists()


def test_ranks_that_were_not_started_are_an_error(lab):
    run = ranked(lab, "alone")
    run.run(devices=["cpu", "cpu"])
    assert "ordered for 2 ranks" in run.exit()["message"]


# --- one rank stays what it is -------------------------------------------------------------------


def test_a_world_of_one_loads_no_distributed_torch() -> None:
    program = (
        "import sys, torch; sys.modules['torch.distributed'] = None;"
        "from trainer.runtime import world; w = world.join(1, 'cpu'); w.use(torch.device('cpu'));"
        "assert (w.broadcast(3), w.all_reduce_max([1]), w.all_gather('a')) == (3, [1], ['a']);"
        "assert w.any(True);"
        "w.leave()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(
    not __import__("torch").__version__.startswith(GOLDEN_TORCH),
    reason=f"the golden hash is that of torch {GOLDEN_TORCH}",
)
def test_lanes_on_one_rank_keep_their_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.golden", "2"],
        env={**os.environ, **ONE_INSTRUCTION_SET},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == GOLDEN_OF_TWO_LANES


GOLDEN_OF_TWO_LANES = [
    "9a4759553d6acc98559e90664a68a7efe5ddead5af80194dd77cbc2aeee38b90",
    "81f46d2b59324105f57ccfa7f033bf44b1cabbb4b51373b3a3753daaffcd4020",
    "bf7fcdd8f360049b8fa2308dd85b5921326aa8b8df7ba5c4a0acac43052322a5",
]


@pytest.mark.parametrize("when", ["before the watch", "while it is watched"])
def test_a_rank_ends_when_the_exchange_does_not_notice_that_its_peer_is_gone(when: str) -> None:
    """gloo misses it now and then; here nothing is exchanged at all."""
    is_early = when == "before the watch"
    program = (
        "import os, subprocess, sys, time; from trainer.runtime import peer_watch, world;"
        "peer = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "w = world.World(); w.size = 2; w.waiting_since = time.monotonic();"
        "here = __import__('socket').gethostname();"
        "w.members = [world.Member(0, here, 'cpu', os.getpid()),"
        " world.Member(1, here, 'cpu', peer.pid)];"
        "end = lambda lost: print(lost, lost.members[1].pid == peer.pid, flush=True);"
        f"{'peer.kill(); peer.wait();' if is_early else ''}"
        "peer_watch.start(w, end);"
        "time.sleep(1); peer.kill(); time.sleep(50)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=90
    )
    assert (done.returncode, done.stdout.split()[-1]) == (1, "True")
    assert "is gone" in done.stdout
