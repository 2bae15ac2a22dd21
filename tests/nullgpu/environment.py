"""Location of the CUDA build of torch, and the environment of a process on a null GPU.

The environment is `.venv-cuda` (made by `make nullgpu`), or the one whose interpreter
TRAIND_NULLGPU_PYTHON names: torch for CUDA and traind's dependencies. The stubs are built once per
version of their sources, below `.nullgpu/`, where the compilers' caches are kept too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from tests.nullgpu import build

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".nullgpu"
PRELOADED = ("libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13")


def python() -> Path | None:
    """The interpreter of the CUDA environment, if there is one."""
    named = os.environ.get("TRAIND_NULLGPU_PYTHON")
    found = Path(named) if named else ROOT / ".venv-cuda" / "bin" / "python"
    return found if found.exists() else None


def missing() -> str | None:
    """Why there is no null GPU here, or None."""
    if python() is None:
        return "no environment with a CUDA build of torch: make nullgpu"
    return None if shutil.which("gcc") else "no gcc"


@cache
def libraries() -> Path:
    """The folder with the stubs, built when their sources have changed. Raises CannotBuild."""
    site_packages = Path(_ask("import sysconfig; print(sysconfig.get_paths()['purelib'])"))
    version = hashlib.sha256(_ask("import torch.version as v; print(v.__version__)").encode())
    for source in sorted([*build.SOURCES.rglob("*.[ch]"), Path(build.__file__)]):
        version.update(source.read_bytes())
    folder = FOLDER / version.hexdigest()[:16]
    if not folder.exists():
        beside = FOLDER / f"{folder.name}.{os.getpid()}"
        build.build(site_packages, beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return folder


def variables(card: str, holders: Path, **more: str) -> dict[str, str]:
    """The environment of a process on a GPU: rtx4070, rtx3090, h200 or t4.

    holders: folder in which NVML finds the memory of each process. more: NULLGPU_MEMORY_MB,
    NULLGPU_PINNED_MB, NULLGPU_NVML (see driver/) or any variable.
    """
    folder = str(libraries())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "NULLGPU"))}
    own = {
        "NULLGPU": card,
        "NULLGPU_HOLDERS": str(holders),
        "LD_LIBRARY_PATH": folder,
        "LD_PRELOAD": ":".join(f"{folder}/{name}" for name in PRELOADED),
        "TRITON_LIBCUDA_PATH": folder,
        "TORCHINDUCTOR_CACHE_DIR": str(FOLDER / "inductor"),
        "TRITON_CACHE_DIR": str(FOLDER / "triton"),
        # a pool of compilers in each process costs more than it saves if all cores are busy
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # kernels know the bytes they move (traffic.py); in every process, or caches are not shared
        "TORCHINDUCTOR_BENCHMARK_KERNEL": "1",
        "PYTHONPATH": str(ROOT),
        # cuDNN, which Hopper prefers, is not stubbed
        "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
    }
    return {**clean, **own, **more}


def _ask(question: str) -> str:
    command = [str(python()), "-c", question]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
