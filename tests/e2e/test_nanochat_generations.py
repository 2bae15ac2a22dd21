"""A nanochat v2 run through the daemon: listed, imported, extended, exported and read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from server.client import ApiError
from tests.e2e.real_daemon import RealDaemon
from tests.e2e.test_life import losses, wait_job
from trainer.contract.jobs import ImportAnswer

WEIGHTS, STATE = "model.safetensors", "optimizer.safetensors"


@pytest.fixture(scope="module")
def fixture(request: pytest.FixtureRequest) -> Path:
    return request.path.parent.parent / "fixtures" / "nanochat-2026-09-d4"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    daemon = RealDaemon(tmp_path_factory.mktemp("generations"))
    yield daemon
    daemon.end()


def done(daemon: RealDaemon, path: Path, **ask: Any) -> dict[str, Any]:
    job = daemon.client.import_run({"path": str(path), **ask})
    return wait_job(daemon, job.id).result or {}


def checkpoint(daemon: RealDaemon, run: str, step: int) -> Path:
    (found,) = [c for c in daemon.client.checkpoints(run) if c.step == step]
    return Path(daemon.client.run(run).directory) / "checkpoints" / found.name


def test_a_listing_and_a_dry_run_make_no_run(daemon: RealDaemon, fixture: Path) -> None:
    listing = ImportAnswer.model_validate(done(daemon, fixture)).listing
    assert listing is not None
    first = listing.found[0]
    assert (first.experiment, first.tag, first.steps) == ("first_ladder", "d4", [60])
    preview = ImportAnswer.model_validate(done(daemon, fixture, dry_run=True)).preview
    assert preview is not None
    assert (preview.generation, preview.step, preview.inexact) == ("v2 of September 2026", 60, [])
    assert not list(daemon.client.runs())


def test_a_v2_run_is_read_back_from_its_export_bit_for_bit(
    daemon: RealDaemon, fixture: Path
) -> None:
    done(daemon, fixture, name="mine")
    run = daemon.client.run("mine")
    assert (run.state, run.step) == ("completed", 60)
    daemon.client.extend("mine", {"to_step": 64, "schedule": {"rewarm_steps": 0}})
    daemon.until("mine", lambda now: now.state == "completed" and now.step == 64)
    events = daemon.client.events("mine", limit=500).data
    (resumed,) = [e for e in events if e.kind == "resumed"]
    assert not resumed.data["approximate"]
    job = daemon.client.export("mine", {"format": "nanochat"})
    exported = wait_job(daemon, job.id).result or {}
    assert "experiments/mine/mine/base/model_000064.pt" in exported["files"]
    folder = Path(exported["path"])
    # v2 knows its shards by the bytes of this file
    pickled = "datasets/stdlib/tokenizer/tokenizer.pkl"
    assert (folder / pickled).read_bytes() == (fixture / pickled).read_bytes()
    done(daemon, folder, name="back", corpus=str(fixture / "datasets/stdlib"))
    for file in (WEIGHTS, STATE):
        ours, theirs = (load_file(checkpoint(daemon, r, 64) / file) for r in ("mine", "back"))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)
    back, mine = daemon.client.run("back").spec, daemon.client.run("mine").spec
    assert back.model == mine.model
    assert back.optimizer == mine.optimizer


FIXTURES = Path(__file__).parents[1] / "fixtures"
TWO_GPUS = {
    "nanochat-2026-05-d4-2gpu": {},
    "nanochat-2026-09-d4-2gpu": {
        "corpus": str(FIXTURES / "nanochat-2026-09-d4" / "datasets" / "stdlib"),
        "tokenizer": str(FIXTURES / "nanochat-2026-09-d4" / "datasets" / "stdlib" / "tokenizer"),
    },
}


@pytest.mark.parametrize("name", TWO_GPUS)
def test_a_run_of_two_gpus_continues_on_two_devices_as_nanochat_did(
    daemon: RealDaemon, name: str
) -> None:
    """Every loss and val bpb of nanochat's own continuation on two processes, to step 120."""
    run = name.removesuffix("-2gpu").replace("nanochat", "gang")
    done(daemon, FIXTURES / name, name=run, **TWO_GPUS[name])
    schedule = {"rewarm_steps": 0}
    daemon.client.extend(run, {"to_step": 120, "schedule": schedule, "start": False})
    daemon.client.resume(run, overrides={"devices": ["cpu", "cpu"]})
    ended = daemon.until(run, lambda now: now.state == "completed" and now.step == 120)
    assert ended.devices == ["cpu", "cpu"]
    assert [row.rank for row in daemon.client.ranks(run)] == [0, 1]
    wanted = json.loads((FIXTURES / name / "reference.json").read_text())
    ours = losses(daemon, run)
    theirs = {entry["step"]: entry["loss"] for entry in wanted["extension"]}
    assert theirs.keys() == set(range(60, 120))
    assert max(abs((ours[step] or 0.0) - loss) for step, loss in theirs.items()) < 1e-5
    found = [e for e in daemon.client.evaluations(run) if e.kind == "bpb" and e.step == 120]
    bpb = wanted["val_bpb"]["extension"][-1]
    assert bpb["step"] == 120
    assert found[-1].value == pytest.approx(bpb["bpb"], abs=1e-5)


def test_an_export_that_cannot_be_expressed_is_refused_by_name(daemon: RealDaemon) -> None:
    job = daemon.client.export("mine", {"format": "nanochat-v1"})
    deadline = time.monotonic() + 60
    while job.ended_at is None and time.monotonic() < deadline:
        time.sleep(0.1)
        job = daemon.client.job(job.id)
    assert job.state == "failed"
    assert "nanochat v1" in job.message
    assert "smear gate" in job.message


def test_weights_alone_are_extended_with_a_warning(daemon: RealDaemon, fixture: Path) -> None:
    done(daemon, fixture, name="weights", weights_only=True)
    imported = [e for e in daemon.client.events("weights").data if e.kind == "imported"]
    assert "moments start at zero" in imported[0].message
    shown = daemon.client.extend("weights", {"to_step": 62}, dry_run=True)
    assert any("without their optimizer" in line for line in shown.warnings)
    sample = daemon.client.sample("weights", {"prompts": ["def "], "max_tokens": 4})
    assert (wait_job(daemon, sample.id).result or {})["step"] == 60


def test_a_path_that_is_not_there_is_refused_at_once(daemon: RealDaemon, fixture: Path) -> None:
    with pytest.raises(ApiError) as refused:
        daemon.client.import_run({"path": str(fixture), "corpus": "/nowhere/at/all"})
    assert "/nowhere/at/all" in str(refused.value)
