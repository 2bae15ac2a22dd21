"""Prometheus text format, rendered once per change of a run: a scrape takes milliseconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from server.domain.states import State
from server.metrics import counters
from server.prometheus.rows import LIVE, MAX_RUNS, Facts
from server.queries import eta, ranks
from trainer.contract.metrics import METRICS, Metric
from trainer.contract.reasons import Reason

_COUNTERS = {
    counters.TOKENS: "Tokens trained on, repeats included",
    counters.STEPS: "Optimizer steps done, repeats included",
    counters.LOST_STEPS: "Steps discarded by a crash or a rewind",
    counters.RESTARTS: "Attempts started after a failed one",
    counters.YIELDS: "Times a run yielded to a higher priority, its hours or another program",
    counters.WAITING_SECONDS: "Seconds from making way until training again",
    counters.ENERGY: "Energy used by the device while training",
    counters.CHECKPOINT_BYTES: "Bytes of checkpoints written",
}
_HISTOGRAMS = {
    counters.STEP_SECONDS: "Time of an optimizer step",
    counters.SAVE_SECONDS: "Time to write a checkpoint",
}

MetricSample = tuple[str, float | None]  # labels as they are written, value


# --- what a run shows ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    facts: Facts

    @cached_property
    def progress(self) -> dict[str, Any]:
        return json.loads(self.facts.progress)

    @property
    def label(self) -> str:
        return f'run="{self.facts.name}"'  # no escaping: letters, digits, '.', '_' and '-'

    @property
    def is_live(self) -> bool:
        return self.facts.state in LIVE


def _fact(name: str) -> Callable[[_Run], Iterator[MetricSample]]:
    def samples(run: _Run) -> Iterator[MetricSample]:
        yield run.label, getattr(run.facts, name)

    return samples


def _kept(key: str) -> Callable[[_Run], Iterator[MetricSample]]:
    def samples(run: _Run) -> Iterator[MetricSample]:
        yield run.label, run.progress.get(key)

    return samples


def _live(key: str) -> Callable[[_Run], Iterator[MetricSample]]:
    """Shown only while it is true: a run that has stopped, or makes no steps, has no speed."""

    def samples(run: _Run) -> Iterator[MetricSample]:
        if run.is_live and not (run.facts.stands_still and key in eta.RATES):
            yield run.label, run.progress.get(key)

    return samples


def _loss(run: _Run) -> Iterator[MetricSample]:
    """A loss that is not finite ends its attempt, so it is shown while nothing steps again."""
    if run.facts.reason == Reason.non_finite_loss:
        yield run.label, math.nan
    elif run.is_live:
        yield run.label, run.progress.get("loss")


def _vram(run: _Run) -> Iterator[MetricSample]:
    if run.is_live:
        for kind, value in ranks.vram(run.progress).items():
            yield f'{run.label},kind="{kind}"', value


def _of_rank(key: str) -> Callable[[_Run], Iterator[MetricSample]]:
    """Of each process of a run on several devices."""

    def samples(run: _Run) -> Iterator[MetricSample]:
        for row in run.progress.get("ranks", ()) if run.is_live else ():
            device = _label_value(row["device"])
            yield f'{run.label},rank="{row["rank"]}",device="{device}"', row.get(key)

    return samples


def _eta(run: _Run) -> Iterator[MetricSample]:
    yield run.label, run.facts.finish_at


def _state(run: _Run) -> Iterator[MetricSample]:
    for state in State:
        yield f'{run.label},state="{state}"', int(run.facts.state == state)


def _info(run: _Run) -> Iterator[MetricSample]:
    phase, device = _label_value(run.facts.phase), _label_value(run.facts.device)
    yield f'{run.label},phase="{phase}",model="{run.facts.model}",device="{device}"', 1


def _gauge(metric: Metric) -> tuple[str, Callable[[_Run], Iterator[MetricSample]]]:
    """(help, samples) of a metric of the registry."""
    words = metric.description.rstrip(".")
    if metric.key == "loss":
        return f"{words}; NaN when it was not finite", _loss
    return words, _live(metric.key) if metric.is_live else _kept(metric.key)


# name, help, samples of one run
_FAMILIES: tuple[tuple[str, str, Callable[[_Run], Iterator[MetricSample]]], ...] = (
    ("train_step", "Steps done", _fact("step")),
    ("train_end_step", "Step at which the plan ends", _fact("end_step")),
    ("tokens_seen", "Tokens of the present lineage", _fact("tokens_seen")),
    *((m.gauge, *_gauge(m)) for m in METRICS if m.gauge),
    ("vram_bytes", "Device memory of the trainer, of all its devices together", _vram),
    ("rank_compute_seconds", "Compute time of a step of each rank", _of_rank("compute_seconds")),
    ("rank_waited_seconds", "Time each rank waited for the others", _of_rank("waited_seconds")),
    ("rank_vram_peak_bytes", "Peak device memory of each rank", _of_rank("vram_peak_bytes")),
    ("rank_vram_reserved_bytes", "Device memory of each rank", _of_rank("vram_reserved_bytes")),
    ("rank_power_watts", "Power of each rank's device", _of_rank("power_watts")),
    (
        "rank_temperature_celsius", "Temperature of each rank's device",
        _of_rank("temperature_celsius"),
    ),
    ("last_step_timestamp_seconds", "Time of the last step", _fact("last_step_at")),
    ("eta_timestamp_seconds", "Expected end of the plan", _eta),
    (
        "checkpoint_last_success_timestamp_seconds", "Time of the last checkpoint",
        _fact("checkpoint_at"),
    ),
    ("run_state", "1 for the current state of the run", _state),
    ("run_info", "Properties of the run", _info),
)  # fmt: skip


@lru_cache(maxsize=2 * MAX_RUNS)
def _shown(facts: Facts) -> tuple[str, ...]:
    """A run's lines of each family. Kept: of a hundred runs, one or two change between scrapes."""
    run = _Run(facts)
    return tuple(_lines(name, samples(run)) for name, _, samples in _FAMILIES)


def of_runs(runs: Sequence[Facts]) -> Iterator[str]:
    shown = [_shown(facts) for facts in runs]
    for place, (name, help_text, _) in enumerate(_FAMILIES):
        yield _head(name, help_text)
        yield from (lines[place] for lines in shown)


# --- what the daemon shows -----------------------------------------------------------------------


def of_counters(counted: dict[str, list[tuple[str, str, float]]]) -> Iterator[str]:
    """counted: {name: [(run, label, value)]}."""
    for name, help_text in _COUNTERS.items():
        yield _head(name, help_text, "counter")
        with_reason = name in counters.WITH_REASON
        yield _lines(
            name,
            (
                (
                    f'run="{run}"' + (f',reason="{_label_value(label)}"' if with_reason else ""),
                    value,
                )
                for run, label, value in counted.get(name, ())
            ),
        )


def of_histogram(name: str, run: str, held: counters.Histogram) -> str:
    label = f'run="{run}"'
    return (
        _lines(f"{name}_bucket", ((f'{label},le="{bound}"', n) for bound, n in held.buckets))
        + _lines(f"{name}_sum", [(label, held.sum)])
        + _lines(f"{name}_count", [(label, held.count)])
    )


def of_histograms(lines: dict[tuple[str, str], str]) -> Iterator[str]:
    """lines: {(name, run): its lines}."""
    for name, help_text in _HISTOGRAMS.items():
        yield _head(name, help_text, "histogram")
        yield from (text for (of, _), text in lines.items() if of == name)


def of_daemon(
    *, disk_free: float, wal_bytes: float, lag_seconds: float, version: str
) -> Iterator[str]:
    gauges = (
        ("disk_free_bytes", "Free bytes on the disk of the data directory", "", disk_free),
        ("database_wal_bytes", "Size of the database's write-ahead log", "", wal_bytes),
        ("ingest_lag_seconds", "Age of the oldest unread report", "", lag_seconds),
        ("build_info", "Version of the running daemon", f'version="{_label_value(version)}"', 1),
    )
    for name, help_text, labels, value in gauges:
        yield _head(name, help_text) + _lines(name, [(labels, value)])


# --- the format ----------------------------------------------------------------------------------


def _head(name: str, help_text: str, kind: str = "gauge") -> str:
    return f"# HELP traind_{name} {help_text}\n# TYPE traind_{name} {kind}\n"


def _lines(name: str, samples: Iterable[MetricSample]) -> str:
    """A value that is not known has no sample."""
    return "".join(
        f"traind_{name}{{{labels}}} {_number(value)}\n"
        if labels
        else f"traind_{name} {_number(value)}\n"
        for labels, value in samples
        if value is not None
    )


def _label_value(text: str) -> str:
    """As the exposition format escapes what stands between the quotes of a label."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
