"""Context manager that evaluates a model in training without side effects on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.model.gpt import GPT


@contextmanager
def undisturbed(model: GPT) -> Iterator[None]:
    """Eval mode without gradients; restores the mode and every random generator afterwards.

    Not inference_mode: tables that the model caches here (RoPE) are later used in training.
    """
    was_training, python_state = model.training, random.getstate()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        model.train(was_training)
        random.setstate(python_state)
