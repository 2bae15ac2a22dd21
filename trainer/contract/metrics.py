"""Registry of metrics: key, unit, label and format of every curve of a run.

Rows, rollups, curves, progress, Prometheus, command line and dashboard take key, unit, label and
format from here. A new metric of a step is one entry in METRICS and the line that measures it:
`events.Step(..., more={key: value})`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

JOULES_PER_KWH = 3.6e6  # energy is recorded in joules and shown in kilowatt-hours

MetricSource = Literal["step", "rate", "evaluation"]
Format = Literal["number", "integer", "percent", "bytes", "seconds"]


@dataclass(frozen=True)
class Metric:
    """One curve.

    source: "step" is reported by each step, "rate" follows from its duration, "evaluation" is
    measured by evaluations. is_live: Prometheus shows it only while the run steps.
    gauge: name of its Prometheus gauge (prefix `traind_`), None for none. digits: decimals shown.
    """

    key: str
    label: str
    unit: str
    description: str
    source: MetricSource = "step"
    format: Format = "number"
    digits: int = 4
    is_live: bool = True
    gauge: str | None = None


# Stored rollups use this order: append new metrics at the end.
METRICS: tuple[Metric, ...] = (
    Metric("loss", "Loss", "nats/token", "Training loss, mean over the step's micro-batches."),
    Metric("loss_smooth", "Loss, smoothed", "nats/token", "Exponentially smoothed training loss."),
    Metric(
        "lr_multiplier", "Learning rate", "× peak", "Learning rate as a multiple of its peak.",
        gauge="learning_rate_multiplier",
    ),
    Metric("momentum", "Momentum", "", "Muon's momentum."),
    Metric("weight_decay", "Weight decay", "", "Muon's weight decay as applied."),
    Metric("grad_norm", "Gradient norm", "", "L2 norm of the gradient.", digits=3,
           gauge="grad_norm"),
    Metric(
        "step_seconds", "Step time", "s", "Duration of a step.", source="rate", format="seconds",
        digits=3,
    ),
    Metric(
        "tokens_per_second", "Throughput", "tokens/s", "Training throughput.", source="rate",
        format="integer", digits=0, gauge="tokens_per_second",
    ),
    Metric(
        "mfu", "MFU", "", "Model FLOPs utilisation, attention counted as if not causal.",
        source="rate", format="percent", digits=1, gauge="mfu_ratio",
    ),
    Metric(
        "vram_reserved_bytes", "Device memory", "B", "Device memory held by the allocator.",
        format="bytes", digits=2,
    ),
    Metric(
        "power_watts", "Power", "W", "Power draw of the device.", digits=0, gauge="power_watts"
    ),
    Metric(
        "temperature_celsius", "Temperature", "°C", "Temperature of the device.", digits=0,
        gauge="temperature_celsius",
    ),
    Metric(
        "val_bpb", "Validation", "bits/byte", "Validation loss in bits per byte.",
        source="evaluation", is_live=False, gauge="val_bpb",
    ),
    Metric(
        "core", "CORE", "centred", "CORE score, centred on guessing.", source="evaluation",
        is_live=False, gauge="core_metric",
    ),
)  # fmt: skip

BY_KEY = {metric.key: metric for metric in METRICS}
STEP_KEYS = tuple(m.key for m in METRICS if m.source == "step")
BINNED_KEYS = tuple(m.key for m in METRICS if m.source != "evaluation")
