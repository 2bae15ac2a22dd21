"""Horizon: the run's length in steps, tokens, ratio and FLOPs."""

from __future__ import annotations

from trainer.contract import units
from trainer.contract.plan.answer import CannotPlan, Horizon
from trainer.contract.plan.scaling import TARGET_RATIO
from trainer.contract.shape import (
    ModelShape,
    count_parameters,
    flops_per_token,
    flops_per_token_causal,
)
from trainer.contract.spec import MAX_STEPS, RunSpec

CHINCHILLA_RATIO = 20.0
MAX_TOKENS = 10**18  # what counters of 64 bits hold, with room for an extend


def plan_horizon(spec: RunSpec, shape: ModelShape, batch_tokens: int) -> Horizon:
    """The horizon of a spec. Raises CannotPlan if it is too short or too long."""
    counts = count_parameters(shape)
    per_token = flops_per_token(shape)
    ask = spec.horizon
    if ask.steps:
        steps = ask.steps
    elif ask.flops:
        steps = round(ask.flops / (per_token * batch_tokens))
    elif ask.tokens:
        steps = ask.tokens // batch_tokens
    else:
        steps = int((ask.data_param_ratio or TARGET_RATIO) * counts.scaling) // batch_tokens
    if steps < 1:
        raise CannotPlan(
            "horizon", f"the horizon is shorter than one step: a step takes {batch_tokens:,} tokens"
        )
    if steps > MAX_STEPS:
        raise CannotPlan(
            f"horizon.{_asked(spec)}",
            f"the horizon is {units.count(steps)} steps of {batch_tokens:,} tokens; a run has at "
            "most "
            f"{MAX_STEPS:,}",
        )
    tokens = steps * batch_tokens
    if tokens > MAX_TOKENS:
        raise CannotPlan(
            "batch.tokens",
            f"{steps:,} steps of {batch_tokens:,} tokens are {units.count(tokens)} tokens; a run "
            f"has at most {units.count(MAX_TOKENS)}",
        )
    return Horizon(
        steps=steps,
        tokens=tokens,
        ratio=tokens / counts.total,
        ratio_scaling=tokens / counts.scaling,
        chinchilla_ratio=CHINCHILLA_RATIO,
        flops_per_token=per_token,
        flops_per_token_causal=flops_per_token_causal(shape),
        flops=float(tokens) * per_token,
    )


def _asked(spec: RunSpec) -> str:
    ask = spec.horizon
    return next(k for k in ("steps", "flops", "tokens", "data_param_ratio") if getattr(ask, k))
