"""sha256 of weights and optimizer state after three steps of the default recipe: run as a program.

The caller's environment pins the instruction sets, so that the bits are those of the arithmetic and
not of a processor.
"""

from __future__ import annotations

import hashlib
import sys

import torch

from tests.trainer.shapes import KINDS, RATES, batches, trained_model
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

SHOWN = ("three heads, padded vocabulary", "windows", "one kv head for three")


def fingerprint(name: str, lanes: int) -> str:
    """sha256 over every tensor of model and optimizer, by name, after three steps."""
    kind = KINDS[name]
    model = trained_model(kind)
    optimizer = Optimizer(model, kind.plan()[1], lanes=lanes)
    own = Stepper(model, optimizer, compile=False, deterministic=True, rows=2, lanes=lanes)
    for seed in range(3):
        own.train_step(batches(kind, seed=seed), **RATES)
    digest = hashlib.sha256()
    for state in (own.model.state_dict(), own.optimizer.state_dict()):
        for key in sorted(state):
            digest.update(key.encode())
            digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for shown in SHOWN:
        print(fingerprint(shown, int((*sys.argv[1:], "1")[0])))
