"""Reads nanochat's optimizer files: merges the shards of one or several GPUs.

Each of R processes writes `optim_SSSSSS_rank{r}.pt`. A sharded AdamW state has its rows on the
ranks in order; a small one is the same on all. Of a Muon group of K matrices each rank holds
ceil(K / R), padded with zeros at the end. v1 numbers parameters by module order, v2 by the order of
keys in the model file beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.contract.shape import ModelShape, count_parameters
from trainer.interop import torchfile
from trainer.interop.errors import InteropError
from trainer.interop.torchfile import checked, compare_keys
from trainer.model import parameters
from trainer.optim.optimizer import ADAMW_STEP

SLACK_BYTES = 4_000_000  # of an archive: index, alignment
TABLE_DTYPES = (torch.float32, torch.bfloat16)
BETA2, NS_STEPS, EPS = 0.9, 5, 1e-10
MAX_WORLD = 4096
ADAM_ENTRIES = {"step", "exp_avg", "exp_avg_sq"}
MUON_ENTRIES = {"momentum_buffer", "second_momentum_buffer"}


@dataclass(frozen=True)
class GroupSettings:
    """Settings of an AdamW group from its file; None if it does not state them."""

    lr: float | None
    betas: tuple[float, float] | None
    weight_decay: float | None


@dataclass(frozen=True)
class NanochatOptimizer:
    """A merged optimizer: flat state and the files' own metadata.

    updates: optimizer steps done. world: number of GPUs it was sharded over. stamped: True if the
    files state that number. groups: by traind's names. matrix_lr: Muon's base rate.
    """

    state: dict[str, Tensor]
    updates: int
    world: int
    stamped: bool
    groups: dict[str, GroupSettings]
    matrix_lr: float | None


@dataclass(frozen=True)
class _Shard:
    path: Path
    state: dict[Any, Any]
    groups: list[Any]
    world_size: int | None


@dataclass(frozen=True)
class Numbering:
    """Parameter numbering of the files: names in order, through the AdamW groups, then Muon's."""

    adam: tuple[parameters.AdamGroup, ...]
    adam_names: tuple[tuple[str, ...], ...]
    muon: tuple[parameters.MuonGroup, ...]
    muon_names: tuple[tuple[str, ...], ...]

    def numbers(self) -> dict[str, int]:
        names = [n for group in (*self.adam_names, *self.muon_names) for n in group]
        return {name: number for number, name in enumerate(names)}


def read_optimizer(
    shards: Sequence[tuple[int, Path]], root: Path, shape: ModelShape, key_order: Sequence[str]
) -> NanochatOptimizer:
    """Read and merge the optimizer files (rank, path) of one step, in order of rank.

    key_order: the names in the order of the model file beside them. Raises InteropError.
    """
    loaded = _load_all(shards, root, shape)
    first = loaded[0]
    numbering = numbering_of(shape, key_order if first.world_size is not None else None)
    world = _world(loaded, shards, numbering, shape)
    for shard in loaded:
        _check_groups(shard, first, numbering)
        _check_entries(shard, numbering)
    state = _adam_state(loaded, numbering, shape) | _muon_state(loaded, numbering)
    return NanochatOptimizer(
        state=state,
        updates=int(state[ADAMW_STEP]),
        world=world,
        stamped=first.world_size is not None,
        groups={group.key: _settings(first, index) for index, group in enumerate(numbering.adam)},
        matrix_lr=_matrix_lr(first, numbering),
    )


# --- the files -----------------------------------------------------------------------------------


def _load_all(shards: Sequence[tuple[int, Path]], root: Path, shape: ModelShape) -> list[_Shard]:
    for wanted, (rank, path) in enumerate(shards):
        if rank != wanted:
            missing = path.with_name(path.name.replace(f"_rank{rank}.pt", f"_rank{wanted}.pt"))
            raise InteropError(
                missing, f"is not there, and the one of rank {rank} is: each GPU wrote its part"
            )
    return [_load(path, root, shape) for _, path in shards]


def _load(path: Path, root: Path, shape: ModelShape) -> _Shard:
    most = 8 * count_parameters(shape).total + SLACK_BYTES
    found = torchfile.load(path, root, most)
    if not isinstance(found, dict) or not {"state", "param_groups"} <= set(found):
        raise InteropError(path, "is not an optimizer: it needs state and param_groups")
    compare_keys(path, "entries", set(found) - {"world_size"}, {"state", "param_groups"})
    groups, state, world = found["param_groups"], found["state"], found.get("world_size")
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise InteropError(path, "is not an optimizer: state or param_groups have the wrong type")
    if "world_size" in found and not (
        isinstance(world, int) and not isinstance(world, bool) and 1 <= world <= MAX_WORLD
    ):
        raise InteropError(path, f"its world_size {world!r:.40} is not a number of GPUs")
    if not all(isinstance(entry, dict) for entry in state.values()):
        raise InteropError(path, "holds a state that is no mapping")
    return _Shard(path, state, groups, world)


def _world(
    loaded: list[_Shard],
    shards: Sequence[tuple[int, Path]],
    numbering: Numbering,
    shape: ModelShape,
) -> int:
    """Number of GPUs that the optimizer was sharded over, by its rows; all files must exist."""
    first, full = loaded[0], shape.padded_vocab_size
    moment = first.state.get(0, {}).get("exp_avg")
    rows = moment.shape[0] if isinstance(moment, Tensor) and moment.dim() == 2 else full
    if not rows or full % rows:
        raise InteropError(
            first.path,
            f"{numbering.adam_names[0][0]} exp_avg has {rows:,} rows, no part of the model's "
            f"{full:,}",
        )
    world = full // rows
    if first.world_size not in (None, world):
        raise InteropError(
            first.path,
            f"states world_size {first.world_size}, and its rows are those of {world} GPUs",
        )
    if len(loaded) < world:
        missing = first.path.with_name(first.path.name.replace("_rank0.", f"_rank{len(loaded)}."))
        raise InteropError(
            missing,
            f"is not there: the optimizer was spread over {world} GPUs, and the file of each is "
            "needed",
        )
    if len(loaded) > world:
        raise InteropError(
            loaded[world].path,
            f"does not belong here: the optimizer of rank 0 was spread over {world} "
            f"GPU{'s' * (world > 1)}",
        )
    return world


# --- groups and numbers --------------------------------------------------------------------------


def numbering_of(shape: ModelShape, key_order: Sequence[str] | None) -> Numbering:
    """Parameter numbering: v1's in the order of modules; with key_order, that of the model file."""
    adam, muon = parameters.adam_groups(shape), parameters.muon_groups(shape)
    place = {name: i for i, name in enumerate(key_order)} if key_order else {}

    def ordered(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(names, key=place.__getitem__)) if place else names

    values = tuple(ordered(g.names) if g.key == "value_embeds" else g.names for g in adam)
    return Numbering(adam, values, muon, tuple(ordered(g.names) for g in muon))


def _check_groups(shard: _Shard, first: _Shard, numbering: Numbering) -> None:
    """Check that every group has nanochat's kind and parameter numbers, the same on all ranks."""
    expected = [("adamw", names) for names in numbering.adam_names]
    expected += [("muon", names) for names in numbering.muon_names]
    if len(shard.groups) != len(expected):
        raise InteropError(
            shard.path, f"has {len(shard.groups)} groups where the model has {len(expected)}"
        )
    start = 0
    for index, (group, (kind, names)) in enumerate(zip(shard.groups, expected, strict=True)):
        if not isinstance(group, dict) or group.get("kind") != kind:
            raise InteropError(shard.path, f"group {index} is not of kind {kind}")
        if group.get("params") != list(range(start, start + len(names))):
            raise InteropError(shard.path, f"group {index} does not hold {len(names)} parameters")
        start += len(names)
    if repr(shard.groups) != repr(first.groups) or shard.world_size != first.world_size:
        raise InteropError(
            shard.path,
            f"its groups are not those of {first.path.name}: it is of another step or run",
        )


def _check_entries(shard: _Shard, numbering: Numbering) -> None:
    numbers = numbering.numbers()
    adam = [n for names in numbering.adam_names for n in names]
    wanted = {numbers[n] for n in adam} | {numbers[names[0]] for names in numbering.muon_names}
    compare_keys(shard.path, "states", set(shard.state), wanted)
    for name in adam:
        compare_keys(shard.path, f"{name}: entries", set(shard.state[numbers[name]]), ADAM_ENTRIES)
    for group, names in zip(numbering.muon, numbering.muon_names, strict=True):
        what = f"Muon group {group.key}: entries"
        compare_keys(shard.path, what, set(shard.state[numbers[names[0]]]), MUON_ENTRIES)


def _settings(shard: _Shard, index: int) -> GroupSettings:
    """Read initial_lr, betas and weight_decay of an AdamW group. eps must be nanochat's."""
    group, what = shard.groups[index], f"group {index}"
    betas = group.get("betas")
    if betas is not None and not (
        isinstance(betas, tuple | list)
        and len(betas) == 2
        and all(isinstance(b, float) and 0 <= b < 1 for b in betas)
    ):
        raise InteropError(shard.path, f"{what} has no two betas below 1")
    if not _is(group.get("eps", EPS), EPS):
        raise InteropError(
            shard.path, f"{what} has eps {group['eps']!r:.40}, which AdamW has as {EPS} here"
        )
    return GroupSettings(
        _number(shard, what, group, "initial_lr", 1e-12, 100.0),
        (float(betas[0]), float(betas[1])) if betas is not None else None,
        _number(shard, what, group, "weight_decay", 0.0, 10.0),
    )


def _matrix_lr(shard: _Shard, numbering: Numbering) -> float | None:
    """The base rate that all Muon groups share."""
    rates = set()
    for index in range(len(numbering.adam), len(shard.groups)):
        group, what = shard.groups[index], f"group {index}"
        for key, value in (("beta2", BETA2), ("ns_steps", NS_STEPS)):
            if not _is(group.get(key, value), value):
                raise InteropError(
                    shard.path, f"{what} has {key} {group[key]!r:.40}, which Muon has as {value}"
                )
        rates.add(_number(shard, what, group, "initial_lr", 1e-12, 100.0))
    if len(rates) > 1:
        raise InteropError(shard.path, "its Muon groups have different learning rates")
    return rates.pop() if rates else None


def _is(found: Any, wanted: float) -> bool:
    return isinstance(found, int | float) and found == wanted


def _number(
    shard: _Shard, what: str, group: dict[str, Any], key: str, least: float, most: float
) -> float | None:
    value = group.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InteropError(shard.path, f"{what}: {key} {value!r:.40} is out of range")
    return float(value)


# --- states --------------------------------------------------------------------------------------


def _adam_state(loaded: list[_Shard], numbering: Numbering, shape: ModelShape) -> dict[str, Tensor]:
    shapes, tables = parameters.parameter_shapes(shape), parameters.table_names(shape)
    numbers, flat = numbering.numbers(), {}
    step = _step(loaded[0], numbering, numbers)
    for shard in loaded[1:]:
        if _step(shard, numbering, numbers) != step:
            raise InteropError(
                shard.path,
                f"stands at step {_step(shard, numbering, numbers):,} and {loaded[0].path.name} "
                f"at {step:,}: shards of two steps are mixed",
            )
    for name in (n for names in numbering.adam_names for n in names):
        dtypes = TABLE_DTYPES if name in tables else (torch.float32,)
        for key in ("exp_avg", "exp_avg_sq"):
            moment = _merged_rows(loaded, numbers[name], f"{name} {key}", key, shapes[name], dtypes)
            flat[f"adamw.{name}.{key}"] = moment
        _not_negative(loaded, f"{name} exp_avg_sq", flat[f"adamw.{name}.exp_avg_sq"])
    return flat | {ADAMW_STEP: torch.tensor(step, dtype=torch.int64)}


def _step(shard: _Shard, numbering: Numbering, numbers: dict[str, int]) -> int:
    """Number of updates done, which must be the same for every parameter of a shard."""
    names = [n for group in numbering.adam_names for n in group]
    steps = {_whole_number(shard.path, n, shard.state[numbers[n]]["step"]) for n in names}
    if len(steps) != 1:
        raise InteropError(shard.path, f"its parameters stand at different steps: {sorted(steps)}")
    return steps.pop()


def _merged_rows(
    loaded: list[_Shard],
    number: int,
    what: str,
    key: str,
    size: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> Tensor:
    """Merge one AdamW moment: rows of the ranks in order, or a copy that is the same on all."""
    world = len(loaded)
    whole = loaded[0].state[number][key]
    is_whole = world == 1 or (isinstance(whole, Tensor) and tuple(whole.shape) == size)
    part = size if is_whole else (size[0] // world, *size[1:])
    parts = [checked(s.path, what, s.state[number][key], part, dtypes) for s in loaded]
    for shard, tensor in zip(loaded[1:], parts[1:], strict=True):
        if tensor.dtype != parts[0].dtype or (is_whole and not torch.equal(tensor, parts[0])):
            raise InteropError(
                shard.path,
                f"{what} is not that of {loaded[0].path.name}: it is of another step or run",
            )
    if is_whole:
        return parts[0]
    _refuse_copies(loaded, parts, what)
    return torch.cat(parts)


def _refuse_copies(loaded: list[_Shard], parts: list[Tensor], what: str) -> None:
    """Refuse equal parts: ranks have different rows, so equal ones mean a copied file."""
    for later in range(1, len(parts)):
        for earlier in range(later):
            if torch.equal(parts[later], parts[earlier]) and parts[later].any():
                raise InteropError(
                    loaded[later].path,
                    f"{what} is that of {loaded[earlier].path.name}: the file is a copy of it",
                )


def _muon_state(loaded: list[_Shard], numbering: Numbering) -> dict[str, Tensor]:
    numbers, flat = numbering.numbers(), {}
    for group, names in zip(numbering.muon, numbering.muon_names, strict=True):
        number, what = numbers[names[0]], f"Muon group {group.key}"
        ours = [names.index(name) for name in group.names]
        rest = (group.rows, group.cols)
        for key, ending, size in (
            ("momentum_buffer", "momentum", rest),
            ("second_momentum_buffer", "second_momentum", group.second_shape[1:]),
        ):
            merged = _merged_stack(loaded, number, f"{what} {ending}", key, len(names), size)
            flat[f"muon.{group.key}.{ending}"] = merged[ours]
        _not_negative(loaded, f"{what} second", flat[f"muon.{group.key}.second_momentum"])
    return flat


def _merged_stack(
    loaded: list[_Shard], number: int, what: str, key: str, count: int, size: tuple[int, ...]
) -> Tensor:
    """Merge one Muon buffer (K, …): the ranks' parts in order, without the padding at the end."""
    each = -(-count // len(loaded))
    dtypes = (torch.float32,)
    parts = [checked(s.path, what, s.state[number][key], (each, *size), dtypes) for s in loaded]
    for rank, (shard, part) in enumerate(zip(loaded, parts, strict=True)):
        if part[max(0, count - rank * each) :].any():
            raise InteropError(shard.path, f"{what} is not zero where no matrix belongs to it")
    return torch.cat(parts)[:count]


def _whole_number(path: Path, name: str, step: Any) -> int:
    value = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise InteropError(path, f"{name}: step is not a whole number")
    if not 0 <= value <= 10**9:
        raise InteropError(path, f"{name}: step {value} is out of range")
    return int(value)


def _not_negative(loaded: list[_Shard], name: str, tensor: Tensor) -> None:
    if (tensor < 0).any():
        raise InteropError(loaded[0].path, f"{name} holds negative squares")
