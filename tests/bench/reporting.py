"""Cost of reporting per step: inbox, journal record, its fsyncs, the smoothed loss.

Compared with the fastest step of the goals: 65,536 tokens at 1,000,000 tokens/s.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from tests.bench import bars
from trainer.contract import events, journal
from trainer.runtime.control import Control
from trainer.runtime.device import Sensors
from trainer.runtime.reporter import Reporter
from trainer.train.spike_detector import SpikeWatch

STEPS = 4_000
STEP_SECONDS = 65_536 / 1_000_000


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        header = journal.JournalHeader("run", 1, "token")
        inbox = journal.Writer.create(Path(folder) / "inbox.jsonl", header)
        control = Control(Path(folder) / "inbox.jsonl")
        reporter = Reporter(journal.Writer.create(Path(folder) / "outbox.jsonl", header))
        sensors, spikes = Sensors.open(device), SpikeWatch()
        times = []
        began = time.perf_counter()
        for step in range(STEPS):
            at = time.perf_counter()
            control.take()
            reporter.emit(_record(step, sensors))
            spikes.observe(step, 3.0)
            reporter.sync_if_due()
            times.append(time.perf_counter() - at)
        whole = (time.perf_counter() - began) / STEPS
        inbox.close()
    print(
        f"per step: median {statistics.median(times) * 1e3:.3f} ms, mean {whole * 1e3:.3f} ms, "
        f"slowest {max(times) * 1e3:.1f} ms"
    )
    share = 100 * whole / STEP_SECONDS
    bars.at_most("reporting, control and journal at 1 M tokens/s", share, 0.5, "% of a step")


def _record(step: int, sensors: Sensors) -> events.Step:
    return events.Step(
        step=step, loss=3.1234567, loss_smooth=3.2345678, lr_multiplier=1.0, momentum=0.97,
        weight_decay=0.099, grad_norm=0.31, tokens=65_536, seconds=STEP_SECONDS,
        batch_sha256="0" * 64, **sensors.read(),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


if __name__ == "__main__":
    main()
