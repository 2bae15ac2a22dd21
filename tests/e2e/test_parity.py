"""A nanochat run continued through the daemon, as its user would: import, extend, compare.

The fixture is a real nanochat run that was planned for 60 steps, finished, and extended to 120.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.real_daemon import RealDaemon
from tests.e2e.test_life import wait_job


@pytest.fixture(scope="module")
def fixture(request) -> Path:
    return request.path.parent.parent / "fixtures" / "nanochat-d4"


@pytest.fixture(scope="module")
def reference(fixture) -> dict[str, Any]:
    return json.loads((fixture / "reference.json").read_text())


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    daemon = RealDaemon(tmp_path_factory.mktemp("parity"))
    yield daemon
    daemon.end()


@pytest.fixture(scope="module")
def extended(daemon, fixture) -> str:
    """The name of the run, imported at 60 and extended to 120."""
    job = daemon.client.import_run(
        {"path": str(fixture), "tag": "d4", "step": 60, "name": "my-run"}
    )
    wait_job(daemon, job.id)
    imported = daemon.client.run("my-run")
    assert (imported.state, imported.step, imported.end_step) == ("completed", 60, 60)
    (phase,) = daemon.client.phases("my-run")
    assert phase.imported
    assert daemon.client.progress("my-run").val_bpb == pytest.approx(3.2384705003427765)
    answer = daemon.client.extend(
        "my-run", {"to_step": 120, "schedule": {"mode": "replan", "rewarm_steps": 0}}
    )
    assert answer.joint is not None
    daemon.until("my-run", lambda now: now.state == "completed" and now.step == 120)
    return "my-run"


def directory(daemon: RealDaemon, run: str, step: int) -> Path:
    (found,) = [c for c in daemon.client.checkpoints(run) if c.step == step and not c.superseded]
    return Path(daemon.client.run(run).directory) / "checkpoints" / found.name


def test_every_loss_and_the_schedule(daemon, extended, reference):
    keys = ["loss", "lr_multiplier", "momentum", "weight_decay"]
    answer = daemon.client.metrics(extended, keys=keys, max_points=1000)
    found = {s.key: {p[0]: p[2] for p in s.points} for s in answer.series}
    assert len(reference["extension"]) == 60
    for row in reference["extension"]:
        step = row["step"]
        assert found["loss"][step] == pytest.approx(row["loss"], abs=1e-5), step
        assert found["lr_multiplier"][step] == pytest.approx(row["lrm"], abs=1e-9)
        assert found["momentum"][step] == pytest.approx(row["momentum"], abs=1e-9)
        assert found["weight_decay"][step] == pytest.approx(row["wd"], abs=1e-9)


def test_every_weight(daemon, extended, fixture):
    theirs = torch.load(
        fixture / "base_checkpoints/d4/model_000120.pt", map_location="cpu", weights_only=True
    )
    ours = load_file(directory(daemon, extended, 120) / "model.safetensors")
    theirs = {name.removeprefix("_orig_mod."): tensor for name, tensor in theirs.items()}
    assert set(ours) == set(theirs)
    worst = max(
        (ours[name].float() - tensor.float()).abs().max().item() for name, tensor in theirs.items()
    )
    assert worst < 1e-3


def test_val_bpb_before_within_and_after(daemon, extended, reference):
    found = {e.step: e.value for e in daemon.client.evaluations(extended) if e.kind == "bpb"}
    for row in reference["val_bpb"]["extension"]:
        assert found[row["step"]] == pytest.approx(row["bpb"], abs=1e-5)
    checks = [
        e.data for e in daemon.client.events(extended, limit=500).data if e.kind == "resume_checked"
    ]
    (bpb,) = [c for c in checks if c["what"] == "val_bpb"]
    assert bpb["expected"] == pytest.approx(bpb["found"], abs=1e-5)


def test_the_first_resume_is_said_to_be_approximate(daemon, extended):
    (resumed,) = [e for e in daemon.client.events(extended, limit=500).data if e.kind == "resumed"]
    assert "packing buffer" in resumed.data["approximate"]


def test_greedy_sample_of_step_120(daemon, extended, reference):
    prompt = reference_prompt(daemon, extended, reference)
    job = daemon.client.sample(extended, {"prompts": [prompt], "max_tokens": 16})
    result = wait_job(daemon, job.id).result
    assert result is not None
    text = result["samples"][0]["text"]
    assert text
    assert f"<|bos|>{prompt}{text}" == reference["greedy16_text"]


def reference_prompt(daemon: RealDaemon, run: str, reference: dict[str, Any]) -> str:
    from trainer.data import tokenizer
    from trainer.data.prepared import read

    data = Path(daemon.client.run(run).directory) / "data.json"
    prepared = read(data, daemon.data_dir)
    ids = reference["greedy_prompt_ids"][1:]
    return tokenizer.load(Path(prepared.tokenizer_dir)).decode(ids)


def test_export_gives_nanochat_its_files_back(daemon, extended, fixture):
    job = daemon.client.export(extended, {"format": "nanochat"})
    result = wait_job(daemon, job.id).result
    assert result is not None
    folder = Path(result["path"])
    (meta_path,) = folder.rglob("meta_000120.json")
    meta = json.loads(meta_path.read_text())
    theirs = json.loads((fixture / "base_checkpoints/d4/meta_000120.json").read_text())
    assert meta["dataloader_state_dict"] == theirs["dataloader_state_dict"]
    assert meta["model_config"] == theirs["model_config"]
    (model_path,) = folder.rglob("model_000120.pt")
    model = torch.load(model_path, map_location="cpu", weights_only=True)
    ours = load_file(directory(daemon, extended, 120) / "model.safetensors")
    assert all(torch.equal(model[name], ours[name]) for name in ours)


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_f52_a_damaged_import_is_refused_by_file_and_leaves_nothing(
    daemon, fixture, tmp_path, damage
):
    copy = tmp_path / "copy"
    shutil.copytree(fixture, copy)
    victim = copy / "base_checkpoints/d4/model_000060.pt"
    victim.chmod(0o644)
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-1000])
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"garbage" * 1000)
    before = {run.name for run in daemon.client.runs()}
    job = daemon.client.import_run({"path": str(copy), "tag": "d4", "step": 60, "name": "damaged"})
    deadline = time.monotonic() + 60
    while job.ended_at is None and time.monotonic() < deadline:
        time.sleep(0.1)
        job = daemon.client.job(job.id)
    assert job.state == "failed"
    assert "model_000060.pt" in job.message
    assert {run.name for run in daemon.client.runs()} == before
