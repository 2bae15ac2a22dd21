"""A save holds the moment it was begun at, whatever the tensors are and whatever follows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import store
from trainer.checkpoint.background_writer import PIECE_BYTES, Saver
from trainer.checkpoint.store import FileEntry, Manifest


def manifest(files: dict[str, FileEntry], step: int) -> Manifest:
    return Manifest(
        run_id="run_a", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
        files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_saved_is_what_was_there_when_it_began(tmp_path: Path, threads: int) -> None:
    draw = torch.Generator().manual_seed(threads)
    over_a_piece = 2 * PIECE_BYTES // 4 + 12_345
    tensors = {
        "long": torch.randn(over_a_piece, generator=draw),
        "half": torch.randn(33, 7, generator=draw).bfloat16(),
        "count": torch.tensor(123),
        "turned": torch.randn(5, 9, generator=draw).t(),
        "part": torch.randn(20, 20, generator=draw)[3:9],
        "mask": torch.randint(0, 2, (11,), generator=draw).bool(),
        "nothing": torch.empty(0, 4),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        saver = Saver(tmp_path, torch.device("cpu"))
        for step in (7, 8):  # the second into the buffers of the first
            wanted = {name: t.clone() for name, t in tensors.items()}
            describe = partial(manifest, step=step)
            saver.begin(step, tensors, {"m": tensors["half"]}, {}, describe, "cadence")
            for tensor in tensors.values():  # training continues
                tensor.copy_(tensor.flip(0) if tensor.dim() else tensor + 1)
            (saved,) = saver.wait()
            assert saved.error is None
            assert saved.path is not None
            model, optimizer, _ = store.load(saved.path)
            assert model.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert model[name].dtype == tensor.dtype
                assert torch.equal(model[name], tensor), name
            assert torch.equal(optimizer["m"], wanted["half"])
    finally:
        torch.set_num_threads(before)
