"""Runs on several devices: all of them or none, in the order of the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.database.tables import Run
from server.domain import attempts, gang, preflight, runs
from server.domain.run_rows import plan_for
from server.errors import Invalid
from server.machine import devices as machine_devices
from server.machine import kernel_log, plan_context
from server.machine.devices import Device
from server.queries import ranks as rank_rows
from server.scheduling import rows
from server.schemas.runs import ResumeRequest
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
        ({"gpus": 2, "device": "cpu"}, "device is for a run on one device"),
        ({"devices": ["cuda:0", "cuda:0"]}, "different GPUs"),
        ({"devices": ["cuda:0", "cpu"]}, "different GPUs"),
        ({"devices": ["cuda:0"]}, "at least 2"),
        ({"gpus": 8}, "4 micro-batches of 4 rows a step do not divide among 8 devices; 1, 2, 4 do"),
        ({"gpus": 4, "numerics": {"lanes": 2}}, "2 lanes cannot be shared by 4 devices"),
        ({"numerics": {"lanes": 6}}, "power of two, such as 4 or 8"),
        ({"gpus": "some"}, "gpus"),
        ({"gpus": "all", "device": "cuda:0"}, "device is for a run on one device"),
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


# --- all of them ----------------------------------------------------------------------------------


def cards(count: int, name: str = "a card") -> tuple[Device, ...]:
    return (*(Device(f"cuda:{i}", name, 12 << 30) for i in range(count)), Device("cpu", "a CPU"))


def test_all_is_what_the_machine_has_when_an_attempt_starts(tmp_path: Path) -> None:
    """As many as share the run's lanes, and never the CPU."""
    house = House(tmp_path)
    run_id = house.create("gang", gpus="all", batch=BATCH)
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        assert [len(gang.of_run(run, cards(n))) for n in (0, 1, 2, 3, 4, 8)] == [0, 0, 2, 2, 4, 4]
        assert run.device == "cuda"
        assert rows.devices_of(session, run, None, cards(1)) == (("cuda:0",), None)
        _, missing = rows.devices_of(session, run, None, cards(0))
        assert missing is not None
        assert "cuda" in missing
        assert gang.of_run(run, (*cards(2)[:2], Device("cuda:2", "another card"))) == [
            "cuda:0", "cuda:1",
        ]  # fmt: skip
        run.frozen = {"lanes": 2}  # a resume stays exact: more cards than lanes are left out
        assert len(gang.of_run(run, cards(4))) == 2
    house.close()


def test_an_attempt_holds_what_it_was_ordered_for(tmp_path: Path) -> None:
    """Also when the machine, or the run's wish, is another one meanwhile."""
    house = House(tmp_path)
    run_id = house.create("gang", gpus="all", batch=BATCH)
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        devices = gang.of_run(run, cards(4))
        attempt = attempts.next_attempt(session, run, device="cuda:0", devices=devices, now=1.0)
        order = attempts.build_order(session, run, attempt, house.settings, devices)
        assert order.devices == devices == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
        gang.override(run, {"gpus": 1})
        assert rows.devices_of(session, run, attempt, cards(2)) == (tuple(devices), None)
        assert rows.of_run(run, attempt, devices, 2.0).holds == tuple(devices)
        assert gang.used_by(attempt) == devices
    house.close()


def test_the_plan_says_how_many_all_are(tmp_path: Path) -> None:
    house = House(tmp_path)
    spec = resolve({"name": "x", "batch": BATCH, "gpus": "all"})
    with house.db.read() as session:
        planned = [
            plan_for(spec, plan_context.context(session, house.settings, spec, cards(n)))
            for n in (0, 1, 2)
        ]
    assert [plan.num_devices for plan in planned] == [1, 1, 2]
    assert planned[2].exchange is not None
    assert "There is no GPU" in refused(spec, cards(0), tmp_path / "none")
    house.close()


# --- another number on resume ---------------------------------------------------------------------


def paused(house: House, **body: Any) -> str:
    run_id = house.create("gang", batch=BATCH, **body)
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        run.state, run.desired_state, run.frozen = "paused", "paused", {"lanes": 4}
    return run_id


@pytest.mark.parametrize(
    ("overrides", "devices", "column"),
    [
        ({"devices": ["cpu"]}, [], "cpu"),
        ({"devices": ["cpu"] * 4}, ["cpu"] * 4, "cpu"),
        ({"gpus": 1}, [], "auto"),
        ({"gpus": 2}, ["cuda:0", "cuda:1"], "cuda:0"),
        ({"gpus": "all"}, ["cuda:0", "cuda:1"], "cuda"),
    ],
)
def test_a_resume_takes_another_number_of_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict, devices: list, column: str
) -> None:
    monkeypatch.setattr(machine_devices, "discover", lambda: cards(2))
    house = House(tmp_path)
    run_id = paused(house, devices=["cpu", "cpu"])
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        run.overrides = {"gpus": 2, "compile": False}
        ask = ResumeRequest.model_validate({"overrides": overrides})
        assert runs.resume(session, run, ask, now=1.0)
        assert gang.of_run(run, cards(2)) == devices
        assert (run.device, run.overrides) == (column, {"compile": False, **overrides})
    house.close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"gpus": 3}, "power of two"),
        ({"gpus": 4}, "There is no cuda:2 and no cuda:3"),
        ({"gpus": 2, "devices": ["cpu"]}, "gpus or devices, not both"),
        ({"devices": ["cpu"] * 8}, "do not divide among 8 devices"),
        ({"devices": ["cuda:0", "cpu"]}, "different GPUs"),
    ],
)
def test_a_resume_on_devices_that_will_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict, words: str
) -> None:
    monkeypatch.setattr(machine_devices, "discover", lambda: cards(2))
    house = House(tmp_path)
    run_id = paused(house)
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        ask = ResumeRequest.model_validate({"overrides": overrides})
        with pytest.raises(Invalid, match=words) as refusal:
            runs.resume(session, run, ask, now=1.0)
        assert refusal.value.errors[0]["pointer"].startswith("/overrides/")
    house.close()


# --- what is left of a gang -----------------------------------------------------------------------


def test_an_xid_on_any_card_of_the_gang_is_named() -> None:
    lines = ["NVRM: Xid (PCI:0000:02:00): 79, pid=77, GPU has fallen off the bus."]
    both = {"0000:01:00": "cuda:0", "0000:02:00": "cuda:1"}
    found = kernel_log.worst_xid_of(lines, both, pid=5)
    assert str(found).endswith("on cuda:1")
    assert kernel_log.worst_xid_of(lines, {"0000:01:00": "cuda:0"}, pid=5) is None


def test_memory_and_power_are_summed_and_split() -> None:
    each = {"rank": 0, "host": "h", "device": "cuda:0", "pid": 1, "vram_reserved_bytes": 5}
    other = {**each, "rank": 1, "device": "cuda:1", "vram_reserved_bytes": 7}
    view = {"vram_reserved_bytes": 5, "ranks": [each, other]}
    assert rank_rows.vram(view)["reserved"] == 12
    assert rank_rows.vram({**view, "ranks": ()})["reserved"] == 5
    assert (
        rank_rows.vram({**view, "ranks": [each, {**other, "vram_reserved_bytes": None}]})[
            "reserved"
        ]
        is None
    )


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
    assert f"batch.tokens of at least {plan.exchange.enough_tokens:,}" in warning
    larger = {"tokens": plan.exchange.enough_tokens}
    enough = make_plan(resolve({**D12, "gpus": 8, "batch": larger}), fast)
    assert enough.exchange is not None
    assert enough.exchange.share_of_step < 0.3
