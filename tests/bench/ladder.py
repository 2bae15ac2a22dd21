"""Scaling ladder: four depths of the demo predict the fifth, which is then trained, by the daemon.

The demo's corpus at half its width, a few tokens per parameter; about ten minutes on one core.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from server.schemas.groups import GroupDetail, LadderFit
from tests.bench import bars
from tests.e2e.real_daemon import RealDaemon

DEPTHS, NEXT = [3, 4, 5, 6], 7
RATIO = 5.0  # tokens per scaling parameter
BASE: dict[str, Any] = {
    "preset": "demo",
    "model": {"aspect_ratio": 8, "head_dim": 8},  # widths of 24 to 56
    "horizon": {"data_param_ratio": RATIO},
    "evaluate": {"bpb_every": 1_000_000, "eval_tokens": 65_536, "sample_every": None},
    "checkpoint": {"every_steps": None},
    "numerics": {"threads": 1, "compile": False},
}
HOURS = 2.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        daemon = RealDaemon(Path(folder))
        try:
            fit = _train(daemon, "ladder", DEPTHS).fits[0]
            _describe(fit)
            (real,) = _train(daemon, "next", [NEXT]).members
            _compare(fit, real.val_bpb or 0.0, (real.training_seconds or 0.0) / 3600)
        finally:
            daemon.end()


def _train(daemon: RealDaemon, name: str, depths: list[int]) -> GroupDetail:
    """The group once every member has completed."""
    daemon.client.create_group({"name": name, "base": BASE, "depths": depths})
    until = time.monotonic() + HOURS * 3600
    while not (found := daemon.client.group(name)).is_over:
        assert time.monotonic() < until, found.counts
        time.sleep(2.0)
    assert found.counts == {"completed": len(depths)}, found.members
    for member in found.members:
        print(
            f"depth {member.depth}: {member.parameters:,} parameters, {member.flops:.3g} FLOPs, "
            f"{member.training_seconds or 0.0:.0f} s, val bpb {member.val_bpb or 0.0:.4f}",
            flush=True,
        )
    return found


def _describe(fit: LadderFit) -> None:
    print(
        f"L = {fit.e:.4f} + {fit.a:.4f} (C / {fit.reference_flops:.3g})^-{fit.alpha:.3f}, "
        f"residual {fit.residual_spread:.4f} bits per byte, seed 42 at every depth"
    )
    for sentence in fit.not_told:
        print(f"not told: {sentence}")


def _compare(fit: LadderFit, val_bpb: float, hours: float) -> None:
    ahead = fit.prediction
    assert ahead is not None
    low, high = ahead.val_bpb_interval
    print(
        f"depth {ahead.depth}: predicted {ahead.val_bpb:.4f} ({low:.4f} to {high:.4f}) in "
        f"{ahead.hours or 0.0:.3f} h; trained {val_bpb:.4f} in {hours:.3f} h"
    )
    error = 100 * abs(ahead.val_bpb / val_bpb - 1)
    bars.at_most("error of the fifth depth's predicted val bpb", error, 1.0, "%")


if __name__ == "__main__":
    main()
