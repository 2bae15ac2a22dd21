"""A small run in this process, on its card: prepared, built, trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainer.lab import Lab, write_corpus
from trainer.contract import journal, orders
from trainer.contract.durable import write_durably
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import resolve
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.train.session import Session

SPEC: dict[str, Any] = {
    "name": "job",
    "model": {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "sequence_len": 32,
              "vocab_size": 300},
    "batch": {"tokens": 128, "device_batch_size": 2},
    "horizon": {"steps": 2},
    "evaluate": {"bpb_every": None, "sample_every": None, "eval_tokens": 1024},
    "checkpoint": {"every_steps": 7, "every_seconds": None},
    "numerics": {"compile": False, "deterministic": True},
}  # fmt: skip


def prepared(folder: Path) -> Lab:
    """With its data and its documents, as the server writes them."""
    run = Lab(folder / "run", None, dict(SPEC))  # type: ignore[arg-type]
    write_corpus(folder / "corpus")
    run.prepare(folder / "corpus")
    spec = resolve(run.spec_body)
    plan = make_plan(spec, PlanContext(device_type="cuda"))
    for file, document in ((run.run_dir.spec, spec), (run.run_dir.plan, plan)):
        write_durably(file, document.model_dump_json().encode())
    return run


def built(run: Lab) -> Session:
    """The session of the run's next attempt."""
    from trainer.train import session

    directory = run.order(device="cuda:0")
    order = orders.read(directory, AttemptOrder)
    header = journal.JournalHeader(order.run_id, order.attempt, order.token)
    reporter = Reporter(journal.Writer.create(directory / "outbox.jsonl", header))
    return session.build(order, reporter, Control(directory / "inbox.jsonl"))


def trained(folder: Path) -> Lab:
    """To the end of its phase, with a checkpoint there."""
    from trainer.train import checkpointing, loop

    run = prepared(folder)
    parts = built(run)
    try:
        parts.reporter.emit(loop.run(parts))
    finally:
        checkpointing.drain(parts)
        parts.close()
    parts.reporter.sync()
    return run
