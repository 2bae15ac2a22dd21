"""Exact resume: interrupted at random, in any way, the bits are those of the twin that was not."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.checkpoint import store
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.schedule import ExtendSchedule, extend_schedule
from trainer.contract.spec import resolve
from trainer.runtime import device
from trainer.train import resume

STEPS = 40
EXTENDED = 60


def finish(lab, limit=12):
    """Attempts until the phase is complete."""
    for _ in range(limit):
        lab.run()
        if lab.exit()["outcome"] == "completed":
            return
    raise AssertionError(lab.exit())


def extension(lab):
    spec = resolve(lab.spec_body)
    first = make_plan(spec, PlanContext(device_type="cpu")).schedule
    return extend_schedule(
        first, STEPS, EXTENDED, ExtendSchedule(), warmup_steps=40, warmdown_ratio=0.65
    )


def end_of_data(lab):
    """How often the loader had been through all shards at the last checkpoint."""
    (path,) = lab.run_dir.checkpoints.glob(f"step-{EXTENDED:09d}-a*")
    return json.loads((path / "state.json").read_text())["loader"]["position"]["epoch"]


@pytest.fixture(scope="module")
def twins():
    return {}


def twin(lab, twins, packing):
    """The uninterrupted run, extended once: made once per packing."""
    if packing not in twins:
        calm = lab("twin", data={"packing": packing})
        finish(calm)
        calm.extend(extension(calm))
        finish(calm)
        assert end_of_data(calm) >= 1, "the runs never came to the end of their corpus"
        twins[packing] = (calm.curve(), calm.weights_sha256(STEPS), calm.weights_sha256(EXTENDED))
    return twins[packing]


@pytest.mark.parametrize("seed", range(8))
def test_f08_interrupted_at_random_the_weights_are_the_twins(lab, twins, seed):
    packing = ("best_fit", "lossless")[seed % 2]
    draw = random.Random(seed)
    run = lab("interrupted", data={"packing": packing})
    places = sorted(draw.sample(range(1, STEPS), 3))
    for step in places:
        how = draw.choice(["kill", "kill", "pause", "terminate"])
        print(f"seed {seed}: {how} at step {step}, {packing}")
        run.interrupt(how, step)
    finish(run)
    run.extend(extension(run))
    run.interrupt("kill", draw.randrange(STEPS + 1, EXTENDED))
    finish(run)
    curve, first, last = twin(lab, twins, packing)
    assert run.curve() == curve
    assert set(curve) == set(range(EXTENDED))
    assert (run.weights_sha256(STEPS), run.weights_sha256(EXTENDED)) == (first, last)
    verdicts = [e["verdict"] for e in run.events("resume_checked")]
    assert verdicts
    assert set(verdicts) == {"verified"}


@pytest.mark.parametrize("left_out", ["packing buffer", "optimizer moment", "cursor"])
def test_control_with_one_piece_of_state_left_out_the_harness_fails(lab, twins, left_out):
    """The comparison can fail: it does, when a resume forgets something."""
    import hashlib

    import torch
    from safetensors.torch import load_file, save_file

    run = lab("forgetful")
    run.interrupt("pause", 12)
    path = max(run.run_dir.checkpoints.iterdir())
    manifest = json.loads((path / "manifest.json").read_text())
    name = "state.json"
    if left_out == "optimizer moment":
        name = "optimizer.safetensors"
        tensors = load_file(path / name)
        key = "muon.32x32.momentum"  # that of a gate shows in the weights, and no float32 loss
        tensors[key] = torch.zeros_like(tensors[key])
        save_file(tensors, path / name)
    else:
        state = json.loads((path / name).read_text())
        if left_out == "cursor":
            state["loader"] = run_from_the_beginning()
        else:
            state["loader"] = without_buffer(state["loader"])
        (path / name).write_text(json.dumps(state))
    content = (path / name).read_bytes()
    manifest["files"][name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    del manifest["seal"]
    sealed = store.seal(store.Manifest.model_validate(manifest))
    (path / "manifest.json").write_bytes(sealed)
    finish(run)
    curve, first, _ = twin(lab, twins, "best_fit")
    shortened = {s: v for s, v in curve.items() if s < STEPS}
    assert run.curve() != shortened
    assert run.weights_sha256(STEPS) != first
    if left_out != "optimizer moment":
        assert [e["verdict"] for e in run.events("resume_checked")] == ["mismatch"]


def run_from_the_beginning():
    from trainer.data.cursor import first_cursor

    return first_cursor("best_fit")


def without_buffer(cursor):
    found = {**cursor}
    buffers = [k for k in found if k in ("documents", "buffer", "keys")]
    assert buffers, sorted(cursor)
    for key in buffers:
        found[key] = []
    return found


def test_f41_another_thread_count_is_noticed_and_said(lab):
    run = lab("threads")
    run.interrupt("pause", 10)
    frozen = json.loads(run.run_dir.frozen.read_text())
    frozen["threads"] = 2
    run.run_dir.frozen.write_text(json.dumps(frozen))
    finish(run)
    resumed = run.events("resumed", run.attempts)[0]
    assert "threads: 1 -> 2" in resumed["approximate"]
    assert run.events("resume_checked", run.attempts)[0]["verdict"] == "approximate"


FIELDS = device.fingerprint(torch.device("cpu"), {"device_batch_size": 4, "compile": False})


@pytest.mark.parametrize("field", [*FIELDS, "one that is new", "data"])
def test_f41_each_field_of_the_fingerprint_is_compared_and_named(field):
    now: Any = SimpleNamespace(
        fingerprint=FIELDS, data=SimpleNamespace(identity=lambda: "the same data")
    )
    manifest = store.Manifest.model_construct(
        approximate=None, why="cadence", data_identity="the same data", fingerprint={**FIELDS}
    )
    assert resume.differences(manifest, now) == []
    if field == "data":
        manifest.data_identity = "other data"
    else:
        manifest.fingerprint[field] = "as it was"
    (said,) = resume.differences(manifest, now)
    assert said.startswith(f"{field}: as it was -> " if field != "data" else "the data differs")


def test_f38_a_changed_corpus_file_stops_the_run_by_name(lab, tmp_path):
    from pathlib import Path

    from tests.trainer.lab import write_corpus

    folder = tmp_path / "own"
    write_corpus(folder, seed=9)
    run = lab("changed")
    run.run_dir.data.unlink()
    run.run_dir.root.rmdir()
    run.prepare(folder)
    run.interrupt("pause", 8)
    data = json.loads(run.run_dir.data.read_text())
    victim = Path(data["train_files"][0]["path"])
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes() + b"x")
    run.run()
    assert run.exit()["outcome"] == "failed"
    assert run.exit()["reason"] == "data_changed"
    assert victim.name in run.exit()["message"]


def test_a_pause_before_the_first_step_keeps_the_checkpoint_it_came_from(lab):
    run = lab("twice")
    run.interrupt("pause", 9)
    first = run.exit()["checkpoint"]
    directory = run.order()
    from trainer.contract import commands, journal

    writer = journal.Writer.reopen(directory / "inbox.jsonl")
    writer.append(commands.Pause(id="c").model_dump(), durable=True)
    writer.close()
    run.server.start(directory)
    assert run.server.wait() == 0
    assert run.exit()["outcome"] == "paused"
    assert run.exit()["checkpoint"] == first
