"""Devices: selection, setup, peak throughput, power readings, fingerprint."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeVar

import torch

from trainer.contract.peaks import Peak, fp8_missing, known_peak

SAMPLE_SECONDS = 1.0
T = TypeVar("T")


class NoSuchDevice(Exception):
    """The requested device is not on this machine."""


def resolve(name: str) -> torch.device:
    """The torch device for 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'. Raises NoSuchDevice."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise NoSuchDevice(_why_missing(name, count))
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise NoSuchDevice("device mps is not available")
    return device


def _why_missing(name: str, count: int) -> str:
    """Why torch cannot use a CUDA device, from what torch and the driver report."""
    if torch.version.cuda is None:
        return (
            f"device {name} cannot be used: torch {torch.__version__} is a build without CUDA; "
            "install the CUDA build (pytorch.org, Get started)"
        )
    driver, newest = _driver()
    seen = f"device {name} is not available: torch sees {count} CUDA devices; "
    if driver is None:
        return f"{seen}NVIDIA's driver does not answer: see what nvidia-smi prints"
    if newest is not None and newest < _numbers(torch.version.cuda)[:1]:
        return (
            f"{seen}torch is built for CUDA {torch.version.cuda}, driver {driver} supports "
            f"CUDA {'.'.join(map(str, newest))} at most: update the driver, or install a torch "
            "built for that version"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limits = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"{seen}torch is built for CUDA {torch.version.cuda}, the driver is {driver}{limits}"


def _driver() -> tuple[str | None, tuple[int, ...] | None]:
    """The driver's version and the newest CUDA it supports; None where NVML does not answer."""
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
    except Exception:  # no library, no driver, no permission
        return None, None
    return driver, (cuda // 1000, cuda % 1000 // 10)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def configure(device: torch.device, *, threads: int | None, deterministic: bool) -> None:
    """Set threads and determinism. Call before the first CUDA work of the process."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # not use_deterministic_algorithms: that loads the compiler, two seconds of every start
        # "warn" would not change attention's backward: its CUDA kernels check for "error"
        torch.set_deterministic_debug_mode("warn" if device.type == "mps" else "error")
        # uninitialized memory is never read: filling it with NaN would cost a pass over memory
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.backends.cudnn.benchmark = False


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Compute dtype: bf16 on CUDA with SM >= 80, else float32; fp16 only on request.

    fp8 applies to single products (fp8.py): everything else is bf16. Source: docs/recipe.md, Model.
    """
    if precision in ("bf16", "fp8"):
        return torch.bfloat16
    if precision == "fp16":
        return torch.float16
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if precision == "auto" and capable else torch.float32


def require_fp8(device: torch.device) -> None:
    """Raises NoSuchDevice if the device has no fp8 matrix products."""
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if why := fp8_missing(name_of(device), found):
        raise NoSuchDevice(why)


def name_of(device: torch.device) -> str:
    """Device name, the same as the server's; measured speeds are stored under it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_model() if device.type == "cpu" else device.type


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def peak(device: torch.device, dtype: torch.dtype, *, measured: bool = False) -> Peak:
    """Dense peak FLOP/s: from the table, or measured (matrix products) on request or if unknown."""
    if device.type == "cuda" and not measured:
        known = tabled_peak(torch.cuda.get_device_name(device), dtype)
        if known:
            return known
    value = measure_peak(device, dtype)
    kind = str(dtype).removeprefix("torch.")
    where = name_of(device)
    if device.type == "cpu":
        where += f", threads: {torch.get_num_threads()}"
    return Peak(value, f"measured: {kind} matrix product on {where}")


def tabled_peak(device_name: str, dtype: torch.dtype) -> Peak | None:
    """Peak from the table, which is for bf16; None in another precision, which is measured."""
    return known_peak(device_name) if dtype == torch.bfloat16 else None


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure peak FLOP/s: the best of several square matrix products; takes about 0.3 s."""
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device="cpu").manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    b = torch.randn(size, size, generator=generator).to(device, dtype)
    best, deadline = float("inf"), time.perf_counter() + 0.35
    for _ in range(200):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
        if time.perf_counter() > deadline:
            break
    return 2 * size**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    """Versions of software that a run's numbers can depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for name in ("traind", "numpy", "safetensors", "tiktoken"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["platform"] = platform.platform()
    return found


def fingerprint(device: torch.device, choices: dict[str, Any]) -> dict[str, Any]:
    """Fingerprint: what bit equality depends on besides data and spec; compared at every resume."""
    return {
        "torch": torch.__version__,
        "python": ".".join(map(str, sys.version_info[:2])),
        "device": name_of(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **choices,
    }


@dataclass
class Sensors:
    """Memory, power, temperature and energy of the device; reads NVML at most once a second."""

    device: torch.device
    _handle: Any = None
    _sampled_at: float = 0.0
    _last: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def open(cls, device: torch.device) -> Sensors:
        """Open the sensors of a device; without NVML only its memory."""
        if device.type != "cuda":
            return cls(device)
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            return cls(device, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode()))
        except Exception as error:  # without NVML there are no power readings; not an error
            print(f"no NVML: power and temperature are not shown ({error})", file=sys.stderr)
            return cls(device)

    def read(self) -> dict[str, float | int | None]:
        """Device fields of events.Step."""
        return {**self._memory(), **self._power()}

    def _memory(self) -> dict[str, int | None]:
        if self.device.type != "cuda":
            return {"vram_peak_bytes": _peak_rss_bytes()}
        free_total = torch.cuda.mem_get_info(self.device)
        return {
            "vram_allocated_bytes": torch.cuda.memory_allocated(self.device),
            "vram_reserved_bytes": torch.cuda.memory_reserved(self.device),
            "vram_peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "vram_total_bytes": free_total[1],
        }

    def _power(self) -> dict[str, float | None]:
        if self._handle is None:
            return {}
        now = time.monotonic()
        if now - self._sampled_at < SAMPLE_SECONDS and self._last:
            return self._last
        import pynvml

        milliwatts = _ask(lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle))
        celsius = _ask(
            lambda: pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU)
        )
        self._last = {
            "power_watts": None if milliwatts is None else milliwatts / 1000,
            "temperature_celsius": None if celsius is None else float(celsius),
        }
        self._sampled_at = now
        return self._last


def _ask(question: Callable[[], T]) -> T | None:
    """The reading, or None: GPUs differ in what they can measure."""
    import pynvml

    try:
        return question()
    except pynvml.NVMLError:
        return None


def _peak_rss_bytes() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
