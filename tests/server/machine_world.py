"""Trainers and clocks without processes: what the machine puts around the real server."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

from server.launch import process
from server.machine import kernel_log
from trainer.contract import failpoint, journal, rundir
from trainer.contract.rundir import ProcessIdentity

FIRST_PID = 50_000_000  # beyond any real pid
SAVE_EVERY = 5


class Killed(BaseException):
    """kill -9 of the daemon, at a place of its code."""


class Trainer:
    """One attempt: its journals and checkpoints are real files, its process is not."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.directory, self.pid, self.alive = directory, pid, True
        self.order = json.loads((directory / "order.json").read_text())
        self.step = -1  # it has not begun
        self.cursor = (0, 0)
        self.exit_code: int | None = None
        header = journal.JournalHeader(
            self.order["run_id"], self.order["attempt"], self.order["token"]
        )
        self.outbox = journal.Writer.create(directory / rundir.OUTBOX, header)

    # What a supervisor holds of a child of its own.
    def poll(self) -> int | None:
        return None if self.alive else self.exit_code

    def leave(self) -> None:
        pass

    def say(self, kind: str, **fields: Any) -> None:
        self.outbox.append({"kind": kind, **fields})

    def work(self, steps: int) -> None:
        """Begin if it has not, then so many steps, each with its commands first."""
        if self.step < 0 and self.alive:
            self.begin()
        for _ in range(steps):
            if not self.alive or self.obey():
                return
            if self.step >= self.order["end_step"]:
                self.end("completed", "finished")
                return
            self.one_step()

    def begin(self) -> None:
        self.say(
            "started", pid=self.pid, boot_id=rundir.boot_id(), start_ticks=1, device="cpu",
            device_name="none", versions={}, fingerprint={},
        )  # fmt: skip
        limits = {int(k): v for k, v in self.order["lineage"]["limits"].items()}
        found: list[tuple[int, str | None]] = [(0, None)]
        for path in self.checkpoints.glob("step-*"):
            step, attempt = rundir.parse_checkpoint_name(path.name) or (0, -1)
            top = self.order.get("max_step")
            if step <= limits.get(attempt, -1) and (top is None or step <= top):
                found.append((step, path.name))
        self.step, name = max(found, key=lambda pair: (pair[0], pair[1] or ""))
        self.say("resumed", step=self.step, checkpoint=name, tokens_seen=self.step * 4096)

    @property
    def checkpoints(self) -> Path:
        return self.directory.parent.parent / "checkpoints"

    def obey(self) -> bool:
        batch = journal.JournalReader(self.directory / rundir.INBOX).read(*self.cursor)
        self.cursor = (batch.offset, batch.next_seq)
        for command in batch.records:
            match command["kind"]:
                case "pause" if self.step < self.order["end_step"]:
                    self.end("paused", "requested")
                case "end_phase":
                    self.end("phase_ended", "requested")
                case "cancel":
                    self.end("cancelled", "requested", saves=False)
            if not self.alive:
                return True
            self.say("command_done", command_id=command["id"], outcome="done", message="")
        return False

    def one_step(self) -> None:
        self.say(
            "step", step=self.step, loss=5 - self.step / 1000, loss_smooth=5.0, lr_multiplier=1.0,
            momentum=0.9, weight_decay=0.1, tokens=4096, seconds=0.1,
        )  # fmt: skip
        self.step += 1
        if self.step % SAVE_EVERY == 0:
            self.save("cadence")

    def save(self, why: str, *, told: bool = True) -> str:
        name = rundir.checkpoint_name(self.step, self.order["attempt"])
        path = self.checkpoints / name
        if not path.exists():
            path.mkdir(parents=True)
            (path / "manifest.json").write_text("{}")
            if told:
                self.say(
                    "checkpoint_saved", step=self.step, name=name, bytes=2, seconds=0.1,
                    manifest_sha256="0" * 64, stall_seconds=0.0, why=why,
                )  # fmt: skip
        return name

    def end(self, outcome: str, reason: str, *, saves: bool = True) -> None:
        name = self.save("end" if outcome == "completed" else "pause") if saves else None
        said = {
            "outcome": outcome, "reason": reason, "step": self.step, "checkpoint": name,
            "message": "",
        }  # fmt: skip
        self.say("ended", **said)
        (self.directory / "exit.json").write_text(json.dumps({**said, "unix_seconds": 1.0}))
        self.die(0)

    def die(self, code: int = -signal.SIGKILL) -> None:
        self.alive, self.exit_code = False, code
        self.outbox.close()

    def tear(self) -> None:
        """Die in the middle of a record."""
        os.write(self.outbox._fd, b'{"seq":')
        self.die()


class World:
    """Processes by identity, clocks, and one place where the daemon is to be killed."""

    def __init__(self) -> None:
        self.trainers: list[Trainer] = []
        self.monotonic, self.wall = 1_000.0, 1_700_000_000.0
        self.deadly: str | None = None
        self.patches = [
            patch.object(process, "spawn", self.spawn),
            patch.object(process, "is_alive", self.is_alive),
            patch.object(process, "is_stopped", lambda pid: False),
            patch.object(process, "carriers", self.carriers),
            patch.object(process, "leader", lambda token: next(iter(self.carriers(token)), None)),
            patch.object(process, "send", self.send),
            patch.object(kernel_log, "kernel_lines", lambda since: []),
            patch.object(failpoint, "hit", self.hit),
            patch("time.time", self.time),
        ]

    def __enter__(self) -> World:
        for one in self.patches:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self.patches):
            one.stop()

    def living(self, run_id: str | None = None) -> list[Trainer]:
        return [t for t in self.trainers if t.alive and run_id in (None, t.order["run_id"])]

    def spawn(
        self, command: list[str], directory: Path, token: str, **_: Any
    ) -> tuple[Any, ProcessIdentity]:
        made = Trainer(directory, FIRST_PID + len(self.trainers))
        assert not self.living(made.order["run_id"]), "a second trainer of a run"
        assert not self.living(), "a second trainer on the device"
        self.trainers.append(made)
        return made, self.identity(made)

    def identity(self, trainer: Trainer) -> ProcessIdentity:
        return ProcessIdentity(rundir.boot_id(), trainer.pid, 1)

    def is_alive(self, identity: ProcessIdentity) -> bool:
        return any(t.pid == identity.pid for t in self.living())

    def carriers(self, token: str) -> list[ProcessIdentity]:
        return [self.identity(t) for t in self.living() if t.order["token"] == token]

    def send(self, identity: ProcessIdentity, token: str, *signals: signal.Signals) -> bool:
        for trainer in self.living():
            if trainer.pid == identity.pid and trainer.order["token"] == token:
                if signal.SIGKILL in signals:
                    trainer.die()
                elif signal.SIGTERM in signals:
                    trainer.end("terminated", "terminated")
                return True
        return False

    def hit(self, name: str) -> None:
        if name == self.deadly:
            self.deadly = None
            raise Killed(name)

    def time(self) -> float:
        self.wall += 0.001
        return self.wall
