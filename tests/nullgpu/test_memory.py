"""What a run holds of a card at each place where it may run out: step, loss, save, evaluation
and resume. The bars of the step itself are in test_step_memory.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(600)]

ROWS = {"rtx4070": 8}
GB = 1e9


def save(bench: Any, folder: Path, step: int = 1) -> Any:
    """A save from begin to end; how it ended, and the saver."""
    from trainer.checkpoint.background_writer import Saver
    from trainer.checkpoint.store import Manifest

    def describe(files: Any) -> Manifest:
        return Manifest(
            run_id="run_a", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    saver = Saver(folder, bench.device)
    model, optimizer = dict(bench.model.state_dict()), bench.optimizer.state_dict()
    saver.begin(step, model, optimizer, {}, describe, "cadence")
    (saved,) = saver.wait()
    return saved, saver


def evaluate(bench: Any, rows: int) -> None:
    import torch

    from trainer.evaluate import bpb

    bpb.measure(bench.model, bench.batches[:1], torch.ones(bench.shape.padded_vocab_size))


def resume(bench: Any, path: str) -> None:
    from trainer.checkpoint import store

    model, optimizer, _ = store.load(Path(path))
    bench.model.load_state_dict(model)
    bench.optimizer.load_state_dict(optimizer)


def life(rows: int) -> dict[str, Any]:
    """The cost of each thing a run does, in this order, and of each again on a full card."""
    from tests.nullgpu.counting import cost, limit_memory
    from tests.nullgpu.steps import Bench

    bench, kept = Bench(rows=rows), []
    with tempfile.TemporaryDirectory() as folder:
        does: dict[str, Any] = {
            "train": bench.train,
            "loss_only": bench.loss_only,
            "save": lambda: kept.append(save(bench, Path(folder), len(kept) + 1)[0]),
            "evaluate": lambda: evaluate(bench, rows),
            "resume": lambda: resume(bench, str(kept[-1].path)),
        }
        bench.train()
        free = {name: cost(call).to_json() for name, call in does.items()}
        limit_memory(int(free["train"]["before_bytes"] + (64 << 20)))
        full = {name: cost(call).outcome for name, call in does.items()}
        limit_memory(None)
        again = cost(bench.train).to_json()
    return {"free": free, "full": full, "again": again, "saved": [str(s.error) for s in kept]}


@pytest.fixture(scope="module", params=ROWS)
def lived(on_card, request: pytest.FixtureRequest) -> dict[str, Any]:
    return on_card(request.param, life, rows=ROWS[request.param], seconds=560)


def test_nothing_a_run_does_needs_more_than_a_step(lived):
    free = lived["free"]
    assert {name: found["outcome"] for name, found in free.items()} == dict.fromkeys(free, "done")
    for name, found in free.items():
        assert found["peak_bytes"] <= free["train"]["peak_bytes"], name


def test_a_save_and_a_resume_take_nothing_of_the_card(lived):
    for name in ("save", "resume"):
        found = lived["free"][name]
        assert found["peak_bytes"] - found["before_bytes"] < 0.01 * GB, name
    assert lived["free"]["save"]["pageable"] == 0
    assert lived["saved"] == ["None", "None"]


def test_a_full_card_ends_a_step_and_never_a_save(lived):
    """What was out of memory leaves nothing behind: the next step is as large as before."""
    ran_out = {name for name, outcome in lived["full"].items() if outcome == "OutOfMemoryError"}
    assert ran_out == {"train", "loss_only", "evaluate"}
    assert lived["again"]["outcome"] == "done"
    assert lived["again"]["peak_bytes"] <= 1.01 * lived["free"]["train"]["peak_bytes"]


# --- pinned memory -------------------------------------------------------------------------------


def save_untrained() -> dict[str, Any]:
    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import Bench

    bench, kept = Bench(compile=False), []
    with tempfile.TemporaryDirectory() as folder:
        found = cost(lambda: kept.append(save(bench, Path(folder)))).to_json()
    ((saved, saver),) = kept
    return {**found, "error": str(saved.error), "size": saved.bytes,
            "refused": saver.pinning_refused}  # fmt: skip


def test_a_checkpoint_pins_its_own_size(on_card):
    found = on_card("rtx4070", save_untrained)
    assert (found["error"], found["refused"]) == ("None", None)
    assert found["size"] < found["pinned_peak_bytes"] < 1.01 * found["size"]
    assert found["pageable"] == 0


def test_a_host_that_pins_too_little_slows_a_save_and_fails_none(on_card):
    found = on_card("rtx4070", save_untrained, variables={"NULLGPU_PINNED_MB": "1000"})
    assert found["error"] == "None"
    assert "cannot be pinned" in found["refused"]
    assert found["pageable"] > 100
