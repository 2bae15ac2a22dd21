"""Power limits and temperature ceilings: held while runs use a device, put back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.database import tables
from server.database.db import Database
from server.domain import policies, runs
from server.machine import devices, power
from server.machine.devices import Device
from server.machine.power import PowerDenied, PowerState
from server.scheduling import decide as scheduling
from server.scheduling.decide import Place, SchedulingVerdict, WaitCause, Workload
from server.scheduling.heat import COOL_SECONDS, HOT_SECONDS, Heat, rule_at
from server.scheduling.inputs import SchedulerInputsThread
from server.scheduling.power_limits import PowerLimits
from server.schemas.policies import PlacePolicyView, PowerRule
from tests.server import rows
from tests.server.asgi import Asgi

CARD = Device("cuda:0", "a card", 10**10, uuid="GPU-1")


class Card:
    """What NVML holds: a limit that only root may set, a temperature."""

    def __init__(self, limit: float = 215.0, celsius: float = 60.0) -> None:
        self.limit, self.celsius, self.is_root = limit, celsius, True

    def read(self, uuid: str) -> PowerState:
        return PowerState(self.limit, 100.0, 215.0, self.celsius)

    def set_limit(self, device: str, uuid: str, watts: float) -> None:
        if not self.is_root:
            raise PowerDenied(f"type  sudo nvidia-smi -i {uuid} -pl {watts:g}")
        self.limit = watts


@pytest.fixture
def card() -> Card:
    return Card()


def hold(limits: PowerLimits, watts: float | None = None) -> None:
    limits.hold([CARD], {} if watts is None else {"cuda:0": watts})


class TestLimits:
    def test_a_limit_is_held_and_put_back(self, db: Database, card: Card) -> None:
        limits = PowerLimits(db, card)
        hold(limits, watts=150.0)
        assert card.limit == 150.0
        hold(limits, watts=120.0)  # another rule: the limit of before is still the first one
        assert card.limit == 120.0
        hold(limits)
        assert card.limit == 215.0
        with db.read() as session:
            assert session.get(tables.PowerLimit, "cuda:0") is None

    def test_a_daemon_that_was_killed_puts_it_back_at_its_next_start(
        self, db: Database, card: Card
    ) -> None:
        hold(PowerLimits(db, card), watts=150.0)
        hold(PowerLimits(db, card))  # another daemon, which knows the rows alone
        assert card.limit == 215.0

    def test_a_limit_that_somebody_else_set_is_theirs(self, db: Database, card: Card) -> None:
        limits = PowerLimits(db, card)
        hold(limits, watts=150.0)
        card.limit = 180.0
        hold(limits)
        assert card.limit == 180.0
        hold(limits)
        assert card.limit == 180.0

    def test_without_permission_the_line_to_type_is_a_problem_and_nothing_is_kept(
        self, db: Database, card: Card
    ) -> None:
        limits, card.is_root = PowerLimits(db, card), False
        hold(limits, watts=150.0)
        assert limits.problems == {"cuda:0": "type  sudo nvidia-smi -i GPU-1 -pl 150"}
        with db.read() as session:
            assert session.get(tables.PowerLimit, "cuda:0") is None
        card.limit = 150.0  # typed
        hold(limits, watts=150.0)
        assert limits.problems == {}

    def test_a_limit_that_cannot_be_put_back_is_tried_again(self, db: Database, card: Card) -> None:
        limits = PowerLimits(db, card)
        hold(limits, watts=150.0)
        card.is_root = False
        hold(limits)
        assert "-pl 215" in limits.problems["cuda:0"]
        card.is_root = True
        hold(limits)
        assert card.limit == 215.0


class TestHeat:
    def test_a_peak_is_not_heat_and_a_dip_is_not_cool(self) -> None:
        heat = Heat()

        def look(celsius: float | None, at: float) -> bool:
            return heat.update("cuda:0", celsius, 80.0, at)

        assert not look(85, 0)
        assert not look(79, 5)
        assert not look(80, 6)
        assert not look(81, 6 + HOT_SECONDS - 1)
        assert look(81, 6 + HOT_SECONDS)
        assert look(75, 30)  # cooler, but not by enough
        assert look(70, 40)
        assert look(72, 50)  # warm again: the time begins anew
        assert look(70, 60)
        assert look(None, 60 + COOL_SECONDS - 1)
        assert not look(69, 60 + COOL_SECONDS)

    def test_without_a_ceiling_nothing_is_too_hot(self) -> None:
        heat = Heat()
        heat.update("cuda:0", 99, 80.0, 0)
        assert heat.update("cuda:0", 99, 80.0, HOT_SECONDS)
        assert not heat.update("cuda:0", 99, None, HOT_SECONDS + 1)

    def test_the_first_rule_whose_hours_are_open_holds(self) -> None:
        night = {
            "power_limit_watts": 120.0,
            "hours": [{"from": "22:00", "to": "07:00", "zone": "UTC"}],
        }
        column = [PowerRule.model_validate(r).model_dump(mode="json") for r in (night, {})]
        at = 1_800_000_000 // 86_400 * 86_400
        midnight, noon = rule_at(column, at), rule_at(column, at + 43_200)
        assert midnight is not None
        assert noon is not None
        assert (midnight.power_limit_watts, noon.power_limit_watts) == (120.0, None)
        assert rule_at(None, at) is None

    def test_a_run_leaves_a_device_that_is_too_hot_and_none_starts_there(self) -> None:
        hot = Place("cuda:0", too_hot="85 °C, ceiling 80 °C")
        verdict = SchedulingVerdict(WaitCause.heat, ("85 °C, ceiling 80 °C",))
        running = Workload("a", ("cuda:0",), (0.0,), holds=("cuda:0",), is_preemptible=False)
        assert scheduling.decide([hot], [running], 0.0).yields == {"a": verdict}
        waiting = Workload("b", ("cuda:0",), (0.0,))
        found = scheduling.decide([hot], [waiting], 0.0)
        assert (found.grants, found.waits) == ({}, {"b": verdict})
        cool = Place("cuda:1")
        either = Workload("c", ("cuda:0", "cuda:1"), (0.0,))
        assert scheduling.decide([hot, cool], [either], 0.0).grants == {"c": ("cuda:1",)}


class TestThread:
    @staticmethod
    def runs_on_the_card(db: Database) -> int:
        with db.write() as session:
            run = runs.create(session, {"name": "demo", "horizon": {"steps": 5}}, now=1.0)
            attempt = rows.attempt(
                run_id=run.id, number=1, device="cuda:0", phase_index=0, token="t", created_at=1.0
            )
            session.add(attempt)
            session.flush()
            return attempt.execution_id

    def test_the_limit_holds_while_something_of_ours_runs(self, db: Database, card: Card) -> None:
        rule = PowerRule(power_limit_watts=140.0, ceiling_celsius=80.0)
        with db.write() as session:
            policies.put(session, "cuda:0", PlacePolicyView(power=[rule]))
        thread = SchedulerInputsThread(db, [CARD], programs=dict, control=card)
        thread.poll(0.0)
        assert card.limit == 215.0  # nothing runs
        execution = self.runs_on_the_card(db)
        thread.poll(3.0)
        assert card.limit == 140.0
        card.celsius = 84.0
        thread.poll(6.0)
        thread.poll(6.0 + HOT_SECONDS)
        assert thread.seen().hot == {"cuda:0": "84 °C, ceiling 80 °C"}
        with db.write() as session:
            session.get_one(tables.Execution, execution).state = "ended"
        thread.poll(9.0)
        assert card.limit == 215.0

    def test_a_clean_stop_puts_the_limit_back(self, db: Database, card: Card) -> None:
        with db.write() as session:
            rule = PowerRule(power_limit_watts=140.0)
            policies.put(session, "cuda:0", PlacePolicyView(power=[rule]))
        self.runs_on_the_card(db)
        thread = SchedulerInputsThread(db, [CARD], programs=dict, control=card)
        thread.start()
        assert card.limit == 140.0
        thread.stop()
        assert card.limit == 215.0

    def test_what_keeps_a_limit_from_being_set_is_reported(self, db: Database, card: Card) -> None:
        with db.write() as session:
            rule = PowerRule(power_limit_watts=140.0)
            policies.put(session, "cuda:0", PlacePolicyView(power=[rule]))
        self.runs_on_the_card(db)
        card.is_root = False
        thread = SchedulerInputsThread(db, [CARD], programs=dict, control=card)
        thread.poll(0.0)
        assert "sudo nvidia-smi -i GPU-1 -pl 140" in thread.problems()[0]
        assert "cuda:0" in thread.seen().power_problems


class TestNvml:
    @pytest.fixture
    def nvml(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A driver of one card that only root may limit."""

        class NVMLError(Exception):
            def __init__(self, value: int) -> None:
                super().__init__(f"error {value}")
                self.value = value

        driver = SimpleNamespace(NVMLError=NVMLError, NVML_ERROR_NO_PERMISSION=4, refuses=4, set=[])

        def set_limit(handle: object, milliwatts: int) -> None:
            if driver.refuses:
                raise NVMLError(driver.refuses)
            driver.set.append(milliwatts)

        driver.nvmlInit = driver.nvmlShutdown = lambda: None
        driver.nvmlDeviceGetUUID = lambda handle: b"GPU-1"
        driver.nvmlDeviceGetPowerManagementLimit = lambda handle: 215_000
        driver.nvmlDeviceGetPowerManagementLimitConstraints = lambda handle: [100_000, 215_000]
        driver.nvmlDeviceGetTemperature = lambda handle, sensor: 61
        driver.nvmlDeviceSetPowerManagementLimit = set_limit
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        monkeypatch.setattr(devices, "handles", lambda nvml: ["gpu"])
        return driver

    def test_a_state_is_read_in_watts(self, nvml: Any) -> None:
        assert power.read("GPU-1") == PowerState(215.0, 100.0, 215.0, 61.0)
        assert power.read("GPU-2") == PowerState()

    def test_root_sets_the_limit(self, nvml: Any) -> None:
        nvml.refuses = 0
        power.set_limit("cuda:0", "GPU-1", 150.0)
        assert nvml.set == [150_000]
        assert power.why_not("cuda:0", "GPU-1", 150.0) is None
        assert nvml.set[-1] == 215_000  # asking changes nothing

    def test_others_are_given_the_line_to_type(self, nvml: Any) -> None:
        with pytest.raises(PowerDenied, match="sudo nvidia-smi -i GPU-1 -pl 150"):
            power.set_limit("cuda:0", "GPU-1", 150.0)
        assert str(power.why_not("cuda:0", "GPU-1", 150.0)).endswith("-i GPU-1 -pl 150")
        assert power.why_not("cuda:0", "GPU-1", 215.0) is None  # it is so already

    def test_a_limit_beyond_the_card_names_its_range(self, nvml: Any) -> None:
        assert "100 to 215 W" in str(power.why_not("cuda:0", "GPU-1", 50.0))

    def test_without_nvml_there_is_nothing_to_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert power.read("GPU-1") == PowerState()
        with pytest.raises(PowerDenied, match="not available through NVML"):
            power.set_limit("cuda:0", "GPU-1", 150.0)


class TestPolicy:
    @pytest.fixture
    def asgi(self, tmp_path: Path) -> Iterator[Asgi]:
        made = Asgi(tmp_path / "data")
        yield made
        made.close()

    def test_the_answer_has_the_line_to_type(
        self, asgi: Asgi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "discover", lambda: (CARD,))
        monkeypatch.setattr(power, "why_not", lambda *of: f"type  {of}")
        body = {"power": [{"power_limit_watts": 150, "ceiling_celsius": 80}]}
        answer = asgi.request("PUT", "/v1/devices/cuda:0/policy", json=body).json()
        assert answer["problems"] == ["type  ('cuda:0', 'GPU-1', 150.0)"]
        assert answer["power"][0]["ceiling_celsius"] == 80
        assert asgi.get("/v1/devices/cuda:0/policy").json() == answer

    def test_neighbours_of_a_device_whose_programs_are_unknown_are_a_problem_in_words(
        self, asgi: Asgi
    ) -> None:
        body = {"neighbours": {"yield_to": ["steam"]}}
        answer = asgi.request("PUT", "/v1/devices/cpu/policy", json=body).json()
        assert answer["neighbours"]["yield_to"] == ["steam"]
        assert "programs are detected only on NVIDIA GPUs" in answer["problems"][0]

    def test_a_device_without_power_figures_takes_no_rule(self, asgi: Asgi) -> None:
        body = {"power": [{"power_limit_watts": 150}]}
        answer = asgi.request("PUT", "/v1/devices/cpu/policy", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/power")
