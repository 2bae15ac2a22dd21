"""ETA by part, throughput estimate, and the most work a crash can lose."""

from __future__ import annotations

from typing import Literal, NamedTuple

from trainer.contract import units
from trainer.contract.evaluations import BY_KIND
from trainer.contract.plan.answer import BatchPlan, Eta
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.disk import checkpoint_bytes
from trainer.contract.plan.exchange import plan_exchange
from trainer.contract.shape import ModelShape, flops_per_token_causal
from trainer.contract.spec import RunSpec

FORWARD_SPEEDUP = 3.0  # an evaluation does the forward third of a training step's work
SAVE_BYTES_PER_SECOND = 500e6
SAVE_SLOWDOWN_SECONDS_PER_BYTE = 0.12e-9  # of the steps beside a write in the background
START_SECONDS = 90.0
ASSUMED_UTILISATION = 0.6  # of the dense peak, counting only causal attention; stated in the plan
ASSUMED_CPU_FLOPS = 60e9
# DCLM's bundle: 22 tasks of a few thousand items of about a thousand tokens, examples included
CORE_TASKS = 22
CORE_ITEMS_PER_TASK = 4000
CORE_TOKENS_PER_ITEM = 1000


class TimeLeft(NamedTuple):
    """Seconds by part."""

    training: float
    evaluation: float
    saving: float

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.saving


class EvaluationTime(NamedTuple):
    """Number of val bpb and CORE evaluations, and the seconds each takes."""

    bpb_times: int
    bpb_seconds: float
    core_times: int
    core_seconds: float

    @property
    def total(self) -> float:
        return self.bpb_times * self.bpb_seconds + self.core_times * self.core_seconds


def throughput(shape: ModelShape, context: PlanContext) -> tuple[float, str]:
    """(tokens per second, source): measured if known, otherwise from the device's peak."""
    if context.tokens_per_second:
        return context.tokens_per_second, context.throughput_source or "given"
    per_token = flops_per_token_causal(shape)
    if context.device_type == "cuda" and context.peak_flops:
        rate = ASSUMED_UTILISATION * context.peak_flops / per_token
        name = context.device_name or "the device"
        return rate, (
            f"assumed: {units.percent(ASSUMED_UTILISATION)} of {units.flops(context.peak_flops)}/s "
            f"({name}, {context.peak_source or 'dense bf16 peak'})"
        )
    flops = context.peak_flops or ASSUMED_CPU_FLOPS
    return flops / per_token, f"assumed: {units.flops(flops)}/s, no measurement on this device"


def throughput_of_all(
    spec: RunSpec, shape: ModelShape, batch: BatchPlan, context: PlanContext
) -> tuple[float, str]:
    """Throughput of all devices together, exchange included: (tokens per second, source)."""
    rate, source = throughput(shape, context)
    exchange = plan_exchange(spec, shape, batch, rate, context)
    if exchange is None or context.tokens_per_second:  # measured, on the same number of devices
        return rate, source
    seconds = batch.tokens / (rate * exchange.devices) + exchange.seconds_per_step
    return batch.tokens / seconds, (
        f"{source}; {exchange.devices} devices, of which each sends "
        f"{units.num_bytes(exchange.bytes_per_step)} a step at "
        f"{units.num_bytes(exchange.bytes_per_second)}/s (assumed)"
    )


def estimate_eta(
    spec: RunSpec,
    shape: ModelShape,
    batch: BatchPlan,
    start_step: int,
    end_step: int,
    context: PlanContext,
) -> Eta:
    """Seconds from start_step to end_step: training, evaluation, saving, start-up."""
    rate, source = throughput_of_all(spec, shape, batch, context)
    left = time_left(spec, shape, batch, start_step, end_step, rate, context=context)
    start_up = START_SECONDS if context.device_type == "cuda" else 10.0
    return Eta(
        training=left.training,
        evaluation=left.evaluation,
        saving=left.saving,
        start_up=start_up,
        total=left.total + start_up,
        tokens_per_second=rate,
        source=source,
    )


def time_left(
    spec: RunSpec,
    shape: ModelShape,
    batch: BatchPlan,
    step: int,
    end_step: int,
    tokens_per_second: float,
    *,
    bpb_seconds: float | None = None,
    core_seconds: float | None = None,
    context: PlanContext | None = None,
) -> TimeLeft:
    """Time from `step` to `end_step` at this rate; the only formula of the ETA.

    The plan, the daemon's progress and the trainer's log use it. bpb_seconds, core_seconds: the
    measured duration of one evaluation, None where none has run yet.
    """
    training = (end_step - step) * batch.tokens / tokens_per_second
    planned = _evaluation_time(spec, batch, step, end_step, tokens_per_second)
    evaluation = planned._replace(
        bpb_seconds=bpb_seconds or planned.bpb_seconds,
        core_seconds=core_seconds or planned.core_seconds,
    ).total
    known = context or PlanContext(tokens_per_second=tokens_per_second)
    size = sum(checkpoint_bytes(spec, shape, known))
    saves = _saves(spec, training, end_step - step)
    # written in the background; a run waits only for the last one
    saving = size / SAVE_BYTES_PER_SECOND + saves * SAVE_SLOWDOWN_SECONDS_PER_BYTE * size
    return TimeLeft(training, evaluation, saving)


def _evaluation_time(
    spec: RunSpec, batch: BatchPlan, start_step: int, end_step: int, tokens_per_second: float
) -> EvaluationTime:
    """Time of the evaluations between the steps, at the speed of a forward pass."""
    asked, forward = spec.evaluate, FORWARD_SPEEDUP * tokens_per_second
    per_pass = batch.device_batch_size * batch.sequence_len
    span_tokens = max(1, asked.eval_tokens // per_pass) * per_pass
    items = asked.core_max_per_task or CORE_ITEMS_PER_TASK
    core_tokens = CORE_TASKS * min(items, CORE_ITEMS_PER_TASK) * CORE_TOKENS_PER_ITEM
    return EvaluationTime(
        bpb_times=_times_due(BY_KIND["bpb"].cadence(asked), start_step, end_step),
        bpb_seconds=span_tokens / forward,
        core_times=_times_due(BY_KIND["core"].cadence(asked), start_step, end_step),
        core_seconds=core_tokens / forward,
    )


def crash_loss(spec: RunSpec, eta: Eta, steps: int) -> float:
    """Most training seconds that a crash can lose: the longest time between two saves."""
    every = [eta.training]
    if spec.checkpoint.every_seconds:
        every.append(spec.checkpoint.every_seconds)
    if spec.checkpoint.every_steps and steps:
        every.append(spec.checkpoint.every_steps * eta.training / steps)
    return min(every)


def _times_due(every: int | Literal["end"] | None, start: int, end: int) -> int:
    if every is None:
        return 0
    if every == "end":
        return 1
    return (end // every) - (start // every) + (1 if end % every else 0)


def _saves(spec: RunSpec, training_seconds: float, steps: int) -> int:
    by_time = (
        training_seconds / spec.checkpoint.every_seconds if spec.checkpoint.every_seconds else 0
    )
    by_step = steps / spec.checkpoint.every_steps if spec.checkpoint.every_steps else 0
    return int(max(by_time, by_step)) + 1
