"""Weights: trainers interrupted at random, in every way, end with the bits of their twin."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.soak.counts import Budget, Counts
from tests.trainer.forkserver import ForkServer
from tests.trainer.lab import TINY, Lab, identify_alive, read, write_corpus
from trainer.checkpoint import store
from trainer.contract import commands, journal
from trainer.data.cursor import first_cursor
from trainer.train.state import rng_state

STEPS = 80  # beyond the end of the corpus: into its second pass
PACKINGS = ("best_fit", "lossless")
WAYS = ("kill", "kill", "kill", "failpoint", "pause", "terminate")
PLACES = (
    "checkpoint.write", "checkpoint.fsync", "durable.fsync", "durable.rename",
    "checkpoint.before_manifest", "checkpoint.before_rename", "checkpoint.before_dir_fsync",
    "checkpoint.remove", "journal.append", "journal.fsync", "loop.step",
)  # fmt: skip
Spoil = Callable[[Lab], None]


def run(budget: float, seed: int) -> Counts:
    """Runs, each interrupted two to five times, until the time is up. It is a failure if kills only
    hit the start, since that proves nothing."""
    counts, left = Counts("weights", seed), Budget(budget)
    with Workshop() as context:
        number = 0
        while left.has_more():
            _one_run(context, counts, seed * 1000 + number)
            number += 1
    counts.expect(
        2 * counts.done["of them past a first step"] >= counts.done["kills"],
        "most kills landed before the first step",
    )
    return counts


def control(seed: int, piece: str = "cursor") -> Counts:
    """The same with one piece of the state missing in a checkpoint: it must be detected."""
    counts = Counts("weights", seed)
    with Workshop() as context:
        _one_run(context, counts, seed, spoil=lambda lab: forget(lab, piece))
    return counts


class Workshop:
    """A fork server, a corpus and the twins, made once for a campaign. changes: to the spec of
    every run."""

    def __init__(self, **changes: Any) -> None:
        self.spec = {**TINY, "horizon": {"steps": STEPS}, **changes}
        self._folder = tempfile.TemporaryDirectory(prefix="soak-weights-")
        self.root = Path(self._folder.name)
        write_corpus(self.root / "corpus")
        self.server = ForkServer()
        self._twins: dict[str, Any] = {}
        self._made = 0

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self._folder.cleanup()

    def lab(self, packing: str) -> Lab:
        self._made += 1
        spec = {**self.spec, "data": {"packing": packing}}
        made = Lab(self.root / f"run-{self._made}", self.server, spec)
        made.prepare(self.root / "corpus")
        return made

    def twin(self, packing: str) -> Any:
        """The picture of an uninterrupted run."""
        if packing not in self._twins:
            calm = self.lab(packing)
            if calm.run() != 0:
                raise RuntimeError(calm.log(1))
            self._twins[packing] = picture(calm)
        return self._twins[packing]


def picture(lab: Lab) -> Any:
    """Curve with batch sha256, sha256 of weights and optimizer, random numbers and cursor."""
    steps = lab.spec_body["horizon"]["steps"]
    newest = max(lab.run_dir.checkpoints.glob(f"step-{steps:09d}-a*"))
    state = json.loads((newest / store.STATE).read_text())
    return lab.curve(), lab.weights_sha256(steps), state["rng"], state["loader"]


def _one_run(context: Workshop, counts: Counts, seed: int, spoil: Spoil | None = None) -> None:
    draw = random.Random(seed)
    packing = draw.choice(PACKINGS)
    lab = context.lab(packing)
    if spoil is not None:
        lab.interrupt("pause", 12)
        spoil(lab)
    else:
        for _ in range(draw.randrange(2, 6)):
            if not _interrupt(lab, counts, draw):
                break
    _finish(lab, counts)
    counts.add("runs")
    verdicts = {e["verdict"] for e in lab.events("resume_checked")}
    counts.expect(verdicts <= {"verified"}, f"run {seed}: resumes were {sorted(verdicts)}")
    counts.expect(picture(lab) == context.twin(packing), f"run {seed} ({packing}) is not its twin")


def _finish(lab: Lab, counts: Counts) -> None:
    for _ in range(5):
        lab.run()
        if lab.exit()["outcome"] == "completed":
            return
    counts.fail(f"never completed: {lab.exit()}")


def _interrupt(lab: Lab, counts: Counts, draw: random.Random) -> bool:
    """One interrupted attempt: mostly at a random step, some during the start, some by a kill at a
    random pass of a named place. Returns False if it had ended before."""
    how = draw.choice(WAYS)
    directory = lab.order()
    if how == "failpoint":
        how = f"{draw.choice(PLACES)}={draw.randrange(12)}*off->1*kill"
        lab.server.start(directory, how)
    else:
        pid = lab.server.start(directory)
        _wait(directory, draw)
        _strike(how, pid, directory)
    status = lab.server.wait()
    lab.close_attempt(directory)
    steps = [r["step"] for r in read(directory / "outbox.jsonl") if r["kind"] == "step"]
    counts.say(f"{how} at {place(lab, directory)}, status {status}")
    if status < 0:
        counts.add("kills")
        counts.add("of them past a first step", bool(steps))
        return True
    if lab.exit()["outcome"] == "completed":
        return False
    counts.add({"paused": "pauses"}.get(lab.exit()["outcome"], "terminations"))
    return True


def _wait(directory: Path, draw: random.Random) -> None:
    """Wait until some steps are done and a little longer, or only for part of the start."""
    steps = draw.randrange(1, 25) if draw.random() < 0.85 else 0
    deadline = time.monotonic() + (60 if steps else draw.uniform(0, 1))
    outbox = directory / "outbox.jsonl"
    while time.monotonic() < deadline and not (directory / "exit.json").exists():
        if steps and outbox.exists() and outbox.read_bytes().count(b'"kind":"step"') >= steps:
            break
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))


def _strike(how: str, pid: int, directory: Path) -> None:
    if how == "pause":
        writer = journal.Writer.reopen(directory / "inbox.jsonl")
        writer.append(commands.Pause(id="c").model_dump(), durable=True)
        writer.close()
    elif identify_alive(pid):
        os.kill(pid, signal.SIGTERM if how == "terminate" else signal.SIGKILL)


def place(lab: Lab, directory: Path) -> str:
    """Where an attempt ended: its last record, and whether a checkpoint was being written."""
    said = read(directory / "outbox.jsonl")
    last = said[-1] if said else {"kind": "nothing"}
    where = f"{last['kind']} {last.get('step', last.get('stage', ''))}".strip()
    folder = lab.run_dir.checkpoints
    writing = folder.is_dir() and any(p.name.startswith(".writing") for p in folder.iterdir())
    return where + (", writing a checkpoint" if writing else "")


# --- pieces that a control removes ---------------------------------------------------------------


def forget(lab: Lab, piece: str) -> None:
    """Rewrite the newest checkpoint, valid in every respect, without one piece of its state."""
    path = max(lab.run_dir.checkpoints.glob("step-*"))
    if piece == "optimizer":
        tensors = load_file(path / store.OPTIMIZER)
        tensors = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        save_file(tensors, path / store.OPTIMIZER)
    else:
        state = json.loads((path / store.STATE).read_text())
        cursor = state["loader"]
        if piece == "rng":
            torch.manual_seed(int.from_bytes(os.urandom(4)))
            state["rng"] = rng_state()
        elif piece == "cursor":
            state["loader"] = first_cursor(lab.spec_body["data"]["packing"])
        else:
            held = [key for key in ("documents", "buffer", "keys") if key in cursor]
            state["loader"] = {**cursor, **{key: [] for key in held}}
        (path / store.STATE).write_text(json.dumps(state))
    reseal(path)


def reseal(path: Path) -> None:
    """Update the manifest to match the files."""
    old = store.read_manifest(path)
    files = {
        name: store.FileEntry(bytes=size, sha256=sha256)
        for name in old.files
        for size, sha256 in [_entry(path / name)]
    }
    (path / store.MANIFEST).write_bytes(store.seal(old.model_copy(update={"files": files})))


def _entry(path: Path) -> tuple[int, str]:
    import hashlib

    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()
