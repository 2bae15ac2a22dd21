"""Dynamic loss scaling for float16, entirely on the device.

The scale halves when a gradient overflows and doubles after 2,000 good steps, as torch's GradScaler
does; unlike GradScaler it never synchronizes with the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_SCALE = 65_536.0
GROW_AFTER_STEPS = 2000


class LossScale:
    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), FIRST_SCALE, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, finite: Tensor) -> None:
        """Halve the scale after an overflow, double it after 2,000 good steps."""
        good = torch.where(finite, self.good_steps + 1, 0)
        grow = good >= GROW_AFTER_STEPS
        grown = torch.where(grow, self.scale * 2, self.scale)
        self.scale.copy_(torch.where(finite, grown, self.scale / 2))
        self.good_steps.copy_(torch.where(grow, 0, good))

    @property
    def exhausted(self) -> Tensor:
        """0-d bool: the scale cannot be halved further, so an overflow is a real failure."""
        return self.scale <= 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {"loss_scale.scale": self.scale, "loss_scale.good_steps": self.good_steps}
