"""The real depth-4 run: its model at step 120, tokenizer, bundle and reference numbers."""

from __future__ import annotations

from functools import cache

import torch

from tests.reference.fixture import BASE as ROOT
from tests.reference.fixture import reference, tokenizer
from trainer.contract.shape import ModelShape
from trainer.evaluate import core_bundle
from trainer.model.gpt import GPT

SHAPE = ModelShape(4, 64, 4, 4, 16, 128, 768, "L")


@cache
def bundle() -> core_bundle.Bundle:
    return core_bundle.load_bundle(ROOT / "eval_bundle")


def model(step: int = 120) -> GPT:
    made = GPT(SHAPE, compute_dtype=torch.float32, device="cpu")
    path = ROOT / "base_checkpoints" / "d4" / f"model_{step:06d}.pt"
    state = torch.load(path, weights_only=True, map_location="cpu")
    made.load_state_dict({name.removeprefix("_orig_mod."): w for name, w in state.items()})
    return made


def random_model(shape: ModelShape, seed: int = 0) -> GPT:
    """Every weight of a size at which it matters: none is zero as at a real start."""
    made = GPT(shape, compute_dtype=torch.float32, device="cpu")
    draw = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(w.shape, generator=draw) * (0.3 if w.dim() == 1 else w.shape[-1] ** -0.5)
        for name, w in made.state_dict().items()
    }
    made.load_state_dict(state)
    return made


__all__ = ["ROOT", "SHAPE", "bundle", "model", "random_model", "reference", "tokenizer"]
