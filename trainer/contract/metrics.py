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
Format = Literal["number", "rate", "percent", "bytes", "seconds", "watts", "celsius"]
Holds = Literal["always", "alive", "stepping"]


@dataclass(frozen=True)
class Metric:
    """One curve.

    source: "step" is reported by each step, "rate" follows from its duration, "evaluation" is
    measured by evaluations. is_live: Prometheus shows it only while the run steps.
    gauge: name of its Prometheus gauge (prefix `traind_`), None for none. digits: decimals shown.
    short: its name in a line with others. holds: when progress has its newest value: always, while
    the trainer is alive, or while it makes steps. is_reported: reports draw its curve.
    has_column: its points have a column, as those of the first schema; others are kept by key.
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
    short: str = ""
    holds: Holds = "alive"
    is_reported: bool = False
    has_column: bool = False

    @property
    def name(self) -> str:
        return self.short or self.label

    @property
    def title(self) -> str:
        """The label with the unit, above a curve."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


# Stored rollups use this order: append new metrics at the end.
METRICS: tuple[Metric, ...] = (
    Metric(
        "loss",
        "Loss",
        "nats/token",
        "Training loss of a step, in nats per token.",
        gauge="train_loss",
        short="loss",
        holds="always",
        is_reported=True,
        has_column=True,
    ),
    Metric(
        "loss_smooth",
        "Loss, smoothed",
        "nats/token",
        "Exponentially smoothed training loss, in nats per token.",
        short="smoothed",
        holds="always",
        has_column=True,
    ),
    Metric(
        "lr_multiplier",
        "Learning rate",
        "× peak",
        "Learning rate as a multiple of its peak.",
        gauge="learning_rate_multiplier",
        short="LR × peak",
        holds="always",
        is_reported=True,
        has_column=True,
    ),
    Metric(
        "momentum",
        "Momentum",
        "",
        "Muon's momentum.",
        short="momentum",
        holds="always",
        has_column=True,
    ),
    Metric(
        "weight_decay",
        "Weight decay",
        "",
        "Muon's weight decay as applied.",
        short="weight decay",
        holds="always",
        has_column=True,
    ),
    Metric(
        "grad_norm",
        "Gradient norm",
        "",
        "L2 norm of the gradient.",
        digits=3,
        gauge="grad_norm",
        short="grad norm",
        holds="always",
        has_column=True,
    ),
    Metric(
        "step_seconds",
        "Step time",
        "s",
        "Duration of a step, in seconds.",
        source="rate",
        format="seconds",
        digits=3,
        short="step time",
        has_column=True,
    ),
    Metric(
        "tokens_per_second",
        "Throughput",
        "tok/s",
        "Throughput, in tokens per second.",
        source="rate",
        format="rate",
        digits=0,
        gauge="tokens_per_second",
        short="rate",
        holds="stepping",
        is_reported=True,
        has_column=True,
    ),
    Metric(
        "mfu",
        "MFU",
        "",
        "Model FLOPs utilisation, attention counted as if not causal.",
        source="rate",
        format="percent",
        digits=1,
        gauge="mfu_ratio",
        holds="stepping",
        has_column=True,
    ),
    Metric(
        "vram_reserved_bytes",
        "Device memory",
        "B",
        "Device memory held by the allocator, in bytes.",
        format="bytes",
        digits=2,
        short="memory",
        has_column=True,
    ),
    Metric(
        "power_watts",
        "Power",
        "W",
        "Power draw, in watts.",
        format="watts",
        digits=0,
        gauge="power_watts",
        short="power",
        has_column=True,
    ),
    Metric(
        "temperature_celsius",
        "Temperature",
        "°C",
        "Temperature, in degrees Celsius.",
        format="celsius",
        digits=0,
        gauge="temperature_celsius",
        short="temperature",
        has_column=True,
    ),
    Metric(
        "val_bpb",
        "Validation",
        "bits/byte",
        "Validation loss, in bits per byte.",
        source="evaluation",
        is_live=False,
        gauge="val_bpb",
        short="val bpb",
        holds="always",
        is_reported=True,
    ),
    Metric(
        "core",
        "CORE",
        "centred",
        "CORE score, centred on guessing.",
        source="evaluation",
        is_live=False,
        gauge="core_metric",
        holds="always",
    ),
)

BY_KEY = {metric.key: metric for metric in METRICS}
STEP_KEYS = tuple(m.key for m in METRICS if m.source == "step")
BINNED_KEYS = tuple(m.key for m in METRICS if m.source != "evaluation")
EVALUATED_KEYS = tuple(m.key for m in METRICS if m.source == "evaluation")
