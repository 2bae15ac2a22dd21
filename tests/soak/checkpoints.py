"""Checkpoints: random damage to files and manifests is found before anything is loaded."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from tests.soak.counts import Budget, Counts
from trainer.checkpoint import store
from trainer.checkpoint.store import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    FileEntry,
    Manifest,
    Snapshot,
)
from trainer.contract.orders import Lineage
from trainer.contract.rundir import checkpoint_name

FILES = (MODEL, OPTIMIZER, STATE, MANIFEST)
STEPS = (10, 20, 30)
LINEAGE = Lineage(limits={1: 10**9})
AT_LEAST = 100  # minimum number of damages, whatever the budget


def run(budget: float, seed: int) -> Counts:
    """Damage checkpoints, one after the other, while there is time."""
    counts, left = Counts("checkpoints", seed), Budget(budget)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-checkpoints-") as folder:
        originals = make(Path(folder) / "originals", draw)
        while counts.done["damages"] < AT_LEAST or not left.is_over:
            _one(originals, Path(folder) / "run" / "checkpoints", counts, draw)
    return counts


def control(seed: int) -> Counts:
    """The same without verification: it must be detected."""
    counts = Counts("checkpoints", seed)
    draw = random.Random(seed)

    def trust(path: Path) -> Manifest:
        try:
            body, _, _ = (path / MANIFEST).read_bytes().rpartition(b',\n "seal": "')
            return Manifest.model_validate_json(body + b"}")
        except (OSError, ValueError):
            raise store.Bad("not a manifest") from None

    with (
        tempfile.TemporaryDirectory(prefix="soak-checkpoints-") as folder,
        patch.object(store, "verify", trust),
    ):
        originals = make(Path(folder) / "originals", draw)
        for _ in range(40):
            _one(originals, Path(folder) / "run" / "checkpoints", counts, draw)
    return counts


def make(directory: Path, draw: random.Random) -> Path:
    """Three small checkpoints, written by the program itself."""
    for step in STEPS:
        make_one(directory, step, draw)
    return directory


def make_one(directory: Path, step: int, draw: random.Random) -> Path:
    """One small checkpoint of a few tensors. Raises OSError as any save does."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    shapes = {"wte": (16, 8), "lm_head": (16, 8), "c_q": (8, 8)}
    model, optimizer = (
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(2)
    )
    state = {"train": {"step": step}, "rng": {"torch": "AAAA"}, "loader": {"epoch": 0}}
    snapshot = Snapshot(step, model, optimizer, state)
    path, _ = store.write(directory, snapshot, _describe(step))
    return path


def _describe(step: int) -> Callable[[dict[str, FileEntry]], Manifest]:
    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            run_id="run_soak", attempt=1, step=step, tokens_seen=step * 4096, parent=None,
            why="cadence", files=files, spec_sha256="0" * 64, data_identity="1" * 64,
            fingerprint={"threads": 1}, next_loss=2.5, unix_seconds=1.0,
        )  # fmt: skip

    return describe


def _one(originals: Path, directory: Path, counts: Counts, draw: random.Random) -> None:
    """Damage the newest checkpoint; the previous one must be loaded."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(originals, directory)
    newest = directory / checkpoint_name(STEPS[-1], 1)
    damage = draw.choice(DAMAGES)
    words = damage(newest, draw)
    counts.add("damages")
    try:
        found = store.newest(directory, LINEAGE)
    except Exception as error:
        counts.fail(f"{words}: {error!r}")
        return
    taken = found.path.name if found else "nothing"
    counts.expect(taken == checkpoint_name(STEPS[-2], 1), f"{words}: {taken} was taken")
    passed = [name for name, _ in found.passed_over] if found else []
    counts.expect(passed == [newest.name], f"{words}: passed over {passed}")


# --- damages: each returns a description ---------------------------------------------------------


def _flip(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    raw = bytearray((path / name).read_bytes())
    bit = draw.randrange(8 * len(raw))
    raw[bit // 8] ^= 1 << (bit % 8)
    (path / name).write_bytes(raw)
    return f"bit {bit} of {name}"


def _cut(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    size = draw.randrange((path / name).stat().st_size)
    os.truncate(path / name, size)
    return f"{name} cut to {size} bytes"


def _extend(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    with (path / name).open("ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 100)))
    return f"{name} made longer"


def _zero(path: Path, draw: random.Random) -> str:
    """A page that never reached the disk."""
    name = draw.choice(FILES)
    raw = bytearray((path / name).read_bytes())
    start = draw.randrange(len(raw))
    piece = raw[start : start + 512]
    raw[start : start + 512] = bytes(len(piece)) if any(piece) else b"\xff" * len(piece)
    (path / name).write_bytes(raw)
    return f"zeros in {name} from {start}"


def _delete(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    (path / name).unlink()
    return f"{name} deleted"


def _swap_between(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    other = path.with_name(checkpoint_name(STEPS[0], 1))
    shutil.copy(other / name, path / name)
    return f"{name} of another checkpoint"


def _swap_within(path: Path, draw: random.Random) -> str:
    one, two = draw.sample(FILES, 2)
    (path / one).rename(path / "between")
    (path / two).rename(path / one)
    (path / "between").rename(path / two)
    return f"{one} and {two} swapped"


def _edit(path: Path, draw: random.Random) -> str:
    """The manifest, still valid JSON, with one field changed by hand."""
    manifest = json.loads((path / MANIFEST).read_text())
    field, value = draw.choice(
        [
            ("step", 20), ("attempt", 2), ("tokens_seen", 1), ("run_id", "run_other"),
            ("why", "end"), ("parent", "step-000000001-a0001"), ("next_loss", 2.25),
            ("pinned", True), ("files", {}), ("data_identity", "2" * 64), ("fingerprint", {}),
            ("approximate", "said so"), ("format", 2),
        ]
    )  # fmt: skip
    manifest[field] = value
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return f"manifest edited: {field}"


def _replace(path: Path, draw: random.Random) -> str:
    """Another complete checkpoint under this name."""
    shutil.rmtree(path)
    shutil.copytree(path.with_name(checkpoint_name(STEPS[0], 1)), path)
    return "another checkpoint under its name"


def _as_directory(path: Path, draw: random.Random) -> str:
    name = draw.choice(FILES)
    (path / name).unlink()
    (path / name).mkdir()
    return f"{name} is a directory"


DAMAGES = (
    _flip, _flip, _flip, _cut, _extend, _zero, _delete, _swap_between, _swap_within, _edit,
    _replace, _as_directory,
)  # fmt: skip
