"""Samples and evaluations of an interrupted run are its twin's; a checkpoint knows its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trainer.checkpoint import retention, store
from trainer.contract.orders import Lineage
from trainer.data import prepared
from trainer.data.errors import DataChanged

STEPS = 12
PROMPTS = ["def ", "class ", "import "]
EVALUATE = {"bpb_every": "end", "sample_every": "end", "prompts": PROMPTS, "eval_tokens": 2048}


@pytest.mark.parametrize("how", ["pause", "kill"])
def test_an_end_in_the_last_evaluation_repeats_and_loses_nothing(lab, how: str) -> None:
    run = lab(f"last-evaluation-{how}", horizon={"steps": STEPS}, evaluate=EVALUATE)
    run.interrupt(how, STEPS, mark=b'"stage":"sampling"')
    record = run.run_dir.attempt(1) / "exit.json"
    if not record.exists() or run.exit()["outcome"] != "completed":
        run.run()
    assert run.exit()["outcome"] == "completed"
    kept = [e for e in run.events("sample") if e["step"] == STEPS]
    assert [e["prompt"] for e in kept] == PROMPTS
    assert len([e for e in run.events("evaluation", None) if e["step"] == STEPS]) <= 2
    name = run.exit()["checkpoint"]
    manifest = store.verify(run.run_dir.checkpoints / name, "run_lab")
    assert (manifest.why, manifest.pinned) == ("end", True)
    assert manifest.evaluations["bpb"]["step"] == STEPS


def test_a_checkpoint_of_another_run_is_never_used(lab) -> None:
    run = lab("foreign", horizon={"steps": 4})
    run.run()
    path = max(run.run_dir.checkpoints.glob("step-*"))
    assert store.verify(path, "run_lab").run_id == "run_lab"
    with pytest.raises(store.Bad, match="checkpoint of run run_lab, not of run_b"):
        store.verify(path, "run_b")
    limits = Lineage(limits={1: 10})
    with pytest.raises(store.Bad, match="not of run_b"):
        store.newest(run.run_dir.checkpoints, limits, run_id="run_b")
    assert retention.held(run.run_dir.checkpoints, limits, "run_b") == []


def test_an_import_is_of_the_run_that_its_job_became(lab) -> None:
    run = lab("import", horizon={"steps": 2})
    run.run()
    path = max(run.run_dir.checkpoints.glob("step-*"))
    manifest = store.read_manifest(path)
    imported = manifest.model_copy(update={"attempt": 0, "run_id": "job_0123"})
    assert store.belongs(imported, "run_0123")
    assert not store.belongs(imported, "run_0124")
    assert not store.belongs(manifest.model_copy(update={"run_id": "job_lab"}), "run_lab")


@pytest.mark.parametrize("written", ["now", "by 0.1"])
def test_data_of_a_moved_directory_is_found_where_it_is_now(
    lab, tmp_path: Path, written: str
) -> None:
    run = lab("moved", horizon={"steps": 2})
    data = prepared.read(run.run_dir.data, run.root)
    before = data.corpora_dir.parent
    home, document = tmp_path / "home", tmp_path / "data.json"
    shutil.copytree(before, home)  # the same contents, other inodes and times
    if written == "now":
        prepared.store(document, data, before)
        stored = json.loads(document.read_text())
        assert str(before) not in json.dumps([stored["tokenizer_dir"], stored["cache_dir"]])
    else:
        document.write_text(data.model_dump_json())
    here = prepared.read(document, home)
    assert Path(here.tokenizer_dir).is_relative_to(home)
    assert here.identity() == data.identity()
    prepared.verify(here)
    shutil.rmtree(home / "corpora" / "tokenizers")
    if written == "now":
        with pytest.raises(DataChanged):
            prepared.verify(prepared.read(document, home))
