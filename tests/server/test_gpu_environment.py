"""What a trainer on a GPU inherits from the daemon, and what is said of a GPU without use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.launch import process
from server.machine import devices
from server.queries import run_views
from tests.server import rows
from tests.server.asgi import Asgi
from tests.server.test_devices import Card, Nvml

VARIABLES = (
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
)  # fmt: skip


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_compilers_keep_what_they_made_under_the_data_directory(tmp_path: Path) -> None:
    """Their own default is lost at a reboot or with a container, and the next start is cold."""
    given = process.environment("token", compiled=tmp_path)
    assert given["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert given["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_a_cache_that_the_user_chose_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert process.environment("token", compiled=tmp_path)["TRITON_CACHE_DIR"] == "/elsewhere"


def test_device_memory_grows_in_segments_unless_the_user_or_wsl_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "WSL_GPU", Path("/nowhere"))
    assert process.environment("token")["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setattr(process, "WSL_GPU", Path("/"))
    assert "PYTORCH_ALLOC_CONF" not in process.environment("token")
    monkeypatch.setattr(process, "WSL_GPU", Path("/nowhere"))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert "PYTORCH_ALLOC_CONF" not in process.environment("token")


@pytest.fixture
def card(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asgi]:
    """A run whose trainer reports 600 MiB, on a card of which 1 GiB is used."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(Card("GPU-1")))
    devices.clear_cache()
    run_id = asgi.create()["id"]
    with asgi.db.write() as session:
        session.add(
            rows.attempt(run_id=run_id, number=1, phase_index=0, token="t", created_at=1.0,
                           device="cuda:0", handle={"pid": 4711})
        )  # fmt: skip
        run_views.get_run(session, "demo").progress = {"vram_reserved_bytes": 600 << 20}
    yield asgi
    monkeypatch.undo()
    devices.clear_cache()


def owners(asgi: Asgi) -> dict[str, int]:
    return asgi.get("/v1/system").json()["devices"][0]["memory_by_owner"]


@pytest.mark.parametrize("named", [{}, {990_011: 700 << 20}])
def test_in_a_container_a_run_holds_what_it_reports(
    card: Asgi, monkeypatch: pytest.MonkeyPatch, named: dict[int, int]
) -> None:
    """NVIDIA's library names processes by the host's numbers there, or none."""
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in named.items()]
    monkeypatch.setattr(Nvml, "nvmlDeviceGetComputeRunningProcesses", lambda *_: processes, False)
    assert owners(card) == {"demo": 600 << 20, "others": 424 << 20}


def test_where_processes_are_named_each_holds_what_is_said_of_it(
    card: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {4711: 700 << 20, 990_011: 100 << 20}
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in named.items()]
    monkeypatch.setattr(Nvml, "nvmlDeviceGetComputeRunningProcesses", lambda *_: processes, False)
    assert owners(card) == {"demo": 700 << 20, "pid 990011": 100 << 20}


def test_a_process_named_without_its_memory_is_counted_as_others(
    card: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some drivers (WSL) name processes and say nothing of their memory."""
    processes = [SimpleNamespace(pid=990_011, usedGpuMemory=None)]
    monkeypatch.setattr(Nvml, "nvmlDeviceGetComputeRunningProcesses", lambda *_: processes, False)
    assert owners(card)["demo"] == 600 << 20


def test_the_system_warns_of_a_gpu_that_runs_cannot_use(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = Nvml(Card("GPU-1"))
    nvml.working = False
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(devices, "sign_of_gpu", lambda: "/dev/nvidia0")
    devices.clear_cache()
    try:
        said = asgi.get("/v1/system").json()["warnings"]
    finally:
        monkeypatch.undo()
        devices.clear_cache()
    assert any("trained on the CPU" in line and "Driver Not Loaded" in line for line in said)
