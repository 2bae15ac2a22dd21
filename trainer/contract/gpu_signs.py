"""Detects an NVIDIA GPU from the driver's files, without a library."""

from __future__ import annotations

from pathlib import Path

# the Linux driver; device nodes, also in a container; the GPU of WSL, whose driver is Windows'
SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")


def sign_of_gpu(signs: tuple[str, ...] = SIGNS) -> str | None:
    """The first existing file of an NVIDIA driver; None if there is none."""
    return next((path for path in signs if Path(path).exists()), None)
