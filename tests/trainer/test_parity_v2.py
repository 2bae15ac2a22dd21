"""nanochat v2 where the fixtures do not show it: short windows, odd heads, a part of the shards.

A plain reference trains on shards that it packed itself, writes v2's files and continues; an import
of them must continue likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.reference.nanochat_v2_run import PlainV2Run, make_v2_base
from tests.reference.scaling import Dials
from tests.trainer.test_nanochat_parity import go_on, imported
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of

ROW_LEN, FINISHED, END = 208, 12, 22
CASES = {
    "windows of 128, three heads": (Dials(3, 16, 16, 192, "SSL", 1000, None, "2026-09", 128), -1),
    "one kv head, one of two shards": (Dials(3, 16, 16, 160, "SL", 1000, 1, "2026-09", 128), 1),
    "too narrow for a smear": (Dials(3, 5, 8, 144, "SSL", 1000, None, "2026-09", 128), -1),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_v2_base(tmp_path_factory.mktemp("v2") / "base", 1000, ROW_LEN)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_an_imported_v2_run_continues_as_the_plain_reference_does(
    base: Path, tmp_path: Path, case: str
) -> None:
    dials, num_shards = CASES[case]
    plain = PlainV2Run(base, dials, num_shards)
    plain.train(FINISHED, FINISHED)
    tag = f"x{dials.n_embd}-{dials.sequence_len}"
    plain.write(tag, horizon=FINISHED)
    result, run_dir = imported(tmp_path, str(base), tag=tag, step=FINISHED)
    run = go_on(result, run_dir, END)
    assert result.history["generation"] == "v2 of September 2026"
    assert shape_of(run.spec.model) == dials.shape()
    assert run.spec.optimizer.groups is None
    hyper = make_plan(run.spec).hyperparameters
    assert hyper.unembedding_lr == pytest.approx(plain.hyper.unembedding_lr, rel=1e-12)
    assert run.bpb[FINISHED] == pytest.approx(result.val_bpb, abs=1e-5)
    plain.resume()
    assert run.losses == pytest.approx(plain.train(END, END), abs=1e-5)
    assert run.cursor["row"] == plain.cursor[0]
    assert run.bpb[END] == pytest.approx(plain.bits_per_byte(), abs=1e-5)
