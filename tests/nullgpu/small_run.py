"""A small run in this process, on its null GPU: prepared and trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer.lab import Lab, write_corpus
from trainer.contract.durable import write_durably
from trainer.contract.events import Ended
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import resolve
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
    """Prepare a run with its data and documents, as the server writes them."""
    run = Lab(folder / "run", None, dict(SPEC))  # type: ignore[arg-type]
    write_corpus(folder / "corpus")
    run.prepare(folder / "corpus")
    spec = resolve(run.spec_body)
    plan = make_plan(spec, PlanContext(device_type="cuda"))
    for file, document in ((run.run_dir.spec, spec), (run.run_dir.plan, plan)):
        write_durably(file, document.model_dump_json().encode())
    return run


def attempt(run: Lab, at_start: Callable[[Session], None] = lambda session: None) -> None:
    """Run the trainer to the end of the phase, in this process. at_start: called with the session
    before its first step."""
    import trainer.__main__ as program
    from trainer.train import loop

    train, directory = loop.run, run.order(device="cuda:0")

    def watched(session: Session) -> Ended:
        at_start(session)
        return train(session)

    loop.run = watched
    assert program.main(["trainer", str(directory)]) == 0, run.exit()
