"""Peak throughput (dense bf16, fp32 accumulation) and memory of common devices; FP8 support.

Consumer cards run bf16 tensor cores at half rate when they accumulate in fp32, which training
does. Their figure here is SMs x FLOPs per clock per SM x boost clock: 512 on GA10x, AD10x and
GB20x, from NVIDIA's architecture white papers. Data-centre figures are NVIDIA's data sheets,
without sparsity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """value: FLOP/s. source: where the number comes from, for people."""

    value: float
    source: str


_WHITEPAPER = "SMs x 512 x boost clock (NVIDIA architecture white paper, fp32 accumulation)"
_DATASHEET = "NVIDIA data sheet, dense bf16"


FP8_CAPABILITY = (8, 9)  # RTX 40 and L4; Hopper and Blackwell are newer


def fp8_missing(name: str, capability: tuple[int, int] | None) -> str | None:
    """Why a device cannot train in fp8; None if it can. capability: CUDA's, None without CUDA."""
    if capability is not None and capability >= FP8_CAPABILITY:
        return None
    need = "precision fp8 needs a card of compute capability 8.9 or newer (RTX 40, L4, H100, …)"
    has = "has none" if capability is None else f"has {capability[0]}.{capability[1]}"
    return f"{need}, and {name} {has}; bf16 is what auto takes"


def _card(sms: int, boost_ghz: float) -> Peak:
    return Peak(sms * 512 * boost_ghz * 1e9, _WHITEPAPER)


def _sheet(tflops: float) -> Peak:
    return Peak(tflops * 1e12, _DATASHEET)


# Longer names first where one contains another: the first that occurs in the device's name wins.
PEAKS: dict[str, Peak] = {
    "RTX 5090": _card(170, 2.407),
    "RTX 5080": _card(84, 2.617),
    "RTX 5070 Ti": _card(70, 2.452),
    "RTX 5070": _card(48, 2.512),
    "RTX 5060 Ti": _card(36, 2.572),
    "RTX 5060": _card(30, 2.497),
    "RTX 5050": _card(20, 2.572),
    "RTX 4090": _card(128, 2.520),
    "RTX 4080 SUPER": _card(80, 2.550),
    "RTX 4080": _card(76, 2.505),
    "RTX 4070 Ti SUPER": _card(66, 2.610),
    "RTX 4070 Ti": _card(60, 2.610),
    "RTX 4070 SUPER": _card(56, 2.475),
    "RTX 4070": _card(46, 2.475),
    "RTX 4060 Ti": _card(34, 2.535),
    "RTX 4060": _card(24, 2.460),
    "RTX 3090 Ti": _card(84, 1.860),
    "RTX 3090": _card(82, 1.695),
    "RTX 3080 Ti": _card(80, 1.665),
    "RTX 3080": _card(68, 1.710),
    "RTX 3070 Ti": _card(48, 1.770),
    "RTX 3070": _card(46, 1.725),
    "RTX 3060 Ti": _card(38, 1.665),
    "RTX 3060": _card(28, 1.777),
    "RTX 3050": _card(20, 1.777),
    "B200": _sheet(2250),
    "H200": _sheet(989),
    "H100 PCIe": _sheet(756),
    "H100 NVL": _sheet(835),
    "H100": _sheet(989),
    "A100": _sheet(312),
    "L40S": _sheet(362),
    "L4": _sheet(121),
}


def known_peak(device_name: str) -> Peak | None:
    """The peak of a device as torch or NVML names it; None if it is not in the table.

    None for laptop chips too, which share the names of desktop cards but not their clocks.
    """
    if "laptop" in device_name.lower() or "max-q" in device_name.lower():
        return None
    for name, peak in PEAKS.items():
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", device_name, re.I):
            return peak
    return None
