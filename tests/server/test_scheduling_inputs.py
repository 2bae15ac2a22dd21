"""Prices from a file or URL, programs on GPUs, and the queue and policies over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from server.database.db import Database
from server.domain import policies
from server.machine import gpu_programs
from server.machine.devices import Device
from server.machine.gpu_programs import GpuProgram
from server.scheduling import inputs, tariff
from server.scheduling.inputs import SchedulerInputsThread
from server.scheduling.tariff import Tariff
from server.schemas.policies import NeighbourRule, PlacePolicyView
from tests.server.asgi import Asgi

CARD = Device("cuda:0", "a card", 10**10, uuid="GPU-1")
PRICES = [{"start": "2026-11-28T12:00Z", "end": "2026-11-28T13:00Z", "price": 0.25, "unit": "EUR"}]


class TestTariff:
    def test_prices_come_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "tariff.json"
        file.write_text(json.dumps(PRICES))
        read = Tariff(str(file))
        read.refresh(0.0)
        assert [(p.per_kwh, p.stretch.end - p.stretch.begin) for p in read.prices] == [(0.25, 3600)]
        assert read.problem is None

    def test_what_was_read_stays_while_the_source_cannot_be_read(self, tmp_path: Path) -> None:
        file = tmp_path / "tariff.json"
        file.write_text(json.dumps(PRICES))
        read = Tariff(str(file))
        read.refresh(0.0)
        file.write_text("no list")
        read.refresh(tariff.REFRESH_SECONDS)
        assert len(read.prices) == 1
        assert read.problem is not None
        assert str(file) in read.problem

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "JSON"),
            ('{"a": 1}', "array"),
            ('[{"start": "2026-11-28T12:00Z"}]', "0.end"),
            (
                '[{"start": "2026-11-28T12:00Z", "end": "2026-11-28T13:00Z", "price": "dear"}]',
                "price",
            ),
            ('[{"start": "2026-11-28T12:00Z", "end": "2026-11-28T11:00Z", "price": 1}]', "before"),
        ],
    )
    def test_a_source_that_is_no_tariff_is_named(
        self, tmp_path: Path, text: str, said: str
    ) -> None:
        file = tmp_path / "tariff.json"
        file.write_text(text)
        read = Tariff(str(file))
        read.refresh(0.0)
        assert read.problem is not None
        assert said in read.problem

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        read = Tariff(str(tmp_path / "nothing.json"))
        read.refresh(0.0)
        assert read.problem is not None


class TestPrograms:
    @pytest.fixture
    def nvml(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A driver with one GPU, used by this test's own process and by init."""

        class NVMLError(Exception):
            pass

        def uses(pid: int, size: int | None) -> SimpleNamespace:
            return SimpleNamespace(pid=pid, usedGpuMemory=size)

        me = psutil.Process().pid
        driver = SimpleNamespace(
            NVMLError=NVMLError,
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetUUID=lambda handle: "GPU-1",
            nvmlDeviceGetComputeRunningProcesses=lambda handle: [uses(me, 5)],
            nvmlDeviceGetGraphicsRunningProcesses=lambda handle: [uses(me, 7), uses(2**22, 1)],
        )
        monkeypatch.setitem(__import__("sys").modules, "pynvml", driver)
        monkeypatch.setattr(gpu_programs.devices, "handles", lambda nvml: ["gpu"])
        return driver

    def test_compute_and_graphics_are_counted_once_a_process(self, nvml: Any) -> None:
        found = gpu_programs.programs(lambda process: False)
        assert found == {"GPU-1": [GpuProgram(psutil.Process().pid, psutil.Process().name(), 7)]}

    def test_our_own_are_left_out(self, nvml: Any) -> None:
        assert gpu_programs.programs(lambda process: True) == {"GPU-1": []}

    def test_a_driver_that_names_no_processes_says_so(self, nvml: Any) -> None:
        def unsupported(handle: object) -> None:
            raise nvml.NVMLError("not supported")

        nvml.nvmlDeviceGetComputeRunningProcesses = unsupported
        nvml.nvmlDeviceGetGraphicsRunningProcesses = unsupported
        assert gpu_programs.programs(lambda process: False) is None


class TestThread:
    @staticmethod
    def set_policy(db: Database, policy: PlacePolicyView) -> None:
        with db.write() as session:
            policies.put(session, "cuda:0", policy)

    def test_a_neighbour_is_seen_where_the_policy_asks_for_it(self, db: Database) -> None:
        found = {"GPU-1": [GpuProgram(7, "game", 10**9)]}
        around = SchedulerInputsThread(db, (CARD,), programs=lambda: found)
        around.poll(0.0)
        around.poll(10.0)
        assert around.seen().neighbours == {}
        self.set_policy(db, PlacePolicyView(neighbours=NeighbourRule()))
        around.poll(20.0)
        around.poll(30.0)
        assert around.seen().neighbours == {"cuda:0": "game"}
        self.set_policy(db, PlacePolicyView())
        around.poll(31.0)
        assert around.seen().neighbours == {}

    def test_no_driver_is_asked_where_no_policy_does(self, db: Database) -> None:
        def never() -> None:
            raise AssertionError("the driver was asked")

        SchedulerInputsThread(db, (CARD,), programs=never).poll(0.0)

    def test_a_driver_that_cannot_tell_is_a_problem_in_words(self, db: Database) -> None:
        self.set_policy(db, PlacePolicyView(neighbours=NeighbourRule()))
        around = SchedulerInputsThread(db, (CARD,), programs=lambda: None)
        around.poll(0.0)
        assert "does not list the processes" in around.problems()[0]

    def test_processes_of_ours_carry_a_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = psutil.Process()
        assert not inputs._is_ours(mine)
        monkeypatch.setattr(psutil.Process, "environ", lambda self: {inputs.TOKEN_VARIABLE: "x"})
        assert inputs._is_ours(mine)


class TestHttp:
    def test_the_queue_says_who_waits_and_why(self, asgi: Asgi) -> None:
        asgi.create("later")
        asgi.create("first", priority=5)
        asgi.create("shut", hours=[])
        found = asgi.get("/v1/queue").json()
        assert [(e["position"], e["name"]) for e in found["waiting"]] == [
            (1, "first"), (2, "later"), (3, "shut"),
        ]  # fmt: skip
        assert found["num_waiting"] == 3
        assert found["waiting"][2]["reason"] == "outside_hours"
        assert {p["device"] for p in found["places"]} >= {"cpu"}

    def test_a_policy_is_replaced_as_a_whole(self, asgi: Asgi) -> None:
        asked = {"hours": [{"from": "22:00", "to": "07:00"}]}
        put = asgi.request("PUT", "/v1/devices/cpu/policy", json=asked).json()
        assert put["hours"][0]["from"] == "22:00"
        assert asgi.get("/v1/devices/cpu/policy").json() == put
        assert asgi.request("PUT", "/v1/devices/cpu/policy", json={}).json() == {
            "hours": None,
            "neighbours": None,
            "power": None,
            "problems": [],
        }

    def test_a_device_that_is_not_there_has_no_policy(self, asgi: Asgi) -> None:
        assert asgi.get("/v1/devices/cuda:7/policy").status_code == 422

    def test_a_price_without_a_tariff_is_refused(self, asgi: Asgi) -> None:
        asgi.create("demo")
        for answer in (
            asgi.request("PUT", "/v1/devices/cpu/policy", json={"hours": [{"price_below": 0.1}]}),
            asgi.request("PATCH", "/v1/runs/demo", json={"hours": [{"price_below": 0.1}]}),
            asgi.post("/v1/runs", {"name": "x", "hours": [{"price_below": 0.1}]}),
        ):
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"] == "/hours/0/price_below"

    def test_priority_and_hours_are_patched(self, asgi: Asgi) -> None:
        asgi.create("demo")
        asked = {"priority": 7, "hours": [{"days": ["sat"]}], "preemptible": False}
        spec = asgi.request("PATCH", "/v1/runs/demo", json=asked).json()["spec"]
        assert (spec["priority"], spec["hours"][0]["days"], spec["preemptible"]) == (
            7, ["sat"], False,
        )  # fmt: skip
        assert (
            asgi.request("PATCH", "/v1/runs/demo", json={"hours": None}).json()["spec"]["hours"]
            is None
        )
