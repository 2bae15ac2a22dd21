"""The parts of several ranks that need none: lanes, shards, rows, the share of a step."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.shapes import KINDS, RATES, batches, trained_model
from trainer.contract import failpoint
from trainer.contract.lanes import lanes_for
from trainer.contract.ranks import RankRow
from trainer.optim.optimizer import Optimizer
from trainer.optim.shards import Shards, cut
from trainer.runtime.world import tree_sum
from trainer.train.lanes import LaneSum
from trainer.train.rank_rows import stragglers
from trainer.train.step import Stepper

KIND = KINDS["three heads, padded vocabulary"]


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("count", range(1, 26))
def test_a_stack_is_cut_whole_and_never_into_single_matrices(count: int, lanes: int) -> None:
    pieces = cut(count, lanes)
    assert len(pieces) == lanes
    assert [i for begin, end in pieces for i in range(begin, end)] == list(range(count))
    assert count == 1 or all(end - begin != 1 for begin, end in pieces)
    for ranks in (r for r in (1, 2, 4, 8) if lanes % r == 0):
        shards = [Shards(pieces, rank, ranks) for rank in range(ranks)]
        assert sum(shards[0].counts()) == count
        assert [p for s in shards for p in s.own] == [p for p in pieces if p[0] < p[1]]


def test_lanes_are_added_pairwise() -> None:
    """Floats whose sum depends on the order: a tree over eight lanes, and over its halves."""
    draw = torch.Generator().manual_seed(0)
    lanes = [torch.randn(64, generator=draw) * 10.0**i for i in range(8)]
    whole = summed(lanes)
    assert torch.equal(whole, tree_sum([lane.clone() for lane in lanes]))
    halves = [summed(lanes[:4]), summed(lanes[4:])]
    assert torch.equal(whole, tree_sum(halves))
    in_a_row = lanes[0].clone()
    for lane in lanes[1:]:
        in_a_row += lane
    assert not torch.equal(whole, in_a_row)


class TableGradients:
    gradients: dict[str, torch.Tensor]

    def __init__(self) -> None:
        self.gradients = {}


def summed(lanes: list[torch.Tensor]) -> torch.Tensor:
    """By LaneSum, as a step does it, the table's rows with them."""
    lane_sum, bank = LaneSum(), torch.zeros(64)
    touched = TableGradients()
    lane_sum.begin()
    for i, lane in enumerate(lanes):
        bank += lane
        touched.gradients["table"] = lane.clone()
        lane_sum.close(bank, touched, last=i == len(lanes) - 1)
        if i < len(lanes) - 1:
            bank.zero_()
    assert torch.equal(touched.gradients["table"], bank)
    return bank


@pytest.mark.parametrize("explicit", [False, True])
def test_a_step_in_lanes_is_the_step_up_to_rounding(explicit: bool) -> None:
    plain, lanes = (stepper_of(count, explicit) for count in (1, 4))
    data = batches(KIND, count=4)
    for _ in range(2):
        one, other = plain.train_step(data, **RATES), lanes.train_step(data, **RATES)
        assert torch.allclose(one.loss, other.loss, rtol=1e-6)
        assert torch.allclose(one.grad_norm, other.grad_norm, rtol=1e-4)
    assert torch.equal(lanes.loss_only(data), lanes.train_step(data, **RATES).loss)


def stepper_of(lanes: int, explicit: bool) -> Stepper:
    model = trained_model(KIND)
    optimizer = Optimizer(model, KIND.plan()[1], lanes=lanes)
    return Stepper(
        model,
        optimizer,
        compile=False,
        deterministic=True,
        rows=2,
        lanes=lanes,
        explicit_gradients=explicit,
    )


def test_lanes_default_to_one_a_device() -> None:
    assert [lanes_for(ranks, None) for ranks in (1, 2, 3, 4, 8)] == [1, 2, 4, 4, 8]
    assert lanes_for(2, 8) == 8


def test_a_rank_that_computes_longer_than_the_others_straggles() -> None:
    def row(rank: int, seconds: float | None) -> RankRow:
        return RankRow(rank=rank, host="h", device="cpu", pid=1, compute_seconds=seconds)

    rows = [row(0, 1.0), row(1, 1.02), row(2, 1.3), row(3, 0.99)]
    assert [r.rank for r in stragglers(rows)] == [2]
    assert stragglers(rows[:2]) == []
    assert stragglers([row(0, None), row(1, 5.0)]) == []


def test_a_failpoint_may_be_of_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a@1=kill;b=kill;c@0=kill"
    monkeypatch.setenv("RANK", "1")
    assert set(failpoint.parse(text)) == {"a", "b"}
    monkeypatch.delenv("RANK")
    assert set(failpoint.parse(text)) == {"b", "c"}
