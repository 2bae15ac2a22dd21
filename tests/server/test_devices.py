"""Which GPUs the daemon finds, whatever NVIDIA's library can or cannot say about them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from server.machine import devices, readings
from server.machine.devices import Device
from tests.server.asgi import Asgi
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import resolve


class NVMLError(Exception):
    pass


@dataclass
class Card:
    """A GPU, or one partition of it. lacks: the questions it answers with 'Not Supported'."""

    uuid: str
    name: str = "NVIDIA GeForce RTX 4070"
    memory: int = 12 << 30
    bus: str = "00000000:01:00.0"
    lacks: tuple[str, ...] = ()
    parts: list[Card] = field(default_factory=list)


class Nvml:
    """NVIDIA's library with these cards. working: false where the driver does not answer."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *cards: Card) -> None:
        self.cards, self.working, self.num_inits = cards, True, 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *args: self._answer(name.removeprefix("nvml"), *args)

    def _answer(self, question: str, *args: Any) -> Any:
        if not self.working:
            raise NVMLError("Driver Not Loaded")
        short = question.removeprefix("DeviceGet")
        card = next((a for a in args if isinstance(a, Card)), Card("none"))
        if short in card.lacks:
            raise NVMLError("Not Supported")
        match short:
            case "Init":
                self.num_inits += 1
                return None
            case "Shutdown":
                return None
            case "Count":
                return len(self.cards)
            case "HandleByIndex":
                return self.cards[args[0]]
            case "MigMode" if card.parts:
                return [1, 1]
            case "MaxMigDeviceCount":
                return len(card.parts)
            case "MigDeviceHandleByIndex":
                return card.parts[args[1]]
            case "Name":
                return card.name
            case "UUID":
                return card.uuid
            case "MemoryInfo":
                return SimpleNamespace(total=card.memory, used=1 << 30)
            case "CudaComputeCapability":
                return (8, 9)
            case "PciInfo":
                return SimpleNamespace(busId=card.bus)
            case "Temperature":
                return 66
            case "PowerUsage":
                return 198_000
            case "PowerManagementLimit":
                return 215_000
            case "UtilizationRates":
                return SimpleNamespace(gpu=97)
        raise NVMLError("Not Supported")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.clear_cache()
    yield
    monkeypatch.undo()
    devices.clear_cache()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """machine(*cards): a machine with NVIDIA's driver and these cards; its library."""

    def make(*cards: Card) -> Nvml:
        nvml = Nvml(*cards)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(devices, "sign_of_gpu", lambda: "/dev/nvidia0")
        return nvml

    return make


A, B = Card("GPU-8932f937-aa"), Card("GPU-1111-bb", "Tesla T4", 15 << 30, "00000000:82:00.0")


def names() -> list[tuple[str, str]]:
    return [(d.device, d.name) for d in devices.discover() if d.device != "cpu"]


def test_a_card_is_described(machine):
    machine(A)
    assert devices.discover()[0] == Device("cuda:0", A.name, 12 << 30, A.uuid, (8, 9), "0000:01:00")


@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        ("1", [B]),
        ("1,0", [B, A]),
        ("GPU-8932f937-aa", [A]),
        ("GPU-1111", [B]),  # the beginning is enough
        ("0,7,1", [A]),  # CUDA stops at the first that it does not know
        ("-1", []),
        ("", []),
    ],
)
def test_the_devices_are_those_that_cuda_shows(machine, monkeypatch, visible, shown):
    machine(A, B)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names() == [(f"cuda:{i}", card.name) for i, card in enumerate(shown)]


@pytest.mark.parametrize("lacks", ["MemoryInfo", "CudaComputeCapability", "PciInfo", "Name"])
def test_a_card_that_cannot_say_something_is_a_device_all_the_same(machine, lacks):
    machine(Card("GPU-1", lacks=(lacks,)), B)
    assert [d.device for d in devices.discover()] == ["cuda:0", "cuda:1", "cpu"]
    assert devices.resolve("auto") == "cuda:0"


def test_a_partition_has_its_own_memory_and_uuid(machine, monkeypatch):
    parts = [Card("MIG-1", "H200 MIG 1g", 16 << 30), Card("MIG-2", "H200 MIG 2g", 32 << 30)]
    machine(Card("GPU-1", "H200", 140 << 30, parts=parts))
    assert devices.discover()[0].memory_bytes == 16 << 30
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-2")
    devices.clear_cache()
    assert [(d.uuid, d.memory_bytes) for d in devices.discover()[:-1]] == [("MIG-2", 32 << 30)]
    assert readings.Readings().of("MIG-2").memory_used_bytes == 1 << 30


def test_a_driver_that_answers_later_is_asked_again(machine, monkeypatch):
    nvml = machine(A)
    nvml.working = False
    assert [d.device for d in devices.discover()] == ["cpu"]
    assert "Driver Not Loaded" in (devices.unusable_gpu() or "")
    nvml.working = True
    assert [d.device for d in devices.discover()] == ["cpu"], "not at every question"
    monkeypatch.setattr(devices, "RETRY_SECONDS", 0.0)
    there = devices.PresentDevices()
    assert [d.device for d in there] == ["cuda:0", "cpu"]
    assert devices.unusable_gpu() is None


def test_a_plan_for_the_cpu_of_a_machine_with_a_gpu_warns():
    spec = resolve({"name": "a", "preset": "rtx4070-d12"})
    said = make_plan(spec, PlanContext(device_type="cpu", gpu_unusable="no answer")).warnings
    assert any("would train on the CPU" in line and "no answer" in line for line in said)
    asked = resolve({"name": "a", "preset": "rtx4070-d12", "device": "cpu"})
    said = make_plan(asked, PlanContext(device_type="cpu", gpu_unusable="no answer")).warnings
    assert not any("would train on the CPU" in line for line in said)


def test_a_plan_for_a_card_without_bf16_names_fp16():
    spec = resolve({"name": "a", "preset": "rtx4070-d12"})
    for capability, warned in (((7, 5), True), ((8, 9), False), (None, False)):
        said = make_plan(spec, PlanContext(capability=capability)).warnings
        assert any("numerics.precision fp16" in line for line in said) == warned


def test_each_reading_is_on_its_own(machine):
    machine(Card("GPU-1", lacks=("PowerUsage", "MemoryInfo")))
    found = readings.Readings().of("GPU-1")
    assert (found.power_watts, found.temperature_celsius) == (None, 66.0)
    assert (found.memory_used_bytes, found.utilisation) == (None, 0.97)


def test_the_queue_reads_the_cards_no_more_often_than_once_a_second(
    machine, monkeypatch, asgi: Asgi
):
    nvml = machine(A, B)
    for _ in range(2):
        limits = {
            p["device"]: p["power_limit_watts"] for p in asgi.get("/v1/queue").json()["places"]
        }
        assert limits == {"cuda:0": 215.0, "cuda:1": 215.0, "cpu": None}
    monkeypatch.setattr(readings, "FRESH_SECONDS", float("inf"))
    before = nvml.num_inits
    for _ in range(3):
        assert asgi.get("/v1/queue").json()["places"][0]["power_limit_watts"] == 215.0
    assert nvml.num_inits == before
