"""Recipes: the default keeps its bits, the others are what their generation of nanochat did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference import optimizer as reference
from tests.trainer.shapes import VOCAB, Kind
from trainer.contract.plan import Plan, make_plan
from trainer.contract.recipe import MUON, RECIPES, MuonName
from trainer.contract.shape import shape_of
from trainer.contract.spec import resolve
from trainer.model.gpt import GPT
from trainer.optim.muon import muon_update
from trainer.optim.optimizer import Optimizer

# after three steps of the default recipe, by `tests.trainer.golden`, before there were recipes
GOLDEN = [
    "b8e315ef9b0b271ca768440c1e502d6a62e4c0290cb8bce09a75ccdc8c1c8e1f",
    "d3082eecfbd1e15840e41f40064ef9eec2d9e38dd2b58dc120df1275f1577ac2",
    "12cae2e79d470ec67c680ca822ca54d9e488903ef0f0df016ef58057d9b68e1b",
]
GOLDEN_TORCH = "2.13"
ONE_INSTRUCTION_SET = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.skipif(
    not torch.__version__.startswith(GOLDEN_TORCH),
    reason=f"the golden hashes are those of torch {GOLDEN_TORCH}",
)
def test_the_default_recipe_keeps_its_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.golden"],
        env={**os.environ, **ONE_INSTRUCTION_SET},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == GOLDEN


# --- counts and rates ----------------------------------------------------------------------------


def d12(pattern: str = "L", **model: Any) -> Plan:
    model = {"window_pattern": pattern, "sequence_len": 2048, **model}
    return make_plan(resolve({"name": "r", "preset": "nanochat-d12", "model": model}))


@pytest.mark.parametrize(
    ("recipe", "pattern", "total", "scalars", "flops"),
    [
        ("2026-03", "L", 286_261_730, 50, 887_097_888),
        ("2026-07", "L", 286_261_730, 50, 887_098_032),
        ("2026-09", "L", 286_261_705, 25, 887_097_888),
        ("2026-09", "SSSL", 286_261_705, 25, 759_695_904),
    ],
)
def test_counts_follow_the_recipe(
    recipe: str, pattern: str, total: int, scalars: int, flops: int
) -> None:
    plan = d12(pattern, recipe=recipe)
    assert (plan.parameters.total, plan.parameters.scalars) == (total, scalars)
    assert plan.horizon.flops_per_token == flops
    assert plan.parameters.total == plan.parameters.scaling + plan.parameters.wte + (
        plan.parameters.value_embeds + plan.parameters.scalars
    )


def test_rates_scale_with_the_width_as_the_recipe_says() -> None:
    """Of the run in the fixture of September: width 64, batch 2,048, factor 1/16."""
    model = {"depth": 4, "aspect_ratio": 16, "head_dim": 16, "sequence_len": 128}
    asked = {"name": "r", "batch": {"tokens": 2048, "device_batch_size": 4}}
    rates = make_plan(resolve({**asked, "model": model | {"recipe": "2026-09"}})).hyperparameters
    found = (rates.unembedding_lr, rates.embedding_lr, rates.value_embedding_lr)
    assert found == pytest.approx((0.006, 0.01875, 0.009375), rel=1e-12)
    assert (rates.width_factor, rates.table_width_factor) == (12.0, 1.0)
    before = make_plan(resolve({**asked, "model": model})).hyperparameters
    assert before.unembedding_lr == pytest.approx(0.008 / 16 * 12**0.5, rel=1e-12)
    assert before.embedding_lr == pytest.approx(0.3 / 16 * 12**0.5, rel=1e-12)


def test_windows_are_absolute_where_the_recipe_says() -> None:
    assert d12("SSSL", recipe="2026-09", sequence_len=1024).shape.windows[:4] == [512] * 3 + [1024]
    assert d12("SSSL", sequence_len=1024).shape.windows[:4] == [256] * 3 + [1024]
    assert d12("SL", short_window=640).shape.windows[:2] == [640, 2048]


def test_the_width_a_gate_needs_follows_the_recipe() -> None:
    narrow = {"depth": 2, "aspect_ratio": 8, "head_dim": 16}
    assert resolve({"name": "r", "model": {**narrow, "recipe": "2026-09"}})
    with pytest.raises(ValueError, match="the smear gate reads 24 channels"):
        resolve({"name": "r", "model": narrow})


def test_the_plan_says_what_a_recipe_changes() -> None:
    assert d12().recipe.changes == []
    assert d12(recipe="2026-07").recipe.model == "2026-07"
    old = d12(recipe="2026-03").recipe
    assert any("no row equilibration" in line for line in old.changes)
    new = d12(recipe="2026-09").recipe
    assert (new.model, new.optimizer) == ("2026-09", "2026-09")
    for words in ("no smear", "512 tokens back", "float32", "5 special tokens", "^-1"):
        assert any(words in line for line in new.changes), words
    single = d12(recipe="2026-07", smear=False).recipe
    assert [line.split(":")[0] for line in single.changes] == ["no smear"]


def test_the_optimizers_recipe_follows_the_models_unless_it_is_named() -> None:
    spec = {"name": "r", "model": {"recipe": "2026-09"}}
    assert make_plan(resolve(spec)).hyperparameters.muon == "2026-07"
    mixed = make_plan(resolve({**spec, "optimizer": {"recipe": "2026-03"}}))
    assert mixed.hyperparameters.muon == "2026-03"
    assert mixed.hyperparameters.table_width_factor is None


# --- settings of single groups -------------------------------------------------------------------


def test_settings_of_a_group_replace_the_scaled_ones() -> None:
    own = {"lr": 0.123, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.5}
    asked = {"wte": own, "scalars": {**own, "lr": 0.05}, "matrix_lr": 0.0625}
    model = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "vocab_size": VOCAB}
    spec = resolve({"name": "r", "model": model, "optimizer": {"groups": asked}})
    plain = resolve({"name": "r", "model": model})
    hyper, before = make_plan(spec).hyperparameters, make_plan(plain).hyperparameters
    assert (hyper.embedding_lr, hyper.smear_lr, hyper.matrix_lr) == (0.123, 0.05, 0.0625)
    assert (hyper.unembedding_lr, hyper.weight_decay) == (
        before.unembedding_lr,
        before.weight_decay,
    )
    network = GPT(shape_of(spec.model), compute_dtype=torch.float32, device="cpu")
    rates = Optimizer(network, hyper)._rates
    wte = [rate.item() for rate in rates["transformer.wte.weight"]]
    assert wte[:3] == pytest.approx([0.123, 0.7, 0.9])
    assert wte[-1] == 0.5
    assert rates["scalars"][0][-1].item() == pytest.approx(0.05)
    assert rates["lm_head.weight"][1].item() == pytest.approx(0.8)


# --- storage and initial values ------------------------------------------------------------------


def test_tables_and_their_moments_are_stored_as_the_recipe_says() -> None:
    for recipe, stored in (("2026-07", torch.bfloat16), ("2026-09", torch.float32)):
        shape, hyper = Kind(recipe=recipe).plan()
        model = GPT(shape, compute_dtype=torch.bfloat16, device="cpu")
        state = Optimizer(model, hyper).state_dict()
        assert {table.dtype for table in model.tables.values()} == {stored}
        assert state["adamw.transformer.wte.weight.exp_avg"].dtype == stored
        assert model(torch.zeros(1, 4, dtype=torch.int64)).dtype == torch.float32


def test_value_embeddings_start_as_the_recipe_says() -> None:
    """At width 48 U(±sqrt(3 / 48)) has the deviation 1 / sqrt(48)."""
    for recipe, deviation in (("2026-07", 48**-0.5), ("2026-09", 1.0)):
        model = GPT(Kind(recipe=recipe).plan()[0], compute_dtype=torch.float32, device="cpu")
        model.init_weights(3)
        values = model.state_dict()["value_embeds.2.weight"]
        assert values.std().item() == pytest.approx(deviation, rel=0.02)
        assert (values.abs().max().item() <= 0.25) == (recipe == "2026-07")


# --- Muon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (4, 12), (32, 128), (128, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["2026-03", "2026-03-bf16", "2026-07"])
def test_each_variant_equals_the_reference(
    name: MuonName, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """In bf16 as near to it as two orders of bf16 sums are."""
    draw = torch.Generator().manual_seed(5)
    rows, cols = size
    p, g, m = (torch.randn(3, rows, cols, generator=draw) for _ in range(3))
    reduced = (3, rows, 1) if rows >= cols else (3, 1, cols)
    v = torch.rand(reduced, generator=draw) / min(size)
    lr, mu, decay = (torch.tensor(x) for x in (0.02, 0.9, 0.1))
    bf16 = MUON[name].always_bf16 or dtype == torch.bfloat16
    plain = reference.muon if name == "2026-07" else reference.muon_of_march
    theirs, ours = [t.clone() for t in (p, m, v)], [t.clone() for t in (p, m, v)]
    compute = torch.bfloat16 if bf16 else torch.float32
    plain(theirs[0], g, theirs[1], theirs[2], lr, mu, decay, compute)
    muon_update(ours[0], g, ours[1], ours[2], lr, mu, decay, None, bf16, MUON[name])
    for one, other in zip(ours, theirs, strict=True):
        far = ((one - other).norm() / other.norm()).item()
        assert far < (2e-2 if bf16 else 1e-5)


def test_the_variants_do_differ() -> None:
    draw = torch.Generator().manual_seed(5)
    g = torch.randn(1, 16, 16, generator=draw) * torch.linspace(0.01, 1, 16)[:, None]
    found = []
    for name in MUON:
        p, m, v = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16), torch.zeros(1, 16, 1)
        lr, mu, decay = (torch.tensor(x) for x in (0.02, 0.9, 0.0))
        muon_update(p, g, m, v, lr, mu, decay, None, MUON[name].always_bf16, MUON[name])
        found.append(p)
    for i in range(3):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 1e-5


def test_every_recipe_has_a_name_that_a_spec_may_say() -> None:
    for name in RECIPES:
        spec = resolve({"name": "r", "model": {"recipe": name}})
        assert shape_of(spec.model).traits == RECIPES[name].architecture
    with pytest.raises(ValueError, match="2026-03"):
        resolve({"name": "r", "model": {"recipe": "2025-10"}})
