"""Detects the generation of a nanochat checkpoint, trait by trait.

A version between two known generations may combine their traits. So each trait is a separate
switch; the generation's name is for people, and a file of no known generation is still read if all
of its traits can be expressed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from trainer.contract.recipe import MuonName
from trainer.contract.shape import ModelShape
from trainer.model import parameters

MUON_BETA2 = 0.9
SIGNATURE_TOLERANCE = 1e-3
OLD_RATIO = 10.5  # default data:param ratio until 24 March 2026
V1_KEYS = ("fp8_recipe", "core_metric_every", "core_metric_max_per_task", "sample_every")
V2_KEYS = ("num_shards", "short_seq_len")


@dataclass(frozen=True)
class Traits:
    """Traits detected in the files; None where undetermined.

    smear, backout: has weights of that name. absolute_window: short_seq_len is stated. row_cursor:
    the data cursor is a row of packed shards, not a row group. stamped: the optimizer states its
    number of GPUs. float32_tables: embedding tables are stored in float32. v2_flags: the command
    line is v2's. experiments: the folder is below `experiments/`. muon: by the second moments.
    """

    smear: bool
    backout: bool
    absolute_window: bool
    row_cursor: bool | None
    stamped: bool | None
    float32_tables: bool
    v2_flags: bool | None
    experiments: bool | None
    muon: MuonName | None


@dataclass(frozen=True)
class Generation:
    """A known version of nanochat and the traits that all of its files have."""

    name: str
    traits: Mapping[str, Any]

    def against(self, found: Traits) -> list[str]:
        """The traits that contradict this generation, in words."""
        return [
            _WORDS[field.name][bool(value)] if field.name != "muon" else f"Muon of {value}"
            for field in fields(found)
            if (value := getattr(found, field.name)) is not None
            and field.name in self.traits
            and value != self.traits[field.name]
        ]


_V1 = {
    "smear": True,
    "backout": True,
    "absolute_window": False,
    "row_cursor": False,
    "stamped": False,
    "v2_flags": False,
}
GENERATIONS = (
    Generation("v1 of 14 March to 2 July 2026", _V1 | {"experiments": False, "muon": "2026-03"}),
    Generation("v1 of 3 July 2026", _V1 | {"experiments": False, "muon": "2026-07"}),
    Generation("July branch of 2026", _V1 | {"experiments": True, "muon": "2026-07"}),
    Generation(
        "v2 of September 2026",
        {
            "smear": False,
            "backout": True,
            "absolute_window": True,
            "row_cursor": True,
            "stamped": True,
            "float32_tables": True,
            "v2_flags": True,
            "experiments": True,
            "muon": "2026-07",
        },
    ),
)
BEFORE_MARCH = Generation("before 14 March 2026", {"smear": False, "backout": False})
_WORDS = {
    "smear": ("no smear gate", "a smear gate"),
    "backout": ("no backout_lambda", "a backout_lambda"),
    "absolute_window": ("no short_seq_len", "short_seq_len"),
    "row_cursor": ("no dataloader_row", "dataloader_row"),
    "stamped": ("no world_size in the optimizer", "world_size in the optimizer"),
    "float32_tables": ("tables stored in bfloat16", "tables stored in float32"),
    "v2_flags": ("the flags of v1", "the flags of v2"),
    "experiments": ("not below experiments/", "below experiments/"),
}


def generation_of(found: Traits) -> str | None:
    """Names of the generations that no trait contradicts; None if every one is contradicted.

    Several if the files cannot distinguish them, as with weights alone, which do not show Muon.
    """
    return " or ".join(g.name for g in GENERATIONS if not g.against(found)) or None


def against_each(found: Traits) -> str:
    """Which traits contradict each generation, in one sentence."""
    parts = [f"{g.name}: {', '.join(g.against(found))}" for g in GENERATIONS]
    return f"against {'; against '.join(parts)}"


def is_before_march(found: Traits) -> bool:
    return not BEFORE_MARCH.against(found)


def v2_flags(user_config: Mapping[str, Any]) -> bool | None:
    """True if the stored command line is v2's; None if it has no flag specific to either."""
    old, new = (any(key in user_config for key in keys) for keys in (V1_KEYS, V2_KEYS))
    return None if old == new else new


# --- Muon, by its second moments -----------------------------------------------------------------


def muon_of(
    state: Mapping[str, Tensor], shape: ModelShape, updates: int
) -> tuple[MuonName | None, str]:
    """(the Muon variant of the last steps, how it is detected); None if nothing was recorded.

    Muon of July renormalizes each update before the variance reduction, so the sum of its second
    moments is known exactly; with the Muon before it the sums vary.
    """
    ratios, late = signature(state, shape, updates)
    if not len(ratios):
        return None, "its second moments are all zero"
    off = torch.minimum((ratios - 1).abs(), (late - 1).abs())
    if off.max().item() < SIGNATURE_TOLERANCE:
        return "2026-07", f"the second moments sum to what Muon of July makes ({_spread(ratios)})"
    return "2026-03", f"the second moments spread as with the Muon before July ({_spread(ratios)})"


def signature(
    state: Mapping[str, Tensor], shape: ModelShape, updates: int
) -> tuple[Tensor, Tensor]:
    """Ratio of the sum of each matrix's second moments to that of Muon of July after `updates`
    steps, and after one step fewer (a first gradient of zero); skips matrices without updates."""
    filled, filled_late = (1 - MUON_BETA2**n for n in (updates, max(0, updates - 1)))
    found = []
    for group in parameters.muon_groups(shape):
        reduced = group.cols if group.rows >= group.cols else group.rows
        sums = state[f"muon.{group.key}.second_momentum"].double().flatten(1).sum(dim=1)
        found.append(sums * reduced / min(group.rows, group.cols))
    sums = torch.cat(found)
    sums = sums[sums > 0]
    late = sums / filled_late if filled_late else torch.full_like(sums, math.inf)
    return (sums / filled if filled else sums[:0]), late


def _spread(ratios: Tensor) -> str:
    return f"ratios {ratios.min().item():.4f} to {ratios.max().item():.4f}"
