"""Detects an NVIDIA GPU from the driver's files, without a library."""

from __future__ import annotations

from pathlib import Path

# the driver of Linux; device nodes, in a container too; WSL's GPU, whose driver is Windows' own
SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")


def sign_of_gpu(signs: tuple[str, ...] = SIGNS) -> str | None:
    """The first file there that only a machine with an NVIDIA GPU has, or None."""
    return next((path for path in signs if Path(path).exists()), None)
