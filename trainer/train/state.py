"""Training state besides weights and optimizer: one object with state_dict and load_state_dict.

It contains every random number generator, the loader's cursor, the loop's counters and timers. It
contains no schedule, which is a pure function of (plan, step).
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

SMOOTHING = 0.9


@dataclass
class TrainState:
    """step: optimizer steps done. loss_ema: raw exponential mean, corrected by `loss_smooth`."""

    step: int = 0
    tokens_seen: int = 0
    loss_ema: float = 0.0
    ema_steps: int = 0
    training_seconds: float = 0.0
    energy_joules: float = 0.0
    evaluated: dict[str, int] = field(default_factory=dict)
    evaluations: dict[str, Any] = field(default_factory=dict)

    def observe(self, loss: float) -> float:
        """Add a step's loss; returns the smoothed loss (debiased, as nanochat's)."""
        self.loss_ema = SMOOTHING * self.loss_ema + (1 - SMOOTHING) * loss
        self.ema_steps += 1
        return self.loss_smooth

    @property
    def loss_smooth(self) -> float:
        return self.loss_ema / (1 - SMOOTHING**self.ema_steps) if self.ema_steps else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "loss_ema": self.loss_ema,
            "ema_steps": self.ema_steps,
            "training_seconds": self.training_seconds,
            "energy_joules": self.energy_joules,
            "evaluated": dict(self.evaluated),
            "evaluations": dict(self.evaluations),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, saved[name])


def seed_rng(seed: int) -> None:
    """Seed every random generator of this process, so that a run is reproducible."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every generator of this process, as JSON."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), _encode(np.asarray(keys).tobytes()), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    if torch.cuda.is_available():
        state["cuda"] = [_encode(s.numpy().tobytes()) for s in torch.cuda.get_rng_state_all()]
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Restore every random generator from `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    words = np.frombuffer(base64.b64decode(keys), dtype=np.uint32)
    np.random.set_state((kind, words, position, has_gauss, cached))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_tensor(s) for s in state["cuda"]])


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
