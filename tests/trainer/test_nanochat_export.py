"""Export to nanochat's generations: the files it would have written, read back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer import nanochat_files as files
from tests.trainer.nanochat_files import V1, V2
from tests.trainer.test_interop import assert_same
from trainer.contract.plan import make_plan
from trainer.contract.shape import ModelShape
from trainer.contract.spec import resolve
from trainer.interop import nanochat, nanochat_layout
from trainer.interop.errors import InteropError
from trainer.interop.nanochat import NanochatRun, Options
from trainer.interop.nanochat_export import (
    Rates,
    expressed,
    generation_for,
    require_specials,
    write_nanochat,
)
from trainer.interop.nanochat_export_meta import ExportState, meta_for
from trainer.interop.nanochat_spec import spec_from_run


def read(base: Path, options: Options | None = None) -> NanochatRun:
    found, saved = nanochat_layout.choose(nanochat_layout.find(base), base)
    return nanochat.read(found, saved.step, options or Options())


def write(run: NanochatRun, base: Path, meta: dict[str, Any] | None = None, **state: Any) -> None:
    """As v2 in experiment `first_ladder`, or v1, with the rates of the run's own groups."""
    spec = resolve(spec_from_run(run, name="d4", corpus="c", tokenizer="t"))
    groups = torch.load(files.shard(run.found.root, 0), weights_only=True)["param_groups"]
    rates = Rates(
        lr_multiplier=groups[0]["lr"] / groups[0]["initial_lr"],
        momentum=groups[-1]["momentum"],
        weight_decay=groups[-1]["weight_decay"],
    )
    write_nanochat(
        base,
        "d4",
        run.step,
        state.get("model", run.model),
        state.get("optimizer", run.optimizer_state()),
        meta or run.raw_meta,
        shape=run.shape,
        hyper=make_plan(spec).hyperparameters,
        rates=rates,
        experiment=run.found.experiment,
    )


def test_v2_gets_the_files_that_it_writes_itself(tmp_path: Path) -> None:
    """Keys in its order, its numbering, one rank stamped, every number the same."""
    run = read(V2)
    assert generation_for(run.shape) == "v2"
    write(run, tmp_path)
    ours, theirs = files.checkpoint_folder(tmp_path), files.checkpoint_folder(V2)
    for name in ("model_000060.pt", "optim_000060_rank0.pt"):
        mine = torch.load(ours / name, weights_only=True)
        wanted = torch.load(theirs / name, weights_only=True)
        assert_same(mine, wanted, name)
        if name.startswith("model"):
            assert list(mine) == list(wanted)
    meta = [json.loads((folder / "meta_000060.json").read_text()) for folder in (ours, theirs)]
    assert meta[0] == meta[1]
    back = read(tmp_path)
    assert back.generation == run.generation
    assert_same(back.optimizer_state(), run.optimizer_state(), "optimizer")
    assert_same(back.model, run.model, "model")


@pytest.mark.parametrize("source", [V1, V2], ids=["v1", "v2"])
def test_the_meta_of_a_run_of_ours_is_what_nanochat_writes(source: Path) -> None:
    run = read(source)
    theirs = run.raw_meta
    spec = resolve(spec_from_run(run, name="mine", corpus="c", tokenizer="t"))
    row = theirs.get("dataloader_row")
    at = ExportState(
        step=60,
        horizon_steps=60,
        total_batch_size=theirs["total_batch_size"],
        device_batch_size=4,
        cursor={"row": row} if row is not None else theirs["dataloader_state_dict"],
        updates=60,
        val_bpb=theirs["val_bpb"],
        smooth_train_loss=theirs["loop_state"]["smooth_train_loss"],
        training_seconds=theirs["loop_state"]["total_training_time"],
    )
    ours = meta_for(spec, run.shape, at, generation_for(run.shape))
    own_names = {"run": "mine", "model_tag": "mine", "device_type": ""}
    own_names |= {"core_metric_max_per_task": 500} if source == V1 else {}
    assert ours == {**theirs, "user_config": theirs["user_config"] | own_names}
    assert list(ours) == list(theirs)
    assert list(ours["user_config"]) == list(theirs["user_config"])


def test_a_model_without_smear_is_refused_for_v1() -> None:
    run = read(V2)
    with pytest.raises(InteropError, match=r"nanochat v1: .*smear gate"):
        expressed("v1", run.shape, run.model)


def test_a_trained_smear_is_refused_for_v2_and_an_untrained_one_left_out(tmp_path: Path) -> None:
    run = read(V1)
    with pytest.raises(InteropError, match=r"nanochat v2: .*smear_lambda is not zero"):
        expressed("v2", run.shape, run.model)
    model = run.model | {"smear_lambda": torch.zeros(1)}
    assert not expressed("v2", run.shape, model).traits.smear
    found = replace(run.found, experiment="tried")
    write(replace(run, found=found), tmp_path, {**run.raw_meta, "step": 60}, model=model)
    written = torch.load(files.checkpoint_folder(tmp_path) / "model_000060.pt", weights_only=True)
    assert "smear_gate.weight" not in written
    assert list(written)[:2] == ["transformer.wte.weight", "lm_head.weight"]


def windowed(shape: ModelShape, window: int | None, pattern: str = "SSSL") -> ModelShape:
    traits = replace(shape.traits, short_window=window)
    return replace(shape, traits=traits, window_pattern=pattern)


def test_windows_that_a_generation_does_not_have_are_refused() -> None:
    new, old = read(V2), read(V1)
    with pytest.raises(InteropError, match="multiples of 128 tokens"):
        expressed("v2", windowed(new.shape, 100), new.model)
    assert expressed("v2", windowed(new.shape, 100, "L"), new.model)
    assert expressed("v2", windowed(new.shape, 640), new.model)
    with pytest.raises(InteropError, match="derives the short window"):
        expressed("v1", windowed(old.shape, 64), old.model)
    assert expressed("v1", windowed(old.shape, 128), old.model)


def test_v2_needs_the_special_tokens_that_it_asks_for_by_name() -> None:
    require_specials("v1", ("<|bos|>",))
    require_specials("v2", ("<|bos|>", "<|assistant_end|>"))
    with pytest.raises(InteropError, match="assistant_end"):
        require_specials("v2", ("<|bos|>",))


@pytest.mark.parametrize("source", [V1, V2], ids=["v1", "v2"])
def test_an_optimizer_that_began_anew_is_read_back(tmp_path: Path, source: Path) -> None:
    """It has done fewer updates than the step: the meta file says so, or it is refused."""
    run = read(source)
    state = run.optimizer_state() | {"adamw.step": torch.tensor(7)}
    write(run, tmp_path / "said", {**run.raw_meta, "traind": {"optimizer_updates": 7}},
          optimizer=state)  # fmt: skip
    back = read(tmp_path / "said")
    assert back.optimizer is not None
    assert back.optimizer.updates == 7
    write(run, tmp_path / "unsaid", optimizer=state)
    with pytest.raises(InteropError, match="7 updates where the checkpoint stands at step 60"):
        read(tmp_path / "unsaid")


def test_tables_in_bfloat16_are_widened_for_v2(tmp_path: Path) -> None:
    """It stores them in float32 whatever it computes in; no bit is lost."""
    run = read(V2)
    tables = ("transformer.wte.weight", "value_embeds.1.weight", "value_embeds.3.weight")
    narrow = {n: t.bfloat16() if n in tables else t for n, t in run.model.items()}
    write(run, tmp_path, model=narrow)
    back = read(tmp_path).model
    assert all(back[n].dtype == torch.float32 for n in tables)
    assert all(torch.equal(back[n], narrow[n].float()) for n in tables)
