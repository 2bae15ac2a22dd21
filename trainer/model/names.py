"""The parameters' names, which are nanochat's (docs/nanochat.md)."""

from __future__ import annotations

WTE = "transformer.wte.weight"
LM_HEAD = "lm_head.weight"
SMEAR_GATE = "smear_gate.weight"
SMEAR_LAMBDA = "smear_lambda"
BACKOUT_LAMBDA = "backout_lambda"
RESID_LAMBDAS = "resid_lambdas"
X0_LAMBDAS = "x0_lambdas"


def value_embed(layer: int) -> str:
    return f"value_embeds.{layer}.weight"


def attention_weight(layer: int, matrix: str) -> str:
    return f"transformer.h.{layer}.attn.{matrix}.weight"


def mlp_weight(layer: int, matrix: str) -> str:
    return f"transformer.h.{layer}.mlp.{matrix}.weight"
