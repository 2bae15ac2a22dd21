"""The runs of the stub: what a run of the reference kind would have said, computed on demand."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from server.domain.states import State, sentence
from server.schemas.checkpoints import CheckpointView
from server.schemas.evaluations import EvaluationView, SampleView
from server.schemas.events import EventView
from server.schemas.jobs import JobView
from server.schemas.metrics import MetricsAnswer, Segment, Series
from server.schemas.phases import AttemptView, PhaseView
from server.schemas.progress import Progress
from server.schemas.runs import RunDetail, RunSummary
from trainer.contract.extend import ExtendPreview, ExtendRequest, preview
from trainer.contract.plan import Plan, PlanContext, make_plan
from trainer.contract.reasons import Reason
from trainer.contract.schedule import (
    ExtendSchedule,
    PhaseSchedule,
    extend_schedule,
    lr_multiplier,
    muon_momentum,
    weight_decay_multiplier,
)
from trainer.contract.spec import RunSpec, resolve

STEP_SECONDS = 1.18
SPIKE_STEP = 61_234
GB = 10**9
CONTEXT = PlanContext(
    device_name="NVIDIA GeForce RTX 4070", device_memory_bytes=12 * GB, peak_flops=5.83e13,
    peak_source="dense bf16 of the data sheet", tokens_per_second=55_700.0,
    throughput_source="measured on this device", disk_free_bytes=412 * GB,
)  # fmt: skip
HOSTILE_TITLE = (
    "<img src=x onerror=alert(1)> &amp; <b>bold</b> \u202e\u05e9\u05dc\u05d5\u05dd "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f9ea " + "x" * 220
)
STATES = [
    ("rtx4070-d12-200k", "running", "requested", 143_210),
    ("demo", "completed", "finished", 200),
    ("d12-cosine-low-lr", "queued", "waiting_for_device", 0),
    ("d12-batch-131k", "paused", "requested", 40_000),
    ("nanochat-d20-oom", "failed", "out_of_memory", 1_312),
    ("d12-recovering", "recovering", "backing_off", 88_000),
    ("d12-preparing", "preparing", "waiting_for_data", 0),
    ("d8-cancelled", "cancelled", "requested", 20_500),
    ("a-run-that-waits", "created", "requested", 0),
]


def make_runs(count: int) -> list[StubRun]:
    runs = [StubRun.of(i, *STATES[i]) for i in range(min(count, len(STATES)))]
    runs += [
        StubRun.of(i, f"sweep-{i:03d}", "completed", "finished", 200_000)
        for i in range(len(runs), count)
    ]
    if count > 3:
        runs[3].title = HOSTILE_TITLE
    return runs


@dataclass
class StubRun:
    id: str
    name: str
    state: str
    reason: Reason
    step: int
    spec: RunSpec
    plan: Plan
    began: float
    schedules: list[PhaseSchedule]
    title: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    events: list[EventView] = field(default_factory=list)
    context: PlanContext = CONTEXT

    @classmethod
    def of(cls, index: int, name: str, state: str, reason: str, step: int) -> StubRun:
        body = {"name": name, "preset": "rtx4070-d12"} if name != "demo" else {"name": name}
        run = cls.create(body | {"optimizer": {"matrix_lr": 0.02 * (1 + index % 5 / 10)}})
        run.id, run.state, run.reason, run.step = f"run_{index:08d}", state, Reason(reason), step
        run.began = time.time() - step * STEP_SECONDS - 16 * 3600 - index * 7000
        if step > 130_000:
            ask = ExtendSchedule(mode="replan")
            run.schedules.append(
                extend_schedule(
                    run.schedules[0], 130_000, 200_000, ask, warmup_steps=40, warmdown_ratio=0.65
                )
            )
        run.metadata = {"tags": "sweep, old"} if index in (10, 11) else {}
        if index == 0:
            run.title = "Phase 2: extended from 130k"
        run.events = _events_of(run)
        return run

    @classmethod
    def create(cls, body: dict[str, Any]) -> StubRun:
        spec = resolve(body)
        plan = make_plan(spec, CONTEXT)
        state = "running" if spec.start else "created"
        return cls(
            id=f"run_{abs(hash(spec.name)) % 10**8:08d}", name=spec.name, state=state,
            reason=Reason.requested, step=0, spec=spec, plan=plan, began=time.time(),
            schedules=[plan.schedule], title=spec.title,
        )  # fmt: skip

    @property
    def end_step(self) -> int:
        return self.schedules[-1].end_step

    @property
    def schedule(self) -> PhaseSchedule:
        return [s for s in self.schedules if s.start_step <= self.step][-1]

    def advance(self) -> None:
        self.step = min(self.step + 1, self.end_step)

    def move(self, state: str) -> None:
        self.state, self.reason = state, Reason.requested

    def preview(self, ask: ExtendRequest) -> ExtendPreview:
        end = ask.end_step(self.end_step, self.plan.batch.tokens)
        start = self.end_step if ask.at == "end" else self.step
        if ask.from_checkpoint:
            start = int(ask.from_checkpoint[5:14])
        return preview(
            ask, self.schedules, joint_step=start, reached_step=min(self.step, self.end_step),
            end_step=end, batch_tokens=self.plan.batch.tokens,
            flops_per_token=float(self.plan.horizon.flops_per_token),
            warmup_steps=self.spec.schedule.warmup_steps,
            warmdown_ratio=self.spec.schedule.warmdown_ratio,
            peak_weight_decay=self.plan.hyperparameters.weight_decay,
        )  # fmt: skip

    def extend(self, made: ExtendPreview) -> None:
        self.schedules.append(made.schedule)
        if self.state == "completed":
            self.move("queued")

    # --- answers ---------------------------------------------------------------------------------

    def _standing(self) -> dict[str, Any]:
        active = self.state in ("running", "recovering")
        left = (self.end_step - self.step) * STEP_SECONDS
        return {
            "id": self.id, "name": self.name, "state": self.state, "desired_state": "running",
            "reason": self.reason, "step": self.step,
            "reason_message": sentence(State(self.state), self.reason),
            "end_step": self.end_step, "fraction": self.step / self.end_step,
            "loss": loss_at(self.step) if self.step else None,
            "val_bpb": 0.7801 + 0.1 * math.exp(-self.step / 3e4) if self.step else None,
            "loss_smooth": loss_at(self.step) if self.step else None,
            "training_seconds": self.step * STEP_SECONDS, "condition": None,
            "tokens_per_second": 55_712.0 if active else None,
            "eta_seconds": left if active else None,
            "last_step_at": time.time() - 1 if self.step else None,
        }  # fmt: skip

    def summary(self) -> RunSummary:
        return RunSummary.model_validate(self._summary())

    def _summary(self) -> dict[str, Any]:
        spark = [loss_at(self.step * (i + 1) / 32) for i in range(32)] if self.step else []
        return self._standing() | {
            "title": self.title, "device": "cuda:0", "num_phases": len(self.schedules),
            "parameters": self.plan.parameters.total, "state_since": self.began,
            "tokens_seen": self.step * self.plan.batch.tokens,
            "queue_position": 1 if self.state == "queued" else None, "metadata": self.metadata,
            "created_at": self.began - 60, "started_at": self.began if self.step else None,
            "ended_at": time.time() - 9000 if self.state in ("completed", "failed") else None,
            "sparkline": spark,
        }  # fmt: skip

    def detail(self) -> RunDetail:
        return RunDetail.model_validate(
            self._summary()
            | {
                "advice": self.reason.advice, "remedy": self.remedy(),
                "spec": self.spec, "plan": self.plan,
                "frozen": {"compile": True, "attention": "sdpa"}, "overrides": {},
                "fingerprint": {"torch": "2.13.0"}, "exact_resume": "verified",
                "pending_extend": None,
                "directory": f"/home/ada/.local/share/traind/runs/{self.id}",
            }
        )  # fmt: skip

    def progress(self) -> Progress:
        kept = self.checkpoints()
        seen = self.step > 0
        return Progress.model_validate(
            self._standing()
            | {
                "advice": self.reason.advice, "phase": f"phase {len(self.schedules)}",
                "attempt": 4, "stage": "training" if self.state == "running" else None,
                "stage_detail": "", "stage_fraction": None,
                "tokens_seen": self.step * self.plan.batch.tokens,
                "loss_smooth": loss_at(self.step) if seen else None,
                "lr_multiplier": lr_multiplier(self.schedule, self.step),
                "momentum": muon_momentum(self.schedule, self.step),
                "weight_decay": weight_decay_of(self, self.schedule, self.step),
                "grad_norm": 0.31, "step_seconds": STEP_SECONDS, "mfu": 0.847, "mfu_causal": 0.74,
                "peak_flops": {"value": 5.83e13, "source": "dense bf16 of the data sheet"},
                "vram_bytes": {
                    "allocated": int(8.6 * GB), "reserved": int(9.1 * GB),
                    "peak": int(9.4 * GB), "total": 12 * GB,
                },
                "power_watts": 187.0, "temperature_celsius": 71.0, "energy_joules": 3.1e7,
                "started_at": self.began if seen else None,
                "ended_at": time.time() - 9000 if self.state in ("completed", "failed") else None,
                "finish_at": time.time() + (self.end_step - self.step) * STEP_SECONDS,
                "eta_parts": {"training": 60_000.0, "evaluation": 2000.0, "saving": 300.0},
                "eta_source": "this attempt's rate",
                "last_checkpoint": kept[0].model_dump() if kept else None,
                "core": 0.1916 if self.step > 130_000 else None,
                "exact_resume": "verified" if seen else None,
            }
        )  # fmt: skip

    def remedy(self) -> dict[str, Any] | None:
        if self.state != "failed":
            return None
        rows = self.plan.batch.device_batch_size
        return {
            "label": f"Resume with {rows // 2} rows per pass (now {rows})",
            "request": {"overrides": {"device_batch_size": rows // 2}},
        }

    def listed(self, what: str) -> list[Any]:
        return getattr(self, what)()

    def phases(self) -> list[PhaseView]:
        ends = [s.start_step for s in self.schedules[1:]] + [None]
        return [
            PhaseView(
                index=i, name=f"phase {i + 1}", start_step=s.start_step, end_step=s.end_step,
                ended_at_step=end, lineage_end=end or s.end_step, mode=s.mode,
                schedule=s, joint=None, from_checkpoint=None,
                tokens=(s.end_step - s.start_step) * self.plan.batch.tokens, imported=False,
                created_at=self.began, started_at=self.began, ended_at=None,
            )
            for i, (s, end) in enumerate(zip(self.schedules, ends, strict=True))
        ]  # fmt: skip

    def segments(self) -> list[Segment]:
        cuts = [(0, 0, 1), (0, 86_000, 2), (0, 101_500, 3), (1, 130_000, 4)]
        cuts = [c for c in cuts if c[1] < max(self.step, 1)]
        ends = [c[1] for c in cuts[1:]] + [self.step]
        return [
            Segment(phase=p, attempt=a, from_step=s, to_step=e)
            for (p, s, a), e in zip(cuts, ends, strict=True)
        ]

    def attempts(self) -> list[AttemptView]:
        how = [("crashed", "crashed"), ("paused", "requested"), ("completed", "finished")]
        return [
            AttemptView.model_validate(
                {
                    "number": s.attempt, "phase_index": s.phase, "device": "cuda:0", "pid": 4711,
                    "started_at": self.began + s.from_step, "ended_at": self.began + s.to_step,
                    "stage": "training", "start_step": s.from_step, "last_step": s.to_step,
                    "lineage_limit": None, "steps_done": s.to_step - s.from_step,
                    "steps_lost": 1000 if i == 0 else 0, "exact_resume": "verified",
                    "outcome": how[i][0] if i < 3 and s.to_step != self.step else None,
                    "reason": how[i][1] if i < 3 and s.to_step != self.step else None,
                    "message": "", "log_tail": "Segmentation fault\n" if i == 0 else None,
                    "versions": {}, "report_gap": None,
                }
            )
            for i, s in enumerate(self.segments())
        ]  # fmt: skip

    def checkpoints(self) -> list[CheckpointView]:
        steps = list(range(self.step // 10_000 * 10_000, 0, -10_000))
        return [
            CheckpointView(
                id=f"step-{s:09d}-a0001", name=f"step-{s:09d}-a0001", step=s, attempt=1,
                bytes=1_993_000_000, manifest_sha256="0" * 64, pinned=s == 70_000,
                why="warmdown" if s == 70_000 else "cadence", newest=i == 0, best=s == 130_000,
                superseded=False, bad=None, val_bpb=0.78 + 5 / s, next_loss=None,
                save_seconds=4.1, stall_seconds=0.3, created_at=self.began + s * STEP_SECONDS,
            )
            for i, s in enumerate(steps)
        ]  # fmt: skip

    def evaluations(self) -> list[EvaluationView]:
        return [
            EvaluationView.model_validate(
                {
                    "id": s, "kind": kind, "step": s, "settings": {"eval_tokens": 41_943_040},
                    "value": 0.77 + 0.35 * math.exp(-s / 2.5e4) + (0.03 if s > 130_000 else 0)
                    if kind == "bpb" else 0.2 - 0.15 * math.exp(-s / 5e4),
                    "identity": "b81f2c" + "0" * 26 if s > 130_000 else "5e0a91" + "0" * 26,
                    "result": {"tasks": {"piqa": 0.34, "boolq": -0.1}}, "seconds": 61.0,
                    "unix_seconds": self.began + s * STEP_SECONDS, "attempt": 1, "job": None,
                    "best": s == 130_000, "superseded": False,
                }
            )
            for kind, every in (("bpb", 5_000), ("core", 65_000))
            for s in range(every, self.step + 1, every)
        ]  # fmt: skip

    def samples(self) -> list[SampleView]:
        texts = ["a a a the the of", "France is a city in the", "Paris, and it is the largest city"]
        return [
            SampleView(
                id=s + i, step=s, prompt=prompt, settings={}, job=None, superseded=False,
                text=prompt + " " + texts[min(2, s // 40_000)], unix_seconds=self.began + s,
            )
            for s in range(10_000, self.step + 1, 20_000)
            for i, prompt in enumerate(["The capital of France is", "If 5*x + 3 = 13, then x is"])
        ]  # fmt: skip

    def job(self, kind: str) -> JobView:
        return JobView.model_validate(
            {
                "id": "job_1", "kind": kind, "run": self.name, "where": "cpu", "state": "completed",
                "reason": None, "message": "", "stage": "", "stage_detail": "", "fraction": 1.0,
                "params": {}, "created_at": time.time(), "started_at": None, "ended_at": None,
                "result": {"samples": [{"prompt": "The capital of France is", "text": " Paris"}]},
            }
        )  # fmt: skip


def metrics_of(
    run: StubRun,
    keys: list[str],
    from_step: int,
    to_step: int | None,
    max_points: int,
    bin_steps: int = 1,
) -> MetricsAnswer:
    """As the daemon bins: bins of a power of two, [step, unix_seconds, mean, min, max]."""
    end = min(run.step, to_step if to_step is not None else run.step)
    size = bin_steps
    while (end - from_step) / size > max_points:
        size *= 2
    series = []
    for key in keys:
        points = []
        for start in range(from_step // size * size, end, size):
            last = min(start + size, end) - 1
            mean, low, high = value_of(run, key, last, size)
            if key == "loss" and start <= SPIKE_STEP <= last:
                high = 9.31
            points.append((last, run.began + last * STEP_SECONDS, mean, low, high))
        series.append(Series(key=key, points=points))
    return MetricsAnswer(
        series=series,
        bin_steps=size,
        raw_points=end - from_step,
        segments=[
            s.model_copy(
                update={"from_step": max(s.from_step, from_step), "to_step": min(s.to_step, end)}
            )
            for s in run.segments()
            if s.to_step > from_step and s.from_step < end
        ],
    )


def weight_decay_of(run: StubRun, schedule: PhaseSchedule, step: int) -> float:
    """As a trainer reports it: the value Muon applies."""
    return run.plan.hyperparameters.weight_decay * weight_decay_multiplier(schedule, step)


def loss_at(step: float) -> float:
    return 2.74 + 2.4 * math.exp(-step / 1.2e4) + 5.6 * math.exp(-step / 300)


def value_of(run: StubRun, key: str, step: int, size: int) -> tuple[float, float, float]:
    """(mean, min, max) of a bin: a wobble that shrinks with the bin, and a spread that does not."""
    wobble = math.sin(step * 12.9898) * 43758.5453
    wobble = 2 * (wobble - math.floor(wobble)) - 1
    schedule = [s for s in run.schedules if s.start_step <= step][-1]
    base, spread = {
        "loss": (loss_at(step), 0.16),
        "loss_smooth": (loss_at(step) + 0.01 * wobble / math.sqrt(size), 0.0),
        "lr_multiplier": (lr_multiplier(schedule, step), 0.0),
        "momentum": (muon_momentum(schedule, step), 0.0),
        "weight_decay": (weight_decay_of(run, schedule, step), 0.0),
        "grad_norm": (0.3 + 2 * math.exp(-step / 900), 0.08),
        "tokens_per_second": (55_700.0, 420.0),
        "mfu": (0.847, 0.006),
        "step_seconds": (STEP_SECONDS, 0.01),
        "vram_reserved_bytes": (9.1e9, 0.0),
        "power_watts": (187.0, 4.0),
        "temperature_celsius": (70 + 2 * math.sin(step / 9000), 0.4),
    }.get(key, (0.0, 0.0))
    mean = base + spread * wobble / math.sqrt(size)
    reach = spread * (1 if size == 1 else 1 + math.log2(size) / 4)
    low, high = (mean, mean) if size == 1 else (base - reach, base + reach)
    return mean, low, high


def _events_of(run: StubRun) -> list[EventView]:
    said = [
        ("state", "info", 0, "created -> queued: Waiting to start."),
        ("started", "info", 0, "attempt 1 on cuda:0"),
        ("notice", "warning", SPIKE_STEP, "loss spike: 9.31 where 2.81 was expected"),
        ("state", "error", 87_000, "running -> recovering: The trainer ended without finishing."),
        ("resume_checked", "info", 86_000, "next_loss verified bit for bit"),
        ("checkpoint_saved", "info", 130_000, "step-000130000-a0003 (1.99 GB in 4.1 s)"),
        ("extend", "info", 130_000, "extended from step 130,000 to 200,000 (replan)"),
    ]
    return [
        EventView.model_validate(
            {
                "id": i + 1, "run": run.id, "job": None, "attempt": 1, "kind": kind,
                "level": level, "step": step, "message": message, "data": {},
                "unix_seconds": run.began + step * STEP_SECONDS,
            }
        )
        for i, (kind, level, step, message) in enumerate(said)
        if step <= run.step
    ]  # fmt: skip
