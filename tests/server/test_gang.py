"""Runs on several devices: all of them or none, in the order of the queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.domain import preflight
from server.domain.run_rows import plan_for
from server.errors import Invalid
from server.machine.devices import Device
from server.supervision import worklist
from tests.server.house import House
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import RunSpec, rank_devices, resolve

GPUS = (Device("cuda:0", "a card"), Device("cuda:1", "a card"), Device("cpu", "a processor"))
BATCH = {"tokens": 2048, "device_batch_size": 4}


def turns(house: House) -> dict[str, list[str]]:
    """{device: names of the runs that may start on it}; a gang is under all of its devices."""
    with house.db.read() as session:
        board = worklist.load(session, house.settings.paths, GPUS)
        allowed = [e for e in board.entries if worklist.may_use(board.turn, e)]
        return {
            device.device: [e.run.name for e in allowed if device.device in e.devices]
            for device in GPUS
        }


def test_a_gang_starts_when_all_its_devices_are_its_own(tmp_path: Path) -> None:
    house = House(tmp_path)
    busy = house.create("busy", device="cuda:1")
    house.create("gang", gpus=2, batch=BATCH)
    house.create("later", device="cuda:0")
    assert turns(house) == {"cuda:0": [], "cuda:1": ["busy"], "cpu": []}  # cuda:0 is kept for it
    with house.db.write() as session:
        from server.database.tables import Run

        session.delete(session.get_one(Run, busy))
    assert turns(house) == {"cuda:0": ["gang"], "cuda:1": ["gang"], "cpu": []}
    house.close()


def test_two_ranks_of_the_cpu_take_the_one_place(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.create("gang", devices=["cpu", "cpu"], batch=BATCH)
    house.create("later", device="cpu")
    assert turns(house)["cpu"] == ["gang"]
    house.close()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"gpus": 3}, "power of two, such as 2 or 4"),
        ({"gpus": 2, "devices": ["cuda:0", "cuda:1"]}, "gpus or devices, not both"),
        ({"gpus": 2, "device": "cpu"}, "device is of a run on one device"),
        ({"devices": ["cuda:0", "cuda:0"]}, "different GPUs"),
        ({"devices": ["cuda:0", "cpu"]}, "different GPUs"),
        ({"devices": ["cuda:0"]}, "at least 2"),
        ({"gpus": 8}, "4 micro-batches of 4 rows a step do not divide among 8 devices; 1, 2, 4 do"),
        ({"gpus": 4, "numerics": {"lanes": 2}}, "2 lanes cannot be shared by 4 devices"),
        ({"numerics": {"lanes": 6}}, "power of two, such as 4 or 8"),
        ({"gpus": "all"}, "gpus"),
    ],
)
def test_what_cannot_train_together_is_an_error_of_its_field(body: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        resolve({"name": "x", "batch": BATCH, **body})


def test_gpus_are_the_first_of_the_machine() -> None:
    spec = resolve({"name": "x", "batch": BATCH, "gpus": 2})
    assert (spec.rank_devices, spec.lanes) == (["cuda:0", "cuda:1"], 2)
    assert rank_devices(spec.model_dump(mode="json")) == spec.rank_devices
    assert rank_devices({"device": "auto"}) == []  # as specs of earlier versions are stored


def refused(spec: RunSpec, found: tuple[Device, ...], tmp_path: Path) -> str:
    tmp_path.mkdir()
    house = House(tmp_path)
    try:
        with house.db.read() as session, pytest.raises(Invalid) as error:
            preflight.require(session, spec, plan_for(spec, PlanContext()), found)
        return str(error.value)
    finally:
        house.close()


def test_devices_that_are_missing_or_unlike_are_refused(tmp_path: Path) -> None:
    spec = resolve({"name": "x", "batch": BATCH, "gpus": 4})
    assert "no cuda:2 and no cuda:3" in refused(spec, GPUS, tmp_path / "a")
    pair = resolve({"name": "x", "batch": BATCH, "gpus": 2})
    unlike = (Device("cuda:0", "RTX 4070"), Device("cuda:1", "RTX 3090"))
    assert "RTX 3090, RTX 4070" in refused(pair, unlike, tmp_path / "b")


# --- what the plan says of the exchange ----------------------------------------------------------


D12 = {"preset": "rtx4070-d12", "name": "x"}
CARD = PlanContext(device_type="cuda", device_name="RTX 4070", peak_flops=117e12)


def test_two_cards_are_planned_with_what_they_exchange() -> None:
    one, two = (make_plan(resolve({**D12, "gpus": n}), CARD) for n in (1, 2))
    assert one.exchange is None
    assert one.memory.exchange == 0
    assert two.exchange is not None
    # gradients of 110 M dense parameters and the touched rows out and back, 85 M updated matrices
    assert 0.6e9 < two.exchange.bytes_per_step < 0.9e9
    gain = two.eta.tokens_per_second / one.eta.tokens_per_second
    assert 1.5 < gain < 2.0
    assert two.memory.exchange > 0
    assert two.memory.optimizer < one.memory.optimizer


def test_a_step_that_mostly_exchanges_warns_with_the_batch_that_does_not() -> None:
    fast = PlanContext(device_type="cuda", device_name="H200", peak_flops=989e12)
    plan = make_plan(resolve({**D12, "gpus": 8, "batch": {"tokens": 131_072}}), fast)
    assert plan.exchange is not None
    assert plan.exchange.share_of_step > 0.2
    (warning,) = [w for w in plan.warnings if "exchange between 8 devices" in w]
    assert f"batch.tokens {plan.exchange.enough_tokens:,}" in warning
    larger = {"tokens": plan.exchange.enough_tokens}
    enough = make_plan(resolve({**D12, "gpus": 8, "batch": larger}), fast)
    assert enough.exchange is not None
    assert enough.exchange.share_of_step < 0.3
