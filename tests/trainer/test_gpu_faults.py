"""What a driver, a compiler or a host may refuse, and what the trainer then does and says."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.contract.gpu_signs import sign_of_gpu
from trainer.contract.reasons import Reason
from trainer.runtime import autotune, compiler, device
from trainer.runtime.device import NoSuchDevice
from trainer.runtime.process import explain

CUDA = torch.device("cuda", 0)


# --- how an error is named -----------------------------------------------------------------------


class AcceleratorError(RuntimeError):
    """torch's for what the driver reports."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CUDA error: out of memory", Reason.out_of_memory),
        (
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
            Reason.out_of_memory,
        ),
        ("CUDA error: the launch timed out and was terminated", Reason.gpu_lost),
        ("CUDA error: misaligned address", Reason.gpu_lost),
        ("CUDA error: an illegal instruction was encountered", Reason.gpu_lost),
        ("CUDA error: unknown error", Reason.gpu_lost),
        ("CUDA error: no CUDA-capable device is detected", Reason.gpu_lost),
        ("CUDA error: an illegal memory access was encountered", Reason.gpu_lost),
        ("CUDA error: invalid argument", Reason.crashed),
    ],
)
def test_the_drivers_errors_have_their_reasons(text: str, reason: Reason) -> None:
    assert explain(AcceleratorError(text))[0] == reason


def test_a_program_that_speaks_of_memory_is_not_out_of_it() -> None:
    assert explain(ValueError("CUDA error: out of memory"))[0] == Reason.crashed


# --- a device that torch cannot use --------------------------------------------------------------


def nvml(driver: str, cuda: int) -> Any:
    return SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: driver,
        nvmlSystemGetCudaDriverVersion=lambda: cuda,
    )


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (nvml("535.10", 12020), "driver 535.10 supports CUDA 12.2 at most: update the driver"),
        (nvml("580.00", 13000), "the driver is 580.00; CUDA_VISIBLE_DEVICES is '3'"),
        (None, "NVIDIA's driver does not answer"),
    ],
)
def test_a_device_that_is_not_there_names_driver_and_build(
    monkeypatch: pytest.MonkeyPatch, library: Any, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(NoSuchDevice, match="torch sees 0 CUDA devices") as found:
        device.resolve("cuda:0")
    assert words in str(found.value)
    assert "built for CUDA 13.0" in str(found.value) or library is None


def test_a_build_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(NoSuchDevice, match="a build without CUDA; install the CUDA build"):
        device.resolve("cuda")


def test_the_files_of_a_driver_are_signs_of_a_gpu(tmp_path: Path) -> None:
    there = tmp_path / "dxg"
    assert sign_of_gpu((str(there),)) is None
    there.touch()
    assert sign_of_gpu(("/nowhere", str(there))) == str(there)


def test_a_sensor_that_is_missing_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def no_power(_: object) -> int:
        raise NVMLError("Not Supported")

    library = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetPowerUsage=no_power,
        nvmlDeviceGetTemperature=lambda *_: 71,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    found = device.Sensors(torch.device("cpu"), object()).read()
    assert (found["power_watts"], found["temperature_celsius"]) == (None, 71.0)


# --- compilers and races -------------------------------------------------------------------------


def test_what_triton_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: set[str] = set()
    monkeypatch.setattr(
        compiler.importlib.util, "find_spec", lambda name: name if name in found else None
    )
    monkeypatch.setattr(shutil, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(compiler.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.delenv("CC", raising=False)
    assert compiler.missing(CUDA) == "triton is not installed"
    found.add("triton")
    assert "C compiler" in (compiler.missing(CUDA) or "")
    found.add("gcc")
    assert "Python.h is missing" in (compiler.missing(CUDA) or "")
    (tmp_path / "Python.h").touch()
    assert compiler.missing(CUDA) is None


def test_a_full_card_decides_no_race() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        autotune.attempt(full)


def test_determinism_means_error_mode_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's attention backward looks for error mode; "warn" leaves it as it is."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", asked.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fill = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    try:
        device.configure(CUDA, threads=None, deterministic=True)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    assert asked == ["error"]


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_backward_that_cannot_be_compiled_is_found_where_one_can_fall_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled as late as autograd needs it, its error would end the run."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    codegen = GraphLowering.codegen

    def broken(graph: Any) -> Any:
        if graph.is_backward:
            raise RuntimeError("no kernel for this")
        return codegen(graph)

    monkeypatch.setattr(GraphLowering, "codegen", broken)
    compile = compiler.Compiler(True, torch.device("cpu"))
    x = torch.linspace(0, 1, 97, requires_grad=True)
    with config.patch(force_disable_caches=True):
        y = compile(lambda t: t.sin().exp() * 3)(x)
        y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (x.sin().exp() * x.cos() * 3).detach())
    assert "no kernel for this" in (compile.reason or "")
