"""What Prometheus is told: gauges and counters from rows, and the daemon's own numbers.

Run families are written straight into the text format: a hundred runs are some three thousand
samples, and a scrape should cost a few milliseconds. Counters come from rows, so that neither a
replay nor a restart moves them back. Labels are a fixed list; at most MAX_RUNS runs are shown, and
how many were left out is counted.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from sqlalchemy import Integer, bindparam, case, func, or_, select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.database.migrate import version
from server.ingestion import counters
from server.states import ENDED, OCCUPYING, State
from trainer.contract.exits import Reason
from trainer.contract.rundir import OUTBOX

MAX_RUNS = 200
ENDED_SECONDS = 3600.0
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})

# name: (help, key in a run's progress). Shown only while they are true: a run that has stopped has
# no speed.
_LIVE = {
    "learning_rate_multiplier": ("Learning rate as a part of its peak", "lr_multiplier"),
    "tokens_per_second": ("Training speed of this attempt", "tokens_per_second"),
    "mfu_ratio": ("Model FLOP/s as a part of the device's peak", "mfu"),
    "power_watts": ("Power of the device", "power_watts"),
    "temperature_celsius": ("Temperature of the device", "temperature_celsius"),
}
_KEPT = {
    "val_bpb": ("Validation bits per byte, as last measured", "val_bpb"),
    "core_metric": ("CORE, as last measured", "core"),
}
_COUNTERS = {
    counters.TOKENS: "Tokens trained on, repeats included",
    counters.STEPS: "Optimizer steps done, repeats included",
    counters.LOST_STEPS: "Steps that a crash or a rewind threw away",
    counters.RESTARTS: "Attempts begun because the one before had failed",
    counters.ENERGY: "Energy used by the device while training",
    counters.CHECKPOINT_BYTES: "Bytes of checkpoints written",
}
_HISTOGRAMS = {
    counters.STEP_SECONDS: "Time of an optimizer step",
    counters.SAVE_SECONDS: "Time to write a checkpoint",
}
_STATES = tuple(str(state) for state in State)
_VRAM_KINDS = ("allocated", "reserved", "peak", "total")

Sample = tuple[str, float | None]  # labels as they are written, value


@dataclass(frozen=True)
class _Run:
    """One run as it is shown."""

    id: str
    name: str
    state: str
    device: str
    step: int
    end_step: int
    tokens_seen: int
    last_step_at: float | None
    progress: dict[str, Any]
    reason: str
    phase: str
    checkpoint_at: float | None
    model: str
    label: str
    is_live: bool


class Metrics:
    """The metrics of one app, in a registry of its own. Not shared between apps."""

    def __init__(self, data_dir: Path) -> None:
        self.registry = CollectorRegistry()
        self._data_dir = data_dir
        self._models: dict[str, str] = {}
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "traind_http_requests", "HTTP requests", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "traind_http_request_duration_seconds", "Time to answer an HTTP request", ["route"],
            registry=self.registry, buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1, 5),
        )  # fmt: skip
        self._dropped = Counter(
            "traind_metrics_dropped", "Runs left out of scrapes because there were too many",
            registry=self.registry,
        )  # fmt: skip

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request; route is a template, never a path as it came."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def scrape(self, db: Database, now: float) -> bytes:
        """Everything, in Prometheus' text format."""
        with db.read() as session:
            runs = _load(session, now, self._models)
            left_out = _count(session, now) - len(runs)
            counted = _read_counters(session, runs)
            histograms = {name: counters.histogram(session, name) for name in _HISTOGRAMS}
            unread = _unread(session)
        if left_out > 0:
            self._dropped.inc(left_out)
        lines = [
            *_run_lines(runs),
            *_counter_lines(counted),
            *_histogram_lines(histograms),
            *self._daemon_lines(unread, db.wal_bytes, now),
        ]
        return "".join(lines).encode() + generate_latest(self.registry)

    def _daemon_lines(
        self, unread: list[tuple[str, int, int]], wal_bytes: int, now: float
    ) -> Iterator[str]:
        lag = max((_lag(self._data_dir, *where, now) for where in unread), default=0.0)
        free = float(shutil.disk_usage(self._data_dir).free)
        yield _family("disk_free_bytes", "Free bytes where the data lies", [("", free)])
        words = "Size of the database's write-ahead log"
        yield _family("database_wal_bytes", words, [("", float(wal_bytes))])
        yield _family("ingest_lag_seconds", "Age of the oldest unread report", [("", lag)])
        info = f'version="{_escaped(version())}"'
        yield _family("build_info", "The version that runs", [(info, 1)])


# --- reading -------------------------------------------------------------------------------------

# Statements are built once: building them took longer than running them.

_run: Any = tables.Run.__table__.c
_phase: Any = tables.Phase.__table__.c
_kept: Any = tables.Checkpoint.__table__.c
_counter: Any = tables.Counter.__table__.c
_attempt: Any = tables.Attempt.__table__.c
_GIVEN = select(func.json_each(bindparam("ids")).table_valued("value").c.value)
_MOST = bindparam("most", type_=Integer)
_SHOWN = or_(
    _run.state.not_in([*ENDED, State.created]),
    _run.state.in_([*ENDED]) & (_run.ended_at > bindparam("since")),
)
_RUNS = (
    select(
        _run.id, _run.name, _run.state, _run.device, _run.step, _run.end_step, _run.tokens_seen,
        _run.last_step_at, _run.progress, _run.reason,
    )
    .where(_SHOWN)
    .order_by(
        case((_run.state.in_(OCCUPYING), 0), (_run.state.not_in(ENDED), 1), else_=2),
        _run.queue_position,
        _run.ended_at.desc(),
    )
    .limit(_MOST)
)  # fmt: skip
_HOW_MANY = select(func.count()).where(_SHOWN)
_PHASES = (
    select(_phase.run_id, _phase.name)
    .where(_phase.run_id.in_(_GIVEN), _phase.started_at.is_not(None))
    .order_by(_phase.index)
)
_SAVED = (
    select(_kept.run_id, func.max(_kept.created_at))
    .where(_kept.run_id.in_(_GIVEN))
    .group_by(_kept.run_id)
)
_COUNTED = select(_counter.name, _counter.run, _counter.label, _counter.value).where(
    _counter.run.in_(_GIVEN), _counter.name.in_(_COUNTERS)
)
_UNREAD = (
    select(_attempt.run_id, _attempt.number, _attempt.outbox_offset)
    .where(_attempt.drained.is_(False), _attempt.outbox_problem.is_(None), _attempt.number > 0)
    .limit(_MOST)
)


def _load(session: Session, now: float, models: dict[str, str]) -> list[_Run]:
    """The runs to show: those with a process first, then waiting ones, then what ended last."""
    connection = session.connection()
    since = now - ENDED_SECONDS
    rows = connection.execute(_RUNS, {"since": since, "most": MAX_RUNS}).all()
    ids = [row.id for row in rows]
    known = {"ids": json.dumps(ids)}
    phases = dict(connection.execute(_PHASES, known).all())
    saved = dict(connection.execute(_SAVED, known).all())
    _name_models(session, ids, models)
    return [
        _Run(
            *row,
            phase=phases.get(row.id, ""),
            checkpoint_at=saved.get(row.id),
            model=models.get(row.id, ""),
            label=f'run="{row.name}"',  # no escaping: letters, digits, '.', '_' and '-'
            is_live=row.state in (State.running, State.pausing),
        )
        for row in rows
    ]


def _name_models(session: Session, ids: list[str], models: dict[str, str]) -> None:
    """Depth by run, read once: a model's shape never changes, and specs are wide."""
    for gone in models.keys() - set(ids):
        del models[gone]
    run, depth = tables.Run, tables.Run.spec["model"]["depth"].as_integer()
    new = [run_id for run_id in ids if run_id not in models]
    if new:
        found = session.execute(select(run.id, depth).where(run.id.in_(new)))
        models.update({run_id: f"d{layers}" for run_id, layers in found})


def _count(session: Session, now: float) -> int:
    return session.connection().scalar(_HOW_MANY, {"since": now - ENDED_SECONDS}) or 0


def _read_counters(session: Session, runs: list[_Run]) -> dict[str, list[tuple[str, str, float]]]:
    """{name: [(run, label, value)]} of the runs that are shown."""
    names = {"ids": json.dumps([run.name for run in runs])}
    rows = session.connection().execute(_COUNTED, names)
    held: dict[str, dict[tuple[str, str], float]] = {
        # from 0, so that the first increase is seen; restarts have no reason before the first
        name: {} if name == counters.RESTARTS else {(run.name, ""): 0.0 for run in runs}
        for name in _COUNTERS
    }
    for name, run, label, value in rows:
        held[name][run, label] = value
    return {name: [(*k, v) for k, v in values.items()] for name, values in held.items()}


def _unread(session: Session) -> list[tuple[str, int, int]]:
    """(run id, attempt, offset) of every journal that may still grow."""
    rows = session.connection().execute(_UNREAD, {"most": MAX_RUNS})
    return [(row[0], row[1], row[2]) for row in rows]


def _lag(data_dir: Path, run_id: str, attempt: int, offset: int, now: float) -> float:
    """Seconds since the first record behind the cursor was written; 0 when all are read."""
    path = data_dir / "runs" / run_id / "attempts" / f"{attempt:04d}" / OUTBOX
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        line, whole, _ = os.pread(fd, 65_536, offset).partition(b"\n")
        return max(0.0, now - float(json.loads(line)["ts"])) if whole else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    finally:
        os.close(fd)


# --- writing -------------------------------------------------------------------------------------


def _run_lines(runs: list[_Run]) -> Iterator[str]:
    def per_run(name: str, help_text: str, value: Callable[[_Run], float | None]) -> str:
        return _family(name, help_text, ((run.label, value(run)) for run in runs))

    yield per_run("train_step", "Steps done", lambda r: r.step)
    yield per_run("train_end_step", "Step at which the plan ends", lambda r: r.end_step)
    yield per_run("tokens_seen", "Tokens of the present lineage", lambda r: r.tokens_seen)
    yield per_run("train_loss", "Loss of the last step; NaN when it was not finite", _loss)
    for name, (help_text, key) in _LIVE.items():
        yield per_run(name, help_text, lambda r, k=key: r.progress.get(k) if r.is_live else None)
    for name, (help_text, key) in _KEPT.items():
        yield per_run(name, help_text, lambda r, k=key: r.progress.get(k))
    yield _family("vram_bytes", "Device memory of the trainer", _vram(runs))
    stamp = "last_step_timestamp_seconds"
    yield per_run(stamp, "When the last step was done", lambda r: r.last_step_at)
    yield per_run("eta_timestamp_seconds", "When the plan should be done", _eta)
    stamp = "checkpoint_last_success_timestamp_seconds"
    yield per_run(stamp, "When the last checkpoint was written", lambda r: r.checkpoint_at)
    yield _family("run_state", "1 for the state the run is in", ())
    yield from (_state_lines(run.label, run.state) for run in runs)
    yield _family("run_info", "What the run is", ((_info(run), 1) for run in runs))


@lru_cache(maxsize=4 * MAX_RUNS)
def _state_lines(label: str, state: str) -> str:
    """A third of all lines, and they seldom change."""
    return "".join(
        f'traind_run_state{{{label},state="{each}"}} {int(each == state)}\n' for each in _STATES
    )


def _loss(run: _Run) -> float | None:
    """A loss that is not finite ends its attempt, so it is shown while nothing steps again."""
    if run.reason == Reason.non_finite_loss:
        return math.nan
    return run.progress.get("loss") if run.is_live else None


def _info(run: _Run) -> str:
    phase, device = _escaped(run.phase), _escaped(run.device)
    return f'{run.label},phase="{phase}",model="{run.model}",device="{device}"'


def _vram(runs: list[_Run]) -> Iterator[Sample]:
    for run in runs:
        if run.is_live:
            for kind in _VRAM_KINDS:
                yield f'{run.label},kind="{kind}"', run.progress.get(f"vram_{kind}_bytes")


def _eta(run: _Run) -> float | None:
    seconds = run.progress.get("step_seconds")
    if not run.is_live or seconds is None or run.last_step_at is None:
        return None
    return run.last_step_at + (run.end_step - run.step) * seconds


def _counter_lines(counted: dict[str, list[tuple[str, str, float]]]) -> Iterator[str]:
    for name, rows in counted.items():
        with_reason = name == counters.RESTARTS
        samples = (
            (f'run="{run}"' + (f',reason="{_escaped(label)}"' if with_reason else ""), value)
            for run, label, value in rows
        )
        yield _family(name, _COUNTERS[name], samples, kind="counter")


def _histogram_lines(histograms: dict[str, counters.Histogram]) -> Iterator[str]:
    for name, histogram in histograms.items():
        yield f"# HELP traind_{name} {_HISTOGRAMS[name]}\n# TYPE traind_{name} histogram\n"
        for bound, count in histogram.buckets:
            yield f'traind_{name}_bucket{{le="{bound}"}} {_number(count)}\n'
        yield f"traind_{name}_sum {_number(histogram.sum)}\n"
        yield f"traind_{name}_count {_number(histogram.count)}\n"


def _family(name: str, help_text: str, samples: Iterable[Sample], kind: str = "gauge") -> str:
    """HELP, TYPE and samples; a value that is not known has no sample."""
    name = f"traind_{name}"
    lines = [f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"]
    lines += [
        f"{name}{{{labels}}} {_number(value)}\n" if labels else f"{name} {_number(value)}\n"
        for labels, value in samples
        if value is not None
    ]
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)
