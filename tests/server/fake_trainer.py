"""A trainer without torch: the whole protocol of an attempt or job, and every way to misbehave.

`python fake_trainer.py MODULE DIRECTORY`, with its manners as JSON in FAKE: {"*": {…}, "2": {…}}
for every attempt, and for attempt 2. What a manner means stands beside its use.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.contract import durable, journal, rundir

MODULE, DIRECTORY = sys.argv[1], Path(sys.argv[2])
ORDER = json.loads((DIRECTORY / "order.json").read_text())
STEP_SECONDS = 0.02


def manners() -> dict[str, Any]:
    told = json.loads(os.environ.get("FAKE", "{}"))
    return {**told.get("*", {}), **told.get(str(ORDER.get("attempt", "job")), {})}


class Trainer:
    def __init__(self) -> None:
        self.manners = manners()
        attempt = ORDER.get("attempt", 0)
        owner = ORDER["run_id"] if attempt else ORDER["job_id"]
        self.lock = rundir.acquire(DIRECTORY / rundir.LOCK, self.holder(None))
        header = journal.JournalHeader(owner, attempt, ORDER["token"])
        self.outbox = journal.Writer.create(DIRECTORY / rundir.OUTBOX, header)
        self.inbox = journal.JournalReader(DIRECTORY / rundir.INBOX)
        self.cursor = (0, 0)
        self.terminated = False
        signal.signal(signal.SIGTERM, self.on_terminate)
        faulthandler.register(rundir.DUMP_SIGNAL, file=sys.stderr)

    def holder(self, waiting: str | None) -> str:
        return json.dumps({"pid": os.getpid(), "waiting": waiting}).ljust(200)

    def on_terminate(self, *_: Any) -> None:
        if not self.manners.get("deaf"):  # deaf: SIGTERM is ignored
            self.terminated = True

    def say(self, kind: str, *, durable: bool = True, **fields: Any) -> None:
        self.outbox.append({"kind": kind, **fields}, durable=durable)

    def heard(self) -> list[dict[str, Any]]:
        if self.manners.get("mute_inbox"):  # commands are never read
            return []
        batch = self.inbox.read(*self.cursor)
        self.cursor = (batch.offset, batch.next_seq)
        return batch.records

    def started(self) -> None:
        own = rundir.identify(os.getpid())
        assert own is not None
        self.say(
            "started", pid=own.pid, boot_id=own.boot_id, start_ticks=own.start_ticks,
            device=ORDER["device"], device_name="a fake", versions={}, fingerprint={},
        )  # fmt: skip

    def end(self, outcome: str, reason: str, step: int | None, message: str = "") -> None:
        checkpoint = None
        if self.manners.get("torn_end"):  # dies in the middle of its last record
            os.write(self.outbox._fd, b'{"seq":9999,"ki')
            os.kill(os.getpid(), signal.SIGKILL)
        record = {
            "outcome": outcome, "reason": reason, "step": step,
            "checkpoint": checkpoint, "message": message,
        }  # fmt: skip
        if not self.manners.get("no_ended"):  # only the exit record says how it ended
            self.say("ended", **record)
        exit_record = json.dumps({**record, "unix_seconds": time.time()}).encode()
        durable.write_durably(DIRECTORY / "exit.json", exit_record)
        time.sleep(self.manners.get("linger", 0))  # seconds between the last word and the end
        sys.exit(0)

    # --- training --------------------------------------------------------------------------------

    def train(self) -> None:
        time.sleep(self.manners.get("slow_start", 0))
        self.started()
        if self.manners.get("helper"):  # a data worker that outlives its trainer
            subprocess.Popen(["sleep", "60"])
        step = self.resume()
        self.say("stage", durable=False, stage="training")
        while step < ORDER["end_step"]:
            self.obey(step)
            if step == self.manners.get("hold_at"):  # goes no further until told or killed
                time.sleep(STEP_SECONDS)
                continue
            self.misbehave(step)
            self.step(step)
            step += 1
            if step == self.manners.get("unsaid_at"):  # a checkpoint that it dies before telling of
                self.commit(step)
            if step % self.manners.get("save_every", 10) == 0:
                self.save(step, "cadence")
        self.evaluate(step)
        self.save(step, "end")
        self.end("completed", "finished", step)

    def evaluate(self, step: int) -> None:
        """At the end of the plan. bpb: the floor; depth and a larger rate come nearer to it."""
        floor = self.manners.get("bpb")
        if floor is None:
            return
        spec = ORDER["spec"]
        gain = 0.05 * (spec["optimizer"]["matrix_lr"] > 0.015)
        noise = 0.001 * (spec["numerics"]["seed"] % 2)
        value = floor + 1 / spec["model"]["depth"] - gain + noise
        self.say(
            "evaluation", evaluation="bpb", step=step, value=value, identity="same",
            settings={}, result={}, seconds=0.01,
        )  # fmt: skip

    def resume(self) -> int:
        limits = {int(k): v for k, v in ORDER["lineage"]["limits"].items()}
        found = []
        for path in (Path(ORDER["run_dir"]) / "checkpoints").glob("step-*"):
            step, attempt = rundir.parse_checkpoint_name(path.name) or (0, -1)
            if step <= limits.get(attempt, -1) and (path / "manifest.json").exists():
                found.append((step, path.name))
        step, name = max(found, default=(0, None))
        self.say("resumed", step=step, checkpoint=name, skipped=[], tokens_seen=step * 4096)
        return step

    def obey(self, step: int) -> None:
        for command in self.heard():
            if command["kind"] == "pause":
                self.save(step, "pause")
                self.end("paused", "requested", step)
            if command["kind"] == "cancel":
                self.end("cancelled", "requested", step)
            if command["kind"] == "end_phase":
                self.save(step, "end")
                self.end("phase_ended", "requested", step)
            if command["kind"] == "save" and self.manners.get("saves_when_asked"):
                self.save(step, "requested")
            self.say("command_done", command_id=command["id"], outcome="done", message="")
        if self.terminated:
            self.save(step, "terminate")
            self.end("terminated", "terminated", step)

    def misbehave(self, step: int) -> None:
        asked = self.manners
        if step == asked.get("crash_at"):
            print("the last words of a crash \x1b[31m")
            os.kill(os.getpid(), signal.SIGKILL)
        if step == asked.get("raise_at"):
            print("Traceback: it went wrong")
            sys.exit(1)
        if step == asked.get("eat_at"):  # more than its memory group allows, until it is killed
            (Path(asked["group"]) / "cgroup.procs").write_text(str(os.getpid()))
            eaten = []
            while True:
                eaten.append(bytearray(1 << 20))
        if step == asked.get("hang_at"):
            while True:
                time.sleep(0.05)
        if step == asked.get("rest_at"):  # silent for a while, then on
            time.sleep(asked["rest_seconds"])
        if step == asked.get("stop_at"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == asked.get("wait_at"):  # the disk is full
            os.pwrite(self.lock, self.holder("disk_full").encode(), 0)
            while not Path(asked["until_there"]).exists():
                time.sleep(STEP_SECONDS)
            os.pwrite(self.lock, self.holder(None).encode(), 0)
        if step == asked.get("fail_at") and step not in self.skipped():
            self.end("failed", asked["reason"], step, f"it failed at step {step}")

    def skipped(self) -> set[int]:
        return {n for low, high in ORDER["skip_steps"] for n in range(low, high + 1)}

    def step(self, step: int) -> None:
        time.sleep(self.manners.get("step_seconds", STEP_SECONDS))
        self.say(
            "step", durable=False, step=step, loss=5 - step / 1000, loss_smooth=5.0,
            lr_multiplier=1.0, momentum=0.9, weight_decay=0.1, tokens=4096, seconds=STEP_SECONDS,
        )  # fmt: skip

    def save(self, step: int, why: str) -> None:
        name = self.commit(step)
        if name is not None:
            self.say(
                "checkpoint_saved", step=step, name=name, bytes=2, manifest_sha256="0" * 64,
                seconds=0.01, stall_seconds=0.0, why=why,
            )  # fmt: skip

    def commit(self, step: int) -> str | None:
        name = rundir.checkpoint_name(step, ORDER["attempt"])
        path = Path(ORDER["run_dir"]) / "checkpoints" / name
        temp = path.with_name(f".{name}.tmp")
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        durable.write_durably(temp / "manifest.json", b"{}")
        if path.exists():
            shutil.rmtree(temp)
            return None
        temp.rename(path)
        return name

    # --- jobs ------------------------------------------------------------------------------------

    def job(self) -> None:
        own = rundir.identify(os.getpid())
        assert own is not None
        asked = self.manners
        self.say("stage", stage="preparing", fraction=0.5)
        if asked.get("crash"):
            print("the last words of a job")
            os.kill(os.getpid(), signal.SIGKILL)
        if asked.get("fail"):
            self.end("failed", "data_unusable", None, "there is no text in it")
        until = time.monotonic() + asked.get("seconds", 0)
        while time.monotonic() < until:
            if self.terminated or any(c["kind"] == "cancel" for c in self.heard()):
                self.end("cancelled", "requested", None)
            time.sleep(0.02)
        if ORDER["job"] == "prepare":
            durable.write_durably(Path(ORDER["run_dir"]) / "data.json", b"{}")
        self.end("completed", "finished", None)


if __name__ == "__main__":
    trainer = Trainer()
    trainer.job() if MODULE == "trainer.jobs" else trainer.train()
