"""Ranks: runs interrupted at random, each attempt on 1, 2 or 4 ranks, end with their twin's bits.

The twin is uninterrupted and has one rank. Sometimes torchrun itself starts the ranks and its agent
is killed: they continue training, and end on request.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak.counts import Budget, Counts
from tests.soak.weights import PACKINGS, Workshop, forget, picture
from tests.trainer.forkserver import start_torchrun
from tests.trainer.lab import Lab
from trainer.contract import commands, journal
from trainer.contract.rundir import identify

STEPS = 36
SIZES = (1, 2, 2, 4)
WAYS = ("kill", "kill", "kill", "terminate", "pause")
AGENTS = 0.04  # share of the attempts that torchrun starts, which takes seconds each
GONE_SECONDS = 60.0  # until the last rank has ended, after one was killed or told to end
CHANGES = {
    "batch": {"tokens": 256, "device_batch_size": 2},  # four micro-batches: one a lane
    "numerics": {"threads": 1, "compile": False, "lanes": 4},
    "horizon": {"steps": STEPS},
    "checkpoint": {"every_steps": 5, "every_seconds": None},
    "evaluate": {"bpb_every": 12, "eval_tokens": 512, "sample_every": None},
}


def run(budget: float, seed: int) -> Counts:
    """Runs, each interrupted three to six times, until the time is up."""
    counts, left = Counts("ranks", seed), Budget(budget)
    with Workshop(**CHANGES) as context:
        number = 0
        while left.has_more():
            _one_run(context, counts, seed * 1000 + number, left)
            number += 1
    return counts


def control(seed: int) -> Counts:
    """The same with one checkpoint's optimizer state removed: it must be detected."""
    counts = Counts("ranks", seed)
    with Workshop(**CHANGES) as context:
        lab = context.lab("best_fit")
        lab.interrupt("pause", 9, ranks=2)
        forget(lab, "optimizer")
        _finish(lab, counts, random.Random(seed))
        _compare(lab, context, counts, seed, "best_fit")
    return counts


def _one_run(context: Workshop, counts: Counts, seed: int, left: Budget) -> None:
    draw = random.Random(seed)
    packing = draw.choice(PACKINGS)
    lab = context.lab(packing)
    for _ in range(draw.randrange(3, 7)):
        interrupt = _kill_agent if draw.random() < AGENTS else _interrupt
        if not interrupt(lab, counts, draw) or left.is_over:
            break
    _finish(lab, counts, draw)
    counts.add("runs")
    _compare(lab, context, counts, seed, packing)


def _compare(lab: Lab, context: Workshop, counts: Counts, seed: int, packing: str) -> None:
    verdicts = {e["verdict"] for e in lab.events("resume_checked")}
    counts.expect(verdicts <= {"verified"}, f"run {seed}: resumes were {sorted(verdicts)}")
    counts.expect(picture(lab) == context.twin(packing), f"run {seed} ({packing}) is not its twin")


def _finish(lab: Lab, counts: Counts, draw: random.Random) -> None:
    ranks = draw.choice(SIZES)
    lab.run_ranks(ranks)
    if lab.exit()["outcome"] != "completed":
        counts.fail(f"never completed on {ranks} ranks: {lab.exit()}")


# --- interruptions --------------------------------------------------------------------------------


def _interrupt(lab: Lab, counts: Counts, draw: random.Random) -> bool:
    """One attempt, with one rank struck at a random step. Returns False if it had ended before."""
    ranks, how = draw.choice(SIZES), draw.choice(WAYS)
    victim = draw.randrange(ranks)
    directory = lab.order(devices=["cpu"] * ranks if ranks > 1 else [])
    pids = lab.server.start_ranks(directory, ranks)
    _await_steps(directory, draw.randrange(1, 10))
    time.sleep(draw.uniform(0, 0.02))
    struck = _strike(how, pids[victim], directory)
    took = _await_end(pids)
    lab.server.wait_ranks()
    lab.close_attempt(directory)
    counts.say(f"{how} of rank {victim} of {ranks} after {_steps(directory)} steps, {took:.2f} s")
    counts.expect(
        took < GONE_SECONDS, f"{how} of rank {victim} of {ranks}: {took:.0f} s to its end"
    )
    if not struck or (how != "kill" and lab.exit()["outcome"] == "completed"):
        return False
    if how == "kill" and victim:
        if lab.exit()["outcome"] == "completed":  # its own work was done
            return False
        named = f"rank {victim} (cpu, process {pids[victim]})"
        counts.expect(named in lab.exit()["message"], f"a killed rank: {lab.exit()}")
    counts.add("interruptions")
    counts.add({"kill": "ranks killed", "terminate": "terminations"}.get(how, "pauses"))
    counts.add(f"on {ranks} ranks")
    if how == "kill" and ranks > 1:
        counts.longest("until all ranks were gone", took)
    return True


def _kill_agent(lab: Lab, counts: Counts, draw: random.Random) -> bool:
    """Kill torchrun's agent: the ranks do not need it, and leave no process when paused."""
    directory = lab.order(devices=["cpu"] * 2)
    agent = start_torchrun(directory, 2)
    _await_steps(directory, draw.randrange(5, 8))  # from the fourth step on the ranks have rows
    agent.kill()
    agent.wait()
    before = _steps(directory)
    _await_steps(directory, before + 2)
    pids = [row["pid"] for event in lab.events("ranks", lab.attempts) for row in event["ranks"]]
    _pause(directory)
    took = _await_end(pids)
    lab.close_attempt(directory)
    counts.say(f"agent killed after {before} steps, paused after {_steps(directory)}, {took:.2f} s")
    if lab.exit()["outcome"] == "completed":  # before the agent was killed, or after it
        return False
    counts.expect(len(set(pids)) == 2, f"ranks without a row: {pids}")
    counts.expect(took < GONE_SECONDS, f"ranks without an agent: {took:.0f} s to their end")
    counts.expect(_steps(directory) >= min(STEPS, before + 2), "ranks without an agent stood still")
    counts.add("interruptions")
    counts.add("agents killed")
    return True


def _strike(how: str, pid: int, directory: Path) -> bool:
    """Strike a rank; returns False if no process was left."""
    if how == "pause":
        _pause(directory)
    elif identify(pid) is None:
        return False
    else:
        os.kill(pid, signal.SIGTERM if how == "terminate" else signal.SIGKILL)
    return True


def _pause(directory: Path) -> None:
    writer = journal.Writer.reopen(directory / "inbox.jsonl")
    writer.append(commands.Pause(id="c").model_dump(), durable=True)
    writer.close()


# --- waiting --------------------------------------------------------------------------------------


def _await_steps(directory: Path, steps: int) -> None:
    _await(lambda: _steps(directory) >= steps or (directory / "exit.json").exists(), 120.0)


def _steps(directory: Path) -> int:
    outbox = directory / "outbox.jsonl"
    return outbox.read_bytes().count(b'"kind":"step"') if outbox.exists() else 0


def _await_end(pids: list[int]) -> float:
    """Seconds until the last process has exited; kills those that do not end."""
    began = time.monotonic()
    if not _await(lambda: not any(map(_lives, pids)), GONE_SECONDS):
        for pid in filter(_lives, pids):
            os.kill(pid, signal.SIGKILL)
    return time.monotonic() - began


def _lives(pid: int) -> bool:
    """True if the process is running, and not a zombie that awaits its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _await(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
