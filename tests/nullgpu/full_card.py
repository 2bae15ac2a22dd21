"""Out of memory at chosen places of the trainer: `python -m tests.nullgpu.full_card -P -m …`.

The program set as TRAIND_TRAINER_PYTHON (`interpreter`) runs this. NULLGPU_FULL_AT names the places
of each attempt: {"1": ["save"]}. Before the trainer's own function runs, cached memory is freed and
the driver refuses allocations; afterwards it allows them again.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# place: (module, its owner of the function, function, how often it passes before)
PLACES: dict[str, tuple[str, str | None, str, int]] = {
    "start": ("trainer.model.gpt", "GPT", "__init__", 0),
    "step": ("trainer.train.step", "Stepper", "train_step", 2),
    "next_loss": ("trainer.train.step", "Stepper", "own_losses", 0),
    "evaluation": ("trainer.train.val_bpb", None, "measure", 0),
    "sample": ("trainer.evaluate.samples", None, "generate", 0),
    "save": ("trainer.checkpoint.background_writer", "Saver", "begin", 0),
}


def interpreter(folder: Path, python: Path) -> Path:
    """Write a program that serves as the trainer's interpreter."""
    file = folder / "python-full-card"
    file.write_text(f'#!/bin/sh\nexec {python} -P -m tests.nullgpu.full_card "$@"\n')
    file.chmod(0o755)
    return file


def main(arguments: list[str]) -> None:
    module = arguments.index("-m") + 1
    sys.argv = arguments[module:]
    if arguments[module] == "trainer":
        chosen = json.loads(os.environ["NULLGPU_FULL_AT"])
        for place in chosen.get(str(int(Path(sys.argv[-1]).name)), []):
            fill(*PLACES[place])
    runpy.run_module(arguments[module], run_name="__main__", alter_sys=True)


def fill(module: str, owner: str | None, name: str, passes: int) -> None:
    """Make the GPU full for the function, from its call after `passes` on."""
    import importlib

    found: Any = importlib.import_module(module)
    found = getattr(found, owner) if owner else found
    setattr(found, name, _on_a_full_card(getattr(found, name), passes))


def _on_a_full_card(function: Callable[..., Any], passes: int) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= passes:
            return function(*args, **kwargs)
        import torch

        from tests.nullgpu.counting import limit_memory

        torch.cuda.init()
        torch.cuda.empty_cache()
        limit_memory(torch.cuda.memory_reserved() + 1)
        try:
            return function(*args, **kwargs)
        finally:
            limit_memory(None)

    return call


if __name__ == "__main__":
    main(sys.argv[1:])
