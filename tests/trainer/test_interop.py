"""nanochat's files: what is read is what was written, and nothing damaged or hostile gets in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import fixture
from tests.trainer.shapes import RATES, Kind, batches, stepper, trained_model
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import resolve
from trainer.interop.errors import InteropError
from trainer.interop.nanochat import read_nanochat
from trainer.interop.nanochat_export import Rates, write_nanochat
from trainer.interop.nanochat_export_meta import ExportState, meta_for
from trainer.interop.nanochat_findings import findings
from trainer.interop.nanochat_meta import read_meta
from trainer.interop.nanochat_spec import spec_from_run
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer

CANARY = "canary-was-here"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The fixture's checkpoint of step 60 in a folder of our own."""
    folder = tmp_path / "base" / "base_checkpoints" / "d4"
    folder.mkdir(parents=True)
    for source in vars(files(fixture.BASE)).values():
        shutil.copyfile(source, folder / source.name)
    return tmp_path / "base"


@dataclass(frozen=True)
class Files:
    model: Path
    optimizer: Path
    meta: Path


def files(base: Path) -> Files:
    folder = base / "base_checkpoints" / "d4"
    return Files(
        folder / "model_000060.pt",
        folder / "optim_000060_rank0.pt",
        folder / "meta_000060.json",
    )


# --- reading and writing -------------------------------------------------------------------------


def test_reads_the_fixture_under_our_names() -> None:
    run = read_nanochat(fixture.BASE, "d4", 60)
    assert run.shape.n_layer == 4
    assert run.precision == "fp32"
    assert run.cursor is not None
    assert (run.cursor.pq_idx, run.cursor.rg_idx, run.cursor.epoch) == (0, 9, 1)
    assert run.meta.val_bpb == pytest.approx(3.23847, abs=1e-5)
    model = GPT(run.shape, compute_dtype=torch.float32, device="cpu")
    model.load_state_dict(run.model)
    spec = resolve(spec_from_run(run, name="d4", corpus="c", tokenizer="t"))
    optimizer = Optimizer(model, make_plan(spec).hyperparameters)
    optimizer.load_state_dict(run.optimizer_state())
    assert optimizer.count.item() == 60


def test_the_spec_plans_what_nanochat_planned() -> None:
    run = read_nanochat(fixture.BASE, "d4", 60)
    spec = resolve(spec_from_run(run, name="d4", corpus="c", tokenizer="t"))
    assert shape_of(spec.model) == run.shape
    plan = make_plan(spec)
    assert plan.horizon.steps == 60
    assert plan.batch.accumulation == 2
    groups = torch.load(files(fixture.BASE).optimizer, weights_only=True)["param_groups"]
    hyper = plan.hyperparameters
    planned = [
        hyper.unembedding_lr,
        hyper.embedding_lr,
        hyper.value_embedding_lr,
        hyper.resid_lr,
        hyper.x0_lr,
        hyper.smear_lr,
        *[hyper.matrix_lr] * 4,
    ]
    assert [g["initial_lr"] for g in groups] == pytest.approx(planned, rel=1e-12)
    assert spec.evaluate.core_every is None
    assert spec.evaluate.bpb_every == 30


@pytest.mark.parametrize(
    ("changed", "horizon"),
    [
        ({"num_iterations": -1}, {"data_param_ratio": 12.0}),
        ({"num_iterations": -1, "target_flops": 1e15}, {"flops": 1e15}),
        ({"num_iterations": 77, "target_flops": 1e15}, {"steps": 77}),
    ],
)
def test_minus_one_is_unset(copied: Path, changed: dict, horizon: dict) -> None:
    edit_meta(copied, lambda meta: meta["user_config"].update(changed))
    run = read_nanochat(copied, "d4", 60)
    assert spec_from_run(run, name="d4", corpus="c", tokenizer="t")["horizon"] == horizon


@pytest.mark.parametrize("fp8", [False, True])
def test_an_import_says_that_fp8_ends_here(copied: Path, fp8: bool) -> None:
    edit_meta(copied, lambda meta: meta["user_config"].update(fp8=fp8))
    run = read_nanochat(copied, "d4", 60)
    body = spec_from_run(run, name="d4", corpus="c", tokenizer="t")
    said = findings(run, body, has_corpus=True).approximate
    assert said is not None
    assert "packing buffer" in said
    assert ("fp8" in said) == fp8


def test_what_is_written_is_what_nanochat_had(tmp_path: Path) -> None:
    """Tensors, groups and meta equal the fixture's own, so nanochat can continue from ours."""
    run = read_nanochat(fixture.BASE, "d4", 60)
    spec = resolve(spec_from_run(run, name="d4", corpus="c", tokenizer="t"))
    groups = torch.load(files(fixture.BASE).optimizer, weights_only=True)["param_groups"]
    rates = Rates(
        lr_multiplier=groups[0]["lr"] / groups[0]["initial_lr"],
        momentum=groups[-1]["momentum"],
        weight_decay=groups[-1]["weight_decay"],
    )
    write_nanochat(
        tmp_path,
        "d4",
        60,
        run.model,
        run.optimizer_state(),
        run.raw_meta,
        shape=run.shape,
        hyper=make_plan(spec).hyperparameters,
        rates=rates,
    )
    for name in ("model", "optimizer"):
        ours = torch.load(getattr(files(tmp_path), name), weights_only=True)
        theirs = torch.load(getattr(files(fixture.BASE), name), weights_only=True)
        assert_same(ours, theirs, name)
    assert json.loads(files(tmp_path).meta.read_text()) == json.loads(
        files(fixture.BASE).meta.read_text()
    )
    assert sorted(p.name for p in files(tmp_path).model.parent.iterdir()) == [
        "meta_000060.json",
        "model_000060.pt",
        "optim_000060_rank0.pt",
    ]


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs), where
        assert ours.dtype == theirs.dtype
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-12), where
    else:
        assert ours == theirs, where


def test_a_run_of_ours_round_trips_through_nanochats_files(tmp_path: Path) -> None:
    """Windows, grouped queries, padded vocabulary, bf16 tables; meta made from our spec."""
    kind = Kind(n_kv_head=1, window_pattern="SL", sequence_len=512)
    spec = resolve(
        {
            "name": "mine",
            "model": {**vars(kind), "vocab_size": 1000},
            "batch": {"tokens": 1024, "device_batch_size": 2},
        }
    )
    hyper = make_plan(spec).hyperparameters
    ours = stepper(trained_model(kind, torch.bfloat16), hyper)
    ours.train_step(batches(kind), **RATES)
    at = ExportState(
        step=1,
        horizon_steps=9,
        total_batch_size=1024,
        device_batch_size=2,
        cursor={"pq_idx": 0, "rg_idx": 3, "epoch": 2},
    )
    meta = meta_for(spec, ours.model.shape, at)
    write_nanochat(
        tmp_path,
        "mine",
        1,
        ours.model.state_dict(),
        ours.optimizer.state_dict(),
        meta,
        shape=ours.model.shape,
        hyper=hyper,
        rates=Rates(0.5, 0.9, 0.1),
    )
    back = read_nanochat(tmp_path, "mine", 1)
    assert back.shape.windows == ours.model.shape.windows
    assert back.precision == "bf16"
    assert_same(back.model, dict(ours.model.state_dict()), "model")
    assert_same(back.optimizer_state(), ours.optimizer.state_dict(), "optimizer")
    assert back.cursor is not None
    assert (back.cursor.rg_idx, back.cursor.epoch) == (3, 2)
    body = spec_from_run(back, name="m", corpus="c", tokenizer="t")
    assert make_plan(resolve(body)).hyperparameters == hyper


def test_the_prefix_of_a_compiled_model_is_taken_off(copied: Path) -> None:
    edit_model(copied, lambda s: {f"_orig_mod.{n}": t for n, t in s.items()})
    assert (
        read_nanochat(copied, "d4", 60).model.keys()
        == read_nanochat(fixture.BASE, "d4", 60).model.keys()
    )


# --- damaged and hostile files -------------------------------------------------------------------


class Payload:
    """Pickled, it would run a command when loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def edit_model(base: Path, change: Callable[[dict], Any]) -> None:
    path = files(base).model
    torch.save(change(torch.load(path, weights_only=True)), path)


def edit_optimizer(base: Path, change: Callable[[dict], Any]) -> None:
    path = files(base).optimizer
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


def edit_meta(base: Path, change: Callable[[dict], Any]) -> None:
    path = files(base).meta
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def replaced(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict], dict]:
    return lambda state: state | {name: change(state[name])}


def with_nan(tensor: Tensor) -> Tensor:
    tensor.view(-1)[3] = float("nan")
    return tensor


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.find(b"data.pkl") + 200
    content[start : start + 64] = bytes(64)
    path.write_bytes(bytes(content))


def compress(path: Path) -> None:
    beside = path.with_suffix(".tmp")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    beside.replace(path)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))


def link_outside(path: Path) -> None:
    outside = path.parents[3] / "elsewhere.pt"
    path.rename(outside)
    path.symlink_to(outside)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WQ = "transformer.h.0.attn.c_q.weight"
MODEL_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda b: files(b).model.unlink(),
    "empty": lambda b: files(b).model.write_bytes(b""),
    "truncated": lambda b: truncate(files(b).model),
    "overwritten": lambda b: flip_middle(files(b).model),
    "not a zip": lambda b: files(b).model.write_bytes(b"hello" * 1000),
    "plain pickle": lambda b: files(b).model.write_bytes(pickle.dumps({"a": 1})),
    "compressed": lambda b: compress(files(b).model),
    "bomb": lambda b: zip_bomb(files(b).model),
    "too big": lambda b: os.truncate(files(b).model, 1 << 30),
    "link out": lambda b: link_outside(files(b).model),
    "fifo": lambda b: fifo(files(b).model),
    "folder": lambda b: (files(b).model.unlink(), files(b).model.mkdir()),
    "a list": lambda b: edit_model(b, lambda s: list(s.values())),
    "numbered": lambda b: edit_model(b, lambda s: dict(enumerate(s.values()))),
    "key missing": lambda b: edit_model(b, lambda s: {n: t for n, t in s.items() if n != WQ}),
    "key extra": lambda b: edit_model(b, lambda s: s | {"evil": torch.zeros(1)}),
    "key twice": lambda b: edit_model(b, lambda s: s | {f"_orig_mod.{WQ}": s[WQ]}),
    "wrong shape": lambda b: edit_model(b, replaced(WQ, lambda t: t[:-1])),
    "transposed shape": lambda b: edit_model(
        b, replaced("transformer.h.0.mlp.c_fc.weight", lambda t: t.T)
    ),
    "wrong dtype": lambda b: edit_model(b, replaced(WQ, lambda t: t.half())),
    "integers": lambda b: edit_model(b, replaced(WQ, lambda t: t.long())),
    "sparse": lambda b: edit_model(b, replaced(WQ, lambda t: t.to_sparse())),
    "no tensor": lambda b: edit_model(b, replaced(WQ, lambda t: "weights")),
    "nan": lambda b: edit_model(b, replaced(WQ, with_nan)),
    "infinity": lambda b: edit_model(b, replaced(WQ, lambda t: t / 0)),
    "mixed tables": lambda b: edit_model(
        b, replaced("value_embeds.1.weight", lambda t: t.bfloat16())
    ),
    "another model": lambda b: edit_meta(b, lambda m: m["model_config"].update(n_layer=3)),
    "another vocabulary": lambda b: edit_meta(
        b, lambda m: m["model_config"].update(vocab_size=1000)
    ),
}


@pytest.mark.parametrize("damage", MODEL_DAMAGE.values(), ids=MODEL_DAMAGE.keys())
def test_a_damaged_model_is_refused_by_name(copied: Path, damage: Callable[[Path], Any]) -> None:
    damage(copied)
    with pytest.raises(InteropError) as refused:
        read_nanochat(copied, "d4", 60)
    assert Path(refused.value.file).name == "model_000060.pt"
    assert refused.value.reason


def first_adam(state: dict) -> dict:
    return state["state"][0]


OPTIMIZER_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda b: files(b).optimizer.unlink(),
    "truncated": lambda b: truncate(files(b).optimizer),
    "another mapping": lambda b: edit_optimizer(b, lambda s: {"state": s["state"]}),
    "groups missing": lambda b: edit_optimizer(b, lambda s: s["param_groups"].pop()),
    "group of another kind": lambda b: edit_optimizer(
        b, lambda s: s["param_groups"][6].update(kind="sgd")
    ),
    "other numbers": lambda b: edit_optimizer(
        b, lambda s: s["param_groups"][2].update(params=[3, 2])
    ),
    "state missing": lambda b: edit_optimizer(b, lambda s: {**s, "state": {0: s["state"][0]}}),
    "state extra": lambda b: edit_optimizer(b, lambda s: s["state"].update({99: {}})),
    "moment missing": lambda b: edit_optimizer(b, lambda s: (first_adam(s).pop("exp_avg"), s)[1]),
    "nan": lambda b: edit_optimizer(b, lambda s: (with_nan(first_adam(s)["exp_avg"]), s)[1]),
    "negative square": lambda b: edit_optimizer(
        b, lambda s: (first_adam(s)["exp_avg_sq"].sub_(1), s)[1]
    ),
    "steps apart": lambda b: edit_optimizer(b, lambda s: first_adam(s).update(step=59)),
    "step no number": lambda b: edit_optimizer(b, lambda s: first_adam(s).update(step="60")),
    "step infinite": lambda b: edit_optimizer(b, lambda s: first_adam(s).update(step=float("inf"))),
    "momentum shape": lambda b: edit_optimizer(
        b, lambda s: s["state"][11].update(momentum_buffer=torch.zeros(15, 64, 64))
    ),
    "second shape": lambda b: edit_optimizer(
        b, lambda s: s["state"][27].update(second_momentum_buffer=torch.zeros(4, 64, 1))
    ),
}


@pytest.mark.parametrize("damage", OPTIMIZER_DAMAGE.values(), ids=OPTIMIZER_DAMAGE.keys())
def test_a_damaged_optimizer_is_refused_by_name(
    copied: Path, damage: Callable[[Path], Any]
) -> None:
    damage(copied)
    with pytest.raises(InteropError) as refused:
        read_nanochat(copied, "d4", 60)
    assert Path(refused.value.file).name == "optim_000060_rank0.pt"


META_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda b: files(b).meta.unlink(),
    "truncated": lambda b: truncate(files(b).meta),
    "a list": lambda b: files(b).meta.write_text("[1]"),
    "deep": lambda b: files(b).meta.write_text("[" * 200_000),
    "too big": lambda b: files(b).meta.write_text(" " * (2 << 20)),
    "not text": lambda b: files(b).meta.write_bytes(b"\xff\xfe\x00"),
    "nan": lambda b: edit_meta(b, lambda m: m.update(val_bpb=float("nan"))),
    "other step": lambda b: edit_meta(b, lambda m: m.update(step=61)),
    "key missing": lambda b: edit_meta(b, lambda m: m.pop("dataloader_state_dict")),
    "word for a number": lambda b: edit_meta(b, lambda m: m.update(total_batch_size="1024")),
    "huge": lambda b: edit_meta(b, lambda m: m["model_config"].update(n_embd=10**9)),
    "heads": lambda b: edit_meta(b, lambda m: m["model_config"].update(n_head=5)),
    "batch": lambda b: edit_meta(b, lambda m: m.update(total_batch_size=1000)),
    "negative cursor": lambda b: edit_meta(
        b, lambda m: m["dataloader_state_dict"].update(pq_idx=-1)
    ),
    "pattern": lambda b: edit_meta(b, lambda m: m["model_config"].update(window_pattern="LX")),
}


@pytest.mark.parametrize("damage", META_DAMAGE.values(), ids=META_DAMAGE.keys())
def test_a_damaged_meta_is_refused_by_name(copied: Path, damage: Callable[[Path], Any]) -> None:
    damage(copied)
    with pytest.raises(InteropError) as refused:
        read_nanochat(copied, "d4", 60)
    assert Path(refused.value.file).name == "meta_000060.json"


def test_a_run_that_was_never_evaluated_has_an_infinite_least_bpb(copied: Path) -> None:
    """json writes it as Infinity, which is no JSON and the only such word that is taken."""
    edit_meta(
        copied, lambda m: m["loop_state"].update(min_val_bpb=float("inf")) or m.update(val_bpb=None)
    )
    assert "Infinity" in files(copied).meta.read_text()
    meta, raw = read_meta(files(copied).meta, copied)
    assert meta.loop_state.min_val_bpb is None
    json.dumps(raw, allow_nan=False)


@pytest.mark.parametrize("tag", ["", "..", "../d4", "a/b", "d4\n", "-d4", "x" * 200])
def test_a_tag_is_a_name_and_no_path(tag: str) -> None:
    with pytest.raises(InteropError, match="tag"):
        read_nanochat(fixture.BASE, tag, 60)


@pytest.mark.parametrize("which", ["model", "optimizer"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_no_code_of_a_file_runs(copied: Path, tmp_path: Path, which: str, legacy: bool) -> None:
    canary = tmp_path / CANARY
    path = getattr(files(copied), which)
    content = torch.load(path, weights_only=True)
    torch.save(
        {**content, "extra": Payload(canary)}, path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(InteropError) as refused:
        read_nanochat(copied, "d4", 60)
    assert refused.value.file == str(path)
    assert not canary.exists()
    if not legacy:  # the payload is real: freely loaded, it runs
        torch.load(path, weights_only=False)
        assert canary.exists()


def test_dials_that_do_not_give_the_shape_are_refused(copied: Path) -> None:
    edit_meta(copied, lambda m: m["user_config"].update(aspect_ratio=99))
    run = read_nanochat(copied, "d4", 60)
    with pytest.raises(InteropError, match="does not give n_embd 64"):
        spec_from_run(run, name="d4", corpus="c", tokenizer="t")
