"""sha256 of weights and optimizer state after three steps of the default recipe: run as a program.

The caller's environment pins the instruction sets, so that the bits are those of the arithmetic and
not of a processor.
"""

from __future__ import annotations

import hashlib

import torch

from tests.trainer.shapes import KINDS, RATES, batches, stepper, trained_model

SHOWN = ("three heads, padded vocabulary", "windows", "one kv head for three")


def fingerprint(name: str) -> str:
    """sha256 over every tensor of model and optimizer, by name, after three steps."""
    kind = KINDS[name]
    own = stepper(trained_model(kind), kind.plan()[1])
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
        print(fingerprint(shown))
