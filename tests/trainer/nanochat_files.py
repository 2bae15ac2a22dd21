"""Copies of the nanochat fixtures, changed by a test: edited, spread over GPUs, laid out anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
V1, MAY, MAY_2GPU, V2, V2_2GPU = (
    FIXTURES / name
    for name in (
        "nanochat-d4",
        "nanochat-2026-05-d4",
        "nanochat-2026-05-d4-2gpu",
        "nanochat-2026-09-d4",
        "nanochat-2026-09-d4-2gpu",
    )
)
SMALL = 1024  # AdamW states with fewer elements are the same on every rank


def checkpoint_folder(base: Path) -> Path:
    """Where the checkpoint of step 60 lies below a fixture or a copy of it."""
    (model,) = base.rglob("model_000060.pt")
    return model.parent


def copy(source: Path, target: Path) -> Path:
    """A writable copy without reference.json and the end of the extension."""
    skip = shutil.ignore_patterns("reference*", "*_000120.*", "eval_bundle")
    shutil.copytree(source, target, ignore=skip)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Load a .pt or .json file, change it (in place or by what is returned), save it."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content = _changed(content, change)
        path.write_text(json.dumps(content))
        return
    content = torch.load(path, weights_only=True)
    torch.save(_changed(content, change), path)


def _changed(content: Any, change: Callable[[Any], Any]) -> Any:
    new = change(content)
    return new if isinstance(new, dict) else content


def shard(base: Path, rank: int) -> Path:
    return checkpoint_folder(base) / f"optim_000060_rank{rank}.pt"


def spread(base: Path, world: int) -> None:
    """Rewrite a single GPU's optimizer as `world` of them would have saved it."""
    whole = torch.load(shard(base, 0), weights_only=True)
    for rank in range(world):
        state = {n: _part(entry, rank, world) for n, entry in whole["state"].items()}
        sizes = {g["params"][0]: len(g["params"]) for g in whole["param_groups"]}
        for number, entry in whole["state"].items():
            if "momentum_buffer" in entry:
                state[number] = _stack_part(entry, sizes[number], rank, world)
        stamp = {"world_size": world} if "world_size" in whole else {}
        content = {"state": state, "param_groups": whole["param_groups"], **stamp}
        torch.save(content, shard(base, rank))


def _part(entry: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.numel() < SMALL:
            return value
        rows = value.shape[0] // world
        return value[rank * rows : (rank + 1) * rows].clone()

    return {key: cut(value) for key, value in entry.items()}


def _stack_part(entry: dict[str, Tensor], count: int, rank: int, world: int) -> dict[str, Tensor]:
    each = -(-count // world)

    def cut(stack: Tensor) -> Tensor:
        part = torch.zeros(each, *stack.shape[1:])
        own = stack[rank * each : (rank + 1) * each]
        part[: len(own)] = own
        return part

    return {key: cut(value) for key, value in entry.items()}
