"""Retention: which checkpoints of a lineage are kept, and which can be removed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import store
from trainer.contract.orders import Lineage


@dataclass(frozen=True)
class RetentionEntry:
    """Input of retention, read from each manifest."""

    path: Path
    step: int
    why: str
    pinned: bool
    val_bpb: float | None


def surplus(
    held: list[RetentionEntry],
    *,
    keep_last: int,
    keep_every: int | None,
    pinned: set[str],
    keep_steps: Collection[int] = (),
) -> list[Path]:
    """Checkpoints of the lineage that can be removed, oldest first. Pure.

    Kept: the newest `keep_last`, multiples of keep_every, pinned ones, ends of phases, imports,
    those at `keep_steps` (where a warmdown begins), and the best by val bpb.
    """
    ordered = sorted(held, key=lambda k: (k.step, k.path.name))
    keep = {k.path for k in ordered[-keep_last:]}
    scored = [k for k in ordered if k.val_bpb is not None]
    if scored:
        keep.add(min(scored, key=lambda k: k.val_bpb or 0.0).path)
    for k in ordered:
        if k.pinned or k.path.name in pinned or k.why in ("end", "import", "warmdown"):
            keep.add(k.path)
        if k.step in keep_steps or (keep_every and k.step % keep_every == 0):
            keep.add(k.path)
    return [k.path for k in ordered if k.path not in keep]


def held(directory: Path, lineage: Lineage, run_id: str | None = None) -> list[RetentionEntry]:
    """The lineage's checkpoints as retention entries; skips unreadable ones and those of another
    run."""
    found = []
    for path in store.candidates(directory, lineage):
        try:
            m = store.read_manifest(path)
        except (store.Bad, OSError):
            continue
        if run_id is not None and not store.belongs(m, run_id):
            continue
        bpb = m.evaluations.get("bpb", {})
        value = bpb.get("value") if bpb.get("step") == m.step else None
        found.append(RetentionEntry(path, m.step, m.why, m.pinned, value))
    return found
