"""Warnings of a plan: sentences with numbers and advice."""

from __future__ import annotations

from trainer.contract import units
from trainer.contract.plan.answer import ExchangePlan, Plan
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.disk import shards_for
from trainer.contract.plan.exchange import WORTH_A_WARNING
from trainer.contract.plan.memory import is_near_the_limit
from trainer.contract.spec import RunSpec

EVALUATION_WARNING_SHARE = 0.05
DAY_SECONDS = 86_400.0
LONG_DAYS = {"cpu": 3.0, "cuda": 60.0, "mps": 60.0}  # a longer run is probably a mistake


def warnings_about(spec: RunSpec, plan: Plan, context: PlanContext) -> list[str]:
    """Warnings about a plan, one sentence each; empty if there is none."""
    found = []
    share = plan.eta.evaluation / max(1e-9, plan.eta.total)
    if share > EVALUATION_WARNING_SHARE:
        found.append(
            f"evaluation takes {units.percent(share)} of the time "
            f"({units.duration(plan.eta.evaluation)} of {units.duration(plan.eta.total)}): raise "
            "evaluate.bpb_every or lower evaluate.eval_tokens"
        )
    if spec.evaluate.core_every and not spec.evaluate.core_bundle:
        found.append(
            "evaluate.core_every requests CORE, which cannot be measured: evaluate.core_bundle is "
            "missing (`traind fetch core` downloads one)"
        )
    if spec.device == "auto" and context.device_type == "cpu" and context.gpu_unusable:
        found.append(
            f"the run would train on the CPU: the GPU of this machine cannot be used "
            f"({context.gpu_unusable}); see traind doctor"
        )
    if plan.exchange and plan.exchange.share_of_step > WORTH_A_WARNING:
        found.append(_exchange_words(plan.exchange))
    if plan.eta.total > DAY_SECONDS * LONG_DAYS[context.device_type]:
        where = "on the CPU" if context.device_type == "cpu" else "on this device"
        found.append(
            f"the run takes about {units.duration(plan.eta.total)} {where} "
            f"({units.rate(plan.eta.tokens_per_second)}, {plan.eta.source}): lower model.depth "
            "or the horizon" + (", or train on a GPU" if context.device_type == "cpu" else "")
        )
    old = context.capability is not None and context.capability < (8, 0)
    if old and spec.numerics.precision in ("auto", "fp32"):
        found.append(
            "this GPU has no bf16 (compute capability below 8.0), so the run computes in float32, "
            "without tensor cores and several times slower than in half precision: set "
            "numerics.precision fp16"
        )
    if spec.numerics.precision == "fp8":
        found.append(
            "fp8 has not been run on a card yet. Counted on a null GPU at width 768, a step in "
            "fp8 launches 4,890 kernels (bf16: 2,098), moves 303 GB (bf16: 193 GB) and peaks at "
            "7.5 GB (bf16: 6.8 GB); faster products may not make up for this at width "
            f"{plan.shape.n_embd:,}. Compare a few hundred steps with bf16 first"
        )
    if context.corpus_tokens:
        epochs = plan.horizon.tokens / max(1, context.corpus_tokens)
        if epochs > 1:
            found.append(
                f"the run takes {plan.horizon.tokens:,} tokens and the corpus has about "
                f"{context.corpus_tokens:,}: {epochs:.1f} epochs over the same text"
            )
    wanted = shards_for(
        spec.model_copy(update={"data": spec.data.model_copy(update={"max_shards": "auto"})}),
        plan.horizon.tokens,
    )
    if wanted and isinstance(spec.data.max_shards, int) and spec.data.max_shards < wanted:
        found.append(
            f"max_shards {spec.data.max_shards} is less than the {wanted} shards one epoch needs: "
            f"text will repeat about {wanted / spec.data.max_shards:.1f} times"
        )
    if plan.warmdown_start < plan.horizon.steps:
        found.append(
            f"warmdown begins at step {plan.warmdown_start:,} of {plan.horizon.steps:,}; an extend "
            "from the end raises the learning rate again, one from the pinned checkpoint at step "
            f"{plan.warmdown_start:,} does not"
        )
    if plan.memory.available and is_near_the_limit(plan.memory):
        how = "estimated" if plan.memory.measured is None else "measured in an earlier run"
        found.append(
            f"the run needs about {units.num_bytes(plan.memory.expected)} of device memory "
            f"({how}); {units.num_bytes(plan.memory.available)} is available: lower "
            "batch.device_batch_size"
        )
    if plan.disk.available is not None and plan.disk.total > plan.disk.available:
        found.append(
            f"the run needs about {units.num_bytes(plan.disk.total)} of disk space; "
            f"{units.num_bytes(plan.disk.available)} is free: keep fewer checkpoints or shards"
        )
    if spec.schedule.warmup_steps >= plan.horizon.steps:
        found.append(
            f"warm-up ({spec.schedule.warmup_steps} steps) is as long as the run "
            f"({plan.horizon.steps} steps): the learning rate never reaches its peak"
        )
    elif spec.schedule.warmup_steps > plan.warmdown_start:
        found.append(
            f"warm-up ({spec.schedule.warmup_steps} steps) reaches into the warmdown, which begins "
            f"at step {plan.warmdown_start:,}: the learning rate jumps where the warm-up ends"
        )
    return found


def _exchange_words(exchange: ExchangePlan) -> str:
    return (
        f"the exchange between {exchange.devices} devices takes "
        f"{units.percent(exchange.share_of_step)} of each step "
        f"({units.num_bytes(exchange.bytes_per_step)} from each device, assuming "
        f"{units.num_bytes(exchange.bytes_per_second)}/s); with batch.tokens of at least "
        f"{exchange.enough_tokens:,} it takes at most a fifth"
    )
