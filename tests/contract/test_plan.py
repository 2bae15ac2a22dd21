"""The plan reproduces what the reference run was, from its spec alone, and fast."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from trainer.contract.peaks import known_peak
from trainer.contract.plan import PlanContext, auto_batch, make_plan
from trainer.contract.shape import count_parameters, flops_per_token_causal, shape_of
from trainer.contract.spec import ModelSpec, resolve

RATE = PlanContext(tokens_per_second=55_700)


@pytest.fixture(scope="module")
def plan():
    return make_plan(resolve({"name": "r", "preset": "rtx4070-d12"}), RATE)


def test_parameters_of_the_reference_run(plan):
    p = plan.parameters
    assert (p.wte, p.value_embeds, p.lm_head) == (25_165_824, 150_994_944, 25_165_824)
    assert (p.transformer, p.scalars, p.total) == (84_935_088, 50, 286_261_730)


def test_the_plan_warns_of_fp8_that_no_card_has_run_it():
    body = {"name": "r", "preset": "rtx4070-d12"}
    for numerics, warned in (({"precision": "fp8"}, True), ({}, False)):
        made = make_plan(resolve({**body, "numerics": numerics}), PlanContext(device_type="cuda"))
        assert any("not been run on a card" in w and "768" in w for w in made.warnings) is warned


def test_batch_and_scaled_hyperparameters(plan):
    b = plan.batch
    assert (b.tokens, b.device_batch_size, b.sequence_len, b.accumulation) == (65_536, 8, 2048, 4)
    assert plan.hyperparameters.lr_factor == pytest.approx(0.35355, abs=5e-6)
    assert plan.hyperparameters.weight_decay == pytest.approx(0.09899, abs=5e-6)


def test_tokens_flops_and_ratio_of_both_phases(plan):
    h = plan.horizon
    assert h.tokens == 8_519_680_000
    assert 70_000 * plan.batch.tokens == 4_587_520_000
    assert h.flops_per_token == 887_098_032
    whole = make_plan(
        resolve({"name": "r", "preset": "rtx4070-d12", "horizon": {"steps": 200_000}}), RATE
    ).horizon
    assert whole.flops == pytest.approx(1.16e19, rel=5e-3)
    assert whole.ratio == pytest.approx(45.8, abs=0.05)


def test_eta_and_checkpoint_size(plan):
    assert plan.eta.training / 3600 == pytest.approx(42.5, abs=0.05)
    assert 4_587_520_000 / plan.eta.tokens_per_second / 3600 == pytest.approx(22.9, abs=0.05)
    assert plan.disk.checkpoint_model == pytest.approx(793e6, rel=1e-3)
    assert plan.disk.checkpoint_optimizer == pytest.approx(1.25e9, rel=5e-3)


def test_memory_of_the_reference_run_by_part(plan):
    m = plan.memory
    parts = m.weights + m.gradients + m.optimizer + m.activations + m.logits + m.overhead
    assert m.total == parts
    assert 4e9 < m.total < 12e9


def test_nanochats_own_cadence_is_warned_about():
    body = {"name": "r", "preset": "rtx4070-d12", "evaluate": {"bpb_every": 250}}
    plan = make_plan(resolve(body), RATE)
    assert plan.eta.evaluation / 3600 == pytest.approx(36, abs=0.7)
    assert any("evaluation takes" in w for w in plan.warnings)


def test_core_counts_where_it_is_due_and_can_be_measured():
    """At the end of the phase, 500 items a task: 22 x 500 prompts of a thousand tokens."""
    body = {"name": "r", "preset": "rtx4070-d12"}
    without = make_plan(resolve(body), RATE)
    assert any("requests CORE" in w and "fetch core" in w for w in without.warnings)
    with_core = make_plan(resolve({**body, "evaluate": {"core_bundle": "/core"}}), RATE)
    assert not any("CORE" in w for w in with_core.warnings)
    more = with_core.eta.evaluation - without.eta.evaluation
    assert more == pytest.approx(22 * 500 * 1000 / (3 * 55_700))
    often = {"core_bundle": "/core", "core_every": 2000, "core_max_per_task": None}
    plan = make_plan(resolve({**body, "evaluate": often}), RATE)
    assert any("evaluation takes" in w for w in plan.warnings)


def test_a_warm_up_that_reaches_into_the_warmdown_is_warned_of():
    body = {"name": "w", "horizon": {"steps": 200}, "schedule": {"warmdown_ratio": 0.65}}
    for warmup, said in ((70, False), (71, True), (200, False)):
        spec = resolve(body | {"schedule": body["schedule"] | {"warmup_steps": warmup}})
        found = [w for w in make_plan(spec).warnings if "jumps where the warm-up ends" in w]
        assert bool(found) is said, warmup
        assert not said or "at step 70:" in found[0]


def test_a_plan_of_months_on_a_cpu_is_warned_of():
    spec = resolve({"name": "d12", "preset": "rtx4070-d12", "device": "cpu"})
    slow = PlanContext(device_type="cpu", tokens_per_second=480.0, throughput_source="measured")
    warned = make_plan(spec, slow).warnings
    line = next(text for text in warned if "on the CPU (480" in text)
    assert "about 209 d 21 h" in line
    assert "480 tok/s" in line
    assert "or train on a GPU" in line
    short = resolve({"name": "demo"})
    assert not [text for text in make_plan(short, slow).warnings if "on the CPU (480" in text]


def test_warnings_name_their_numbers():
    context = PlanContext(
        device_type="cpu", disk_free_bytes=10**6, device_memory_bytes=10**6, corpus_tokens=10_000
    )
    warnings = " | ".join(make_plan(resolve({"name": "w"}), context).warnings)
    for said in ("epochs", "of disk space", "of device memory", "warmdown begins"):
        assert said in warnings


@pytest.mark.no_cover  # it measures time, which tracing adds to
def test_plan_takes_less_than_50_ms():
    spec = resolve({"name": "r", "preset": "rtx4070-d12"})
    make_plan(spec, RATE)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        make_plan(spec, RATE)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.05


def test_planning_imports_no_torch():
    code = (
        "import sys; from trainer.contract.plan import make_plan; "
        "from trainer.contract.spec import resolve; make_plan(resolve({'name': 'r'})); "
        "print(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("horizon", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": 65_536 * 9 + 5}, 9),
        ({"flops": 887_098_032 * 65_536 * 10.4}, 10),
        ({"data_param_ratio": 12}, (12 * 110_100_912) // 65_536),
    ],
)
def test_each_way_to_say_a_horizon(horizon, steps):
    body = {"name": "r", "preset": "rtx4070-d12", "horizon": horizon}
    assert make_plan(resolve(body), RATE).horizon.steps == steps


def test_auto_batch_of_the_reference_depth_is_the_reference_batch():
    assert auto_batch(ModelSpec(depth=12, window_pattern="L")) == 524_288
    assert auto_batch(ModelSpec(depth=20, window_pattern="L")) > 524_288


def test_causal_flops_count_the_attention_really_done():
    shape = shape_of(ModelSpec(depth=12))
    assert flops_per_token_causal(shape) == pytest.approx(773.9e6, rel=1e-4)
    # by brute force for a windowed toy: mean visible keys per layer
    toy = shape_of(
        ModelSpec(depth=2, aspect_ratio=16, head_dim=16, sequence_len=1024, window_pattern="SL")
    )
    seen = [sum(min(t, w) + 1 for t in range(1024)) / 1024 for w in toy.windows]
    linear = 6 * (count_parameters(toy).transformer + count_parameters(toy).lm_head + 24)
    by_hand = linear + sum(12 * toy.n_head * toy.head_dim * s for s in seen)
    assert flops_per_token_causal(toy) == pytest.approx(by_hand)


def test_windows_pad_and_last_layer():
    shape = shape_of(ModelSpec(depth=4, sequence_len=2048, window_pattern="SS", vocab_size=1000))
    assert shape.windows == (512, 512, 512, 2048)
    assert shape.padded_vocab_size == 1024
    assert shape.value_embed_layers == (1, 3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 3090", 71.2),
        ("NVIDIA GeForce RTX 3050", 18.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_known_peaks(name, tflops):
    peak = known_peak(name)
    assert peak is not None
    assert peak.value / 1e12 == pytest.approx(tflops, rel=2e-3)
    assert peak.source


def test_unknown_and_laptop_devices_have_no_peak():
    assert known_peak("NVIDIA GeForce RTX 4070 Laptop GPU") is None
    assert known_peak("AMD EPYC") is None
