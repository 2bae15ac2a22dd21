"""A run without a daemon: the orders the server would write, trainers that are interrupted, and
what is left of them. The lineage is kept as the server keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.trainer.forkserver import ForkServer
from trainer.contract import commands, journal, orders
from trainer.contract.durable import write_durably
from trainer.contract.orders import AttemptOrder, Lineage
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.rundir import DataDir, RunDir
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import resolve
from trainer.data.prepare import prepare

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "depth": 2,
        "aspect_ratio": 16,
        "head_dim": 16,
        "sequence_len": 32,
        "vocab_size": 300,
    },
    "batch": {"tokens": 128, "device_batch_size": 2},
    "horizon": {"steps": 40},
    "evaluate": {"bpb_every": None, "sample_every": None},
    "checkpoint": {"every_steps": 7, "every_seconds": None},
    "numerics": {"threads": 1, "compile": False},
}


def write_corpus(folder: Path, seed: int = 0, shards: int = 4, documents: int = 400) -> None:
    """Small parquet shards with small row groups: the packing buffer of 1,000 documents makes a
    run of 60 steps cross shards, and the end of the three that are trained on."""
    draw = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "if", "return", "the", "of", "0.5", "\n", "é", "—"]
    folder.mkdir(parents=True)
    for shard in range(shards):
        texts = [
            " ".join(draw.choice(words) for _ in range(draw.randrange(1, 60)))
            for _ in range(documents)
        ]
        table = pa.table({"text": texts})
        pq.write_table(table, folder / f"shard_{shard:05d}.parquet", row_group_size=64)


@dataclass
class Lab:
    """One run in `root`. `limits` is the lineage after the attempts so far."""

    root: Path
    server: ForkServer
    spec_body: dict[str, Any]
    limits: dict[int, int] = field(default_factory=dict)
    attempts: int = 0
    schedule: PhaseSchedule | None = None
    earlier: list[PhaseSchedule] = field(default_factory=list)
    first_step_of_phase: int = 0

    @property
    def run_dir(self) -> RunDir:
        return DataDir(self.root).run("run_lab")

    def prepare(self, corpus: Path) -> None:
        """Tokenizer and token cache beside the corpus, where the next lab finds them."""
        asked = self.spec_body.get("data", {})
        self.spec_body["data"] = {**asked, "source": "parquet", "path": str(corpus)}
        spec = resolve(self.spec_body)
        self.run_dir.root.mkdir(parents=True)
        data = prepare(
            spec.data,
            data_dir=corpus.parent / "data",
            vocab_size=spec.model.vocab_size,
            tokens_needed=0,
        )
        write_durably(self.run_dir.data, data.model_dump_json().encode())

    def order(self, **changes: Any) -> Path:
        """The directory of the next attempt, with its order and inbox."""
        self.attempts += 1
        spec = resolve(self.spec_body)
        plan = make_plan(spec, PlanContext(device_type="cpu"))
        schedule = self.schedule or plan.schedule
        directory = self.run_dir.attempt(self.attempts)
        directory.mkdir(parents=True)
        fields: dict[str, Any] = {
            "run_id": "run_lab",
            "run_name": spec.name,
            "attempt": self.attempts,
            "token": f"token-{self.attempts}",
            "run_dir": str(self.run_dir.root),
            "data_dir": str(self.root),
            "device": "cpu",
            "phase_index": len(self.earlier),
            "phase_name": "phase",
            "schedule": schedule,
            "earlier_schedules": self.earlier,
            "first_step_of_phase": self.first_step_of_phase,
            "end_step": schedule.end_step,
            "spec": spec,
            "plan": plan,
            "lineage": Lineage(limits=self.limits),
        }
        orders.write(directory, AttemptOrder(**{**fields, **changes}))
        header = journal.JournalHeader("run_lab", self.attempts, f"token-{self.attempts}")
        journal.Writer.create(directory / "inbox.jsonl", header).close()
        return directory

    def extend(self, schedule: PhaseSchedule) -> None:
        """The next attempts serve a new phase."""
        spec = resolve(self.spec_body)
        now = self.schedule or make_plan(spec, PlanContext(device_type="cpu")).schedule
        self.earlier = [*self.earlier, now]
        self.schedule = schedule
        self.first_step_of_phase = schedule.start_step

    def run(self, fail: str = "", **changes: Any) -> int:
        """One attempt to its end; its exit status."""
        directory = self.order(**changes)
        self.server.start(directory, fail)
        status = self.server.wait()
        self.close_attempt(directory)
        return status

    def run_ranks(self, ranks: int, fail: str = "", **changes: Any) -> list[int]:
        """One attempt on several ranks of the CPU to its end; their exit statuses."""
        directory = self.order(devices=["cpu"] * ranks if ranks > 1 else [], **changes)
        self.server.start_ranks(directory, ranks, fail)
        statuses = self.server.wait_ranks()
        self.close_attempt(directory)
        return statuses

    def interrupt(
        self,
        how: str,
        step: int,
        mark: bytes = b"",
        fail: str = "",
        ranks: int = 1,
        victim: int = 0,
    ) -> int:
        """One attempt that is paused, terminated or killed once it reported `step` or ended.

        mark: what to wait for in the outbox instead of the step. victim: the rank that gets the
        signal.
        """
        directory = self.order(devices=["cpu"] * ranks if ranks > 1 else [])
        pid = self.server.start_ranks(directory, ranks, fail)[victim]
        deadline = time.monotonic() + 60
        mark = mark or f'"kind":"step","step":{step},'.encode()
        while time.monotonic() < deadline and not (directory / "exit.json").exists():
            outbox = directory / "outbox.jsonl"
            if outbox.exists() and mark in outbox.read_bytes():
                break
            time.sleep(0.001)
        if how == "pause":
            writer = journal.Writer.reopen(directory / "inbox.jsonl")
            writer.append(commands.Pause(id="c").model_dump(), durable=True)
            writer.close()
        elif identify_alive(pid):
            os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGTERM)
        status = self.server.wait()
        self.close_attempt(directory)
        return status

    def close_attempt(self, directory: Path) -> None:
        """The new attempt supersedes what earlier ones did beyond its start."""
        for record in read(directory / "outbox.jsonl"):
            if record["kind"] == "resumed":
                start = record["step"]
                self.limits = {a: min(limit, start) for a, limit in self.limits.items()}
                self.limits[int(directory.name)] = 10**9

    def events(self, kind: str, attempt: int | None = None) -> list[dict[str, Any]]:
        numbers = range(1, self.attempts + 1) if attempt is None else [attempt]
        found = []
        for number in numbers:
            outbox = self.run_dir.attempt(number) / "outbox.jsonl"
            found += [r for r in read(outbox) if r["kind"] == kind]
        return found

    def curve(self) -> dict[int, tuple[float, str]]:
        """{step: (loss, batch sha256)} of the lineage: later attempts replace earlier ones."""
        found: dict[int, tuple[float, str]] = {}
        for number in range(1, self.attempts + 1):
            for r in read(self.run_dir.attempt(number) / "outbox.jsonl"):
                if r["kind"] == "resumed":
                    found = {s: v for s, v in found.items() if s < r["step"]}
                elif r["kind"] == "step":
                    found[r["step"]] = (r["loss"], r["batch_sha256"])
        return found

    def weights_sha256(self, step: int) -> str:
        """sha256 over the model and optimizer files of the newest checkpoint at `step`."""
        (path, *_) = sorted(self.run_dir.checkpoints.glob(f"step-{step:09d}-a*"), reverse=True)
        digest = hashlib.sha256()
        for name in ("model.safetensors", "optimizer.safetensors"):
            digest.update((path / name).read_bytes())
        return digest.hexdigest()

    def log(self, attempt: int) -> str:
        return (self.run_dir.attempt(attempt) / "trainer.log").read_text()

    def exit(self, attempt: int | None = None) -> dict[str, Any]:
        number = self.attempts if attempt is None else attempt
        return json.loads((self.run_dir.attempt(number) / "exit.json").read_text())


def read(path: Path) -> list[dict[str, Any]]:
    """Every valid record of a journal."""
    if not path.exists():
        return []
    reader, offset, seq, records = journal.JournalReader(path), 0, 0, []
    while True:
        batch = reader.read(offset, seq)
        records += batch.records
        if batch.offset == offset:
            return records
        offset, seq = batch.offset, batch.next_seq


def identify_alive(pid: int) -> bool:
    from trainer.contract.rundir import identify

    return identify(pid) is not None
