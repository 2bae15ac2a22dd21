"""Reading a nanochat checkpoint: verified in every part before anything is handed on (RECIPE 8).

`read_nanochat` runs no code of the files, fetches nothing, and either returns a complete state
under our names or raises InteropError with the file and the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.contract.shape import ModelShape, count_parameters
from trainer.interop import torchfile
from trainer.interop.errors import InteropError
from trainer.interop.nanochat_meta import Cursor, Meta, Precision, read_meta
from trainer.model import parameters
from trainer.optim.optimizer import ADAMW_STEP

TAG_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
COMPILED_PREFIX = "_orig_mod."
SLACK_BYTES = 4 << 20  # of an archive: index, alignment
TABLE_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class NanochatRun:
    """One checkpoint under our names. raw_meta is the meta file as it was, for an export."""

    tag: str
    step: int
    shape: ModelShape
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    meta: Meta
    raw_meta: dict[str, Any]

    @property
    def cursor(self) -> Cursor:
        return self.meta.dataloader_state_dict

    @property
    def precision(self) -> Precision:
        """Tables stored in bfloat16 were trained in it; float32 ones in float32."""
        return "bf16" if self.model[parameters.WTE].dtype == torch.bfloat16 else "fp32"


@dataclass(frozen=True)
class Paths:
    model: Path
    optimizer: Path
    meta: Path


def paths(base_dir: Path, tag: str, step: int) -> Paths:
    """nanochat's file names for one checkpoint."""
    folder = base_dir / "base_checkpoints" / tag
    return Paths(
        folder / f"model_{step:06d}.pt",
        folder / f"optim_{step:06d}_rank0.pt",
        folder / f"meta_{step:06d}.json",
    )


def read_nanochat(base_dir: Path | str, tag: str, step: int) -> NanochatRun:
    """The checkpoint `tag` at `step` under NANOCHAT_BASE_DIR. Raises InteropError."""
    base = Path(base_dir)
    if not TAG_PATTERN.fullmatch(tag):
        raise InteropError(base, f"{tag!r} is no model tag")
    if step < 0:
        raise InteropError(base, f"{step} is no step")
    files = paths(base, tag, step)
    meta, raw = read_meta(files.meta, base)
    if meta.step != step:
        raise InteropError(files.meta, f"says step {meta.step}, its name says {step}")
    shape = meta.shape()
    _refuse_sharded(files.optimizer)
    return NanochatRun(
        tag=tag,
        step=step,
        shape=shape,
        model=_read_model(files.model, base, shape),
        optimizer=_read_optimizer(files.optimizer, base, shape),
        meta=meta,
        raw_meta=raw,
    )


# --- model ---------------------------------------------------------------------------------------


def _read_model(path: Path, root: Path, shape: ModelShape) -> dict[str, Tensor]:
    most = 4 * count_parameters(shape).total + SLACK_BYTES
    found = torchfile.load(path, root, most)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InteropError(path, "holds no mapping of names to tensors")
    state = {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in found.items()}
    if len(state) != len(found):
        raise InteropError(path, f"has names with and without {COMPILED_PREFIX}")
    shapes = parameters.parameter_shapes(shape)
    _compare_keys(path, "weights", set(state), set(shapes))
    tables = parameters.table_names(shape)
    checked = {
        name: _checked(path, name, state[name], size, TABLE_DTYPES if name in tables else None)
        for name, size in shapes.items()
    }
    if len({checked[name].dtype for name in tables}) > 1:
        raise InteropError(path, "embedding tables are stored in different dtypes")
    return checked


def _compare_keys(path: Path, what: str, found: set, wanted: set) -> None:
    if missing := sorted(map(str, wanted - found)):
        raise InteropError(path, f"{what} missing: {', '.join(missing[:5])}")
    if extra := sorted(map(str, found - wanted)):
        raise InteropError(path, f"{what} the model does not have: {', '.join(extra[:5])[:300]}")


def _checked(
    path: Path,
    name: str,
    tensor: Any,
    size: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> Tensor:
    """A private contiguous copy of a tensor that is what it should be."""
    allowed = dtypes or (torch.float32,)
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise InteropError(path, f"{name} is no plain tensor")
    if tensor.device.type != "cpu":
        raise InteropError(path, f"{name} has no data (device {tensor.device})")
    if tuple(tensor.shape) != size:
        raise InteropError(
            path, f"{name} has shape {tuple(tensor.shape)} where the model has {size}"
        )
    if tensor.dtype not in allowed:
        names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        found = str(tensor.dtype).removeprefix("torch.")
        raise InteropError(path, f"{name} is {found} where {names} was expected")
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise InteropError(path, f"{name} holds numbers that are not finite")
    return copy


# --- optimizer -----------------------------------------------------------------------------------


def _refuse_sharded(path: Path) -> None:
    if path.with_name(path.name.replace("rank0", "rank1")).exists():
        raise InteropError(
            path, "is one part of an optimizer that was spread over several GPUs; not supported"
        )


def _read_optimizer(path: Path, root: Path, shape: ModelShape) -> dict[str, Tensor]:
    """Our flat optimizer state from nanochat's numbered one."""
    most = 8 * count_parameters(shape).total + SLACK_BYTES
    found = torchfile.load(path, root, most)
    if not isinstance(found, dict) or set(found) != {"state", "param_groups"}:
        raise InteropError(path, "is no optimizer: it needs state and param_groups")
    groups, state = found["param_groups"], found["state"]
    adam, muon = parameters.adam_groups(shape), parameters.muon_groups(shape)
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise InteropError(path, "is no optimizer: state or param_groups have the wrong type")
    numbers = _numbers(path, groups, adam, muon)
    wanted = {numbers[n] for g in adam for n in g.names} | {numbers[g.names[0]] for g in muon}
    _compare_keys(path, "states", set(state), wanted)
    if not all(isinstance(entry, dict) for entry in state.values()):
        raise InteropError(path, "holds a state that is no mapping")
    return _adam_state(path, state, numbers, shape) | _muon_state(path, state, numbers, muon)


def _numbers(
    path: Path,
    groups: list,
    adam: tuple[parameters.AdamGroup, ...],
    muon: tuple[parameters.MuonGroup, ...],
) -> dict[str, int]:
    """name -> number, once every group has the kind and the numbers that nanochat gives it."""
    expected = [("adamw", g.names) for g in adam] + [("muon", g.names) for g in muon]
    if len(groups) != len(expected):
        raise InteropError(path, f"has {len(groups)} groups where the model has {len(expected)}")
    numbers: dict[str, int] = {}
    for index, (group, (kind, names)) in enumerate(zip(groups, expected, strict=True)):
        first = len(numbers)
        if not isinstance(group, dict) or group.get("kind") != kind:
            raise InteropError(path, f"group {index} is not of kind {kind}")
        if group.get("params") != list(range(first, first + len(names))):
            raise InteropError(path, f"group {index} does not hold {len(names)} parameters")
        numbers |= {name: first + i for i, name in enumerate(names)}
    return numbers


def _adam_state(
    path: Path, state: dict, numbers: dict[str, int], shape: ModelShape
) -> dict[str, Tensor]:
    shapes, tables = parameters.parameter_shapes(shape), parameters.table_names(shape)
    flat: dict[str, Tensor] = {}
    steps = set()
    for group in parameters.adam_groups(shape):
        for name in group.names:
            entry = state[numbers[name]]
            _compare_keys(path, f"{name}: entries", set(entry), {"step", "exp_avg", "exp_avg_sq"})
            steps.add(_whole_number(path, name, entry["step"]))
            dtypes = TABLE_DTYPES if name in tables else None
            for key in ("exp_avg", "exp_avg_sq"):
                moment = _checked(path, f"{name} {key}", entry[key], shapes[name], dtypes)
                flat[f"adamw.{name}.{key}"] = moment
            _not_negative(path, f"{name} exp_avg_sq", flat[f"adamw.{name}.exp_avg_sq"])
    if len(steps) != 1:
        raise InteropError(path, f"its parameters stand at different steps: {sorted(steps)}")
    return flat | {ADAMW_STEP: torch.tensor(steps.pop(), dtype=torch.int64)}


def _muon_state(
    path: Path, state: dict, numbers: dict[str, int], groups: tuple[parameters.MuonGroup, ...]
) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    buffers = {"momentum_buffer", "second_momentum_buffer"}
    for group in groups:
        entry, what = state[numbers[group.names[0]]], f"Muon group {group.key}"
        _compare_keys(path, f"{what}: entries", set(entry), buffers)
        stack = (len(group.names), group.rows, group.cols)
        momentum = _checked(path, f"{what} momentum", entry["momentum_buffer"], stack)
        second = _checked(
            path, f"{what} second", entry["second_momentum_buffer"], group.second_shape
        )
        _not_negative(path, f"{what} second", second)
        flat[f"muon.{group.key}.momentum"] = momentum
        flat[f"muon.{group.key}.second_momentum"] = second
    return flat


def _whole_number(path: Path, name: str, step: Any) -> int:
    value = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InteropError(path, f"{name}: step is no whole number")
    if not 0 <= value <= 10**9:
        raise InteropError(path, f"{name}: step {value} is out of range")
    return int(value)


def _not_negative(path: Path, name: str, tensor: Tensor) -> None:
    if (tensor < 0).any():
        raise InteropError(path, f"{name} holds negative squares")
