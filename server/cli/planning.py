"""`traind plan`: the plan of a spec, from the daemon or offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output, specfile
from trainer.contract import units

if TYPE_CHECKING:
    from trainer.contract.plan import Plan, PlanContext

Pairs = list[tuple[str, object]]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look")(plan)


def plan(
    spec: options.SpecArgument = None,
    preset: options.Preset = None,
    settings: options.SpecKeys = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1e-3, help="Throughput to assume.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU to plan for, e.g. 'RTX 4070'.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="Device memory to assume.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Plan without the daemon and its measurements.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Plan a spec: parameters, batch, FLOPs, memory, disk and time. Creates nothing."""
    body = specfile.read_spec(spec, settings or [], preset=preset)
    body.setdefault("name", "plan")
    made = None
    if not (offline or tokens_per_second or gpu or memory_gb):
        made = _from_daemon(body)
    if made is None:
        made = _here(body, tokens_per_second, gpu, memory_gb)
    if json:
        return output.emit(made)
    for title, rows in sections(made):
        output.pairs(title, rows)
    output.warn(made.warnings)
    return None


def sections(plan: Plan) -> list[tuple[str, Pairs]]:
    """The plan as titled blocks of names and values with units."""
    return [
        ("Model", _model(plan)),
        ("Batch and rates", _rates(plan)),
        ("Horizon", _horizon(plan)),
        ("Device memory, estimated peak", _memory(plan)),
        ("Disk", _disk(plan)),
        ("Time", _time(plan)),
    ]


def _from_daemon(body: dict[str, Any]) -> Plan | None:
    """The daemon's plan, for its device; None if no daemon answers."""
    from server.client import NotReachable

    try:
        with output.connect() as traind:
            return traind.plan(body).plan
    except NotReachable:
        output.note("no daemon answers: planned offline, without a known device")
        return None


def _here(
    body: dict[str, Any], rate: float | None, gpu: str | None, memory_gb: float | None
) -> Plan:
    """The plan by the same pure function, called here. Errors point to the invalid fields."""
    from pydantic import ValidationError

    from trainer.contract.plan import make_plan
    from trainer.contract.spec import resolve

    try:
        return make_plan(resolve(body), _context(rate, gpu, memory_gb))
    except ValidationError as error:
        lines = [
            f"  /{'/'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        ]
        raise output.CommandRefused("the spec is not valid\n" + "\n".join(lines)) from error
    except ValueError as error:
        raise output.CommandRefused(str(error)) from error


def _context(rate: float | None, gpu: str | None, memory_gb: float | None) -> PlanContext:
    from trainer.contract.peaks import known_peak
    from trainer.contract.plan import PlanContext

    peak = known_peak(gpu) if gpu else None
    if gpu and not peak:
        output.note(f"the peak FLOP/s of {gpu!r} is unknown: give --tokens-per-second", "yellow")
    return PlanContext(
        device_name=gpu,
        device_memory_bytes=int(memory_gb * 1e9) if memory_gb else None,
        peak_flops=peak.value if peak else None,
        peak_source=peak.source if peak else None,
        tokens_per_second=rate,
        throughput_source="given with --tokens-per-second" if rate else None,
    )


def _model(plan: Plan) -> Pairs:
    shape, counts = plan.shape, plan.parameters
    windows = "full" if min(shape.windows) >= shape.sequence_len else f"{shape.windows}"
    return [
        ("shape", f"{shape.n_layer} layers, width {shape.n_embd}, {shape.n_head} heads of "
                  f"{shape.head_dim} ({shape.n_kv_head} for keys and values)"),
        *([("devices", f"{plan.num_devices}, together")] if plan.num_devices > 1 else []),
        *_recipe(plan),
        ("context", f"{shape.sequence_len:,} tokens, windows {windows}"),
        ("vocabulary", f"{shape.vocab_size:,} (stored as {shape.padded_vocab_size:,})"),
        ("parameters", f"{counts.total:,}"),
        ("  token embedding", f"{counts.wte:,}"),
        ("  value embeddings", f"{counts.value_embeds:,}"),
        ("  head", f"{counts.lm_head:,}"),
        ("  transformer", f"{counts.transformer:,}"),
        ("  scalars", f"{counts.scalars:,}"),
    ]  # fmt: skip


def _recipe(plan: Plan) -> Pairs:
    """The recipe and its differences; nothing for the default recipe."""
    if not plan.recipe.changes:
        return []
    named = plan.recipe.model
    if plan.recipe.optimizer != named:
        named = f"{named}, optimizer {plan.recipe.optimizer}"
    return [("recipe", named), *(("  changes", line) for line in plan.recipe.changes)]


def _rates(plan: Plan) -> Pairs:
    batch, rates = plan.batch, plan.hyperparameters
    assumed = " (assumed; a measurement may change it)" if batch.device_batch_size_assumed else ""
    return [
        ("batch", f"{batch.tokens:,} tokens = {batch.device_batch_size} x {batch.sequence_len:,}"
                  f" x {batch.accumulation}{assumed}"),
        ("rates scaled by", f"{rates.lr_factor:.5f} (batch), {rates.width_factor:.5f} (width)"),
        ("matrix LR", units.significant(rates.matrix_lr, 6)),
        ("embedding LR", f"{units.significant(rates.embedding_lr, 6)}, value embeddings "
                         f"{units.significant(rates.value_embedding_lr, 6)}"),
        ("head LR", units.significant(rates.unembedding_lr, 6)),
        ("scalar LRs", f"residual {units.significant(rates.resid_lr, 6)}, x0 "
                       f"{units.significant(rates.x0_lr, 6)}, "
                       f"smear {units.significant(rates.smear_lr, 6)}"),
        ("weight decay", f"{rates.weight_decay:.5f} at its peak"),
        ("schedule", f"warm-up {plan.schedule.warmup_steps:,} steps, {plan.schedule.shape} "
                     f"warmdown from step {plan.warmdown_start:,} to "
                     f"{plan.schedule.final_lr_frac:g} of the peak"),
    ]  # fmt: skip


def _horizon(plan: Plan) -> Pairs:
    horizon = plan.horizon
    return [
        ("steps", f"{horizon.steps:,}"),
        ("tokens", f"{horizon.tokens:,}"),
        ("tokens : parameters", f"{horizon.ratio:.1f} : 1 (Chinchilla "
                                f"{horizon.chinchilla_ratio:g}); {horizon.ratio_scaling:.1f} : 1 "
                                "by matrix parameters"),
        ("FLOPs", f"{units.flops(horizon.flops)} "
                  f"({units.flops(horizon.flops_per_token)} per token; "
                  f"{units.flops(horizon.flops_per_token_causal)} computed)"),
    ]  # fmt: skip


def _memory(plan: Plan) -> Pairs:
    memory = plan.memory
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "overhead")
    there = f" of {units.num_bytes(memory.available)}" if memory.available else ""
    rows: Pairs = [(part, units.num_bytes(getattr(memory, part))) for part in parts]
    return [*rows, ("total", units.num_bytes(memory.total) + there)]


def _disk(plan: Plan) -> Pairs:
    disk = plan.disk
    free = f" of {units.num_bytes(disk.available)} free" if disk.available is not None else ""
    rows: Pairs = [
        ("one checkpoint", f"{units.num_bytes(disk.checkpoint_total)} = model "
                           f"{units.num_bytes(disk.checkpoint_model)} + optimizer "
                           f"{units.num_bytes(disk.checkpoint_optimizer)}"),
        ("kept at once", f"{disk.checkpoints_kept} ({units.num_bytes(disk.checkpoints_total)})"),
    ]  # fmt: skip
    if disk.download:
        rows.append(
            ("data", f"{plan.max_shards} shards: {units.num_bytes(disk.download)} download, "
                     f"{units.num_bytes(disk.token_cache)} token cache")
        )  # fmt: skip
    return [*rows, ("total", units.num_bytes(disk.total) + free)]


def _time(plan: Plan) -> Pairs:
    eta = plan.eta
    return [
        ("rate", f"{units.rate(eta.tokens_per_second)}, {units.duration(eta_step(plan))} per step"),
        ("  from", eta.source),
        ("training", units.duration(eta.training)),
        ("evaluation", units.duration(eta.evaluation)),
        ("saving", units.duration(eta.saving)),
        ("start-up", units.duration(eta.start_up)),
        ("total", units.duration(eta.total)),
        ("a crash loses at most", units.duration(plan.crash_loses_at_most_seconds)),
    ]


def eta_step(plan: Plan) -> float:
    """Seconds per step at the plan's throughput."""
    return plan.batch.tokens / plan.eta.tokens_per_second
