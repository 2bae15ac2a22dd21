"""Lanes: the groups of micro-batches whose gradients are summed in a fixed binary tree."""

from __future__ import annotations

MAX_LANES = 1024


def lanes_for(ranks: int, asked: int | None) -> int:
    """Number of lanes of a run on `ranks` devices: as requested, otherwise one per device."""
    return asked or power_of_two(ranks)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def most_that_share(number: int, units: int) -> int:
    """The largest power of two of devices, at most `number`, among which `units` divide equally:
    lanes, micro-batches or rows of a step."""
    count = 1
    while count * 2 <= number and units % (count * 2) == 0:
        count *= 2
    return count


def named_together(device_name: str, ranks: int) -> str:
    """Name of a group of devices, under which its measured speed is stored."""
    return device_name if ranks == 1 else f"{device_name} x {ranks}"
